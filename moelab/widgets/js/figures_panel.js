// figures_panel.js: what a placement is worth, one row for each figure, beside plan A where one is kept. It formats
// `figures` and `kept` (Figures.as_dict) and computes nothing but the difference of two shown numbers.

// [name, text of it, value whose change is shown, is more better, title]
const FIGURE_ROWS = [
  ["reads per layer-step", (f) => withInterval(f.reads_per_layer_step, f.reads_interval), (f) => f.reads_per_layer_step, false,
    "distinct misses + uploads + prefetches + late; 95% interval"],
  ["on the planning part", (f) => number(f.train_reads_per_layer_step), (f) => f.train_reads_per_layer_step, false,
    "reads per layer-step where the plan was made: the distance is what the planner learned by heart"],
  ["gap to the bound", (f) => percentWithInterval(f.gap, f.gap_interval), (f) => f.gap, false, "above the least that any placement of the kind reaches"],
  ["hit rate per routing", (f) => percent(f.hit_rate_per_routing), (f) => f.hit_rate_per_routing, true, "every use of a token counts"],
  ["hit rate per request", (f) => percent(f.hit_rate_per_request), (f) => f.hit_rate_per_request, true,
    "a distinct expert of a layer-step counts once"],
  ["ms per token", (f) => number(f.ms_per_token), (f) => f.ms_per_token, false, "predicted, routed experts only"],
];

const byTier = (figures) => [...Object.entries(figures.bytes_of_node || {}).map(([tier, bytes]) => [`${tier} reads per token`, bytes]),
  ...Object.entries(figures.bytes_of_link || {}).map(([tier, bytes]) => [`copied to ${tier} per token`, bytes])];

function change(now, before, moreIsBetter) {
  if (!isNumber(now) || !isNumber(before) || !before) return "";
  const share = now / before - 1;
  if (Math.abs(share) < 5e-4) return "=";
  const word = moreIsBetter === undefined ? "" : share > 0 === moreIsBetter ? " better" : " worse";
  return `${share > 0 ? "+" : "\u2212"}${Math.abs(100 * share).toFixed(1)}%${word}`;
}

function memoryRow(tier) {
  const total = tier.expert_bytes + tier.other_bytes, has = isNumber(tier.machine_bytes);
  const share = has ? Math.min(1, total / Math.max(total, tier.machine_bytes)) : 0;
  const verdict = !has ? "the machine has no such tier" : tier.fits ? `of ${gigabytes(tier.machine_bytes)}, fits`
    : `of ${gigabytes(tier.machine_bytes)}: does not fit, ${gigabytes(total - tier.machine_bytes)} too much`;
  return element("div", { class: "moelab-memory", "data-tier": tier.tier, "data-fits": String(tier.fits) },
    element("span", {}, tier.tier),
    element("span", { class: "moelab-bar", role: "img", "aria-label": `${tier.tier} ${verdict}` },
      element("i", { style: `width:${100 * (has ? Math.min(1, total / tier.machine_bytes) : share)}%` })),
    element("span", {}, `${gigabytes(total)} ${verdict}`));
}

function figuresPanel(model) {
  const panel = element("section", { class: "moelab-figures", "aria-label": "What this placement is worth" });
  const draw = () => {
    const now = model.get("figures"), kept = model.get("kept");
    const hasKept = Object.keys(kept).length > 0;
    if (!Object.keys(now).length) { panel.replaceChildren(); return; }
    const badge = element("span", { class: "moelab-badge", "data-preview": String(now.is_preview) }, now.is_preview ? "preview" : "full");
    const speedText = withInterval(now.tok_per_s, now.tok_per_s_interval);
    const speed = element("div", { class: "moelab-speed" },
      element("b", { "data-figure": "tok_per_s" }, isNumber(now.tok_per_s) ? speedText.split(" ")[0] : "no time"), " tok/s ", badge,
      element("div", {}, isNumber(now.tok_per_s)
        ? (now.tok_per_s_interval ? `95% interval${now.stands_in_for ? " of the steps" : ""} ${speedText.slice(speedText.indexOf("(") + 1, -1)}`
          : `no interval: only ${now.num_clusters} ${now.unit}`)
        : now.why_no_time),
      ...(now.stands_in_for ? [element("div", { class: "moelab-stand-in" },
        `A quick placement stands in for ${now.stands_in_for}: what it finds may lie outside.`)] : []));
    const cell = (name, text, before, difference, title) => element("tr", { title },
      element("th", { scope: "row" }, name), element("td", { "data-figure": name }, text),
      ...(hasKept ? [element("td", {}, before), element("td", {}, difference)] : []));
    const rows = FIGURE_ROWS.map(([name, text, value, better, title]) =>
      cell(name, text(now), hasKept ? text({ ...kept, reads_interval: null, gap_interval: null }) : "", hasKept ? change(value(now), value(kept), better) : "", title));
    if (hasKept) rows.unshift(cell("tok/s", number(now.tok_per_s), number(kept.tok_per_s), change(now.tok_per_s, kept.tok_per_s, true), ""));
    const before = Object.fromEntries(byTier(kept));
    for (const [name, bytes] of byTier(now))
      rows.push(cell(name, gigabytes(bytes), gigabytes(before[name]), change(bytes, before[name], false), "bytes, mean over tokens"));
    const head = hasKept ? [element("tr", {}, element("th"), element("th", {}, "now"),
      element("th", { title: kept.settings }, "A"), element("th", {}, "change"))] : [];
    const note = `Routed experts only, ${now.scored_on}: ${now.num_tokens.toLocaleString("en-US")} tokens. Placed by ${now.placed_by}.` +
      (now.synthetic ? " SYNTHETIC routing." : "") + (now.bound_of ? ` Bound: ${now.bound_of}.` : " Nothing bounds this policy: it may copy what is not asked for.");
    panel.dataset.kept = String(hasKept);
    panel.replaceChildren(speed, element("table", {}, ...head, ...rows),
      ...(hasKept ? [element("div", { class: "moelab-note" }, `A: ${kept.settings}`)] : []),
      element("h4", {}, "Memory"), ...now.memory.map(memoryRow), element("div", { class: "moelab-note" }, note));
  };
  model.on("change:figures change:kept", draw);
  draw();
  return panel;
}

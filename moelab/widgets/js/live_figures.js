// live_figures.js: what the prompts read, one column for each of the latest, and bars of the nodes. It formats `figures`
// and `runs` (LiveRun.figures) and computes nothing but the difference of two shown numbers (`change`).

const PROMPTS_SHOWN = 3;

// [name, text of it, value whose change is shown, is more better, title]
const LIVE_ROWS = [
  ["plan", (f) => f.plan, null, undefined, "what was applied here before this prompt"],
  ["tokens", (f) => number(f.new_tokens) + ({ length: "", stop: ", ended", cancelled: ", stopped" }[f.finished_by] ?? ""), null, undefined, "new tokens, and what ended them"],
  ["text", (f) => f.text || "", null, undefined, "beside an earlier prompt that was asked the same"],
  ["decode tok/s", (f) => number(f.decode_tok_per_s), (f) => f.decode_tok_per_s, undefined, "of wall time; one prompt, so no verdict"],
  ["node imbalance", (f) => number(f.node_imbalance), (f) => f.node_imbalance, false, "bytes of the fullest node over the mean"],
];
const TIER_ROWS = [
  ["hit rate per routing", (f) => percent(f.hit_rate_per_routing), (f) => f.hit_rate_per_routing, true, "every use of a token counts"],
  ["uploads", (f) => number(f.uploads), (f) => f.uploads, false, "experts that the policy admitted in decode"],
  ["late", (f) => number(f.late), (f) => f.late, false, "hits whose copy had not arrived: they ran from home"],
  ["uploads, prefill", (f) => number(f.prefill_uploads), (f) => f.prefill_uploads, false, "while the prompt was read"],
  ["late, prefill", (f) => number(f.prefill_late), (f) => f.prefill_late, false, "while the prompt was read"],
];

function nodeRows(count) {
  return Array.from({ length: count }, (_, n) => [
    [`node${n} GB/s`, (f) => number(f.gb_per_s_of_node[n]), (f) => f.gb_per_s_of_node[n], undefined, "bytes over the time until its last worker was done"],
    [`node${n} per token`, (f) => gigabytes(f.bytes_per_token_of_node[n] ?? NaN), (f) => f.bytes_per_token_of_node[n], undefined, "bytes of routed experts that it read"],
  ]).flat();
}

function nodeBars(figures) {
  const rates = figures.gb_per_s_of_node, most = Math.max(...rates) || 1;
  return rates.map((rate, n) => element("div", { class: "moelab-node", "data-node": String(n) },
    element("span", {}, `node${n}`),
    element("span", { class: "moelab-bar", role: "img", "aria-label": `node${n} ${number(rate)} GB/s` },
      element("i", { style: `width:${(100 * rate) / most}%` })),
    element("span", {}, `${number(rate)} GB/s`)));
}

function liveFigures(model) {
  const panel = element("section", { class: "moelab-figures", "aria-label": "What the prompts read" });
  const draw = () => {
    const now = model.get("figures"), ended = model.get("runs");
    if (!now.number) {
      panel.replaceChildren(element("div", { class: "moelab-note" }, "GB/s of each node, late and uploads stand here once a prompt runs."));
      return;
    }
    const earlier = ended.filter((run) => run.number !== now.number);
    const shown = [...earlier, now].slice(-PROMPTS_SHOWN), before = shown.at(-2);
    const hasTier = shown.some((f) => f.fast_tier !== "none");
    const live = LIVE_ROWS.filter(([name]) => name !== "text" || shown.some((f) => f.text));
    const rows = [...live, ...nodeRows(Math.max(...shown.map((f) => f.gb_per_s_of_node.length))), ...(hasTier ? TIER_ROWS : [])];
    const head = element("tr", {}, element("th"),
      ...shown.map((f) => element("th", { scope: "col", title: f.prompt }, `prompt ${f.number}`)), before ? element("th", {}, "change") : null);
    const body = rows.map(([name, text, value, better, title]) => element("tr", { title, "data-row": name },
      element("th", { scope: "row" }, name),
      ...shown.map((f) => element("td", { "data-figure": f === now ? name : null }, text(f))),
      before ? element("td", {}, value ? change(value(now), value(before), better) : "") : null));
    panel.replaceChildren(element("h4", {}, now.virtual_nodes ? "Read by each (virtual) node" : "Read by each node"), ...nodeBars(now),
      element("table", {}, head, ...body),
      element("div", { class: "moelab-note" }, `Routed experts, decode. Fast tier: ${now.fast_tier}.`));
  };
  model.on("change:figures change:runs", draw);
  draw();
  return panel;
}

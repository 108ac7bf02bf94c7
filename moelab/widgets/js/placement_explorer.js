// placement_explorer.js: controls, map and figures of a placement. Every button sends one message, which is a method of
// the Python class. Keys on the map: p pin, u unpin, f to the fast tier, r replicate, s split, z undo.

function splitLine(model) {
  const line = element("div", { class: "moelab-split" });
  const draw = () => {
    const split = model.get("split");
    if (!split.train) return;
    const part = (of) => `${of.tokens.toLocaleString("en-US")} tokens of ${of.requests} request${of.requests > 1 ? "s" : ""}`;
    const words = split.how === "none" ? `Planned and scored on the same ${part(split.train)}: IN SAMPLE.`
      : `Planned on ${part(split.train)}, scored on ${part(split.test)} held out${split.how === "time" ? " (split in time)" : ""}.`;
    line.textContent = `${split.model}${split.synthetic ? ", SYNTHETIC routing" : ""}. ${words} Counts: ${split.phase}.` +
      ` Machine: ${split.machine || "none given, so no times"}.`;
  };
  model.on("change:split", draw);
  draw();
  return line;
}

function editBar(model) {
  const send = (message) => model.send(message);
  const button = (text, title, message) =>
    element("button", { title, "data-do": message.do, onclick: () => send(message) }, text);
  const count = element("b", { class: "moelab-count-chosen" });
  const query = element("input", {
    type: "text", placeholder: "query: load > 2 and tier != \"fast0\"", "aria-label": "Choose experts by a query", spellcheck: "false",
    title: "load, tier, node, replicas, reuse, regret, layer, expert; and, or, not; Enter chooses",
  });
  query.onkeydown = (event) => { if (event.key === "Enter") send({ do: "query", text: query.value }); };
  const tier = element("select", { "aria-label": "Tier to move to", "data-do": "tier" });
  const edits = element("span", { class: "moelab-edits" });
  const needsChoice = [
    button("Pin", "On the fast tier for good (p)", { do: "pin" }), button("Unpin", "May be evicted (u)", { do: "unpin" }),
    element("button", { "data-do": "move", title: "Move to the tier beside it", onclick: () => send({ do: "move", tier: tier.value }) }, "Move to"),
    tier, button("Replicate", "A copy on every node (r)", { do: "replicate" }), button("Split", "Rows over all nodes (s)", { do: "split" }),
  ];
  const undo = button("Undo", "Take the last edit back (z)", { do: "undo" });
  const clear = button("Clear edits", "Back to the planner's placement", { do: "clear_edits" });
  const follow = () => {
    const chosen = model.get("num_selected"), made = model.get("edits_made"), tiers = model.get("choices").tiers || [];
    count.textContent = `${chosen.toLocaleString("en-US")} chosen`;
    for (const each of needsChoice) each.disabled = !chosen;
    const hasNodes = model.get("nodes") > 1;
    for (const each of needsChoice.slice(-2)) each.disabled = !chosen || !hasNodes;
    undo.disabled = clear.disabled = !made.length;
    edits.textContent = made.length ? `By hand: ${made.join("; ")}` : "";
    if (tier.dataset.all !== tiers.join()) tier.replaceChildren(...tiers.map((each) => element("option", { value: each }, each)));
    tier.dataset.all = tiers.join();
  };
  model.on("change:num_selected change:edits_made change:choices change:nodes", follow);
  follow();
  return element("div", { class: "moelab-edit-bar" }, count, query, ...needsChoice, undo, clear, edits);
}

function planBar(model) {
  const path = element("input", { type: "text", value: "plan.json", "aria-label": "File of the plan", size: "12" });
  const button = (text, title, message) =>
    element("button", { title, "data-do": message().do, onclick: () => model.send(message()) }, text);
  const apply = button("Apply to the engine", "Carry the plan out in the live engine", () => ({ do: "apply" }));
  const follow = () => {
    apply.disabled = !model.get("has_engine");
    if (apply.disabled) apply.title = "No live engine: PlacementExplorer(trace, machine, engine=moelab.load(folder))";
  };
  model.on("change:has_engine", follow);
  follow();
  const note = element("span", { class: "moelab-plan-note", role: "status", "aria-live": "polite" });
  const tell = () => (note.textContent = model.get("note"));
  model.on("change:note", tell);
  tell();
  return element("div", { class: "moelab-plan-bar" },
    button("Full figure", "Every held-out step, in the background", () => ({ do: "full" })),
    button("Keep as A", "Compare what follows with this plan", () => ({ do: "keep" })),
    button("Save plan", "Write the plan to the file beside it", () => ({ do: "save", path: path.value })), path,
    button("Replay here", "Execute the routed experts on this machine, prediction beside measurement", () => ({ do: "replay" })), apply, note);
}

function replayed(model) {
  const place = element("div", { class: "moelab-replay" });
  const draw = () => { place.innerHTML = model.get("replay_html"); place.hidden = !place.innerHTML; }; // escaped in Python
  model.on("change:replay_html", draw);
  draw();
  return place;
}

const KEYS = { p: { do: "pin" }, u: { do: "unpin" }, f: { do: "move", tier: "fast0" }, r: { do: "replicate" }, s: { do: "split" }, z: { do: "undo" } };

export default {
  render({ model, el }) {
    root(el, "explorer");
    const map = new ExpertMapView(model);
    map.canvas.addEventListener("keydown", (event) => {
      const message = KEYS[event.key];
      if (!message || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      model.send(message);
    });
    const body = element("div", { class: "moelab-columns" },
      element("div", { class: "moelab-left" }, controls(model, el), map.element, editBar(model), planBar(model)),
      figuresPanel(model));
    const hide = () => (body.hidden = !model.get("num_layers"));
    model.on("change:num_layers", hide);
    hide();
    el.append(splitLine(model), statusLine(model), body, replayed(model));
    return () => map.end();
  },
};

// explorer_controls.js: sliders and menus of the explorer. A change goes to Python and the next one waits for its
// answer, so that a dragged slider never queues up work; the last position always arrives.

// `el.dataset.settled` says whether all were answered.
function asker(model, el) {
  let waiting = null;
  const isAsked = () => model.get("asked") !== model.get("answered");
  const send = (changes) => {
    for (const [name, value] of Object.entries(changes)) model.set(name, value);
    model.set("asked", model.get("asked") + 1);
    model.save_changes();
    el.dataset.settled = "false";
  };
  model.on("change:answered", () => {
    if (isAsked()) return;
    if (waiting) { const changes = waiting; waiting = null; send(changes); }
    else el.dataset.settled = "true";
  });
  return (changes) => {
    if (isAsked()) waiting = { ...waiting, ...changes };
    else send(changes);
  };
}

// A slider with its number beside it; `text` says what a position means.
function slider(name, label, ask, text, toTrait = Number) {
  const input = element("input", { type: "range", min: "0", step: "1", "data-setting": name, "aria-label": label });
  const value = element("output", {});
  input.oninput = () => { value.textContent = text(Number(input.value)); ask({ [name]: toTrait(Number(input.value)) }); };
  const row = element("label", { class: "moelab-slider" }, element("span", {}, label), input, value);
  row.place = (position, most) => {
    input.max = String(most);
    input.disabled = most === 0;
    if (document.activeElement !== input || Math.abs(Number(input.value) - position) > 1) input.value = String(position);
    value.textContent = text(position);
    input.setAttribute("aria-valuetext", value.textContent);
  };
  return row;
}

function menu(name, label, ask, describe = (each) => each) {
  const select = element("select", { "data-setting": name, "aria-label": label });
  select.onchange = () => ask({ [name]: select.value });
  const row = element("label", { class: "moelab-menu" }, element("span", {}, label), select);
  row.place = (chosen, all) => {
    const wanted = all.join("\n");
    if (select.dataset.all !== wanted) select.replaceChildren(...all.map((each) => element("option", { value: each }, describe(each))));
    select.dataset.all = wanted;
    select.value = chosen;
  };
  return row;
}

const REPLICA_STEPS = 100; // of the replica slider: one is a hundredth of all experts on all further nodes

function controls(model, el) {
  const ask = asker(model, el), choices = () => model.get("choices");
  const slotText = (slots) => `${slots} slots a layer, ${gigabytes(slots * choices().slot_bytes)}` +
    (choices().fast_bytes ? ` (has ${gigabytes(choices().fast_bytes)})` : "");
  const fast = slider("slots_per_layer", "Fast tier", ask, slotText);
  const nodeText = (at) => {
    const nodes = choices().nodes[at];
    return `${nodes} node${nodes > 1 ? "s" : ""}` + (nodes > choices().nodes_of_machine ? ", virtual" : "");
  };
  const nodes = slider("nodes", "Nodes", ask, nodeText, (at) => choices().nodes[at]);
  const replicaText = (at) => {
    const share = at / REPLICA_STEPS;
    return `${gigabytes(share * choices().all_bytes)}, ${Math.round(100 * share)}% of one copy`;
  };
  const replicas = slider("extra_memory", "Replicas", ask, replicaText, (at) => at / REPLICA_STEPS);
  const planner = menu("planner", "Planner", ask);
  const policy = menu("policy", "Policy", ask, (name) => (choices().oracles.includes(name) ? `${name} (oracle)` : name));
  const colour = menu("colour_by", "Colour", ask);
  const order = menu("map_order", "Sorted by", ask, (name) => (name === "id" ? "expert id" : "load"));
  const place = () => {
    const offered = choices();
    if (!offered.nodes) return;
    fast.place(model.get("slots_per_layer"), offered.most_slots);
    nodes.place(offered.nodes.indexOf(model.get("nodes")), offered.nodes.length - 1);
    replicas.place(Math.round(model.get("extra_memory") * REPLICA_STEPS), REPLICA_STEPS * (model.get("nodes") - 1));
    planner.place(model.get("planner"), offered.planners);
    policy.place(model.get("policy"), offered.policies);
    colour.place(model.get("colour_by"), offered.colours);
    order.place(model.get("map_order"), ["load", "id"]);
  };
  model.on("change:choices change:slots_per_layer change:nodes change:extra_memory change:planner change:policy " +
    "change:colour_by change:map_order", place);
  place();
  return element("div", { class: "moelab-controls" }, fast, nodes, replicas,
    element("div", { class: "moelab-menus" }, planner, policy, colour, order));
}

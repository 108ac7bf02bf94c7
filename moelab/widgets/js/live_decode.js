// live_decode.js: prompt, text, map and figures of an engine that generates. Buttons send one message each, which is a
// method of the Python class. Keys: Ctrl + Enter in the prompt generates, Escape stops.

function promptBar(model) {
  const prompt = element("textarea", { rows: "2", name: "prompt", "aria-label": "Prompt", placeholder: "A prompt; Ctrl+Enter generates", spellcheck: "false" });
  const field = (name, label, attributes) => {
    const input = element("input", { type: "number", name, "aria-label": label, ...attributes });
    return { input, row: element("label", {}, label, input) };
  };
  const fields = {
    max_new_tokens: field("max_new_tokens", "tokens", { min: "1", step: "1" }),
    temperature: field("temperature", "temperature", { min: "0", step: "0.1" }),
    seed: field("seed", "seed", { step: "1" }),
  };
  const generate = element("button", { "data-do": "generate", title: "Generate (Ctrl+Enter)" }, "Generate");
  const stop = element("button", { "data-do": "stop", title: "Stop after this token (Escape)", onclick: () => model.send({ do: "stop" }) }, "Stop");
  const start = () => {
    if (generate.disabled) return;
    const numbers = Object.fromEntries(Object.entries(fields).map(([name, { input }]) => [name, Number(input.value)]));
    model.send({ do: "generate", prompt: prompt.value, ...numbers });
  };
  generate.onclick = start;
  prompt.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    start();
  });
  const plan = element("select", { "aria-label": "Plan to apply", name: "plan" });
  const apply = element("button", { "data-do": "apply", title: "Carry the plan out in the engine",
    onclick: () => model.send({ do: "apply", plan: plan.value }) }, "Apply plan");
  const inUse = element("span", { class: "moelab-in-use" });
  const colour = element("select", { name: "colour_by", "aria-label": "Colour of the map",
    onchange: () => { model.set("colour_by", colour.value); model.save_changes(); } },
    ...[["light", "latest tokens"], ["uses", "uses"], ["home", "where it lies"]].map(([value, text]) => element("option", { value }, text)));

  // Each alone: a change of one must not write over what is typed into another.
  const fill = {
    prompt: () => (prompt.value = model.get("prompt")),
    colour_by: () => (colour.value = model.get("colour_by")),
  };
  for (const [name, { input }] of Object.entries(fields)) fill[name] = () => (input.value = String(model.get(name)));
  const plans = () => {
    const names = model.get("plan_names");
    plan.replaceChildren(...names.map((name) => element("option", { value: name }, name)));
    plan.value = model.get("chosen_plan");
    plan.hidden = !names.length;
  };
  const follow = () => {
    const doing = model.get("doing"), hasPlans = model.get("plan_names").length > 0;
    generate.disabled = Boolean(doing) || !model.get("num_layers");
    stop.disabled = doing !== "generating";
    apply.disabled = Boolean(doing) || !hasPlans;
    apply.title = hasPlans ? "Carry the plan out in the engine" : "No plans: LiveDecode(engine, plans={\"name\": plan}), or add_plan(name, plan)";
    inUse.textContent = `in use: ${model.get("plan_in_use")}`;
  };
  for (const [name, write] of Object.entries(fill)) {
    model.on(`change:${name}`, write);
    write();
  }
  model.on("change:plan_names change:chosen_plan", () => { plans(); follow(); });
  model.on("change:doing change:plan_in_use change:num_layers", follow);
  plans();
  follow();
  return element("div", { class: "moelab-prompt-bar" }, prompt,
    element("div", { class: "moelab-tools" }, generate, stop, ...Object.values(fields).map(({ row }) => row)),
    element("div", { class: "moelab-tools" }, plan, apply, inUse, element("label", {}, "map", colour)));
}

function liveText(model) {
  const place = element("div", { class: "moelab-live-text", tabindex: "0", role: "log", "aria-live": "off", "aria-label": "Text" });
  const draw = () => {
    const isAtEnd = place.scrollTop + place.clientHeight >= place.scrollHeight - 8; // follow, unless someone reads above
    place.textContent = model.get("text");
    if (isAtEnd) place.scrollTop = place.scrollHeight;
    place.dataset.empty = String(!model.get("text"));
  };
  model.on("change:text", draw);
  draw();
  return place;
}

export default {
  render({ model, el }) {
    root(el, "live-decode");
    el.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && model.get("doing") === "generating") model.send({ do: "stop" });
    });
    const map = new ExpertMapView(model);
    const body = element("div", { class: "moelab-columns" },
      element("div", { class: "moelab-left" }, promptBar(model), liveText(model), map.element), liveFigures(model));
    const hide = () => (body.hidden = !model.get("num_layers"));
    model.on("change:num_layers", hide);
    hide();
    el.append(statusLine(model), body);
    return () => map.end();
  },
};

// curve_explorer.js: the curves, which policies are drawn, the table of one size, and the map that follows it.

export default {
  render({ model, el }) {
    root(el, "curve-explorer");
    const set = (name, value) => { model.set(name, value); model.save_changes(); };
    const nearest = (x) => model.get("sizes").reduce((a, b) => (Math.abs(b - x) < Math.abs(a - x) ? b : a));
    const chart = new ChartView(model, (x) => set("slots", nearest(x / model.get("chart").x.per_slot)));
    const map = new ExpertMapView(model);
    const of = element("select", { name: "of", "aria-label": "what is drawn", onchange: () => set("of", of.value) },
      element("option", { value: "misses" }, "misses"), element("option", { value: "reads" }, "reads"));
    const axis = element("select", { name: "axis", "aria-label": "sizes in", onchange: () => set("axis", axis.value) });
    const size = element("input", { type: "range", name: "slots", min: "0", step: "1", "aria-label": "slots per layer",
      oninput: () => { tell(); set("slots", model.get("sizes")[Number(size.value)]); } });
    const shown = element("output", {});
    const tell = () => (shown.textContent = `${model.get("sizes")[Number(size.value)] ?? ""} slots per layer`);
    const start = element("button", { onclick: () => model.send({ do: "start" }) }, "Simulate");
    const policies = element("fieldset", { class: "moelab-policies", "aria-label": "policies that are drawn" });
    const table = element("table", { class: "moelab-answers moelab-sizes" });
    const count = element("span", { class: "moelab-count" });
    const follow = () => {
      const sizes = model.get("sizes");
      size.max = Math.max(0, sizes.length - 1);
      size.value = String(Math.max(0, sizes.indexOf(model.get("slots"))));
      of.value = model.get("of");
      if (axis.dataset.all !== model.get("axes").join()) axis.replaceChildren(...model.get("axes").map((each) =>
        element("option", { value: each }, each === "slots" ? "slots of all layers" : each)));
      axis.dataset.all = model.get("axes").join();
      axis.value = model.get("axis");
      tell();
      const isThere = sizes.length > 0;
      body.hidden = !isThere;
      start.hidden = !(model.get("status") === "empty" && model.get("message").startsWith("Cancelled"));
      count.textContent = model.get("num_selected")
        ? `${model.get("num_selected")} experts chosen: their curve is drawn with the misses` : "Choose experts for a curve of their own.";
    };
    const list = () => {
      const hidden = model.get("hidden");
      policies.replaceChildren(...model.get("names").map((name) => element("label", {},
        element("input", { type: "checkbox", name, checked: !hidden.includes(name), onchange: (event) =>
          set("hidden", event.target.checked ? model.get("hidden").filter((each) => each !== name) : [...model.get("hidden"), name]) }),
        ` ${name}`)));
    };
    const fill = () => table.replaceChildren(
      element("tr", {}, ...["policy", "missed", "reads per layer-step", "uploads"].map((name) => element("th", { scope: "col" }, name))),
      ...model.get("rows").map((row) => element("tr", {},
        element("th", { scope: "row" }, row.policy + (row.is_oracle ? " (oracle)" : "")),
        element("td", {}, percent(row.miss_ratio)), element("td", {}, number(row.reads)), element("td", {}, number(row.uploads)))));
    const body = element("div", {},
      element("div", { class: "moelab-tools" }, element("label", {}, "draw", of), element("label", {}, "sizes in", axis), element("label", {}, "size", size, shown)), policies,
      element("div", { class: "moelab-curves" }, chart.element, table), map.element, count);
    model.on("change:sizes change:slots change:of change:axis change:axes change:status change:message change:num_selected", follow);
    model.on("change:names change:hidden", list);
    model.on("change:rows", fill);
    follow();
    list();
    fill();
    el.append(statusLine(model), start, body);
    return () => map.end();
  },
};

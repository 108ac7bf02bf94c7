// form.js: a form of `controls` that reads and writes `inputs`. Knows no names of its own.

class FormView {
  constructor(model) {
    this.model = model;
    this.fields = new Map();
    this.timer = null; // of what was typed and not yet sent
    this.element = element("form", { class: "moelab-form", onsubmit: (event) => event.preventDefault() });
    this.build();
    model.on("change:controls", () => this.build());
    model.on("change:inputs", () => this.fill());
  }

  build() {
    this.fields.clear();
    const rows = [];
    for (const control of this.model.get("controls")) {
      if (control.group) rows.push(element("b", { class: "moelab-form-group" }, control.group));
      const field = this.field(control);
      const shown = control.kind === "range" ? element("output", {}) : null;
      const row = element("label", {}, element("span", {}, control.label), field,
        element("i", {}, shown, `${shown ? " " : ""}${control.unit || ""}`));
      this.fields.set(control.name, { control, field, row, shown });
      rows.push(row);
    }
    this.element.replaceChildren(...rows);
    this.fill();
  }

  field(control) {
    const named = { name: control.name, "aria-label": control.group ? `${control.group}: ${control.label}` : control.label };
    const later = () => { clearTimeout(this.timer); this.timer = setTimeout(() => this.write(), 120); };
    const now = () => this.write();
    if (control.kind === "select")
      return element("select", { ...named, onchange: now },
        ...control.options.map((option) => element("option", { value: option }, option)));
    if (control.kind === "text") return element("input", { ...named, type: "text", oninput: later, onchange: now });
    return element("input", {
      ...named, type: control.kind, min: control.low, max: control.high, step: control.kind === "range" ? control.step : "any",
      placeholder: control.hint || "", oninput: later, onchange: now,
    });
  }

  fill() {
    if (this.timer) return; // what stands in the form is newer
    const inputs = this.model.get("inputs");
    for (const [name, { control, field, row, shown }] of this.fields) {
      const value = inputs[name];
      // Six digits are shown; as long as nobody edits them, the exact number stands behind them.
      const text = value === null || value === undefined ? "" : control.kind === "number" ? String(Number(value.toPrecision(6))) : String(value);
      Object.assign(field, { exact: value, shown: text });
      if (field !== document.activeElement || this.value(control, field) !== value) field.value = text;
      if (shown) shown.textContent = isNumber(value) ? number(value) : "";
      row.hidden = Boolean(control.only) && Object.entries(control.only).some(([key, wanted]) => inputs[key] !== wanted);
    }
  }

  value(control, field) {
    if (control.kind === "select" || control.kind === "text") return field.value;
    if (field.value === field.shown) return field.exact;
    return field.value === "" ? null : Number(field.value);
  }

  write() {
    clearTimeout(this.timer);
    this.timer = null;
    const inputs = { ...this.model.get("inputs") };
    for (const [name, { control, field }] of this.fields) inputs[name] = this.value(control, field);
    this.model.set("inputs", inputs);
    this.model.save_changes();
    this.fill();
  }
}

// calculator.js: a form on the left, the answer on the right.

export default {
  render({ model, el }) {
    root(el, "calculator");
    const form = new FormView(model), chart = new ChartView(model);
    const headline = element("div", { class: "moelab-headline", "aria-live": "polite" });
    const table = element("table", { class: "moelab-answers" });
    const call = element("code", { class: "moelab-call" });
    const follow = () => {
      headline.textContent = model.get("headline");
      call.textContent = model.get("call");
      call.hidden = !model.get("call");
      table.replaceChildren(...model.get("figures").map(([name, text]) =>
        element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, text))));
      el.dataset.status = model.get("status");
    };
    model.on("change:headline change:call change:figures change:status", follow);
    follow();
    el.append(element("div", { class: "moelab-form-columns" }, form.element,
      element("div", { class: "moelab-answer" }, statusLine(model), headline, chart.element, table, call)));
  },
};

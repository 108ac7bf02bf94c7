// trace_browser.js: requests on the left, the text of one in its colours, the routes of one token on the right.
// Keys: in the list up and down; in the text left and right (with Ctrl ten), Escape leaves the token.

const GREY = [160, 160, 160];

const inkOn = ([r, g, b]) => (0.299 * r + 0.587 * g + 0.114 * b > 140 ? "#000" : "#fff");

export default {
  render({ model, el }) {
    root(el, "trace-browser");
    const set = (name, value) => { model.set(name, value); model.save_changes(); };
    const list = element("select", { class: "moelab-requests", size: "14", "aria-label": "request",
      onchange: () => set("request", Number(list.value)) });
    const by = element("select", { name: "by", "aria-label": "coloured by", onchange: () => set("by", by.value) });
    const slider = (name, label) => {
      const input = element("input", { type: "range", name, min: "0", step: "1", "aria-label": label,
        oninput: () => { tell(); set(name, Number(input.value)); } });
      const shown = element("output", {});
      const tell = () => (shown.textContent = name === "layer" ? model.get("layer_names")[Number(input.value)] : input.value);
      return { input, tell, row: element("label", {}, label, input, shown) };
    };
    const layer = slider("layer", "layer"), slot = slider("slot", "slot"), expert = slider("expert", "expert");
    const key = element("div", { class: "moelab-key" });
    const text = element("div", { class: "moelab-text", tabindex: "0", role: "application",
      "aria-label": "Text of the request. Left and right choose a token, Escape leaves it." });
    const routes = element("div", { class: "moelab-routes", "aria-live": "polite" });
    let spans = [];

    const colours = () => {
      const scale = model.get("scale");
      if (scale.kind === "categories") {
        const of = scale.names.map((_, n) => rgbOf(category(n)));
        return (value) => of[value] || GREY;
      }
      const span = scale.high - scale.low || 1;
      return (value) => (Number.isNaN(value) ? GREY : viridis((value - scale.low) / span));
    };
    const fill = () => {
      list.replaceChildren(...model.get("requests").map((one) =>
        element("option", { value: String(one.request) }, `${one.request}: ${one.domain}, ${one.tokens} tokens`)));
      by.replaceChildren(...model.get("ways").map((way) => element("option", { value: way }, way)));
      layer.input.max = Math.max(0, model.get("layer_names").length - 1);
      slot.input.max = Math.max(0, model.get("top_k") - 1);
      expert.input.max = Math.max(0, model.get("num_experts") - 1);
    };
    const follow = () => {
      list.value = String(model.get("request"));
      by.value = model.get("by");
      for (const [one, name] of [[layer, "layer"], [slot, "slot"], [expert, "expert"]]) {
        one.input.value = String(model.get(name));
        one.tell();
      }
      slot.row.hidden = !["expert", "gate weight"].includes(model.get("by"));
      expert.row.hidden = model.get("by") !== "one expert";
      layer.row.hidden = model.get("by") === "step";
    };
    const write = () => {
      const pieces = model.get("pieces"), prompt = model.get("num_prompt");
      spans = pieces.map((piece, n) => element("span", { "data-token": String(n), class: n < prompt ? "moelab-prompt" : "" }, piece));
      text.replaceChildren(...spans);
      colour();
      choose();
    };
    const other = () => (model.get("by") === "expert" ? "another" : "not used");
    const colour = () => {
      const data = model.get("token_data"), scale = model.get("scale");
      if (!scale.kind || !data || data.byteLength !== 4 * spans.length) return;
      const values = new Float32Array(data.buffer.slice(data.byteOffset, data.byteOffset + data.byteLength));
      const of = colours();
      spans.forEach((span, n) => {
        const rgb = of(values[n]);
        span.style.background = `rgb(${rgb.join(",")})`;
        span.style.color = inkOn(rgb);
        const said = scale.kind === "categories" ? scale.names[values[n]] ?? other() : Number.isNaN(values[n]) ? "none" : number(values[n]);
        span.title = `token ${n}: ${said}`;
      });
      key.replaceChildren(element("b", {}, scale.label), ...(scale.kind === "categories"
        ? [...scale.names.map((name, n) => element("span", {}, element("i", { style: `background:${category(n)}` }), name)),
          element("span", {}, element("i", { style: `background:rgb(${GREY})` }), other())]
        : [element("span", {}, number(scale.low)),
          element("i", { class: "moelab-ramp", style: `background:linear-gradient(90deg,${VIRIDIS.join(",")})` }),
          element("span", {}, number(scale.high))]),
        model.get("num_prompt") ? element("span", {}, element("u", {}, "prompt")) : "");
    };
    const choose = () => {
      const token = model.get("token");
      text.querySelector(".moelab-chosen")?.classList.remove("moelab-chosen");
      if (spans[token]) {
        spans[token].classList.add("moelab-chosen");
        spans[token].scrollIntoView({ block: "nearest" });
      }
      route();
    };
    const route = () => {
      const { token, layers, experts, weights } = model.get("routes");
      if (model.get("token") >= 0 && token !== model.get("token")) return; // they are on their way
      if (!layers) {
        routes.replaceChildren(element("p", {}, "Click a token: its routes stand here. Click one of its experts: who else uses it."));
        return;
      }
      const cell = (n, k) => element("button", {
        title: `colour by expert ${experts[n][k]} of layer ${layers[n]}`, "data-layer": String(n), "data-expert": String(experts[n][k]),
        onclick: () => { model.set("layer", n); model.set("expert", experts[n][k]); set("by", "one expert"); },
      }, `${experts[n][k]}`, element("small", {}, ` ${number(weights[n][k], 2)}`));
      routes.replaceChildren(
        element("b", {}, `token ${token}: ${JSON.stringify(model.get("pieces")[token] ?? "")}`),
        element("table", {}, ...layers.map((name, n) => element("tr", {}, element("th", { scope: "row" }, `layer ${name}`),
          ...experts[n].map((_, k) => element("td", {}, cell(n, k)))))));
    };

    text.addEventListener("click", (event) => {
      const token = event.target.closest?.("[data-token]");
      if (token) set("token", Number(token.dataset.token));
    });
    text.addEventListener("keydown", (event) => {
      const at = model.get("token"), far = event.ctrlKey || event.metaKey ? 10 : 1, last = spans.length - 1;
      const moves = { ArrowLeft: Math.max(0, at - far), ArrowRight: Math.min(last, at + far), Home: 0, End: last, Escape: -1 };
      if (!(event.key in moves)) return;
      event.preventDefault();
      event.stopPropagation();
      set("token", moves[event.key]);
    });
    model.on("change:requests change:layer_names change:num_experts change:top_k", () => { fill(); follow(); });
    model.on("change:request change:by change:layer change:slot change:expert", follow);
    model.on("change:pieces", write);
    model.on("change:token_data change:scale", colour);
    model.on("change:token", choose);
    model.on("change:routes", route);
    const endTheme = onTheme(colour);
    fill();
    follow();
    write();
    const body = element("div", { class: "moelab-browser" }, list,
      element("div", {}, element("div", { class: "moelab-tools" }, element("label", {}, "coloured by", by), layer.row, slot.row, expert.row),
        key, text), routes);
    const show = () => (body.hidden = model.get("requests").length === 0);
    model.on("change:requests", show);
    show();
    el.append(statusLine(model), body);
    return endTheme;
  },
};

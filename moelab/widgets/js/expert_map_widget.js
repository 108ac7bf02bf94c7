// expert_map_widget.js: the map alone.

export default {
  render({ model, el }) {
    root(el, "expert-map");
    const map = new ExpertMapView(model);
    const count = element("span", { class: "moelab-count" });
    const tell = () => (count.textContent = `${model.get("num_selected")} chosen`);
    model.on("change:num_selected", tell);
    tell();
    el.append(statusLine(model), map.element, count);
    return () => map.end();
  },
};

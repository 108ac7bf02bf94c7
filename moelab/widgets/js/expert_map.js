// expert_map.js: the map under hands: cursor, choice, zoom. Writes `selection`; how it is drawn is MapPicture's
// (map_picture.js), what the values mean nobody here knows.
// Keys: arrows move the cursor, with Shift a box grows; Space chooses, Escape clears, + - 0 zoom. Ctrl + wheel zooms.

const LEAST_CELLS = 8; // of a layer, at the highest zoom

class ExpertMapView extends MapPicture {
  constructor(model, onCursor = () => {}) {
    super(model);
    this.onCursor = onCursor;
    this.readout = element("div", { class: "moelab-readout", "aria-live": "polite" });
    const zoom = (text, title, factor) =>
      element("button", { title, "aria-label": title, onclick: () => this.zoom(factor) }, text);
    const tools = element("span", { class: "moelab-zoom" },
      zoom("+", "Zoom in (+)", 0.5), zoom("\u2212", "Zoom out (-)", 2), zoom("fit", "Whole map (0)", Infinity));
    this.element = element("div", { class: "moelab-map" },
      element("div", { class: "moelab-map-head" }, this.key, tools), this.canvas, this.readout);
    this.load();
    this.tell();
    const later = () => this.later();
    model.on("change:map_data change:scale", () => { this.load(); this.tell(); this.later(); });
    model.on("change:selection", () => { this.paint(); this.later(); });
    this.endTheme = onTheme(() => { this.paint(); this.later(); });
    this.size = new ResizeObserver(later);
    this.size.observe(this.canvas);
    for (const name of ["pointerdown", "pointermove", "pointerup", "pointerleave", "keydown", "focus", "blur"])
      this.canvas.addEventListener(name, (event) => this[name](event));
    this.canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
  }

  end() {
    this.endTheme();
    this.size.disconnect();
  }

  // -- cursor and choice -------------------------------------------------------------------------------------

  tell() {
    const { row, column } = this.cursor, at = row * this.columns + column;
    if (!this.rows || row >= this.rows || column >= this.columns) return;
    const scale = this.model.get("scale"), value = this.values[at], mark = this.marks[at];
    const shown = scale.kind === "categories" ? scale.names[value] ?? "unknown" : Number.isNaN(value) ? "unknown" : number(value, 4);
    const layer = this.model.get("layer_names")[row];
    const marks = (mark & PINNED ? ", pinned" : "") + (mark & EDITED ? ", edited" : "");
    this.readout.textContent = `layer ${layer}, expert ${this.experts[at]}: ${scale.label} ${shown}${marks}`;
    this.onCursor(row, this.experts[at]);
  }

  moveTo(row, column) {
    this.cursor = {
      row: Math.min(this.rows - 1, Math.max(0, row)), column: Math.min(this.columns - 1, Math.max(0, column)),
    };
    this.tell();
    this.later();
  }

  box() {
    const { anchor, cursor } = this;
    return {
      top: Math.min(anchor.row, cursor.row), bottom: Math.max(anchor.row, cursor.row),
      left: Math.min(anchor.column, cursor.column), right: Math.max(anchor.column, cursor.column),
    };
  }

  // Cells of the box become the choice, or join it; one cell that is chosen already leaves it.
  choose(box, joins) {
    const next = joins ? this.chosen().slice() : new Uint8Array(this.rows * this.columns);
    const before = this.chosen(), isOne = box.top === box.bottom && box.left === box.right;
    for (let row = box.top; row <= box.bottom; row++)
      for (let column = box.left; column <= box.right; column++) {
        const key = row * this.columns + this.experts[row * this.columns + column];
        next[key] = isOne && before[key] ? 0 : 1;
      }
    this.write(next);
  }

  write(next) {
    this.model.set("selection", new DataView(next.buffer));
    this.model.save_changes();
    this.paint();
    this.later();
  }

  // -- zoom --------------------------------------------------------------------------------------------------

  // `factor` below 1 goes in; around the cursor's cell, which stays where it is.
  zoom(factor, at = this.cursor) {
    const { view } = this;
    if (!this.rows) return;
    const w = Math.min(this.columns, Math.max(LEAST_CELLS, view.w * factor));
    const h = Math.min(this.rows, Math.max(Math.min(LEAST_CELLS, this.rows), view.h * factor));
    const x = at.column - ((at.column - view.x) * w) / view.w, y = at.row - ((at.row - view.y) * h) / view.h;
    this.show({ x, y, w, h });
  }

  show({ x, y, w, h }) {
    this.view = {
      w, h, x: Math.min(this.columns - w, Math.max(0, x)), y: Math.min(this.rows - h, Math.max(0, y)),
    };
    this.later();
  }

  follow() {
    const { view, cursor } = this, { row, column } = cursor;
    const x = column < view.x ? column : column + 1 > view.x + view.w ? column + 1 - view.w : view.x;
    const y = row < view.y ? row : row + 1 > view.y + view.h ? row + 1 - view.h : view.y;
    this.show({ ...view, x, y });
  }

  // -- events ------------------------------------------------------------------------------------------------

  cellAt(event) {
    const bounds = this.canvas.getBoundingClientRect(), area = this.area(), { view } = this;
    return {
      column: Math.floor(view.x + ((event.clientX - bounds.left - area.x) / area.w) * view.w),
      row: Math.floor(view.y + ((event.clientY - bounds.top - area.y) / area.h) * view.h),
    };
  }

  pointerdown(event) {
    if (event.button || !this.rows) return;
    this.canvas.focus({ preventScroll: true });
    this.canvas.setPointerCapture(event.pointerId);
    const cell = this.cellAt(event);
    this.moveTo(cell.row, cell.column);
    this.anchor = { ...this.cursor };
  }

  pointermove(event) {
    if (!this.rows) return;
    this.isOver = true;
    const cell = this.cellAt(event);
    this.moveTo(cell.row, cell.column);
  }

  pointerup(event) {
    if (!this.anchor) return;
    const box = this.box();
    this.anchor = null;
    this.choose(box, event.shiftKey || event.ctrlKey || event.metaKey);
  }

  pointerleave() {
    this.isOver = false;
    this.later();
  }

  focus() { this.later(); }
  blur() { this.anchor = null; this.later(); }

  wheel(event) {
    if (!this.rows || !(event.ctrlKey || event.metaKey)) return; // the page scrolls
    event.preventDefault();
    this.zoom(event.deltaY > 0 ? 1.25 : 0.8, this.cellAt(event));
  }

  keydown(event) {
    if (!this.rows) return;
    const { row, column } = this.cursor, far = event.ctrlKey || event.metaKey ? 10 : 1;
    const moves = {
      ArrowUp: [row - far, column], ArrowDown: [row + far, column], ArrowLeft: [row, column - far],
      ArrowRight: [row, column + far], Home: [row, 0], End: [row, this.columns - 1],
      PageUp: [row - 10, column], PageDown: [row + 10, column],
    };
    if (moves[event.key]) {
      this.anchor = event.shiftKey ? this.anchor || { ...this.cursor } : null;
      this.moveTo(...moves[event.key]);
      this.follow();
    } else if (event.key === " " || event.key === "Enter") {
      this.choose(this.anchor ? this.box() : { top: row, bottom: row, left: column, right: column }, true);
      this.anchor = null;
    } else if (event.key === "Escape") {
      this.anchor = null;
      this.write(new Uint8Array(this.rows * this.columns));
    } else if (event.key === "+" || event.key === "=") this.zoom(0.5);
    else if (event.key === "-") this.zoom(2);
    else if (event.key === "0") this.zoom(Infinity);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }
}

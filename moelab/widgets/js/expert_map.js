// expert_map.js: the canvas layer x expert. Draws `map_data`, writes `selection`; what the values mean it does not know.
// Keys: arrows move the cursor, with Shift a box grows; Space chooses, Escape clears, + - 0 zoom. Ctrl + wheel zooms.

const MARGIN = { left: 46, top: 4, right: 4, bottom: 30 };
const LEAST_CELLS = 8; // of a layer, at the highest zoom
const UNKNOWN = [160, 160, 160];
const PINNED = 1, EDITED = 2;

class ExpertMapView {
  constructor(model, onCursor = () => {}) {
    this.model = model;
    this.onCursor = onCursor;
    this.canvas = element("canvas", {
      tabindex: "0", role: "application", class: "moelab-canvas",
      "aria-label": "Map of experts, layers down. Arrows move, Space chooses, Shift and arrows draw a box, plus and minus zoom.",
    });
    this.key = element("div", { class: "moelab-key" });
    this.readout = element("div", { class: "moelab-readout", "aria-live": "polite" });
    const zoom = (text, title, factor) =>
      element("button", { title, "aria-label": title, onclick: () => this.zoom(factor) }, text);
    const tools = element("span", { class: "moelab-zoom" },
      zoom("+", "Zoom in (+)", 0.5), zoom("\u2212", "Zoom out (-)", 2), zoom("fit", "Whole map (0)", Infinity));
    this.element = element("div", { class: "moelab-map" },
      element("div", { class: "moelab-map-head" }, this.key, tools), this.canvas, this.readout);
    this.cursor = { row: 0, column: 0 };
    this.anchor = null; // of a box that grows by keys or mouse
    this.picture = document.createElement("canvas");
    this.load();
    const later = () => this.later();
    model.on("change:map_data change:scale", () => { this.load(); this.later(); });
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

  // -- data ------------------------------------------------------------------------------------------------

  load() {
    const { model } = this;
    const rows = (this.rows = model.get("num_layers")), columns = (this.columns = model.get("num_experts"));
    const data = model.get("map_data"), cells = rows * columns;
    if (!cells || data.byteLength !== 7 * cells) { this.rows = this.columns = 0; return; }
    const bytes = data.buffer.slice(data.byteOffset, data.byteOffset + data.byteLength); // aligned
    this.values = new Float32Array(bytes, 0, cells);
    this.experts = new Uint16Array(bytes, 4 * cells, cells);
    this.marks = new Uint8Array(bytes, 6 * cells, cells);
    if (!this.view || this.shape !== `${rows} ${columns}`) this.view = { x: 0, y: 0, w: columns, h: rows };
    this.shape = `${rows} ${columns}`;
    this.drawKey();
    this.paint();
    this.tell();
  }

  chosen() {
    const data = this.model.get("selection"), cells = this.rows * this.columns;
    if (!data || data.byteLength !== cells) return new Uint8Array(cells);
    return new Uint8Array(data.buffer, data.byteOffset, cells);
  }

  colours() {
    const scale = this.model.get("scale");
    if (scale.kind === "categories") {
      const of = scale.names.map((_, n) => rgbOf(category(n)));
      return (value) => of[value] || UNKNOWN;
    }
    const span = scale.high - scale.low || 1;
    const table = Array.from({ length: 1025 }, (_, n) => viridis(n / 1024));
    return (value) => Number.isNaN(value) ? UNKNOWN
      : table[Math.round(1024 * Math.min(1, Math.max(0, (value - scale.low) / span)))];
  }

  // One pixel for each cell; what is not chosen pales while something is.
  paint() {
    if (!this.rows) return;
    const { rows, columns, values, experts } = this;
    this.picture.width = columns;
    this.picture.height = rows;
    const context = this.picture.getContext("2d");
    const image = context.createImageData(columns, rows);
    const colour = this.colours(), chosen = this.chosen();
    const anyChosen = chosen.includes(1);
    const ground = isDark() ? 17 : 255;
    for (let at = 0; at < values.length; at++) {
      const row = (at / columns) | 0;
      const rgb = colour(values[at]);
      const pale = anyChosen && !chosen[row * columns + experts[at]] ? 0.3 : 1;
      for (let n = 0; n < 3; n++) image.data[4 * at + n] = rgb[n] * pale + ground * (1 - pale);
      image.data[4 * at + 3] = 255;
    }
    context.putImageData(image, 0, 0);
  }

  // -- drawing ---------------------------------------------------------------------------------------------

  later() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => { this.waiting = false; this.draw(); });
  }

  draw() {
    const begin = performance.now();
    const { canvas } = this, ratio = window.devicePixelRatio || 1;
    const width = canvas.clientWidth, height = canvas.clientHeight;
    if (!width || !this.rows) return;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    const area = this.area(), { view } = this;
    context.imageSmoothingEnabled = false;
    context.drawImage(this.picture, view.x, view.y, view.w, view.h, area.x, area.y, area.w, area.h);
    this.drawMarks(context, area);
    this.drawAxes(context, area);
    this.drawCursor(context, area);
    canvas.dataset.frameMs = (performance.now() - begin).toFixed(2);
    canvas.dataset.frames = Number(canvas.dataset.frames || 0) + 1;
  }

  area() {
    return {
      x: MARGIN.left, y: MARGIN.top,
      w: this.canvas.clientWidth - MARGIN.left - MARGIN.right, h: this.canvas.clientHeight - MARGIN.top - MARGIN.bottom,
    };
  }

  drawMarks(context, area) {
    const { view, columns } = this, cell = { w: area.w / view.w, h: area.h / view.h };
    const radius = Math.min(5, Math.max(1.5, Math.min(cell.w, cell.h) / 3));
    context.lineWidth = 1;
    for (let row = Math.floor(view.y); row < view.y + view.h; row++)
      for (let column = Math.floor(view.x); column < view.x + view.w; column++) {
        const mark = this.marks[row * columns + column];
        if (!mark) continue;
        context.beginPath();
        context.arc(area.x + (column - view.x + 0.5) * cell.w, area.y + (row - view.y + 0.5) * cell.h, radius, 0, 7);
        context.strokeStyle = "#000000";
        context.fillStyle = mark & PINNED ? "#ffffff" : "#CC79A7";
        context.fill();
        context.stroke();
      }
  }

  drawAxes(context, area) {
    const { view } = this, names = this.model.get("layer_names");
    const style = getComputedStyle(this.canvas);
    context.fillStyle = style.color;
    context.font = `11px ${style.fontFamily}`;
    const step = (span, room) => [1, 2, 5, 10, 20, 50, 100, 200, 500].find((each) => span / each <= room) || 1000;
    const down = step(view.h, area.h / 16), across = step(view.w, area.w / 46);
    context.textAlign = "right";
    context.textBaseline = "middle";
    for (let row = Math.ceil(view.y / down) * down; row < view.y + view.h; row += down)
      context.fillText(names[row], area.x - 5, area.y + ((row + 0.5 - view.y) / view.h) * area.h);
    context.textAlign = "center";
    context.textBaseline = "top";
    for (let column = Math.ceil(view.x / across) * across; column < view.x + view.w; column += across)
      context.fillText(String(column), area.x + ((column + 0.5 - view.x) / view.w) * area.w, area.y + area.h + 3);
    context.fillText(this.model.get("map_order") === "load" ? "expert, most loaded first in each layer" : "expert",
      area.x + area.w / 2, area.y + area.h + 16);
    context.save();
    context.translate(7, area.y + area.h / 2);
    context.rotate(-Math.PI / 2);
    context.fillText("layer", 0, -4);
    context.restore();
  }

  drawCursor(context, area) {
    const { view, cursor } = this, cell = { w: area.w / view.w, h: area.h / view.h };
    const outline = (top, left, rows, columns, colour) => {
      context.strokeStyle = colour;
      context.strokeRect(area.x + (left - view.x) * cell.w, area.y + (top - view.y) * cell.h, columns * cell.w, rows * cell.h);
    };
    context.save();
    context.beginPath();
    context.rect(area.x - 1, area.y - 1, area.w + 2, area.h + 2);
    context.clip();
    context.lineWidth = 2;
    const box = this.anchor ? this.box() : null;
    if (box) outline(box.top, box.left, box.bottom - box.top + 1, box.right - box.left + 1, isDark() ? "#ffffff" : "#000000");
    if (document.activeElement === this.canvas || this.isOver) {
      outline(cursor.row, cursor.column, 1, 1, "#ffffff");
      context.lineWidth = 1;
      outline(cursor.row, cursor.column, 1, 1, "#000000");
    }
    context.restore();
  }

  drawKey() {
    const scale = this.model.get("scale");
    this.key.replaceChildren(element("b", {}, scale.label));
    if (scale.kind === "categories")
      scale.names.forEach((name, n) =>
        this.key.append(element("span", {}, element("i", { style: `background:${category(n)}` }), name)));
    else
      this.key.append(element("span", {}, number(scale.low)),
        element("i", { class: "moelab-ramp", style: `background:linear-gradient(90deg,${VIRIDIS.join(",")})` }),
        element("span", {}, number(scale.high)));
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

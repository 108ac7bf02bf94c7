// map_picture.js: the canvas layer x expert: draws `map_data`, what is chosen, axes and key. It is looked at, not touched:
// ExpertMapView (expert_map.js) moves `view`, `cursor` and `anchor`.

const MARGIN = { left: 46, top: 4, right: 4, bottom: 30 };
const OUTLINED = 6; // pixels of a cell from which on the chosen have an outline
const UNKNOWN = [160, 160, 160];
const PINNED = 1, EDITED = 2;

class MapPicture {
  constructor(model) {
    this.model = model;
    this.canvas = element("canvas", {
      tabindex: "0", role: "application", class: "moelab-canvas",
      "aria-label": "Map of experts, layers down. Arrows move, Space chooses, Shift and arrows draw a box, plus and minus zoom.",
    });
    this.key = element("div", { class: "moelab-key" });
    this.cursor = { row: 0, column: 0 };
    this.anchor = null; // of a box that grows by keys or mouse
    this.picture = document.createElement("canvas");
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
    this.drawChosen(context, area);
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

  // Paleness alone is hard to see on dark colours: where cells are large enough the chosen have an outline.
  drawChosen(context, area) {
    const { view, columns, rows } = this, cell = { w: area.w / view.w, h: area.h / view.h };
    if (Math.min(cell.w, cell.h) < OUTLINED) return;
    const chosen = this.chosen();
    for (let row = Math.floor(view.y); row < Math.min(rows, view.y + view.h); row++)
      for (let column = Math.floor(view.x); column < Math.min(columns, view.x + view.w); column++) {
        if (!chosen[row * columns + this.experts[row * columns + column]]) continue;
        const x = area.x + (column - view.x) * cell.w, y = area.y + (row - view.y) * cell.h;
        for (const [inset, colour] of [[0.5, "#000000"], [1.5, "#ffffff"]]) {
          context.strokeStyle = colour;
          context.lineWidth = 1;
          context.strokeRect(x + inset, y + inset, cell.w - 2 * inset, cell.h - 2 * inset);
        }
      }
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
      scale.names.forEach((name, n) => name && // what does not occur has no name
        this.key.append(element("span", {}, element("i", { style: `background:${category(n)}` }), name)));
    else
      this.key.append(element("span", {}, number(scale.low)),
        element("i", { class: "moelab-ramp", style: `background:linear-gradient(90deg,${VIRIDIS.join(",")})` }),
        element("span", {}, number(scale.high)));
  }
}

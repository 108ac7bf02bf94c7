// chart.js: shows `picture` (SVG made in Python) and reads `chart` under a cursor. Left and right move it; Enter and a
// click choose its place. Nothing is computed but where the cursor stands.

const PLOT = { width: 720, height: 360, left: 64, top: 14, right: 14, bottom: 44 }; // as chart_svg.py

class ChartView {
  constructor(model, onChoose = null) {
    this.model = model;
    this.onChoose = onChoose;
    this.at = -1; // index among the places of all series
    this.picture = element("div", {
      class: "moelab-chart", tabindex: "0", role: "application",
      "aria-label": onChoose ? "Chart. Left and right read it, Enter chooses." : "Chart. Left and right read it.",
    });
    this.readout = element("div", { class: "moelab-chart-readout", "aria-live": "polite" });
    this.element = element("figure", { class: "moelab-figure" },
      (this.title = element("figcaption", {})), this.picture, this.readout);
    model.on("change:picture", () => this.draw());
    this.picture.addEventListener("pointermove", (event) => this.point(event));
    this.picture.addEventListener("click", (event) => { this.point(event); this.choose(); });
    this.picture.addEventListener("keydown", (event) => this.key(event));
    this.draw();
  }

  draw() {
    const chart = this.model.get("chart");
    this.element.hidden = !chart.series;
    if (!chart.series) return;
    this.title.textContent = chart.title;
    this.picture.innerHTML = this.model.get("picture");
    this.svg = this.picture.querySelector("svg");
    this.line = document.createElementNS("http://www.w3.org/2000/svg", "line");
    for (const [name, value] of [["y1", PLOT.top], ["y2", PLOT.height - PLOT.bottom], ["stroke", "currentColor"], ["opacity", "0.6"]])
      this.line.setAttribute(name, value);
    this.line.style.display = "none";
    this.svg.append(this.line);
    this.places = [...new Set(chart.series.flatMap((one) => one.x))].filter((x) => x >= chart.x.low && x <= chart.x.high)
      .sort((a, b) => a - b);
    this.readout.textContent = "";
    if (this.at >= this.places.length) this.at = -1;
    if (this.at >= 0) this.read(this.at);
  }

  across(x) {
    const { low, high, log } = this.model.get("chart").x;
    const share = log ? Math.log(x / low) / Math.log(high / low) : (x - low) / (high - low);
    return PLOT.left + share * (PLOT.width - PLOT.left - PLOT.right);
  }

  point(event) {
    const box = this.svg.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * PLOT.width;
    let best = -1;
    this.places.forEach((x, n) => {
      if (best < 0 || Math.abs(this.across(x) - at) < Math.abs(this.across(this.places[best]) - at)) best = n;
    });
    if (best >= 0) this.read(best);
  }

  read(at) {
    this.at = at;
    const chart = this.model.get("chart"), x = this.places[at], place = this.across(x);
    this.line.setAttribute("x1", place);
    this.line.setAttribute("x2", place);
    this.line.style.display = "";
    const show = (y) => (chart.y.percent ? percent(y) : number(y));
    const text = chart.series.flatMap((one, n) => {
      const y = one.y[one.x.indexOf(x)], under = chart.series[n - 1];
      if (!one.name || !one.shown || !isNumber(y)) return [];
      const low = one.fill === "before" && under ? under.y[under.x.indexOf(x)] : undefined; // a band has two ends
      return [`${one.name}: ${isNumber(low) ? `${show(low)} to ` : ""}${show(y)}`];
    });
    this.readout.textContent = `${chart.x.label} ${number(x)} \u2014 ${text.join("; ")}`;
  }

  choose() {
    if (this.onChoose && this.at >= 0) this.onChoose(this.places[this.at]);
  }

  key(event) {
    const last = this.places.length - 1;
    const moves = { ArrowLeft: Math.max(0, this.at - 1), ArrowRight: Math.min(last, this.at + 1), Home: 0, End: last };
    if (event.key in moves) this.read(moves[event.key]);
    else if (event.key === "Enter" || event.key === " ") this.choose();
    else return;
    event.preventDefault();
    event.stopPropagation();
  }
}

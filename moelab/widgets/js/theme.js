// theme.js: what every widget shares: elements, colours of the theme, numbers, the line that says what goes on.
// PALETTE, ON_DARK and VIRIDIS stand before it (module.py). Knows no widget.

const isDark = () => document.body.dataset.jpThemeLight === "false";

// Calls `changed` when JupyterLab changes its theme; returns what ends that.
function onTheme(changed) {
  const observer = new MutationObserver(changed);
  observer.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light", "data-jp-theme-name"] });
  return () => observer.disconnect();
}

const rgbOf = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));

const category = (n) => {
  const colour = PALETTE[n % PALETTE.length];
  return colour === "#000000" && isDark() ? ON_DARK : colour;
};

const VIRIDIS_RGB = VIRIDIS.map(rgbOf);

// [red, green, blue] of a share from 0 to 1; the twin of moelab.palette.viridis.
function viridis(share) {
  const place = Math.min(1, Math.max(0, share)) * (VIRIDIS_RGB.length - 1);
  const low = Math.min(Math.floor(place), VIRIDIS_RGB.length - 2);
  const part = place - low;
  return [0, 1, 2].map((n) => Math.floor(VIRIDIS_RGB[low][n] * (1 - part) + VIRIDIS_RGB[low + 1][n] * part + 0.5));
}

// element("div", { class: "x", onclick: f }, child, "text"): attributes, but functions and `value` as properties.
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function" || ["value", "checked", "disabled", "textContent"].includes(name)) made[name] = value;
    else if (value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

// Three significant digits, thousands apart: 12.3, 0.00123, 1,230.
const number = (value, digits = 3) =>
  isNumber(value) ? value.toLocaleString("en-US", { maximumSignificantDigits: Math.max(digits, Math.ceil(Math.log10(Math.abs(value) + 1))) }) : "none";

// A value with its interval: enough digits to tell its ends apart. "25.99 (25.98 to 26.01)".
function withInterval(value, interval) {
  if (!isNumber(value) || !interval) return number(value);
  const width = Math.abs(interval[1] - interval[0]) || Math.abs(value);
  const digits = Math.min(7, Math.max(3, Math.ceil(Math.log10(Math.abs(value) / width || 1)) + 1));
  const show = (each) => each.toLocaleString("en-US", { minimumSignificantDigits: digits, maximumSignificantDigits: digits });
  return `${show(value)} (${show(interval[0])} to ${show(interval[1])})`;
}

const percent = (value) => (isNumber(value) ? `${(100 * value).toFixed(1)}%` : "none");

// A share with its interval: "12.3% (11.9 to 12.8)".
const percentWithInterval = (value, interval) =>
  percent(value) + (isNumber(value) && interval ? ` (${interval.map((end) => (100 * end).toFixed(1)).join(" to ")})` : "");

// GB = 1e9 bytes; MB and kB where that would be a row of zeros.
function gigabytes(bytes) {
  if (!isNumber(bytes)) return "none";
  if (!bytes || Math.abs(bytes) >= 1e8) return `${number(bytes / 1e9)} GB`;
  return Math.abs(bytes) >= 1e5 ? `${number(bytes / 1e6)} MB` : `${number(bytes / 1e3)} kB`;
}

// The root of a widget. Its keys are its own: JupyterLab would cut the cell on "x", and take the arrows of a slider.
function root(el, name) {
  el.addEventListener("keydown", (event) => event.stopPropagation());
  el.classList.add("moelab", `moelab-${name}`);
  el.setAttribute("data-lm-suppress-shortcuts", "true");
  return el;
}

// What goes on: empty, busy (with progress and a button that cancels), error. Follows the traits of widget.py.
function statusLine(model) {
  const text = element("span", { class: "moelab-message", role: "status", "aria-live": "polite" });
  const bar = element("progress", { max: "1", "aria-label": "progress" });
  const cancel = element("button", { class: "moelab-cancel", onclick: () => model.send({ do: "cancel" }) }, "Cancel");
  const line = element("div", { class: "moelab-status" }, text, bar, cancel);
  const follow = () => {
    const status = model.get("status"), progress = model.get("progress");
    line.dataset.status = status;
    text.textContent = model.get("message");
    bar.hidden = status !== "busy";
    if (progress >= 0) bar.value = progress;
    else bar.removeAttribute("value");
    cancel.hidden = !(status === "busy" && model.get("can_cancel"));
    line.hidden = status === "ready" && !model.get("message");
  };
  model.on("change:status change:message change:progress change:can_cancel", follow);
  follow();
  return line;
}

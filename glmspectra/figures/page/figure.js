// A figure: a title, a drawing made anew for each width and language, a caption, and a button that saves it as SVG.
const figures = [];
const SYMBOLS = ["circle", "square", "triangle", "diamond", "cross", "star", "wye"];
const DASHES = ["none", "6 2", "5 2 1 2", "1.5 1.5", "9 2"];
const look = (index) => ({
  color: `var(--s${index % 7})`,
  dash: DASHES[(index + Math.floor(index / 7)) % DASHES.length],
  symbol: SYMBOLS[(index + 2 * Math.floor(index / 7)) % SYMBOLS.length],
});
const narrow = (width) => width < 460;

const observer = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting) entry.target.figure.ready();
}, { rootMargin: "600px" });
const resized = new ResizeObserver((entries) => {
  for (const entry of entries) entry.target.figure.resize();
});

function figure(title, draw, caption = "", { file = title } = {}) {
  const drawing = h("div", { className: "drawing" });
  const save = h("button", { type: "button", onclick: () => saveSvg(drawing.querySelector("svg"), file) }, t("ui-save-svg"), h("span", { className: "hidden" }, ` ${title}`));
  const element = h("figure", {}, h("h3", {}, h("span", {}, title), save), drawing, caption ? h("figcaption", {}, caption) : null);
  let width = 0, wanted = false;
  const self = {
    element,
    ready() { if (!wanted) { wanted = true; self.draw(); } },
    resize() { const now = Math.floor(drawing.clientWidth); if (wanted && Math.abs(now - width) > 4) self.draw(); },
    draw() {
      width = Math.floor(drawing.clientWidth);
      if (width < 40) return;
      const svg = draw(width);
      if (svg instanceof SVGElement && !svg.getAttribute("role")) {
        svg.setAttribute("role", "img");
        svg.setAttribute("aria-label", `${title}. ${caption}`.trim());
      }
      // The library names its groups, which have no role that a name could belong to.
      for (const group of svg.querySelectorAll("g[aria-label]:not([role])")) {
        group.dataset.mark = group.getAttribute("aria-label");
        group.removeAttribute("aria-label");
      }
      drawing.replaceChildren(svg);
    },
  };
  drawing.figure = self;
  observer.observe(drawing);
  resized.observe(drawing);
  figures.push(new WeakRef(self));
  return self;
}
function redraw(drawn) { for (const one of drawn) one.draw(); }
const everyFigure = () => figures.map((reference) => reference.deref()).filter((one) => one && one.element.isConnected);

// The drawing alone, with its colors as values, black on white, for a paper or a slide.
function saveSvg(svg, title) {
  const light = document.styleSheets[0].cssRules[0].style; // the colors of the page in the light
  const clone = svg.cloneNode(true);
  for (const tip of clone.querySelectorAll("[aria-label=tip], [data-mark=tip]")) tip.remove();
  clone.setAttribute("xmlns", "http://www.w3.org/2000/svg");
  clone.setAttribute("style", "background:#ffffff;color:#1a1f26;font-family:'DejaVu Sans',Verdana,'Noto Sans CJK SC',sans-serif;font-size:12px");
  const text = new XMLSerializer().serializeToString(clone).replace(/var\((--[a-z0-9]+)\)/g, (_, name) => light.getPropertyValue(name).trim() || "currentColor");
  const link = h("a", { href: URL.createObjectURL(new Blob([text], { type: "image/svg+xml" })), download: `${title.replace(/[^\p{L}\p{N}]+/gu, "-")}.svg` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// --- Axes ---
// Labelled ticks of a logarithmic axis, and the lines between them that show that it is one.
function logTicks(low, high, most, whole) {
  const all = [];
  for (let decade = Math.floor(Math.log10(low)); decade <= Math.ceil(Math.log10(high)); decade += 1) {
    for (let step = 1; step < 10; step += 1) {
      const value = Number(`${step}e${decade}`);
      if (value >= low * 0.999 && value <= high * 1.001) all.push(value);
    }
  }
  const first = (value) => Math.round(value / 10 ** Math.floor(Math.log10(value) + 1e-9));
  for (const steps of [[1, 2, 3, 4, 5, 6, 7, 8, 9], [1, 2, 3, 5, 7], [1, 2, 5], [1, 3], [1]]) {
    const ticks = all.filter((value) => steps.includes(first(value)));
    if (ticks.length > most) continue;
    // Less than half a decade has hardly a round number in it: then evenly spaced values are labelled.
    return whole || ticks.length > 2 ? { ticks, minor: all } : { ticks: d3.ticks(low, high, Math.min(most, 5)), minor: d3.ticks(low, high, 12) };
  }
  const decades = all.filter((value) => first(value) === 1);
  const every = Math.ceil(decades.length / most);
  return { ticks: decades.filter((_, index) => index % every === 0), minor: decades };
}
const ticksPlain = (value) => digits(value, 4);
// Ticks of one axis are all written alike: 2e−5 beside 1e−4, not beside 0.0001.
function ticksAlike(ticks) {
  if (!ticks.some((value) => digits(value).includes("e"))) return ticksPlain;
  return (value) => (value === 0 || (Math.abs(value) >= 1 && Math.abs(value) < 1e4) ? ticksPlain(value) : Number(value.toPrecision(4)).toExponential().replace("e+", "e").replaceAll("-", MINUS));
}
const counted = (value) => (value < 1e6 ? value.toLocaleString("en") : `${digits(value / 1e6)}M`);

function axes({ width, height = 250, x, y, marks, left = 52, right = 12, bottom = 42, label }) {
  const scale = (axis, most) => {
    const { label: words, log, whole, tickFormat, ...rest } = axis;
    const options = { label: null, ...rest };
    if (log) {
      const [low, high] = axis.domain;
      const { ticks, minor } = logTicks(low, high, most, whole);
      return [{ ...options, type: "log" }, { ticks, tickFormat: axis.tickFormat ?? ticksAlike(ticks) }, minor];
    }
    const ticks = axis.ticks ?? most;
    return [options, { ticks, tickFormat: axis.tickFormat ?? ticksAlike(d3.ticks(...axis.domain, ticks)) }, null];
  };
  const [xs, xAxis, xMinor] = scale(x, Math.max(2, Math.round(width / 75)));
  const [ys, yAxis, yMinor] = scale(y, Math.max(3, Math.round(height / 42)));
  return Plot.plot({
    width, height, marginLeft: left, marginRight: right, marginTop: 22, marginBottom: bottom, x: xs, y: ys, ariaLabel: label,
    style: { background: "transparent", color: "currentColor", fontSize: "12px", fontFamily: "inherit" },
    marks: [
      xMinor ? Plot.gridX(xMinor, { strokeOpacity: 0.09 }) : null,
      yMinor ? Plot.gridY(yMinor, { strokeOpacity: 0.09 }) : Plot.gridY({ strokeOpacity: 0.12 }),
      Plot.axisX({ label: x.label, labelAnchor: "center", labelArrow: "none", ...xAxis }),
      Plot.axisY({ label: y.label, labelAnchor: "top", labelArrow: "none", ...yAxis }),
      ...marks,
    ],
  });
}
const tip = (points, options) => Plot.tip(points, Plot.pointer({ ...options, fill: "var(--ground)", stroke: "var(--soft)", fontSize: 12, ariaHidden: "true" }));
// A domain with a little air; of a logarithmic axis only what is above zero.
function around(values, log, { zero = false } = {}) {
  const known = finite(values).filter((value) => !log || value > 0);
  let low = Infinity, high = -Infinity;
  for (const value of known) { low = Math.min(low, value); high = Math.max(high, value); }
  if (!known.length) return log ? [1, 10] : [0, 1];
  if (log) return low === high ? [low / 2, high * 2] : [low / 1.15, high * 1.15];
  if (zero && low >= 0) low = 0;
  const air = (high - low || Math.abs(high) || 1) * 0.05;
  return [zero && low === 0 ? 0 : low - air, high + air];
}
// Lines of several series as marks: color, dashes and symbol tell them apart, so none is needed alone.
function lines(series, { dots = true } = {}) {
  return series.flatMap(({ points, style }) => [
    Plot.line(points, { x: "x", y: "y", stroke: style.color, strokeWidth: 1.6, strokeDasharray: style.dash }),
    dots ? Plot.dot(points.filter((point) => point.y !== null), { x: "x", y: "y", symbol: style.symbol, fill: style.color, r: points.length > 40 ? 2 : 3 }) : null,
  ]);
}
// A key whose entries switch their series on and off; returns the element and which are on.
function legend(names, styles, change, off = new Set()) {
  const swatch = (style) => {
    const svg = d3.create("svg").attr("viewBox", "0 0 34 12").attr("aria-hidden", "true");
    svg.append("path").attr("d", "M1 6H33").attr("stroke", style.color).attr("stroke-width", 2).attr("stroke-dasharray", style.dash === "none" ? null : style.dash);
    const symbol = d3[`symbol${capital(style.symbol)}`];
    svg.append("path").attr("transform", "translate(17,6)").attr("fill", style.color).attr("d", d3.symbol(symbol, 40)());
    return svg.node();
  };
  const element = h("div", { className: "legend", role: "group", "aria-label": t("ui-series") }, names.map((name, index) =>
    h("button", { type: "button", "aria-pressed": String(!off.has(name)), onclick: (event) => {
      if (off.has(name)) off.delete(name); else off.add(name);
      event.currentTarget.setAttribute("aria-pressed", String(!off.has(name)));
      change();
    } }, swatch(styles[index]), name)));
  return { element, on: (name) => !off.has(name) };
}

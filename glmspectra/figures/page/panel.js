// One matrix: its spectrum with bulk edge and power-law line, densities, numbers with error bounds, ranks, its change.
function parsePlace(place) {
  const found = place.match(/^L(\d+)\/(.+)$/);
  if (!found) return null;
  const layer = Number(found[1]);
  for (const set of sets) {
    for (let row = 0; row < set.rows.layer.length; row += 1) {
      if (set.rows.layer[row] === layer && placeOf(set, row) === place) return { layer, set, row };
    }
  }
  return null;
}
const rowAt = (set, place) => set.rows.layer.findIndex((_, row) => placeOf(set, row) === place);

let showPanel = () => {};
function openPanel(place, jump = false) {
  if (!parsePlace(place)) return;
  remember({}, place);
  showPanel(place);
  const panel = document.getElementById("panel");
  if (jump) {
    panel.focus({ preventScroll: true });
    document.getElementById("matrix").scrollIntoView({ block: "start" });
  }
}

function drawPanel(host) {
  let shownPlace = null;
  const state = { log: true };
  const build = () => {
    const found = shownPlace && parsePlace(shownPlace);
    if (!found) { host.replaceChildren(h("p", { className: "note" }, t("ui-panel-none"))); return; }
    const { set, row, layer } = found, name = seriesOf(set, row);
    const go = (step) => {
      const layers = unique(rowsOf(set, "whole").map((one) => set.rows.layer[one])).sort((a, b) => a - b);
      const next = layers[layers.indexOf(layer) + step];
      if (next !== undefined) openPanel(shownPlace.replace(/^L\d+/, `L${next}`));
    };
    const same = unique(set.rows.layer.map((one, index) => (one === layer ? index : null)).filter((one) => one !== null && !HEAD.test(set.rows.part[one])));
    host.replaceChildren(
      h("div", { className: "panel-head" }, h("h3", {}, nameOf(set, row)),
        h("span", { className: "languages" }, h("button", { type: "button", onclick: () => go(-1) }, t("ui-layer-before")), h("button", { type: "button", onclick: () => go(1) }, t("ui-layer-after"))),
        select(t("ui-matrix-choice"), same.map((one) => [placeOf(set, one), seriesOf(set, one)]), shownPlace, (place) => openPanel(place)),
        check(t("ui-log-axes"), state.log, (value) => { state.log = value; build(); })),
      h("p", { className: "note" }, set.rows.name[row]),
      h("div", { className: "figures three" }, panelFigures(shownPlace, state).map((one) => one.element)),
      ...sets.map((one) => numbersOf(one, rowAt(one, shownPlace))).filter((box) => box !== null),
    );
    for (const one of everyFigure()) if (host.contains(one.element)) one.ready();
    host.setAttribute("aria-label", nameOf(set, row));
    host.setAttribute("role", "group");
  };
  showPanel = (place) => { shownPlace = place; build(); };
  listeners.push(build);
  const first = parsePlace(address.place) ? address.place : firstToShow();
  if (first) showPanel(first);
}
// What is shown before anybody chooses: the matrix of the first finding that names one, else the first row.
function firstToShow() {
  for (const link of document.querySelectorAll(".findings a")) {
    const place = decodeURIComponent(link.getAttribute("href").slice(1).split("?")[0]);
    if (parsePlace(place)) return place;
  }
  const row = sets.length ? rowsOf(sets[0], "whole")[0] ?? rowsOf(sets[0], "parts")[0] : undefined;
  return row === undefined ? null : placeOf(sets[0], row);
}

function panelFigures(place, state) {
  const found = [];
  for (const set of sets) {
    const row = rowAt(set, place);
    if (row < 0 || !set.sigma) continue;
    const label = inLanguage(set.label);
    if (set.sigma[row]) found.push(spectrumFigure(set, row, label, state.log));
    if (set.bins?.[row]) found.push(densityFigure(set, row, label));
    if (set.histograms?.[row]) found.push(histogramFigure(set, row, label));
  }
  const ranks = sets.find((set) => set.id === "ranks"), row = ranks ? rowAt(ranks, place) : -1;
  if (row >= 0) found.push(rankBars(ranks, row));
  if (data.growth) { const grown = growthOfMatrix(place); if (grown) found.push(grown); }
  return found;
}

function pointsOf(set, row) {
  const sigma = set.sigma[row], count = sigma[sigma.length - 1];
  return set.grids[count].map((number, index) => ({ x: number, y: sigma[index] })).filter((point) => point.y !== null);
}
const numberAt = (set, name, row) => (set.values[name] ? set.values[name][row] : null);

// Where the words of a level line cover no point: above its right end where the spectrum crosses it early, else below its left.
function besides(points, level, log) {
  const scaled = log ? Math.log : (x) => x, last = scaled(points[points.length - 1].x) || 1;
  const above = points.filter((point) => point.y > level), crosses = above.length ? scaled(above[above.length - 1].x) / last : 0;
  return crosses < 0.5 ? { frameAnchor: "right", dy: -10 } : { frameAnchor: "left", dx: 5, dy: 11 };
}

function spectrumFigure(set, row, label, log) {
  const points = pointsOf(set, row).filter((point) => !log || point.y > 0);
  const edge = numberAt(set, "mp_edge", row), floor = numberAt(set, "noise_floor", row), allotted = numberAt(set, "allotted_rank", row);
  const alpha = numberAt(set, "alpha", row), xmin = numberAt(set, "alpha_xmin", row), tail = numberAt(set, "alpha_tail", row);
  const fit = alpha !== null && xmin !== null && tail !== null
    ? d3.range(0, 1.0001, 0.05).map((share) => tail ** share).map((k) => ({ x: k, y: Math.sqrt(xmin) * (k / tail) ** (-1 / (2 * (alpha - 1))) })) : [];
  const bound = set.bounds?.[row];
  const rules = [];
  if (edge) rules.push({ y: edge, color: "var(--s1)", dash: "6 3", words: t("ui-edge") });
  const low = d3.min(points, (point) => point.y);
  if (floor && floor > low / 300) rules.push({ y: floor, color: "var(--frame)", dash: "2 2", words: t("ui-floor") });
  const caption = sentences([
    t("ui-spectrum-caption"), edge ? t("ui-edge-caption") : "", fit.length ? t("ui-fit-caption", { alpha: digits(alpha, 3), tail: digits(tail), distance: digits(numberAt(set, "alpha_ks", row), 2) || "–" }) : "",
    bound ? t("ui-bound-caption", { first: digits(bound[0], 2), most: digits(bound[1], 2) }) : "",
    floor && !(floor > low / 300) ? t("ui-floor-below", { floor: digits(floor, 3) }) : "", allotted !== null && allotted !== undefined ? t("ui-allotted-caption", { rank: digits(allotted) }) : "",
  ]);
  return figure(t("ui-spectrum-title", { label }), (width) => axes({
    width, left: 62,
    x: { label: t("ui-number"), log, whole: true, domain: log ? [0.93, Math.max(1.5, points[points.length - 1].x * 1.1)] : [0, points[points.length - 1].x + 0.5] },
    y: { label: t("ui-sigma"), log, domain: around([...points.map((point) => point.y), ...(edge ? [edge] : [])], log, { zero: true }) },
    marks: [
      Plot.ruleY(rules, { y: "y", stroke: "color", strokeDasharray: "6 3", strokeWidth: 1.4 }),
      ...rules.map((rule) => Plot.text([rule], { y: "y", text: "words", ...besides(points, rule.y, log), fill: "currentColor" })),
      fit.length ? Plot.line(fit, { x: "x", y: "y", stroke: "var(--frame)", strokeWidth: 1.8, strokeDasharray: "3 2", clip: true }) : null,
      Plot.line(points, { x: "x", y: "y", stroke: "var(--s0)", strokeWidth: 1.6 }),
      Plot.dot(points, { x: "x", y: "y", fill: "var(--s0)", r: points.length < 5 ? 4 : 2 }),
      tip(points, { x: "x", y: "y", title: (point) => `σ ${point.x}: ${digits(point.y)}` }),
    ],
  }), caption);
}

// Density of n singular values of an m x n matrix of noise of level s (Marchenko and Pastur 1967, by sigma = sqrt of the eigenvalue).
function noiseDensity(sigma, rows, cols, level) {
  const n = Math.min(rows, cols), m = Math.max(rows, cols);
  const high = level * (Math.sqrt(m) + Math.sqrt(n)), low = level * (Math.sqrt(m) - Math.sqrt(n));
  if (sigma <= Math.max(low, 1e-12) || sigma >= high) return 0;
  return Math.sqrt((high ** 2 - sigma ** 2) * (sigma ** 2 - low ** 2)) / (Math.PI * level ** 2 * n * sigma);
}
function densityFigure(set, row, label) {
  const [top, ...counts] = set.bins[row], step = top / counts.length, sigma = set.sigma[row];
  const total = sigma[sigma.length - 1];
  const bars = counts.map((count, index) => ({ x1: index * step, x2: (index + 1) * step, y: count / total / step, count }));
  const level = numberAt(set, "mp_sigma", row), edge = numberAt(set, "mp_edge", row), rows = numberAt(set, "rows", row), cols = numberAt(set, "cols", row);
  const curve = level ? d3.range(0, top, top / 160).map((x) => ({ x, y: noiseDensity(x, rows, cols, level) })) : [];
  const beyond = total - d3.sum(counts);
  const caption = sentences([t("ui-density-caption"), beyond > 0 ? t("ui-density-beyond", { count: digits(beyond) }) : ""]);
  return figure(t("ui-density-title", { label }), (width) => axes({
    width, x: { label: t("ui-sigma"), domain: [0, top] }, y: { label: t("ui-density"), domain: [0, d3.max([...bars, ...curve], (one) => one.y) * 1.05] },
    marks: [
      Plot.rectY(bars, { x1: "x1", x2: "x2", y: "y", fill: "var(--s0)", fillOpacity: 0.5, inset: 0.5 }),
      Plot.line(curve, { x: "x", y: "y", stroke: "var(--s1)", strokeWidth: 1.8 }),
      edge && edge < top ? Plot.ruleX([edge], { stroke: "var(--s1)", strokeDasharray: "6 3", strokeWidth: 1.4 }) : null,
      tip(bars, { x: (bar) => (bar.x1 + bar.x2) / 2, y: "y", title: (bar) => `σ ${digits(bar.x1, 3)} – ${digits(bar.x2, 3)}: ${digits(bar.count)}` }),
    ],
  }), caption);
}

function histogramFigure(set, row, label) {
  const [edges, counts] = set.histograms[row], total = d3.sum(counts);
  const bars = counts.map((count, index) => ({ x1: edges[index], x2: edges[index + 1], y: count / total / (edges[index + 1] - edges[index]), count })).filter((bar) => bar.count > 0);
  const mean = numberAt(set, "mean", row) ?? 0, std = numberAt(set, "std", row);
  const low = d3.min(bars, (bar) => bar.y) / 2, high = d3.max(bars, (bar) => bar.y) * 1.4;
  const normal = std ? d3.range(-1, 1.0001, 0.0125).map((share) => mean + 6 * std * share).filter((x) => x >= edges[0] && x <= edges[edges.length - 1])
    .map((x) => ({ x, y: Math.exp(-(((x - mean) / std) ** 2) / 2) / (std * Math.sqrt(2 * Math.PI)) })).filter((point) => point.y > low) : [];
  return figure(t("ui-histogram-title", { label }), (width) => axes({
    width, left: 62, x: { label: t("ui-weight"), domain: [edges[0], edges[edges.length - 1]] }, y: { label: t("ui-density"), log: true, domain: [low, high] },
    marks: [
      Plot.rect(bars, { x1: "x1", x2: "x2", y1: low, y2: "y", fill: "var(--s0)", fillOpacity: 0.5, inset: 0.3 }),
      Plot.line(normal, { x: "x", y: "y", stroke: "var(--s1)", strokeWidth: 1.8 }),
      tip(bars, { x: (bar) => (bar.x1 + bar.x2) / 2, y: "y", title: (bar) => `${digits(bar.x1, 3)} – ${digits(bar.x2, 3)}: ${digits(bar.count)}` }),
    ],
  }), t("ui-histogram-caption"));
}

function rankBars(set, row) {
  const bars = [["chosen", set.criterion], ...Object.keys(set.values).filter((name) => name.startsWith("by ")).map((name) => [name, name.slice(3)])]
    .map(([column, name]) => ({ name, rank: set.values[column][row], chosen: column === "chosen" })).filter((bar) => bar.rank !== null);
  const longest = d3.max(bars, (bar) => bar.name.length);
  return figure(t("ui-rank-by-criterion"), (width) => Plot.plot({
    width, height: 56 + 20 * bars.length, marginLeft: 10 + 7 * longest, marginRight: 34, marginBottom: 40, style: { background: "transparent", color: "currentColor", fontSize: "12px" },
    x: { label: t("ui-rank"), ticks: 4, labelAnchor: "center", labelArrow: "none", domain: [0, d3.max(bars, (bar) => bar.rank) || 1] }, y: { domain: bars.map((bar) => bar.name), label: null },
    marks: [Plot.barX(bars, { x: "rank", y: "name", fill: (bar) => (bar.chosen ? "var(--s0)" : "var(--empty)"), inset: 1 }),
      Plot.text(bars, { x: "rank", y: "name", text: (bar) => digits(bar.rank), dx: 5, textAnchor: "start", fill: "currentColor" })],
  }), t("ui-rank-by-criterion-caption"));
}

function numbersOf(set, row) {
  if (row < 0) return null;
  const kin = rowsOf(set, set.rows.part[row] === "whole" ? "whole" : "parts").filter((one) => seriesOf(set, one) === seriesOf(set, row));
  const names = ["rows", "cols", ...measuresOf(set).filter((name) => !/^q_\d/.test(name) && !name.startsWith("by "))].filter((name) => set.values[name] && set.values[name][row] !== null);
  const bound = set.bounds?.[row];
  const entries = names.map((name) => {
    const column = set.columns[name], value = set.values[name][row];
    const middle = d3.median(finite(kin.map((one) => set.values[name][one])));
    const error = name === "spectral_norm" && bound ? ` ± ${digits(bound[0], 2)}` : "";
    const usual = kin.length > 2 && middle !== undefined && name !== "rows" && name !== "cols" ? h("small", {}, ` (${shown(middle, column)})`) : null;
    return h("div", {}, h("dt", { title: inLanguage(column.meaning) }, inLanguage(column.label)), h("dd", {}, shown(value, column) + error, usual));
  });
  return entries.length ? h("details", { open: set === sets[0] }, h("summary", {}, t("ui-numbers", { label: inLanguage(set.label) })), h("dl", { className: "numbers" }, entries)) : null;
}

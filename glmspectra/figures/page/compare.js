// Several runs on the same axes by relative depth, the difference of two as a map, and losses with their intervals.
function drawCompared(host) {
  const runs = data.compared;
  // What the first finding is about is shown first.
  const link = document.querySelector('.findings a[href^="#compared?"]');
  const given = new URLSearchParams(link ? link.getAttribute("href").split("?")[1] : "");
  const state = { off: new Set() };
  for (const key of ["measure", "matrix"]) state[key] = address.query.get(key) ?? given.get(key);
  const build = () => {
    const measures = unique(runs.flatMap((run) => measuresOf(run))).filter((name) => runs.filter((run) => run.values[name]).length > 1);
    const column = (name) => runs.find((run) => run.columns[name]).columns[name];
    if (!measures.includes(state.measure)) state.measure = measures[0];
    const shared = unique(runs[0].rows.matrix).filter((matrix) => runs.every((run) => run.rows.matrix.includes(matrix)));
    const matrices = [...shared, ""];
    if (!matrices.includes(state.matrix)) state.matrix = matrices[0];
    const again = (key) => (value) => { state[key] = value; remember({ measure: state.measure, matrix: state.matrix }); build(); };
    const described = column(state.measure), factor = described.share ? 100 : 1;
    const series = runs.map((run, index) => {
      const rows = rowsOf(run, "whole").filter((row) => !state.matrix || run.rows.matrix[row] === state.matrix);
      const layers = unique(rows.map((row) => run.rows.layer[row])).sort((a, b) => a - b), last = layers[layers.length - 1] || 1;
      const points = layers.map((layer) => {
        const values = finite(rows.filter((row) => run.rows.layer[row] === layer).map((row) => run.values[state.measure]?.[row] ?? null));
        return { x: (100 * layer) / last, y: values.length ? factor * d3.median(values) : null, layer, series: inLanguage(run.label) };
      });
      return { name: inLanguage(run.label), style: look(index), points };
    });
    let drawn = null;
    const key = legend(series.map((one) => one.name), series.map((one) => one.style), () => drawn.draw(), state.off);
    const values = finite(series.flatMap((one) => one.points.map((p) => p.y))), log = Boolean(described.log) && d3.min(values) > 0 && d3.max(values) > 5 * d3.min(values);
    drawn = figure(state.matrix ? t("ui-of-matrix", { measure: capital(inLanguage(described.label)), matrix: state.matrix }) : capital(inLanguage(described.label)), (width) => {
      const on = series.filter((one) => key.on(one.name)), points = on.flatMap((one) => one.points).filter((p) => p.y !== null);
      return axes({ width, height: 300, left: 62, x: { label: t("ui-relative-depth"), domain: [-1, 101] }, y: { label: unitOf(described) || " ", log, domain: around(values, log, { zero: !described.signed }) },
        marks: [...lines(on), tip(points, { x: "x", y: "y", title: (p) => `${p.series}, ${t("ui-layer")} ${p.layer}\n${digits(p.y)}` })] });
    }, inLanguage(described.meaning));
    const map = differenceMap(runs, state.measure, described);
    host.replaceChildren(h("div", { className: "tools" },
      select(t("ui-measure"), measures.map((name) => [name, capital(inLanguage(column(name).label))]), state.measure, again("measure")),
      select(t("ui-matrix-choice"), matrices.map((name) => [name, name || t("ui-all-matrices")]), state.matrix, again("matrix"))), key.element, drawn.element, map);
  };
  listeners.push(build);
  return (changes) => { Object.assign(state, changes); build(); };
}
// Second run minus first, of matrices that both have; of a measure of ratios the change in percent, twice as far as half.
function differenceMap(runs, measure, column) {
  const [one, two] = runs;
  if (!one.values[measure] || !two.values[measure]) return h("p", { className: "note" }, t("ui-no-difference"));
  const other = new Map(rowsOf(two, "whole").map((row) => [placeOf(two, row), row]));
  const rows = rowsOf(one, "whole").filter((row) => other.has(placeOf(one, row)));
  if (!rows.length) return h("p", { className: "note" }, t("ui-no-difference"));
  const values = one.values[measure].map((before, row) => {
    const after = other.has(placeOf(one, row)) ? two.values[measure][other.get(placeOf(one, row))] : null;
    if (before === null || after === null || after === undefined) return null;
    return column.log && before > 0 ? after / before - 1 : after - before;
  });
  const signed = { ...column, signed: 1, log: 0, share: column.log || column.share ? 1 : 0 };
  const by = column.log ? Math.log1p : (value) => value, back = column.log ? (value) => Number(Math.expm1(value).toPrecision(3)) : (value) => value;
  const scale = colorsOf({ ...signed, signed: 1 }, [-1e-12, ...rows.map((row) => (values[row] === null ? null : by(values[row])))]);
  const colors = { ...scale, of: (value) => scale.of(by(value)), low: back(scale.low), high: back(scale.high) };
  const title = t(column.log ? "ui-difference-percent" : "ui-difference", { measure: capital(inLanguage(column.label)), one: inLanguage(one.label), two: inLanguage(two.label) });
  const drawn = figure(title, (width) => {
    const svg = mapSvg(width, one, rows, values, signed, colors, new Set());
    for (const cell of svg.querySelectorAll('[role="button"]')) for (const name of ["role", "tabindex", "aria-label"]) cell.removeAttribute(name);
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", title);
    return svg;
  }, sentences([t("ui-difference-caption"), emptyCells(one, rows).length || rows.some((row) => values[row] === null) ? t("ui-map-gray") : ""]));
  return h("div", {}, h("span", { className: "ramp" }, shown(colors.low, signed), h("i", { style: `background:linear-gradient(to right,${d3.range(0, 1.01, 0.1).map((share) => colors.ramp(share)).join(",")})` }), shown(colors.high, signed)), drawn.element);
}

function drawOutcome(host) {
  const gaps = data.outcome ?? [];
  if (!gaps.length) return;
  const build = () => {
    const bars = gaps.map((gap) => ({ ...gap, first: t(`ui-model-${gap.one}`), name: t("ui-gap", { one: t(`ui-model-${gap.one}`), two: t(`ui-model-${gap.two}`) }) }));
    const drawn = bars.map((bar) => figure(bar.name, (width) => Plot.plot({
      width, height: 84, marginLeft: 24, marginRight: 24, marginBottom: 44, style: { background: "transparent", color: "currentColor", fontSize: "12px" },
      x: { domain: around([0, bar.low, bar.high], false), label: t("ui-gap-axis"), labelAnchor: "center", labelArrow: "none", labelOffset: 40, ticks: Math.max(3, Math.round(width / 110)), tickFormat: ticksPlain }, y: { axis: null, domain: [0] },
      marks: [Plot.ruleX([0], { stroke: "var(--soft)", strokeDasharray: "3 2" }), Plot.link([bar], { x1: "low", x2: "high", y1: 0, y2: 0, stroke: "var(--s0)", strokeWidth: 5, strokeOpacity: 0.55 }),
        Plot.dot([bar], { x: "mean", y: 0, fill: "var(--s0)", r: 6 })],
    }), t("ui-gap-caption", { one: bar.first, mean: digits(bar.mean, 3), low: digits(bar.low, 3), high: digits(bar.high, 3), rows: digits(bar.rows) })).element);
    host.replaceChildren(h("div", { className: "figures" }, drawn));
  };
  listeners.push(build);
}

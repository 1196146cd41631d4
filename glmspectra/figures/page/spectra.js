// Every layer of one matrix type on the same axes, and how the weights' distribution changes with depth.
const DEPTHS = Array.from({ length: 10 }, (_, step) => `var(--d${step})`);
function drawSpectra(host) {
  const able = sets.filter((set) => set.sigma?.some(Boolean));
  if (!able.length) { host.closest("section").remove(); return; }
  const state = { set: able[0].id, series: null, log: true };
  const build = () => {
    const set = setNamed(state.set), rows = [...rowsOf(set, "whole"), ...rowsOf(set, "parts")].filter((row) => set.sigma[row]);
    const names = unique(rows.map((row) => seriesOf(set, row)));
    if (!names.includes(state.series)) state.series = names[0];
    const own = rows.filter((row) => seriesOf(set, row) === state.series);
    const last = d3.max(own, (row) => set.rows.layer[row]) || 1;
    const shade = (row) => DEPTHS[Math.round((DEPTHS.length - 1) * (set.rows.layer[row] / last))];
    const points = own.flatMap((row) => pointsOf(set, row).filter((point) => !state.log || point.y > 0).map((point) => ({ ...point, layer: set.rows.layer[row], row })));
    const again = (key) => (value) => { state[key] = value; build(); };
    const many = d3.max(points, (point) => point.x) > 1;
    const drawn = figure(t("ui-spectra-title", { matrix: state.series }), (width) => axes({
      width, height: 330, left: 62, x: { label: t("ui-number"), log: state.log && many, whole: true, domain: state.log && many ? [0.93, d3.max(points, (p) => p.x) * 1.1] : [0, d3.max(points, (p) => p.x) + 0.6] },
      y: { label: t("ui-sigma"), log: state.log, domain: around(points.map((point) => point.y), state.log, { zero: true }) },
      marks: [
        Plot.line(points, { x: "x", y: "y", z: "layer", stroke: (point) => shade(point.row), strokeWidth: 1.2 }),
        // Short spectra are dots too: a line of one value cannot be seen.
        d3.max(points, (p) => p.x) <= 64 ? Plot.dot(points, { x: "x", y: "y", fill: (point) => shade(point.row), r: 2.5 }) : null,
        tip(points, { x: "x", y: "y", title: (point) => `${t("ui-layer-matrix", { layer: point.layer, matrix: state.series })}\nσ ${point.x}: ${digits(point.y)}` }),
      ],
    }), t("ui-spectra-caption"));
    host.replaceChildren(h("div", { className: "tools" },
      able.length > 1 ? select(t("ui-set"), able.map((one) => [one.id, inLanguage(one.label)]), state.set, again("set")) : null,
      select(t("ui-matrix-choice"), names.map((name) => [name, name]), state.series, again("series")),
      check(t("ui-log-axes"), state.log, again("log")),
      h("span", { className: "ramp" }, `${t("ui-layer")} 0`, h("i", { style: `background:linear-gradient(to right,${DEPTHS.join(",")})` }), String(last))), drawn.element);
  };
  listeners.push(build);
}

const QUANTILES = ["q_0001", "q_001", "q_01", "q_05", "q_25", "q_50", "q_75", "q_95", "q_99", "q_999", "q_9999"];
function drawValues(host) {
  const able = sets.filter((set) => QUANTILES.every((name) => set.values[name]));
  if (!able.length) { host.closest("section").remove(); return; }
  const set = able[0];
  const state = { series: null };
  const build = () => {
    const rows = [...rowsOf(set, "whole"), ...rowsOf(set, "parts")].filter((row) => set.values.q_50[row] !== null);
    const names = unique(rows.map((row) => seriesOf(set, row)));
    if (!names.includes(state.series)) state.series = names[0];
    const own = rows.filter((row) => seriesOf(set, row) === state.series).sort((a, b) => set.rows.layer[a] - set.rows.layer[b]);
    const bands = [["q_0001", "q_9999", 0.14], ["q_01", "q_99", 0.24], ["q_05", "q_95", 0.34], ["q_25", "q_75", 0.5]];
    const layer = (row) => set.rows.layer[row], at = (name) => (row) => set.values[name][row];
    const values = own.flatMap((row) => [set.values.q_0001[row], set.values.q_9999[row]]);
    const drawn = figure(t("ui-values-title", { matrix: state.series }), (width) => axes({
      width, height: 280, left: 62, x: { label: t("ui-layer"), domain: [d3.min(own, layer) - 0.4, d3.max(own, layer) + 0.4], ticks: Math.min(own.length, Math.round(width / 50)), tickFormat: (v) => (Number.isInteger(v) ? String(v) : "") },
      y: { label: t("ui-weight"), domain: around(values, false) },
      marks: [
        ...bands.map(([low, high, opacity]) => Plot.areaY(own, { x: layer, y1: at(low), y2: at(high), fill: "var(--s0)", fillOpacity: opacity })),
        Plot.line(own, { x: layer, y: at("q_50"), stroke: "currentColor" }),
        tip(own, { x: layer, y: at("q_75"), title: (row) => [nameOf(set, row), ...QUANTILES.map((name) => `${inLanguage(set.columns[name].label)}: ${digits(set.values[name][row], 3)}`)].join("\n") }),
      ],
    }), t("ui-values-caption"));
    host.replaceChildren(h("div", { className: "tools" }, select(t("ui-matrix-choice"), names.map((name) => [name, name]), state.series, (value) => { state.series = value; build(); })), drawn.element);
  };
  listeners.push(build);
}

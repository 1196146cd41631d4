// By depth: three measures side by side, a line for each matrix, one key for all.
function byDepth(set, name, which) {
  const rows = rowsOf(set, which), names = unique(rows.map((row) => seriesOf(set, row)));
  const layers = d3.range(d3.min(rows, (row) => set.rows.layer[row]), d3.max(rows, (row) => set.rows.layer[row]) + 1);
  return names.map((series, index) => {
    const own = new Map(rows.filter((row) => seriesOf(set, row) === series).map((row) => [set.rows.layer[row], set.values[name][row]]));
    // A layer without a value stays a gap: no line over a matrix that was left out.
    return { name: series, style: look(index), points: layers.map((layer) => ({ x: layer, y: own.get(layer) ?? null, series })) };
  });
}
function depthFigure(set, name, which, isOn) {
  const column = set.columns[name];
  const all = byDepth(set, name, which);
  const values = all.flatMap((series) => series.points.map((point) => point.y));
  const known = finite(values);
  const log = Boolean(column.log) && d3.min(known) > 0 && d3.max(known) > 5 * d3.min(known);
  const factor = column.share ? 100 : 1;
  return figure(capital(inLanguage(column.label)), (width) => {
    const on = all.filter((series) => isOn(series.name)).map((series) => ({ ...series, points: series.points.map((point) => ({ ...point, y: point.y === null || (log && point.y <= 0) ? null : point.y * factor })) }));
    const points = on.flatMap((series) => series.points).filter((point) => point.y !== null);
    return axes({
      width, height: 230, left: 58, x: { label: t("ui-layer"), domain: [d3.min(values.length ? all[0].points : [{ x: 0 }], (p) => p.x) - 0.4, d3.max(all[0].points, (p) => p.x) + 0.4], ticks: Math.min(all[0].points.length, Math.round(width / 50)), tickFormat: (v) => (Number.isInteger(v) ? String(v) : "") },
      y: { label: unitOf(column) || " ", log, domain: around(points.map((point) => point.y), log, { zero: !column.signed }) },
      marks: [...lines(on), tip(points, { x: "x", y: "y", title: (point) => `${t("ui-layer-matrix", { layer: point.x, matrix: point.series })}\n${digits(point.y)}${column.share ? " %" : ""}` })],
    });
  }, inLanguage(column.meaning));
}
const DEPTH_FIRST = {
  delta: ["relative_frobenius", "effective_rank", "spectral_norm"], ranks: ["chosen", "difference", "used"],
  weight: ["stable_rank", "effective_rank", "spectral_norm"],
};
function drawDepth(host) {
  const state = { set: sets[0].id, which: "whole", first: address.query.get("depth"), off: new Set() };
  const build = () => {
    const set = setNamed(state.set), measures = measuresOf(set);
    const groups = ["whole", "parts"].filter((group) => rowsOf(set, group).length);
    if (!groups.length || !measures.length) { host.replaceChildren(h("p", { className: "note" }, t("ui-no-layers"))); return; }
    if (!groups.includes(state.which)) state.which = groups[0];
    let chosen = (DEPTH_FIRST[set.id] ?? DEPTH_FIRST.weight).filter((name) => measures.includes(name));
    chosen = unique([...(measures.includes(state.first) ? [state.first] : []), ...chosen, ...measures]).slice(0, 3);
    const names = byDepth(set, chosen[0], state.which);
    let drawn = [];
    const key = legend(names.map((series) => series.name), names.map((series) => series.style), () => redraw(drawn), state.off);
    drawn = chosen.map((name) => depthFigure(set, name, state.which, key.on));
    host.replaceChildren(
      h("div", { className: "tools" },
        sets.length > 1 ? select(t("ui-set"), sets.map((one) => [one.id, inLanguage(one.label)]), state.set, (value) => { state.set = value; state.off.clear(); build(); }) : null,
        select(t("ui-first-measure"), measures.map((name) => [name, capital(inLanguage(set.columns[name].label))]), chosen[0], (value) => { state.first = value; remember({ depth: value }); build(); }),
        groups.length > 1 ? select(t("ui-rows"), groups.map((group) => [group, t(`ui-rows-${group}`)]), state.which, (value) => { state.which = value; state.off.clear(); build(); }) : null),
      key.element, h("div", { className: "figures three" }, drawn.map((one) => one.element)));
  };
  listeners.push(build);
  return (changes) => { Object.assign(state, changes); build(); };
}

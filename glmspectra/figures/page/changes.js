// What training changed, over its checkpoints, and where it lies in the base.
function growthOfMatrix(place) {
  const found = place.match(/^L(\d+)\/(.+)$/), growth = data.growth;
  const row = growth.layer.findIndex((layer, one) => layer === Number(found[1]) && growth.matrix[one] === found[2]);
  const name = Object.keys(growth.values)[0];
  if (row < 0) return null;
  const points = growth.steps.map((step, one) => ({ x: step, y: growth.values[name][row][one] })).filter((point) => point.y !== null);
  return figure(t("ui-growth-of", { measure: inLanguage(growth.columns[name].label) }), (width) => axes({
    width, left: 62, x: { label: t("ui-step"), domain: [0, d3.max(growth.steps) * 1.02] }, y: { label: unitOf(growth.columns[name]) || " ", domain: around(points.map((p) => p.y), false, { zero: true }) },
    marks: [Plot.line(points, { x: "x", y: "y", stroke: "var(--s0)" }), Plot.dot(points, { x: "x", y: "y", fill: "var(--s0)" }), tip(points, { x: "x", y: "y", title: (p) => `${t("ui-step")} ${p.x}: ${digits(p.y)}` })],
  }));
}
function drawGrowth(host) {
  const growth = data.growth, names = unique(growth.matrix), off = new Set();
  const build = () => {
    let drawn = [];
    const key = legend(names, names.map((_, index) => look(index)), () => redraw(drawn), off);
    drawn = Object.keys(growth.values).map((measure) => {
      const column = growth.columns[measure], factor = column.share ? 100 : 1;
      const series = names.map((name, index) => ({
        name, style: look(index),
        points: growth.steps.map((step, at) => {
          const known = finite(growth.matrix.map((matrix, row) => (matrix === name ? growth.values[measure][row][at] : null)));
          return { x: step, y: known.length ? factor * d3.median(known) : null, low: factor * d3.min(known), high: factor * d3.max(known), series: name };
        }),
      }));
      return figure(capital(inLanguage(column.label)), (width) => {
        const on = series.filter((one) => key.on(one.name)), points = on.flatMap((one) => one.points).filter((p) => p.y !== null);
        return axes({
          width, height: 230, left: 58, x: { label: t("ui-step"), domain: [d3.min(growth.steps), d3.max(growth.steps)] }, y: { label: unitOf(column) || " ", domain: around(points.flatMap((p) => [p.low, p.high]), false, { zero: true }) },
          marks: [...on.map((one) => Plot.areaY(one.points, { x: "x", y1: "low", y2: "high", fill: one.style.color, fillOpacity: 0.12 })), ...lines(on),
            tip(points, { x: "x", y: "y", title: (p) => `${p.series}, ${t("ui-step")} ${p.x}\n${digits(p.y)} (${digits(p.low)} – ${digits(p.high)})` })],
        });
      });
    });
    host.replaceChildren(key.element, h("div", { className: "figures" }, drawn.map((one) => one.element)), h("p", { className: "note" }, t("ui-growth-caption")));
  };
  listeners.push(build);
}
function drawSimilarity(host) {
  const build = () => {
    const drawn = data.similarity.panels.map(({ matrix, side, phi }) => {
      const cells = phi.flatMap((row, i) => row.map((value, j) => ({ i: i + 1, j: j + 1, value })));
      return figure(t(side === "left" ? "ui-similarity-left" : "ui-similarity-right", { matrix }), (width) => Plot.plot({
        width: Math.min(width, 300), height: Math.min(width, 300) * 0.85, marginLeft: 40, marginBottom: 38, style: { background: "transparent", color: "currentColor", fontSize: "12px" },
        x: { type: "band", label: t("ui-top-of-weight"), labelArrow: "none" }, y: { type: "band", label: t("ui-top-of-change"), labelArrow: "none" },
        marks: [Plot.cell(cells, { x: "j", y: "i", fill: (cell) => d3.interpolateCividis(cell.value) }), tip(cells, { x: "j", y: "i", title: (cell) => `φ(${cell.i}, ${cell.j}) = ${digits(cell.value, 3)}` })],
      }));
    });
    host.replaceChildren(h("div", { className: "figures four" }, drawn.map((one) => one.element)), h("p", { className: "note" }, t("ui-similarity-caption"),
      h("span", { className: "ramp" }, " 0", h("i", { style: `background:linear-gradient(to right,${d3.range(0, 1.01, 0.1).map(d3.interpolateCividis).join(",")})` }), "1")));
  };
  listeners.push(build);
}

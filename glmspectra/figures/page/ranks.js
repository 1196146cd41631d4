// Ranks: what budgets buy, and in how many parameters the criteria differ.
function drawCriteria(host) {
  const build = () => {
    const { names, chosen, controls, moved } = data.criteria, parts = [];
    if (data.curve) {
      const { lines: budgets, chosen: budget, metric, of } = data.curve;
      const judged = budgets.filter((line) => !line.control || line.name === "uniform"), left = controls.filter((name) => name !== "uniform");
      const factor = metric === "energy" ? 100 : 1;
      const series = judged.map((line, index) => ({ name: line.name, style: look(index), points: line.x.map((x, at) => ({ x, y: line.y[at] * factor, series: line.name })) }));
      const off = new Set();
      let drawn = null;
      const key = legend(series.map((one) => one.name), series.map((one) => one.style), () => drawn.draw(), off);
      drawn = figure(t("ui-budget"), (width) => {
        const on = series.filter((one) => key.on(one.name)), points = on.flatMap((one) => one.points);
        return axes({
          width, height: 300, left: 62, right: 24, x: { label: t("ui-parameters"), log: true, tickFormat: counted, domain: around(points.map((p) => p.x), true) },
          y: { label: metric === "energy" ? t(of === "weight" ? "ui-energy-weight" : "ui-energy-delta") : t("ui-loss"), domain: around(points.map((p) => p.y), false) },
          marks: [budget ? Plot.ruleX([budget], { stroke: "var(--frame)", strokeDasharray: "4 3" }) : null, ...lines(on), tip(points, { x: "x", y: "y", title: (p) => `${p.series}\n${p.x.toLocaleString()}: ${digits(p.y)}` })],
        });
      }, sentences([t("ui-budget-caption"), left.length ? t("ui-controls-left-out", { names: left.join(", ") }) : ""]));
      parts.push(key.element, drawn.element);
    }
    const cell = (value) => h("td", { className: "number" }, value === null ? "–" : `${digits(100 * value, 2)} %`);
    parts.push(h("div", { className: "scroll", tabindex: "0", role: "region", "aria-label": t("ui-distances") },
      h("table", { className: "small distances" }, h("caption", {}, t("ui-distances")),
        h("thead", {}, h("tr", {}, h("th", { scope: "col" }, h("a", { href: "#term-criterion" }, t("ui-criterion"))), names.map((name) => h("th", { scope: "col", className: "number" }, h("a", { href: `#${encodeURIComponent(name === chosen ? "column-chosen" : `column-by ${name}`)}` }, name))))),
        h("tbody", {}, names.map((name, row) => h("tr", {}, h("th", { scope: "row" }, controls.includes(name) ? t("ui-control", { name }) : name), moved[row].map((value, at) => cell(at === row ? null : value))))))));
    host.replaceChildren(...parts);
  };
  listeners.push(build);
}

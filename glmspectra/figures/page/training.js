// Curves of training runs on the same axes, smoothed as far as the reader likes.
const CURVES = ["loss", "eval_loss", "eval_perplexity", "learning_rate", "grad_norm", "tokens_per_second"];
// An exponential average over points that need not be evenly spaced: what is a span back weighs exp(-2).
function smoothed(points, span) {
  let total = 0, weight = 0, last = null;
  return points.map((point) => {
    const decay = last === null ? 0 : Math.exp((-2 * (point.x - last)) / span);
    total = total * decay + point.y; weight = weight * decay + 1; last = point.x;
    return { ...point, y: total / weight };
  });
}
const titleOf = (run) => inLanguage(run.label);
function drawTraining(host) {
  const runs = data.training, off = new Set();
  const longest = d3.max(runs, (run) => d3.max(Object.values(run.curves), (curve) => d3.max(curve.x) - d3.min(curve.x))) || 1;
  const state = { span: 5, log: {} };
  // Runs whose rates are far apart are only seen side by side on a logarithmic axis.
  for (const name of ["learning_rate", "eval_loss", "loss"]) {
    const peaks = runs.filter((run) => run.curves[name]).map((run) => d3.max(run.curves[name].y));
    state.log[name] = name === "learning_rate" && peaks.length > 1 && d3.max(peaks) > 8 * d3.min(peaks);
  }
  state.log.grad_norm = true;
  const build = () => {
    let drawn = [];
    const names = runs.map((run) => titleOf(run));
    const key = legend(names, names.map((_, index) => look(index)), () => redraw(drawn), off);
    const span = (longest * state.span) / 100;
    const present = CURVES.filter((name) => runs.some((run) => run.curves[name]));
    const boxes = present.map((name) => {
      const one = figure(t(`ui-curve-${name.replaceAll("_", "-")}`), (width) => {
        const log = Boolean(state.log[name]), raw = ["loss", "grad_norm", "tokens_per_second"].includes(name) && span > 0;
        const on = runs.map((run, index) => ({ run, style: look(index) })).filter(({ run }) => run.curves[name] && key.on(titleOf(run))).map(({ run, style }) => {
          const logged = run.curves[name].x.map((x, at) => ({ x, y: run.curves[name].y[at], series: titleOf(run) })).filter((p) => p.y !== null && (!log || p.y > 0));
          return { name: titleOf(run), style, logged, points: raw ? smoothed(logged, span) : logged };
        });
        const points = on.flatMap((series) => series.points), every = on.flatMap((series) => series.logged.map((p) => p.y)).sort(d3.ascending);
        let [low, high] = around(every, log, { zero: ["learning_rate", "tokens_per_second"].includes(name) });
        const most = d3.quantileSorted(every, 0.99);
        if (!log && every.length > 50 && every[every.length - 1] > 4 * most) high = 1.5 * most;
        return axes({
          width, height: 240, left: 62, x: { label: t("ui-step"), domain: [0, d3.max(on.flatMap((s) => s.logged), (p) => p.x) || 1] }, y: { label: t(`ui-axis-${name.replaceAll("_", "-")}`), log, domain: [low, high] },
          marks: [
            ...(raw ? on.map((series) => Plot.line(series.logged, { x: "x", y: "y", stroke: series.style.color, strokeOpacity: 0.3, strokeWidth: 0.8, clip: true })) : []),
            ...lines(on, { dots: name.startsWith("eval") || points.length < 60 }).map((mark) => mark),
            tip(points, { x: "x", y: "y", title: (p) => `${p.series}, ${t("ui-step")} ${p.x}\n${digits(p.y)}` }),
          ],
        });
      }, t(`ui-caption-${name.replaceAll("_", "-")}`));
      const toggle = name === "eval_perplexity" ? null : check(t("ui-log-axis"), Boolean(state.log[name]), (value) => { state.log[name] = value; one.draw(); });
      if (toggle) { toggle.className = "note"; toggle.append(h("span", { className: "hidden" }, ` ${t(`ui-curve-${name.replaceAll("_", "-")}`)}`)); one.element.querySelector("figcaption").before(toggle); }
      drawn.push(one);
      return one.element;
    });
    const slider = h("input", { type: "range", min: 0, max: 25, value: state.span, oninput: (event) => { state.span = Number(event.target.value); build(); host.querySelector("input[type=range]").focus(); } });
    host.replaceChildren(h("div", { className: "tools" }, h("label", {}, t("ui-smoothing"), slider, `${Math.round(span)} ${t("ui-steps")}`)), runs.length > 1 ? key.element : "",
      h("div", { className: "figures" }, boxes), ...runs.filter((run) => run.ranks).map(rankHistory));
  };
  listeners.push(build);
}
function rankHistory(run) {
  const { steps, layer, matrix, values } = run.ranks;
  const cells = values.flatMap((line, row) => line.map((rank, at) => ({ step: steps[at], rank, name: `${layer[row] ?? "–"} ${matrix[row]}`, order: `${matrix[row]} ${String(layer[row] ?? 0).padStart(4, "0")}` })));
  const names = unique([...cells].sort((a, b) => d3.ascending(a.order, b.order)).map((cell) => cell.name));
  const high = d3.max(cells, (cell) => cell.rank) || 1, total = steps.map((step) => ({ x: step, y: d3.sum(cells.filter((cell) => cell.step === step), (cell) => cell.rank) }));
  const map = figure(t("ui-rank-history", { run: titleOf(run) }), (width) => Plot.plot({
    width, height: 60 + (names.length > 24 ? 9 : 16) * names.length, marginLeft: 150, marginBottom: 36, style: { background: "transparent", color: "currentColor", fontSize: "11px" },
    x: { type: "band", domain: steps, label: t("ui-step"), labelArrow: "none", ticks: steps.filter((_, at) => at % Math.ceil(steps.length / (width / 60)) === 0) }, y: { type: "band", domain: names, label: null, ticks: names.filter((_, at) => names.length <= 24 || at % 2 === 0) },
    marks: [Plot.cell(cells, { x: "step", y: "name", fill: (cell) => (cell.rank === null ? "var(--empty)" : d3.interpolateCividis(cell.rank / high)) }), tip(cells, { x: "step", y: "name", title: (cell) => `${cell.name}, ${t("ui-step")} ${cell.step}: ${digits(cell.rank)}` })],
  }), t("ui-rank-history-caption", { high: digits(high) }));
  const sum = figure(t("ui-rank-total"), (width) => axes({
    width, height: 190, left: 62, x: { label: t("ui-step"), domain: [steps[0], steps[steps.length - 1]] }, y: { label: t("ui-rank"), domain: around(total.map((p) => p.y), false, { zero: true }) },
    marks: [Plot.line(total, { x: "x", y: "y", stroke: "var(--s0)", curve: "step-after" }), tip(total, { x: "x", y: "y", title: (p) => `${t("ui-step")} ${p.x}: ${digits(p.y)}` })],
  }));
  return h("div", {}, map.element, sum.element);
}

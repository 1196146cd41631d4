// The map: layer by matrix, colored by a measure; cells that stand out are framed; a cell opens its matrix's panel.
function colorsOf(column, values) {
  const known = finite(values);
  const low = d3.min(known), high = d3.max(known);
  if (column.signed && low < 0) {
    const reach = Math.max(Math.abs(low), Math.abs(high)) || 1;
    return { diverging: true, of: (value) => d3.interpolatePuOr(1 - (value + reach) / (2 * reach)), low: -reach, high: reach, ramp: (share) => d3.interpolatePuOr(1 - share) };
  }
  const log = column.log && low > 0 && high > 4 * low;
  const share = log ? (value) => Math.log(value / low) / Math.log(high / low || 2) : (value) => (value - low) / (high - low || 1);
  return { of: (value) => d3.interpolateCividis(share(value)), low, high, log, ramp: d3.interpolateCividis };
}

function drawMap(host) {
  const state = { set: setNamed(address.query.get("set")).id, measure: address.query.get("map"), which: "whole" };
  let drawn = null;
  const build = () => {
    const set = setNamed(state.set), measures = measuresOf(set);
    const groups = ["whole", "parts", "heads"].filter((group) => rowsOf(set, group).length);
    if (!groups.includes(state.which)) state.which = groups[0] ?? "whole";
    if (!measures.includes(state.measure)) state.measure = measures[0];
    if (!measures.length || !groups.length) { host.replaceChildren(h("p", { className: "note" }, t("ui-no-layers"))); return; }
    const column = set.columns[state.measure], rows = rowsOf(set, state.which), values = set.values[state.measure];
    const colors = colorsOf(column, rows.map((row) => values[row]));
    const out = new Set(set.out[state.measure] ?? []);
    const again = (key) => (value) => { state[key] = value; remember({ set: state.set === sets[0].id ? "" : state.set, map: state.measure }); build(); };
    const tools = h("div", { className: "tools" },
      sets.length > 1 ? select(t("ui-set"), sets.map((one) => [one.id, inLanguage(one.label)]), state.set, again("set")) : null,
      select(t("ui-measure"), measures.map((name) => [name, capital(inLanguage(set.columns[name].label))]), state.measure, again("measure")),
      groups.length > 1 ? select(t("ui-rows"), groups.map((group) => [group, t(`ui-rows-${group}`)]), state.which, again("which")) : null,
      h("span", { className: "ramp" }, shown(colors.low, column),
        h("i", { style: `background:linear-gradient(to right,${d3.range(0, 1.01, 0.1).map((share) => colors.ramp(share)).join(",")})` }), shown(colors.high, column)),
      rows.some((row) => out.has(row)) ? h("span", { className: "ramp" }, h("span", { className: "out-key" }), t("ui-stands-out")) : null);
    const caption = sentences([inLanguage(column.meaning), t(colors.diverging ? "ui-map-caption-signed" : colors.log ? "ui-map-caption-log" : "ui-map-caption"),
      emptyCells(set, rows).length || rows.some((row) => values[row] === null) ? t(set.id === "delta" ? "ui-map-gray-change" : "ui-map-gray") : ""]);
    drawn = figure(capital(axisOf(column)), (width) => mapSvg(width, set, rows, values, column, colors, out), caption);
    host.replaceChildren(tools, drawn.element);
  };
  listeners.push(build);
  return (changes) => { Object.assign(state, changes); build(); };
}

const layersOf = (set, rows) => d3.range(d3.min(rows, (row) => set.rows.layer[row]), d3.max(rows, (row) => set.rows.layer[row]) + 1);
// Cells of the map without a row, such as a matrix without an adapter.
function emptyCells(set, rows) {
  const names = unique(rows.map((row) => seriesOf(set, row))), layers = layersOf(set, rows);
  const there = new Set(rows.map((row) => `${set.rows.layer[row]} ${seriesOf(set, row)}`));
  return d3.cross(layers, names, (layer, name) => ({ layer, name })).filter((cell) => !there.has(`${cell.layer} ${cell.name}`));
}

function mapSvg(width, set, rows, values, column, colors, out) {
  const across = !narrow(width);
  const layer = (row) => set.rows.layer[row], series = (row) => seriesOf(set, row);
  const names = unique(rows.map(series)), layers = layersOf(set, rows);
  const longest = d3.max(names, (name) => name.length);
  const room = across ? Math.min(190, 12 + 7 * longest) : 30;
  const cell = across ? Math.max(14, Math.min(26, 420 / names.length)) : 16;
  const every = Math.ceil(layers.length / Math.max(4, (across ? width - room : 16 * layers.length) / 26));
  const bands = { layers: { domain: layers, label: null }, names: { domain: names, label: null } };
  const svg = Plot.plot({
    width, height: across ? 40 + cell * names.length : 30 + 7 * Math.min(longest, 16) + cell * layers.length,
    marginLeft: room, marginRight: 6, marginTop: across ? 6 : 12 + 7 * Math.min(longest, 16), marginBottom: across ? 34 : 8,
    x: { type: "band", padding: 0.04, ...(across ? bands.layers : bands.names) }, y: { type: "band", padding: 0.04, ...(across ? bands.names : bands.layers) },
    style: { background: "transparent", color: "currentColor", fontSize: "12px", fontFamily: "inherit" },
    marks: [
      Plot.cell(emptyCells(set, rows), { x: across ? "layer" : "name", y: across ? "name" : "layer", fill: "var(--empty)", inset: 0.5 }),
      Plot.cell(rows, {
        x: across ? layer : series, y: across ? series : layer,
        fill: (row) => (values[row] === null ? "var(--empty)" : colors.of(values[row])),
        stroke: (row) => (out.has(row) ? "var(--frame)" : "none"), strokeWidth: 2.5, inset: 0.5,
      }),
      across ? Plot.axisX({ ticks: layers.filter((one) => one % every === 0), label: t("ui-layer"), labelAnchor: "center", labelArrow: "none", tickSize: 0 })
        : Plot.axisX({ anchor: "top", label: null, tickRotate: -90, tickSize: 0, tickFormat: (name) => (name.length > 18 ? name.slice(0, 17) + "…" : name) }),
      across ? Plot.axisY({ label: null, tickSize: 0 }) : Plot.axisY({ label: null, tickSize: 0, ticks: layers.filter((one) => one % 2 === 0) }),
      tip(rows, { x: across ? layer : series, y: across ? series : layer, title: (row) => `${nameOf(set, row)}\n${inLanguage(column.label)}: ${shown(values[row], column) || "–"}` }),
    ],
  });
  makeButtons(svg, set, rows, values, column, across ? [layer, series] : [series, layer]);
  return svg;
}

// Cells are buttons: one is in the tab order, arrow keys move among them, Enter opens the panel.
function makeButtons(svg, set, rows, values, column, [ofX, ofY]) {
  svg.setAttribute("role", "group");
  svg.setAttribute("aria-label", t("ui-map-label", { measure: inLanguage(column.label) }));
  const cells = [...[...svg.querySelectorAll('g[aria-label="cell"]')].at(-1).querySelectorAll("rect")];
  const at = new Map();
  const xs = unique(rows.map(ofX)), ys = unique(rows.map(ofY));
  if (typeof xs[0] === "number") xs.sort((a, b) => a - b);
  if (typeof ys[0] === "number") ys.sort((a, b) => a - b);
  for (const [index, cell] of cells.entries()) {
    const row = rows[index];
    at.set(`${ofX(row)} ${ofY(row)}`, cell);
    cell.setAttribute("role", "button");
    cell.setAttribute("tabindex", index === 0 ? "0" : "-1");
    cell.setAttribute("aria-label", `${nameOf(set, row)}: ${shown(values[row], column) || "–"}`);
    const open = () => openPanel(placeOf(set, row), true);
    cell.addEventListener("click", open);
    cell.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); open(); }
      if (!step) return;
      event.preventDefault();
      const next = at.get(`${xs[xs.indexOf(ofX(row)) + step[0]]} ${ys[ys.indexOf(ofY(row)) + step[1]]}`);
      if (!next) return;
      cell.setAttribute("tabindex", "-1");
      next.setAttribute("tabindex", "0");
      next.focus();
    });
  }
}

// Which figure is drawn where, and what the address asks for.
const drawers = {
  outcome: drawOutcome, map: drawMap, panel: drawPanel, depth: drawDepth, spectra: drawSpectra, values: drawValues, compared: drawCompared,
  growth: drawGrowth, similarity: drawSimilarity, criteria: drawCriteria, training: drawTraining, table: drawTable,
};
readAddress();
const changers = {};
for (const host of document.querySelectorAll("[data-figure]")) changers[host.dataset.figure] = drawers[host.dataset.figure](host);
const contents = document.getElementById("contents");
for (const title of document.querySelectorAll("main > section > h2")) contents.append(h("li", {}, h("a", { href: `#${title.parentElement.id}` }, ...[...title.childNodes].map((node) => node.cloneNode(true)))));
for (const button of document.querySelectorAll("[data-language]")) button.addEventListener("click", () => { remember({ lang: button.dataset.language }); speak(button.dataset.language); });
// Every column of the tables stands in the glossary, where the heads of the tables link to.
const columnsShown = new Map(sets.flatMap((set) => Object.entries(set.columns)));
const glossary = document.querySelector("[data-glossary]");
if (glossary) {
  const written = [...columnsShown].map(([name, column]) => [h("dt"), h("dd"), column, h("div", { id: `column-${name}` })]);
  for (const [title, means, , entry] of written) { entry.append(title, means); glossary.append(entry); }
  listeners.push(() => { for (const [title, means, column] of written) { title.textContent = capital(axisOf(column)); means.textContent = inLanguage(column.meaning); } });
}
speak(firstLanguage());
function follow() {
  readAddress();
  const asked = Object.fromEntries(["map", "set"].filter((key) => address.query.has(key)).map((key) => [key === "map" ? "measure" : key, address.query.get(key)]));
  if (Object.keys(asked).length && changers.map) changers.map(asked);
  if (address.query.has("depth") && changers.depth) changers.depth({ first: address.query.get("depth") });
  if (address.place === "compared" && changers.compared) changers.compared({ measure: address.query.get("measure"), matrix: address.query.get("matrix") });
  if (address.place === "table" && address.query.has("f") && changers.table) changers.table({ filter: address.query.get("f") });
  if (parsePlace(address.place)) openPanel(address.place, true);
  else document.getElementById(address.place)?.scrollIntoView();
}
window.addEventListener("hashchange", follow);
if (location.hash) follow();
// Figures are drawn anew for the width of a sheet, so that their words are as large as those around them.
function drawnFor(paper) {
  document.body.classList.toggle("paper", paper);
  for (const one of everyFigure()) { one.ready(); one.draw(); }
}
window.addEventListener("beforeprint", () => drawnFor(true));
window.addEventListener("afterprint", () => drawnFor(false));
document.documentElement.dataset.ready = "yes";

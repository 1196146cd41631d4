"use strict";
// Each table sorts by its heads, filters by words and by chosen values, and shows long lists a page at a time.
for (const grid of document.querySelectorAll("[data-grid]")) {
  const PAGE = 120;
  const body = grid.querySelector("tbody");
  const heads = [...grid.querySelectorAll("thead th")];
  const count = grid.querySelector("[data-count]");
  const pager = grid.querySelector(".pager");
  const range = grid.querySelector("[data-range]");
  const search = grid.querySelector("[data-filter]");
  const facets = [...grid.querySelectorAll("[data-facet]")];
  const rows = [...body.rows].map((row, place) => ({
    row,
    place,
    words: row.textContent.toLowerCase(),
    cells: [...row.cells].map((cell) => ({
      text: cell.textContent,
      number: cell.dataset.v === undefined ? NaN : Number(cell.dataset.v),
    })),
  }));
  let shown = rows.slice();
  let page = 0;

  const collator = new Intl.Collator(undefined, { numeric: true });
  function compare(column, sign) {
    return (one, other) => {
      const a = one.cells[column], b = other.cells[column];
      // What was not measured stays at the end, whichever way the column is sorted.
      if ((a.text === "") !== (b.text === "")) return a.text === "" ? 1 : -1;
      const both = !Number.isNaN(a.number) && !Number.isNaN(b.number);
      const order = both ? (a.number > b.number) - (a.number < b.number) : collator.compare(a.text, b.text);
      return sign * order || one.place - other.place;
    };
  }

  function draw() {
    const pages = Math.max(1, Math.ceil(shown.length / PAGE));
    page = Math.min(Math.max(page, 0), pages - 1);
    const from = page * PAGE;
    const part = shown.slice(from, from + PAGE);
    body.replaceChildren(...part.map((entry) => entry.row));
    count.textContent = shown.length === rows.length ? `${rows.length} rows` : `${shown.length} of ${rows.length} rows`;
    pager.hidden = pages === 1;
    range.textContent = `rows ${shown.length ? from + 1 : 0} to ${from + part.length}`;
    pager.querySelector('[data-page="-1"]').disabled = page === 0;
    pager.querySelector('[data-page="1"]').disabled = page === pages - 1;
  }

  function filter() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const chosen = facets.filter((facet) => facet.value !== "").map((facet) => [Number(facet.dataset.facet), facet.value]);
    shown = rows.filter((entry) =>
      words.every((word) => entry.words.includes(word)) && chosen.every(([column, value]) => entry.cells[column].text === value));
    page = 0;
    draw();
  }

  for (const [column, head] of heads.entries()) {
    head.querySelector("button").addEventListener("click", () => {
      const order = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
      for (const other of heads) other.setAttribute("aria-sort", other === head ? order : "none");
      rows.sort(compare(column, order === "ascending" ? 1 : -1));
      filter();
    });
  }
  for (const facet of facets) {
    const column = Number(facet.dataset.facet);
    const values = [...new Set(rows.map((entry) => entry.cells[column].text))].filter((text) => text !== "");
    values.sort(collator.compare);
    facet.append(...values.map((value) => new Option(value, value)));
    facet.addEventListener("change", filter);
  }
  search.addEventListener("input", filter);
  for (const button of pager.querySelectorAll("[data-page]")) {
    button.addEventListener("click", () => {
      page += Number(button.dataset.page);
      draw();
    });
  }
  grid.querySelector(".tools").hidden = false;
  draw();
}

// The table: first columns stay, largest first, filters such as `alpha > 6`, bars in cells, CSV and copy, state in the address.
const SHOWN = ["difference", "chosen", "allotted", "used", "relative_frobenius", "allotted_rank", "rank", "share_of_rank_in_use", "spectral_norm", "stable_rank", "effective_rank", "alpha", "mp_spikes", "energy_rank_90",
  "top12_share_of_singular_value_sum", "frobenius_norm", "gavish_donoho_rank", "condition_number", "intruders", "std", "excess_kurtosis", "abs_max", "share_beyond_6_sigma"];
const ESSENTIAL = 8; // columns that are printed
// A comparison for each measure, the first of a table for its filter and the note under it.
const EXAMPLES = { alpha: "alpha > 6", chosen: "chosen > 8", std: "std > 0.05", stable_rank: "stable_rank < 2", excess_kurtosis: "excess_kurtosis > 3", relative_frobenius: "relative_frobenius > 50 %" };
const FEW = 5; // rows that need no filter
const AT_ONCE = 150; // rows that are added while scrolling

// `alpha > 6 layer <= 3 dense`: comparisons of columns, and words that must occur in matrix, part, status or type.
function conditions(text, set) {
  const tests = [];
  const rest = text.replace(/([\p{L}_][\p{L}\p{N}_]*)\s*(<=|>=|!=|=|<|>)\s*(-?[\d.]+(?:e-?\d+)?)\s*(%?)/giu, (whole, name, sign, number, percent) => {
    const value = Number(number) * (percent ? 0.01 : 1);
    const key = name.toLowerCase();
    const of = key === "layer" || name === "层" ? (row) => set.rows.layer[row] : set.values[key] ? (row) => set.values[key][row] : null;
    if (!of) return whole;
    const compare = { "<": (a) => a < value, ">": (a) => a > value, "<=": (a) => a <= value, ">=": (a) => a >= value, "=": (a) => a === value, "!=": (a) => a !== value }[sign];
    tests.push((row) => of(row) !== null && compare(of(row)));
    return " ";
  });
  // A comparison of something that is not there is said, and narrows nothing.
  const unknown = rest.match(/[\p{L}_][\p{L}\p{N}_]*\s*(<=|>=|!=|=|<|>)\s*\S*/u);
  for (const word of rest.replace(unknown ? unknown[0] : "", " ").toLowerCase().split(/\s+/).filter(Boolean)) {
    tests.push((row) => ["matrix", "part", "status", "dtype", "name"].some((key) => set.rows[key]?.[row].toLowerCase().split(/[\s.]+/).includes(word) || (key === "matrix" && seriesOf(set, row).toLowerCase().includes(word) && !/^\d+$/.test(word))));
  }
  return { passes: (row) => tests.every((test) => test(row)), unknown: unknown ? unknown[0] : null };
}

function drawTable(host) {
  const state = { set: setNamed(address.query.get("set")).id, filter: address.query.get("f") ?? "", sort: address.query.get("sort") ?? "", up: address.query.get("up") === "1", all: false };
  let more = () => {};
  const build = () => {
    const set = setNamed(state.set), every = Object.keys(set.values);
    const columns = state.all ? every : SHOWN.filter((name) => every.includes(name)).concat(set.id === "ranks" ? every.filter((name) => name.startsWith("by ")) : []);
    const tops = Object.fromEntries(columns.map((name) => [name, d3.max(finite(set.values[name]))]));
    const lows = Object.fromEntries(columns.map((name) => [name, d3.min(finite(set.values[name]))]));
    const examples = [...Object.keys(EXAMPLES).filter((name) => every.includes(name)).map((name) => EXAMPLES[name]), "layer <= 3"].slice(0, 3);
    const count = h("span", { role: "status", "aria-live": "polite" });
    const body = h("tbody");
    const sorter = (name, key) => h("button", { type: "button", title: key ? inLanguage(set.columns[name].meaning) : undefined, onclick: () => {
      if (state.sort === name) state.up = !state.up; else { state.sort = name; state.up = !key; }
      remember({ sort: state.sort, up: state.up ? "1" : "" });
      build();
      host.querySelector(`th[data-name="${CSS.escape(name)}"] button`).focus();
    } }, key ? inLanguage(set.columns[name].head) : t(name === "layer" ? "ui-layer" : "ui-matrix-choice").toLowerCase(), state.sort === name ? h("span", { "aria-hidden": "true" }, state.up ? " ▲" : " ▼") : null);
    const meant = (name, key) => explained(key ? `column-${name}` : `term-${name}`, key ? inLanguage(set.columns[name].label) : t(name === "layer" ? "ui-layer" : "ui-matrix-choice").toLowerCase());
    const sorted = (name) => (state.sort === name ? (state.up ? "ascending" : "descending") : "none");
    const head = h("thead", {}, h("tr", {},
      h("th", { scope: "col", className: "stick first number", "aria-sort": sorted("layer"), "data-name": "layer" }, sorter("layer", false), meant("layer", false)),
      h("th", { scope: "col", className: "stick second", "aria-sort": sorted("matrix"), "data-name": "matrix" }, sorter("matrix", false), meant("matrix", false)),
      columns.map((name, index) => h("th", { scope: "col", className: `number${index >= ESSENTIAL ? " further" : ""}${inLanguage(set.columns[name].head).length < 12 ? " short" : ""}`, "aria-sort": sorted(name), "data-name": name }, sorter(name, true), meant(name, true)))));
    const outs = new Map(columns.map((name) => [name, new Set(set.out[name] ?? [])]));
    const line = (row) => h("tr", {},
      h("td", { className: "stick first number" }, set.rows.layer[row] === null ? "–" : String(set.rows.layer[row])),
      h("th", { scope: "row", className: "stick second" }, set.rows.layer[row] === null ? seriesOf(set, row) : h("a", { href: `#${encodeURI(placeOf(set, row))}` }, seriesOf(set, row))),
      columns.map((name, index) => {
        const value = set.values[name][row], top = tops[name];
        const bar = value !== null && top > 0 && lows[name] >= 0 ? ` --w:${Math.max(0, Math.min(100, (100 * value) / top)).toFixed(1)}%` : "";
        return h("td", { className: `number${bar ? " bar" : ""}${index >= ESSENTIAL ? " further" : ""}${outs.get(name).has(row) ? " out" : ""}`, style: bar || undefined }, shown(value, set.columns[name]));
      }));
    let rows = [], at = 0;
    more = (all = false) => {
      const until = all ? rows.length : Math.min(rows.length, at + AT_ONCE);
      if (until > at) body.append(...rows.slice(at, until).map(line));
      at = until;
    };
    const fill = () => {
      const { passes, unknown } = conditions(state.filter, set);
      const number = state.sort === "layer" ? set.rows.layer : set.values[state.sort];
      rows = d3.range(set.rows.layer.length).filter(passes);
      if (state.sort === "matrix") rows.sort((a, b) => (state.up ? 1 : -1) * d3.ascending(seriesOf(set, a), seriesOf(set, b)) || a - b);
      else if (number) rows.sort((a, b) => (number[a] === null) - (number[b] === null) || (state.up ? 1 : -1) * d3.ascending(number[a], number[b]) || a - b);
      body.replaceChildren();
      at = 0;
      more();
      count.textContent = unknown ? t("ui-filter-unknown", { words: unknown }) : t(rows.length !== set.rows.layer.length ? "ui-rows-some" : rows.length === 1 ? "ui-rows-one" : "ui-rows-all", { count: digits(rows.length), all: digits(set.rows.layer.length) });
    };
    const csv = () => {
      const quote = (value) => (/[",\n]/.test(String(value)) ? `"${String(value).replaceAll('"', '""')}"` : String(value ?? ""));
      const heads = ["layer", "matrix", "part", "name", ...every];
      return [heads, ...rows.map((row) => [set.rows.layer[row], set.rows.matrix[row], set.rows.part[row], set.rows.name[row], ...every.map((name) => set.values[name][row])])].map((cells) => cells.map(quote).join(",")).join("\n") + "\n";
    };
    const save = () => {
      const link = h("a", { href: URL.createObjectURL(new Blob([csv()], { type: "text/csv" })), download: `${set.id}.csv` });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    };
    const copy = async (event) => {
      const button = event.currentTarget, text = csv().replaceAll(",", "\t");
      try { await navigator.clipboard.writeText(text); } catch {
        const area = h("textarea", { value: text });
        document.body.append(area); area.select(); document.execCommand("copy"); area.remove();
      }
      button.textContent = t("ui-copied");
    };
    const box = h("div", { className: "scroll tall", tabindex: "0", role: "region", "aria-label": t("ui-table-label", { label: inLanguage(set.label) }), onscroll: (event) => { const b = event.currentTarget; if (b.scrollTop + b.clientHeight > b.scrollHeight - 400) more(); } },
      h("table", { className: "data" }, head, body));
    host.replaceChildren(
      h("div", { className: "tools" },
        sets.length > 1 ? select(t("ui-set"), sets.map((one) => [one.id, inLanguage(one.label)]), state.set, (value) => { state.set = value; state.sort = ""; build(); }) : null,
        set.rows.layer.length < FEW && !state.filter ? null : h("label", {}, t("ui-filter"), h("input", { type: "search", value: state.filter, placeholder: t("ui-filter-example", { words: `${examples[0]} ${d3.least(set.rows.matrix, (name) => name.length)}` }), autocomplete: "off", spellcheck: false, size: 30, oninput: (event) => { state.filter = event.target.value; remember({ f: state.filter }); fill(); } })),
        check(t("ui-all-columns"), state.all, (value) => { state.all = value; build(); }),
        h("button", { type: "button", onclick: save }, t("ui-save-csv")), h("button", { type: "button", onclick: copy }, t("ui-copy")), count),
      box, h("p", { className: "note" }, t("ui-table-note", { examples: examples.join(language === "zh" ? "、" : ", ") })));
    fill();
  };
  listeners.push(build);
  window.addEventListener("beforeprint", () => more(true));
  return (changes) => { Object.assign(state, changes); build(); };
}

// Data, languages, the address, numbers, and how elements are made.
const data = JSON.parse(document.getElementById("data").textContent);
const sets = data.sets ?? [];

// --- Languages: both stand in the page, and a style shows one. ---
const listeners = [];
let language = "en";
const t = (name, values = {}) => {
  const pattern = data.words[language][name];
  if (pattern === undefined) throw new Error(`no words for ${name}`);
  return pattern.replace(/\{ \$([a-z]+) \}/g, (_, key) => values[key]).replaceAll(" %", "\u00a0%");
};
const inLanguage = (pair) => pair[language === "zh" ? 1 : 0];

function speak(chosen) {
  language = chosen;
  document.documentElement.lang = chosen;
  document.title = document.querySelector("title").dataset[chosen];
  for (const name of ["aria-label", "title", "placeholder"]) {
    for (const element of document.querySelectorAll(`[data-${name}-${chosen}]`)) {
      element.setAttribute(name, element.getAttribute(`data-${name}-${chosen}`));
    }
  }
  for (const button of document.querySelectorAll("[data-language]")) {
    button.setAttribute("aria-pressed", String(button.dataset.language === chosen));
  }
  for (const listener of listeners) listener();
}

function firstLanguage() {
  const asked = address.query.get("lang") ?? data.opens;
  if (asked === "en" || asked === "zh") return asked;
  return (navigator.language ?? "en").toLowerCase().startsWith("zh") ? "zh" : "en";
}

// --- The address: #place?key=value&..., so that what is seen can be sent. ---
const address = { place: "", query: new URLSearchParams() };
function readAddress() {
  const [place, query] = location.hash.slice(1).split("?");
  address.place = decodeURIComponent(place ?? "");
  if (query !== undefined) for (const [key, value] of new URLSearchParams(query)) address.query.set(key, value);
}
function remember(changes, place = address.place) {
  address.place = place;
  for (const [key, value] of Object.entries(changes)) {
    if (value === "" || value === null || value === undefined) address.query.delete(key);
    else address.query.set(key, value);
  }
  const query = address.query.toString();
  history.replaceState(null, "", `#${encodeURI(place)}${query ? "?" + query : ""}`);
}

// --- Elements ---
function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && !name.includes("-") && name !== "list") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}
function select(label, options, chosen, choose) {
  const control = h("select", { onchange: (event) => choose(event.target.value) },
    options.map(([value, words]) => h("option", { value, selected: value === chosen }, words)));
  return h("label", {}, label, control);
}
function check(label, checked, choose) {
  return h("label", {}, h("input", { type: "checkbox", checked, onchange: (event) => choose(event.target.checked) }), label);
}
// A link from a head of a table to its entry in the glossary.
const explained = (entry, label) => h("a", { className: "means", href: `#${encodeURIComponent(entry)}`, "aria-label": t("ui-means", { label }) }, "?");

// --- Numbers ---
const MINUS = "\u2212";
function digits(value, count = 4) {
  if (value === null || value === undefined || Number.isNaN(value)) return "";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : MINUS + "∞";
  const size = Math.abs(value);
  let text;
  if (value === 0) text = "0";
  else if (Number.isInteger(value) && size < 1e6) text = value.toLocaleString("en-US");
  else if (size >= 1e6 || size < 1e-4) text = value.toExponential(Math.max(0, count - 2)).replace(/\.?0+e/, "e").replace("e+", "e");
  else text = (size >= 1000 ? (number) => number.toLocaleString("en-US") : String)(Number(value.toPrecision(count)));
  return text.replaceAll("-", MINUS);
}
const shown = (value, column) => (value === null || value === undefined ? "" : column.share ? `${digits(100 * value)}\u00a0%` : digits(value));
const unitOf = (column) => inLanguage(column.unit);
const axisOf = (column) => (unitOf(column) ? t("ui-with-unit", { label: inLanguage(column.label), unit: unitOf(column) }) : inLanguage(column.label));
const sentences = (parts) => parts.filter(Boolean).join(language === "zh" ? "" : " ");
const capital = (text) => (/^[a-z]/.test(text) ? text.charAt(0).toUpperCase() + text.slice(1) : text); // α is no word
const finite = (values) => values.filter((value) => value !== null && Number.isFinite(value));

// --- Rows of a set ---
const HEAD = /\.head_(\d+)$/;
const seriesOf = (set, row) => (set.rows.part[row] === "whole" ? set.rows.matrix[row] : `${set.rows.matrix[row]} ${set.rows.part[row]}`);
function rowsOf(set, which = "whole") {
  const found = [];
  for (let row = 0; row < set.rows.layer.length; row += 1) {
    const part = set.rows.part[row];
    const rows = part === "whole" ? "whole" : HEAD.test(part) ? "heads" : "parts";
    if (set.rows.layer[row] !== null && rows === which) found.push(row);
  }
  return found;
}
const unique = (values) => [...new Set(values)];
const setNamed = (name) => sets.find((set) => set.id === name) ?? sets[0];
const placeOf = (set, row) => `L${set.rows.layer[row]}/${set.rows.matrix[row]}${set.rows.part[row] === "whole" ? "" : "." + set.rows.part[row]}`;
const nameOf = (set, row) => t("ui-layer-matrix", { layer: set.rows.layer[row], matrix: seriesOf(set, row) });
// Measures worth a first look, the rest after them.
const FIRST = ["difference", "chosen", "relative_frobenius", "stable_rank", "effective_rank", "spectral_norm", "alpha", "mp_spikes",
  "energy_rank_90", "share_of_rank_in_use", "intruders", "std", "excess_kurtosis", "top12_share_of_singular_value_sum"];
function measuresOf(set) {
  const names = Object.keys(set.values).filter((name) => varies(set, name));
  return [...FIRST.filter((name) => names.includes(name)), ...names.filter((name) => !FIRST.includes(name) && name !== "rows" && name !== "cols")];
}
// A measure of one value only (the top 12 of an adapter of rank 12) tells nothing and is not offered.
const varying = new Map();
function varies(set, name) {
  const key = `${set.id} ${name}`;
  if (!varying.has(key)) varying.set(key, new Set(finite(set.values[name])).size > 1);
  return varying.get(key);
}

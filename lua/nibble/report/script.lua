-- report.script: what the page does: sorting, filtering, the choice of light, and a state that lives in the address
-- (#sort=ppl&filter=w4), so that a link shows what its sender saw. The drawing and the drill-down are script_detail.
-- Texts go into the page as text nodes only.
local head = [==[
"use strict";
(() => {
document.documentElement.classList.add("js");
const data = JSON.parse(document.getElementById("data").textContent);
data.models = data.models.map((m) => "like" in m ? data.models[m.like] : m);
const place = new Map(data.fields.map((f, i) => [f, i]));
const words = new Set(["status", "recipe", "set", "model", "text", "scheme", "job", "hash", "source", "worst", "host", "processor",
  "version", "dbs", "schemes", "sizes", "errors", "layers"]);
// A field of a row: its text or number; null for none. Rows count from 1, as in the table's ids.
const get = (row, field) => {
  const v = data.rows[row - 1][place.get(field)];
  return words.has(field) ? (v ? data.texts[v - 1] : "") : v;
};
const $ = (selector, from = document) => from.querySelector(selector);
const $$ = (selector, from = document) => [...from.querySelectorAll(selector)];
const el = (name, attributes = {}, ...inside) => {
  const e = document.createElement(name);
  for (const [k, v] of Object.entries(attributes)) if (v !== null && v !== false) e.setAttribute(k, v);
  e.append(...inside);
  return e;
};
]==]

local behaviour = [==[
// ---- the state, in the address
const state = { sort: "", dir: "asc", filter: "", model: "", scheme: "", x: "bits", y: "ppl", open: "", theme: "" };
const initial = { ...state };
const readAddress = () => {
  Object.assign(state, initial);
  for (const [k, v] of new URLSearchParams(location.hash.slice(1))) if (Object.keys(initial).includes(k)) state[k] = v;
};
const writeAddress = () => {
  const p = new URLSearchParams();
  for (const k in state) if (state[k] !== initial[k]) p.set(k, state[k]);
  const text = p.toString();
  try {
    history.replaceState(null, "", text ? "#" + text : location.pathname + location.search);
  } catch (e) { /* a page without an address */ }
};

// ---- light
const root = document.documentElement;
const theme = el("button", { id: "theme", type: "button" });
const themes = ["", "light", "dark"];
const showTheme = (choice) => {
  if (choice) root.dataset.theme = choice; else delete root.dataset.theme;
  theme.textContent = "theme: " + (choice || "auto");
};
const stored = () => { try { return localStorage.getItem("nibble-theme"); } catch (e) { return ""; } };
theme.onclick = () => {
  const next = themes[(themes.indexOf(root.dataset.theme || "") + 1) % 3];
  try { localStorage.setItem("nibble-theme", next); } catch (e) { /* not kept */ }
  state.theme = "";
  showTheme(next);
  writeAddress();
};
$("header").append(theme);

// ---- the table
const collate = new Intl.Collator("en", { numeric: true }).compare;
const body = $("#table tbody");
const lines = data.rows.map((_, i) => document.getElementById("r" + (i + 1)));
const heads = $$("#table thead th");
const details = new Map();
const sorted = () => {
  const order = lines.map((_, i) => i + 1);
  if (!place.has(state.sort)) return order;
  const field = state.sort, sign = state.dir === "desc" ? -1 : 1;
  const text = words.has(field);
  return order.sort((a, b) => {
    const x = get(a, field), y = get(b, field);
    const none = (v) => v === null || v === "";
    if (none(x) || none(y)) return none(x) - none(y) || a - b; // none is last in both directions
    return sign * (text ? collate(x, y) : x - y) || a - b;
  });
};
// Names picked for a field: in the address apart by commas, each of them encoded.
const chosen = (field) => (state[field] ? state[field].split(",") : []);
const shown = (row) => {
  if (["model", "scheme"].some((field) => state[field] && !chosen(field).includes(encodeURIComponent(get(row, field))))) return false;
  if (!state.filter.trim()) return true;
  const hay = ["recipe", "set", "model", "text", "status", "scheme"].map((f) => get(row, f)).join(" ").toLowerCase();
  return state.filter.toLowerCase().trim().split(/\s+/).every((word) => hay.includes(word));
};
const count = el("span", { class: "count", role: "status" });
const order = () => {
  for (const th of heads) {
    if (th.dataset.field === state.sort) th.setAttribute("aria-sort", state.dir === "desc" ? "descending" : "ascending");
    else th.removeAttribute("aria-sort");
  }
  const rows = sorted();
  body.append(...rows.flatMap((r) => details.has(r) ? [lines[r - 1], details.get(r)] : [lines[r - 1]]));
};
const filter = () => {
  let n = 0;
  const off = new Set();
  lines.forEach((line, i) => {
    const yes = shown(i + 1);
    line.hidden = !yes;
    if (details.has(i + 1)) details.get(i + 1).hidden = !yes;
    if (yes) n++; else off.add(String(i + 1));
  });
  for (const mark of $$(".p")) mark.classList.toggle("off", off.has(mark.dataset.i));
  count.textContent = n === lines.length ? n + " results" : n + " of " + lines.length + " results";
};
for (const th of heads) {
  const button = el("button", { type: "button" }, ...th.childNodes);
  button.onclick = () => {
    const field = th.dataset.field;
    // Falling first where more is better.
    const first = field === "top1" || field === "sqnr" ? "desc" : "asc";
    state.dir = state.sort === field ? (state.dir === "asc" ? "desc" : "asc") : first;
    state.sort = field;
    order();
    writeAddress();
  };
  th.append(button);
}
lines.forEach((line, i) => {
  const name = $(".r", line);
  const button = el("button", { type: "button", class: "r", title: name.title, "aria-expanded": "false" }, ...name.childNodes);
  button.onclick = () => { toggle(i + 1); writeAddress(); };
  name.replaceWith(button);
});

// ---- filters
const box = el("input", { type: "search", placeholder: "filter: recipe, model, text, status", "aria-label": "Filter the results" });
box.oninput = () => { state.filter = box.value; filter(); writeAddress(); };
const chips = (field, label) => {
  const values = [...new Set(data.rows.map((_, i) => get(i + 1, field)))].filter((v) => v && v !== "–");
  if (values.length < 2) return "";
  values.sort((a, b) => (b === "unquantized") - (a === "unquantized") || collate(a, b));
  const set = el("fieldset", { class: "chips" }, el("legend", {}, label));
  for (const v of values) {
    const chip = el("button", { type: "button", class: "chip", title: v, "data-chip": field }, v);
    chip.onclick = () => {
      const now = chosen(field), key = encodeURIComponent(v);
      state[field] = (now.includes(key) ? now.filter((k) => k !== key) : [...now, key]).join(",");
      showChips();
      filter();
      writeAddress();
    };
    set.append(chip);
  }
  return set;
};
const showChips = () => {
  for (const chip of $$("[data-chip]")) {
    chip.setAttribute("aria-pressed", String(chosen(chip.dataset.chip).includes(encodeURIComponent(chip.title))));
  }
};
if (lines.length) $(".tools").append(box, chips("model", "model"), chips("scheme", "scheme"), count);

// ---- pictures answer to the table, and the table to them
for (const pick of $$(".pick")) {
  pick.onchange = () => { if (pick.checked) { state[pick.name] = pick.id.slice(2); writeAddress(); } };
}
$("main").addEventListener("click", (e) => {
  const mark = e.target.closest && e.target.closest(".p");
  if (!mark) return;
  open(Number(mark.dataset.i));
  lines[mark.dataset.i - 1].scrollIntoView({ block: "center" });
  writeAddress();
});
body.addEventListener("pointerover", (e) => {
  const line = e.target.closest("tr");
  for (const mark of $$(".p.hot")) mark.classList.remove("hot");
  if (line && line.id) for (const mark of $$('.p[data-i="' + line.id.slice(1) + '"]')) mark.classList.add("hot");
});
body.addEventListener("pointerleave", () => { for (const mark of $$(".p.hot")) mark.classList.remove("hot"); });

const openRows = () => [...details.keys()].sort((a, b) => a - b).map((r) => "r" + r).join(",");
const close = (row) => {
  details.get(row).remove();
  details.delete(row);
  $("button.r", lines[row - 1]).setAttribute("aria-expanded", "false");
  state.open = openRows();
};
const open = (row) => {
  if (details.has(row) || !lines[row - 1]) return;
  const line = el("tr", { class: "detail" }, el("td", { colspan: heads.length }, card(row)));
  line.hidden = lines[row - 1].hidden;
  details.set(row, line);
  lines[row - 1].after(line);
  $("button.r", lines[row - 1]).setAttribute("aria-expanded", "true");
  state.open = openRows();
};
const toggle = (row) => (details.has(row) ? close(row) : open(row));

const show = () => {
  readAddress();
  showTheme([state.theme, stored()].find((t) => t && themes.includes(t)) || "");
  box.value = state.filter;
  for (const name of ["x", "y"]) {
    const pick = document.getElementById(name + "-" + state[name]);
    if (pick) pick.checked = true;
  }
  const wanted = new Set(state.open.split(",").map((r) => Number(r.slice(1))).filter((r) => r >= 1 && r <= lines.length));
  for (const row of [...details.keys()]) if (!wanted.has(row)) close(row);
  for (const row of wanted) open(row);
  showChips();
  order();
  filter();
};
window.addEventListener("hashchange", show);
show();
})();]==]

return head .. require "nibble.report.script_detail" .. behaviour

-- report.script_detail: one recipe in full (what it is, where and how it ran, its modules) and the lines of its error
-- by layer, drawn into the picture that the page came with. Part of report.script, inside its function.
return [==[
// ---- figures of modules
const modelOf = (row) => data.models[get(row, "modelIndex")];
const split = (row, field) => { const t = get(row, field); return t ? t.split(",") : []; };
const decibels = (t) => t === "i" ? Infinity : t === "" || t === undefined ? null : Number(t) / data.scale;
const bytesText = (n) => {
  let i = 0;
  while (n >= 1024 && i < 5) { n /= 1024; i++; }
  return (i === 0 || n >= 99.95 ? n.toFixed(0) : n.toFixed(1)) + " " + ["B", "KiB", "MiB", "GiB", "TiB", "PiB"][i];
};
const secondsText = (s) => s < 9.95 ? s.toFixed(1) + "s" : s < 60 ? Math.round(s) + "s"
  : Math.floor(Math.round(s) / 60) + "m" + String(Math.round(s) % 60).padStart(2, "0") + "s";
const least = (a, b) => a === undefined || b < a ? b : a;

// [kind][column] -> dB of the worst module there; the page may have only each layer's worst.
const byLayer = (row) => {
  const m = modelOf(row), out = [];
  const finite = (v) => v !== null && v !== Infinity;
  if (!m.names) {
    out[0] = split(row, "layers").map(decibels).map((v) => finite(v) ? v : undefined);
    return out;
  }
  split(row, "dbs").forEach((t, i) => {
    const v = decibels(t), kind = m.kind[i], column = m.column[i];
    if (!finite(v) || !kind) return;
    out[kind - 1] = out[kind - 1] || [];
    out[kind - 1][column - 1] = least(out[kind - 1][column - 1], v);
  });
  return out;
};

// The first step of which four cover lo..hi, and where they begin: as the page was drawn.
const range = (lo, hi) => {
  for (let power = -1; power <= 6; power++) {
    for (const m of [1, 1.5, 2, 2.5, 3, 4, 5, 7.5]) {
      const step = m * 10 ** power, from = Math.floor(lo / step) * step;
      if (step >= 0.5 && from + 4 * step >= hi) return [from, step];
    }
  }
  return [lo, (hi - lo) / 4];
};

// Draws a row's lines into a picture of its model, and answers the pointer with the figures of a layer.
const draw = (svg, legend, row) => {
  const c = data.chart, m = modelOf(row), values = byLayer(row);
  const all = values.flat().filter((v) => v !== undefined);
  if (!all.length) return false;
  const [from, step] = range(Math.min(...all), Math.max(...all));
  const n = m.columns.length;
  const x = (i) => c.left + 10 + (n > 1 ? i / (n - 1) : 0.5) * (c.width - c.left - c.right - 20);
  const y = (v) => c.height - c.bottom - (v - from) / (4 * step) * (c.height - c.top - c.bottom);
  $$(".y", svg).forEach((t, i) => { t.textContent = String(Number((from + i * step).toPrecision(6))); });
  for (const path of $$(".line", svg)) {
    let d = "", pen = "M";
    const line = values[path.dataset.kind - 1] || [];
    for (let i = 0; i < n; i++) {
      if (line[i] !== undefined) d += pen + x(i).toFixed(1) + " " + y(line[i]).toFixed(1);
      pen = line[i] !== undefined ? "L" : "M";
    }
    path.setAttribute("d", d);
  }
  svg.setAttribute("aria-label", "Signal to quantization noise of " + get(row, "recipe") + ", by layer");
  const axis = $$(".a", svg).pop();
  const read = (i) => {
    axis.textContent = i === null ? "layer" : "layer " + m.columns[i];
    for (const item of $$("li", legend)) {
      const v = i === null ? undefined : (values[item.dataset.kind - 1] || [])[i];
      $("output", item).textContent = v === undefined ? "" : v.toFixed(1);
    }
  };
  svg.onpointermove = (e) => {
    const box = svg.getBoundingClientRect();
    const at = ((e.clientX - box.left) / box.width * c.width - c.left - 10) / (c.width - c.left - c.right - 20);
    read(Math.max(0, Math.min(n - 1, Math.round(at * (n - 1)))));
  };
  svg.onpointerleave = () => read(null);
  return true;
};

// ---- error by layer of any recipe
for (const figure of $$("figure.layers")) {
  const svg = $("svg.lines", figure), legend = $(".legend", figure), which = $(".which", figure), m = Number(figure.dataset.model);
  const choice = el("select", { "aria-label": "Recipe" });
  const seen = new Set();
  if (!data.models[m].names) continue;
  data.rows.forEach((_, i) => {
    const key = get(i + 1, "recipe") + " " + get(i + 1, "set") + " " + get(i + 1, "hash");
    if (get(i + 1, "modelIndex") !== m || !get(i + 1, "dbs") || seen.has(key)) return;
    seen.add(key);
    choice.append(el("option", { value: i + 1 }, (get(i + 1, "recipe") + " " + get(i + 1, "set")).trim()));
  });
  const first = Number(figure.dataset.row);
  choice.value = String(first);
  choice.onchange = () => draw(svg, legend, Number(choice.value));
  draw(svg, legend, first);
  which.replaceChildren(choice);
}
for (const figure of $$("figure.heats")) {
  const svg = $("svg.heat", figure), out = $(".readout", figure);
  if (!svg) continue;
  const rows = $$("g", svg), names = Number(svg.dataset.names), size = svg.viewBox.baseVal;
  const columns = data.models[figure.dataset.model].columns;
  svg.onpointermove = (e) => {
    const box = svg.getBoundingClientRect(), scale = size.width / box.width;
    const row = rows[Math.floor((e.clientY - box.top) * scale / svg.dataset.row)];
    const column = Math.floor(((e.clientX - box.left) * scale - names) / (size.width - names) * columns.length);
    if (!row || column < 0 || column >= columns.length) return;
    const i = Number(row.dataset.i), values = byLayer(i), all = values.map((kind) => kind && kind[column]).filter((v) => v !== undefined);
    if (!values.flat().length) return; // the page was too small for them
    out.textContent = get(i, "recipe") + ", layer " + columns[column] + ": "
      + (all.length ? Math.min(...all).toFixed(1) + " dB" : "not quantized");
  };
  svg.onpointerleave = () => { out.textContent = ""; };
}

// ---- one recipe in full
const moduleTable = (row, list) => {
  const m = modelOf(row);
  const [schemes, sizes, errors, dbs] = ["schemes", "sizes", "errors", "dbs"].map((field) => split(row, field));
  const head = ["module", "scheme", "SQNR, dB"].concat(sizes.length ? ["bytes"] : [], errors.length ? ["squared error"] : []);
  const table = el("table", { class: "modules" }, el("thead", {}, el("tr", {}, ...head.map((t, i) =>
    el("th", { scope: "col", class: i > 1 ? "num" : null }, t)))));
  const inside = el("tbody");
  for (const i of list) {
    const db = decibels(dbs[i]);
    const cells = [m.names[i], schemes[i] ? data.texts[schemes[i] - 1] : "–"];
    cells.push(db === null ? "–" : db === Infinity ? "exact" : db.toFixed(data.scale === 100 ? 2 : 1));
    if (sizes.length) cells.push(sizes[i] ? bytesText(Number(sizes[i])) : "–");
    if (errors.length) cells.push(errors[i] || "–");
    // A long name may break at its dots.
    const name = cells.shift().split(/(?<=\.)/).flatMap((part) => [part, el("wbr")]);
    inside.append(el("tr", {}, el("td", {}, ...name), ...cells.map((t) => el("td", {}, t))));
  }
  table.append(inside);
  return table;
};
const facts = (row) => {
  const list = el("dl");
  const fact = (name, text) => { if (text !== null && text !== "") list.append(el("dt", {}, name), el("dd", {}, String(text))); };
  const num = (field) => get(row, field);
  fact("settings", get(row, "set"));
  if (get(row, "scheme") !== "–") fact("scheme", get(row, "scheme"));
  if (num("bytesModel") && num("bytes")) {
    const times = (num("bytesModel") / num("bytes")).toFixed(2);
    fact("size", bytesText(num("bytes")) + " of " + bytesText(num("bytesModel")) + ", " + times + " times smaller");
  }
  if (num("context")) {
    fact("windows", (num("windows") ? num("windows") + " of " : "") + num("context") + " tokens"
      + (num("tokens") ? ", " + num("tokens") + " predicted" : ""));
  }
  if (num("nll") !== null) fact("loss", num("nll").toFixed(6) + " nats a token");
  if (num("against") !== null) fact("unquantized", "perplexity " + num("against").toFixed(4));
  fact("worst module", get(row, "worst"));
  const times = [["secondsRun", "quantizing"], ["secondsEval", "evaluating"]].filter(([f]) => num(f) !== null)
    .map(([f, t]) => secondsText(num(f)) + " " + t);
  if (num("seconds") !== null) fact("time", secondsText(num("seconds")) + (times.length ? ": " + times.join(", ") : ""));
  if (num("attempts") > 1) fact("attempts", num("attempts"));
  fact("machine", [get(row, "host"), get(row, "processor")].filter(Boolean).join(", "));
  fact("nibble", get(row, "version"));
  fact("recipe hash", get(row, "hash"));
  fact("job", get(row, "job"));
  return list;
};
const card = (row) => {
  const left = el("div", {}, el("h3", {}, get(row, "recipe") + " on " + get(row, "model")), facts(row));
  const message = $("td details p", lines[row - 1]);
  if (message) left.append(el("h4", {}, "It failed"), el("pre", {}, message.textContent));
  if (get(row, "source")) left.append(el("h4", {}, "The recipe"), el("pre", {}, get(row, "source")));
  const right = el("div");
  const template = $('figure.layers[data-model="' + get(row, "modelIndex") + '"]');
  if (template) {
    const svg = $("svg.lines", template).cloneNode(true), legend = $(".legend", template).cloneNode(true);
    const key = modelOf(row).names ? legend : el("p", { class: "note" }, "the worst module of each layer");
    if (draw(svg, legend, row)) right.append(el("h4", {}, "Error by layer"), svg, key);
  }
  const dbs = split(row, "dbs").map(decibels);
  const all = dbs.map((_, i) => i).filter((i) => dbs[i] !== null).sort((a, b) => dbs[a] - dbs[b] || a - b);
  if (all.length) {
    right.append(el("h4", {}, "The worst modules"), moduleTable(row, all.slice(0, 8)));
    const sizes = split(row, "sizes");
    const listed = modelOf(row).names.map((_, i) => i).filter((i) => dbs[i] !== undefined && dbs[i] !== null || sizes[i]);
    const more = el("details", {}, el("summary", {}, "all " + listed.length + " modules"));
    more.ontoggle = () => {
      if (more.open && more.children.length === 1) more.append(el("div", { class: "long" }, moduleTable(row, listed)));
    };
    right.append(more);
  }
  const parts = right.childNodes.length ? [left, right] : [left];
  return el("div", { class: "card" }, el("div", { class: "pair" }, ...parts));
};

]==]

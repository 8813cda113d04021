-- report.page: the page around tables and pictures: title, the answer in a sentence, sections, notes.
local format = require "nibble.report.format"
local layers = require "nibble.report.layers"
local scatter = require "nibble.report.scatter"
local table_ = require "nibble.report.table"
local units = require "nibble.units"

local M = {}

local html, number = format.html, format.number

-- ---- the answer ------------------------------------------------------------------------

local SENTENCES = 8

local function named(row)
  return "<strong>" .. html(row.name) .. "</strong>"
end

-- The answer for one model on one text.
local function sentence(group, several)
  local what = "<em>" .. html(group.model_name) .. "</em>" .. (several and " on " .. html(group.on) or "")
  local best, nearest = group.best, group.nearest
  if best then
    return ("%s keeps %s within 1 %% of the unquantized perplexity (%s, %s) at the fewest bits: <b>%s bits per weight</b>, %s."):format(
      named(best), what, number("ppl", best.ppl), format.percent(best.ratio - 1), number("bits", best.bits), number("bytes", best.bytes))
  elseif nearest then
    return ("No recipe keeps %s within 1 %% of the unquantized perplexity; the closest is %s at %s bits per weight (%s, %s)."):format(
      what, named(nearest), number("bits", nearest.bits), number("ppl", nearest.ppl), format.percent(nearest.ratio - 1))
  end
  local last = group.front[#group.front]
  if last then
    return ("On %s %s has the smallest perplexity, %s at %s bits per weight; the unquantized model was not evaluated."):format(
      what, named(last), number("ppl", last.ppl), number("bits", last.bits))
  end
  return ("No recipe for %s has a perplexity yet."):format(what)
end

local function answer(groups)
  if #groups == 0 then return '<p class="answer">The sweep has no results yet.</p>\n' end
  local out = {}
  for i, group in ipairs(groups) do
    if i <= SENTENCES then out[i] = "<p>" .. sentence(group, #groups > 1) .. "</p>" end
  end
  if #groups > SENTENCES then
    out[#out + 1] = ("<p>And %d more below.</p>"):format(#groups - SENTENCES)
  end
  return '<div class="answer">' .. table.concat(out, "\n") .. "</div>\n"
end

local function counted(n, one) return ("<b>%d</b> %s%s"):format(n, one, n == 1 and "" or "s") end

-- How much was swept: "12 recipes · 1 model · 1 text · 13 jobs done · 1 failed · 12m of work".
local function facts(rows)
  local seen, count = {}, { recipe = 0, model = 0, text = 0, done = 0, failed = 0 }
  local seconds, peak = 0, 0
  for _, row in ipairs(rows) do
    for _, field in ipairs { "recipe", "model", "text" } do
      local key = field .. "\0" .. (row[field] or "") .. (field == "recipe" and row.set or "")
      if not seen[key] and not (field == "recipe" and row.reference) then
        seen[key] = true
        count[field] = count[field] + 1
      end
    end
    local state = row.status == "failed" and "failed" or "done"
    count[state] = count[state] + 1
    seconds, peak = seconds + (format.finite(row.seconds) or 0), math.max(peak, format.finite(row.peak) or 0)
  end
  if #rows == 0 then return "" end
  local out = { counted(count.recipe, "recipe"), counted(count.model, "model"), counted(count.text, "text"),
    counted(count.done, "job") .. " done" }
  if count.failed > 0 then out[#out + 1] = ('<span class="bad"><b>%d</b> failed</span>'):format(count.failed) end
  if seconds > 0 then out[#out + 1] = ("<b>%s</b> of work"):format(units.seconds(seconds)) end
  if peak > 0 then out[#out + 1] = ("at most <b>%s</b> of memory"):format(units.bytes(peak)) end
  return '<ul class="facts"><li>' .. table.concat(out, "<li>") .. "</ul>\n"
end

-- ---- sections --------------------------------------------------------------------------

local function radio(name, choices)
  local out, labels = {}, {}
  for i, c in ipairs(choices) do
    out[i] = ('<input type="radio" class="pick" name="%s" id="%s-%s"%s>'):format(name, name, c[1], i == 1 and " checked" or "")
    labels[i] = ('<label for="%s-%s">%s</label>'):format(name, c[1], c[2])
  end
  return table.concat(out), '<span class="switch">' .. table.concat(labels) .. "</span>"
end

local function front_table(group)
  local out = {}
  for i, row in ipairs(group.front) do
    out[i] = ('<tr%s><th scope="row">%s<td>%s<td>%s<td>%s'):format(row == group.best and ' class="best"' or "",
      html(row.name), number("bits", row.bits), number("ppl", row.ppl),
      row.ratio and format.percent(row.ratio - 1) or "–")
  end
  return '<div class="fronts"><table><caption>The Pareto front: no recipe has both fewer bits and less perplexity</caption><thead><tr>'
    .. '<th scope="col">recipe<th scope="col" class="num">bits<th scope="col" class="num">perplexity<th scope="col" class="num">loss'
    .. "</tr></thead><tbody>\n" .. table.concat(out, "\n") .. "</tbody></table></div>"
end

local function scheme_legend(shape, names)
  local out = {}
  for i, name in ipairs(names) do out[i] = "<li>" .. scatter.key(shape[name]) .. html(name) .. "</li>" end
  return '<ul class="legend">' .. table.concat(out) .. '<li class="note">filled: on the front</li></ul>\n'
end

local function size_section(rows, groups)
  local shape, names = scatter.shapes_of(rows)
  local x, x_labels = radio("x", { { "bits", "bits per weight" }, { "bytes", "bytes" } })
  local y, y_labels = radio("y", { { "ppl", "perplexity" }, { "ratio", "ratio" }, { "kl", "KL" } })
  local out = {}
  for _, group in ipairs(groups) do
    local pictures = #group.front > 0 and scatter.svg(group, shape) or ""
    if pictures ~= "" then
      out[#out + 1] = table.concat { '<figure class="group"><figcaption><b>', html(group.model_name), "</b> on ", html(group.on),
        '</figcaption><div class="pair"><div class="pictures">', pictures, "</div>", front_table(group), "</div></figure>\n" }
    end
  end
  if #out == 0 then return "" end
  return table.concat { '<section id="size"><h2>Size against quality</h2>\n', x, y, '<div class="switches">', x_labels,
    "<span>against</span>", y_labels, "</div>\n", scheme_legend(shape, names), '<div class="groups">', table.concat(out),
    "</div></section>\n" }
end

local function heat_legend(edges)
  local out = {}
  for bin = 1, #edges - 1 do
    out[bin] = ('<li><svg class="key" viewBox="0 0 14 14" aria-hidden="true"><path class="h%d" d="M0 7h14"/></svg>%.1f</li>'):format(
      bin, edges[bin])
  end
  return '<ul class="legend bins"><li class="note">worst module of the layer, dB from</li>' .. table.concat(out) .. "</ul>"
end

local function layer_figures(m, at)
  local row = m.rows[1]
  for _, candidate in ipairs(m.rows) do
    if candidate.group.best == candidate then row = candidate end
  end
  local picture = row and layers.lines(m, row) or ""
  if picture == "" then return "" end
  local heat, edges = layers.heat(m)
  local more = #m.rows > layers.HEAT_ROWS
    and ("<p class=\"note\">The %d of %d recipes with the smallest perplexity.</p>"):format(layers.HEAT_ROWS, #m.rows) or ""
  return table.concat {
    ('<figure class="layers" data-model="%d" data-row="%d"><figcaption><b>%s</b> by <span class="which">%s</span></figcaption>')
      :format(at - 1, row.i, html(m.name), html(row.name)),
    '<div class="pair"><div class="pictures">', picture, "</div>", layers.legend(m), "</div></figure>\n",
    '<figure class="heats" data-model="', tostring(at - 1), '"><figcaption><b>', html(m.name),
    "</b>, every recipe by layer: the more ink, the more error</figcaption>", heat_legend(edges),
    '<div class="scroll" tabindex="0" role="region" aria-label="Heat map">', heat, '</div><output class="readout"></output>', more,
    "</figure>\n",
  }
end

local function layer_section(models)
  local out = {}
  for at, m in ipairs(models) do out[#out + 1] = layer_figures(m, at) end
  local all = table.concat(out)
  return all ~= "" and '<section id="layers"><h2>Error by layer</h2>\n' .. all .. "</section>\n" or ""
end

local function change_section(comparison)
  if not comparison then return "" end
  local c, parts = comparison.counts, {}
  for _, kind in ipairs { { "worse", "worse" }, { "mixed", "traded" }, { "better", "better" }, { "new", "new" },
                          { "vanished", "vanished" }, { "same", "unchanged" } } do
    if c[kind[1]] > 0 then
      parts[#parts + 1] = ('<li class="%s"><b>%d</b> %s'):format(kind[1], c[kind[1]], kind[2])
    end
  end
  return table.concat { '<section id="changes"><h2>Against ', html(comparison.name), "</h2>\n<ul class=\"facts\">", table.concat(parts),
    "</ul>\n", table_.changes(comparison), "</section>\n" }
end

-- ---- the page --------------------------------------------------------------------------

-- Nothing is fetched, whatever a name in the results may hold.
local POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; "
  .. "base-uri 'none'; form-action 'none'"

local NOTES = [[
<p>Bits per weight count the whole checkpoint: scales, zero-points and what stayed as it was. Ratio: perplexity over that of the
unquantized model on the same text. KL: mean KL divergence from it, in nats a token. Top-1: the share of tokens where both find the
same token the likeliest. SQNR: signal to quantization noise of a module's weights, in decibels; 6 dB are one bit.</p>]]

--- html(o) -> the page in two pieces; between them belong left_out's text and the data (JSON, see format.data).
-- o: {title=, rows=, groups=, models=, comparison=|nil}: of report.rows, report.layers, report.compare.
function M.html(o)
  local versions, seen = {}, {}
  for _, row in ipairs(o.rows) do
    if row.version and not seen[row.version] then
      seen[row.version] = true
      versions[#versions + 1] = row.version
    end
  end
  table.sort(versions)
  local title = html(o.title)
  local before = table.concat {
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n',
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n<meta name="color-scheme" content="light dark">\n',
    '<meta http-equiv="Content-Security-Policy" content="', POLICY, '">\n<link rel="icon" href="data:,">\n<title>', title,
    "</title>\n<style>\n", require "nibble.report.style", "</style></head>\n<body>\n", scatter.symbols(),
    '<header><h1>', title, "</h1>\n", answer(o.groups), facts(o.rows), "</header>\n<main>\n", change_section(o.comparison),
    size_section(o.rows, o.groups), '<section id="results"', #o.rows == 0 and " hidden" or "", "><h2>Results</h2>\n",
    '<div class="tools"></div>\n', table_.results(o.rows), "</section>\n", layer_section(o.models), "</main>\n<footer>\n", NOTES,
    #versions > 0 and "\n<p>Measured by nibble " .. html(table.concat(versions, ", ")) .. ".</p>" or "",
  }
  local after = table.concat { "</script>\n<script>\n", require "nibble.report.script", "</script>\n</body></html>\n" }
  return before, after
end

--- left_out(what) -> the end of the notes, with what the page leaves out (false: nothing), up to where the data begin.
function M.left_out(what)
  return (what and ("\n<p>To keep this page small, it leaves out %s.</p>"):format(what) or "")
    .. '\n</footer>\n<script type="application/json" id="data">'
end

return M

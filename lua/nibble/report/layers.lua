-- report.layers: where in the model the error is: which layer and which projection a module is, lines of one recipe over
-- the layers, and a heat map of recipes by layers. A layer's figure is that of its worst module of the kind.
local format = require "nibble.report.format"
local text = require "nibble.text"

local M = {}

--- The picture's measures; the page's script draws other recipes into the same one.
M.chart = { width = 560, height = 300, left = 46, right = 14, top = 30, bottom = 40 }

-- "model.layers.12.mlp.experts.3.w1" -> "model.layers", 12, "mlp.experts.*.w1"; nil for a module outside the layers.
local function place(name)
  local stack, layer, rest = name:match "^(.-)%.(%d+)%.(.+)$"
  if not stack then return nil end
  rest = ("." .. rest .. "."):gsub("%.%d+%f[.]", ".*"):sub(2, -2)
  return stack, layer, rest
end

-- The kinds' last parts where these differ, else the whole: "down_proj", or "mlp.experts.*.down_proj".
local function short_kinds(kinds)
  local count = {}
  for _, kind in ipairs(kinds) do
    local leaf = text.leaf(kind)
    count[leaf] = (count[leaf] or 0) + 1
  end
  local out = {}
  for i, kind in ipairs(kinds) do
    local leaf = text.leaf(kind)
    out[i] = count[leaf] == 1 and leaf or kind
  end
  return out
end

local function number_of(list, index, key)
  if not index[key] then
    list[#list + 1] = key
    index[key] = #list
  end
  return index[key]
end

--- models(rows) -> array of {name=, model=, rows= (one for each way to quantize it, by rising perplexity), names= (its modules
-- in natural order), index= {[name] = place}, kind= {…} and column= {…} by module (0: outside the layers), kinds=, columns=}
function M.models(rows)
  local models = {}
  for _, row in ipairs(rows) do
    local m = models[row.model]
    if not m then
      m = { name = row.model_name, model = row.model, rows = {}, names = {}, index = {}, kind = {}, column = {} }
      models[row.model] = m
      models[#models + 1] = m
    end
    row.model_index = #models
    local key = table.concat({ row.recipe, row.recipe_hash or "", row.set }, "\0")
    if not row.reference and #row.modules > 0 and not m.rows[key] then
      m.rows[key] = true
      m.rows[#m.rows + 1] = row
    end
    for _, module in ipairs(row.modules) do
      local name = type(module) == "table" and module.name
      if type(name) == "string" and not m.index[name] then
        m.index[name] = 0
        m.names[#m.names + 1] = name
      end
    end
  end
  for _, m in ipairs(models) do
    local measured = {} -- norms and what stays as it is have no error to show
    for _, row in ipairs(m.rows) do
      for _, module in ipairs(row.modules) do
        if type(module) == "table" and format.finite(module.sqnr_db) and m.index[module.name] then measured[module.name] = true end
      end
    end
    m.names = text.natural_sort(m.names)
    local kinds, columns, kind_index, column_index, stacks, many = {}, {}, {}, {}, {}, false
    for i, name in ipairs(m.names) do
      m.index[name] = i
      local stack, layer, kind
      if measured[name] then stack, layer, kind = place(name) end
      if stack then
        if stacks[1] and not stacks[stack] then many = true end
        stacks[stack], stacks[1] = true, true
        m.kind[i] = number_of(kinds, kind_index, kind)
        m.column[i] = number_of(columns, column_index, stack .. "\0" .. layer)
      else
        m.kind[i], m.column[i] = 0, 0
      end
    end
    for i, column in ipairs(columns) do
      columns[i] = format.clean(many and (column:gsub("%z", ".")) or column:match "%z(.*)")
    end
    m.kinds, m.columns = short_kinds(kinds), columns
    for i, kind in ipairs(m.kinds) do m.kinds[i] = format.clean(kind, 80) end
  end
  return models
end

--- by_layer(m, row) -> {[kind] = {[column] = dB}}, {[column] = dB of the worst kind}: finite figures only.
function M.by_layer(m, row)
  local by_kind, worst = {}, {}
  for _, module in ipairs(row.modules) do
    local at = type(module) == "table" and m.index[module.name]
    local kind, column, db = m.kind[at], m.column[at], at and format.finite(module.sqnr_db)
    if kind and kind > 0 and db then
      by_kind[kind] = by_kind[kind] or {}
      by_kind[kind][column] = math.min(by_kind[kind][column] or math.huge, db)
      worst[column] = math.min(worst[column] or math.huge, db)
    end
  end
  return by_kind, worst
end

-- The first step of which four cover lo..hi, and where they begin. The page's script does the same.
local LEAST_STEP = 0.5 -- dB: less is noise
local function range(lo, hi)
  for power = -1, 6 do
    for _, m in ipairs { 1, 1.5, 2, 2.5, 3, 4, 5, 7.5 } do
      local step = m * 10 ^ power
      local from = math.floor(lo / step) * step
      if step >= LEAST_STEP and from + 4 * step >= hi then return from, step end
    end
  end
  return lo, (hi - lo) / 4
end

-- ---- lines -------------------------------------------------------------------------------

local function x_of(m, column)
  local c = M.chart
  return c.left + 10 + (#m.columns > 1 and (column - 1) / (#m.columns - 1) or 0.5) * (c.width - c.left - c.right - 20)
end

local function line(m, values, from, step)
  local c, d, pen = M.chart, {}, "M"
  for column = 1, #m.columns do
    local v = values[column]
    if v then
      d[#d + 1] = ("%s%.1f %.1f"):format(pen, x_of(m, column), c.height - c.bottom - (v - from) / (4 * step)
        * (c.height - c.top - c.bottom))
    end
    pen = v and "L" or "M"
  end
  return table.concat(d)
end

--- lines(m, row) -> the picture of one recipe, a line for each kind of projection; "" without layers.
function M.lines(m, row)
  if #m.columns == 0 then return "" end
  local by_kind = M.by_layer(m, row)
  local lo, hi = math.huge, -math.huge
  for _, values in pairs(by_kind) do
    for _, v in pairs(values) do lo, hi = math.min(lo, v), math.max(hi, v) end
  end
  if lo > hi then return "" end
  local c, out = M.chart, {}
  local from, step = range(lo, hi)
  for i = 0, 4 do
    local y = c.height - c.bottom - i / 4 * (c.height - c.top - c.bottom)
    out[#out + 1] = ('<path class="grid" d="M%d %.1fH%d"/><text class="t e y" x="%d" y="%.1f">%.6g</text>'):format(c.left, y,
      c.width - c.right, c.left - 8, y + 4, from + i * step)
  end
  local every = math.ceil(#m.columns / 12)
  for column = 1, #m.columns, every do
    out[#out + 1] = ('<text class="t m" x="%.1f" y="%d">%s</text>'):format(x_of(m, column), c.height - c.bottom + 18,
      format.html(m.columns[column]:match "[^.]*$"))
  end
  for kind, name in ipairs(m.kinds) do
    out[#out + 1] = ('<path class="line k%d" data-kind="%d" d="%s"><title>%s</title></path>'):format((kind - 1) % 8 + 1, kind,
      by_kind[kind] and line(m, by_kind[kind], from, step) or "", format.html(name))
  end
  return ('<svg class="lines%s" viewBox="0 0 %d %d" role="img" aria-label="Signal to quantization noise of %s, by layer">'):format(
    #m.columns <= 40 and " dots" or "", c.width, c.height, format.html(row.recipe)) .. table.concat(out)
    .. ('<text class="a" x="2" y="14">SQNR, dB</text><text class="a e" x="%d" y="%d">layer</text></svg>\n'):format(
      c.width - c.right, c.height - 4)
end

--- legend(m) -> which line is which kind.
function M.legend(m)
  local out = {}
  for kind, name in ipairs(m.kinds) do
    out[kind] = ('<li data-kind="%d"><svg class="swatch" viewBox="0 0 30 12" aria-hidden="true"><path class="line k%d" '
      .. 'd="M2 6L15 6L28 6"/></svg>%s<output></output></li>'):format(kind, (kind - 1) % 8 + 1, format.html(name))
  end
  return '<ul class="legend kinds">' .. table.concat(out) .. "</ul>\n"
end

-- ---- the heat map ------------------------------------------------------------------------

M.HEAT_ROWS = 60 -- a page of them; more is no picture any more
local BINS, ROW, NAMES, HEAT_WIDTH = 7, 20, 190, 1040

-- Cells of one bin as strokes: neighbours of a row join into one.
local function strokes(worst, columns, cell, y, bin_of)
  local d = {}
  local column = 1
  while column <= columns do
    local bin = worst[column] and bin_of(worst[column])
    local last = column
    while bin and last < columns and worst[last + 1] and bin_of(worst[last + 1]) == bin do last = last + 1 end
    if bin then
      d[bin] = (d[bin] or "") .. ("M%.2f %.1fh%.2f"):format(NAMES + (column - 1) * cell, y, (last - column + 1) * cell)
    end
    column = last + 1
  end
  local out = {}
  for bin = 1, BINS do
    if d[bin] then out[#out + 1] = ('<path class="h%d" d="%s"/>'):format(bin, d[bin]) end
  end
  return table.concat(out)
end

--- heat(m) -> the picture, {low edge of each bin …}: a row for each recipe, a cell for each layer's worst module.
-- "" when there is nothing to draw. At most HEAT_ROWS rows, those of the smallest perplexity.
function M.heat(m)
  local rows, lo, hi = {}, math.huge, -math.huge
  for i = 1, math.min(#m.rows, M.HEAT_ROWS) do
    local _, worst = M.by_layer(m, m.rows[i])
    rows[i] = { row = m.rows[i], worst = worst }
    for _, v in pairs(worst) do lo, hi = math.min(lo, v), math.max(hi, v) end
  end
  if lo > hi then return "" end
  local width = (hi - lo) / BINS
  local function bin_of(v) return width > 0 and math.max(1, math.min(BINS, math.floor((v - lo) / width) + 1)) or BINS end
  local cell, out = (HEAT_WIDTH - NAMES) / #m.columns, {}
  for i, r in ipairs(rows) do
    local y, name = (i - 0.5) * ROW, r.row.name
    local least, where = math.huge, nil
    for column = 1, #m.columns do
      if r.worst[column] and r.worst[column] < least then least, where = r.worst[column], column end
    end
    out[#out + 1] = ('<g data-i="%d"><title>%s</title><text class="n" x="%d" y="%.0f">%s</text>%s</g>'):format(r.row.i,
      format.html(where and ("%s\nworst layer %s: %.1f dB"):format(name, m.columns[where], least) or name), NAMES - 8, y + 4,
      format.html(format.short(name, 26)),
      strokes(r.worst, #m.columns, cell, y, bin_of))
  end
  local every, height = math.ceil(#m.columns / 32), #rows * ROW
  for column = 1, #m.columns, every do
    out[#out + 1] = ('<text class="t m" x="%.1f" y="%d">%s</text>'):format(NAMES + (column - 0.5) * cell, height + 16,
      format.html(m.columns[column]:match "[^.]*$"))
  end
  local edges = {}
  for bin = 1, BINS do edges[bin] = lo + (bin - 1) * width end
  edges[BINS + 1] = hi
  return ('<svg class="heat" viewBox="0 0 %d %d" data-names="%d" data-row="%d" role="img" aria-label="Worst signal to noise of '
    .. 'each layer, %d recipes by %d layers">'):format(HEAT_WIDTH, height + 22, NAMES, ROW, #rows, #m.columns)
    .. table.concat(out) .. "</svg>\n", edges
end

return M

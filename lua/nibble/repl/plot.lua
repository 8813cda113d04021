-- plot: what a person wants to see of weights in a terminal: histograms, heat maps, errors by group, scales, curves.
-- Each verb gives a picture that prints itself, in the colours that the terminal has.
local ffi = require "ffi"
local nffi = require "nibble.ffi"
local show = require "nibble.show"
local tensor = require "nibble.tensor"
local terminal = require "nibble.terminal"
local text = require "nibble.text"
local draw = require "nibble.repl.draw"
local C = nffi.C

local M = {}

local floor, max, min = math.floor, math.max, math.min

-- ---- pictures ------------------------------------------------------------------------------------

local Picture = { __tostring = function(p) return table.concat(p, "\n") end }

local function picture(lines) return setmetatable(lines, Picture) end

-- Columns for a picture beside labels of about ten.
local function room(options) return options.width or max(8, min(96, (terminal.width() or 80) - 12)) end

local function checked(verb, options, known)
  options = options or {}
  if type(options) ~= "table" then error(("%s: expected options, found %s"):format(verb, type(options)), 4) end
  for key, value in pairs(options) do
    local found
    for _, name in ipairs(known) do found = found or name == key end
    if not found then error(("%s has no option %q%s"):format(verb, tostring(key), text.did_you_mean(tostring(key), known)), 4) end
    local size = key == "bins" or key == "width" or key == "height" or key == "rows" or key == "columns"
    if size and not (type(value) == "number" and value >= 1 and value <= 1000 and value % 1 == 0) then
      error(("%s: %s is a whole number of 1 to 1000, found %s"):format(verb, key, tostring(value)), 4)
    end
    if (key == "lo" or key == "hi") and type(value) ~= "number" then
      error(("%s: %s is a number, found %s"):format(verb, key, type(value)), 4)
    end
  end
  return options
end

local function is_tensor(x) return ffi.istype(tensor.type, x) end
local function is_quantized(x) return type(x) == "table" and x.codes ~= nil and x.dequantize ~= nil end

-- A tensor: itself, a quantized weight dequantized, a module's weight, an array of numbers.
local function values_of(verb, x)
  if is_quantized(x) then x = x:dequantize() end
  if is_tensor(x) then return x end
  if type(x) == "table" and x.checkpoint and x.name then return x.weight end
  if type(x) == "table" and type(x[1]) == "number" then return tensor.new("f64", { #x }, x) end
  error(("%s: expected a tensor, a quantized weight, a module or an array of numbers, found %s"):format(verb,
    tensor.found(x)), 4)
end

-- ---- histograms ----------------------------------------------------------------------------------

-- Of a tensor larger than this, rows spread over it stand for it (≈).
local SAMPLE, PIECES = 32 * 1024 * 1024, 64

local function pieces_of(t)
  if t:numel() <= SAMPLE or t.ndim < 1 or t:size(1) < PIECES then return { t }, "" end
  local rows = t:size(1)
  local each, out = max(1, floor(SAMPLE / (t:numel() / rows) / PIECES)), {}
  for i = 0, PIECES - 1 do
    local first = floor(i * (rows - each) / (PIECES - 1)) + 1
    out[i + 1] = t:rows(first, first + each - 1)
  end
  return out, "≈"
end

local function extent(pieces)
  local lo, hi, odd = math.huge, -math.huge, 0
  for _, piece in ipairs(pieces) do
    local s = piece:stats()
    odd = odd + s.nan + s.inf
    if s.numel > s.nan + s.inf then lo, hi = min(lo, s.min), max(hi, s.max) end
  end
  return lo, hi, odd
end

local function counted(pieces, bins, lo, hi)
  local sums, inside = {}, 0
  for i = 1, bins do sums[i] = 0 end
  for _, piece in ipairs(pieces) do
    nffi.stop_check()
    for i, n in ipairs(piece:hist(bins, lo, hi)) do sums[i], inside = sums[i] + n, inside + n end
  end
  return sums, inside
end

local function shares_of(counts, log)
  local top, out = 0, {}
  for _, n in ipairs(counts) do top = max(top, n) end
  for i, n in ipairs(counts) do
    if log then out[i] = n > 0 and math.log(1 + n) / math.log(1 + top) or 0 else out[i] = top > 0 and n / top or 0 end
  end
  return out, top
end

local function tall(counts, shares, top, lo, hi, options)
  local lines, indent = draw.beside({ ("%d"):format(top) }, draw.bars(shares, options.height or 8))
  local left, right = ("%.3g"):format(lo), ("%.3g"):format(hi)
  local middle = lo < 0 and hi > 0 and floor(-lo / (hi - lo) * #counts) or nil
  local axis = left .. (" "):rep(max(1, #counts - #left - #right)) .. right
  if middle and middle > #left and middle < #counts - #right - 1 then
    axis = axis:sub(1, middle) .. "0" .. axis:sub(middle + 2)
  end
  lines[#lines + 1] = (" "):rep(indent) .. axis
  return lines
end

local function flat(counts, shares, lo, hi, options)
  local rows, step = {}, (hi - lo) / #counts
  for i, n in ipairs(counts) do
    rows[i] = { ("%.3g"):format(lo + (i - 1) * step), ("%d"):format(n), draw.bar(shares[i], options.width or max(8, room {} - 12)) }
  end
  local lines = {}
  for line in show.columns(rows, "rrl"):gmatch "[^\n]+" do lines[#lines + 1] = line end
  return lines
end

--- hist(x [, {bins =, log =, flat =, lo =, hi =, width =, height =}]) -> picture: how often which values are
-- x: a tensor, a quantized weight (dequantized), a module, an array of numbers. log: counts by their logarithm, so that
-- few outliers are seen; flat: one line a bin with its count. Values of -absmax..absmax (0..max where none is negative)
-- unless lo and hi say otherwise. A tensor of more than 32 Mi values is judged by rows spread over it, and says ≈.
function M.hist(x, options)
  options = checked("hist", options, { "bins", "log", "flat", "lo", "hi", "width", "height" })
  local t = values_of("hist", x)
  local pieces, about = pieces_of(t)
  local least, most, odd = extent(pieces)
  if least > most then return picture { show.line(t) } end
  local reach = max(math.abs(least), math.abs(most))
  local lo, hi = options.lo or (least < 0 and -reach or 0), options.hi or reach
  if hi <= lo then hi = lo + (lo == 0 and 1 or math.abs(lo)) end
  local counts, inside = counted(pieces, options.bins or (options.flat and 16 or min(64, room(options))), lo, hi)
  local shares, top = shares_of(counts, options.log)
  local lines = options.flat and flat(counts, shares, lo, hi, options) or tall(counts, shares, top, lo, hi, options)
  local total = 0
  for _, piece in ipairs(pieces) do total = total + piece:numel() end
  local notes = { show.line(t) }
  if options.log then notes[#notes + 1] = "log counts" end
  if about ~= "" then notes[#notes + 1] = ("≈ %d of %d values"):format(total, t:numel()) end
  if total - inside - odd > 0 then notes[#notes + 1] = ("%d outside"):format(total - inside - odd) end
  table.insert(lines, 1, table.concat(notes, "  "))
  return picture(lines)
end

-- ---- heat maps -----------------------------------------------------------------------------------

local kinds = { absmax = "NB_CELLS_ABSMAX", rms = "NB_CELLS_RMS", mean = "NB_CELLS_MEAN" }

-- A tensor as a matrix: its last dimension are the columns.
local function matrix(t)
  if t.ndim == 2 then return t end
  local k = t.ndim > 0 and t:size(t.ndim) or 1
  return t:reshape(k > 0 and t:numel() / k or 0, k)
end

-- The grid's numbers as rows of a table, and their finite extent.
local function grid_of(cells)
  local rows, lo, hi, columns = {}, math.huge, -math.huge, cells:size(2)
  for r = 1, cells:size(1) do
    rows[r] = {}
    for c = 1, columns do
      local v = cells:get { r, c }
      rows[r][c] = v
      if v == v then lo, hi = min(lo, v), max(hi, v) end
    end
  end
  return rows, lo, hi
end

local function to_shares(rows, lo, hi, log)
  local function share(v)
    if hi <= lo then return v == v and 0.5 or v end
    if not log then return (v - lo) / (hi - lo) end
    local floor_value = lo > 0 and lo or hi * 1e-6
    return math.log(max(v, floor_value) / floor_value) / math.log(hi / floor_value)
  end
  for _, row in ipairs(rows) do
    for c, v in ipairs(row) do row[c] = v == v and share(v) or v end
  end
  return rows
end

-- Each cell `times` columns wide.
local function wider(rows, times)
  for r, row in ipairs(rows) do
    local out = {}
    for c = 1, #row * times do out[c] = row[floor((c - 1) / times) + 1] end
    rows[r] = out
  end
  return rows
end

-- A heat map of a [n,k] (less b), laid over it as a grid of at most rows × columns cells.
local function map(what, a, b, kind, options)
  local n, k = a:size(1), a:size(2)
  if n == 0 or k == 0 then return picture { what .. ": no values" } end
  local colours = terminal.colours(1)
  local high = min(n, options.rows or (colours >= 256 and 32 or 16))
  local wide = min(k, options.columns or room(options))
  local stretch = max(1, min(6, floor(room(options) / wide)))
  local cells = tensor.new("f64", { high, wide })
  nffi.must(C.nb_cells(cells, a, b, C[kinds[kind]]))
  local rows, lo, hi = grid_of(cells)
  local signed = kind == "mean" and lo < 0
  if lo > hi then lo, hi = 0, 0 end
  if signed then lo, hi = -max(-lo, hi), max(-lo, hi) end
  lo, hi = options.lo or lo, options.hi or hi
  local lines = draw.grid(wider(to_shares(rows, lo, hi, options.log), stretch), colours, signed)
  local indent
  local labels = { #lines > 1 and "1" or nil }
  if #lines > 1 then labels[#lines] = ("%d"):format(n) end
  lines, indent = draw.beside(labels, lines)
  local right = ("%d"):format(k)
  lines[#lines + 1] = (" "):rep(indent) .. "1" .. (" "):rep(wide * stretch - 1 - #right) .. (k > 1 and right or "")
  table.insert(lines, 1, ("%s: %s of %s%s   %s%s"):format(what, kind,
    high == n and wide == k and "each value" or ("%.3g×%.3g values a cell"):format(n / high, k / wide),
    options.of_what or "", draw.legend(lo, hi, colours, signed), options.log and "  log" or ""))
  return picture(lines), cells
end

local heat_options = { "of", "rows", "columns", "lo", "hi", "log", "width" }

local function kind_of(verb, options, default)
  local kind = options.of or default
  if not kinds[kind] then
    error(("%s: of = %q%s"):format(verb, tostring(kind), text.did_you_mean(tostring(kind), { "absmax", "rms", "mean" })), 4)
  end
  return kind
end

--- heat(x [, {of = "absmax" | "rms" | "mean", rows =, columns =, log =, lo =, hi =}]) -> picture: where which values are
-- x: a tensor (its last dimension runs across), a quantized weight (dequantized), a module. Every value counts: a cell
-- shows the largest magnitude (absmax), the root mean square, or the mean of its part. log: colours by the logarithm.
-- In colours of the terminal, or in shades where it has none; × or magenta: a NaN or infinity.
function M.heat(x, options)
  options = checked("heat", options, heat_options)
  local t = values_of("heat", x)
  local kind = kind_of("heat", options, "absmax")
  return (map(("%s [%s]"):format(t:type(), table.concat(t:size(), "×")), matrix(t), nil, kind, options))
end

--- error(w, q [, {of = "rms" | "absmax" | "mean", rows =, columns =, log =, lo =, hi =}]) -> picture: where a quantized
-- weight differs from its source
-- w: the float tensor [n,k]; q: its quantized weight, or any tensor of its shape. Columns are the groups of q where they
-- have room. Below: the worst cell against all.
function M.error(w, q, options)
  options = checked("plot.error", options, heat_options)
  local a, b = matrix(values_of("plot.error", w)), matrix(values_of("plot.error", q))
  if a:size(1) ~= b:size(1) or a:size(2) ~= b:size(2) then
    error(("plot.error: %s and %s have different shapes"):format(text.shape(a:size()), text.shape(b:size())), 2)
  end
  local own = setmetatable({}, { __index = options })
  local groups = is_quantized(q) and not q.g_idx and q.scales:size(2) or 1 -- act-order: groups are no spans of columns
  if groups > 1 and groups <= room(options) and not options.columns then
    own.columns, own.of_what = groups, ", a column a group"
  end
  local kind = kind_of("plot.error", options, "rms")
  local p, cells = map("error", a, b, kind, own)
  if not cells then return p end
  local worst, at, sum = -1, 1, 0
  for i, v in ipairs(cells:totable()) do
    if v == v then
      sum = sum + math.abs(v)
      if math.abs(v) > worst then worst, at = math.abs(v), i end
    end
  end
  if sum > 0 then
    local high, wide = cells:size(1), cells:size(2)
    local r, c = floor((at - 1) / wide), (at - 1) % wide
    p[#p + 1] = ("worst: rows %d-%d, columns %d-%d: %.3g, %.2f times the cells' mean"):format(floor(r * a:size(1) / high) + 1,
      floor((r + 1) * a:size(1) / high), floor(c * a:size(2) / wide) + 1, floor((c + 1) * a:size(2) / wide), worst,
      worst * high * wide / sum)
  end
  return p
end

local function part(verb, q, name, options)
  options = checked(verb, options, heat_options)
  if type(q) == "table" and q.checkpoint and q.name then q = q.quantized or q end
  if not is_quantized(q) then error(("%s: expected a quantized weight, found a %s"):format(verb, type(q)), 3) end
  local t = q[name]
  if not t then return picture { ("no %s: the weight is %s"):format(name, require("nibble.scheme").describe(q.scheme)) } end
  local what = ("%s [%s]"):format(name == "zeros" and "zero-points" or name, table.concat(t:size(), "×"))
  return (map(what, matrix(t), nil, kind_of(verb, options, name == "zeros" and "mean" or "absmax"), options))
end

--- scales(q [, options of heat]) -> picture of a quantized weight's scales [n, groups]; q: Quantized, or a module.
function M.scales(q, options) return part("plot.scales", q, "scales", options) end

--- zeros(q [, options of heat]) -> picture of a quantized weight's zero-points [n, groups].
function M.zeros(q, options) return part("plot.zeros", q, "zeros", options) end

-- ---- curves --------------------------------------------------------------------------------------

local function numbers_of(list, field)
  local out = {}
  for i, v in ipairs(list) do
    if field and type(v) == "table" then v = v[field] end
    out[i] = type(v) == "number" and math.abs(v) < math.huge and v or 0 / 0
  end
  return out
end

local function range_of(list)
  local lo, hi = math.huge, -math.huge
  for _, v in ipairs(list) do
    if v == v then lo, hi = min(lo, v), max(hi, v) end
  end
  return lo, hi
end

--- curve(values [, {field =, width =, height =}]) -> picture: a curve through an array of numbers, first to last
-- values: an array, or one of tables of which `field` counts: curve(stats(m, "down_proj"), {field = "kurtosis"}).
-- What is no finite number is a gap.
function M.curve(values, options)
  if type(options) == "string" then options = { field = options } end
  options = checked("curve", options, { "field", "width", "height" })
  if is_tensor(values) then values = values:totable() end
  if type(values) ~= "table" or #values == 0 then
    error("curve: expected an array of numbers, or of tables and a field's name", 2)
  end
  local list = numbers_of(values, options.field)
  local lo, hi = range_of(list)
  if lo > hi then error(("curve: no number among %d values%s"):format(#list, options.field and
    (" of the field %q"):format(options.field) or "; name a field, as in curve(values, \"std\")"), 2) end
  local shares, height, width = {}, options.height or 6, min(room(options), max(8, #list * 4))
  for i, v in ipairs(list) do shares[i] = hi > lo and (v - lo) / (hi - lo) or v - v + 0.5 end
  local labels = { ("%.3g"):format(hi) }
  if height > 1 then labels[height] = ("%.3g"):format(lo) end
  local lines, indent = draw.beside(labels, draw.line(shares, width, height))
  local right = ("%d"):format(#list)
  lines[#lines + 1] = (" "):rep(indent) .. "1" .. (" "):rep(max(1, width - 1 - #right)) .. right
  return picture(lines)
end

return M

-- stats: what the values of tensors, quantized weights and whole checkpoints are like: range, spread, outliers, and of
-- quantized weights the range of their scales. Module after module, so that one weight at a time is in memory.
local ffi = require "ffi"
local nffi = require "nibble.ffi"
local json = require "nibble.json"
local modules = require "nibble.modules"
local show = require "nibble.show"
local summary = require "nibble.summary"
local tensor = require "nibble.tensor"
local terminal = require "nibble.terminal"
local text = require "nibble.text"
local units = require "nibble.units"
local C = nffi.C

local M = {}

--- stats.OUTLIER: a value farther than this many standard deviations from the mean is an outlier.
M.OUTLIER = 6

-- ---- one tensor ------------------------------------------------------------------------------

-- The row of a tensor's values. Outliers cost a second look only where the range says that there are some.
local function row_of(name, t)
  local s = t:stats()
  local finite, beyond = s.numel - s.nan - s.inf, 0
  local reach = M.OUTLIER * s.std
  if finite > 0 and (s.max > s.mean + reach or s.min < s.mean - reach) then
    local count = ffi.new "int64_t[1]"
    nffi.must(C.nb_tensor_count_beyond(count, t, s.mean - reach, s.mean + reach))
    beyond = tonumber(count[0])
  end
  return {
    name = name, dtype = t:type(), numel = s.numel, absmax = s.absmax, mean = s.mean, std = s.std, kurtosis = s.kurtosis,
    outliers = finite > 0 and beyond / finite or 0, zeros = s.numel > 0 and s.zeros / s.numel or 0, nan = s.nan, inf = s.inf,
  }
end

-- {min =, max =, range =, zeros =, odd =} of scales: magnitudes that are neither 0 nor odd (NaN or infinite); range:
-- how many times the smallest the largest is.
local function scale_range(scales)
  local least, most, zeros, odd = math.huge, 0, 0, 0
  local count, size = scales:numel(), 65536
  local block = ffi.new("double[?]", math.min(size, count))
  for at = 0, count - 1, size do
    nffi.stop_check()
    local n = math.min(size, count - at)
    nffi.must(C.nb_tensor_load_f64(block, scales, at, n))
    for i = 0, n - 1 do
      local v = math.abs(block[i])
      if v == 0 then zeros = zeros + 1
      elseif not (v < math.huge) then odd = odd + 1
      else least, most = math.min(least, v), math.max(most, v) end
    end
  end
  if most == 0 then return { min = 0, max = 0, range = 1, zeros = zeros, odd = odd } end
  return { min = least, max = most, range = most / least, zeros = zeros, odd = odd }
end

-- The row of a quantized weight: of what it stands for, and of its scales.
local function quantized_row(name, q)
  local weight = q:dequantize()
  local row = row_of(name, weight)
  weight:free()
  row.scheme, row.dtype, row.scales = require("nibble.scheme").describe(q.scheme), nil, scale_range(q.scales)
  return row
end

-- ---- a checkpoint ----------------------------------------------------------------------------

-- add(row) for a module: its weight, or each of its tensors. What can't be read is a row with a `fault`.
local function rows_of_module(ck, rec, add)
  local function fault(name, msg)
    add { name = name, scheme = rec.scheme and summary.scheme(rec) or nil, dtype = rec.dtype, fault = msg }
  end
  if rec.unreadable then return fault(rec.name, rec.unreadable) end
  if rec.scheme then
    local q, msg = ck:quantized(rec.name)
    if not q then return fault(rec.name, msg) end
    return add(quantized_row(rec.name, q))
  end
  local suffixes = {}
  for suffix in pairs(rec.tensors) do suffixes[#suffixes + 1] = suffix end
  table.sort(suffixes, function(a, b) -- the weight first
    if (a == "weight") ~= (b == "weight") then return a == "weight" end
    return a < b
  end)
  for _, suffix in ipairs(suffixes) do
    local info = rec.tensors[suffix]
    local name = suffix == "weight" and rec.name or info.name
    local t, msg = ck:tensor(info.name)
    if t and info.dtype == "c64" then t, msg = nil, "complex numbers" end
    if t then
      add(row_of(name, t))
      t:drop()
    else
      fault(name, msg)
    end
  end
end
nffi.interpreted(rows_of_module)

local function of_modules(ck, recs, options, add)
  local t0, total, done, report = C.nb_now(), modules.totals(recs).bytes, 0, options.progress or nffi.progress
  for i, rec in ipairs(recs) do
    nffi.stop_check()
    rows_of_module(ck, rec, add)
    done = done + rec.bytes
    tensor.collect_if_full()
    if report then
      report { done = i, total = #recs, name = rec.name, bytes = done, total_bytes = total, seconds = C.nb_now() - t0 }
    end
  end
end

-- ---- the result ------------------------------------------------------------------------------

-- Column -> what a row has there, for sorting: the largest first, but names in their natural order.
local columns = {
  absmax = function(r) return r.absmax end,
  mean = function(r) return r.mean and math.abs(r.mean) end,
  std = function(r) return r.std end,
  kurtosis = function(r) return r.kurtosis end,
  outliers = function(r) return r.outliers end,
  zeros = function(r) return r.zeros end,
  numel = function(r) return r.numel end,
  odd = function(r) return r.nan and r.nan + r.inf end,
  scales = function(r) return r.scales and r.scales.range end,
}

--- stats.columns() -> array of what a result can be sorted by.
function M.columns()
  local out = { "name" }
  for name in pairs(columns) do out[#out + 1] = name end
  table.sort(out)
  return out
end

local function check_column(column, level)
  if column == "name" or columns[column] then return end
  error(("stats: no column %q%s"):format(tostring(column), text.did_you_mean(tostring(column), M.columns())), level)
end

local methods = {}
local Result = { __index = methods, __methods = methods }

--- result:sort(column) -> result, sorted: "name", or a column, largest first: absmax, mean (its magnitude), std, kurtosis,
-- outliers, zeros, numel, odd (NaN and infinities), scales (their range).
function methods.sort(result, column)
  check_column(column, 3)
  local place = {}
  for i, row in ipairs(result) do place[row] = row.place or i end
  table.sort(result, function(a, b)
    local x, y = columns[column] and columns[column](a), columns[column] and columns[column](b)
    if x == y or column == "name" then return place[a] < place[b] end
    return (x or -math.huge) > (y or -math.huge)
  end)
  return result
end

--- result:totable() -> a table that json.encode takes: {tensors = {…}}.
function methods.totable(result)
  local out = {}
  for i, row in ipairs(result) do
    local copy = { __order = { "name", "scheme", "dtype", "numel" } }
    for k, v in pairs(row) do
      if k ~= "place" then copy[k] = v end
    end
    out[i] = copy
  end
  return { tensors = json.array(out) }
end
nffi.interpreted(methods.totable)

local function share(v)
  if v == 0 then return "0" end
  return v < 1e-4 and ("%.1f ppm"):format(v * 1e6) or ("%.2f %%"):format(v * 100)
end

local function cells(row, odd, scales)
  local out = {
    row.name, row.scheme or row.dtype, units.count(row.numel), ("%.3g"):format(row.absmax), ("%.2g"):format(row.mean),
    ("%.3g"):format(row.std), ("%.2f"):format(row.kurtosis), share(row.outliers), share(row.zeros),
  }
  if scales then out[#out + 1] = row.scales and ("%.3g…%.3g"):format(row.scales.min, row.scales.max) or "" end
  if scales then out[#out + 1] = row.scales and ("×%.3g"):format(row.scales.range) or "" end
  if odd then out[#out + 1] = ("%d"):format(row.nan + row.inf + (row.scales and row.scales.odd or 0)) end
  return out
end

function Result.__tostring(result)
  local odd, scales, faults = false, false, {}
  for _, row in ipairs(result) do
    odd = odd or (row.nan or 0) + (row.inf or 0) + (row.scales and row.scales.odd or 0) > 0
    scales = scales or row.scales ~= nil
  end
  local head = { "module", "values", "count", "absmax", "mean", "std", "kurtosis", (">%d std"):format(M.OUTLIER), "zero" }
  if scales then head[#head + 1], head[#head + 2] = "scales", "range" end
  if odd then head[#head + 1] = "NaN, inf" end
  local rows = { head }
  for _, row in ipairs(result) do
    if row.fault then faults[#faults + 1] = show.printable(("%s: %s"):format(row.name, row.fault))
    else rows[#rows + 1] = cells(row, odd, scales) end
  end
  if #result == 0 then return "no tensors" end
  local out = #rows > 1 and show.columns(rows, "llrrrrrrrrrr", terminal.width()) or ""
  return ((out .. table.concat(faults, "\n")):gsub("\n$", ""))
end

-- ---- of what ---------------------------------------------------------------------------------

local known = { "pattern", "sort", "progress" }

local function checked(options)
  if type(options) == "string" then options = { pattern = options } end
  options = options or {}
  if type(options) ~= "table" then error("stats: expected a pattern or options, found " .. type(options), 4) end
  for key in pairs(options) do
    if key ~= "pattern" and key ~= "sort" and key ~= "progress" then
      error(("stats has no option %q%s"):format(tostring(key), text.did_you_mean(tostring(key), known)), 4)
    end
  end
  check_column(options.sort or "name", 5)
  return options
end

local function gather(x, options, add)
  if ffi.istype(tensor.type, x) then return add(row_of("tensor", x)) or true end
  if type(x) == "table" and x.codes and x.scheme then return add(quantized_row("quantized", x)) or true end
  local ck, recs, msg, code = x, nil, nil, nil
  if modules.is_list(x) then
    ck, recs = x.checkpoint, x
  elseif type(x) == "table" and x.checkpoint then
    ck, recs = x.checkpoint, { x }
  elseif type(x) == "table" and x.handle then
    recs, msg, code = ck:modules()
  else
    error("stats: expected a tensor, a quantized weight, a checkpoint or modules of one, found " .. tensor.found(x), 4)
  end
  if recs and options.pattern then recs, msg, code = modules.grep(recs, options.pattern) end
  if not recs then return nil, msg, code end
  of_modules(ck, recs, options, add)
  return true
end

--- stats(x [, pattern or {pattern =, sort =, progress = fn}]) -> result | nil, msg, code
-- x: a tensor, a quantized weight, a checkpoint, a module, or a list of modules (m:grep, m:select). result: an array of
-- {name, scheme or dtype, numel, absmax, mean, std, kurtosis (3: normal), outliers and zeros (shares; an outlier is more
-- than 6 std from the mean), nan, inf (counts; left out of the rest)}, of quantized weights after dequantization and
-- with scales = {min, max, range = max / min, zeros, odd} as they are stored; what can't be read has a `fault`. It prints as a table;
-- result:sort "kurtosis", result:totable().
function M.of(x, options)
  options = checked(options)
  local result = setmetatable({}, Result)
  local done, msg, code = gather(x, options, function(row)
    row.place = #result + 1
    result[#result + 1] = row
  end)
  if not done then return nil, msg, code end
  return result:sort(options.sort or "name")
end

M.methods = methods

return setmetatable(M, { __call = function(_, x, options) return M.of(x, options) end })

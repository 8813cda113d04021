-- diff: two checkpoints compared after dequantization, across formats, module by module.
--   diff/match    which module is which
--   diff/weights  two weights in any form, without a dequantized one in memory
--   diff/text     a result as a table, as a document
local nffi = require "nibble.ffi"
local formats = require "nibble.formats"
local match = require "nibble.diff.match"
local natural = require("nibble.text").natural_sort
local new_pool = require("nibble.tensor").pool
local result = require "nibble.diff.text"
local shape_text = require("nibble.text").shape
local summary = require "nibble.summary"
local weights = require "nibble.diff.weights"

local M = {}

-- ---- one entry ---------------------------------------------------------------------------

-- Figures of sums, as compare() has them: nil where a number would be infinite.
local function figures(entry, s)
  local e = entry
  e.numel, e.odd, e.max_abs = s.numel, s.odd, s.max_abs
  e.max_row, e.max_column, e.worst_row = s.max_row, s.max_column, s.worst_row
  e.mse = s.numel > 0 and s.error2 / s.numel or 0
  e.same = s.error2 == 0 and s.odd == 0
  if s.error2 > 0 and s.a2 > 0 then
    e.sqnr_db, e.relative = 10 * math.log10(s.a2 / s.error2), math.sqrt(s.error2 / s.a2)
  end
  local b2 = math.max(0, s.b2)
  if s.a2 > 0 and b2 > 0 then e.cosine = math.max(-1, math.min(1, s.dot / math.sqrt(s.a2 * b2)))
  elseif e.same then e.cosine = 1 end
  e.sums = s
  return e
end

local function equal_entry(entry, numel)
  entry.equal, entry.same, entry.numel = true, true, numel
  entry.mse, entry.max_abs, entry.cosine, entry.odd = 0, 0, 1, 0
  return entry
end

local function entry_of(run, pair, tensor)
  return { module = pair.a.name, other = pair.b.name ~= pair.a.name and pair.b.name or nil, tensor = tensor, kind = pair.a.kind,
    scheme_a = run.scheme(pair.a), scheme_b = run.scheme(pair.b) }
end

local function add(run, entry, bytes)
  entry.bytes = bytes
  run.entries[#run.entries + 1] = entry
end

local function skip(run, pair, tensor, why)
  run.skipped[#run.skipped + 1] = { module = pair.a.name, tensor = tensor, why = why }
end

-- The stored tensors of a module that are compared as they are: all of a plain one, the bias of a quantized one.
local function stored(rec)
  if not rec.scheme then return rec.tensors end
  return { bias = rec.tensors.bias }
end

local function is_weight(rec) return rec.scheme ~= nil or (rec.n ~= nil and rec.tensors.weight ~= nil) end

local function whole_tensor(ck, rec, suffix)
  local f = formats.get(rec.format)
  if f and f.part then return f.part(ck, rec, suffix) end
  return ck:tensor(rec.tensors[suffix].name)
end

local function compare_stored(run, pair, suffix, a, b)
  if not (a and b) then
    local has, lacks = a and run.a or run.b, a and run.b or run.a
    return skip(run, pair, suffix, ("only %s has it, %s doesn't"):format(has.name, lacks.name))
  end
  if not (weights.is_number(a) and weights.is_number(b)) then return skip(run, pair, suffix, a.dtype .. " is not compared") end
  local x, msg = whole_tensor(run.a, pair.a, suffix)
  local y
  if x then y, msg = whole_tensor(run.b, pair.b, suffix) end
  if not y then return skip(run, pair, suffix, msg) end
  if shape_text(x:size()) ~= shape_text(y:size()) then
    return skip(run, pair, suffix, ("%s and %s"):format(shape_text(x:size()), shape_text(y:size())))
  end
  local entry = entry_of(run, pair, suffix)
  entry.scheme_a, entry.scheme_b = a.dtype, b.dtype
  if x:equal(y) then equal_entry(entry, x:numel()) else figures(entry, weights.tensors(x, y)) end
  add(run, entry, a.bytes + b.bytes)
end

local function compare_weight(run, pair)
  local a, b = pair.a, pair.b
  if a.n ~= b.n or a.k ~= b.k then
    return skip(run, pair, "weight", ("%s and %s"):format(shape_text { a.n, a.k }, shape_text { b.n, b.k }))
  end
  local sums, msg, code = weights.compare(run.a, a, run.b, b, run.pool)
  if not sums then
    if code == "enomem" then return nil, msg, code end
    return skip(run, pair, "weight", msg)
  end
  add(run, figures(entry_of(run, pair, "weight"), sums), a.bytes + b.bytes)
end

local function names_of(a, b)
  local seen, out = {}, {}
  for _, tensors in ipairs { a, b } do
    for suffix in pairs(tensors) do
      if not seen[suffix] then
        seen[suffix] = true
        out[#out + 1] = suffix
      end
    end
  end
  return natural(out)
end
nffi.interpreted(names_of)

-- -> true | nil, msg, code: of what ends the whole; what can't be compared is listed.
local function compare_pair(run, pair)
  local a, b = pair.a, pair.b
  local unreadable = a.unreadable or b.unreadable
  if unreadable then return skip(run, pair, nil, unreadable) or true end
  local both = is_weight(a) and is_weight(b)
  local quantized = a.scheme or b.scheme
  if quantized and not both then return skip(run, pair, "weight", "a matrix in one, none in the other") or true end
  if quantized and weights.same_bytes(run.a, a, run.b, b) then
    add(run, equal_entry(entry_of(run, pair, "weight"), a.n * a.k), a.bytes + b.bytes)
    return true
  end
  local tensors_a, tensors_b = stored(a), stored(b)
  for _, suffix in ipairs(names_of(tensors_a, tensors_b)) do
    if not (quantized and suffix == "weight") then compare_stored(run, pair, suffix, tensors_a[suffix], tensors_b[suffix]) end
  end
  if not quantized then return true end
  local _, msg, code = compare_weight(run, pair)
  if msg then return nil, msg, code end
  return true
end

-- ---- the whole ---------------------------------------------------------------------------

local function modules_of(ck, matches)
  local all, msg, code = ck:modules()
  if not all then return nil, msg, code end
  if not matches then return all end
  local out = {}
  for _, rec in ipairs(all) do
    if matches(rec.name) then out[#out + 1] = rec end
  end
  return out
end

local function bytes_of(list)
  local bytes = 0
  for _, pair in ipairs(list) do bytes = bytes + pair.a.bytes + pair.b.bytes end
  return bytes
end

-- Sums over all that was compared as numbers: what is equal byte for byte is in the counts, not in the figures.
local function totals_of(run)
  local t = { compared = #run.entries, equal = 0, same = 0, bytes = 0, odd = 0 }
  local s = { error2 = 0, a2 = 0, b2 = 0, dot = 0, numel = 0, odd = 0, max_abs = 0 }
  for _, e in ipairs(run.entries) do
    t.equal, t.same = t.equal + (e.equal and 1 or 0), t.same + (e.same and 1 or 0)
    t.bytes = t.bytes + e.bytes
    if e.sums then
      for _, field in ipairs { "error2", "a2", "b2", "dot", "numel", "odd" } do s[field] = s[field] + e.sums[field] end
      if e.max_abs > s.max_abs then s.max_abs, t.max_module = e.max_abs, e.module end
      e.sums = nil
    end
  end
  local f = figures({}, s)
  for _, field in ipairs { "mse", "sqnr_db", "cosine", "relative", "max_abs", "numel", "odd" } do t[field] = f[field] end
  return t
end

local function opened(ck, what)
  if type(ck) == "table" and ck.modules then return ck end
  if type(ck) ~= "string" then error(("diff: %s: expected a checkpoint or its path, found a %s"):format(what, type(ck)), 3) end
  return require("nibble.checkpoint").open(ck)
end

--- run(a, b [, {pattern =, progress = fn, sort = "sqnr"}]) -> result | nil, msg, code
-- a, b: checkpoints or their paths; b is compared with a. pattern: modules by name, as ck:grep takes it. sort: "sqnr"
-- (worst first), "mse", "max", "cosine" or "name".
-- result: an array of entries {module, other (b's name where it differs), tensor ("weight", "bias", …), kind, scheme_a,
-- scheme_b, numel, mse, sqnr_db (nil where nothing differs), cosine, max_abs, max_row, max_column, worst_row, relative
-- (sqrt of error over signal), odd (pairs that differ by a NaN or an infinity), same (no value differs), equal (nor a
-- byte), bytes}; and only_a, only_b (modules' names), skipped ({module, tensor, why}: shapes, unreadable ones), notes
-- (names that were reconciled), totals, seconds. Values are dequantized to float32. tostring: a table.
function M.run(a, b, options)
  local o = options or {}
  local key = result.order(o.sort or "sqnr")
  if not key then error(("diff: sort is %s, found %q"):format(result.orders(), tostring(o.sort)), 2) end
  local run = { entries = {}, skipped = {}, pool = new_pool(), scheme = summary.schemes() }
  local msg, code, matches, list_a, list_b
  run.a, msg, code = opened(a, "a")
  if not run.a then return nil, msg, code end
  run.b, msg, code = opened(b, "b")
  if not run.b then return nil, msg, code end
  if o.pattern then
    matches, msg, code = formats.matcher(o.pattern)
    if not matches then return nil, msg, code end
  end
  list_a, msg, code = modules_of(run.a, matches)
  if not list_a then return nil, msg, code end
  list_b, msg, code = modules_of(run.b, matches)
  if not list_b then return nil, msg, code end
  local list, only_a, only_b, notes = match.pairs_of(run.a, list_a, run.b, list_b)
  if #list == 0 then
    return nil, ("%s and %s have no module in common%s%s"):format(run.a.name, run.b.name, o.pattern and " that matches " or "",
      o.pattern or ""), "einval"
  end
  local total, bytes, start = bytes_of(list), 0, nffi.C.nb_now()
  for i, pair in ipairs(list) do
    nffi.stop_check()
    local ok
    ok, msg, code = compare_pair(run, pair)
    if not ok then return nil, msg, code end
    bytes = bytes + pair.a.bytes + pair.b.bytes
    local progress = o.progress or nffi.progress
    if progress then
      progress { done = i, total = #list, name = pair.a.name, bytes = bytes, total_bytes = total, seconds = nffi.C.nb_now() - start }
    end
  end
  return result.new { entries = run.entries, a = run.a, b = run.b, key = key, skipped = run.skipped, notes = notes,
    only_a = only_a, only_b = only_b, totals = totals_of(run), seconds = nffi.C.nb_now() - start }
end

return setmetatable(M, { __call = function(_, ...) return M.run(...) end })

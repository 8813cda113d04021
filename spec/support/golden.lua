-- golden: the runner of golden cases: walks DIR/manifest.json, runs every case whose operation
-- nibble has, and compares with what the peers' own code gave, bit for bit.
-- DIR is NIBBLE_GOLDEN, or spec/golden, the committed subset.
--
-- Operations live in spec/golden_ops/*.lua, each file returning
--   { [operation] = function(case) -> results, ... }
-- case.id, .params (null is nil), .notes, .dir, .path (the case's file), .entry
-- (as in the manifest), .tensors["in.x"] (tensors, read when first asked for), or
-- .rows for a table. For tensors, results["out.x"] must be given for every output
-- of the case. For a table, results is an array: one table a row, whose every key
-- is compared with the row's (nibble.json.null where the row says null).
-- An operation throws when nibble fails; results.nan = {["out.x"] = "f16", ...}
-- tells the float dtype of codes whose NaNs need only be NaNs (by the note).
local nb = require "nibble"
local checkpoint = require "nibble.checkpoint"

local M = {}

local dir = (os.getenv "NIBBLE_GOLDEN" or "spec/golden"):gsub("/+$", "")

local function read_json(path)
  local text = assert(checkpoint.read_file(path))
  local value, msg = nb.json.decode(text)
  assert(value ~= nil, ("%s: %s"):format(path, tostring(msg)))
  return value
end

--- golden.operations() -> {[operation] = function(case) -> results, …}: those that nibble has, of spec/golden_ops.
function M.operations()
  local ops = {}
  for _, name in ipairs(assert(checkpoint.list "spec/golden_ops")) do
    if name:match "%.lua$" then
      for op, fn in pairs(dofile("spec/golden_ops/" .. name)) do
        assert(not ops[op], ("operation %q is in two files of spec/golden_ops, one is %s"):format(op, name))
        ops[op] = fn
      end
    end
  end
  return ops
end

local function without_nulls(t)
  local out = {}
  for k, v in pairs(t or {}) do if v ~= nb.json.null then out[k] = v end end
  return out
end

-- ---- comparing ----------------------------------------------------------------

local function shape_text(t) return ("%s [%s]"):format(t:type(), table.concat(t:size(), "x")) end

-- manifest dtype -> nibble's
local dtypes = {
  float16 = "f16", bfloat16 = "bf16", float32 = "f32", float64 = "f64", int8 = "i8", int16 = "i16", int32 = "i32",
  int64 = "i64", uint8 = "u8", uint16 = "u16", uint32 = "u32", bool = "bool", float8_e4m3fn = "f8_e4m3",
  float8_e5m2 = "f8_e5m2",
}

-- Exponent and mantissa bits of the dtypes that have NaNs.
local float_layout = { f16 = { 5, 10 }, bf16 = { 8, 7 }, f32 = { 8, 23 } }

local function is_nan(p, i, layout)
  local e, m = layout[1], layout[2]
  local u = tonumber(p[i]) % 2 ^ (e + m)
  return u > (2 ^ e - 1) * 2 ^ m
end

-- nil, or what differs. nan: the float dtype whose NaNs may differ in payload.
local function difference(name, want, got, entry, nan)
  if type(got) ~= "cdata" then return ("%s is missing"):format(name) end
  local same_shape = table.concat(want:size(), "x") == table.concat(got:size(), "x")
  local logical = entry and entry.logical_dtype
  if not same_shape or (not logical and got:type() ~= want:type()) or got:bytes() ~= want:bytes() then
    return ("%s: expected %s, found %s"):format(name, shape_text(want), shape_text(got))
  end
  local layout = nan and float_layout[nan]
  local width = layout and (layout[1] + layout[2] + 1) / 8 or 1
  local unit = "u" .. width * 8
  local a, b = want:as(unit), got:as(unit)
  if a:equal(b) then return nil end
  local p, q = a:ptr(), b:ptr()
  for i = 0, a:numel() - 1 do
    if p[i] ~= q[i] and not (layout and is_nan(p, i, layout) and is_nan(q, i, layout)) then
      return ("%s: %s %d is %s, expected %s"):format(name, width == 1 and "byte" or "element", i + 1,
        tostring(tonumber(q[i])), tostring(tonumber(p[i])))
    end
  end
end

local function compare_tensors(case, results)
  local nan_note = (case.notes or ""):find("compare NaN-ness", 1, true)
  local compared = 0
  for name, entry in pairs(case.entry.tensors) do
    if name:match "^out%." then
      local want = case.tensors[name]
      local nan = nan_note and ((results.nan or {})[name] or dtypes[entry.dtype])
      local d = difference(name, want, results[name], entry, nan)
      if d then return d end
      compared = compared + 1
    end
  end
  if compared == 0 then return "no output was compared" end
end

local function same(a, b)
  if type(a) ~= "table" or type(b) ~= "table" then return a == b end
  for k, v in pairs(a) do if not same(v, b[k]) then return false end end
  for k in pairs(b) do if a[k] == nil then return false end end
  return true
end

local function show(v) return type(v) == "table" and nb.json.encode(v) or tostring(v) end

local function compare_rows(case, results)
  for i, row in ipairs(case.rows) do
    if type(results[i]) ~= "table" or next(results[i]) == nil then return ("row %d gave no result"):format(i) end
    for key, got in pairs(results[i]) do
      if not same(row[key], got) then
        return ("row %d, %s: expected %s, found %s"):format(i, key, show(row[key]), show(got))
      end
    end
  end
  if #case.rows == 0 then return "the table is empty" end
end

-- ---- running ------------------------------------------------------------------

local function case_of(entry)
  local case = { id = entry.id, params = without_nulls(entry.params), notes = entry.notes, dir = dir, entry = entry,
                 path = dir .. "/" .. entry.file }
  if entry.file:match "%.json$" then
    case.rows = read_json(case.path).rows
  elseif entry.file:match "%.safetensors$" then
    local ck = assert(nb.open(case.path))
    case.tensors = setmetatable({}, { __index = function(t, name)
      if not (entry.tensors[name]) then return nil end
      t[name] = ck:tensor(name)
      return t[name]
    end })
  end
  return case
end

--- golden.run(fn, entry) -> nil when the case passes, else what went wrong; second: why the case is not covered.
function M.run(fn, entry)
  local ok, failure, uncovered = pcall(function()
    local case = case_of(entry)
    local results = assert(fn(case))
    if case.rows then return compare_rows(case, results) end
    if case.tensors then return compare_tensors(case, results) end
    -- A folder or another file: the operation compares by itself, and may say that this case is not covered.
    return results.failure, results.not_covered
  end)
  if not ok then return tostring(failure) end
  return failure, uncovered
end

--- golden.cases() -> {[operation] = {entry, …}}, names of the operations in order: the manifest's
function M.cases()
  local by_op, order = {}, {}
  for _, entry in ipairs(read_json(dir .. "/manifest.json").cases) do
    if not by_op[entry.operation] then order[#order + 1] = entry.operation end
    by_op[entry.operation] = by_op[entry.operation] or {}
    table.insert(by_op[entry.operation], entry)
  end
  table.sort(order)
  return by_op, order
end

return M

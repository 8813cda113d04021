-- tensor: nb_tensor as a Lua value: making, indexing, viewing.
local ffi = require "ffi"
local nffi = require "nibble.ffi"
local C, must = nffi.C, nffi.must
local band = require("bit").band

local M = {}

local tensor_t = ffi.typeof "nb_tensor"
local shape_t = ffi.typeof "int64_t[6]"

local F32 = tonumber(C.NB_F32)

local names = {}
for i = 0, tonumber(C.NB_NDTYPES) - 1 do names[i] = ffi.string(C.nb_dtype_name(i)) end

--- dtype_id(name) -> number: the C enum of "bf16", "F32", …; unknown names are errors.
function M.dtype_id(name)
  local id = C.nb_dtype_parse(name)
  if id < 0 then
    error(("unknown dtype %q; known: %s"):format(tostring(name), table.concat(names, " ", 0)), 3)
  end
  return id
end

local function shape_of(shape, level)
  if type(shape) == "number" then shape = { shape } end
  if #shape > 6 then error("a tensor has at most 6 dimensions, found " .. #shape, level + 1) end
  local s = shape_t()
  for i, v in ipairs(shape) do s[i - 1] = v end
  return s, #shape
end

-- Nested tables as shape and flat values, row-major; rows of unequal length are errors.
local function flatten(nested)
  local shape, values, level = {}, {}, nested
  while type(level) == "table" do
    shape[#shape + 1] = #level
    level = level[1]
  end
  local function walk(x, depth)
    if depth > #shape then
      values[#values + 1] = tonumber(x) or error(("expected a number, found a %s"):format(type(x)), 0)
      return
    end
    if type(x) ~= "table" or #x ~= shape[depth] then
      local found = type(x) == "table" and #x or "a " .. type(x)
      error(("expected %d elements in dimension %d, found %s"):format(shape[depth], depth, found), 0)
    end
    for _, v in ipairs(x) do walk(v, depth + 1) end
  end
  local ok, msg = pcall(walk, nested, 1)
  if not ok then error("tensor: " .. msg, 3) end
  return shape, values
end

--- new(dtype, shape [, values]) or new([dtype,] {{…}, …}) -> tensor
-- A zero-filled tensor; values: a flat Lua table, row-major. Nested tables give shape
-- and values at once (new{1, 2, 3} is one-dimensional); their dtype is f32 unless named.
function M.new(dtype, shape, values)
  if type(dtype) == "table" then
    dtype, shape, values = "f32", flatten(dtype)
  elseif type(shape) == "table" and type(shape[1]) == "table" then
    shape, values = flatten(shape)
  end
  local id = M.dtype_id(dtype)
  local s, ndim = shape_of(shape, 2)
  nffi.stop_check() -- so that a person's own loop over short jobs stops too, compiled or not
  M.collect_if_full()
  local t = tensor_t()
  must(C.nb_tensor_new(t, id, ndim, s))
  if values then
    if #values > t:numel() then error(("tensor: %d values for %d elements"):format(#values, t:numel()), 2) end
    for i = 1, #values do t:set(i, values[i]) end
  end
  return t
end

--- pool() -> {take = function(dtype, shape) -> tensor, give = function(t)}: tensors used again, of the same dtype and shape
-- New memory costs a page fault and a zeroed page for every 4 KiB: as much as the work on it. So tensors whose every byte is
-- written are taken here, hold anything, and are given back when nothing looks at them; four of a kind stay.
function M.pool()
  local free = {}
  local function kind(dtype, shape)
    local key = dtype .. "[" .. table.concat(shape, "x") .. "]"
    free[key] = free[key] or {}
    return free[key]
  end
  return {
    take = function(dtype, shape) return table.remove(kind(dtype, shape)) or M.new(dtype, shape) end,
    give = function(t)
      local place = kind(t:type(), t:size())
      if #place < 4 then table.insert(place, t) else t:free() end
    end,
  }
end

--- collect_if_full(): the Lua collector cannot see tensors' bytes; when more
-- than the soft limit lives, collect.
function M.collect_if_full()
  if C.nb_live_bytes() > nffi.soft_limit_bytes then collectgarbage() end
end

M.type = tensor_t
M.device_type = ffi.typeof "nb_device_tensor" -- what nibble.cuda makes

--- on_device(x) -> true for a tensor on a device.
function M.on_device(x) return ffi.istype(M.device_type, x) end

--- is_any(x) -> true for a tensor in the computer's memory or on a device.
function M.is_any(x) return ffi.istype(tensor_t, x) or M.on_device(x) end

--- found(x) -> "a string", "one on cuda:0; …": what stands in x's place, for messages that expected a tensor here.
function M.found(x)
  if not ffi.istype(M.device_type, x) then return "a " .. type(x) end
  return ('one on %s; t:to "cpu" gives a copy in the computer\'s memory'):format(x:where())
end

M.names = names
M.shape_of = shape_of

-- Element access: the C type that holds one element of each dtype.
local element = {
  bool = "uint8_t", u8 = "uint8_t", i8 = "int8_t", i16 = "int16_t", u16 = "uint16_t", i32 = "int32_t",
  u32 = "uint32_t", i64 = "int64_t", u64 = "uint64_t", f32 = "float", f64 = "double",
}
local pointers = {}
for name, ctype in pairs(element) do pointers[tonumber(C["NB_" .. name:upper()])] = ffi.typeof(ctype .. " *") end

local methods = {}

--- t:ptr() -> cdata pointer to the first element (0-based; raw bytes where the dtype has
-- no C counterpart): for loops at the speed of C. The tensor must stay alive while it is used.
-- Nothing is checked. LuaJIT takes NaNs with payload bits for values of other types; t:get and
-- t:map don't let them through, a pointer does: look at t:stats().nan where a file may hold some.
function methods.ptr(t)
  return ffi.cast(pointers[t.dtype] or "uint8_t *", t.data)
end

--- t:type() -> "bf16", "i32", …: the dtype's name (t.dtype is C's number for it).
function methods.type(t) return names[t.dtype] end

--- t:numel() -> how many elements it has.
function methods.numel(t) return tonumber(C.nb_tensor_numel(t)) end

--- t:bytes() -> bytes of its elements.
function methods.bytes(t) return tonumber(C.nb_tensor_bytes(t)) end

--- t:size([i]) -> dimensions as a table, or dimension i (1-based).
function methods.size(t, i)
  if i then return tonumber(t.shape[i - 1]) end
  local s = {}
  for d = 1, t.ndim do s[d] = tonumber(t.shape[d - 1]) end
  return s
end

local function outside(i, size, level)
  error(("index %s is outside 1..%d"):format(tostring(i), size), level + 1)
end

-- 0-based position of i = a number (into the flattened tensor) or {row, column, …}; 1-based both.
local function index_of(t, i, level)
  if type(i) == "number" then
    local n = t.ndim == 1 and tonumber(t.shape[0]) or t:numel()
    if not (i >= 1 and i <= n) then outside(i, n, level + 1) end -- so that NaN is outside too
    return i - 1
  end
  if type(i) ~= "table" then error(("expected an index, found a %s"):format(type(i)), level + 1) end
  if #i ~= t.ndim then error(("%d indices for %d dimensions"):format(#i, t.ndim), level + 1) end
  local flat = 0
  for d = 1, t.ndim do
    local size, at = tonumber(t.shape[d - 1]), i[d]
    if not (at >= 1 and at <= size) then outside(at, size, level + 1) end
    flat = flat * size + at - 1
  end
  return flat
end

-- Reading element k (0-based): by a pointer where C and Lua agree on the value, else in C.
local getters = setmetatable({}, { __index = function() return C.nb_tensor_get end })
for _, name in ipairs { "u8", "i8", "u16", "i16", "i32", "u32" } do
  local pointer = ffi.typeof(element[name] .. " *")
  getters[tonumber(C["NB_" .. name:upper()])] = function(t, k) return ffi.cast(pointer, t.data)[k] end
end
local f32_pointer, bits_pointer, nan = ffi.typeof "float *", ffi.typeof "int32_t *", 0 / 0
getters[tonumber(C.NB_F32)] = function(t, k)
  -- LuaJIT takes NaNs with payload bits for values of other types: never load one as a number.
  if band(ffi.cast(bits_pointer, t.data)[k], 0x7fffffff) > 0x7f800000 then return nan end
  return ffi.cast(f32_pointer, t.data)[k]
end

--- t:get(i) or t:get{row, column, …} -> number: element i of the flattened tensor, 1-based. Any real dtype.
function methods.get(t, i) return getters[t.dtype](t, index_of(t, i, 2)) end

--- t:set(i, v) or t:set({row, column}, v): one element, rounded as t:cast rounds.
function methods.set(t, i, v)
  local k = index_of(t, i, 2)
  if t.dtype == F32 then ffi.cast(f32_pointer, t.data)[k] = v else C.nb_tensor_set(t, k, v) end
end

--- t:rows(a, b) -> view of rows a..b, 1-based and inclusive.
function methods.rows(t, a, b)
  local v = tensor_t()
  must(C.nb_tensor_rows(v, t, a - 1, b))
  return v
end

--- t:reshape{…} -> view of the same elements in another shape.
function methods.reshape(t, ...)
  local shape = type((...)) == "table" and (...) or { ... }
  local s, ndim = shape_of(shape, 2)
  local v = tensor_t()
  must(C.nb_tensor_view(v, t, t.dtype, ndim, s, 0))
  if v:numel() ~= t:numel() then
    error(("reshape: %d elements don't fit a shape of %d"):format(t:numel(), v:numel()), 2)
  end
  return v
end

--- t:as(dtype [, shape]) -> view of the same bytes read as another dtype (flat unless shape is given).
function methods.as(t, dtype, shape)
  local id = M.dtype_id(dtype)
  local s, ndim = shape_of(shape or { t:bytes() * 8 / tonumber(C.nb_dtype_bits(id)) }, 2)
  local v = tensor_t()
  must(C.nb_tensor_view(v, t, id, ndim, s, 0))
  return v
end

--- t:equal(u) -> true when dtype, shape and every byte are the same.
function methods.equal(t, u) return C.nb_tensor_equal(t, u) == 1 end

--- t:clone() -> a copy on the heap.
function methods.clone(t)
  local c = M.new(t:type(), t:size())
  must(C.nb_tensor_copy(c, t))
  return c
end

--- t:to(device) -> the tensor in the memory of "cuda" (the first GPU), "cuda:1", …, or "cpu" | nil, msg, code
-- A copy, unless it is there already. On a device it has type, numel, bytes, size, rows, reshape, as, to, where, show
-- and free; all else wants t:to "cpu" first. nibble.cuda says what devices there are.
function methods.to(t, device) return require("nibble.cuda").to(t, device) end

--- t:where() -> "cpu", "cuda:0", …: whose memory it lies in.
function methods.where() return "cpu" end

--- t:cast(dtype [, {saturate = true}]) -> a new tensor with the same values in another dtype.
-- Rounds to nearest even, once. saturate: what lies beyond the range becomes the greatest finite
-- value instead of infinity or NaN. To integers: half to even, into the range; NaN is 0.
function methods.cast(t, dtype, options)
  M.dtype_id(dtype)
  local out = M.new(dtype, t:size())
  must(C.nb_cast(out, t, options and options.saturate and 1 or 0))
  return out
end

--- t:drop(): mapped pages of t need not stay resident; the data stay readable.
function methods.drop(t) C.nb_tensor_drop(t) end

--- t:free(): gives the storage back now; t is empty afterwards.
function methods.free(t)
  C.nb_tensor_release(t)
  t.ndim, t.shape[0] = 1, 0
end

-- Elements between two looks at the stop flag (compiled loops see no Ctrl-C): 512 KiB of doubles.
local map_block = 65536

--- t:totable() -> flat Lua table of numbers.
function methods.totable(t)
  local out, get = {}, getters[t.dtype]
  for i = 1, t:numel() do
    if i % map_block == 0 then nffi.stop_check() end
    out[i] = get(t, i - 1)
  end
  return out
end

--- t:fill(v) -> t: every element v, rounded as t:cast rounds.
function methods.fill(t, v)
  C.nb_tensor_fill(t, v)
  return t
end

--- t:map(fn [, out]) -> out
-- out[i] = fn(t[i]) for every element, rounded as t:cast rounds; out: a tensor of as many
-- elements, any dtype, default t itself. A compiled loop over blocks of doubles.
function methods.map(t, fn, out)
  out = out or t
  local n = t:numel()
  if out:numel() ~= n then error(("map: %d elements into %d"):format(n, out:numel()), 2) end
  local block = ffi.new("double[?]", math.min(map_block, n))
  for at = 0, n - 1, map_block do
    nffi.stop_check()
    local count = math.min(map_block, n - at)
    must(C.nb_tensor_load_f64(block, t, at, count))
    for i = 0, count - 1 do block[i] = fn(block[i]) end
    must(C.nb_tensor_store_f64(out, at, block, count))
  end
  return out
end

--- t:transpose() -> a new [n,m] tensor of an [m,n] one (8-, 16- and 32-bit elements).
function methods.transpose(t)
  if t.ndim ~= 2 then error(("transpose: expected 2 dimensions, found %d"):format(t.ndim), 2) end
  local out = M.new(t:type(), { t:size(2), t:size(1) })
  must(C.nb_transpose(out, t))
  return out
end

--- t:stats() -> {numel, zeros, nan, inf, min, max, absmax, mean, std, kurtosis}
-- NaN and infinities are counted and left out of the rest; kurtosis is 3 for a normal distribution.
function methods.stats(t)
  local s = ffi.new "nb_stats"
  must(C.nb_tensor_stats(s, t))
  return { numel = tonumber(s.numel), zeros = tonumber(s.zeros), nan = tonumber(s.nan), inf = tonumber(s.inf),
           min = s.min, max = s.max, absmax = s.absmax, mean = s.mean, std = s.std, kurtosis = s.kurtosis }
end

-- A place that C counts from 0, -1 for none, counted from 1.
local function place(i) return i >= 0 and tonumber(i) + 1 or nil end

--- t:scan() -> {numel, nan, inf, zeros, negative, subnormal, zero_rows, first_odd, first_zero, first_negative, first_zero_row}
-- What values must not be, at the rate of memory: counts, and the first place of each, 1-based in the flattened
-- tensor (nil: nowhere); odd: NaN or infinite; zero_rows: rows of the last dimension with nothing but zeros. Of
-- integers only zeros and negative ones.
function methods.scan(t)
  local s = ffi.new "nb_value_scan"
  must(C.nb_tensor_scan(s, t))
  local out = { first_odd = place(s.first_odd), first_zero = place(s.first_zero), first_negative = place(s.first_negative),
    first_zero_row = place(s.first_zero_row) }
  for _, field in ipairs { "numel", "nan", "inf", "zeros", "negative", "subnormal", "zero_rows" } do
    out[field] = tonumber(s[field])
  end
  return out
end

--- t:hist([bins = 32 [, lo, hi]]) -> {counts…, lo =, hi =}
-- Counts of equal spans of lo..hi, by default -absmax..absmax (0..max where nothing is negative).
function methods.hist(t, bins, lo, hi)
  bins = bins or 32
  if not lo then
    local s = t:stats()
    lo, hi = s.min < 0 and -s.absmax or 0, s.absmax
    if hi == lo then hi = lo + 1 end
  end
  if bins < 1 or bins > 65536 then error(("hist: %d bins, expected 1 to 65536"):format(bins), 2) end
  local counts = ffi.new("int64_t[?]", bins)
  must(C.nb_tensor_hist(counts, bins, lo, hi, t))
  local out = { lo = lo, hi = hi }
  for i = 1, bins do out[i] = tonumber(counts[i - 1]) end
  return out
end

--- t:quantize{scheme = "W4A16", group = 128, method = "rtn", …} -> Quantized | nil, msg, code
-- The scheme's fields, the method and the method's options in one table (nibble.quant).
function methods.quantize(t, options) return require("nibble.quant").of_tensor(t, options) end

--- t:show() -> text: the one line and a corner of the values.
function methods.show(t) return require("nibble.show").corner(t) end

--- compare(a, b) -> {mse, sqnr_db, cosine, max_abs, max_at, worst_row, worst_row_share, by_column, odd}
-- b against a, tensors of one shape or quantized weights (dequantized). sqnr_db: signal to quantization
-- noise, 10 log10(|a|² / |a-b|²), math.huge where they are equal; worst_row is 1-based, its share that of
-- the squared error; by_column: 16 sums of squared error over equal spans of the last dimension. odd: pairs
-- that differ by a NaN or an infinity; they are in none of the sums.
function M.compare(a, b)
  local function float(x)
    if type(x) == "table" and x.dequantize then x = x:dequantize() end
    if not ffi.istype(tensor_t, x) then error("compare: expected a tensor, found " .. M.found(x), 3) end
    return x
  end
  a, b = float(a), float(b)
  local c, bins = ffi.new "nb_comparison", math.min(16, a.ndim > 0 and a:size(a.ndim) or 1)
  local columns = ffi.new("double[?]", 64)
  must(C.nb_tensor_compare(c, columns, bins, a, b))
  local n, by_column = tonumber(c.numel), {}
  for i = 1, bins do by_column[i] = columns[i - 1] end
  local lost = c.error2 > 0
  return setmetatable({
    mse = n > 0 and c.error2 / n or 0, sqnr_db = lost and 10 * math.log10(c.a2 / c.error2) or math.huge,
    cosine = c.a2 > 0 and c.b2 > 0 and c.dot / math.sqrt(c.a2 * c.b2) or (lost and 0 or 1), max_abs = c.max_abs, odd = tonumber(c.odd),
    max_at = lost and tonumber(c.max_at) + 1 or nil, worst_row = lost and tonumber(c.worst_row) + 1 or nil,
    worst_row_share = lost and c.worst_error2 / c.error2 or nil, by_column = by_column,
  }, { __tostring = function(r) return require("nibble.show").comparison(r) end })
end

M.methods = methods

-- t[i]: element i of one dimension, row i as a view of more; t[{i, j}]: an element.
local function index(t, key)
  if type(key) == "number" then
    if t.ndim == 1 then return getters[t.dtype](t, index_of(t, key, 2)) end
    local rows = t.ndim > 0 and tonumber(t.shape[0]) or 0
    if not (key >= 1 and key <= rows) then outside(key, rows, 2) end
    local row, shape = t:rows(key, key), t:size()
    table.remove(shape, 1)
    return row:reshape(shape)
  end
  local method = methods[key]
  if method then return method end
  if type(key) == "string" then error(("a tensor has no field or method %q"):format(key), 2) end
  return getters[t.dtype](t, index_of(t, key, 2))
end

local function assign(t, key, v)
  if type(key) == "string" then error(("a tensor has no field %q"):format(key), 2) end
  if type(key) == "number" and t.ndim ~= 1 then
    error(("t[%s] = v needs one dimension, found %d; say t[{row, column}] = v"):format(tostring(key), t.ndim), 2)
  end
  methods.set(t, key, v)
end

ffi.metatype(tensor_t, {
  __index = index,
  __newindex = assign,
  __tostring = function(t) return require("nibble.show").line(t) end,
  __gc = C.nb_tensor_release,
  __len = function(t) return tonumber(t.shape[0]) end,
})

return M

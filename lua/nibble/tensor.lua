-- tensor: nb_tensor as a Lua value: making, indexing, viewing.
local ffi = require "ffi"
local nffi = require "nibble.ffi"
local C, must = nffi.C, nffi.must

local M = {}

local tensor_t = ffi.typeof "nb_tensor"
local shape_t = ffi.typeof "int64_t[6]"

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

--- new(dtype, shape [, values]) -> tensor
-- A zero-filled tensor; values: a flat Lua table, row-major.
function M.new(dtype, shape, values)
  local id = M.dtype_id(dtype)
  local s, ndim = shape_of(shape, 2)
  M.collect_if_full()
  local t = tensor_t()
  must(C.nb_tensor_new(t, id, ndim, s))
  if values then
    for i = 1, #values do t:set(i, values[i]) end
  end
  return t
end

--- collect_if_full(): the Lua collector cannot see tensors' bytes; when more
-- than the soft limit lives, collect.
function M.collect_if_full()
  if C.nb_live_bytes() > nffi.soft_limit_bytes then collectgarbage() end
end

M.type = tensor_t
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

--- t:ptr() -> cdata pointer to the first element (0-based; raw bytes where the
-- dtype has no C counterpart). The tensor must stay alive while it is used.
function methods.ptr(t)
  return ffi.cast(pointers[t.dtype] or "uint8_t *", t.data)
end

--- t:type() -> "bf16", "i32", …: the dtype's name (t.dtype is C's number for it).
function methods.type(t) return names[t.dtype] end

function methods.numel(t) return tonumber(C.nb_tensor_numel(t)) end
function methods.bytes(t) return tonumber(C.nb_tensor_bytes(t)) end

--- t:size([i]) -> dimensions as a table, or dimension i (1-based).
function methods.size(t, i)
  if i then return tonumber(t.shape[i - 1]) end
  local s = {}
  for d = 1, t.ndim do s[d] = tonumber(t.shape[d - 1]) end
  return s
end

--- t:get(i) -> number: element i of the flattened tensor, 1-based.
function methods.get(t, i)
  if i < 1 or i > t:numel() then error(("index %d is outside 1..%d"):format(i, t:numel()), 2) end
  local v = t:ptr()[i - 1]
  return type(v) == "cdata" and tonumber(v) or v
end

--- t:set(i, v): element i of the flattened tensor, 1-based.
function methods.set(t, i, v)
  if i < 1 or i > t:numel() then error(("index %d is outside 1..%d"):format(i, t:numel()), 2) end
  t:ptr()[i - 1] = v
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

--- t:totable() -> flat Lua table of numbers.
function methods.totable(t)
  local out, p = {}, t:ptr()
  for i = 1, t:numel() do out[i] = tonumber(p[i - 1]) end
  return out
end

--- t:quantize{scheme="W4A16", group=128, method="rtn", …} -> Quantized | nil, msg, code: see quant.of_tensor.
function methods.quantize(t, options) return require "nibble.quant".of_tensor(t, options) end

M.methods = methods

ffi.metatype(tensor_t, {
  __index = function(_, key) return methods[key] end,
  __gc = C.nb_tensor_release,
  __len = function(t) return tonumber(t.shape[0]) end,
})

return M

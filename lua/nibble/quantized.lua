-- quantized: the one in-memory form of a quantized weight, or of a tile of its rows (DESIGN 4).
--
--   codes   u8  [n,k]  ints: unsigned, one a byte: u = q + 2^(bits-1) when symmetric; e2m1: one code a byte
--           f8_e4m3 [n,k]  8-bit floats
--   scales      [n,G]  f16, bf16 or f32; strategy "tensor" repeats its one scale in every row;
--               strategy "block" [ceil(n/rows), ceil(k/columns)]; of floats also f8_e4m3 or f8_e8m0
--   zeros   u8  [n,G]  or nil when symmetric (the zero-point is 2^(bits-1) everywhere)
--   g_idx   i32 [k]    group of each column (0-based), or nil when column c has group c // group
--   global  f32 [1]    strategy "tensor_group": what the scales are divided by
--   factor  f32 [1] or nil: what the scales are multiplied with, where a file says that (ModelOpt's weight_scale_2);
--               global is then its reciprocal; likewise input_factor
--   input_scale, input_global   f32 [1] or nil: the layer's input, where its scales come from calibration;
--   input_zero  i8 [1] or nil: its zero-point (signed, as compressed-tensors stores it)
--   bias        [n]    or nil: carried along, no part of equality or hashes
-- weight = (code - zero) * scale of ints; code * (scale / global) of floats.
local ffi = require "ffi"
local nffi = require "nibble.ffi"
local tensor = require "nibble.tensor"
local scheme = require "nibble.scheme"
local C = nffi.C

local M = {}
local methods = {}
local meta = { __index = methods }

-- Parts of the whole tensor: the same in every tile.
local whole_parts = { "global", "input_scale", "input_zero", "input_global" }

--- new(scheme, n, k, scale_dtype [, g_idx [, new]]) -> Quantized, zero-filled.
-- scale_dtype: of plain float scales; e8m0 and f8_e4m3 are the scheme's own. new: tensor.new's like, for codes,
-- scales and zeros.
function M.new(s, n, k, scale_dtype, g_idx, new)
  local groups = scheme.groups(s, k)
  new = new or tensor.new
  local own = s.scale_dtype == "e8m0" or s.scale_dtype == "f8_e4m3"
  return setmetatable({
    n = n, k = k, groups = groups, scheme = s, row0 = 1,
    codes = new(scheme.code_dtype(s), { n, k }),
    scales = new(scheme.scale_storage(own and s.scale_dtype or scale_dtype or s.scale_dtype or "f32"),
      { scheme.scale_rows(s, n), groups }),
    zeros = not s.symmetric and new("u8", { n, groups }) or nil,
    global = s.strategy == "tensor_group" and tensor.new("f32", { 1 }, { 1 }) or nil,
    g_idx = g_idx,
  }, meta)
end

--- params(scheme, n, k, scale_dtype [, new]) -> Quantized without codes: what is left when a format's words
-- are moved as they are. Formats' read and write then move everything but the words. new: tensor.new's like.
function M.params(s, n, k, scale_dtype, new)
  local groups = scheme.groups(s, k)
  new = new or tensor.new
  return setmetatable({
    n = n, k = k, groups = groups, scheme = s, row0 = 1,
    scales = new(scheme.scale_storage(scale_dtype), { scheme.scale_rows(s, n), groups }),
    zeros = not s.symmetric and new("u8", { n, groups }) or nil,
    global = s.strategy == "tensor_group" and tensor.new("f32", { 1 }, { 1 }) or nil,
  }, meta)
end

--- wrap(fields) -> Quantized over tensors that exist: {scheme=, codes=, scales=, zeros=, g_idx=, global=,
-- input_scale=, input_zero=, input_global=, bias=}.
function M.wrap(f)
  local n, k = f.codes:size(1), f.codes:size(2)
  return setmetatable({
    n = n, k = k, groups = f.scales:size(2), scheme = f.scheme, row0 = f.row0 or 1,
    codes = f.codes, scales = f.scales, zeros = f.zeros, g_idx = f.g_idx, bias = f.bias, global = f.global,
    input_scale = f.input_scale, input_zero = f.input_zero, input_global = f.input_global, factor = f.factor,
    input_factor = f.input_factor,
  }, meta)
end

local function window(q, a, b, rows)
  return M.wrap {
    scheme = q.scheme, row0 = q.row0 + a - 1, codes = q.codes:rows(a, b),
    scales = q.scales:rows((a - 1) / rows + 1, math.ceil(b / rows)),
    zeros = q.zeros and q.zeros:rows(a, b), g_idx = q.g_idx, bias = q.bias and q.bias:rows(a, b), global = q.global,
    input_scale = q.input_scale, input_zero = q.input_zero, input_global = q.input_global, factor = q.factor,
    input_factor = q.input_factor,
  }
end

--- q:rows(a, b) -> Quantized over rows a..b (views), 1-based and inclusive. With strategy "block", a begins a
-- block and b ends one or the weight.
function methods.rows(q, a, b)
  local rows = scheme.block(q.scheme, q.n, q.k)
  if (a - 1) % rows ~= 0 or (b % rows ~= 0 and b ~= q.n) then
    error(("rows %d..%d: blocks are %d rows high; begin at 1 + a multiple of that and end on one"):format(a, b, rows), 2)
  end
  return window(q, a, b, rows)
end

--- q:top(count) -> Quantized over the first rows (views): storage for a weight's last tile, whose last block
-- may be cut.
function methods.top(q, count) return window(q, 1, count, (scheme.block(q.scheme, q.n, q.k))) end

local function same_or_both_nil(a, b)
  if a == nil or b == nil then return a == b end
  return a:equal(b)
end

-- A copy of slices from..from+size-1 (0-based) of t along dimension dim (0-based).
local function slices(t, dim, from, size)
  local shape = t:size()
  shape[dim + 1] = size
  local out = tensor.new(t:type(), shape)
  nffi.must(C.nb_tensor_copy_block(out, t, dim, 0, from, size))
  return out
end

-- q with some fields changed.
local function with(q, changes) return M.wrap(setmetatable(changes, { __index = q })) end

--- q:columns(a, b) -> Quantized over columns a..b, 1-based and inclusive: copies. What shares a scale is not torn apart (an error),
-- but with g_idx, where all scales stay.
function methods.columns(q, a, b)
  if a == 1 and b == q.k then return q end
  local codes, _, columns = slices(q.codes, 1, a - 1, b - a + 1), scheme.block(q.scheme, q.n, q.k)
  if q.g_idx then return with(q, { codes = codes, g_idx = q.g_idx:rows(a, b):clone() }) end
  if q.groups == 1 then return with(q, { codes = codes }) end
  if (a - 1) % columns ~= 0 or (b % columns ~= 0 and b ~= q.k) then
    error(("columns %d..%d: %d of them share a scale; begin at 1 + a multiple of that and end on one"):format(a, b, columns), 2)
  end
  local first, count = (a - 1) / columns, math.ceil(b / columns) - (a - 1) / columns
  return with(q, { codes = codes, scales = slices(q.scales, 1, first, count), zeros = q.zeros and slices(q.zeros, 1, first, count) })
end

--- joined(list) -> Quantized: weights of one scheme and K, one below the other | nil, msg, "eunsupported" where numbers that belong
-- to the whole of them differ.
function M.joined(list)
  local first, n = list[1], 0
  if #list == 1 then return first end
  for i, q in ipairs(list) do
    n = n + q.n
    if q.k ~= first.k or not scheme.same(q.scheme, first.scheme) then
      return nil, ("part %d of the weight is %d columns of %s, the first %d of %s"):format(i, q.k, scheme.describe(q.scheme), first.k,
        scheme.describe(first.scheme)), "eunsupported"
    end
    for _, part in ipairs { "global", "factor", "input_scale", "input_zero", "input_global", "g_idx" } do
      if not same_or_both_nil(q[part], first[part]) then
        return nil, ("parts 1 and %d of the weight have another %s each"):format(i, part), "eunsupported"
      end
    end
  end
  local out = {}
  for _, part in ipairs { "codes", "scales", "zeros" } do
    local at = 0
    for _, q in ipairs(first[part] and list or {}) do
      if not out[part] then
        local rows = part == "codes" and n or scheme.scale_rows(q.scheme, n)
        out[part] = tensor.new(q[part]:type(), { rows, q[part]:size(2) })
      end
      local rows = q[part]:size(1)
      nffi.must(C.nb_tensor_copy_block(out[part], q[part], 0, at, 0, rows))
      at = at + rows
    end
  end
  local q = with(first, out)
  q.bias = nil
  return q
end

-- Plain floats, or bf16 for scales that are none.
local function default_dtype(q)
  local dtype = q.scales:type()
  return (dtype == "f8_e4m3" or dtype == "f8_e8m0") and "bf16" or dtype
end

--- q:to(device) -> the weight with its codes, scales and zero-points in the memory of "cpu", "cuda", … | nil, msg, code
-- What is small (g_idx, global scales, bias) stays in the computer's memory. On a device it dequantizes there.
function methods.to(q, device)
  local moved = setmetatable({}, meta)
  for field, value in pairs(q) do moved[field] = value end
  for _, part in ipairs { "codes", "scales", "zeros" } do
    local msg, code
    if q[part] then
      moved[part], msg, code = q[part]:to(device)
      if not moved[part] then return nil, msg, code end
    end
  end
  return moved
end

--- q:dequantize([dtype [, out]]) -> tensor [n,k] of dtype (f32, bf16, f16; default: the scales' dtype, bf16
-- where they are f8_e4m3 or e8m0). In float32, rounded once to dtype. out: a tensor to fill instead of a new one.
-- A global scale of 0, NaN or Inf is an error (CTM-NVFP4-07). Of a weight on a device: there, without out | nil, msg, code.
function methods.dequantize(q, dtype, out)
  if not ffi.istype(tensor.type, q.codes) then return require("nibble.cuda").dequantize(q, { dtype = dtype }) end
  out = out or tensor.new(dtype or default_dtype(q), { q.n, q.k })
  if q.scheme.type == "int" then
    nffi.must(C.nb_dequantize(out, q.codes, q.scales, q.zeros, q.g_idx, q.scheme.bits))
  else
    local rows, columns = scheme.block(q.scheme, q.n, q.k)
    local exact = q.factor and tensor.new("f32", { q.n, q.k }) -- code * scale, which float32 holds
    nffi.must(C.nb_dequantize_float(exact or out, q.codes, q.scales, not exact and q.global or nil, rows, columns))
    if exact then nffi.must(C.nb_scales_multiply(out, exact, q.factor:get(1))) end
  end
  return out
end

-- Symmetric storage and stored zero-points that are all 2^(bits-1) are the same numbers.
local function zeros_equal(a, b)
  if a.zeros and b.zeros then return a.zeros:equal(b.zeros) end
  local stored = a.zeros or b.zeros
  if not stored then return true end
  local z, p = scheme.zero_code(a.scheme), stored:ptr()
  for i = 0, stored:numel() - 1 do
    if p[i] ~= z then return false end
  end
  return true
end

--- q:equal(o) -> true | false, which
-- Same type, bits, codes, scales, zero-points, column groups, global and input scales; which names the
-- first part that differs. Numbers count, not their storage: scales of two dtypes may be equal, and a
-- symmetric weight equals one whose stored zero-points are all 2^(bits-1).
function methods.equal(q, o)
  for _, x in ipairs { q, o } do
    if not ffi.istype(tensor.type, x.scales) then -- what is always there: params have no codes
      error("equal: expected a quantized weight in the computer's memory, found " .. tensor.found(x.scales), 2)
    end
  end
  if q.n ~= o.n or q.k ~= o.k then return false, "shape" end
  if q.scheme.type ~= o.scheme.type then return false, "type" end
  if q.scheme.bits ~= o.scheme.bits then return false, "bits" end
  if not same_or_both_nil(q.codes, o.codes) then return false, "codes" end
  if C.nb_scales_equal(q.scales, o.scales) == 0 then return false, "scales" end
  if not zeros_equal(q, o) then return false, "zeros" end
  if not same_or_both_nil(q.g_idx, o.g_idx) then return false, "g_idx" end
  for _, part in ipairs(whole_parts) do
    if not same_or_both_nil(q[part], o[part]) then return false, part end
  end
  return true
end

--- q:hash_into(hash): streams the content into an nb_hash (C.nb_hash_new()).
-- Row after row, codes, scales, zero-points; what belongs to the whole tensor before row 1. So the hash of a
-- weight is that of its tiles one after another, whatever their size; equal weights (q:equal) have equal hashes.
function methods.hash_into(q, hash)
  if q.row0 == 1 and q.g_idx then C.nb_hash_update(hash, q.g_idx.data, q.g_idx:bytes()) end
  for _, part in ipairs(whole_parts) do
    if q.row0 == 1 and q[part] then
      C.nb_hash_update(hash, part, #part)
      C.nb_hash_update(hash, q[part].data, q[part]:bytes())
    end
  end
  if q.scheme.type == "int" then
    nffi.must(C.nb_hash_rows(hash, q.codes, q.scales, q.zeros, q.scheme.bits))
  else
    local rows, columns = scheme.block(q.scheme, q.n, q.k)
    nffi.must(C.nb_hash_float_rows(hash, q.codes, q.scales, rows, columns))
  end
end

--- q:hash() -> 32 hex digits of hash_into alone.
function methods.hash(q)
  local h = C.nb_hash_new()
  if h == nil then error("out of memory for a hash", 0) end
  h = ffi.gc(h, C.nb_hash_free)
  q:hash_into(h)
  local hex = ffi.new "char[33]"
  C.nb_hash_hex(h, hex)
  return ffi.string(hex)
end

--- q:bytes() -> bytes of the tensors held.
function methods.bytes(q)
  local total = q.codes:bytes() + q.scales:bytes()
  for _, part in ipairs { "zeros", "g_idx", "bias", "global", "input_scale", "input_zero", "input_global" } do
    if q[part] then total = total + q[part]:bytes() end
  end
  return total
end

function meta.__tostring(q)
  local where = q.scales:where()
  return ("quantized [%d×%d]  %s  scales %s%s"):format(q.n, q.k, scheme.describe(q.scheme), q.scales:type(),
    where == "cpu" and "" or "  on " .. where)
end

M.methods = methods -- for completion

return M

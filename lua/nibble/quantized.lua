-- quantized: the one in-memory form of a quantized weight, or of a tile of its rows (DESIGN 4).
--
--   codes   u8  [n,k]  unsigned, one a byte: u = q + 2^(bits-1) when symmetric
--   scales      [n,G]  f16, bf16 or f32; strategy "tensor" repeats its one scale in every row
--   zeros   u8  [n,G]  or nil when symmetric (the zero-point is 2^(bits-1) everywhere)
--   g_idx   i32 [k]    group of each column (0-based), or nil when column c has group c // group
--   bias        [n]    or nil: carried along, no part of equality or hashes
-- weight = (code - zero) * scale.
local ffi = require "ffi"
local nffi = require "nibble.ffi"
local tensor = require "nibble.tensor"
local scheme = require "nibble.scheme"
local C = nffi.C

local M = {}
local methods = {}
local meta = { __index = methods }

--- new(scheme, n, k, scale_dtype [, g_idx]) -> Quantized, zero-filled.
function M.new(s, n, k, scale_dtype, g_idx)
  local groups = scheme.groups(s, k)
  return setmetatable({
    n = n, k = k, groups = groups, scheme = s, row0 = 1,
    codes = tensor.new("u8", { n, k }),
    scales = tensor.new(scale_dtype or s.scale_dtype or "f32", { n, groups }),
    zeros = not s.symmetric and tensor.new("u8", { n, groups }) or nil,
    g_idx = g_idx,
  }, meta)
end

--- params(scheme, n, k, scale_dtype [, new]) -> Quantized without codes: what is left when a format's words
-- are moved as they are. Formats' read and write then move everything but the words. new: tensor.new's like.
function M.params(s, n, k, scale_dtype, new)
  local groups = scheme.groups(s, k)
  new = new or tensor.new
  return setmetatable({
    n = n, k = k, groups = groups, scheme = s, row0 = 1, scales = new(scale_dtype, { n, groups }),
    zeros = not s.symmetric and new("u8", { n, groups }) or nil,
  }, meta)
end

--- wrap(fields) -> Quantized over tensors that exist: {scheme=, codes=, scales=, zeros=, g_idx=, bias=}.
function M.wrap(f)
  local n, k = f.codes:size(1), f.codes:size(2)
  return setmetatable({
    n = n, k = k, groups = f.scales:size(2), scheme = f.scheme, row0 = f.row0 or 1,
    codes = f.codes, scales = f.scales, zeros = f.zeros, g_idx = f.g_idx, bias = f.bias,
  }, meta)
end

--- q:rows(a, b) -> Quantized over rows a..b (views), 1-based and inclusive.
function methods.rows(q, a, b)
  return M.wrap {
    scheme = q.scheme, row0 = q.row0 + a - 1, codes = q.codes:rows(a, b), scales = q.scales:rows(a, b),
    zeros = q.zeros and q.zeros:rows(a, b), g_idx = q.g_idx, bias = q.bias and q.bias:rows(a, b),
  }
end

--- q:dequantize([dtype [, out]]) -> tensor [n,k] of dtype (f32, bf16, f16; default: the scales' dtype).
-- w = (code - zero) * scale in float32, rounded once to dtype. out: a tensor to fill instead of a new one.
function methods.dequantize(q, dtype, out)
  out = out or tensor.new(dtype or q.scales:type(), { q.n, q.k })
  nffi.must(C.nb_dequantize(out, q.codes, q.scales, q.zeros, q.g_idx, q.scheme.bits))
  return out
end

local function same_or_both_nil(a, b)
  if a == nil or b == nil then return a == b end
  return a:equal(b)
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
-- Same bits, codes, scales, zero-points and column groups; which names the first part that differs.
-- Numbers count, not their storage: scales of two dtypes may be equal, and a symmetric weight equals
-- one whose stored zero-points are all 2^(bits-1).
function methods.equal(q, o)
  if q.n ~= o.n or q.k ~= o.k then return false, "shape" end
  if q.scheme.bits ~= o.scheme.bits then return false, "bits" end
  if not same_or_both_nil(q.codes, o.codes) then return false, "codes" end
  if C.nb_scales_equal(q.scales, o.scales) == 0 then return false, "scales" end
  if not zeros_equal(q, o) then return false, "zeros" end
  if not same_or_both_nil(q.g_idx, o.g_idx) then return false, "g_idx" end
  return true
end

--- q:hash_into(hash): streams the content into an nb_hash (C.nb_hash_new()).
-- Row after row, codes, scales, zero-points; the column groups before row 1. So the hash of a weight
-- is that of its tiles one after another, whatever their size; equal weights (q:equal) have equal hashes.
function methods.hash_into(q, hash)
  if q.row0 == 1 and q.g_idx then C.nb_hash_update(hash, q.g_idx.data, q.g_idx:bytes()) end
  nffi.must(C.nb_hash_rows(hash, q.codes, q.scales, q.zeros, q.scheme.bits))
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
  for _, t in ipairs { q.zeros or false, q.g_idx or false, q.bias or false } do
    if t then total = total + t:bytes() end
  end
  return total
end

function meta.__tostring(q)
  return ("quantized [%d×%d]  %s  scales %s"):format(q.n, q.k, scheme.describe(q.scheme), q.scales:type())
end

return M

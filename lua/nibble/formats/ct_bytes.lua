-- formats.ct_bytes: compressed-tensors' weights in bytes (FORMATS 4): int-, float- and naive-quantized,
-- nvfp4- and mxfp4-pack-quantized, mxfp8-quantized.
--
--   weight             I8 [n,k]       q = u - 2^(b-1), 2 to 8 bits
--                      F8_E4M3 [n,k]  FP8, MXFP8
--   weight_packed      U8 [n,k/2]     two e2m1 codes, the even column in the low nibble
--   weight_zero_point  I8 [n,G]       only ints, when asymmetric: signed, as the codes
-- and the scales of ct_scales.
local nffi = require "nibble.ffi"
local scheme = require "nibble.scheme"
local text = require "nibble.text"
local common = require "nibble.formats.common"
local config = require "nibble.formats.ct_config"
local scales = require "nibble.formats.ct_scales"
local C, must = nffi.C, nffi.must
local fail, expect = common.fail, common.expect

local M = {}

-- Formats and what weights they hold.
M.names = {
  ["int-quantized"] = "int", ["float-quantized"] = "float", ["naive-quantized"] = "any", ["nvfp4-pack-quantized"] = "float",
  ["mxfp4-pack-quantized"] = "float", ["mxfp8-quantized"] = "float",
}

-- The tensor that holds a scheme's codes, its dtype, and columns in one element of it.
local function codes_of(s)
  if s.type == "int" then return "weight", "i8", 1 end
  if s.bits == 8 then return "weight", "f8_e4m3", 1 end
  return "weight_packed", "u8", 2
end

-- ---- what a module is -----------------------------------------------------------------

-- Whether the tensors are those of the scheme; otherwise the first that isn't.
local function tensors_fit(module, tensors, s, says)
  local suffix, dtype, columns = codes_of(s)
  local ok, msg, code = expect(module, tensors, suffix, dtype)
  if not ok then return nil, msg, code end
  local shape = tensors[suffix].shape
  if #shape ~= 2 then return fail("eformat", "%s: %s is %s, expected two dimensions", module, suffix, text.shape(shape)) end
  local n, k = shape[1], shape[2] * columns
  if n < 1 or k < 1 then return fail("eformat", "%s: %s is %s, expected at least one row and column", module, suffix, text.shape(shape)) end
  local bad = common.group_fault(s, k)
  if bad then return common.contradiction(module, says, ("k = %d is not a multiple of %d"):format(k, s.group)) end
  local why = ("the config says %s and the weight is [%dx%d]"):format(says, n, k)
  ok, msg, code = scales.fit(module, tensors, s, n, k, why)
  if ok and not s.symmetric then
    ok, msg, code = expect(module, tensors, "weight_zero_point", "i8", { scales.zeros_shape(s, n, k) }, why)
  end
  if ok then ok, msg, code = common.bias_ok(module, tensors, n) end
  if not ok then return nil, msg, code end
  return { n = n, k = k }
end

--- probe(ck, module, tensors, settings, group, key) -> what its record has in common with others' | nil, msg, code
function M.probe(_, module, tensors, st, g, key)
  if g and g.seen[key] then return g.seen[key] end
  local note
  if not g then g, note = config.fitting(st, function(s) return tensors_fit(module, tensors, s, "") end) end
  if not g then
    return fail("eformat", "%s: no target of %s's config groups names it, and %s", module, st.where, note)
  end
  local s = g.scheme
  local like, msg, code = tensors_fit(module, tensors, s, ("%s (config group %s)"):format(scheme.describe(s), g.name))
  if not like then return nil, msg, code end
  local stored = tensors.weight_scale.dtype
  like.dtype = stored == "u8" and "f8_e8m0" or stored
  like.scheme = common.with(s, { scale_dtype = stored ~= "u8" and stored ~= "f8_e8m0" and stored or "e8m0" })
  like.note = note or scales.note(tensors, s)
  if not note then g.seen[key] = like end
  return like
end

-- ---- reading and writing ----------------------------------------------------------------

--- row_step(rec) -> tiles begin at 1 + a multiple of this many rows: whole blocks.
function M.row_step(rec) return (scheme.block(rec.scheme, rec.n, rec.k)) end

local function same_rows(a, b) return a, b end

--- layout(rec) -> array of layout entries, without the bias (see formats).
function M.layout(rec)
  local s, n, k = rec.scheme, rec.n, rec.k
  local suffix, dtype, columns = codes_of(s)
  local out = { { suffix = suffix, dtype = dtype, shape = { n, k / columns }, rows = same_rows } }
  for _, entry in ipairs(scales.layout(rec)) do out[#out + 1] = entry end
  if not s.symmetric then
    out[#out + 1] = { suffix = "weight_zero_point", dtype = "i8", shape = scales.zeros_shape(s, n, k),
      rows = s.strategy ~= "tensor" and same_rows or nil }
  end
  return out
end

--- read(src, rec, a, b, q) -> true | nil, msg, code: rows a..b into the tile q.
function M.read(src, rec, a, b, q)
  local s = rec.scheme
  if q.codes and s.type == "int" then
    local rc, msg, code = nffi.check(C.nb_int8_unpack(q.codes, src.weight, s.bits, a - 1, rec.name))
    if not rc then return nil, msg, code end
  elseif q.codes and s.bits == 8 then must(C.nb_tensor_copy(q.codes, src.weight:rows(a, b)))
  elseif q.codes then must(C.nb_fp4_unpack(q.codes, src.weight_packed, a - 1)) end
  local ok, msg, code = scales.read(src, rec, a, b, q)
  if ok and not s.symmetric then ok, msg, code = scales.read_plain_zeros(q.zeros, src.weight_zero_point, rec, a) end
  return ok, msg, code
end

--- write(dst, rec, a, b, q, base) -> true | nil, msg, code: rows a..b from the tile q.
function M.write(dst, rec, a, b, q, base)
  local s = rec.scheme
  if s.type == "int" then must(C.nb_int8_pack(dst.weight, q.codes, s.bits, a - base))
  elseif s.bits == 8 then must(C.nb_tensor_copy(dst.weight:rows(a - base + 1, b - base + 1), q.codes))
  else must(C.nb_fp4_pack(dst.weight_packed, q.codes, a - base)) end
  local ok, msg, code = scales.write(dst, rec, a, b, q, base)
  if not ok then return nil, msg, code end
  if not s.symmetric and s.strategy ~= "tensor" then scales.write_plain_zeros(dst.weight_zero_point, q.zeros, rec, a - base + 1) end
  return true
end

--- can(scheme, n, k) -> true | false, reason
function M.can(s, _, k)
  local bad = common.group_fault(s, k)
  if bad then return false, bad end
  if s.actorder == "group" then return false, "compressed-tensors has column groups (act-order) only in packed weights" end
  if s.type == "float" and s.bits == 4 and k % 2 ~= 0 then return false, ("k = %d is odd, and two codes lie in a byte"):format(k) end
  local group = s.strategy == "tensor_group" and 16 or s.scale_dtype == "e8m0" and s.strategy == "group" and 32
  if group and s.group ~= group then
    return false, ("compressed-tensors has groups of %d for %s, not %d"):format(group, scheme.describe(s), s.group)
  end
  if s.activations and s.activations.strategy == "channel" then
    return false, 'compressed-tensors has no activations of strategy = "channel"'
  end
  return true
end

return M

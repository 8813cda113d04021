-- formats.ct_scales: the scales beside compressed-tensors' weights, whatever the weights' bytes: one a tensor,
-- row, group or block, and those of the layer's input (FORMATS 4).
--
--   weight_scale         [1], [n,1], [n,G] or [ceil(n/rows), ceil(k/columns)]
--   weight_global_scale  F32 [1]   what weight_scale is divided by (NVFP4)
--   input_scale          [1]       static activations; with input_zero_point I8 [1] where they are asymmetric
--   input_global_scale   F32 [1]   activations by tensor_group (NVFP4)
local nffi = require "nibble.ffi"
local schemes = require "nibble.scheme"
local common = require "nibble.formats.common"
local floats = require "nibble.formats.floats"
local C, must = nffi.C, nffi.must
local fail, expect = common.fail, common.expect

local M = {}

-- A group that is the whole row counts as a channel.
local function scheme_has_one_group(s, k) return s.strategy == "group" and schemes.groups(s, k) == 1 end

local one = { { 1 }, {}, { 1, 1 } }

--- shapes(scheme, n, k) -> the shapes that weight_scale may have, the one that is written first.
function M.shapes(s, n, k)
  if scheme_has_one_group(s, k) then return { { n, 1 }, { n } } end
  return floats.scale_shapes(s, n, k)
end

--- dtypes(scheme) -> the dtypes that weight_scale may have, as expect() takes them.
function M.dtypes(s)
  if s.scale_dtype == "e8m0" and s.strategy == "group" then return "u8 f8_e8m0" end
  if s.strategy == "tensor_group" then return "f8_e4m3" end
  return "f16 bf16 f32"
end

-- Which tensors belong to the input: suffix -> dtypes.
local function input_parts(s)
  local a = s.activations
  if not a or a.dynamic == true then return {} end
  if a.strategy == "tensor_group" then return { { "input_global_scale", "f32", "input_global" } } end
  local parts = { { "input_scale", "f32 bf16 f16", "input_scale" } }
  if not a.symmetric then parts[2] = { "input_zero_point", "i8", "input_zero" } end
  return parts
end

--- fit(module, tensors, scheme, n, k, why) -> true | nil, msg, code: whether all of them are there and fit.
function M.fit(module, tensors, s, n, k, why)
  local ok, msg, code = expect(module, tensors, "weight_scale", M.dtypes(s), M.shapes(s, n, k), why)
  if ok and s.strategy == "tensor_group" then ok, msg, code = expect(module, tensors, "weight_global_scale", "f32", one, why) end
  for _, part in ipairs(input_parts(s)) do
    if ok then ok, msg, code = expect(module, tensors, part[1], part[2], one, why) end
  end
  return ok, msg, code
end

--- note(tensors, scheme) -> sentence | nil: of scales of the input that nothing uses.
function M.note(tensors, s)
  if s.activations and s.activations.dynamic ~= true then return nil end
  for _, suffix in ipairs { "input_scale", "input_global_scale" } do
    if tensors[suffix] then return suffix .. " is there, but the config asks for none: it is left out" end
  end
end

--- layout(rec) -> array of layout entries (see formats).
function M.layout(rec)
  local s = rec.scheme
  local on_disk = rec.dtype == "f8_e8m0" and "u8" or rec.dtype
  local out = { { suffix = "weight_scale", dtype = on_disk, shape = M.shapes(s, rec.n, rec.k)[1],
    rows = floats.scale_rows(s), scales = true } }
  if s.strategy == "tensor_group" then out[2] = { suffix = "weight_global_scale", dtype = "f32", shape = { 1 } } end
  for _, part in ipairs(input_parts(s)) do
    out[#out + 1] = { suffix = part[1], dtype = part[2]:match "%S+", shape = { 1 } }
  end
  return out
end

local function read_whole(src, rec, q)
  local msg, code
  if rec.scheme.strategy == "tensor_group" then
    local global
    global, msg, code = floats.number(rec, src, "weight_global_scale")
    if not global then return nil, msg, code end
    must(C.nb_tensor_copy(q.global, global))
  end
  for _, part in ipairs(input_parts(rec.scheme)) do
    local stored = src[part[1]]
    if part[1] == "input_zero_point" then q[part[3]] = stored and stored:reshape({ 1 }):clone()
    else q[part[3]], msg, code = floats.number(rec, src, part[1]) end
    if stored and not q[part[3]] then return nil, msg, code end
  end
  return true
end

--- read(src, rec, a, b, q) -> true | nil, msg, code: rows a..b of them into the tile q.
function M.read(src, rec, a, b, q)
  floats.read_scales(floats.as_e8m0(src.weight_scale), rec, a, b, q)
  return read_whole(src, rec, q)
end

-- Strategy tensor stores one scale (and zero-point): every row of the tile must have it.
local function write_single(dst, rec, a, q)
  local stored = dst.weight_scale:reshape { 1, 1 }
  if a == 1 then
    local ok, msg, code = common.put_scales(stored, rec, q:rows(1, 1), 1)
    if not ok then return nil, msg, code end
    local stored_zero = dst.weight_zero_point
    if stored_zero then
      local signed = stored_zero:type() == "i8" and schemes.zero_code(rec.scheme) or 0
      stored_zero:ptr()[0] = q.zeros:get(1) - signed
    end
  end
  local first, bits = q.scales:rows(1, 1), q.zeros and q.zeros:get(1)
  local row = C.nb_scales_equal(first, stored) == 0 and a or nil
  for r = 2, row and 1 or q.n do
    if not q.scales:rows(r, r):equal(first) or (bits and q.zeros:get(r) ~= bits) then row = a + r - 1 end
  end
  if not row then return true end
  return fail("einval", '%s: strategy = "tensor", but row %d has another scale than row 0', rec.name, row - 1)
end

local function write_whole(dst, rec, q)
  if rec.scheme.strategy == "tensor_group" then must(C.nb_tensor_copy(dst.weight_global_scale, q.global)) end
  for _, part in ipairs(input_parts(rec.scheme)) do
    if not q[part[3]] then
      return fail("einval", "%s: %s needs the scale of the layer's input, which comes from calibration: name a text in the "
        .. "recipe's `calibrate`", rec.name, schemes.describe(rec.scheme))
    end
    must(C.nb_tensor_copy(dst[part[1]], q[part[3]]))
  end
  return true
end

--- write(dst, rec, a, b, q, base) -> true | nil, msg, code: from the tile q; dst's rows begin at weight row base.
function M.write(dst, rec, a, b, q, base)
  local s, ok, msg, code = rec.scheme
  if s.strategy == "tensor" then ok, msg, code = write_single(dst, rec, a, q)
  else
    local first = floats.scale_rows(s)(a - base + 1, b - base + 1)
    ok, msg, code = common.put_scales(floats.as_e8m0(dst.weight_scale), rec, q, first)
  end
  if ok and a == 1 then ok, msg, code = write_whole(dst, rec, q) end
  return ok, msg, code
end

--- read_plain_zeros(zeros, stored, rec, a) -> true | nil, msg, code
-- Zero-points that files leave unpacked (I8, signed), or that belong to the whole tensor, from row a on.
function M.read_plain_zeros(zeros, stored, rec, a)
  local p, half = zeros:ptr(), schemes.zero_code(rec.scheme)
  local groups = zeros:size(2)
  if rec.scheme.strategy == "tensor" then
    local z = stored:type() == "i8" and stored:ptr()[0] + half or stored:ptr()[0] % 2 ^ rec.scheme.bits
    for i = 0, zeros:numel() - 1 do p[i] = z end
    return true
  end
  local s = stored:ptr()
  for i = 0, zeros:numel() - 1 do
    local z = s[(a - 1) * groups + i] + half
    if z < 0 or z >= 2 * half then
      return fail("eformat", "%s: weight_zero_point of row %d, group %d is %d: it doesn't fit %d bits", rec.name,
        a - 1 + math.floor(i / groups), i % groups, z - half, rec.scheme.bits)
    end
    p[i] = z
  end
  return true
end

--- write_plain_zeros(stored, zeros, rec, at): zero-points u8 [r,G] as I8, signed, into rows at.. of stored.
function M.write_plain_zeros(stored, zeros, rec, at)
  local half, groups = schemes.zero_code(rec.scheme), zeros:size(2)
  local from, to = zeros:ptr(), stored:ptr()
  for i = 0, zeros:numel() - 1 do to[(at - 1) * groups + i] = from[i] - half end
end

--- zeros_shape(scheme, n, k) -> of unpacked zero-points.
function M.zeros_shape(s, n, k) return s.strategy == "tensor" and { 1 } or { n, schemes.groups(s, k) } end


return M

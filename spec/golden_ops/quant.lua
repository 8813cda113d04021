-- Golden operations: integer quantization and dequantization.
local nb = require "nibble"
local ffi = require "ffi"
local nffi = require "nibble.ffi"
local C, must = nffi.C, nffi.must
local layout = nb.layout

local ops = {}

-- Round to nearest in the weight's own arithmetic, as torch code does it.
local function rtn(w, bits, symmetric, group, range)
  local n, k = w:size(1), w:size(2)
  local groups = group > 0 and k / group or 1
  local q = { codes = nb.tensor("u8", { n, k }), scales = nb.tensor(w:type(), { n, groups }),
              zeros = not symmetric and nb.tensor("u8", { n, groups }) or nil }
  must(C.nb_rtn_quantize(q.codes, q.scales, q.zeros, w, ffi.new("nb_rtn_options", {
    bits = bits, symmetric = symmetric and 1 or 0, group = group, range = range or C.NB_RANGE_FULL,
    arithmetic = C.NB_ARITHMETIC_DTYPE })))
  return q
end

local function dequantize(dtype, codes, scales, zeros, g_idx, bits)
  local out = nb.tensor(dtype, codes:size())
  must(C.nb_dequantize(out, codes, scales, zeros, g_idx, bits))
  return out
end

-- Unsigned codes as the peers' signed bytes.
local function signed(u, bits, shape)
  local out = nb.tensor("i8", shape or u:size())
  for i = 0, out:numel() - 1 do out:ptr()[i] = (u and u:ptr()[i] or 2 ^ (bits - 1)) - 2 ^ (bits - 1) end
  return out
end

-- Quantizing and dequantizing in one go never leaves the floats, so values that round to 0 from below
-- stay -0 there where their zero-point is 0.
local function with_negative_zeros(w, x, zero_point)
  local out, k = w:clone(), w:size(2)
  local unit = w:type() == "f32" and "u32" or "u16"
  local p, q = out:as(unit):ptr(), x:as(unit):ptr()
  local sign = unit == "u32" and 0x80000000 or 0x8000
  for i = 0, w:numel() - 1 do
    if p[i] == 0 and q[i] >= sign and zero_point:ptr()[math.floor(i / k)] == 0 then p[i] = sign end
  end
  return out
end

-- A scale a channel of a weight is a scale a token of activations, whose arithmetic is float32's.
local function as_activations(x, p)
  if x:type() ~= "f32" then return nil end
  return assert(nb.act.quantize_dequantize(x, { type = p.type, bits = tonumber(p.num_bits), strategy = "token",
    symmetric = p.symmetric == "True", dynamic = true }))
end

function ops.ct_calculate_qparams_quantize(case)
  local bits, x = tonumber(case.params.num_bits), case.tensors["in.x"]
  if case.params.type == "float" then
    local q = assert(nb.quant.quantize(x, "FP8A16", { options = { arithmetic = "dtype" } }))
    local d = q:dequantize()
    return { ["out.scale"] = q.scales, ["out.zero_point"] = nb.tensor("f8_e4m3", { x:size(1), 1 }), ["out.q"] = q.codes,
             ["out.dequant"] = d, ["out.fake_quant"] = as_activations(x, case.params) or d }
  end
  local q = rtn(x, bits, case.params.symmetric == "True", -1)
  local zero_point = signed(q.zeros, bits, { x:size(1), 1 })
  local d = dequantize(x:type(), q.codes, q.scales, q.zeros, nil, bits)
  return { ["out.scale"] = q.scales, ["out.zero_point"] = zero_point, ["out.q"] = signed(q.codes, bits),
           ["out.dequant"] = d, ["out.fake_quant"] = as_activations(x, case.params) or with_negative_zeros(d, x, zero_point) }
end

-- vLLM's test quantizer of zero-points, end to end: w [K,N] f16, then Marlin's layout.
function ops.awq_marlin_quantize(case)
  local marlin, p = layout.marlin, case.params
  local w, a8 = layout.transpose(case.tensors["in.w"]), p.input_dtype ~= nil
  local q = rtn(w, 4, false, p.group_size, C.NB_RANGE_TIGHT)
  local words, zeros = layout.awq.pack(q.codes, 4), layout.awq.pack_zeros(q.zeros, 4)
  local scales = marlin.permute_scales(layout.transpose(q.scales), w:size(2), p.group_size, a8)
  if p.input_dtype == "float8_e4m3fn" then
    words, scales = marlin.fp8_preprocess(words, zeros), marlin.multiply_scales(scales, 512)
  end
  return { ["out.marlin_qweight"] = marlin.awq_repack(words, 4, a8), ["out.marlin_scales"] = scales,
           ["out.marlin_zp"] = marlin.awq_zero_points(zeros, 4, a8),
           ["out.w_ref"] = layout.transpose(dequantize("f16", q.codes, q.scales, q.zeros, nil, 4)) }
end

return ops

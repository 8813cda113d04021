-- Golden operations: quantization onto small floats: NVFP4, MXFP4, MXFP8, by compressed-tensors and by vLLM.
local nb = require "nibble"
local nffi = require "nibble.ffi"
local floats = require "nibble.quant_float"
local C, must = nffi.C, nffi.must

local ops = {}

local function packed(codes)
  local out = nb.tensor("u8", { codes:size(1), codes:size(2) / 2 })
  must(C.nb_fp4_pack(out, codes, 0))
  return out
end

local function unpacked(bytes)
  local out = nb.tensor("u8", { bytes:size(1), bytes:size(2) * 2 })
  must(C.nb_fp4_unpack(out, bytes, 0))
  return out
end

local function quantize(w, scheme, options)
  local q = nb.scheme.quantized(nb.scheme.parse(scheme), w:size(1), w:size(2), w:type())
  assert(floats.tile(q, w, options))
  return q
end

function ops.ct_nvfp4_pack_quantized(case)
  local q = quantize(case.tensors["in.weight"], "NVFP4A16", { arithmetic = "dtype" })
  local bytes = packed(q.codes)
  assert(unpacked(bytes):equal(q.codes))
  return { ["out.weight_packed"] = bytes, ["out.weight_scale"] = q.scales, ["out.weight_global_scale"] = q.global,
           ["out.decompressed"] = q:dequantize "bf16" }
end

function ops.ct_mxfp4_compress(case)
  local q = quantize(case.tensors["in.weight"], "MXFP4A16", { arithmetic = "dtype" })
  return { ["out.weight_packed"] = packed(q.codes), ["out.weight_scale"] = q.scales:as("u8", q.scales:size()),
           ["out.decompressed"] = q:dequantize "bf16" }
end

function ops.ct_mxfp8_compress(case)
  local q = quantize(case.tensors["in.weight"], "MXFP8A16", { arithmetic = "dtype" })
  return { ["out.weight"] = q.codes, ["out.weight_scale"] = q.scales:as("u8", q.scales:size()),
           ["out.decompressed"] = q:dequantize "bf16" }
end

-- vLLM's, for activations.
function ops.mxfp8_e4m3_quantize(case)
  local q = quantize(case.tensors["in.x"], "MXFP8A16", { rule = "vllm" })
  local scales = q.scales:as("u8", q.scales:size())
  local swizzled = nb.layout.marlin.swizzle_blockscale(scales)
  return { ["out.q"] = q.codes, ["out.scales"] = scales, ["out.scales_swizzled"] = swizzled:as("u8", { swizzled:numel() }),
           ["out.dequant_bf16"] = q:dequantize "bf16" }
end

function ops.ref_nvfp4_quant(case)
  local x, global = case.tensors["in.x"], case.tensors["in.global_scale"]:get(1)
  local q = nb.scheme.quantized(nb.scheme.parse "NVFP4A16", x:size(1), x:size(2), x:type())
  assert(floats.tile(q, x, { rule = "vllm" }, { global = global }))
  local ones = nb.scheme.quantized(q.scheme, q.n, q.k)
  nffi.must(C.nb_tensor_copy(ones.codes, q.codes))
  for i = 1, ones.scales:numel() do ones.scales:set(i, 1) end
  return { ["out.x_fp4_f32"] = ones:dequantize "f32", ["out.scale_f32"] = q.scales:cast "f32", ["out.x_dq"] = q:dequantize(x:type()) }
end

-- vLLM multiplies by the reciprocal global scale, which is what it is given.
function ops.nvfp4_dequantize_to_dtype(case)
  local t = case.tensors
  local codes = unpacked(t["in.fp4"])
  local factor = t["in.global_scale"]:get(1)
  local scales = nb.layout.marlin.multiply_scales(t["in.sf"]:cast "f32", factor)
  local function out(dtype)
    local w = nb.tensor(dtype, codes:size())
    must(C.nb_dequantize_float(w, codes, scales, nil, 1, case.params.block_size))
    return w
  end
  return { ["out.bf16"] = out "bf16", ["out.f32"] = out "f32", ["out.sf_swizzled"] = nb.layout.marlin.swizzle_blockscale(t["in.sf"]) }
end

return ops

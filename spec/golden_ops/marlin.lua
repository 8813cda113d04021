-- Golden operations: Marlin's layouts and the numbers for 8-bit activations.
local nb = require "nibble"
local layout = nb.layout
local marlin = layout.marlin

local function codes(t)
  local out = nb.tensor("u8", t:size())
  local from, to = t:ptr(), out:ptr()
  for i = 0, t:numel() - 1 do to[i] = from[i] end
  return out
end

local function scalar(v) return nb.tensor("f32", {}, { v }) end

local ops = {}

local function repack(case)
  local p, words, perm = case.params, case.tensors["in.qweight"], case.tensors["in.perm"]
  local out = marlin.repack(words, p.num_bits, p.is_a_8bit, perm)
  assert(marlin.unpack(out, p.num_bits, p.is_a_8bit, perm):equal(words), "unpack is not the inverse")
  return { ["out.marlin_qweight"] = out }
end
ops.gptq_marlin_repack, ops.gptq_marlin_moe_repack = repack, repack

local function awq_repack(case)
  local p = case.params
  return { ["out.marlin_qweight"] = marlin.awq_repack(case.tensors["in.qweight"], p.num_bits, p.is_a_8bit) }
end
ops.awq_marlin_repack, ops.awq_marlin_moe_repack = awq_repack, awq_repack

function ops.get_weight_perm(case)
  return { ["out.perm"] = marlin.weight_perm(case.params.num_bits, case.params.is_a_8bit) }
end

function ops.get_scale_perms()
  return { ["out.scale_perm"] = marlin.scale_perm(false), ["out.scale_perm_single"] = marlin.scale_perm(true) }
end

local function permute_scales(case)
  local p, s = case.params, case.tensors["in.scales"]
  local out = marlin.permute_scales(s, p.size_k, p.group_size, p.is_a_8bit)
  assert(marlin.unpermute_scales(out, p.size_k, p.group_size, p.is_a_8bit):equal(s))
  return { ["out.marlin_scales"] = out }
end
ops.marlin_permute_scales, ops.marlin_moe_permute_scales = permute_scales, permute_scales

function ops.marlin_permute_bias(case)
  local out = marlin.permute_bias(case.tensors["in.bias"])
  assert(marlin.unpermute_bias(out):equal(case.tensors["in.bias"]))
  return { ["out.marlin_bias"] = out }
end

function ops.marlin_zero_points(case)
  local p, z = case.params, codes(case.tensors["in.zp"])
  local out = marlin.zero_points(z, p.num_bits, p.is_a_8bit)
  assert(marlin.unpack_zero_points(out, p.num_bits, p.is_a_8bit):equal(z))
  return { ["out.marlin_zp"] = out }
end

local function awq_zero_points(case)
  local p = case.params
  return { ["out.marlin_zp"] = marlin.awq_zero_points(case.tensors["in.qzeros"], p.num_bits, p.is_a_8bit) }
end
ops.awq_to_marlin_zero_points, ops.moe_awq_to_marlin_zero_points = awq_zero_points, awq_zero_points

function ops.moe_packed_to_marlin_zero_points(case)
  local p = case.params
  return { ["out.marlin_zp"] = marlin.packed_zero_points(case.tensors["in.qzeros"], p.num_bits, p.is_a_8bit) }
end

function ops.marlin_sort_g_idx(case)
  local sorted, perm = marlin.sort_g_idx(case.tensors["in.g_idx"])
  return { ["out.sorted_g_idx"] = sorted, ["out.sort_indices"] = perm }
end

function ops.marlin_act_int8_process_scales(case)
  local out, global = marlin.int8_scales(case.tensors["in.scales"])
  return { ["out.scales_out"] = out, ["out.scales_out_i16"] = out:as("i16", out:size()),
           ["out.input_global_scale"] = scalar(global) }
end

function ops.marlin_int4_fp8_preprocess(case)
  local words, zeros = case.tensors["in.qweight"], case.tensors["in.qzeros"]
  local out = marlin.fp8_preprocess(words, zeros)
  assert(marlin.fp8_preprocess(out, zeros, { inverse = true }):equal(words))
  return { ["out.qweight"] = out }
end

function ops.fp8_fused_exponent_bias_into_scales(case)
  return { ["out.scales"] = marlin.fold_fp8_exponent(case.tensors["in.scales"]) }
end

function ops.nvfp4_marlin_process_scales(case)
  local t, p = case.tensors, case.params
  local dtype = ({ float16 = "f16", bfloat16 = "bf16" })[p.a_dtype]
  local out, factor = marlin.nvfp4_scales(t["in.scales"])
  local small, small_factor = marlin.nvfp4_scales(t["in.scales_small"])
  assert(factor == p.scale_factor and small_factor == p.scale_factor_small,
    ("factors %g and %g, expected %g and %g"):format(factor, small_factor, p.scale_factor, p.scale_factor_small))
  return { ["out.processed"] = out, ["out.processed_small"] = small,
           ["out.processed_forced"] = marlin.nvfp4_scales(t["in.scales"], p.scale_factor_forced),
           ["out.global_scale"] = marlin.nvfp4_global(t["in.global_scale"], dtype) }
end

function ops.swizzle_blockscale(case)
  return { ["out.swizzled"] = marlin.swizzle_blockscale(case.tensors["in.scale"]) }
end

function ops.per_token_quant_int8(case)
  local q, s = marlin.quantize_activations(case.tensors["in.x"], "int8")
  return { ["out.q"] = q, ["out.scales"] = s }
end

function ops.scaled_fp8_quant(case)
  local mode, given = case.params.mode, case.tensors["in.scale"]
  local q, s = marlin.quantize_activations(case.tensors["in.x"], "fp8", { scale = given, per_tensor = mode == "dynamic_tensor" })
  if not given and mode == "dynamic_tensor" then s = s:reshape(case.tensors["out.scale"]:size()) end
  return { ["out.q"] = q, ["out.scale"] = s }
end

return ops

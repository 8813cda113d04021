-- Golden operations: FP8 and NVFP4 layers after loading, whatever the kernel.
local nb = require "nibble"
local fp8 = require "nibble.methods.fp8"
local marlin_float = require "nibble.methods.marlin_float"
local nvfp4_moe = require "nibble.methods.nvfp4_moe"
local w4a8_moe = require "nibble.methods.w4a8_moe"

local dtypes = { float16 = "f16", bfloat16 = "bf16" }

local ops = {}

function ops.requantize_with_max_scale(case)
  local w, max = fp8.requantize(case.tensors["in.weight"], case.tensors["in.weight_scale"], case.params.logical_widths)
  return { ["out.weight"] = w, ["out.max_scale"] = nb.tensor("f32", {}, { max }) }
end

function ops.process_fp8_weight_tensor_strategy_moe(case)
  local w, scale = fp8.requantize_experts(case.tensors["in.w13"], case.tensors["in.w13_scale"])
  return { ["out.w13"] = w, ["out.scale"] = scale }
end

function ops.process_fp8_input_tensor_strategy_moe(case)
  return { ["out.w13_input_scale"] = fp8.input_scale(case.tensors["in.w13_input_scale"]),
           ["out.w2_input_scale"] = fp8.input_scale(case.tensors["in.w2_input_scale"]) }
end

function ops.normalize_e4m3fn_to_e4m3fnuz(case)
  local t = case.tensors
  local w, scale, input_scale = fp8.to_fnuz(t["in.weight"], t["in.weight_scale"], t["in.input_scale"])
  return { ["out.weight"] = w:as("u8", w:size()), ["out.weight_scale"] = scale, ["out.input_scale"] = input_scale }
end

function ops.w4a8_int8_nibble_pack(case)
  return { ["out.nibbles"] = w4a8_moe.nibbles(case.tensors["in.w"]) }
end

function ops.ct_fp8_moe_process_weights(case)
  local t, p, results = case.tensors, case.params, {}
  for _, w in ipairs { "w13", "w2" } do
    local weight, scale = t["in." .. w .. "_weight"], t["in." .. w .. "_weight_scale"]
    local input_scale = t["in." .. w .. "_input_scale"]
    if p.fnuz then weight, scale, input_scale = fp8.to_fnuz(weight, scale, input_scale) end
    if input_scale then results["out." .. w .. "_input_scale"] = fp8.input_scale(input_scale) end
    if p.strategy == "tensor" and w == "w13" then weight, scale = fp8.requantize_experts(weight, scale) end
    if p.backend == "MARLIN" then
      local size = assert(marlin_float.padded_moe(p.hidden_size, p.intermediate_size))
      local out = assert(marlin_float.prepare_moe { kind = "fp8", weight = weight, scale = scale, dtype = dtypes[p.orig_dtype],
        halves = w == "w13" and 2 or 1, block = p.strategy == "block" and { 128, 128 } or nil,
        size = w == "w13" and { 2 * size, p.hidden_size } or { p.hidden_size, size } })
      weight, scale = out.words, out.scales
    end
    results["out." .. w .. "_weight"], results["out." .. w .. "_weight_scale"] = weight, scale
  end
  return results
end

function ops.ct_nvfp4_moe_process_weights(case)
  local t, p, results = case.tensors, case.params, {}
  for _, w in ipairs { "w13", "w2" } do
    local out = assert(nvfp4_moe.prepare { which = w, backend = p.backend:lower(), weight = t["in." .. w .. "_weight_packed"],
      scale = t["in." .. w .. "_weight_scale"], global = t["in." .. w .. "_weight_global_scale"],
      input_global = t["in." .. w .. "_input_global_scale"], hidden = p.hidden_size, intermediate = p.intermediate_size,
      dtype = dtypes[p.params_dtype] })
    results["out." .. w .. "_weight"], results["out." .. w .. "_weight_scale"] = out.words or out.weight, out.scales
    results["out." .. w .. "_weight_scale_2"], results["out." .. w .. "_input_scale"] = out.global, out.input_scale
  end
  return results
end

return ops

-- Golden operations: FP8 and NVFP4 layers after loading, whatever the kernel.
local nb = require "nibble"
local fp8 = require "nibble.methods.fp8"
local ct_fp8_moe = require "nibble.methods.ct_fp8_moe"
local layer = require "nibble.methods.layer"
local ct_nvfp4_moe = require "nibble.methods.ct_nvfp4_moe"
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
  local per = ({ tensor = "tensor", channel = "token", block = "group" })[p.strategy]
  local method = assert(ct_fp8_moe.new({ type = "float", bits = 8, symmetric = true, strategy = p.strategy,
    block = p.strategy == "block" and { 128, 128 } or nil,
    activations = { type = "float", bits = 8, symmetric = true, strategy = per, dynamic = not p.static_input_scales } },
    { backend = p.backend, fnuz = p.fnuz }))
  local L = layer.new { name = case.id, kind = "moe", dtype = dtypes[p.orig_dtype], experts = p.num_experts,
    hidden = p.hidden_size, intermediate = p.intermediate_size }
  assert(method:create(L))
  local parts = { "w13_weight", "w2_weight", "w13_weight_scale", "w2_weight_scale", "w13_input_scale", "w2_input_scale" }
  for _, name in ipairs(parts) do
    if t["in." .. name] then L:replace(name, t["in." .. name]) end
  end
  assert(method:process(L))
  for _, name in ipairs(parts) do results["out." .. name] = L:get(name) end
  return results
end

function ops.ct_nvfp4_moe_process_weights(case)
  local t, p, results = case.tensors, case.params, {}
  local nvfp4 = { type = "float", bits = 4, symmetric = true, strategy = "tensor_group", group = 16 }
  local a = { type = "float", bits = 4, symmetric = true, strategy = "tensor_group", group = 16, dynamic = "local" }
  local method = assert(ct_nvfp4_moe.new(setmetatable({ activations = a }, { __index = nvfp4 }), { backend = p.backend }))
  local L = layer.new { name = case.id, kind = "moe", dtype = dtypes[p.params_dtype], experts = p.num_experts,
    hidden = p.hidden_size, intermediate = p.intermediate_size }
  assert(method:create(L))
  for _, w in ipairs { "w13", "w2" } do
    for _, part in ipairs { "_weight_packed", "_weight_scale", "_weight_global_scale", "_input_global_scale" } do
      if t["in." .. w .. part] then L:replace(w .. part, t["in." .. w .. part]) end
    end
  end
  assert(method:process(L))
  for _, w in ipairs { "w13", "w2" } do
    for _, part in ipairs { "_weight", "_weight_scale", "_weight_scale_2", "_input_scale" } do
      results["out." .. w .. part] = L:get(w .. part)
    end
  end
  return results
end

return ops

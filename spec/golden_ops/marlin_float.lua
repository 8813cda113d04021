-- Golden operations: FP8 and FP4 weights for Marlin.
local nb = require "nibble"
local method = require "nibble.methods.marlin_float"
local layout = nb.layout

local dtypes = { float16 = "f16", bfloat16 = "bf16" }

local ops = {}

function ops.pack_fp8_to_int32(case)
  local w = case.tensors["in.weight"]
  local bytes = w:as("u8", w:size())
  return { ["out.packed"] = case.params.size_k_first and layout.pack.rows(bytes, 8) or layout.pack.cols(bytes, 8) }
end

function ops.prepare_fp8_layer_for_marlin(case)
  local t, p = case.tensors, case.params
  local out = assert(method.prepare { kind = "fp8", weight = t["in.weight"], scale = t["in.scale"], bias = t["in.bias"],
    k_first = p.size_k_first, dtype = dtypes[p.orig_dtype], block = p.block, widths = p.logical_widths })
  return { ["out.marlin_weight"] = out.words, ["out.marlin_scales"] = out.scales, ["out.marlin_bias"] = out.bias }
end

function ops.prepare_mxfp8_layer_for_marlin(case)
  local t = case.tensors
  local out = assert(method.prepare { kind = "mxfp8", weight = t["in.weight"], scale = t["in.weight_scale"],
                                      dtype = dtypes[case.params.default_dtype] })
  return { ["out.marlin_weight"] = out.words, ["out.marlin_scales"] = out.scales }
end

function ops.prepare_fp4_layer_for_marlin(case)
  local t, p = case.tensors, case.params
  local out = assert(method.prepare { kind = p.kind .. "fp4", weight = t["in.weight"], scale = t["in.weight_scale"],
    global = t["in.weight_global_scale"], bias = t["in.bias"], dtype = dtypes[p.params_dtype],
    activations = p.input_dtype and "fp8" })
  return { ["out.weight"] = out.words, ["out.weight_scale"] = out.scales, ["out.weight_global_scale"] = out.global,
           ["out.bias"] = out.bias }
end

-- w13 and w2 of a layer of experts; extra(w) gives more fields of the method's argument.
local function moe(case, kind, dtype, extra)
  local t, p, results = case.tensors, case.params, {}
  local size = assert(method.padded_moe(p.hidden_size, p.intermediate_size))
  for _, w in ipairs { "w13", "w2" } do
    local m = { kind = kind, weight = t["in." .. w], scale = t["in." .. w .. "_scale"], dtype = dtype,
                global = t["in." .. w .. "_scale_2"], bias = t["in." .. w .. "_bias"], halves = w == "w13" and 2 or 1,
                size = w == "w13" and { 2 * size, p.hidden_size } or { p.hidden_size, size } }
    for key, value in pairs(extra or {}) do m[key] = value end
    local out = assert(method.prepare_moe(m))
    results["out." .. w], results["out." .. w .. "_scale"] = out.words, out.scales
    results["out." .. w .. "_scale_2"], results["out." .. w .. "_bias"] = out.global, out.bias
  end
  return results
end

function ops.prepare_fp8_moe_layer_for_marlin(case)
  local p = case.params
  return moe(case, "fp8", dtypes[p.orig_dtype], { block = p.strategy == "block" and { 128, 128 } or nil })
end

function ops.prepare_nvfp4_moe_layer_for_marlin(case) return moe(case, "nvfp4", dtypes[case.params.params_dtype]) end
function ops.prepare_moe_mxfp4_layer_for_marlin(case) return moe(case, "mxfp4", dtypes[case.params.params_dtype]) end

return ops

-- Golden operations: layers after loading, ready for Marlin.
local nb = require "nibble"
local method = require "nibble.methods.marlin"

local activations = { int8 = "int8", float8_e4m3fn = "fp8" }

local function scalar(v) return v and nb.tensor("f32", {}, { v }) end

local ops = {}

function ops.linear_process_weights(case)
  local t, p = case.tensors, case.params
  local out = method.prepare {
    words = t["in.qweight"], order = p.kind, scales = t["in.scales"], zeros = t["in.qzeros"], bias = t["in.bias"],
    bits = p.weight_type == "uint8b128" and 8 or 4, group = p.group_size, activations = activations[p.act_type],
  }
  return { ["out.qweight"] = out.words, ["out.scales"] = out.scales, ["out.qzeros"] = out.zeros,
           ["out.bias"] = out.bias, ["out.input_global_scale"] = scalar(out.global) }
end

-- The layer itself, with the K that the peer hands to the scale permutation (SYSTEMS C-06).
function ops.awq_moe_process_weights(case)
  local t, p = case.tensors, case.params
  local layer = require("nibble.methods.layer").new {
    name = case.id, kind = "moe", dtype = t["in.w13_scales"]:type(), experts = p.num_experts, hidden = p.hidden_size,
    intermediate = p.intermediate_size, bias = t["in.w13_bias"] ~= nil,
  }
  local experts = assert(require("nibble.methods.awq_marlin_moe").new(
    { bits = p.num_bits, group = p.group_size, zero_point = true },
    { activations = activations[p.input_dtype], compat = { scale_permutation_k = true } }))
  assert(experts:create(layer))
  for _, name in ipairs(layer:names()) do layer:replace(name, t["in." .. name]) end
  assert(experts:process(layer))
  local results = {}
  for _, name in ipairs(layer:names()) do results["out." .. name] = layer:get(name) end
  for _, w in ipairs { "w13", "w2" } do
    local global = layer:get(w .. "_input_global_scale")
    results["out." .. w .. "_input_global_scale"] = global and global:reshape {}
  end
  return results
end

return ops

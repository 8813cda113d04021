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

-- Both matrices of the experts; name(w, part) is a tensor's name without "in." and "out.".
local function moe(case, order, name, scale_k)
  local t, p, results = case.tensors, case.params, {}
  for _, w in ipairs { "w13", "w2" } do
    local out = method.prepare {
      words = t["in." .. name(w, "words")], order = order, scales = t["in." .. name(w, "scales")],
      zeros = t["in." .. w .. "_qzeros"], bias = t["in." .. w .. "_bias"], g_idx = t["in." .. name(w, "g_idx")],
      bits = p.num_bits, group = p.group_size, activations = activations[p.input_dtype],
      scale_k = scale_k(w, t["in." .. name(w, "scales")]:size(2)),
    }
    results["out." .. name(w, "words")], results["out." .. name(w, "scales")] = out.words, out.scales
    results["out." .. w .. "_qzeros"], results["out." .. w .. "_bias"] = out.zeros, out.bias
    results["out." .. w .. "_input_global_scale"] = scalar(out.global)
    results["out." .. w .. "_g_idx_sort_indices"] = out.perm
    results["out." .. w .. "_weight_g_idx"] = out.sorted_g_idx
    results["out." .. w .. "_g_idx"] = t["in." .. w .. "_g_idx"] -- the peer keeps the unsorted one
  end
  return results
end

local function plain(w, part) return w .. "_" .. ({ words = "qweight", scales = "scales", g_idx = "g_idx" })[part] end

-- The K that each peer hands to the scale permutation (SYSTEMS C-06).
function ops.awq_moe_process_weights(case)
  return moe(case, "awq", plain, function() return case.params.intermediate_size end)
end

return ops

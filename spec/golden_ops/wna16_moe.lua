-- Golden operations: experts of packed integers, by the methods that run them.
local nb = require "nibble"
local convert = require "nibble.methods.wna16_convert"
local ct = require "nibble.methods.ct_wna16_moe"
local layer = require "nibble.methods.layer"

local activations = { int8 = "int8", float8_e4m3fn = "fp8" }

local function scalar(t) return t and nb.tensor("f32", {}, { t:get(1) }) end

local ops = {}

-- The peer's own K and unsorted indices (SYSTEMS C-06, C-07).
function ops.gptq_moe_process_weights(case)
  local t, p, results = case.tensors, case.params, {}
  local function indices(w, k) return t["in." .. w .. "_g_idx"] or nb.tensor("i32", { p.num_experts, k }) end
  local out = assert(convert.named(convert.convert("MARLIN", { i = p.intermediate_size },
    { method = "gptq_marlin", bits = p.num_bits, group = p.group_size, desc_act = p.desc_act }, activations[p.input_dtype],
    t["in.w13_qweight"], t["in.w2_qweight"], t["in.w13_scales"], t["in.w2_scales"], indices("w13", p.hidden_size),
    indices("w2", p.intermediate_size), t["in.w13_bias"], t["in.w2_bias"],
    { compat = { scale_permutation_k = true, unsorted_g_idx = true } })))
  for _, w in ipairs { "w13", "w2" } do
    results["out." .. w .. "_qweight"], results["out." .. w .. "_scales"] = out[w], out[w .. "_scale"]
    results["out." .. w .. "_input_global_scale"] = scalar(out[w .. "_input_global_scale"])
    results["out." .. w .. "_bias"] = out[w .. "_bias"]
    results["out." .. w .. "_g_idx"] = out[w .. "_g_idx"]
    results["out." .. w .. "_g_idx_sort_indices"] = out[w .. "_g_idx_sort_indices"]
  end
  return results
end

function ops.ct_wna16_moe_process_weights(case)
  local t, p, results = case.tensors, case.params, {}
  local method = assert(ct.new({ type = "int", bits = p.num_bits, symmetric = true, group = p.group_size,
    strategy = p.group_size == -1 and "channel" or "group", actorder = p.actorder },
    { activations = activations[p.input_dtype], compat = { scale_permutation_k = true }, sms = p.sm_count }))
  local L = layer.new { name = case.id, kind = "moe", dtype = t["in.w13_weight_scale"]:type(), experts = p.num_experts,
    hidden = p.hidden_size, intermediate = p.intermediate_size }
  assert(method:create(L))
  for _, w in ipairs { "w13", "w2" } do
    for _, part in ipairs { "_weight_packed", "_weight_scale", "_weight_g_idx" } do
      if t["in." .. w .. part] then L:replace(w .. part, t["in." .. w .. part]) end
    end
  end
  assert(method:process(L))
  assert(L:get("workspace"):numel() == p.workspace_len)
  for _, w in ipairs { "w13", "w2" } do
    for _, part in ipairs { "_weight_packed", "_weight_scale", "_weight_g_idx", "_g_idx_sort_indices" } do
      results["out." .. w .. part] = L:get(w .. part)
    end
    results["out." .. w .. "_input_global_scale"] = scalar(L:get(w .. "_input_global_scale"))
  end
  return results
end

function ops.get_weight_shape(case)
  local out = {}
  for i, row in ipairs(case.rows) do
    local flashinfer = row.backend == "Flashinfer"
    local method = assert(ct.new({ type = "int", bits = row.num_bits or 4, symmetric = true, strategy = "group", group = 32 }))
    method.backend = flashinfer and "Flashinfer" or "Marlin"
    local function shape()
      local h, n, g = row.hidden_size or 256, row.intermediate_size or 128, row.group_size
      return method:weight_shape(row.weight_name, row.num_experts or 2, h, n,
        { groups_w13 = g and h / g, groups_w2 = g and n / g, gated = row.is_act_and_mul })
    end
    local ok, result = pcall(shape)
    out[i] = ok and { shape = result } or { error = result:match "num_groups.*" }
  end
  return out
end

return ops

-- backends.description: what a chosen backend's kernels are told of the quantization: bits, group, zero-points,
-- the granularity of the scales, block shape, and what the backend derives (AWQ-36, CTM-WNA16-11,
-- CTM-NVFP4-17, CTM-FP8-14).
local rules = require "nibble.backends.table"

local M = {}

--- description.new(t, backend, q) -> {bits, type, group, zero_points, scales, block_shape, bias, activations,
-- per_token, per_channel, weight_only, global_scales, alpha, reciprocal_input_scales, input_scales, global_factor}
-- | nil where the table gives none
-- scales: "tensor", "channel", "group" or "block"; block_shape {0, g} for groups along K (CTM-WNA16-11);
-- input_scales: "all" (the largest over experts and shards), "expert" (over an expert's shards) or "inverse" (1 / max).
-- (CTM-NVFP4-12)
function M.new(t, backend, q)
  local own, of_row = t.quant or {}, backend.row.quant or {}
  local w, a = q.weight, q.activation
  if own.none or of_row.none then return nil end
  if own.bits then
    local told = false
    for _, bits in ipairs(own.bits) do told = told or bits == w.bits end
    if not told then return nil end
  end
  local d = { bits = w.bits, type = w.scalar, group = w.group, zero_points = w.zero_points, scales = w.strategy,
              bias = q.bias and true or false, activations = q.activation_key,
              weight_only = (of_row.weight_only or q.activation_key == "none") and true or false }
  if w.block then d.block_shape = { w.block[1], w.block[2] }
  elseif own.block_shape == "group" and w.group > 0 then d.block_shape = { 0, w.group } end
  if d.weight_only then d.activations = "none" end
  -- Both flags follow the activations' strategy. (CTM-FP8-14)
  if own.flags then
    local token = (a and a.strategy == "token") or false
    d.per_token, d.per_channel = token, token
  end
  if own.global then d.global_scales, d.alpha = true, "scale_2" end
  if own.global and not d.weight_only then
    d.alpha = "scale_2 * input_scale"
    -- How the experts' input scales become one: see nibble.methods.nvfp4_kernels. (CTM-NVFP4-12)
    d.input_scales, d.global_factor = of_row.input_scales or "expert", of_row.input_scales == "all"
  end
  if of_row.alpha and not rules.first_refusal(q, of_row.when or {}) then
    d.alpha, d.reciprocal_input_scales = of_row.alpha, true
  end
  return d
end

return M

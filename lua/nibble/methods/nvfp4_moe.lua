-- methods.nvfp4_moe: compressed-tensors NVFP4 experts made ready after loading, for
-- Marlin or for the CUTLASS kernels (SYSTEMS CTM-NVFP4-12, CTM-NVFP4-14, CTM-NVFP4-15).
local nffi = require "nibble.ffi"
local tensor = require "nibble.tensor"
local layout = require "nibble.layout"
local marlin_float = require "nibble.methods.marlin_float"

local M = {}

-- Column i (1-based) of [E,s], or all of [E], inverted in float32.
local function inverse(t, column)
  local out, step = tensor.new("f32", { t:size(1) }), t.ndim == 2 and t:size(2) or 1
  for e = 1, t:size(1) do out:set(e, 1 / t:get((e - 1) * step + (column or 1))) end
  return out
end

-- The largest 1/x over all experts and shards, for every expert.
local function common_inverse(t)
  local max = -math.huge
  for i = 1, t:numel() do max = math.max(max, 1 / t:get(i)) end
  local out = tensor.new("f32", { t:size(1) })
  for e = 1, t:size(1) do out:set(e, max) end
  return out
end

-- The largest 1/x over the shards of each expert.
local function expert_inverse(t)
  local out, shards = tensor.new("f32", { t:size(1) }), t:numel() / t:size(1)
  for e = 1, t:size(1) do
    local max = -math.huge
    for s = 1, shards do max = math.max(max, 1 / t:get((e - 1) * shards + s)) end
    out:set(e, max)
  end
  return out
end

-- [w1; w3] along the second dimension -> [w3; w1].
local function swap_halves(t)
  local half, out = t:size(2) / 2, tensor.new(t:type(), t:size())
  for e = 1, t:size(1) do
    local from, to = t:rows(e, e):reshape { t:size(2), t:size(3) }, out:rows(e, e):reshape { t:size(2), t:size(3) }
    nffi.must(nffi.C.nb_tensor_copy(to:rows(1, half), from:rows(half + 1, 2 * half)))
    nffi.must(nffi.C.nb_tensor_copy(to:rows(half + 1, 2 * half), from:rows(1, half)))
  end
  return out
end

--- prepare(m) -> {words | weight=, scales=, global=, input_scale=} of w13 or of w2 | nil, msg, code
-- m: which "w13" | "w2"; backend "marlin" | "vllm_cutlass" | "flashinfer_cutlass"; weight u8 [E,N,K/2]; scale
-- f8_e4m3 [E,N,K/16]; global f32 [E,2] or [E] (compressed-tensors': the reciprocal of what kernels want; of w13's
-- two the first counts); input_global likewise; hidden, intermediate, dtype: Marlin's.
function M.prepare(m)
  local global = inverse(m.global)
  if m.backend == "marlin" then
    local size, msg, code = marlin_float.padded_moe(m.hidden, m.intermediate)
    if not size then return nil, msg, code end
    return marlin_float.prepare_moe { kind = "nvfp4", weight = m.weight, scale = m.scale, global = global,
      dtype = m.dtype, halves = m.which == "w13" and 2 or 1,
      size = m.which == "w13" and { 2 * size, m.hidden } or { m.hidden, size } }
  end
  local flashinfer = m.backend == "flashinfer_cutlass"
  if not flashinfer and m.backend ~= "vllm_cutlass" then
    error(("nvfp4_moe: backend must be marlin, vllm_cutlass or flashinfer_cutlass, found %s")
      :format(tostring(m.backend)), 2)
  end
  local weight, scale = m.weight, m.scale
  if flashinfer and m.which == "w13" then weight, scale = swap_halves(weight), swap_halves(scale) end
  return { weight = weight, scales = layout.marlin.swizzle_blockscale(scale), global = global,
           input_scale = flashinfer and common_inverse(m.input_global) or expert_inverse(m.input_global) }
end

return M

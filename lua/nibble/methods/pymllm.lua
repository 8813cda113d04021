-- methods.pymllm: linear layers of AWQ checkpoints on Marlin as pymllm runs them: 4 or
-- 8 bits, shapes that must fit, the bias added after the product in its plain order
-- (SYSTEMS MRL-06, MRL-55 to MRL-57; C-02, C-03, C-04, C-05).
local gemm = require "nibble.gemm"
local layout = require "nibble.layout"
local marlin = require "nibble.marlin"
local tensor = require "nibble.tensor"
local awq = require "nibble.methods.awq"
local linear = require "nibble.methods.linear"

local M = { name = "awq_marlin", monolithic = false, min_capability = 80 }
M.__index = M

local types = { [4] = "uint4", [8] = "uint8" }

--- new({bits = 4 | 8, group = 128, zero_point = true}, options) -> method | nil, msg, code
-- options: capability (default 80); sms (for the workspace); on_bad_shape = "raise" (default) | "fallback": create
-- then returns nil, msg, code. Groups are checked, types are not. (MRL-06)
function M.new(config, options)
  local o = options or {}
  local type = types[config.bits]
  if not type then
    return nil, ("pymllm awq_marlin: %s bits are not supported, only 4, 8"):format(tostring(config.bits)), "eunsupported"
  end
  local ok, reason = marlin.supported(type, config.group, config.zero_point, o.capability or M.min_capability, nil, "pymllm")
  if not ok then return nil, "pymllm awq_marlin: " .. reason, "eunsupported" end
  return setmetatable({ config = config, type = type, options = o }, M)
end

--- method:create(L) -> true
-- The shape is verified: one that doesn't fit is an error. Then qweight i32 [K, N/pf], qzeros i32 [G, N/pf] and scales
-- [G, N]; g = -1 means the whole K. Without zero-points in the checkpoint qzeros hold 2^(bits-1). (MRL-55)
function M:create(L)
  local group = self.config.group
  local ok, reason = marlin.supports_shape(L.n, L.k, L.k_full, group == -1 and L.k_full or group)
  local groups, code
  if ok then groups, reason, code = awq.parameters(L, self.config) else reason = ("layer %s: %s"):format(L.name, reason) end
  if not groups then
    if self.options.on_bad_shape == "fallback" then return nil, reason, code or "eunsupported" end
    error(reason, 2)
  end
  if not self.config.zero_point then
    L:get("qzeros"):as("u8"):fill(self.config.bits == 4 and 0x88 or 0x80)
  end
  return true
end

--- method:process(L) -> true | nil, msg, code
-- After loading: the workspace, a word a multiprocessor; weights; scales; zero-points; empty group and sort indices.
-- The bias stays as it is. L.steps tells the order. (MRL-56)
function M:process(L)
  local bits = self.config.bits
  L.workspace = marlin.workspace(self.options.sms or 1)
  local words, msg, code = layout.marlin.repack_here(L:get "qweight", bits, { order = "awq" })
  if not words then return nil, msg, code end
  L:replace("qweight", words)
  L:replace("scales", layout.marlin.permute_scales(L:get "scales", L.k, self.config.group))
  L:replace("qzeros", layout.marlin.awq_zero_points(L:get "qzeros", bits))
  L:replace("g_idx", tensor.new("i32", { 0 }))
  L:replace("g_idx_sort_indices", tensor.new("i32", { 0 }))
  L.steps = { "workspace", "qweight", "scales", "qzeros", "g_idx", "g_idx_sort_indices" }
  return true
end

--- method:quant() -> nil
function M.quant() end

-- Whether the ranks' outputs must be summed first.
local function bias_comes_later(L) return L.parallel == "row" and L.tp > 1 end

--- method:apply(L, x [, bias]) -> y [.., n] in x's dtype
-- x · Ŵ, rounded to x's dtype, plus the bias: nil (the layer's), false (none) or a tensor in its plain order; one in
-- Marlin's order is an error. On several row-parallel ranks without it: sum their outputs, then method:finish. (MRL-57)
function M:apply(L, x, bias)
  if not L.steps then error(("layer %s is not processed yet: call process after loading"):format(L.name), 2) end
  local flat, shape = linear.rows(L, x)
  local y = gemm.marlin(flat, { type = self.type, words = L:get "qweight", scales = L:get "scales", zeros = L:get "qzeros",
    perm = L:get "g_idx_sort_indices", sorted_g_idx = L:get "g_idx", k = L.k, n = L.n, dtype = L.dtype })
  bias = linear.bias(L, bias, false)
  if bias and not bias_comes_later(L) then y = linear.add_bias(y, bias, x:type()) end
  return linear.shaped(y, x, shape, L.n)
end

--- method:finish(L, y [, bias]) -> y with the bias, on a layer whose apply left it out; else y itself. (MRL-57)
-- y: the sum of all ranks' outputs [.., n].
function M.finish(_, L, y, bias)
  if not bias_comes_later(L) then return y end
  if bias == nil then bias = L:get "bias" end
  if not bias then return y end
  local flat = y:reshape { y:numel() / L.n, L.n }
  local out = linear.add_bias(flat:cast "f32", bias, "f32")
  return linear.shaped(out, y, { unpack(y:size(), 1, y.ndim - 1) }, L.n)
end

return M

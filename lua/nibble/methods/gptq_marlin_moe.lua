-- methods.gptq_marlin_moe: experts of symmetric GPTQ checkpoints on Marlin, by the conversion that
-- the WNA16 oracle prescribes for its Marlin backends (SYSTEMS 4, ORC-14 to ORC-21), and run from it.
local common = require "nibble.methods.moe_common"
local convert = require "nibble.methods.wna16_convert"
local gemm = require "nibble.gemm"
local marlin = require "nibble.marlin"

local M = {}
local Method = common.class "gptq_marlin_moe"

local types = { [4] = "uint4b8", [8] = "uint8b128" }

--- new({bits = 4 | 8, group =, sym = true, desc_act = bool}, options) -> method | nil, msg, code
-- options: backend "MARLIN" (default) or "BATCHED_MARLIN"; activations = nil | "int8" | "fp8"; compat.
function M.new(config, options)
  local method = common.start(Method, options)
  if not config.sym or not types[config.bits] then
    return nil, ("gptq_marlin_moe takes symmetric weights of 4 or 8 bits, found %s bits, %s"):format(tostring(config.bits),
      config.sym and "symmetric" or "asymmetric"), "eunsupported"
  end
  local ok, msg, code = marlin.check_pair(types[config.bits], method.options.activations, true)
  if not ok then return nil, msg, code end
  method.config = { method = "gptq_marlin", bits = config.bits, group = config.group, desc_act = config.desc_act == true }
  method.type, method.backend = types[config.bits], method.options.backend or "MARLIN"
  return method
end

--- method:create(L) -> true | nil, msg, code
-- qweight i32 [E, K/pf, N], scales [E, G, N], qzeros i32 [E, G, N/pf] (loaded, not used: the weights are symmetric) and
-- g_idx i32 [E, K] of w13 and w2, as the checkpoint has them; with desc_act w2's scales are whole on every rank.
function Method:create(L)
  local group, desc = self.config.group, self.config.desc_act
  local ok, why = marlin.supports_moe(L.h, L.i, desc and -1 or group)
  if not ok then return nil, ("layer %s: %s"):format(L.name, why), "eunsupported" end
  local pf, k2 = 32 / self.config.bits, desc and L.i_full or L.i
  if group ~= -1 and (L.h % group ~= 0 or k2 % group ~= 0) then
    return nil, ("layer %s: groups of %d don't divide %d and %d"):format(L.name, group, L.h, k2), "eunsupported"
  end
  local function register(w, k, n, groups, whole)
    L:register(w .. "_qweight", { dtype = "i32", shape = { L.e, k / pf, n }, transposed = true })
    L:register(w .. "_scales", { dtype = L.dtype, shape = { L.e, groups, n }, transposed = true,
      scale_method = group == -1 and "channel" or "group", whole = whole })
    L:register(w .. "_qzeros", { dtype = "i32", shape = { L.e, groups, n / pf }, transposed = true,
      scale_method = group == -1 and "channel" or "group", whole = whole })
    L:register(w .. "_g_idx", { dtype = "i32", shape = { L.e, k }, input_dim = 0 })
  end
  register("w13", L.h, L.s * L.i, group == -1 and 1 or L.h / group)
  register("w2", L.i, L.h, group == -1 and 1 or k2 / group, desc)
  L.k_full = not desc or L.i == L.i_full
  return true
end

--- method:process(L) -> true | nil, msg, code: the oracle's conversion; its 12 values are the layer's parameters after it.
function Method:process(L)
  if L.method then error(("layer %s: its weights are processed already"):format(L.name), 2) end
  local out, msg, code = convert.named(convert.convert(self.backend, { i = L.i }, self.config, self.options.activations,
    L:get "w13_qweight", L:get "w2_qweight", L:get "w13_scales", L:get "w2_scales", L:get "w13_g_idx", L:get "w2_g_idx",
    nil, nil, self.options))
  if not out then return nil, msg, code end
  for _, w in ipairs { "w13", "w2" } do
    L:replace(w .. "_qweight", out[w])
    L:replace(w .. "_scales", out[w .. "_scale"])
    L:replace(w .. "_g_idx", out[w .. "_g_idx"])
    L:replace(w .. "_g_idx_sort_indices", out[w .. "_g_idx_sort_indices"])
    L:replace(w .. "_input_global_scale", out[w .. "_input_global_scale"])
    L:replace(w .. "_qzeros", nil)
  end
  L.method = self
  return true
end

--- method:quant(L) -> {bits, w1_scale, w2_scale, block_shape = {0, group}}: scales, no zero-points.
function Method:quant(L)
  return { bits = self.config.bits, w1_scale = L:get "w13_scales", w2_scale = L:get "w2_scales",
    block_shape = { 0, self.config.group } }
end

--- method:products(L) -> w13 and w2 for moe.forward, out of the converted words.
function Method:products(L)
  local function product(w, k, n, k_full)
    return gemm.marlin_experts { type = self.type, words = L:get(w .. "_qweight"), scales = L:get(w .. "_scales"),
      sorted_g_idx = L:get(w .. "_g_idx"), perm = L:get(w .. "_g_idx_sort_indices"),
      global = L:get(w .. "_input_global_scale"), group = self.config.group, k = k, n = n, k_full = k_full,
      activations = self.options.activations, dtype = L.dtype }
  end
  return { after_w13 = true, w13 = product("w13", L.h, L.s * L.i, true), w2 = product("w2", L.i, L.h, L.k_full) }
end

return M

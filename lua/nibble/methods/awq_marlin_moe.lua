-- methods.awq_marlin_moe: experts of AWQ checkpoints on Marlin: their parameters, what
-- happens to them after loading, step by step, and the forward pass out of that form
-- (SYSTEMS AWQ-30 to AWQ-38).
local compat = require "nibble.compat"
local compute = require "nibble.compute"
local gemm = require "nibble.gemm"
local layout = require "nibble.layout"
local marlin = require "nibble.marlin"
local moe = require "nibble.moe"
local tensor = require "nibble.tensor"

local M = { name = "awq_marlin_moe", monolithic = false }
M.__index = M

local PACK = 8 -- codes of 4 bits in a word

--- new({bits = 4, group =, zero_point = true}, options) -> method | nil, msg, code
-- options: activations nil | "int8" | "fp8" (marlin.activation_dtype says what a device has); capability (default 90),
-- platform ("cuda"), sms (multiprocessors, for the workspace), compat (nibble.compat). (AWQ-30)
function M.new(config, options)
  local o = options or {}
  local switches = compat.read(o)
  if config.bits ~= 4 then
    return nil, ("awq_marlin_moe: experts of %s bits are not supported, only 4"):format(tostring(config.bits)),
      "eunsupported"
  end
  local ok, reason = marlin.supported("uint4", config.group, config.zero_point, o.capability or 90, o.platform)
  if not ok then return nil, "awq_marlin_moe: " .. reason, "eunsupported" end
  local activations = o.activations ~= "none" and o.activations or nil
  local pair, msg, code = marlin.check_pair("uint4", activations, true)
  if not pair then return nil, msg, code end
  return setmetatable({ config = config, options = o, compat = switches, activations = activations }, M)
end

local function refuse(L, text, ...)
  return nil, ("layer %s: "):format(L.name) .. text:format(...), "eunsupported"
end

local function check(self, L)
  local group = self.config.group
  if group == -1 and self.compat.refuse_channel_experts then
    return refuse(L, "group_size -1 gives H / g = %d groups: experts need groups", -L.h)
  end
  local ok, reason = marlin.supports_moe(L.h, L.i, group, { platform = self.options.platform })
  if not ok then return refuse(L, "Marlin does not take these experts: %s", reason) end
  if group ~= -1 and L.h % group ~= 0 then
    return refuse(L, "the hidden size %d is not a multiple of the group size %d", L.h, group)
  end
  if L.s * L.i % 64 ~= 0 then return refuse(L, "w13 has %d columns, Marlin's tiles 64", L.s * L.i) end
  return true
end

local function make_workspace(self, L)
  if not L.workspace then L.workspace = marlin.workspace(self.options.sms or 1, 4) end
end

--- method:create(L) -> true | nil, msg, code
-- w13_qweight i32 [E, H, s*I/8], w2_qweight i32 [E, I, H/8], w13_scales [E, H/g, s*I], w2_scales [E, I/g, H],
-- w13_qzeros, w2_qzeros i32 likewise, biases [E, s*I] and [E, H] where the layer has them: all transposed, by groups.
-- w13 is gate (w1) and then up (w3); ranks share the I axis. g = -1: one group on every rank. (AWQ-31 to AWQ-33)
function M:create(L)
  local ok, msg, code = check(self, L)
  if not ok then return nil, msg, code end
  local group, n13 = self.config.group, L.s * L.i
  local g13, g2 = group == -1 and 1 or L.h / group, group == -1 and 1 or L.i / group
  L.groups13, L.groups2, L.k_full = g13, g2, L.i == L.i_full
  L.input_dtype = self.activations
  local function register(name, dtype, rows, cols, whole)
    L:register(name, { dtype = dtype, shape = { L.e, rows, cols }, transposed = true, scale_method = "group", whole = whole })
  end
  register("w13_qweight", "i32", L.h, n13 / PACK)
  register("w2_qweight", "i32", L.i, L.h / PACK)
  register("w13_scales", L.dtype, g13, n13)
  register("w2_scales", L.dtype, g2, L.h, group == -1)
  register("w13_qzeros", "i32", g13, n13 / PACK)
  register("w2_qzeros", "i32", g2, L.h / PACK, group == -1)
  if L.options.bias then
    L:register("w13_bias", { dtype = L.dtype, shape = { L.e, n13 } })
    L:register("w2_bias", { dtype = L.dtype, shape = { L.e, L.h } })
  end
  if self.compat.workspace_at_create then make_workspace(self, L) end
  return true
end

-- ---- after loading (AWQ-34) ------------------------------------------------------

local steps = {}

-- AWQ's own words and slots, before they are moved; the zero-points stay as they are. (AWQ-35) Done to a row of tiles
-- just before it is repacked, which gives the words of a pass of its own.
function steps.fp8(_, L, w) L.fold[w] = true end

function steps.fp8_scales(_, L, w)
  local scales = L:get(w .. "_scales")
  L:replace(w .. "_scales", layout.marlin.multiply_scales(scales, 512))
end

function steps.sort_indices(_, L, w) L:replace(w .. "_g_idx_sort_indices", tensor.new("i32", { L.e, 0 })) end

function steps.repack(self, L, w)
  local fold = L.fold[w] == true
  local words, msg, code = layout.marlin.repack_here(L:get(w .. "_qweight"), 4, { order = "awq", fold = fold,
    a8 = self.activations ~= nil, zeros = fold and L:get(w .. "_qzeros") or nil })
  if not words then return nil, msg, code end
  L:replace(w .. "_qweight", words)
end

-- Modular kernels ask for the weights by these names.
function steps.alias(_, L, w) L:replace(w .. "_weight", L:get(w .. "_qweight")) end

function steps.scales(self, L, w)
  local k = (w == "w2" or self.compat.scale_permutation_k) and L.i or L.h
  local scales = layout.marlin.permute_scales(L:get(w .. "_scales"), k, self.config.group, self.activations ~= nil)
  if self.activations == "int8" and scales:size(2) > 1 then
    local global, msg, code
    scales, global, code = layout.marlin.int8_scales(scales)
    if not scales then
      msg = global
      return nil, msg, code
    end
    L:replace(w .. "_input_global_scale", tensor.new("f32", { 1 }, { global }))
  end
  L:replace(w .. "_scales", scales)
end

function steps.zeros(self, L, w)
  L:replace(w .. "_qzeros", layout.marlin.awq_zero_points(L:get(w .. "_qzeros"), 4, self.activations ~= nil))
end

function steps.bias(_, L, w)
  local bias = L:param(w .. "_bias")
  if not bias then return end
  L:replace(w .. "_bias", layout.marlin.permute_bias(bias.data))
  bias.permuted = true
end

local order = { { "sort_indices", "w13" }, { "sort_indices", "w2" }, { "repack", "w13" }, { "repack", "w2" },
  { "alias", "w13" }, { "alias", "w2" }, { "scales", "w13" }, { "scales", "w2" }, { "zeros", "w13" }, { "zeros", "w2" },
  { "bias", "w13" }, { "bias", "w2" } }
local fp8_order = { { "fp8", "w13" }, { "fp8", "w2" }, { "fp8_scales", "w13" }, { "fp8_scales", "w2" } }

--- method:process(L) -> true | nil, msg, code
-- After loading, all experts at once: fp8 codes and scales; empty sort indices; repack; aliases; scales (and their int8
-- global where there is more than one group); zero-points; biases. The words stay in their memory. L.steps tells what
-- was done, in order. (AWQ-34)
function M:process(L)
  if L.fold then
    error(("layer %s was processed before, or interrupted while it was: load it again"):format(L.name), 2)
  end
  local done = {}
  L.fold = {}
  for _, list in ipairs { self.activations == "fp8" and fp8_order or {}, order } do
    for _, step in ipairs(list) do
      local _, msg, code = steps[step[1]](self, L, step[2])
      if msg then return nil, msg, code end
      done[#done + 1] = step[1] .. " " .. step[2]
    end
  end
  L.steps = done
  return true
end

-- ---- what kernels are told ---------------------------------------------------------

--- method:quant(L) -> {bits=4, group=, w1_scale=, w2_scale=, w1_zp=, w2_zp=, w1_bias=, w2_bias=}: for kernels that take
-- the experts as an argument; zero-points where the config has them, biases where the layer has. (AWQ-36)
function M:quant(L)
  local zeros = self.config.zero_point
  L.quant_description = {
    bits = 4, group = self.config.group, w1_scale = L:get "w13_scales", w2_scale = L:get "w2_scales",
    w1_zp = zeros and L:get "w13_qzeros" or nil, w2_zp = zeros and L:get "w2_qzeros" or nil,
    w1_bias = L:get "w13_bias", w2_bias = L:get "w2_bias",
  }
  return L.quant_description
end

-- One matrix of all experts, as gemm.marlin_expert takes it.
local function stack(self, L, w, k, n, bias)
  return { type = "uint4", words = L:get(w .. "_qweight"), scales = L:get(w .. "_scales"), zeros = L:get(w .. "_qzeros"),
           bias = bias and L:get(w .. "_bias") or nil, global = L:get(w .. "_input_global_scale"), k = k, n = n, dtype = L.dtype,
           activations = self.activations, group = self.config.group }
end

--- method:products(L) -> w13 and w2 for moe.forward, out of the processed words.
-- Ranks sum their outputs, so that only rank 0 has w2's bias.
function M:products(L)
  return { w13 = gemm.marlin_experts(stack(self, L, "w13", L.h, L.s * L.i, true)),
    w2 = gemm.marlin_experts(stack(self, L, "w2", L.i, L.h, L.rank == 0)) }
end

-- What moe.forward needs of the experts.
local function forward_options(self, L, o)
  if not L.steps then error(("layer %s is not processed yet: call process after loading"):format(L.name), 3) end
  local parts = self:products(L)
  return setmetatable({
    experts = L.e, expert_map = L.expert_map, gated = L.gated,
    activation = self.compat.silu_always and "silu" or L.activation, w13 = parts.w13, w2 = parts.w2,
  }, { __index = o })
end

-- The modular kernel's preparation, which multiplies the input by the router's weight.
local function weighted(x, weights)
  local out = compute.scale_rows(x:cast "f32", weights:reshape { weights:numel() })
  return x:type() == "f32" and out or out:cast(x:type())
end

--- method:apply(L, x, weights, ids [, options]) -> y [T, H] in x's dtype
-- x [T,H]; weights f32 [T,k]; ids i32 [T,k], global. The layer's activation, expert map and options count: with
-- router_weight_on_input (k = 1) the weight multiplies w13's output, as in the kernel; y is written over x unless
-- disable_inplace. options: of moe.forward (limit, alpha, beta, chunk, buffer, dtype). (AWQ-38, SYSTEMS C-10, C-20)
function M:apply(L, x, weights, ids, options)
  make_workspace(self, L)
  local o = forward_options(self, L, options or {})
  local on_input = L.options.router_weight_on_input
  o.ids, o.weights = ids, weights
  o.router_weight_on_input = on_input and "after_w13" or false
  o.inplace = L.options.disable_inplace ~= true and (o.dtype or x:type()) == x:type()
  if on_input and self.compat.router_weight_twice then
    local y = moe.forward(weighted(x, weights), o)
    return o.inplace and compute.copy(x, y) or y
  end
  return moe.forward(x, o)
end

--- method:experts(L, {lora = true, format = "standard" | "batched", max_tokens_per_rank =, dispatchers =}) -> experts
-- The experts as a part of a modular kernel, which only LoRA needs: {name=, format=, k_full=, g_idx=, sort_indices=,
-- apply=function(x, …)}. Standard: apply(x, weights, ids [, options]); batched: apply(x [E,Tmax,H], counts i32 [E]
-- [, options]), which needs both sizes. method:quant(L) comes first. (AWQ-37)
function M:experts(L, o)
  if not o.lora then
    error("awq_marlin_moe has its own apply: modular experts are for LoRA only", 2)
  end
  if not L.quant_description then error(("layer %s: call quant(L) before asking for experts"):format(L.name), 2) end
  local none = tensor.new("i32", { L.e, 0 })
  local out = { k_full = L.k_full, quant = L.quant_description, format = o.format or "standard",
                g_idx = { none, none }, sort_indices = { L:get "w13_g_idx_sort_indices", L:get "w2_g_idx_sort_indices" } }
  if out.format == "standard" then
    out.name = "MarlinExperts"
    out.apply = function(x, weights, ids, options) return self:apply(L, x, weights, ids, options) end
    return out
  elseif out.format ~= "batched" then
    error(("experts: the format is standard or batched, found %s"):format(tostring(out.format)), 2)
  end
  for _, key in ipairs { "max_tokens_per_rank", "dispatchers" } do
    if type(o[key]) ~= "number" then error(("batched experts need %s, found %s"):format(key, tostring(o[key])), 2) end
  end
  out.name, out.max_tokens, out.dispatchers = "BatchedMarlinExperts", o.max_tokens_per_rank, o.dispatchers
  out.apply = function(x, counts, options)
    local p = forward_options(self, L, options or {})
    p.counts = counts
    return moe.batched(x, p)
  end
  return out
end

return M

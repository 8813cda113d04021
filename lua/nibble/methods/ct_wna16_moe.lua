-- methods.ct_wna16_moe: experts of 4- or 8-bit integers from compressed-tensors' pack-quantized
-- checkpoints, for Marlin or for FlashInfer's MXINT4 kernel (SYSTEMS 6.4, CTM-WNA16).
local tensor = require "nibble.tensor"
local gemm = require "nibble.gemm"
local moe = require "nibble.moe"
local scalars = require "nibble.marlin"
local common = require "nibble.methods.moe_common"
local marlin = require "nibble.methods.marlin"
local mxint4 = require "nibble.methods.mxint4"

local M = {}
local Method = common.class "ct_wna16_moe"

local types = { [4] = "uint4b8", [8] = "uint8b128" }

-- ---- choosing -----------------------------------------------------------------------------

--- mxint4_available{device = "sm_100", mxint4 = bool} -> true | false, reason
-- The kernel is there when the user asked for it (mxint4: enabled, and FlashInfer installed) on a device of the
-- SM 100 family.
function M.mxint4_available(o)
  if not o.mxint4 then return false, "MXINT4 is not enabled, or FlashInfer is not installed" end
  local sm = tostring(o.device):match "^sm_(%d+)"
  if not sm or math.floor(tonumber(sm) / 10) ~= 10 then
    return false, ("MXINT4 needs a device of the SM 100 family, found %s"):format(tostring(o.device))
  end
  return true
end

-- Why FlashInfer's kernel can't take this scheme; nil when it can.
local function mxint4_refuses(s)
  if s.bits ~= 4 then return ("MXINT4 takes 4-bit weights, found %d bits"):format(s.bits) end
  if s.strategy ~= "group" or s.group ~= 32 then
    return ("MXINT4 takes groups of 32, found %s"):format(s.strategy == "group" and tostring(s.group) or s.strategy)
  end
  if s.actorder == "group" then return "MXINT4 takes no weights in activation order" end
end

local function choose(s, o)
  local why = mxint4_refuses(s)
  if o.backend == nil or o.backend == "auto" then
    return not why and M.mxint4_available(o) and "Flashinfer" or "Marlin"
  end
  local backend = common.backend_of({ "Marlin", "Flashinfer" }, o.backend, "ct_wna16_moe")
  if backend == "Flashinfer" and why then return nil, why, "eunsupported" end
  return backend
end

local function scheme_fault(s, activations, switches)
  if s.type ~= "int" then return ("ct_wna16_moe takes int weights, found %s"):format(tostring(s.type)) end
  if s.symmetric == false then return "ct_wna16_moe takes symmetric weights only, found asymmetric ones" end
  if not types[s.bits] then
    return ("ct_wna16_moe takes weights of 4 or 8 bits, found %s: no Marlin kernel reads them"):format(tostring(s.bits))
  end
  if s.strategy ~= "group" and s.strategy ~= "channel" then
    return ('ct_wna16_moe takes strategy = "group" or "channel", found "%s"'):format(tostring(s.strategy))
  end
  if not activations then return end
  if activations ~= "int8" and activations ~= "fp8" then
    return ("ct_wna16_moe: activations are nil, int8 or fp8, found %s"):format(tostring(activations))
  end
  local ok, msg = scalars.check_pair(types[s.bits], activations, true)
  if not ok and not switches.fp8_preprocess_any_width then return msg end
  if s.actorder == "group" then
    return ("weights in activation order take 16-bit activations only, found %s"):format(activations)
  end
end

--- new(scheme [, options]) -> method | nil, msg, code
-- scheme: type "int", bits 4 or 8, symmetric, strategy "group" or "channel", group, actorder. options: backend = "auto"
-- (default: FlashInfer's MXINT4 kernel where mxint4_available and groups of 32 and 4 bits, else Marlin), "Marlin" or
-- "Flashinfer"; device, mxint4; activations = nil | "int8" | "fp8" (Marlin's); sms (132): streaming multiprocessors,
-- for the workspace; compat; log. (CTM-WNA16-01, CTM-WNA16-02)
function M.new(scheme, options)
  local method = common.start(Method, options)
  local o = method.options
  local fault = scheme_fault(scheme, o.activations, method.switches)
  if fault then return nil, fault, "eunsupported" end
  local backend, msg, code = choose(scheme, o)
  if not backend then return nil, msg, code end
  method.scheme, method.bits, method.type = scheme, scheme.bits, types[scheme.bits]
  method.pack_factor = 32 / scheme.bits
  method.strategy, method.group = scheme.strategy, scheme.strategy == "channel" and -1 or scheme.group
  method.activations, method.backend, method.monolithic = o.activations, backend, backend == "Flashinfer"
  -- Only "group" is activation order: "weight" leaves the columns in theirs (SYSTEMS C-13).
  method.act_order = scheme.actorder == "group" or (method.switches.actorder_any and scheme.actorder ~= nil)
  method.sorted = scheme.actorder == "group"
  method:say("info", ("WNA16 experts on the %s backend (group size %d, %d bits)"):format(backend, method.group,
    method.bits))
  return method
end

-- ---- parameters ------------------------------------------------------------------------------

--- method:weight_shape(name, experts, hidden, intermediate, {groups_w2 =, groups_w13 =, gated = true}) -> {a, b, c}
-- name: w13_weight, w13_scale, w2_weight or w2_scale; N first for FlashInfer, K first for Marlin. Asking for a scale's
-- shape without its groups is an error that names them. (CTM-WNA16-03)
function Method:weight_shape(name, experts, hidden, intermediate, o)
  o = o or {}
  local which, part = name:match "^(w%d+)_(%a+)$"
  if (which ~= "w13" and which ~= "w2") or (part ~= "weight" and part ~= "scale") then
    error(("weight_shape: expected w13_weight, w13_scale, w2_weight or w2_scale, found %s"):format(name), 2)
  end
  local groups = o["groups_" .. which]
  if part == "scale" and not groups then
    error(("weight_shape: num_groups_%s must be provided for weight scales"):format(which), 2)
  end
  local n, k = hidden, intermediate
  if which == "w13" then n, k = (o.gated == false and 1 or 2) * intermediate, hidden end
  local columns = part == "scale" and groups or math.floor(k / self.pack_factor)
  return self.backend == "Flashinfer" and { experts, n, columns } or { experts, columns, n }
end

-- Whole w2 scales: activation order's groups lie anywhere in the whole K. (CTM-WNA16-06)
local function groups_of(method, L)
  if method.strategy == "channel" then return 1, 1, false end
  local whole = method.act_order
  local size = whole and L.i_full or L.i
  if L.h % method.group ~= 0 then
    return nil, ("layer %s: the hidden size %d is not a multiple of the group size %d"):format(L.name, L.h,
      method.group)
  end
  if size % method.group ~= 0 then
    return nil, ("layer %s: the intermediate size %d is not a multiple of the group size %d; use a smaller "
      .. "tensor-parallel size"):format(L.name, size, method.group)
  end
  return L.h / method.group, size / method.group, whole
end

local function sizes_fault(method, L)
  if method.backend == "Flashinfer" then return mxint4.refuses(L) end
  -- Activation order's groups need not end with this rank's part.
  local ok, why = scalars.supports_moe(L.h, method.act_order and L.i_full or L.i, method.group)
  if ok and L.i % scalars.constants.min_thread_n ~= 0 then
    ok, why = false, ("the intermediate size %d is not a multiple of %d"):format(L.i, scalars.constants.min_thread_n)
  end
  return not ok and ("layer %s: %s"):format(L.name, why) or nil
end

--- method:create(L) -> true | nil, msg, code: registers the parameters. (CTM-WNA16-03 to CTM-WNA16-07)
function Method:create(L)
  local groups13, groups2, whole = groups_of(self, L)
  local fault = not groups13 and groups2 or sizes_fault(self, L)
  if fault then return nil, fault, "eunsupported" end
  L.groups_w13, L.groups_w2, L.k_full = groups13, groups2, not self.act_order or L.i == L.i_full
  local turned = self.backend ~= "Flashinfer"
  local counts = { groups_w13 = groups13, groups_w2 = groups2, gated = L.gated }
  local function shape(name) return self:weight_shape(name, L.e, L.h, L.i, counts) end
  for _, w in ipairs { "w13", "w2" } do
    common.register(L, w .. "_weight_packed", { dtype = "i32", shape = shape(w .. "_weight"), transposed = turned,
      flip = turned, pack_factor = self.pack_factor, packed_dim = turned and 0 or 1 })
    common.register(L, w .. "_weight_scale", { dtype = L.dtype, shape = shape(w .. "_scale"), transposed = turned,
      flip = turned, scale_method = self.strategy, whole = w == "w2" and whole, fill = 1 })
    common.register(L, w .. "_weight_shape", { dtype = self.switches.float_weight_shape and "f32" or "i64",
      shape = { L.e, 2 }, input_dim = 0, whole = true })
    local k = w == "w13" and L.h or L.i
    common.register(L, w .. "_weight_g_idx", { dtype = "i32", shape = { L.e, k }, input_dim = 0 })
    common.register(L, w .. "_g_idx_sort_indices", { dtype = "i32", shape = { L.e, k }, input_dim = 0 })
  end
  L.state, L.marlin_state = "created", self.monolithic and "ready" or "repack"
  return true
end

--- method:load(L, expert, shard, tensors) -> true, or false when the expert lives on another rank
-- As moe_common's load. In activation order gate and up share their columns' groups: w1 and w3 with different
-- weight_g_idx are an error.
function Method:load(L, expert, shard, tensors)
  local here = common.Base.load(self, L, expert, shard, tensors)
  if not (here and self.sorted and tensors.weight_g_idx and shard ~= "w2") then return here end
  local p = L:param "w13_weight_g_idx"
  p.loaded = p.loaded or {}
  if p.loaded[expert] and not p.loaded[expert]:equal(tensors.weight_g_idx) then
    error(("layer %s: w1 and w3 of expert %d have different weight_g_idx; one matrix has one activation order"):format(
      L.name, expert), 2)
  end
  p.loaded[expert] = tensors.weight_g_idx
  return here
end

-- ---- after loading ----------------------------------------------------------------------------

-- The order of CTM-WNA16-09: fp8 codes, activation order, repack of both, then the scales of each.
local ORDER = { "codes", "act_order", "repack", { "scales", "int8" } }

local function process_marlin(method, L)
  local ms = {}
  for i, w in ipairs { "w13", "w2" } do
    ms[i] = { words = L:get(w .. "_weight_packed"), order = "gptq", scales = L:get(w .. "_weight_scale"),
      bits = method.bits, group = method.group, activations = method.activations,
      g_idx = method.sorted and L:get(w .. "_weight_g_idx") or nil,
      in_place = true, any_width = method.switches.fp8_preprocess_any_width }
  end
  -- The document's K (SYSTEMS C-06): the repacked columns, always above the group, and w2's groups times the group.
  if method.switches.scale_permutation_k then
    ms[1].scale_k = L.s * L.i * method.bits / 2
    ms[2].scale_k = L.groups_w2 * (method.group ~= -1 and method.group or method.pack_factor)
  end
  local outs, msg, code = marlin.prepare_all(ms, ORDER, method.options.say)
  if not outs then return nil, msg, code end
  for i, w in ipairs { "w13", "w2" } do
    local out = outs[i]
    common.put(L, w .. "_weight_g_idx", out.sorted_g_idx or tensor.new("i32", { L.e, 0 }))
    common.put(L, w .. "_g_idx_sort_indices", out.perm or tensor.new("i32", { L.e, 0 }))
    common.put(L, w .. "_weight_packed", out.words)
    common.put(L, w .. "_weight_scale", out.scales)
    if out.global then common.put(L, w .. "_input_global_scale", tensor.new("f32", { 1 }, { out.global })) end
  end
  common.put(L, "workspace", scalars.workspace(method.options.sms or 132, 4))
  return true
end

local function process_mxint4(_, L)
  for _, w in ipairs { "w13", "w2" } do
    local words, scales, code = mxint4.prepare(L:get(w .. "_weight_packed"), L:get(w .. "_weight_scale"), w == "w13")
    if not words then return nil, ("layer %s: %s: %s"):format(L.name, w, scales), code end
    common.put(L, w .. "_weight_packed", words)
    common.put(L, w .. "_weight_scale", scales)
  end
  return true
end

--- method:process(L) -> true | nil, msg, code: the weights as the kernel reads them; once. (CTM-WNA16-08, CTM-WNA16-09)
function Method:process(L)
  self:unprocessed(L)
  local ok, msg, code = (self.monolithic and process_mxint4 or process_marlin)(self, L)
  if not ok then return nil, msg, code end
  L.marlin_state = "ready"
  L.state, L.method, L:param "w13_weight_g_idx".loaded = "ready", self, nil
  L.quant = self:quant(L)
  return true
end

--- method:quant(L) -> {bits = 4, w1_scale, w2_scale, block_shape = {0, group}}: no zero-points; nil for 8 bits.
-- (CTM-WNA16-11)
function Method:quant(L)
  if self.bits ~= 4 then return nil end
  return { bits = 4, w1_scale = L:get "w13_weight_scale", w2_scale = L:get "w2_weight_scale",
    block_shape = { 0, self.group } }
end

-- ---- running -----------------------------------------------------------------------------------

--- method:products(L) -> w13 and w2 for moe.forward, out of the processed words.
function Method:products(L)
  if self.monolithic then return mxint4.products(L) end
  -- SYSTEMS C-26: a kernel told that K is cut looks for groups by index, which only activation order has.
  if not L.k_full and not self.sorted then
    error(("layer %s: k_full must be true without activation order in groups, found actorder = %s on %d ranks"):format(
      L.name, tostring(self.scheme.actorder), L.tp), 3)
  end
  local function one(w, k, n, k_full)
    return gemm.marlin_experts { type = self.type, words = L:get(w .. "_weight_packed"),
      scales = L:get(w .. "_weight_scale"), sorted_g_idx = L:get(w .. "_weight_g_idx"),
      perm = L:get(w .. "_g_idx_sort_indices"), global = L:get(w .. "_input_global_scale"), group = self.group, k = k,
      n = n, activations = self.activations, dtype = L.dtype, k_full = k_full }
  end
  return { after_w13 = true, w13 = one("w13", L.h, L.s * L.i, true), w2 = one("w2", L.i, L.h, L.k_full) }
end

--- method:apply_monolithic(L, x, logits [, o]) -> y [T,H] bf16
-- x bf16 [T,H], logits [T,E] of all experts. o: as moe_common.route takes it. With Marlin an error. (CTM-WNA16-14)
function Method:apply_monolithic(L, x, logits, o)
  moe.expect(self, "monolithic", L)
  self:ready(L, "apply_monolithic")
  mxint4.check(x, L)
  local weights, ids = common.route(L, logits, o, "bf16")
  return (common.forward(L, x, weights, ids, { inplace = false }, self:products(L)))
end

--- method:experts(L, {format = "standard"|"batched", max_tokens =, dispatchers =}) -> experts object
-- {name = "MarlinExperts" | "BatchedMarlinExperts", quant, w13_g_idx, w2_g_idx, w13_g_idx_sort_indices,
-- w2_g_idx_sort_indices, k_full [, max_tokens, dispatchers]}; the layer gets w13_weight and w2_weight beside its
-- packed names. 8-bit weights, a layer without its quant description, and a batched format without max_tokens are
-- errors. (CTM-WNA16-12)
function Method:experts(L, prepare)
  if self.bits ~= 4 then error(("experts: only 4-bit weights have them, found %d bits"):format(self.bits), 2) end
  if not L.quant then
    error(("layer %s: experts need the quant description; process the layer first"):format(L.name), 2)
  end
  for _, w in ipairs { "w13", "w2" } do L:replace(w .. "_weight", L:get(w .. "_weight_packed")) end
  local out = { name = "MarlinExperts", quant = L.quant, k_full = L.k_full }
  for _, w in ipairs { "w13", "w2" } do
    out[w .. "_g_idx"], out[w .. "_g_idx_sort_indices"] = L:get(w .. "_weight_g_idx"), L:get(w .. "_g_idx_sort_indices")
  end
  if prepare and prepare.format == "batched" then
    if not prepare.max_tokens then
      error("experts: the batched format needs max_tokens, the tokens a rank can get", 2)
    end
    out.name, out.max_tokens, out.dispatchers = "BatchedMarlinExperts", prepare.max_tokens, prepare.dispatchers or 1
  end
  return out
end

return M

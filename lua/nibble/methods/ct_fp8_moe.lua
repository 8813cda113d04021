-- methods.ct_fp8_moe: FP8 experts of compressed-tensors: weights and activations scaled by tensor, by
-- channel and token, or by block and 128-group (SYSTEMS 6.3, CTM-FP8).
local fp8 = require "nibble.methods.fp8"
local kernels = require "nibble.methods.fp8_kernels"
local common = require "nibble.methods.moe_common"
local layout = require "nibble.layout"
local tensor = require "nibble.tensor"

local M = {}
local Method = common.class("ct_fp8_moe", kernels, "FP8 experts")

local weight_keys = { tensor = "fp8 static tensor", channel = "fp8 static channel", block = "fp8 static block 128x128" }

local ACCEPTED = "either by tensor both, or weights by channel with dynamic activations by token"

local function scheme_fault(s)
  local a = s.activations
  if s.type ~= "float" or s.bits ~= 8 then
    return ("ct_fp8_moe takes 8-bit float weights, found %s of %s bits"):format(tostring(s.type), tostring(s.bits))
  end
  if a and (a.type ~= "float" or a.bits ~= 8) then
    return ("ct_fp8_moe takes 8-bit float activations or none, found %s of %s bits"):format(tostring(a.type),
      tostring(a.bits))
  end
  if a and not a.dynamic and (s.strategy ~= "tensor" or a.strategy ~= "tensor") then
    return ("static activation scales of FP8 experts go %s; found weights by %s, static activations by %s"):format(
      ACCEPTED, tostring(s.strategy), tostring(a.strategy))
  end
  if s.strategy == "block" then
    if type(s.block) == "table" and #s.block == 2 then return end
    return "FP8 weights by block need block = {rows, columns}, found " .. tostring(s.block)
  end
  if not a then
    if weight_keys[s.strategy] then return end
    return ("FP8 experts' weights are scaled by tensor, channel or block, found %s"):format(tostring(s.strategy))
  end
  local pair = s.strategy == "tensor" and a.strategy == "tensor" or s.strategy == "channel" and a.strategy == "token"
  if not pair then
    return ("FP8 experts are scaled %s, or their weights by block; found weights by %s, activations by %s"):format(
      ACCEPTED, tostring(s.strategy), tostring(a.strategy))
  end
end

-- What the backends are asked with: any dynamic scale but a token's is the 128-group key (SYSTEMS C-16).
local function activation_key(s)
  if not s.activations then return "none" end
  if s.strategy == "block" then return "fp8 dynamic group 128" end
  if s.activations.strategy == "token" then return "fp8 dynamic token" end
  return s.activations.dynamic and "fp8 dynamic group 128" or "fp8 static tensor"
end

-- What is quantized at run time: as the scheme says; block weights always with groups.
local function run_activations(s, switches)
  local a = s.activations
  if not a then return nil end
  local grouped = s.strategy == "block" or (switches.dynamic_tensor_as_group and a.strategy == "tensor" and a.dynamic)
  if not grouped then return a end
  return { type = "float", bits = 8, symmetric = true, strategy = "group", group = a.group or 128, dynamic = true }
end

--- new(scheme [, options]) -> method | nil, msg, code
-- scheme: type "float", bits 8, strategy "tensor", "channel" or "block" (block = {bn, bk}), activations likewise, or
-- none for weight-only kernels. options: backend = one of fp8_kernels.names, or nil: the oracle is asked when the
-- layer is created (device, consumer, choice, packages), and where none of them is given it is NIBBLE; fnuz: the
-- platform computes with e4m3fnuz; activations: Marlin's, refused; reduce_max(x): the largest over ranks that exchange
-- experts; compat; log; say(step). (CTM-FP8-01 to CTM-FP8-03, CTM-FP8-13)
function M.new(scheme, options)
  local method = common.start(Method, options)
  local fault = scheme_fault(scheme)
  if fault then return nil, fault, "eunsupported" end
  method.scheme, method.strategy = scheme, scheme.strategy
  method.block = scheme.strategy == "block" and scheme.block or nil
  method.weight_key, method.activation_key = weight_keys[scheme.strategy], activation_key(scheme)
  method.run_activations = run_activations(scheme, method.switches)
  method.static = scheme.activations ~= nil and not scheme.activations.dynamic
  method.supports_eplb = true
  local wanted = method.options.backend
  if wanted and wanted ~= "auto" then
    local ok, msg, code = method:set_backend(common.backend_of(kernels.names, wanted, "ct_fp8_moe"))
    if not ok then return nil, msg, code end
  end
  return method
end

-- ---- parameters ------------------------------------------------------------------------------

local function block_fault(method, L)
  local bn, bk = method.block[1], method.block[2]
  if L.i % bn ~= 0 then
    return ("layer %s: the gate/up output size %d is not a multiple of the block's %d rows"):format(L.name, L.i, bn)
  end
  if L.tp > 1 and L.i % bk ~= 0 then
    return ("layer %s: the down input size %d is not a multiple of the block's %d columns"):format(L.name, L.i, bk)
  end
end

local function scale_shapes(method, L)
  if method.strategy == "tensor" then return { L.e, L.s }, { L.e } end
  if method.strategy == "channel" then return { L.e, L.s * L.i, 1 }, { L.e, L.h, 1 } end
  local bn, bk = method.block[1], method.block[2]
  return { L.e, L.s * math.ceil(L.i / bn), math.ceil(L.h / bk) }, { L.e, math.ceil(L.h / bn), math.ceil(L.i / bk) }
end

--- method:create(L) -> true | nil, msg, code: chooses the backend where none was named, registers the parameters.
-- (CTM-FP8-04 to CTM-FP8-07)
function Method:create(L)
  local ok, msg, code = self:choose(L)
  if not ok then return nil, msg, code end
  local fault = self.block and block_fault(self, L)
  if fault then return nil, fault, "eunsupported" end
  local s13, s2 = scale_shapes(self, L)
  L.orig_dtype, L.block = L.dtype, self.block
  common.register(L, "w13_weight", { dtype = "f8_e4m3", shape = { L.e, L.s * L.i, L.h } })
  common.register(L, "w2_weight", { dtype = "f8_e4m3", shape = { L.e, L.h, L.i } })
  for _, w in ipairs { "w13", "w2" } do
    common.register(L, w .. "_weight_scale", { dtype = "f32", shape = w == "w13" and s13 or s2,
      scale_method = self.strategy, fill = 1 })
    if self.static then
      common.register(L, w .. "_input_scale", { dtype = "f32", shape = { L.e }, scale_method = "tensor", shared = true,
        fill = 1 })
    end
  end
  L.state = "created"
  return true
end

-- ---- after loading ----------------------------------------------------------------------------

local steps = {}

-- (1) e4m3fnuz where the platform computes with it. (CTM-FP8-09, SYSTEMS C-24)
function steps.fnuz(method, L, m)
  if not method.options.fnuz then return true end
  for _, w in ipairs { "w13", "w2" } do
    local nans
    m[w], m[w .. "_scale"], m[w .. "_input_scale"], nans = fp8.to_fnuz(m[w], m[w .. "_scale"], m[w .. "_input_scale"])
    if nans > 0 and not method.switches.silent_fnuz_nan then
      method:say("warning", ("layer %s: %d NaN bytes of %s become +-240 in e4m3fnuz; look for what went wrong in the "
        .. "checkpoint"):format(L.name, nans, w))
    end
  end
  return true
end

local function equal(t)
  for i = 2, t:numel() do if t:get(i) ~= t:get(1) then return false end end
  return true
end

-- (2) one input scale for all experts: the largest. (CTM-FP8-10)
function steps.input(method, L, m)
  if not method.static then return true end
  if not equal(m.w13_input_scale) or not equal(m.w2_input_scale) then
    method:say("info", ("layer %s: the experts' input scales differ; the largest serves all"):format(L.name))
  end
  for _, w in ipairs { "w13", "w2" } do
    local max = fp8.input_scale(m[w .. "_input_scale"])
    if method.options.reduce_max then max:set(1, method.options.reduce_max(max:get(1))) end
    m[w .. "_input_scale"] = max
  end
  return true
end

-- (3) one scale for gate and up. (CTM-FP8-11)
function steps.requantize(method, L, m)
  if method.strategy ~= "tensor" then return true end
  if L.gated then
    m.w13, m.w13_scale = fp8.requantize_experts(m.w13, m.w13_scale)
  else
    m.w13_scale = m.w13_scale:reshape { L.e }
  end
  return true
end

steps.convert = Method.to_kernel -- (4)

function steps.replace(_, L, m)
  for _, w in ipairs { "w13", "w2" } do
    common.put(L, w .. "_weight", m[w])
    common.put(L, w .. "_weight_scale", m[w .. "_scale"])
    if m[w .. "_input_scale"] then common.put(L, w .. "_input_scale", m[w .. "_input_scale"]) end
  end
  return true
end

--- method:process(L) -> true | nil, msg, code: in the order of CTM-FP8-08; once.
function Method:process(L)
  self:unprocessed(L)
  local m = {}
  for _, w in ipairs { "w13", "w2" } do
    m[w], m[w .. "_scale"] = L:get(w .. "_weight"), L:get(w .. "_weight_scale")
    m[w .. "_input_scale"] = L:get(w .. "_input_scale")
  end
  local ok, msg, code = self:run_steps(steps, { "fnuz", "input", "requantize", "convert", "replace" }, L, m)
  if not ok then return nil, msg, code end
  L.quant = self:quant(L)
  L.state, L.method = "ready", L.quant and self or nil
  return true
end

local function inverse(t)
  return tensor.new("f32", t:size(), { 1 / t:get(1) })
end

--- method:quant(L) -> {per_token, per_channel, block_shape, w1_scale, w2_scale, a1_scale, a2_scale [, g1_alphas,
-- g2_alphas, a1_gscale, a2_gscale]} | nil where the backend is NONE
-- Weight-only backends get the weights' part alone; FlashInfer's CUTLASS by tensor also α = w_scale * a_scale and the
-- reciprocal input scales. (CTM-FP8-14)
function Method:quant(L)
  local form = kernels.forms[self.backend]
  if form[1] == "none" then return nil end
  local out = { w1_scale = L:get "w13_weight_scale", w2_scale = L:get "w2_weight_scale", block_shape = self.block }
  if form.weight_only then return out end
  local a = self.scheme.activations
  local token = a ~= nil and a.strategy == "token"
  out.per_token, out.per_channel = token, token
  out.a1_scale, out.a2_scale = L:get "w13_input_scale", L:get "w2_input_scale"
  if self.backend == "FLASHINFER_CUTLASS" and self.static then
    out.a1_gscale, out.a2_gscale = inverse(out.a1_scale), inverse(out.a2_scale)
    out.g1_alphas = layout.marlin.multiply_scales(out.w1_scale, out.a1_scale:get(1))
    out.g2_alphas = layout.marlin.multiply_scales(out.w2_scale, out.a2_scale:get(1))
  end
  return out
end

-- ---- running -----------------------------------------------------------------------------------

--- method:ready(L, what): an error unless the layer is processed and has a kernel; apply and apply_monolithic are
-- moe_common's. (CTM-FP8-16)
function Method:ready(L, what)
  if self.backend == "NONE" then
    error(("layer %s: %s: no backend takes these FP8 experts, so there is no kernel"):format(L.name, what), 3)
  end
  return common.Base.ready(self, L, what)
end

return M

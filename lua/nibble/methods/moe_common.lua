-- methods.moe_common: what the methods of experts share: messages, the backend, loading one expert, the steps
-- after loading, routing, products strip by strip, the forward pass and its guards (SYSTEMS 6, 7).
local nffi = require "nibble.ffi"
local tensor = require "nibble.tensor"
local compute = require "nibble.compute"
local compat = require "nibble.compat"
local act = require "nibble.act"
local layer = require "nibble.methods.layer"
local tell = require "nibble.methods.tell"
local moe = require "nibble.moe"
local text = require "nibble.text"

local M = {}

-- Decoded weights at a time: this many elements, 4 MiB as float32.
local STRIP = 1024 * 1024

local Base = {}
M.Base = Base

--- class(name [, kernels, what]) -> a table of methods that inherits what is below; give it as __index of a method.
-- kernels: the backends of a method that has several (fp8_kernels, nvfp4_kernels): forms, names, refuses, convert,
-- products; what: their weights in a sentence, "FP8 experts".
function M.class(name, kernels, what)
  local class = setmetatable({ name = name, kernels = kernels, what = what }, { __index = Base })
  class.__index = class
  return class
end

--- start(class, options) -> method with .options, .switches (compat), .messages
function M.start(class, options)
  options = options or {}
  return setmetatable({ options = options, switches = compat.read(options), messages = {}, monolithic = false },
    class)
end

--- query(L, weight, activation) -> what the oracle is asked with (nibble.backends) of experts L on a device, whose weight and input
-- are such.
function M.query(L, weight, activation)
  return { kind = "moe", weight = weight, activation = activation, dtype = L.dtype, hidden = L.h, intermediate = L.i,
    intermediate_full = L.i_full, experts = L.e_global, top = L.top, tp = L.tp, ep = L.ep, activation_fn = L.activation,
    gated = L.gated, clamp = L.options.limit }
end

--- method:say(level, sentence): once; into method.messages {{level=, text=}, …} and options.log(level, text).
Base.say = tell.say

-- ---- parameters: made, loaded, replaced, loaded again ----------------------------------------

--- register(L, name, attributes): L:register, remembered for loading again.
function M.register(L, name, attributes)
  L.raw = L.raw or {}
  L.raw[#L.raw + 1] = { name = name, attributes = attributes }
  return L:register(name, attributes)
end

--- put(L, name, t): what processing made of a parameter. Where the layer was processed before, into the storage of
-- that time, so that addresses stay. (MRL-58)
function M.put(L, name, t)
  local now, kept = L:param(name), L.kept and L.kept[name]
  local here = not (tensor.on_device(t) or now and now.data and tensor.on_device(now.data))
  local same = here and now and now.data and not kept and now.data.data == t.data
  if same and text.shape(now.data:size()) == text.shape(t:size()) then return now end -- as it was loaded
  if kept then L:replace(name, nil).data, L.kept[name] = kept, nil end
  return L:replace(name, t)
end

--- method:reload(L): a processed layer takes its checkpoint's tensors once more, under their names of the beginning;
-- load all of them and process the layer again. (CTM-NVFP4-19)
function Base:reload(L)
  self:ready(L, "reload")
  L.kept = L.kept or {}
  for _, raw in ipairs(L.raw) do
    local p = L:param(raw.name)
    if p then L.kept[raw.name] = p.data end
    L:replace(raw.name, nil)
    p = L:replace(raw.name, tensor.new(raw.attributes.dtype, raw.attributes.shape))
    if raw.attributes.fill then p.data:fill(raw.attributes.fill) end
    for key, value in pairs(raw.attributes) do p[key] = value end
    p.loaded = nil
  end
  L.state, L.method, L.quant = "created", nil, nil
end

nffi.interpreted(Base.reload)

--- method:unprocessed(L): an error unless L is created and not processed yet.
function Base:unprocessed(L)
  if L.state == "created" then return end
  error(("layer %s: its weights are %s"):format(L.name, L.state == "ready"
    and ("processed already; to load them once more call %s's reload(layer) first"):format(self.name)
    or "not there; create and load them first"), 3)
end

--- method:load(L, expert, shard, tensors) -> true, or false when the expert lives on another rank
-- expert: global, from 0. tensors: {weight_packed = t, weight_scale = t, …}, names as behind the projection's in the
-- checkpoint; w1 and w3 go to w13's parameters, w2 to its own. Scales of activations (input_scale, …) are left where
-- the method quantizes none. A processed layer is an error: reload it. (FWD-13)
function Base:load(L, expert, shard, tensors)
  if L.state == "ready" then self:unprocessed(L) end
  local here = true
  for name, t in pairs(tensors) do
    local parameter = (shard == "w2" and "w2_" or "w13_") .. name
    if L:get(parameter) or not name:match "^input_" then here = L:load_expert(parameter, t, shard, expert) end
  end
  return here
end

nffi.interpreted(Base.load)

--- method:ready(L, what): an error unless method:process(L) is done; what: the call that needs it.
function Base:ready(L, what)
  if L.method ~= self then
    error(("layer %s: %s before the weights are processed; call %s's process(layer) first"):format(L.name, what,
      self.name), 3)
  end
end

--- method:prepare_finalize(): an error: the method sets up its own kernel. (CTM-SEL-05)
function Base:prepare_finalize()
  error(("%s sets up its own kernel and has no prepare/finalize object to give"):format(self.name), 2)
end

-- ---- the backend -----------------------------------------------------------------------------

--- method:set_backend(name) -> true | nil, msg, code: where it takes the scheme.
function Base:set_backend(name)
  local why = self.kernels.refuses(name, self.scheme, self.switches)
  if why then return nil, why, "eunsupported" end
  self.backend, self.monolithic = name, self.kernels.forms[name].monolithic or false
  return true
end

--- method:choose(L) -> true | nil, msg, code: the backend that options named, else what the oracle says
-- options: consumer ("vllm-0.33"), device, choice = a backend asked for by the consumer's name, format, packages.
-- Without any of the first three it is NIBBLE, the plain form, which only nibble itself runs.
function Base:choose(L)
  if self.backend then return true end
  local o, s = self.options, self.scheme
  if not o.device and not o.consumer and not o.choice then return self:set_backend "NIBBLE" end
  local found, msg, code = require("nibble.backends").select({
    consumer = o.consumer or "vllm-0.33", kind = "moe", name = L.name, weight = s, activation = s.activations,
    hidden = L.h, intermediate = L.i, intermediate_full = L.i_full, experts = L.e_global, top = L.top, tp = L.tp,
    ep = L.ep, dtype = L.dtype, activation_fn = L.activation, gated = L.gated, clamp = L.options.limit,
    device = o.device, format = o.format, backend = o.choice, packages = o.packages,
  }, { change = false, log = function(level, sentence) self:say(level, sentence) end })
  if not found then return nil, msg, code end
  if self.kernels.forms[found.backend] then return self:set_backend(found.backend) end
  return nil, ("layer %s: the oracle chose %s, whose form of %s nibble doesn't have; name one of %s"):format(L.name,
    found.backend, self.what, table.concat(self.kernels.names, ", ")), "eunsupported"
end

--- backend_of(names, wanted, what) -> the name as `names` has it, whatever the case of wanted; an error lists them.
function M.backend_of(names, wanted, what)
  for _, name in ipairs(names) do
    if name:lower() == tostring(wanted):lower() then return name end
  end
  error(("%s: unknown backend %s: expected %s%s"):format(what, tostring(wanted), table.concat(names, ", "),
    text.did_you_mean(tostring(wanted), names)), 3)
end

-- ---- after loading ------------------------------------------------------------------------

--- method:run_steps(steps, names, L, m) -> true | nil, msg, code
-- steps[name](method, L, m) one after the other; options.say(name) hears of each before it runs. m: what they work on.
function Base:run_steps(steps, names, L, m)
  for _, name in ipairs(names) do
    if self.options.say then self.options.say(name) end
    local ok, msg, code = steps[name](self, L, m)
    if not ok then return nil, msg, code end
  end
  return true
end

--- method:to_kernel(L, m) -> true | nil, msg, code: the step that gives m the backend's form; L.i_kernel: its size.
function Base:to_kernel(L, m)
  local size, msg, code = self.kernels.convert(self, L, m)
  if not size then return nil, ("layer %s: %s"):format(L.name, msg), code end
  L.i_kernel = size
  return true
end

-- ---- routing ------------------------------------------------------------------------------

-- How the kernels' routing methods choose: softmax over the chosen ones is the softmax over all, normalized.
local routings = {
  default = { scoring = "softmax", normalize = false },
  renormalize = { scoring = "softmax", normalize = true },
  deepseek_v3 = { scoring = "sigmoid", normalize = true },
}

--- route(L, logits [, o [, bias_dtype]]) -> weights f32 [T,top], ids i32 [T,top] of global experts
-- Fields of o, or else of L.options.router: routing = "default" (softmax, the top), "renormalize" (their softmax) or
-- "deepseek_v3" (sigmoid, groups, logits in float32), or scoring and normalize by themselves; groups, top_groups (0:
-- none), bias [E] (rounded to bias_dtype, if any), scale (1), as moe.route has them.
function M.route(L, logits, o, bias_dtype)
  local function field(name)
    if o and o[name] ~= nil then return o[name] end
    return (L.options.router or {})[name]
  end
  local how = routings[field "routing" or "default"]
  if not how then
    error(("layer %s: unknown routing %s: expected default, renormalize or deepseek_v3"):format(L.name,
      tostring(field "routing")), 3)
  end
  if logits.ndim ~= 2 or logits:size(2) ~= L.e_global then
    error(("layer %s: router logits %s for %d experts"):format(L.name, text.shape(logits:size()), L.e_global), 3)
  end
  local bias, normalize = field "bias", field "normalize"
  if normalize == nil then normalize = how.normalize end
  if bias and bias_dtype and bias:type() ~= bias_dtype then bias = bias:cast(bias_dtype) end
  return moe.route(logits, { top = L.top, scoring = field "scoring" or how.scoring, normalize = normalize,
    groups = field "groups", top_groups = field "top_groups", bias = bias, scale = field "scale" })
end

-- ---- products -------------------------------------------------------------------------------

--- product(x, n, k, unit, fill [, bias]) -> f32 [m,n] = x weightᵀ + bias
-- fill(out, a, b): rows a..b, from 1, of the weight [n,k] into out, f32 [b-a+1, k]. Strips are multiples of `unit` rows.
-- The product is taken in float32 over all of k, so it does not depend on the strips.
function M.product(x, n, k, unit, fill, bias)
  local rows = math.min(math.max(1, math.floor(STRIP / k / unit)) * unit, n)
  local y, strip = tensor.new("f32", { x:size(1), n }), tensor.new("f32", { rows, k })
  local part = rows < n and tensor.new("f32", { x:size(1), rows }) or y
  for a = 1, n, rows do
    local b = math.min(a + rows - 1, n)
    local count = b - a + 1
    local weight = count == rows and strip or strip:rows(1, count)
    fill(weight, a, b)
    local out = count == rows and part or tensor.new("f32", { x:size(1), count })
    compute.gemm(out, x, weight, bias and bias:rows(a, b))
    if out ~= y then layer.block(y, a - 1, out, 0, count, 1) end
  end
  return y
end

--- quantize(L, t, activations, scales) -> t as codes of the scheme's activations stand for it.
function M.quantize(L, t, activations, scales)
  local out, msg = act.quantize_dequantize(t, activations, scales)
  return out or error(("layer %s: %s"):format(L.name, msg), 0)
end

-- ---- the forward pass ------------------------------------------------------------------------

-- The experts' activation by moe's name: those of an MLP without gate end in _no_mul.
local function activation_of(L)
  if L.gated or L.activation:match "_no_mul$" then return L.activation end
  return L.activation .. "_no_mul"
end

--- forward(L, x, weights, ids, o, parts) -> y [T,H] [, shared]
-- parts: w13, w2, quantize as moe.forward takes them (on a device w3 too); after_w13: the router's weight goes on the first product's
-- output as in Marlin's kernel. o: router_weight_on_input, inplace (both also in L.options; the layer's disable_inplace
-- wins), shared_input. L.options.shared_experts, a function, is called with shared_input or x, and its result is
-- returned second.
function M.forward(L, x, weights, ids, o, parts)
  o = o or {}
  local function option(name)
    if o[name] ~= nil then return o[name] end
    return L.options[name]
  end
  local on_input = option "router_weight_on_input"
  if on_input and parts.after_w13 and ids:size(2) == 1 then on_input = "after_w13" end
  local shared = L.options.shared_experts and L.options.shared_experts(o.shared_input or x)
  local y = moe.forward(x, {
    ids = ids, weights = weights, experts = L.e, expert_map = L.expert_map, w13 = parts.w13, w2 = parts.w2, w3 = parts.w3,
    quantize = parts.quantize, activation = activation_of(L), gated = L.gated, limit = L.options.limit,
    alpha = L.options.alpha, beta = L.options.beta, router_weight_on_input = on_input,
    inplace = option "inplace" and not L.options.disable_inplace,
  })
  return y, shared
end

--- method:products(L) -> w13, w2 and quantize for moe.forward, reading the processed form.
function Base:products(L) return self.kernels.products(self, L) end

--- method:apply(L, x, weights, ids [, o]) -> y [T,H] [, shared]
-- x [T,H] f32, f16 or bf16; weights f32 [T,k]; ids i32 [T,k], global experts from 0; o: as forward takes it. On a
-- monolithic kernel and before the processing an error. (CTM-FP8-16, CTM-NVFP4-18, CTM-WNA16-13)
function Base:apply(L, x, weights, ids, o)
  moe.expect(self, "modular", L)
  self:ready(L, "apply")
  return M.forward(L, x, weights, ids, o, self:products(L))
end

--- method:apply_monolithic(L, x, logits [, o]) -> y [T,H] [, shared]: o: what route takes, and the rest of apply's. On
-- a modular kernel and before the processing an error. (CTM-FP8-16, CTM-NVFP4-18)
function Base:apply_monolithic(L, x, logits, o)
  moe.expect(self, "monolithic", L)
  self:ready(L, "apply_monolithic")
  local weights, ids = M.route(L, logits, o, "bf16")
  return M.forward(L, x, weights, ids, o, self:products(L))
end

return M

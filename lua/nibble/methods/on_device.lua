-- methods.on_device: every system's layers on a CUDA device, one way for all of them.
--
--   made       methods.make(name, config, {on = "cuda"}): the system's own method, with this one around it
--   created,   as on the CPU, by the system's own method; what the device doesn't run is refused as the oracle's table of
--   loaded     nibble says
--   processed  as on the CPU, but words that are only repacked are repacked on the device; then methods.device_forms tells what
--              the processed parameters are, and they become the one form that the device's kernels read: Marlin's words, scales
--              and zero-points. The parameters on the CPU are given up.
--   applied    gemm.marlin on the device; of experts the system's own apply, given tensors there and these stacks, so that
--              moe.forward goes one launch a stage. Activations that the system quantizes are codes of 8 bits there (a matrix's
--              activations), or taken for what their codes stand for in a 16-bit product (form.activations), also where each
--              expert has an input scale of its own.
--
-- y is the CPU's apply within the rounding of the device's 16-bit activations: x is rounded to the layer's dtype, and y.
local act = require "nibble.act"
local backends = require "nibble.backends"
local compute = require "nibble.compute"
local cuda = require "nibble.cuda"
local forms = require "nibble.methods.device_forms"
local gemm = require "nibble.gemm"
local layout = require "nibble.layout"
local linear = require "nibble.methods.linear"
local nffi = require "nibble.ffi"
local tensor = require "nibble.tensor"

local M = {}
local Method = {}

-- What the system's method has, so does this: its name, whether it is monolithic, its backend.
function Method.__index(self, key)
  local own = Method[key]
  if own ~= nil then return own end
  return rawget(self, "base")[key]
end

--- new(name, config, options) -> method | nil, msg, code
-- name: a module of nibble.methods; config, options: what its new() takes; options.on: the device.
function M.new(name, config, options)
  local device, msg, code = cuda.device(options.on)
  if not device then return nil, msg, code end
  if not forms[name] then return nil, ("%s has no form on a device"):format(name), "eunsupported" end
  local base
  base, msg, code = require("nibble.methods." .. name).new(config, options)
  if not base then return nil, msg, code end
  return M.around(base, name, forms[name], device)
end

--- around(base, name, entry, device) -> method: base's layers on a device (of cuda.device), in the form that entry makes of them,
-- as device_forms has it.
function M.around(base, name, entry, device)
  local method = setmetatable({ base = base, system = name, entry = entry, device = device.name, sm = device.sm }, Method)
  if base.products then -- of experts, which its apply asks for
    local own = base.products
    base.products = function(_, L) return L.on_device and method:parts(L) or own(base, L) end
  end
  return method
end

-- ---- made, loaded, processed -----------------------------------------------------------------

--- method:create(L) -> true | nil, msg, code: the system's own parameters; what the device doesn't run is refused.
function Method:create(L)
  local query = self.entry.query(self.base, L)
  if query then
    query.consumer, query.backend, query.device, query.name = "nibble", self.system, "sm_" .. self.sm, L.name
    local ok, msg, code = backends.select(query, { change = false })
    if not ok then return nil, ("layer %s: %s"):format(L.name, msg), code end
  end
  local ok, msg, code = self.base:create(L)
  if not ok then return nil, msg, code end
  local why, kind
  if self.entry.refuses then why, kind = self.entry.refuses(self.base, L) end
  if why then return nil, ("layer %s on %s: %s"):format(L.name, self.device, why), kind end
  return true
end

local function unprocessed(L)
  if L.on_device then error(("layer %s was processed: load it again"):format(L.name), 3) end
end

--- method:load(L, expert, shard, tensors): an expert's, as the system's own method loads it.
function Method:load(L, expert, shard, tensors)
  unprocessed(L)
  if self.base.load then return self.base:load(L, expert, shard, tensors) end
  local w, here = shard == "w2" and "w2_" or "w13_", true
  for suffix, t in pairs(tensors) do
    if L:get(w .. suffix) then here = L:load_expert(w .. suffix, t, shard, expert) end
  end
  return here
end
nffi.interpreted(Method.load)

-- The tensors of a matrix in Marlin's form, all of them on the device | nil, msg, code
local parts = { "words", "scales", "zeros", "perm", "sorted_g_idx", "bias" }
local function there(m, device)
  local out = setmetatable({}, { __index = m })
  for _, name in ipairs { "global", "scale_factor" } do
    if type(m[name]) == "cdata" and m[name]:numel() > 1 then -- of each expert
      local msg, code
      out[name], msg, code = m[name]:to(device)
      if not out[name] then return nil, msg, code end
    end
  end
  for _, part in ipairs(parts) do
    local t = m[part]
    if type(t) == "cdata" then
      local moved, msg, code = t:to(device)
      if not moved then return nil, msg, code end
      out[part] = moved
    end
  end
  return out
end

-- Scales that each expert has of its own, f32 [E] on the device by matrix | nil, msg, code
local function scales_there(form, device)
  local own = {}
  for w, list in pairs(form.scales or {}) do
    if #list > 1 then
      local t = tensor.new("f32", { #list })
      for e, s in ipairs(list) do
        local value = s.global or s.scale
        if not (value > 0 and value < math.huge) then
          return nil, ("the input scale of expert %d in %s is %g, expected a finite number above 0"):format(e - 1, w, value), "eformat"
        end
        t:set(e, value)
      end
      local msg, code
      own[w], msg, code = t:to(device)
      if not own[w] then return nil, msg, code end
    end
  end
  return own
end

--- method:process(L) -> true | nil, msg, code
-- The system's own processing, then the device's form: L keeps "weight_words", "weight_scales", … there. Where something
-- fails on the way the layer is to be loaded again.
function Method:process(L)
  unprocessed(L)
  for _, name in ipairs(self.entry.first and self.entry.first(self.base, L) or {}) do
    local t, msg, code = L:get(name):to(self.device)
    if not t then return nil, ("layer %s: %s"):format(L.name, msg), code end
    L:replace(name, t)
  end
  local ok, msg, code = self.base:process(L)
  if not ok then return nil, msg, code end
  local form
  form, msg, code = self.entry.form(self.base, L, self.device)
  if form and L.kind == "moe" then
    form.after_w13 = self.base.products and self.base:products(L).after_w13
    form.own, msg, code = scales_there(form, self.device)
    form = form.own and form
  end
  if not form then return nil, ("layer %s: %s"):format(L.name, msg), code end
  local made = {}
  for which, m in pairs(form.matrices) do
    made[which], msg, code = there(m, self.device)
    if not made[which] then return nil, ("layer %s: %s"):format(L.name, msg), code end
  end
  if L.expert_map then
    form.map = L.expert_map
    L.expert_map, msg, code = form.map:to(self.device)
    if not L.expert_map then
      L.expert_map = form.map
      return nil, ("layer %s: %s"):format(L.name, msg), code
    end
  end
  for _, name in ipairs(L:names()) do L:replace(name, nil) end
  for which, m in pairs(made) do
    for _, part in ipairs(parts) do
      local own = which == "weight" and part == "bias" -- which callers may replace
      if type(m[part]) == "cdata" then L:replace(own and part or which .. "_" .. part, m[part]).permuted = own or nil end
    end
  end
  form.matrices, L.quant = made, nil
  L.on_device = form
  return true
end

--- method:quant() -> nil: the device's layers hand no description to other kernels.
function Method.quant() end

-- ---- applied -----------------------------------------------------------------------------------

local function ready(L)
  return L.on_device or error(("layer %s is not processed yet: call process after loading"):format(L.name), 3)
end

-- x on the device and of dtype: from the computer's memory, or as it is there.
local function moved(self, L, x)
  if x:where() == "cpu" then return linear.rounded(x, L.dtype):to(self.device) end
  if x:where() ~= self.device then
    error(("layer %s lies on %s, and its activations on %s"):format(L.name, self.device, x:where()), 3)
  end
  if x:type() ~= L.dtype then
    error(("layer %s takes activations of %s on the device, found %s"):format(L.name, L.dtype, x:type()), 3)
  end
  return x
end

-- What is done to all experts' rows before a product: numbers, or codes and their rows' scales. o: what moe.forward was given.
local function quantized(form, x, w, o)
  local a, scales = form.activations, form.scales and form.scales[w] or {}
  if form.codes then return act.quantize(x, a, scales[1]) end
  if not act.by_expert(a, scales) then return act.quantize_dequantize(x, a, scales[1]) end
  return act.quantize_pairs(x, a, { ids = o.ids, map = o.expert_map, experts = o.experts, scales = form.own[w] })
end

--- method:parts(L) -> w13, w2 and quantize for moe.forward: the stacks.
function Method.parts(_, L)
  local form = L.on_device
  local function quantize(x, w, o)
    local out, msg = quantized(form, x, w, o)
    if not out then error(("layer %s: %s"):format(L.name, msg), 0) end
    return out, form.codes and msg -- the scales
  end
  local parts_of = { after_w13 = form.after_w13, quantize = form.activations and quantize or nil }
  for w, m in pairs(form.matrices) do parts_of[w] = m end
  return parts_of
end

-- The system's own apply or apply_monolithic. a, b: the router's weights and ids, or its logits and options.
local function experts(self, call, L, x, a, b, o)
  ready(L)
  if self.base.monolithic ~= (call == "apply_monolithic") then return self.base[call](self.base, L, x, a, b, o) end -- it says why not
  local input, msg, code = moved(self, L, x)
  if input then a, msg, code = a:to(self.device) end
  if a and call == "apply" then b, msg, code = b:to(self.device) end
  if not input or not a or call == "apply" and not b then return nil, msg, code end
  local y, shared = self.base[call](self.base, L, input, a, b, o)
  local over = y == input -- x was to be written over
  if y:where() ~= x:where() then y, msg, code = y:to(x:where()) end
  if not y then return nil, msg, code end
  y = linear.rounded(y, x:type())
  return over and x:where() == "cpu" and input ~= x and compute.copy(x, y) or y, shared
end

--- method:apply_monolithic(L, x, logits [, o]) -> y [T,H] [, shared]: of experts, as the system's own.
function Method:apply_monolithic(L, x, logits, o) return experts(self, "apply_monolithic", L, x, logits, o) end

--- method:apply(L, x [, bias [, out]]) -> y [.., n] in x's dtype, where x lies | nil, msg, code
-- x in the computer's memory, or on the device in the layer's dtype. bias: nil (the layer's own), false (none), or {data =,
-- permuted = true} on the device, in Marlin's order. out: a tensor [m, n] to fill, where x lies on the device. Of experts
-- apply(L, x, weights, ids [, o]), as the system's own.
function Method:apply(L, x, bias, out, o)
  if L.kind == "moe" then return experts(self, "apply", L, x, bias, out, o) end
  local form = ready(L)
  local flat, shape = linear.rows(L, x)
  local there_x, msg, code = moved(self, L, flat)
  if not there_x then return nil, msg, code end
  local y
  local narrow = form.matrices.narrow and flat:size(1) >= form.least
  local w = setmetatable({ bias = linear.bias(L, bias, true), outputs = L.n,
    out = x:where() ~= "cpu" and out or nil }, { __index = narrow and form.matrices.narrow or form.matrices.weight })
  y, msg, code = gemm.marlin(there_x, w)
  if y and x:where() == "cpu" then y, msg, code = y:to "cpu" end
  if not y then return nil, msg, code end
  return linear.shaped(y, x, shape, L.n)
end

--- method:reload(L): the system's own of experts; load all of the checkpoint's tensors, and process the layer again.
function Method:reload(L)
  ready(L)
  self.base:reload(L)
  L.expert_map = L.on_device.map or L.expert_map
  L.on_device = nil
  for _, which in ipairs { "w13", "w2", "w3" } do
    for _, part in ipairs(parts) do
      if L:param(which .. "_" .. part) and tensor.on_device(L:get(which .. "_" .. part)) then L:replace(which .. "_" .. part, nil) end
    end
  end
end

--- method:finish(L, y [, bias]) -> y: pymllm's, with the layer's bias in its plain order.
function Method:finish(L, y, bias)
  local own = L:get "bias"
  if bias == nil and own then bias = assert(layout.marlin.unpermute_bias(own):to "cpu") end
  return self.base:finish(L, y, bias)
end

return M

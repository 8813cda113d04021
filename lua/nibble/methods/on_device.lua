-- methods.on_device: every system's layers on a CUDA device, one way for all of them.
--
--   made       methods.make(name, config, {on = "cuda"}): the system's own method, with this one around it
--   created,   as on the CPU, by the system's own method; what the device doesn't run is refused as the oracle's table of
--   loaded     nibble says
--   processed  as on the CPU, but words that are only repacked are repacked on the device; then methods.device_forms tells what
--              the processed parameters are, and they become the one form that the device's kernels read: Marlin's words, scales
--              and zero-points. The parameters on the CPU are given up.
--   applied    gemm.marlin on the device. Activations that the system quantizes are quantized there and taken for what their
--              codes stand for, in a 16-bit product.
--
-- y is the CPU's apply within the rounding of the device's 16-bit activations: x is rounded to the layer's dtype, and y.
local act = require "nibble.act"
local backends = require "nibble.backends"
local cuda = require "nibble.cuda"
local forms = require "nibble.methods.device_forms"
local gemm = require "nibble.gemm"
local layout = require "nibble.layout"
local linear = require "nibble.methods.linear"
local nffi = require "nibble.ffi"

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
  return setmetatable({ base = base, system = name, device = device.name, sm = device.sm }, Method)
end

-- ---- made, loaded, processed -----------------------------------------------------------------

--- method:create(L) -> true | nil, msg, code: the system's own parameters; what the device doesn't run is refused.
function Method:create(L)
  local query = forms[self.system].query(self.base, L)
  if query then
    query.consumer, query.backend, query.device, query.name = "nibble", self.system, "sm_" .. self.sm, L.name
    local ok, msg, code = backends.select(query, { change = false })
    if not ok then return nil, ("layer %s: %s"):format(L.name, msg), code end
  end
  return self.base:create(L)
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
local parts = { "words", "scales", "zeros", "perm", "sorted_g_idx", "bias", "global" }
local function there(m, device)
  local out = setmetatable({}, { __index = m })
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

--- method:process(L) -> true | nil, msg, code
-- The system's own processing, then the device's form: L keeps "weight_words", "weight_scales", … there. Where something
-- fails on the way the layer is to be loaded again.
function Method:process(L)
  unprocessed(L)
  for _, name in ipairs(forms[self.system].first and forms[self.system].first(self.base, L) or {}) do
    local t, msg, code = L:get(name):to(self.device)
    if not t then return nil, ("layer %s: %s"):format(L.name, msg), code end
    L:replace(name, t)
  end
  local ok, msg, code = self.base:process(L)
  if not ok then return nil, msg, code end
  local form
  form, msg, code = forms[self.system].form(self.base, L, self.device)
  if not form then return nil, ("layer %s: %s"):format(L.name, msg), code end
  local made = {}
  for which, m in pairs(form.matrices) do
    made[which], msg, code = there(m, self.device)
    if not made[which] then return nil, ("layer %s: %s"):format(L.name, msg), code end
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

--- method:apply(L, x [, bias [, out]]) -> y [.., n] in x's dtype, where x lies | nil, msg, code
-- x in the computer's memory, or on the device in the layer's dtype. bias: nil (the layer's own), false (none), or {data =,
-- permuted = true} on the device, in Marlin's order. out: a tensor [m, n] to fill, where x lies on the device.
function Method:apply(L, x, bias, out)
  local form = ready(L)
  local flat, shape = linear.rows(L, x)
  local there_x, msg, code = moved(self, L, flat)
  if not there_x then return nil, msg, code end
  if form.activations and flat:size(1) >= (form.least or 0) then
    there_x, msg, code = act.quantize_dequantize(there_x, form.activations, form.scales)
    if not there_x then return nil, msg, code end
  end
  local y
  local w = setmetatable({ bias = linear.bias(L, bias, true), outputs = L.n,
    out = x:where() ~= "cpu" and out or nil }, { __index = form.matrices.weight })
  y, msg, code = gemm.marlin(there_x, w)
  if y and x:where() == "cpu" then y, msg, code = y:to "cpu" end
  if not y then return nil, msg, code end
  if y:type() == x:type() then
    shape[#shape + 1] = L.n
    return y:reshape(shape)
  end
  return linear.shaped(y, x, shape, L.n)
end

--- method:finish(L, y [, bias]) -> y: pymllm's, with the layer's bias in its plain order.
function Method:finish(L, y, bias)
  local own = L:get "bias"
  if bias == nil and own then bias = assert(layout.marlin.unpermute_bias(own):to "cpu") end
  return self.base:finish(L, y, bias)
end

return M

-- methods.marlin_float_cuda: dense layers of FP8, MXFP8, MXFP4 and NVFP4 weights with 16-bit activations on a CUDA device,
-- whatever format stores them: put into Marlin's form after loading (methods.marlin_float), which pads what its tiles don't
-- divide, and multiplied there as methods.marlin_cuda does (SYSTEMS MRL-48, CTM-NVFP4-15, CTM-FP8-17). Inputs that the scheme
-- quantizes, in a way that no product here takes (4-bit floats below SM 100), are taken for what their codes stand for.
local act = require "nibble.act"
local linear = require "nibble.methods.linear"
local marlin_cuda = require "nibble.methods.marlin_cuda"
local marlin_float = require "nibble.methods.marlin_float"
local prepare, of_quantized = marlin_float.prepare, marlin_float.of_quantized

local M = setmetatable({ name = "marlin_float_cuda" }, { __index = marlin_cuda })
M.__index = M

--- new({scheme =, format =}, {on = "cuda"}) -> method | nil, msg, code
function M.new(config, options)
  local method, msg, code = marlin_cuda.new(config, options)
  return method and setmetatable(method, M), msg, code
end

--- method:create(L) -> true | nil, msg, code: what is refused, the oracle says why.
function M:create(L)
  local a = self.config.scheme.activations
  local fault = a and act.fault(a)
  if fault then return nil, ("layer %s: %s"):format(L.name, fault), "eunsupported" end
  return linear.create_on_device(self, L)
end

--- method:read(L, ck) -> true | nil, msg, code: this rank's part of the weight, stored in whatever format.
function M:read(L, ck)
  local q, msg, code = linear.weight(L, ck)
  if not q then return nil, msg, code end
  local a = self.config.scheme.activations
  if a then
    L.input = { scale = q.input_scale, global = q.input_global, zero_point = q.input_zero }
    if act.needs(a) and not L.input[act.needs(a)] then
      return nil, ("layer %s: its activations are %s, but the number of its input that they are scaled with is missing"):format(L.name,
        act.describe(a)), "eformat"
    end
  end
  L.weight = q
  return true
end

--- method:process(L) -> true | nil, msg, code
-- After loading: L keeps "words", "scales" and "bias" in Marlin's form on the device, and gives the loaded ones up.
function M:process(L)
  if L.order_of_words then error(("layer %s was processed: load it again"):format(L.name), 2) end
  local q = L.weight
  local m, type, code = of_quantized(q)
  if not m then return nil, ("layer %s: %s"):format(L.name, type), code end
  m.dtype, m.bias = L.dtype, L:get "bias"
  local out, msg
  out, msg, code = prepare(m)
  if not out then return nil, msg, code end
  L.form = { type = type, dtype = L.dtype, outputs = L.n, global = out.global and out.global:get(1) or nil,
    k = out.words:size(1) * 16, n = out.words:size(2) * 2 / q.scheme.bits }
  for _, name in ipairs(L:names()) do L:replace(name, nil) end
  for _, name in ipairs { "words", "scales", "bias" } do
    if out[name] then
      local t
      t, msg, code = out[name]:to(self.device)
      if not t then return nil, msg, code end
      L:replace(name, t).permuted = name == "bias"
    end
  end
  L.weight, L.order_of_words = nil, "marlin"
  return true
end

--- method:matrix(L) -> the layer's weight as gemm.marlin takes it
function M.matrix(_, L) return setmetatable({ words = L:get "words", scales = L:get "scales" }, { __index = L.form }) end

--- method:apply(L, x [, bias [, out]]) -> y [.., n] | nil, msg, code: marlin_cuda's, of inputs as the scheme quantizes them: the
-- numbers that their codes stand for, in the layer's dtype.
function M:apply(L, x, bias, out)
  local a = self.config.scheme.activations
  if not a or not L.form then return marlin_cuda.apply(self, L, x, bias, out) end
  local there, shape = linear.rows(L, x)
  local y, msg, code
  if x:where() == "cpu" then there, msg, code = linear.rounded(there, L.dtype):to(self.device) end
  if there then there, msg, code = act.quantize_dequantize(there, a, L.input) end
  if there then y, msg, code = marlin_cuda.apply(self, L, there, bias, x:where() ~= "cpu" and out or nil) end
  if y and x:where() == "cpu" then y, msg, code = y:to "cpu" end
  if not y then return nil, msg, code end
  return linear.shaped(y, x, shape, L.n)
end

return M

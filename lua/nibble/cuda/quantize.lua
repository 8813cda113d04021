-- cuda.quantize: quantization of tensors on a device, as quant and layout.marlin do it in the computer's
-- memory, bit for bit.
local nffi = require "nibble.ffi"
local tensor = require "nibble.tensor"
local tensors = require "nibble.cuda.tensors"
local C = nffi.C

local M = {}

--- t:quantize(options) -> Quantized, its codes, scales and zeros on the device | nil, msg, code
-- options: {scheme = "W4A16", group = 128, …}, as of a tensor in the computer's memory, and with the same bytes; method "rtn" alone.
function tensors.methods.quantize(d, t) return require("nibble.quant").of_tensor(d, t) end

local function expect(what, x)
  if tensor.on_device(x) then return end
  error(("%s: expected a tensor on a device (x:to \"cuda\"), found %s"):format(what, tensor.found(x)), 3)
end

--- cuda.activations(x, "int8" | "fp8" [, {global =, scale =, per_tensor =, group =}]) -> q, scales | nil, msg, code
-- layout.marlin.quantize_activations of x on a device, where options.scale is and q and scales then are.
function M.activations(x, dtype, o)
  o = o or {}
  expect("quantize_activations", x)
  if dtype ~= "int8" and dtype ~= "fp8" then
    error(("quantize_activations: activations become int8 or fp8, found %q"):format(tostring(dtype)), 2)
  end
  if x.ndim ~= 2 then error(("quantize_activations: expected [m×k], found %s"):format(tostring(x)), 2) end
  if o.scale then expect("quantize_activations: scale", o.scale) end
  local mode, shape = require("nibble.layout.marlin").scales_of_activations(x, o)
  local q, msg, code = tensors.new(x:where(), dtype == "int8" and "i8" or "f8_e4m3", x:size())
  if not q then return nil, msg, code end
  local s = o.scale
  if not s then s, msg, code = tensors.new(x:where(), "f32", shape) end
  if not s then return nil, msg, code end
  local rc
  if dtype == "int8" then rc = C.nb_device_act_quant_int8(q.t, s.t, x.t, o.global or 1)
  else rc = C.nb_device_act_quant_fp8(q.t, s.t, x.t, C["NB_ACT_" .. mode]) end
  local ok
  ok, msg, code = nffi.check(rc, true)
  if not ok then return nil, msg, code end
  return q, s
end

return M

-- cuda.fp4: products of 4-bit floats on a device, NVFP4 on both sides, by cuBLASLt, and the activations for them (SYSTEMS
-- CTM-NVFP4-13, CTM-NVFP4-14).
local nffi = require "nibble.ffi"
local devices = require "nibble.cuda.devices"
local tensor = require "nibble.tensor"
local tensors = require "nibble.cuda.tensors"
local C, check = nffi.C, nffi.check

local M = {}

local function on_device(what, t, name)
  if tensor.on_device(t) then return t.t end
  error(('%s: expected %s on a device (t:to "cuda"), found %s'):format(what, name, tensor.found(t)), 3)
end

--- cuda.fp4_usable(device) -> true where device and cuBLASLt multiply 4-bit floats | nil, msg, code
function M.fp4_usable(device)
  return check(C.nb_device_fp4_usable(devices.number_of(device, 2)), true)
end

--- cuda.fp4_activations(x, global) -> codes u8 [m,k/2], scales f8_e4m3, swizzled | nil, msg, code
-- x: f32, bf16 or f16 [m,k] on a device, k a multiple of 16; global: the layer's factor, a number. In groups of 16, as
-- act.quantize_dequantize of NVFP4's activations rounds.
function M.fp4_activations(x, global)
  on_device("fp4_activations", x, "x")
  if x.ndim ~= 2 then error(("fp4_activations: expected [m×k], found %s"):format(tostring(x)), 2) end
  local m, k = x:size(1), x:size(2)
  local q, msg, code = tensors.new(x:where(), "u8", { m, math.floor(k / 2) })
  if not q then return nil, msg, code end
  local s
  s, msg, code = tensors.new(x:where(), "f8_e4m3", { math.ceil(m / 128) * 128, math.ceil(math.floor(k / 16) / 4) * 4 })
  if not s then return nil, msg, code end
  local ok
  ok, msg, code = check(C.nb_device_act_quant_fp4(q.t, s.t, x.t, global), true)
  if not ok then return nil, msg, code end
  return q, s
end

--- cuda.fp4_gemm(y, x, x_scales, w, w_scales, factor [, bias]) -> y | nil, msg, code
-- y[m,n] = factor · (x · scales)[m,k] (w · scales)[n,k]ᵀ + bias[n] on a device from SM 100 on: codes two to a byte, scales of 16
-- in the tensor cores' order (layout.marlin.swizzle_blockscale), whose sign does not count. y f32, bf16 or f16, bias as y.
function M.fp4_gemm(y, x, x_scales, w, w_scales, factor, bias)
  nffi.stop_check()
  local what = "fp4_gemm"
  return check(C.nb_device_fp4_gemm(on_device(what, y, "y"), on_device(what, x, "x"), on_device(what, x_scales, "x's scales"),
    on_device(what, w, "w"), on_device(what, w_scales, "w's scales"), factor, bias and on_device(what, bias, "bias")), y)
end

return M

-- cuda.fp8: products of FP8 codes on a device, with the scales of both sides (SYSTEMS CTM-FP8-01).
local nffi = require "nibble.ffi"
local tensor = require "nibble.tensor"
local C, check = nffi.C, nffi.check

local M = {}

local function on_device(what, t, name)
  if tensor.on_device(t) then return t.t end
  error(('%s: expected %s on a device (t:to "cuda"), found %s'):format(what, name, tensor.found(t)), 3)
end

--- cuda.fp8_gemm(y, x, x_scales, w, w_scales [, bias]) -> y | nil, msg, code
-- y[m,n] = (x · scales)[m,k] (w · scales)[n,k]ᵀ + bias[n] on a device: x and w f8_e4m3, scales f32: one; one a row; of x one
-- for each 128 columns [m, ⌈k/128⌉] and of w one for each 128×128 [⌈n/128⌉, ⌈k/128⌉]. y f32, bf16 or f16, bias as y.
-- cuda.activations(…, "fp8", …) makes x. (CTM-FP8-01, CTM-FP8-15)
function M.fp8_gemm(y, x, x_scales, w, w_scales, bias)
  nffi.stop_check()
  local what = "fp8_gemm"
  return check(C.nb_device_fp8_gemm(on_device(what, y, "y"), on_device(what, x, "x"), on_device(what, x_scales, "x's scales"),
    on_device(what, w, "w"), on_device(what, w_scales, "w's scales"), bias and on_device(what, bias, "bias")), y)
end

return M

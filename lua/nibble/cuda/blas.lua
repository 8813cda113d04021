-- cuda.blas: products of plain floats on a device, by NVIDIA's cuBLASLt, which is opened when one is asked for.
local ffi = require "ffi"
local nffi = require "nibble.ffi"
local device_tensor = require("nibble.tensor").device_type
local C, check = nffi.C, nffi.check

local M = {}

--- cuda.cublaslt() -> "libcublasLt.so.13": the library that products use | nil, msg, code
function M.cublaslt()
  local text = C.nb_cublaslt()
  if text == nil then return nil, ffi.string(C.nb_error()), "eunsupported" end
  return ffi.string(text)
end

local function on_device(t, what)
  if not ffi.istype(device_tensor, t) then error(('gemm: expected %s on a device (t:to "cuda")'):format(what), 3) end
  return t.t
end

--- cuda.gemm(y, x, w [, bias]) -> y: y[m,n] = x[m,k] w[n,k]ᵀ + bias[n] on a device, float32 accumulation | nil, msg, code
-- x and w both f32, bf16 or f16; y of the same dtype or f32; bias as y. As compute.gemm, but for the order of the sums.
function M.gemm(y, x, w, bias)
  nffi.stop_check()
  return check(C.nb_device_gemm(on_device(y, "y"), on_device(x, "x"), on_device(w, "w"), bias and on_device(bias, "bias")), y)
end

return M

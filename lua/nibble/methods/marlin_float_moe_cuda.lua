-- methods.marlin_float_moe_cuda: experts of FP8, MXFP8, MXFP4 and NVFP4 weights on a CUDA device, whatever format stores them, in
-- Marlin's form (methods.marlin_float). Inputs that the scheme quantizes are taken for what their codes stand for, in the layer's
-- 16 bits. Where gate and up have global scales, or scales of their input, of their own, each is a stack by itself (SYSTEMS FWD-01,
-- FWD-08, MRL-48, CTM-NVFP4-15).
local experts_cuda = require "nibble.methods.experts_cuda"
local marlin_float = require "nibble.methods.marlin_float"

return {
  --- new({scheme =, format =}, {on = "cuda"}) -> method | nil, msg, code
  new = experts_cuda.class("marlin_float_moe_cuda", {
    of_quantized = marlin_float.of_quantized,
    stack = function(m, n, k) return marlin_float.stack(m, n, k, m.group) end,
  }),
}

-- methods.dequantize_cuda: dense layers of any scheme on a CUDA device whose product nibble has no kernel for: their
-- codes lie there, become floats of the layer's dtype at every call, and cuBLASLt multiplies (weight-only).
local cuda = require "nibble.cuda"
local linear = require "nibble.methods.linear"

local M = { name = "dequantize_cuda", monolithic = false }
M.__index = M

--- new({scheme =, format =}, {on = "cuda"}) -> method | nil, msg, code
-- on: the device. Without one, or without cuBLASLt, the sentence why.
function M.new(config, options)
  local device, msg, code = cuda.device(options and options.on or "cuda")
  if not device then return nil, msg, code end
  local library
  library, msg, code = cuda.cublaslt()
  if not library then return nil, msg, code end
  return setmetatable({ config = config, device = device.name, sm = device.sm }, M)
end

--- method:create(L) -> true | nil, msg, code: what is refused, the oracle says why.
M.create = linear.create_on_device

--- method:read(L, ck) -> true | nil, msg, code: this rank's part of the weight, stored in whatever format, to the device.
function M:read(L, ck)
  local q, msg, code = linear.weight(L, ck)
  if not q then return nil, msg, code end
  L.weight, msg, code = q:to(self.device)
  if not L.weight then return nil, msg, code end
  for _, part in ipairs { "codes", "scales", "zeros" } do
    if L.weight[part] then L:replace(part, L.weight[part]) end -- counted as the layer's
  end
  return true
end

--- method:process(L) -> true | nil, msg, code: the bias goes to the device, in the sums' dtype.
function M:process(L)
  if not L.bias then return true end
  local bias, msg, code = L:get("bias"):cast("f32"):to(self.device)
  if not bias then return nil, msg, code end
  L:replace("bias", bias)
  return true
end

--- method:quant() -> nil
function M.quant() end

--- method:apply(L, x [, bias [, out]]) -> y [.., n] | nil, msg, code
-- y = x · Ŵ + bias (nil: the layer's own) in float32 sums, x and Ŵ rounded to the layer's dtype. x in the computer's memory, and
-- y is then f32 there; or on the device, where y has x's dtype (out: a tensor [m, n] to fill).
function M:apply(L, x, bias, out)
  local flat, shape = linear.rows(L, x)
  local here, w, y, msg, code = x:where() == "cpu"
  if here then
    flat, msg, code = linear.rounded(flat, L.dtype):to(self.device)
    if not flat then return nil, msg, code end
  end
  w, msg, code = L.weight:dequantize(L.dtype)
  if not w then return nil, msg, code end
  y = not here and out or nil
  if not y then y, msg, code = cuda.new(self.device, here and "f32" or x:type(), { flat:size(1), L.n }) end
  if not y then return nil, msg, code end
  bias = linear.bias(L, bias, false)
  if bias and bias:type() ~= y:type() then bias = bias:cast(y:type()) end
  y, msg, code = cuda.gemm(y, flat, w, bias)
  w:free()
  if y and here then y, msg, code = y:to "cpu" end
  if not y then return nil, msg, code end
  return linear.shaped(y, x, shape, L.n)
end

return M

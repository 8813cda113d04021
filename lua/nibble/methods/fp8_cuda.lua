-- methods.fp8_cuda: dense FP8 W8A8 layers on a CUDA device: weights as the checkpoint has them, with scales by tensor,
-- channel or 128x128 block, the input quantized at every call by tensor (static too), token or groups of 128
-- (SYSTEMS CTM-FP8-01 to CTM-FP8-03).
local cuda = require "nibble.cuda"
local activations_cuda = require "nibble.methods.activations_cuda"

local M = activations_cuda.class "fp8_cuda"

-- Whether all rows have the first one's scale.
local function one_scale(scales)
  for i = 2, scales:numel() do if scales:get(i) ~= scales:get(1) then return false end end
  return true
end

-- Codes and scales, f32; one scale a tensor is one element, whatever rows it is repeated in, but where parts have another each.
function M:keep(L, q)
  local scales = q.scales:type() == "f32" and q.scales or q.scales:cast "f32"
  if q.scheme.strategy == "tensor" and one_scale(scales) then scales = scales:rows(1, 1):reshape { 1 } end
  for name, t in pairs { codes = q.codes, scales = scales, input_scale = q.input_scale } do
    local there, msg, code = t:to(self.device)
    if not there then return nil, msg, code end
    L:replace(name, there)
  end
  return true
end

function M:product(L, x, dtype, bias)
  local a = self.config.scheme.activations
  local q, s, code = cuda.activations(x, "fp8", { scale = not a.dynamic and L:get "input_scale" or nil,
    per_tensor = a.strategy == "tensor", group = a.strategy == "group" and a.group or nil })
  if not q then return nil, s, code end
  local y, msg
  y, msg, code = cuda.new(self.device, dtype, { x:size(1), L.n })
  if not y then return nil, msg, code end
  return cuda.fp8_gemm(y, q, s, L:get "codes", L:get "scales", bias)
end

return M

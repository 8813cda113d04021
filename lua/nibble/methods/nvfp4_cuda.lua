-- methods.nvfp4_cuda: dense NVFP4 W4A4 layers on a CUDA device whose tensor cores multiply 4-bit floats (SM 100 and later),
-- by cuBLASLt: codes two to a byte, block scales in the tensor cores' order (SYSTEMS CTM-NVFP4-13, CTM-NVFP4-14).
local cuda = require "nibble.cuda"
local layout = require "nibble.layout"
local nffi = require "nibble.ffi"
local tensor = require "nibble.tensor"
local activations_cuda = require "nibble.methods.activations_cuda"

local M = activations_cuda.class "nvfp4_cuda"

local new = M.new

--- new(config, options) -> method | nil, msg, code: also where device or cuBLASLt lack such products.
function M.new(config, options)
  local method, msg, code = new(config, options)
  if not method then return nil, msg, code end
  local ok
  ok, msg, code = cuda.fp4_usable(method.device)
  if not ok then return nil, msg, code end
  return method
end

function M:keep(L, q)
  if not q.input_global then
    return nil, ("layer %s: the tensor input_global_scale is missing, which its input is quantized with"):format(L.name), "eformat"
  end
  if q.scales:stats().min < 0 then
    return nil, ("layer %s has negative block scales, which the tensor cores take without their sign"):format(L.name), "eunsupported"
  end
  local codes = tensor.new("u8", { q.n, q.k / 2 })
  nffi.must(nffi.C.nb_fp4_pack(codes, q.codes, 0))
  for name, t in pairs { codes = codes, scales = layout.marlin.swizzle_blockscale(q.scales) } do
    local there, msg, code = t:to(self.device)
    if not there then return nil, msg, code end
    L:replace(name, there)
  end
  L.input_global = q.input_global:get(1)
  L.factor = (q.factor and q.factor:get(1) or 1 / q.global:get(1)) / L.input_global
  return true
end

-- cuBLASLt adds no bias to f32.
function M.output(_, L, dtype) return L.bias and dtype == "f32" and "bf16" or dtype end

function M:product(L, x, dtype, bias)
  local q, s, code = cuda.fp4_activations(x, L.input_global)
  if not q then return nil, s, code end
  local y, msg
  y, msg, code = cuda.new(self.device, dtype, { x:size(1), L.n })
  if not y then return nil, msg, code end
  return cuda.fp4_gemm(y, q, s, L:get "codes", L:get "scales", L.factor, bias)
end

return M

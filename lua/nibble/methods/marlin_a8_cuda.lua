-- methods.marlin_a8_cuda: dense layers whose products are of codes of one byte on a CUDA device: int8 and 4-bit integers or MXFP4
-- weights, whatever format stores them, put into Marlin's order for 8-bit activations after loading, and inputs quantized at
-- every call as their scheme says, to int8 or FP8 with a scale a token, or the static one (SYSTEMS MRL-42, MRL-45, MRL-47).
--
-- The codes are those that evaluation on the CPU multiplies, of f32 inputs as of 16-bit ones (act.quantize): not those of the
-- peers' kernels, whose scales differ by half a code. Weights' scales are rounded to the layer's dtype, a power of two aside.
local act = require "nibble.act"
local activations_cuda = require "nibble.methods.activations_cuda"
local gemm = require "nibble.gemm"
local layout = require "nibble.layout"
local linear = require "nibble.methods.linear"
local nffi = require "nibble.ffi"
local marlin = require "nibble.methods.marlin"
local prepare_float = require("nibble.methods.marlin_float").prepare
local tensor = require "nibble.tensor"

local M = activations_cuda.class "marlin_a8_cuda"
M.keeps_f32 = false -- its products come out in 16 bits

-- Padding comes first, and no int16 scales: the device multiplies with those of floats. (MRL-40)
local STEPS = { "codes", "pad", "repack", "scales", "zeros" }

-- Integers as gemm.marlin takes them.
local function integers(q, L, activations)
  local s, m = q.scheme, { order = "gptq", any_width = true, activations = activations }
  local factor
  m.bits, m.group = s.bits, q.groups > 1 and s.group or -1
  m.words = layout.gptq.pack(q.codes, s.bits)
  m.scales, factor = marlin.lifted(layout.transpose(q.scales:cast "f32"), L.dtype)
  m.zeros = q.zeros and layout.awq.pack_zeros(q.zeros, s.bits)
  local outs, msg, code = marlin.prepare_all({ m }, STEPS)
  if not outs then return nil, msg, code end
  local out = outs[1]
  out.type, out.scale_factor = (q.zeros and "uint%d" or "uint%db%d"):format(s.bits, 2 ^ (s.bits - 1)), factor
  return out
end

local function mxfp4(q, L)
  local bytes = tensor.new("u8", { q.n, q.k / 2 })
  nffi.must(nffi.C.nb_fp4_pack(bytes, q.codes, 0))
  local out, msg, code = prepare_float { kind = "mxfp4", weight = bytes, scale = q.scales, dtype = L.dtype, activations = "fp8" }
  if out then out.type = "float4_e2m1f" end
  return out, msg, code
end

function M:keep(L, q)
  local a = self.config.scheme.activations
  local activations = a.type == "int" and "int8" or "fp8"
  local w, msg, code = (q.scheme.type == "int" and integers or mxfp4)(q, L, activations)
  if not w then return nil, ("layer %s: %s"):format(L.name, msg), code end
  w.k, w.n, w.outputs = w.words:size(1) * 16, w.words:size(2) * 2 / q.scheme.bits, L.n
  w.activations, w.dtype, w.group = activations, L.dtype, nil
  if not a.dynamic then
    if not q.input_scale then
      return nil, ("layer %s: the tensor input_scale is missing, which its input is quantized with"):format(L.name), "eformat"
    end
    L.input_scale = q.input_scale:get(1)
  end
  for _, name in ipairs { "words", "scales", "zeros" } do
    if w[name] then
      w[name], msg, code = w[name]:to(self.device)
      if not w[name] then return nil, msg, code end
      L:replace(name, w[name])
    end
  end
  L.matrix = w
  return true
end

local process = M.process

--- method:process(L) -> true | nil, msg, code: the bias as the kernel takes it.
function M:process(L)
  local bias, w = linear.bias(L, nil, false), L.matrix
  if bias then
    local padded = layout.experts.pad(linear.rounded(bias, L.dtype):reshape { 1, L.n }, 1, w.n):reshape { w.n }
    local msg, code
    w.bias, msg, code = layout.marlin.permute_bias(padded):to(self.device)
    if not w.bias then return nil, msg, code end
  end
  return process(self, L)
end

-- What the kernel gives, whatever x is.
function M.output(_, L) return L.dtype end

function M:product(L, x)
  local codes, scales, code = act.quantize(x, self.config.scheme.activations, { scale = L.input_scale })
  if not codes then return nil, scales, code end
  return gemm.marlin(codes, L.matrix, scales)
end

return M

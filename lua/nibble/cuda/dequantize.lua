-- cuda.dequantize: quantized weights on a device back into floats there, with the bytes that the computer gives.
local ffi = require "ffi"
local nffi = require "nibble.ffi"
local schemes = require "nibble.scheme"
local tensor = require "nibble.tensor"
local tensors = require "nibble.cuda.tensors"
local C = nffi.C

local M = {}

local packings = { ct = C.NB_PACKING_CT, gptq = C.NB_PACKING_GPTQ, awq = C.NB_PACKING_AWQ, fp4 = C.NB_PACKING_FP4 }

local function is_there(t) return ffi.istype(tensors.type, t) end

-- The nb_tensor in either kind of tensor.
local function plain(t) return is_there(t) and t.t or t end

local function known(fields, field, types, level)
  local v = fields[field]
  if v ~= nil and not types[ffi.istype(tensor.type, v) and "tensor" or is_there(v) and "device" or type(v)] then
    error(("dequantize: %s: found a %s"):format(field, type(v)), level + 1)
  end
  return v
end

-- nb_weight of words as they lie in a file, or of floats.
local function of_words(f, level)
  local w, values = ffi.new "nb_weight", f.values
  if not is_there(values) then error('dequantize: values: expected a tensor on a device (t:to "cuda")', level + 1) end
  if f.packing and not packings[f.packing] then
    error(('dequantize: packing must be "ct", "gptq", "awq" or "fp4", found %q'):format(tostring(f.packing)), level + 1)
  end
  if not f.packing and values.ndim ~= 2 then error("dequantize: values: expected 2 dimensions, found " .. values.ndim, level + 1) end
  local number = { number = true }
  w.n = known(f, "n", number, level + 1) or values:size(1)
  w.k = known(f, "k", number, level + 1) or values:size(2)
  w.bits, w.packing = known(f, "bits", number, level + 1) or 0, packings[f.packing] or C.NB_PACKING_NONE
  local block, group = known(f, "block", { table = true }, level + 1), known(f, "group", number, level + 1)
  w.rows, w.columns = block and block[1] or 1, block and block[2] or group and group > 0 and group or math.max(tonumber(w.k), 1)
  w.factor, w.values = known(f, "factor", number, level + 1) or 0, values.t
  for _, part in ipairs { "scales", "zeros", "g_idx", "global" } do
    local t = known(f, part, { tensor = true, device = true }, level + 1)
    if t then w[part] = plain(t) end
  end
  return w
end

-- nb_weight of a Quantized.
local function of_quantized(q)
  local w = ffi.new "nb_weight"
  w.n, w.k, w.values, w.scales = q.n, q.k, q.codes.t, plain(q.scales)
  w.rows, w.columns = schemes.block(q.scheme, q.n, q.k)
  if q.zeros then w.zeros = plain(q.zeros) end
  if q.g_idx then w.g_idx = plain(q.g_idx) end
  if q.scheme.type == "int" then w.bits = q.scheme.bits
  elseif q.factor then w.factor = q.factor:get(1)
  elseif q.global then w.global = plain(q.global) end
  return w
end

--- cuda.dequantize(weight [, {dtype = "bf16"}]) -> tensor [n,k] of f32, bf16 or f16 on the device | nil, msg, code
-- weight: a quantized weight there (q:to "cuda", whose :dequantize() is this); a tensor of floats there, which is cast; or
-- words as they lie in a file: {values = tensor there, packing = "ct" | "gptq" | "awq" | "fp4" (none: bytes), n =, k =, bits =
-- (of integers), scales =, zeros = u8 [n,G], g_idx =, global =, factor =, group = | block = {rows, columns}}. The same bytes
-- as on the computer. dtype's default: the scales' (the floats'), bf16 where those are 8 bits.
function M.dequantize(weight, o)
  local w
  if is_there(weight) then w = of_words({ values = weight }, 2)
  elseif type(weight) == "table" and weight.scheme then
    if not is_there(weight.codes) then error('dequantize: expected a weight on a device (q:to "cuda")', 2) end
    w = of_quantized(weight)
  elseif type(weight) == "table" then w = of_words(weight, 2)
  else
    error("dequantize: expected a quantized weight, a tensor on a device or a table of words, found a " .. type(weight), 2)
  end
  local scales = w.scales ~= nil and w.scales or w.values
  local small = scales.dtype == C.NB_F8_E4M3 or scales.dtype == C.NB_F8_E8M0
  local dtype = o and o.dtype and tensor.dtype_id(o.dtype) or small and C.NB_BF16 or scales.dtype
  return tensors.make(w.values.device, function(out)
    local rc = C.nb_device_dequantize(out, w, dtype)
    return weight and rc -- whose tensors live until here
  end)
end

--- cuda.marlin_dequantize(m [, {dtype =}]) -> tensor [k,n] of f16 or bf16 on the device | nil, msg, code
-- m: a weight in Marlin's order as gemm.marlin takes it, its words, scales and zeros on the device, perm and sorted_g_idx
-- anywhere. The numbers that gemm.marlin multiplies with, without m.global (of NVFP4: code times the checkpoint's scale
-- times what nvfp4_scales raised it by), rounded to dtype (default: m.dtype, else f16 where the scales are, else bf16); rows
-- in the order of the inputs, whatever perm.
function M.marlin_dequantize(m, o)
  if type(m) ~= "table" or not m.type then
    error("marlin dequantize: expected a weight as gemm.marlin takes it, found a " .. type(m), 2)
  end
  if not is_there(m.words) then error('marlin dequantize: words: expected a tensor on a device (t:to "cuda")', 2) end
  local dtype = o and o.dtype or m.dtype or plain(m.scales).dtype == C.NB_F16 and "f16" or "bf16"
  dtype = tensor.dtype_id(dtype)
  local weight = require("nibble.gemm").marlin_weight
  return tensors.make(m.words.device, function(out)
    local rc = C.nb_device_marlin_dequantize(out, weight(m), dtype)
    return m and rc -- whose tensors live until here
  end)
end

return M

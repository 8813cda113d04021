-- quant_float: round to nearest onto small floats: FP8, NVFP4, MXFP4, MXFP8, by the scheme's blocks.
--
-- What belongs to the whole weight (the one FP8 scale of strategy "tensor", NVFP4's global scale) comes from
-- its largest magnitude, so that tiles of rows can be quantized one by one: whole() makes it, tile() takes it.
local ffi = require "ffi"
local nffi = require "nibble.ffi"
local tensor = require "nibble.tensor"
local schemes = require "nibble.scheme"
local C = nffi.C

local M = {}

M.arithmetics = { float32 = C.NB_ARITHMETIC_F32, dtype = C.NB_ARITHMETIC_DTYPE }
M.rules = { ct = C.NB_FLOAT_CT, vllm = C.NB_FLOAT_VLLM }

--- absmax(w) -> number | nil, msg, code: w's largest magnitude; NaN and Inf are refused with their place.
function M.absmax(w)
  local out = ffi.new "float[1]"
  local ok, msg, code = nffi.check(tensor.on_device(w) and C.nb_device_absmax(out, w.t) or C.nb_absmax(out, w))
  if not ok then return nil, msg, code end
  return tonumber(out[0])
end

--- needs_whole(scheme) -> true where tiles need what only the whole weight tells.
function M.needs_whole(s) return s.type == "float" and (s.strategy == "tensor" or s.strategy == "tensor_group") end

--- whole(scheme, absmax, w_dtype, s_dtype [, options]) -> {scale=} | {global=} | {}
-- absmax: of the weight; NVFP4 siblings that consumers fuse share one global scale, so theirs is of them all.
-- w_dtype, s_dtype: of the weight and of its stored scales. options: arithmetic.
function M.whole(s, absmax, w_dtype, s_dtype, options)
  local arithmetic = M.arithmetics[options and options.arithmetic or "float32"]
  w_dtype, s_dtype = tensor.dtype_id(w_dtype), tensor.dtype_id(s_dtype)
  if s.strategy == "tensor_group" then return { global = tonumber(C.nb_nvfp4_global(absmax, w_dtype, arithmetic)) } end
  if s.strategy == "tensor" then return { scale = tonumber(C.nb_fp8_scale(absmax, w_dtype, s_dtype, arithmetic)) } end
  return {}
end

-- Where the caller has the whole weight before it.
local function own_whole(q, w, options)
  if not M.needs_whole(q.scheme) then return {} end
  local absmax, msg, code = M.absmax(w)
  if not absmax then return nil, msg, code end
  return M.whole(q.scheme, absmax, w:type(), q.scales:type(), options)
end

-- The one scale of the whole weight, in each row.
local function give_scale(q, value)
  local on_device = tensor.on_device(q.scales)
  local scales = on_device and tensor.new(q.scales:type(), q.scales:size()) or q.scales
  C.nb_tensor_fill(scales, value)
  if not on_device then return true end
  local msg, code
  q.scales, msg, code = scales:to(q.scales:where())
  return q.scales and true, msg, code
end

--- tile(q, w, options [, whole]) -> true | nil, msg, code
-- Fills the Quantized q (codes, scales, global) from w f32, bf16 or f16 [n,k], both in the computer's memory or on a
-- device. options: arithmetic ("float32" | "dtype"), rule ("ct" | "vllm"). whole: what whole() gave; absent where w is the whole weight.
function M.tile(q, w, options, whole)
  options = options or {}
  local msg, code
  if not whole then whole, msg, code = own_whole(q, w, options) end
  if not whole then return nil, msg, code end
  local rows, columns = schemes.block(q.scheme, q.n, q.k)
  if whole.scale then
    local ok
    ok, msg, code = give_scale(q, whole.scale)
    if not ok then return nil, msg, code end
  end
  if whole.global then q.global:set(1, whole.global) end
  local o = ffi.new("nb_float_options", { rows = rows, columns = columns, arithmetic = M.arithmetics[options.arithmetic or "float32"],
    rule = M.rules[options.rule or "ct"], given = whole.scale and 1 or 0, global = whole.global or 0 })
  local rc = tensor.on_device(w) and C.nb_device_float_quantize(q.codes.t, q.scales.t, w.t, o)
    or C.nb_float_quantize(q.codes, q.scales, w, o)
  if rc >= 0 then return true end
  msg, code = ffi.string(C.nb_error()), ffi.string(C.nb_error_name(rc))
  if code == "eintr" then error("interrupted", 0) end
  return nil, msg, code
end

return M

-- act: what a quantized layer does to its input before the product, on float32 activations.
--
-- A scheme's `activations` (nibble.scheme) is a table in compressed-tensors' vocabulary:
--   {type="int"|"float", bits=, symmetric=, strategy="token"|"tensor"|"group"|"tensor_group", group=|nil,
--    dynamic=true|false|"local", scale_dtype=nil|"f8_e4m3"|"e8m0"}
--   token         one scale a row (dynamic)
--   tensor        one for all; static (dynamic = false): input_scale, input_zero_point of the checkpoint
--   group         one for each `group` columns (dynamic); with e8m0 scales (4-bit floats always): MX, powers of two
--   tensor_group  NVFP4: e4m3 scales of groups, times a global one, the checkpoint's input_global_scale
local ffi = require "ffi"
local nffi = require "nibble.ffi"
local tensor = require "nibble.tensor"
local dispatch = require "nibble.dispatch"
local C = nffi.C

local M = {}

local scale_dtypes = { f8_e4m3 = C.NB_F8_E4M3, e8m0 = C.NB_F8_E8M0, f8_e8m0 = C.NB_F8_E8M0 }
local dtypes = { f32 = C.NB_F32, bf16 = C.NB_BF16, f16 = C.NB_F16 }

-- The dtype that dynamic scales are rounded to; where the table doesn't say, 4-bit floats have their own.
local function scale_dtype(a)
  if a.scale_dtype and scale_dtypes[a.scale_dtype] then return scale_dtypes[a.scale_dtype] end
  if a.strategy == "tensor_group" then return C.NB_F8_E4M3 end
  if a.type == "float" and a.bits == 4 and a.strategy == "group" then return C.NB_F8_E8M0 end
  return C.NB_F32
end

local function elements_fault(a)
  if a.type == "int" then
    local whole = type(a.bits) == "number" and a.bits == math.floor(a.bits)
    if not whole or a.bits < 2 or a.bits > 8 then
      return ("activations: integers of %s bits, expected 2 to 8"):format(tostring(a.bits))
    end
    return nil
  end
  if a.type ~= "float" then return ('activations: type = "%s", expected int or float'):format(tostring(a.type)) end
  if a.bits ~= 4 and a.bits ~= 8 then
    return ("activations: floats of %s bits, expected 4 (f4) or 8 (f8_e4m3)"):format(tostring(a.bits))
  end
  if a.symmetric == false then return "activations: float elements have no zero-point; they must be symmetric" end
end

--- fault(activations) -> nil, or why nothing here computes them, as a sentence.
-- Static scales need strategy tensor (CTM-FP8-02: static with a scale a token or channel is refused).
function M.fault(a)
  if type(a) ~= "table" then return "activations: expected a table, found " .. type(a) end
  local s = a.strategy
  local fault = elements_fault(a)
  if fault then return fault end
  if s ~= "token" and s ~= "tensor" and s ~= "group" and s ~= "tensor_group" then
    return ('activations: strategy = "%s", expected token, tensor, group or tensor_group'):format(tostring(s))
  end
  local grouped = s == "group" or s == "tensor_group"
  if grouped and not (type(a.group) == "number" and a.group > 0) then
    return ('activations: strategy = "%s" needs group > 0, found group = %s'):format(s, tostring(a.group))
  end
  if not a.dynamic and s ~= "tensor" then
    return ('activations: static scales need strategy = "tensor", found "%s"; expected static by tensor or '
      .. "dynamic by token"):format(s)
  end
  if a.dynamic == "local" and s ~= "tensor_group" then
    return ('activations: dynamic = "local" needs strategy = "tensor_group", found "%s"'):format(s)
  end
  if s == "tensor_group" and a.type ~= "float" then
    return 'activations: strategy = "tensor_group" needs type = "float", found "int"'
  end
end

--- needs(activations) -> "scale", "global" or nil: what of the checkpoint they cannot do without:
-- input_scale (static) or input_global_scale (NVFP4).
function M.needs(a)
  if not a.dynamic then return "scale" end
  return a.dynamic == "local" and "global" or nil
end

local function number(v, what)
  if v == nil or type(v) == "number" then return v end
  if ffi.istype(tensor.type, v) and v:numel() == 1 then return tonumber(v:get(1)) end
  error(("activations: %s must be a number or a tensor of one, found %s"):format(what,
    ffi.istype(tensor.type, v) and ("a tensor of %d"):format(v:numel()) or type(v)), 3)
end

local function option_struct(a, o)
  local needs = M.needs(a)
  local scale, global = number(o.scale, "scale"), number(o.global, "global")
  if needs == "scale" and not scale then error("activations: static, so a scale is needed", 3) end
  if needs == "global" and not global then error('activations: dynamic = "local" needs a global scale', 3) end
  if o.dtype and not dtypes[o.dtype] then
    error(("activations: dtype = %s, expected f32, bf16 or f16"):format(tostring(o.dtype)), 3)
  end
  return ffi.new("nb_act_options", {
    is_float = a.type == "float" and 1 or 0, bits = a.bits, symmetric = a.symmetric ~= false and 1 or 0,
    dynamic = a.dynamic and 1 or 0, scale_dtype = scale_dtype(a), dtype = dtypes[o.dtype or "f32"],
    group = a.group and a.strategy ~= "token" and a.strategy ~= "tensor" and a.group or a.strategy == "token" and -1 or 0,
    span = o.span or 0, scale = scale or 1, zero_point = number(o.zero_point, "zero_point") or 0, global = global or 1,
  })
end

--- quantize_dequantize(x, activations [, {scale=, global=, zero_point=, dtype=, span=, out=}]) -> x' | nil, msg, code
-- x: f32 [m,k]; x': f32 [m,k], new or `out`, which may be x. What compressed-tensors' fake quantization gives, bit
-- for bit in float32. scale, zero_point: the static ones; global: NVFP4's input_global_scale; numbers or tensors of
-- one element. dtype: x is rounded to "bf16" or "f16" first. span: with strategy tensor and dynamic scales, so
-- many rows make a tensor (default: all). Activations that nothing here computes, missing scales and columns that
-- the groups don't divide are errors; a scale that is 0, negative or not finite is nil, msg, "eformat".
-- x on a device: f32, bf16 or f16, and so is x', there.
function M.quantize_dequantize(x, activations, o)
  o = o or {}
  local fault = M.fault(activations)
  if fault then error(fault, 2) end
  local options = option_struct(activations, o)
  local out = o.out or dispatch.new(x, tensor.on_device(x) and x:type() or "f32", x:size())
  local rc, msg, code = nffi.check(dispatch.call("act_fake_quant", out, x, options), true)
  if not rc then return nil, msg, code end
  return out
end

--- quantize(x, activations [, {scale=, dtype=, span=}]) -> codes i8|f8_e4m3 [m,k], scales f32 [m,1] | nil, msg, code
-- The codes whose products with their row's scale quantize_dequantize gives: symmetric integers and 8-bit floats, by token or
-- tensor; others are nil, msg, "eunsupported". What would be NaN there has a scale of NaN. x and the options as there.
function M.quantize(x, activations, o)
  o = o or {}
  local fault = M.fault(activations)
  if fault then error(fault, 2) end
  local options = option_struct(activations, o)
  local codes = dispatch.new(x, activations.type == "float" and "f8_e4m3" or "i8", x:size())
  local scales = dispatch.new(x, "f32", { x:size(1), 1 })
  local rc, msg, code = nffi.check(dispatch.call("act_quantize", codes, scales, x, options), true)
  if not rc then return nil, msg, code end
  return codes, scales
end

--- by_expert(activations [, scales]) -> whether an expert's rows are quantized apart from the others': scales, numbers or a
-- tensor, has more than one, or each has its own dynamic scale of a tensor.
function M.by_expert(a, scales)
  local count = scales and (type(scales) == "table" and #scales or scales:numel()) or 0
  return count > 1 or a.strategy == "tensor" and a.dynamic == true
end

--- quantize_pairs(x, activations, {ids =, experts =, map = nil, scales = nil, zero_point =, dtype =}) -> x' [pairs,k] there | nil,
-- msg, code
-- Of x [T,k] on a device, its rows for pairs of a token and one of its experts, row p / top for p: quantize_dequantize of all of an
-- expert's rows, with the expert's own scale (static) or global scale (NVFP4): scales f32 [experts] there. ids i32 [T,top], of the
-- map's experts or of those here; rows of pairs whose expert isn't here are 0. Waits for nothing.
function M.quantize_pairs(x, activations, o)
  local fault = M.fault(activations)
  if fault then error(fault, 2) end
  local one = o.scales and 1 or nil -- scales instead
  local options = option_struct(activations, setmetatable({ scale = one, global = one }, { __index = o }))
  local out = dispatch.new(x, x:type(), { o.ids:numel(), x:size(2) })
  local rc, msg, code = nffi.check(dispatch.there(C.nb_device_moe_fake_quant, out, x, o.ids, o.map, o.scales, o.experts, options), true)
  if not rc then return nil, msg, code end
  return out
end

-- ---- calibration -------------------------------------------------------------------------

--- extent(x [, lohi]) -> lohi | nil, msg, code
-- lohi: float[2], the smallest and largest value of x f32 [m,k] and of what it held (default 0 and 0: 0 always belongs
-- to the range). NaN and infinities are nil, msg. x on a device, f32, bf16 or f16, is waited for.
function M.extent(x, lohi)
  lohi = lohi or ffi.new("float[2]", 0, 0)
  local rc, msg, code = nffi.check(dispatch.call("act_extent", lohi, x), true)
  if not rc then return nil, msg, code end
  return lohi
end

local function f32(v) return C.nb_round_scale(v, C.NB_F32) end

--- calibrated(activations, lo, hi) -> {scale=, zero_point=|nil} | {global=} | {}
-- The stored numbers of an input whose values reached from lo to hi, float32, as compressed-tensors makes them: static
-- scales (CTM-FP8-02: absmax / 448; int8 absmax / 127.5, or with a zero-point (hi - lo) / 255), NVFP4's global scale
-- 448 * 6 / absmax; {} where everything comes from the input itself. An input of zeros has scale epsilon, global 1.
function M.calibrated(a, lo, hi)
  local needs = M.needs(a)
  lo, hi = math.min(lo, 0), math.max(hi, 0)
  local absmax = math.max(-lo, hi)
  if needs == "global" then
    local global = f32(448 * 6 / math.max(absmax, 2 ^ -126))
    return { global = global < math.huge and global or 1 }
  end
  if needs ~= "scale" then return {} end
  local top = a.type == "float" and (a.bits == 4 and 6 or 448) or 2 ^ (a.bits - 1) - 1
  local bottom = a.type == "float" and -top or -top - 1
  if a.symmetric ~= false then
    local scale = f32(absmax / ((top - bottom) / 2))
    return { scale = scale == 0 and 2 ^ -23 or scale }
  end
  local scale = f32(f32(hi - lo) / (top - bottom))
  if scale == 0 then return { scale = 2 ^ -23, zero_point = 0 } end
  local zero = math.max(bottom, math.min(top, f32(bottom - f32(lo / scale))))
  local whole = math.floor(zero + 0.5)
  if zero + 0.5 == whole and whole % 2 == 1 then whole = whole - 1 end -- half to even
  return { scale = scale, zero_point = whole }
end

--- describe(activations) -> "fp8 token dynamic", "int8 tensor static asym", "nvfp4", "mxfp4", …
function M.describe(a)
  if a == nil then return "none" end
  local scales = scale_dtype(a)
  if scales == C.NB_F8_E4M3 then return "nvfp4" end
  if scales == C.NB_F8_E8M0 then return a.bits == 4 and "mxfp4" or "mxfp8" end
  local words = { (a.type == "float" and "fp%d" or "int%d"):format(a.bits), a.strategy }
  if a.strategy == "group" then words[2] = ("group %d"):format(a.group) end
  words[3] = a.dynamic and "dynamic" or "static"
  if a.symmetric == false then words[4] = "asym" end
  return table.concat(words, " ")
end

return M

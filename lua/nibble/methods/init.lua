-- methods: the systems' methods by name, which of them can take a checkpoint's layer, and
-- running layers through them: parameters made, loaded, processed, applied (methods.runner).
local common = require "nibble.formats.common"
local text = require "nibble.text"

local M = {}

-- In the order in which they are tried. named: only where it is asked for (pymllm's is the same as awq_marlin); device:
-- where layers are to run on a device.
local list = {
  { name = "marlin_cuda", kind = "linear", device = "cuda", title = "4- and 8-bit integers on a CUDA device, dense" },
  { name = "marlin_a8_cuda", kind = "linear", device = "cuda", title = "integers and MXFP4 with 8-bit inputs on a CUDA device, dense" },
  { name = "fp8_cuda", kind = "linear", device = "cuda", title = "FP8 W8A8 on a CUDA device, dense" },
  { name = "nvfp4_cuda", kind = "linear", device = "cuda", title = "NVFP4 W4A4 on a CUDA device from SM 100 on, dense" },
  { name = "marlin_float_cuda", kind = "linear", device = "cuda", title = "FP8 and 4-bit floats on a CUDA device, 16-bit products, dense" },
  { name = "dequantize_cuda", kind = "linear", device = "cuda", title = "any weights by cuBLASLt on a CUDA device, dense" },
  { name = "awq_marlin", kind = "linear", title = "AWQ on Marlin, dense" },
  { name = "awq", kind = "linear", title = "AWQ without Marlin, dense" },
  { name = "pymllm", kind = "linear", named = true, title = "pymllm's AWQ on Marlin, dense" },
  { name = "inc", kind = "linear", title = "AutoRound (INC) W4A16, dense" },
  { name = "awq_marlin_moe", kind = "moe", title = "AWQ on Marlin, experts" },
  { name = "gptq_marlin_moe", kind = "moe", title = "GPTQ on Marlin, experts" },
  { name = "moe_wna16", kind = "moe", title = "AWQ and GPTQ in the generic kernels' bytes, experts" },
  { name = "ct_wna16_moe", kind = "moe", title = "compressed-tensors integers on Marlin, experts" },
  { name = "w4a8_moe", kind = "moe", title = "compressed-tensors W4A8-int8 on the CPU, experts" },
  { name = "ct_fp8_moe", kind = "moe", title = "compressed-tensors FP8, experts" },
  { name = "ct_nvfp4_moe", kind = "moe", title = "compressed-tensors NVFP4, experts" },
  { name = "marlin_a8_moe_cuda", kind = "moe", device = "cuda", title = "integers with 8-bit inputs on a CUDA device, experts" },
  { name = "marlin_float_moe_cuda", kind = "moe", device = "cuda", title = "FP8 and 4-bit floats of any format on a CUDA device, experts" },
}

local by_name = {}
for _, entry in ipairs(list) do by_name[entry.name] = entry end

--- names([kind]) -> array of the methods' names; kind: "linear" or "moe" alone.
function M.names(kind)
  local out = {}
  for _, entry in ipairs(list) do
    if not kind or entry.kind == kind then out[#out + 1] = entry.name end
  end
  return out
end

--- get(name) -> the method's module (its new, create, process, apply) | nil, msg, code
function M.get(name)
  if not by_name[name] then
    return nil, ("unknown method %q%s"):format(tostring(name), text.did_you_mean(tostring(name), M.names())), "einval"
  end
  return require("nibble.methods." .. name)
end

--- make(name, config, options) -> method | nil, msg, code
-- What the module's new() gives; with options.on = "cuda", … one whose layers lie and are computed there
-- (methods.on_device), but for methods that do so by themselves.
function M.make(name, config, options)
  local module, msg, code = M.get(name)
  if not module then return nil, msg, code end
  local on = options and options.on
  if not on or on == "cpu" or by_name[name].device then return module.new(config, options) end
  return require("nibble.methods.on_device").new(name, config, options)
end

-- ---- which methods may take a layer -----------------------------------------------------

-- Each: function(rec, scheme) -> what the method's new() takes | nil, reason. rec: a module's record (formats.init);
-- scheme: its scheme, without activations when those are not to be quantized.
local takes = {}

local function awq(rec, s)
  if rec.format ~= "awq" then return nil, "not an AWQ checkpoint" end
  return { bits = s.bits, group = s.group, zero_point = not s.symmetric }
end
takes.awq_marlin, takes.awq, takes.pymllm, takes.awq_marlin_moe = awq, awq, awq, awq

local function gptq(rec, s)
  if rec.format ~= "gptq" and rec.format ~= "gptq_v2" then return nil, "not a GPTQ checkpoint" end
  return { method = "gptq", bits = s.bits, group = s.group, zero_point = not s.symmetric, sym = s.symmetric,
    desc_act = s.actorder == "group" }
end
takes.gptq_marlin_moe = gptq

-- Kernels without activation order.
local function ordered_gptq(rec, s)
  if s.actorder == "group" then return nil, "its columns are in activation order" end
  return gptq(rec, s)
end

function takes.marlin_cuda(rec, s)
  local forms = { awq = "qweight", gptq = "qweight", gptq_v2 = "qweight", ["compressed-tensors"] = "weight_packed" }
  local stored = rec.tensors[forms[rec.format] or "weight_packed"]
  if s.type ~= "int" or s.activations or not stored then return nil, "not weight-only integers in words" end
  if s.strategy ~= "group" and s.strategy ~= "channel" then return nil, "its scales are not by groups or channels" end
  local zeros = rec.tensors.weight_zero_point
  if zeros and zeros.dtype ~= "i32" then return nil, "its zero-points are not in words" end
  return { format = rec.format, bits = s.bits, group = s.strategy == "group" and s.group or -1, zero_point = not s.symmetric,
    actorder = s.actorder == "group" }
end

-- Why not, where rows of several sequences come together.
local function of_sequences(a)
  if a and a.strategy == "tensor" and a.dynamic then return "its inputs have one scale for a whole sequence" end
end

function takes.marlin_a8_cuda(rec, s)
  local a = s.activations
  if not a then return nil, "its inputs are not quantized" end
  if a.symmetric == false then return nil, "its inputs have zero-points" end
  local why = of_sequences(a)
  if why then return nil, why end
  return { scheme = s, format = rec.format }
end

function takes.fp8_cuda(rec, s)
  local a = s.activations
  if s.type ~= "float" or s.bits ~= 8 or not a or a.type ~= "float" or a.bits ~= 8 then return nil, "not FP8 W8A8" end
  return { scheme = s, format = rec.format }
end

function takes.nvfp4_cuda(rec, s)
  local a = s.activations
  if s.type ~= "float" or s.bits ~= 4 or s.group ~= 16 or not a or a.bits ~= 4 then return nil, "not NVFP4 W4A4" end
  return { scheme = s, format = rec.format }
end

function takes.dequantize_cuda(rec, s)
  if s.activations then return nil, "its inputs are quantized" end
  return { scheme = s, format = rec.format }
end

function takes.marlin_a8_moe_cuda(rec, s)
  if s.type ~= "int" then return nil, "not integers" end
  return takes.marlin_a8_cuda(rec, s)
end

function takes.marlin_float_moe_cuda(rec, s)
  if s.type ~= "float" then return nil, "not FP8 or 4-bit floats" end
  return { scheme = s, format = rec.format }
end

function takes.marlin_float_cuda(rec, s)
  local why = of_sequences(s.activations)
  if why then return nil, why end
  return takes.marlin_float_moe_cuda(rec, s)
end

function takes.inc(rec, s)
  if not s.symmetric then return nil, "not symmetric" end
  if rec.format == "awq" then return { bits = s.bits, group = s.group, sym = true, is_awq = true } end
  return ordered_gptq(rec, s)
end

function takes.moe_wna16(rec, s)
  if rec.format == "awq" then
    local config = awq(rec, s)
    config.method = "awq"
    return config
  end
  local config, why = ordered_gptq(rec, s)
  if config and rec.format == "gptq_v2" and config.zero_point then
    return nil, "GPTQ v2 stores zero-points as they are, and the generic kernels' loader expects them minus one"
  end
  return config, why
end

local function compressed(fits, says)
  return function(rec, s)
    if rec.format ~= "compressed-tensors" then return nil, "not a compressed-tensors checkpoint" end
    if not fits(s, rec) then return nil, says end
    return s
  end
end
takes.ct_wna16_moe = compressed(function(s, rec)
  return s.type == "int" and not s.activations and s.symmetric and rec.tensors.weight_packed ~= nil
end, "not weight-only symmetric integers in words")
takes.w4a8_moe = compressed(function(s) return s.type == "int" and s.bits == 4 and s.activations ~= nil end,
  "not 4-bit integers with 8-bit activations")
takes.ct_fp8_moe = compressed(function(s) return s.type == "float" and s.bits == 8 and s.strategy ~= "group" end, "not FP8")
takes.ct_nvfp4_moe = compressed(function(s) return s.type == "float" and s.bits == 4 and s.strategy == "tensor_group" end,
  "not NVFP4")

--- config(name, rec [, {activations = true}]) -> what new() of method `name` takes for this layer | nil, reason
-- rec: the record of the layer's module, or of an expert's. activations = false: inputs stay as they are.
function M.config(name, rec, o)
  if not rec.scheme then return nil, "not quantized" end
  local s = rec.scheme
  if o and o.activations == false and s.activations then
    s = common.with(s, { activations = false })
    s.activations = nil
  end
  return takes[name](rec, s)
end

--- candidates(kind [, wanted [, device]]) -> names to try for a layer, in order
-- wanted: nil or "auto": all; else one name, alone where it is of that kind. device: "cuda", …: its methods too.
function M.candidates(kind, wanted, device)
  local there = device and device:match "^%a+"
  local out = {}
  for _, entry in ipairs(list) do
    local tried = wanted == entry.name
      or (wanted == nil or wanted == "auto") and not entry.named and (not entry.device or entry.device == there)
    if entry.kind == kind and tried then out[#out + 1] = entry.name end
  end
  return out
end

return M

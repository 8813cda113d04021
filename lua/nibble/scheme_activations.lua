-- scheme_activations: the activations part of a scheme: how a layer's input is quantized before the
-- product, in compressed-tensors' vocabulary (SYSTEMS CTM-SEL-03).
--
-- A plain table, or nil where activations stay floats:
--   {type="int"|"float", bits=8, symmetric=true, strategy="token"|"tensor"|"channel"|"group"|"tensor_group",
--    group=128|nil, dynamic=true|false|"local", scale_dtype="f8_e4m3"|"e8m0"|nil}
-- dynamic: scales come from the input itself; false: from calibration, stored beside the weight; "local":
-- the groups' scales from the input, the tensor's own from calibration.
local nffi = require "nibble.ffi"
local text = require "nibble.text"

local M = {}

local fields = { "bits", "dynamic", "group", "scale_dtype", "strategy", "symmetric", "type" }
local strategies = { token = true, tensor = true, channel = true, group = true, tensor_group = true }
local dynamic_strategies = { token = true, tensor = true, group = true, tensor_group = true }
local scale_dtypes = { f8_e4m3 = "f8_e4m3", e8m0 = "e8m0", f8_e8m0 = "e8m0", f16 = "f16", bf16 = "bf16", f32 = "f32" }

local function whole(v) return type(v) == "number" and v == math.floor(v) end

local function grouped(a) return a.strategy == "group" or a.strategy == "tensor_group" end

-- Bits, type and strategy, each for itself.
local function field_fault(a)
  if a.type ~= "int" and a.type ~= "float" then
    return ('type = "%s": expected int or float'):format(tostring(a.type))
  end
  if not whole(a.bits) or a.bits < 2 or a.bits > 8 then return ("bits = %s: expected 2 to 8"):format(tostring(a.bits)) end
  if a.type == "float" and a.bits ~= 4 and a.bits ~= 8 then
    return ('type = "float" needs bits = 4 or 8, found bits = %d'):format(a.bits)
  end
  if type(a.symmetric) ~= "boolean" then
    return ("symmetric = %s: expected true or false"):format(tostring(a.symmetric))
  end
  if not strategies[a.strategy] then
    return ('strategy = "%s": expected token, tensor, channel, group or tensor_group'):format(tostring(a.strategy))
  end
  if a.dynamic ~= true and a.dynamic ~= false and a.dynamic ~= "local" then
    return ('dynamic = %s: expected true, false or "local"'):format(tostring(a.dynamic))
  end
  if a.group ~= nil and not (whole(a.group) and a.group > 0) then
    return ("group = %s: expected a number above 0"):format(tostring(a.group))
  end
end

-- What contradicts what.
local function fault(a)
  local msg = field_fault(a)
  if msg then return msg end
  if a.type == "float" and not a.symmetric then return 'type = "float" contradicts symmetric = false' end
  if grouped(a) and not a.group then return ('strategy = "%s" needs group > 0, found none'):format(a.strategy) end
  if a.group and not grouped(a) then
    return ('strategy = "%s" contradicts group = %d: leave group out, or use strategy = "group"'):format(a.strategy, a.group)
  end
  if a.strategy == "token" and not a.dynamic then
    return 'strategy = "token" contradicts dynamic = false: a token is only seen at run time; use dynamic = true'
  end
  if a.dynamic == "local" and a.strategy ~= "tensor_group" then
    return ('dynamic = "local" needs strategy = "tensor_group", found strategy = "%s"'):format(a.strategy)
  end
  if a.dynamic and not dynamic_strategies[a.strategy] then
    return ('dynamic = %s contradicts strategy = "%s": use token, tensor, group or tensor_group'):format(
      tostring(a.dynamic), a.strategy)
  end
  if a.strategy == "tensor_group" and (a.type ~= "float" or a.bits ~= 4) then
    return ('strategy = "tensor_group" needs type = "float" and bits = 4, found type = "%s" and bits = %d'):format(a.type, a.bits)
  end
end

local function inferred_strategy(group)
  if group == nil then return "tensor" end
  return group == -1 and "channel" or "group"
end

-- Scales of 4-bit floats: e4m3 under a tensor's own, powers of two in groups.
local function inferred_scale_dtype(a)
  if a.type ~= "float" or a.bits ~= 4 then return nil end
  return a.strategy == "tensor_group" and "f8_e4m3" or a.strategy == "group" and "e8m0" or nil
end

-- "fp8:token", "int8:tensor:static", "fp4:g16:local", "int8:token:asym": what word() writes.
local function from_word(word)
  local kind, bits, rest = word:match "^(%l+)(%d)(.*)$"
  if kind ~= "int" and kind ~= "fp" then return nil end
  local a = { type = kind == "fp" and "float" or "int", bits = tonumber(bits), dynamic = true }
  for part in rest:gmatch ":([^:]+)" do
    local group = part:match "^g(%d+)$"
    if group then a.group, a.strategy = tonumber(group), a.strategy or "group"
    elseif part == "static" then a.dynamic = false
    elseif part == "local" then a.dynamic, a.strategy = "local", "tensor_group"
    elseif part == "asym" then a.symmetric = false
    elseif strategies[part] then a.strategy = part
    elseif scale_dtypes[part] then a.scale_dtype = part
    else return nil end
  end
  return a
end

local function unknown_field(given)
  for key in pairs(given) do
    local known = false
    for _, name in ipairs(fields) do known = known or name == key end
    if not known then return ("unknown field %s%s"):format(tostring(key), text.did_you_mean(tostring(key), fields)) end
  end
end
nffi.interpreted(unknown_field)

--- new(fields | word) -> activations | nil, msg
-- fields: type ("int"), bits (8), symmetric (true), strategy (inferred from group: none = tensor, -1 =
-- channel, above 0 = group), group, dynamic (false), scale_dtype; or what word() writes ("fp8:token").
-- Contradictions are refused with both fields named.
function M.new(f)
  if type(f) == "string" then
    local parsed = from_word(f)
    if not parsed then
      return nil, ('activations = "%s": expected a table, or words as in "int8:token" or "fp8:tensor:static"'):format(f)
    end
    f = parsed
  end
  if type(f) ~= "table" then return nil, ("activations: expected a table, found a %s"):format(type(f)) end
  local unknown = unknown_field(f)
  if unknown then return nil, "activations: " .. unknown end
  local a = { type = f.type or "int", bits = f.bits or 8, group = f.group, dynamic = f.dynamic or false,
              strategy = f.strategy or inferred_strategy(f.group) }
  if a.group == -1 and a.strategy ~= "group" and a.strategy ~= "tensor_group" then a.group = nil end
  if f.symmetric == nil then a.symmetric = true else a.symmetric = f.symmetric end
  if f.scale_dtype ~= nil and not scale_dtypes[f.scale_dtype] then
    return nil, ('activations: scale_dtype = "%s": expected f8_e4m3, e8m0, f16, bf16 or f32'):format(tostring(f.scale_dtype))
  end
  a.scale_dtype = scale_dtypes[f.scale_dtype] or inferred_scale_dtype(a)
  local msg = fault(a)
  if msg then return nil, "activations: " .. msg end
  return a
end

--- static(activations) -> true when a scale from calibration is stored for the input (also of "local").
function M.static(a) return a ~= nil and a.dynamic ~= true end

--- same(a, b) -> true when both quantize alike; nil: not at all.
function M.same(a, b)
  if a == nil or b == nil then return a == b end
  for _, key in ipairs(fields) do
    if a[key] ~= b[key] then return false end
  end
  return true
end

--- word(activations) -> "int8:token", "fp8:tensor:static": new() reads it back.
function M.word(a)
  local words = { (a.type == "float" and "fp" or "int") .. a.bits }
  if a.strategy == "group" then words[2] = "g" .. a.group
  elseif a.strategy == "tensor_group" then words[2] = "tensor_group:g" .. a.group
  else words[2] = a.strategy end
  if a.dynamic == false then words[#words + 1] = "static" elseif a.dynamic == "local" then words[#words + 1] = "local" end
  if not a.symmetric then words[#words + 1] = "asym" end
  if a.scale_dtype and a.scale_dtype ~= inferred_scale_dtype(a) then words[#words + 1] = a.scale_dtype end
  return table.concat(words, ":")
end

return M

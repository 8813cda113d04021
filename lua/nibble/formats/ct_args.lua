-- formats.ct_args: compressed-tensors' quantization arguments: their defaults, what contradicts what, and the
-- format that weights and activations imply (SYSTEMS CTM-SEL-03, FORMATS 4).
local text = require "nibble.text"
local common = require "nibble.formats.common"
local fail = common.fail

local M = {}

local keys = {
  "num_bits", "type", "symmetric", "group_size", "strategy", "block_structure", "dynamic", "actorder", "scale_dtype",
  "zp_dtype", "observer", "observer_kwargs",
}
local known = {}
for _, key in ipairs(keys) do known[key] = true end
--- ct_args.known: key -> true, of arguments.
M.known = known

local strategies = { tensor = true, channel = true, group = true, block = true, token = true, tensor_group = true,
  attn_head = true }
local strategy_names = "tensor, channel, group, block, token, tensor_group or attn_head"
local actorders = { group = "group", dynamic = "group", weight = "weight", static = "weight" }
local scale_dtypes = { float16 = "f16", bfloat16 = "bf16", float32 = "f32", float8_e4m3fn = "f8_e4m3",
  uint8 = "e8m0", float8_e8m0fnu = "e8m0" }

local function whole(v) return type(v) == "number" and v == math.floor(v) end

-- "128x128" or [128, 128] -> {128, 128} | nil
local function block_of(v)
  if type(v) == "string" then
    local rows, columns = v:match "^%s*(%d+)%s*[x×]%s*(%d+)%s*$"
    v = { tonumber(rows), tonumber(columns) }
  end
  if type(v) ~= "table" or #v ~= 2 or not (whole(v[1]) and whole(v[2]) and v[1] > 0 and v[2] > 0) then return nil end
  return { v[1], v[2] }
end

local function inferred(group)
  if group == nil then return "tensor" end
  return group == -1 and "channel" or "group"
end

-- The first value that is no value for its field, as a sentence.
local function field_fault(a)
  if not whole(a.bits) or a.bits < 1 or a.bits > 32 then
    return ("num_bits = %s: expected a whole number above 0"):format(tostring(a.bits))
  end
  if a.type ~= "int" and a.type ~= "float" then
    return ('type = "%s": expected int or float'):format(tostring(a.type))
  end
  if type(a.symmetric) ~= "boolean" then
    return ("symmetric = %s: expected true or false"):format(tostring(a.symmetric))
  end
  if a.group ~= nil and not (whole(a.group) and (a.group > 0 or a.group == -1)) then
    return ("group_size = %s: expected a number above 0, or -1 for channels"):format(tostring(a.group))
  end
  if not strategies[a.strategy] then
    return ('strategy = "%s": expected %s'):format(tostring(a.strategy), strategy_names)
  end
  if type(a.dynamic) ~= "boolean" and a.dynamic ~= "local" then
    return ('dynamic = "%s": expected false, true or "local"'):format(tostring(a.dynamic))
  end
end

-- The first two fields that contradict each other, as a sentence that names both.
local function contradiction(a)
  local groups = a.strategy == "group" or a.strategy == "tensor_group"
  if groups and (a.group or -1) <= 0 then
    return ('strategy = "%s" needs group_size above 0, found group_size = %s'):format(a.strategy, tostring(a.group))
  end
  if not groups and (a.group or -1) > 0 then
    return ('strategy = "%s" contradicts group_size = %d: leave group_size out, or use strategy = "group"')
      :format(a.strategy, a.group)
  end
  if a.strategy == "block" and not a.block then
    return 'strategy = "block" needs block_structure, such as [128, 128]'
  end
  if a.strategy ~= "block" and a.block then
    return ('block_structure contradicts strategy = "%s": it belongs to strategy = "block"'):format(a.strategy)
  end
  if a.strategy == "token" and a.dynamic ~= true then
    return ('strategy = "token" needs dynamic = true, found dynamic = %s'):format(tostring(a.dynamic))
  end
  if a.dynamic == "local" and a.strategy ~= "tensor_group" then
    return ('dynamic = "local" needs strategy = "tensor_group", found strategy = "%s"'):format(a.strategy)
  end
  if a.dynamic == true and a.strategy == "block" then return 'dynamic = true contradicts strategy = "block"' end
  if a.actorder == "group" and a.strategy ~= "group" then
    return ('actorder = "group" needs strategy = "group", found strategy = "%s"'):format(a.strategy)
  end
  if a.actorder and a.dynamic then
    return ('actorder = "%s" contradicts dynamic = %s: only fixed scales can follow an order')
      :format(a.actorder, tostring(a.dynamic))
  end
end

--- ct_args.presets: groups that are named by a preset instead of spelled out, with compressed-tensors' own meaning.
M.presets = {
  W4A16 = { num_bits = 4, group_size = 128 }, W8A16 = { num_bits = 8, strategy = "channel" },
  W4A16_ASYM = { num_bits = 4, group_size = 128, symmetric = false },
}

--- ct_args.parse(args [, {unknown = true}]) -> {bits, type, symmetric, strategy, group, block, dynamic, actorder,
-- scale_dtype} | nil, msg, "eformat". args: compressed-tensors' QuantizationArgs as a table. Defaults: num_bits 8,
-- type int, symmetric true, dynamic false; strategy inferred from group_size (none: tensor, above 0: group, -1:
-- channel). block_structure may be "128x128"; actorder dynamic means group, static means weight, true means group.
-- Two fields that contradict each other are refused, and keys that are none, unless unknown says to pass over them. (CTM-SEL-03)
function M.parse(args, options)
  local raw = common.null_free(args)
  for key in pairs(raw) do
    if not known[key] and not (options and options.unknown) then
      return fail("eformat", "unknown argument %s%s", tostring(key), text.did_you_mean(tostring(key), keys))
    end
  end
  local order = raw.actorder
  if order == true then order = "group" elseif order == false then order = nil end
  if order ~= nil and not actorders[order] then
    return fail("eformat", "actorder = %s: expected group (or dynamic) or weight (or static)", tostring(order))
  end
  local a = {
    bits = raw.num_bits, type = raw.type or "int", symmetric = raw.symmetric, group = raw.group_size,
    strategy = raw.strategy, dynamic = raw.dynamic, actorder = actorders[order],
    scale_dtype = raw.scale_dtype and scale_dtypes[tostring(raw.scale_dtype):match "[^.]*$"] or nil,
  }
  if a.bits == nil then a.bits = 8 end
  if a.symmetric == nil then a.symmetric = true end
  if a.dynamic == nil then a.dynamic = false end
  a.block = raw.block_structure ~= nil and block_of(raw.block_structure) or nil
  if raw.block_structure ~= nil and not a.block then
    return fail("eformat", 'block_structure = %s: expected [rows, columns], or "128x128"',
      type(raw.block_structure) == "table" and ("[%s, %s]"):format(tostring(raw.block_structure[1]),
        tostring(raw.block_structure[2])) or tostring(raw.block_structure))
  end
  a.strategy = a.strategy or (a.block and "block") or inferred(a.group)
  local msg = field_fault(a) or contradiction(a)
  if msg then return nil, msg, "eformat" end
  return a
end
require("nibble.ffi").interpreted(M.parse)

--- ct_args.describe(args | nil) -> "int4 group 128 symmetric", "float8 token dynamic symmetric", "none"
function M.describe(a)
  if not a then return "none" end
  local words = { a.type .. a.bits, a.strategy }
  if a.strategy == "group" or a.strategy == "tensor_group" then words[#words + 1] = tostring(a.group) end
  if a.block then words[#words + 1] = a.block[1] .. "x" .. a.block[2] end
  if a.dynamic then words[#words + 1] = a.dynamic == true and "dynamic" or "local" end
  words[#words + 1] = a.symmetric and "symmetric" or "asymmetric"
  if a.actorder then words[#words + 1] = "actorder " .. a.actorder end
  return table.concat(words, " ")
end

-- ---- kinds of arguments ---------------------------------------------------------------

--- ct_args.is_nvfp4(args): e2m1 codes, an e4m3 scale every 16, one scale of the tensor. (CTM-NVFP4-02)
function M.is_nvfp4(a)
  return a ~= nil and a.type == "float" and a.bits == 4 and a.strategy == "tensor_group" and a.group == 16 and a.symmetric
end

--- ct_args.is_mxfp4(args), is_mxfp8(args): floats with a power of two every 32.
local function is_mx(a, bits)
  return a ~= nil and a.type == "float" and a.bits == bits and a.strategy == "group" and a.group == 32
end
function M.is_mxfp4(a) return is_mx(a, 4) end
function M.is_mxfp8(a) return is_mx(a, 8) end

--- ct_args.format(weights, activations | nil) -> name of the format that a module's tensors have.
function M.format(w, a)
  if M.is_nvfp4(w) then return "nvfp4-pack-quantized" end
  if M.is_mxfp4(w) then return "mxfp4-pack-quantized" end
  if M.is_mxfp8(w) then return "mxfp8-quantized" end
  if w.type == "float" then return a and "float-quantized" or "naive-quantized" end
  return a and "int-quantized" or "pack-quantized"
end

return M

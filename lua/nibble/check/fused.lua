-- check.fused: modules that consumers load as one matrix (q/k/v, gate/up, an expert's w1/w3) must agree in all but the weights.
local oracle = require "nibble.check.oracle"
local scheme_m = require "nibble.scheme"
local text = require "nibble.text"

local function leaves(layer)
  if layer.kind == "moe" then return "all its experts" end
  local out = {}
  for i, rec in ipairs(layer.members) do out[i] = text.leaf(rec.name) end
  return table.concat(out, ", ", 1, #out - 1) .. " and " .. out[#out]
end

local function half(context, add)
  oracle.tell(context, add, "half", function(r)
    return { says = ("%s is quantized (%s) and %s is stored as %s, but they are one layer"):format(text.leaf(r.a.name),
      r.a.scheme and scheme_m.describe(r.a.scheme) or r.a.format, text.leaf(r.b.name), tostring(r.b.dtype)),
      fix = ("quantize %s, or none of them"):format(leaves(r.layer)) }
  end)
end

local function schemes(context, add)
  oracle.tell(context, add, "schemes", function(r)
    return { says = ("%s is %s and %s is %s, but they are one layer"):format(text.leaf(r.a.name), scheme_m.describe(r.a.scheme),
      text.leaf(r.b.name), scheme_m.describe(r.b.scheme)), fix = ("quantize %s by one rule"):format(leaves(r.layer)) }
  end)
end

-- One number of each member: rec -> the tensor's name, by scheme | nil
local function global_name(rec)
  if rec.scheme.strategy == "tensor_group" then
    return rec.tensors.weight_global_scale and "weight_global_scale" or rec.tensors.weight_scale_2 and "weight_scale_2"
  end
  if rec.scheme.type == "float" and rec.scheme.strategy == "tensor" and rec.tensors.weight_scale then return "weight_scale" end
end

-- The members' numbers under that name | nil: not all have one.
local function numbers(context, members, suffix)
  local out = {}
  for i, rec in ipairs(members) do
    local info = rec.tensors[suffix]
    if not info or info.params ~= 1 then return nil end
    local t = context.ck:tensor(info.name)
    if not t then return nil end
    out[i] = tonumber(t:get(1))
    t:drop()
  end
  return out
end

local function ratio(list)
  local low, high = math.huge, 0
  for _, x in ipairs(list) do low, high = math.min(low, math.abs(x)), math.max(high, math.abs(x)) end
  return high / low
end

local function quantized(members)
  for _, rec in ipairs(members) do
    if not rec.scheme then return false end
  end
  return true
end

local function shared(context, add)
  if not context.values or not context.facts.shared_scales then return end
  for _, group in ipairs(oracle.groups(context)) do
    local suffix = not context.explained[group.name] and quantized(group.members) and global_name(group.members[1])
    local list = suffix and numbers(context, group.members, suffix)
    local by = list and ratio(list)
    if by and by ~= 1 and by == by then
      local nvfp4 = suffix ~= "weight_scale"
      local first, last = text.leaf(group.members[1].name), text.leaf(group.members[#group.members].name)
      add { severity = nvfp4 and "error" or "note", module = group.name, tensor = group.members[1].name .. "." .. suffix, key = suffix,
        says = nvfp4 and ("%s differs from %s to %s by up to %.4g times; one is taken for all of them, with only a warning"):format(
          suffix, first, last, by) or ("%s differs from %s to %s by up to %.4g times; the codes are rounded again to the largest")
          :format(suffix, first, last, by),
        fix = nvfp4 and "store the block scales under one shared global scale" or "quantize them with one scale",
        repair = nvfp4 and { kind = "global-scale", suffix = suffix } or nil,
        source = context.consumer .. (nvfp4 and " CTM-NVFP4-09" or "") }
    end
  end
end

return {
  { id = "fused-half-quantized", about = "fused siblings of which some are quantized", consumer = true, run = half },
  { id = "fused-schemes", about = "fused siblings with different schemes", consumer = true, run = schemes },
  { id = "fused-global-scale", about = "fused siblings with different global scales (values)", consumer = true, run = shared },
}

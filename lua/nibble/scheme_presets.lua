-- scheme_presets: the schemes that have a name, in compressed-tensors' meaning of the names.
local M = {}

local int8_token = { type = "int", bits = 8, symmetric = true, strategy = "token", dynamic = true }
local int4_token = { type = "int", bits = 4, symmetric = true, strategy = "token", dynamic = true }
local fp8_token = { type = "float", bits = 8, symmetric = true, strategy = "token", dynamic = true }

-- {name, fields}, in the order in which describe() tries them: of those that fit a scheme the first names it.
M.list = {}
local by_name = {}

local function add(name, fields)
  fields.type, fields.symmetric = fields.type or "int", fields.symmetric ~= false
  M.list[#M.list + 1] = { name = name, fields = fields }
  by_name[name] = fields
end

for bits = 2, 8 do
  add(("W%dA16"):format(bits), { bits = bits, group = 128 })
  add(("W%dA16_ASYM"):format(bits), { bits = bits, symmetric = false, group = 128 })
  if bits < 8 then add(("W%dA8"):format(bits), { bits = bits, group = 128, activations = int8_token }) end
  if bits <= 4 then add(("W%dA4"):format(bits), { bits = bits, group = 128, activations = int4_token }) end
end
add("W8A8", { bits = 8, strategy = "channel", activations = int8_token })
add("W8A8_STATIC", { bits = 8, strategy = "tensor",
  activations = { type = "int", bits = 8, symmetric = true, strategy = "tensor", dynamic = false } })
add("W4AFP8", { bits = 4, group = 128, activations = fp8_token })
add("FP8_DYNAMIC", { type = "float", bits = 8, strategy = "channel", activations = fp8_token })
add("FP8", { type = "float", bits = 8, strategy = "tensor",
  activations = { type = "float", bits = 8, symmetric = true, strategy = "tensor", dynamic = false } })
add("FP8_BLOCK", { type = "float", bits = 8, strategy = "block", block = { 128, 128 },
  activations = { type = "float", bits = 8, symmetric = true, strategy = "group", group = 128, dynamic = true } })
add("FP8A16", { type = "float", bits = 8, strategy = "channel" })
add("NVFP4", { type = "float", bits = 4, strategy = "tensor_group", group = 16, scale_dtype = "f8_e4m3",
  activations = { type = "float", bits = 4, symmetric = true, strategy = "tensor_group", group = 16, dynamic = "local",
                  scale_dtype = "f8_e4m3" } })
add("NVFP4A16", { type = "float", bits = 4, strategy = "tensor_group", group = 16, scale_dtype = "f8_e4m3" })
for _, bits in ipairs { 4, 8 } do
  add(("MXFP%d"):format(bits), { type = "float", bits = bits, strategy = "group", group = 32, scale_dtype = "e8m0",
    activations = { type = "float", bits = bits, symmetric = true, strategy = "group", group = 32, dynamic = true,
                    scale_dtype = "e8m0" } })
  add(("MXFP%dA16"):format(bits), { type = "float", bits = bits, strategy = "group", group = 32, scale_dtype = "e8m0" })
end

local aliases = { INT8 = "W8A8" }

--- names() -> sorted array of the presets' names.
function M.names()
  local out = {}
  for i, preset in ipairs(M.list) do out[i] = preset.name end
  table.sort(out)
  return out
end

--- get(name) -> a copy of the fields that the name stands for | nil; upper or lower case.
function M.get(name)
  name = name:upper()
  local fields = by_name[aliases[name] or name]
  if not fields then return nil end
  return { type = fields.type, bits = fields.bits, symmetric = fields.symmetric, strategy = fields.strategy,
           group = fields.group, block = fields.block, scale_dtype = fields.scale_dtype, activations = fields.activations }
end

return M

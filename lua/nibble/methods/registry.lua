-- methods.registry: quantization configs by the name that a checkpoint or a user gives them (SYSTEMS MRL-54).
local M = {}

-- What a config class has when it doesn't say otherwise.
local base = { activations = { "f16", "bf16", "f32" }, min_capability = 0, files = { "quantize_config.json" } }

--- base.method(layer) -> nil: no method of its own, so the layer stays an unquantized linear one.
function base.method() return nil end

local function where(class) return class.source or "an unnamed file" end

--- registry.new() -> registry: register(name, class), get(name), names().
function M.new()
  local classes, r = {}, {}

  --- register(name, class): a class is a table, at least {source = who owns it}; what it lacks the base has.
  -- A name taken twice is an error that names both owners.
  function r.register(name, class)
    if type(name) ~= "string" or name == "" then error("a quantization method needs a name", 2) end
    if classes[name] then
      error(("the quantization method %q is registered already: by %s, and now by %s"):format(name,
        where(classes[name]), where(class)), 2)
    end
    class.name = class.name or name
    classes[name] = setmetatable(class, { __index = base })
    return class
  end

  --- names() -> sorted array.
  function r.names()
    local out = {}
    for name in pairs(classes) do out[#out + 1] = name end
    table.sort(out)
    return out
  end

  --- get(name) -> class | nil, msg, "einval": the sentence lists the registered names, sorted.
  function r.get(name)
    if classes[name] then return classes[name] end
    return nil, ("unknown quantization method %q; registered: %s"):format(tostring(name),
      table.concat(r.names(), ", ")), "einval"
  end
  return r
end

return M

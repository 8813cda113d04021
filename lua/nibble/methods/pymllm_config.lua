-- methods.pymllm_config: AWQ checkpoints as pymllm sees them: bits, group size and zero-points, nothing else;
-- every linear layer gets the method (SYSTEMS MRL-53, MRL-54, MRL-06).
local marlin = require "nibble.marlin"
local common = require "nibble.methods.config"
local registry = require "nibble.methods.registry"

local M = {
  name = "awq_marlin", source = "nibble.methods.pymllm_config", activations = { "f16", "bf16" },
  min_capability = 80, files = { "quantize_config.json" }, types = { [4] = "uint4", [8] = "uint8" },
}

local config_mt = { __index = {} }

function config_mt.__tostring(c)
  return common.printable("AWQMarlinConfig", {
    { "weight_bits", c.bits }, { "group_size", c.group }, { "zero_point", c.zero_point }, { "quant_type", raw = c.type },
  })
end

--- pymllm_config.new(config [, {where =}]) -> config | nil, msg, code
-- bits (else w_bit, else 4), group_size (128), zero_point (true). A skip list or an LM head flag in the file
-- counts for nothing. (MRL-53)
function M.new(config, options)
  local where = options and options.where or "the AWQ config"
  local c = setmetatable({ full = config, where = where, skip = {}, stages = {} }, config_mt)
  local msg, code
  c.bits, msg, code = common.optional(config, where, "number", 4, "bits", "w_bit")
  if not c.bits then return nil, msg, code end
  c.group, msg, code = common.optional(config, where, "number", 128, "group_size")
  if not c.group then return nil, msg, code end
  c.zero_point, msg, code = common.optional(config, where, "boolean", true, "zero_point")
  if c.zero_point == nil then return nil, msg, code end
  c.type = M.types[c.bits]
  if not c.type then
    return nil, ("%s: %s bits are not supported, only 4, 8"):format(where, tostring(c.bits)), "eunsupported"
  end
  c.pack_factor = 32 / c.bits
  return c
end

--- config:method(layer [, {policy = "raise" | "fallback", capability =}]) -> {action, method, reason, requirement} | nil
-- Every linear layer; a shape that Marlin doesn't take is refused (MRL-05, C-05), or with policy "fallback" falls
-- back.
function config_mt.__index.method(c, layer, options)
  local o = options or {}
  if layer.kind ~= "linear" then return nil end
  local ok, reason = marlin.supported(c.type, c.group, c.zero_point, o.capability, nil, "pymllm")
  local requirement = "MRL-06"
  if ok then
    requirement = "MRL-05"
    ok, reason = marlin.supports_shape(layer.n, layer.k, layer.k_full or layer.k,
      c.group == -1 and layer.k_full or c.group)
  end
  if ok then
    return { action = "method", method = M.name, requirement = "MRL-53", reason = ("every linear layer is AWQ (%s, "
      .. "group %d) here; the file's skip list counts for nothing"):format(c.type, c.group) }
  end
  if o.policy == "fallback" then
    return { action = "fallback", method = "awq", requirement = requirement,
      reason = "Marlin does not take it: " .. reason,
      warning = ("%s: Marlin does not take it (%s): falling back to unoptimized AWQ"):format(layer.name, reason) }
  end
  return { action = "refuse", requirement = requirement,
    reason = ("%s: Marlin does not take it: %s"):format(layer.name, reason) }
end

--- pymllm_config.registry: pymllm's own registry, with awq_marlin in it. (MRL-54)
M.registry = registry.new()
M.registry.register("awq_marlin", M)

return M

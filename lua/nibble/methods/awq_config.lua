-- methods.awq_config: AWQ checkpoints as consumers see them: the config, whether Marlin's kernels can take
-- it, whose choice counts, and which method each layer gets (SYSTEMS AWQ-01 to AWQ-17).
--
-- Three dialects differ in data only: "awq_marlin", the method of the documents; "auto_awq", into which vLLM 0.33
-- has merged it; "awq", the plain method.
local marlin = require "nibble.marlin"
local match = require "nibble.match"
local common = require "nibble.methods.config"

local decision = common.decision

local M = { pack_factor = 8 }

-- name: of the method; class: of its printable form; choices: what a user may have said for it to take over,
-- besides nothing; keeps: the choice that keeps the plain method; verify: Marlin's limits hold at construction;
-- stages: the method that each stage of the chain stands for (AWQ-17).
M.dialects = {
  awq_marlin = {
    name = "awq_marlin", class = "AWQMarlinConfig", files = { "quantize_config.json", "quant_config.json" },
    activations = { "f16", "bf16" }, min_capability = 75, types = { [4] = "uint4" }, verify = true,
    platforms = { cuda = true, rocm = true, cpu = true }, choices = { marlin = true, awq_marlin = true }, keeps = "awq",
    stages = { plain = "awq", generic = "moe_wna16", marlin = "awq_marlin" },
  },
  auto_awq = {
    name = "auto_awq", class = "AutoAWQConfig", files = { "quant_config.json", "quantize_config.json" },
    activations = { "f16", "bf16" }, min_capability = 75, types = { [4] = "uint4" }, verify = false, pad = true,
    platforms = { cuda = true, rocm = true },
    choices = { marlin = true, awq_marlin = true, awq = true, auto_awq = true },
    stages = { plain = "awq", generic = "moe_wna16", marlin = "auto_awq" },
  },
  awq = {
    name = "awq", class = "AWQConfig", files = { "quant_config.json", "quantize_config.json" }, activations = { "f16" },
    min_capability = 75, types = { [4] = "uint4" }, platforms = { cuda = true, rocm = true, cpu = true, xpu = true },
    choices = { awq = true }, stages = { plain = "awq", generic = "moe_wna16" },
  },
}

local function dialect_of(name)
  local d = M.dialects[name or "awq_marlin"]
  if not d then error(("unknown AWQ dialect %q; known: auto_awq awq awq_marlin"):format(tostring(name)), 3) end
  return d
end

local function bits_of(types)
  local out = {}
  for bits in pairs(types) do out[#out + 1] = bits end
  table.sort(out)
  return table.concat(out, ", ")
end

-- ---- the config ---------------------------------------------------------------------

local config_mt = { __index = {} }

--- tostring(config): type, group size, zero-points, LM head flag and skip list. (AWQ-04)
function config_mt.__tostring(c)
  return common.printable(c.dialect.class, {
    { "quant_type", raw = c.type }, { "group_size", c.group }, { "zero_point", c.zero_point },
    { "lm_head_quantized", c.lm_head }, { "modules_to_not_convert", c.skip },
  })
end

-- zero_point, which AutoRound's configs tell as sym.
local function zero_point_of(config, where)
  if common.present(config, "zero_point") == nil and type(config.sym) == "boolean" then return not config.sym end
  return common.required(config, where, "boolean", "zero_point")
end

-- What Marlin says of a group size and zero-points; the type is uint4, so that zero_point = false fails.
local function verify(c, where, device)
  local ok, reason = marlin.supported(c.type, c.group, c.zero_point, device.capability, device.platform)
  if ok then return true end
  return nil, ("%s: group_size %s with zero_point = %s: %s"):format(where, tostring(c.group), tostring(c.zero_point),
    reason), "eunsupported"
end

--- awq_config.new(config [, {dialect = "awq_marlin", where =, platform = "cuda", capability = 90}])
-- -> config | nil, msg, code
-- config: the quantization_config as a table. Required: bits (or w_bit), group_size (or q_group_size),
-- zero_point; optional: lm_head (false), modules_to_not_convert (none). -> {bits, group, zero_point, lm_head,
-- skip = {…}, type = "uint4", pack_factor = 8, full = config, dialect}. (AWQ-01 to AWQ-04)
function M.new(config, options)
  local o = options or {}
  local d, where = dialect_of(o.dialect), o.where or "the AWQ config"
  local c = setmetatable({ dialect = d, stages = d.stages, full = config, pack_factor = M.pack_factor, where = where },
    config_mt)
  local msg, code
  c.bits, msg, code = common.required(config, where, "number", "bits", "w_bit")
  if not c.bits then return nil, msg, code end
  c.group, msg, code = common.required(config, where, "number", "group_size", "q_group_size")
  if not c.group then return nil, msg, code end
  c.zero_point, msg, code = zero_point_of(config, where)
  if c.zero_point == nil then return nil, msg, code end
  c.lm_head, msg, code = common.optional(config, where, "boolean", false, "lm_head")
  if c.lm_head == nil then return nil, msg, code end
  c.skip, msg, code = common.names(config, where, "modules_to_not_convert")
  if not c.skip then return nil, msg, code end
  c.type = d.types[c.bits]
  if not c.type then
    return nil, ("%s: %s bits are not supported, only %s"):format(where, tostring(c.bits), bits_of(d.types)),
      "eunsupported"
  end
  if d.verify then
    local ok
    ok, msg, code = verify(c, where, { capability = o.capability or 90, platform = o.platform })
    if not ok then return nil, msg, code end
  end
  return c
end

--- config:map_names(mapper): a skip list that is not empty is rewritten into the running model's names. (AWQ-07)
function config_mt.__index.map_names(c, mapper)
  if mapper and #c.skip > 0 then c.skip = common.mapped(c.skip, mapper) end
  return c
end

--- config:complete(source [, {revision =, cache =}]) -> config | nil, msg, code
-- An empty skip list is made from the headers: the layers that hold floats only. (AWQ-08, AWQ-09)
function config_mt.__index.complete(c, source, options)
  if #c.skip > 0 then return c end
  local tensors, msg, code = common.headers(source, options)
  if not tensors then return nil, msg, code end
  c.skip, c.automatic = common.unquantized_layers(tensors), true
  return c
end

-- ---- whether and when the method takes over -----------------------------------------

--- awq_config.convertible(config [, {dialect =, platform = "cuda", capability =}]) -> true | false, reason
-- Never an error: a config that another method owns is simply not convertible. (AWQ-05)
function M.convertible(config, options)
  local o = options or {}
  local d, platform = dialect_of(o.dialect), o.platform or "cuda"
  if not d.platforms[platform] then return false, ("%s has no %s method"):format(platform, d.name) end
  local method = common.present(config, "quant_method")
  if tostring(method or ""):lower() ~= "awq" then
    return false, ("quant_method is %s, not awq"):format(method == nil and "missing" or tostring(method))
  end
  if not d.verify then return true end
  local bits, group = common.present(config, "bits", "w_bit"), common.present(config, "group_size", "q_group_size")
  local zero_point = common.present(config, "zero_point")
  for _, part in ipairs { { "bits", bits }, { "group_size", group }, { "zero_point", zero_point } } do
    if part[2] == nil then return false, part[1] .. " is missing" end
  end
  local kind = d.types[bits]
  if not kind then return false, ("%s bits are not supported, only %s"):format(tostring(bits), bits_of(d.types)) end
  return marlin.supported(kind, group, zero_point, o.capability, platform)
end

--- awq_config.override(config, choice [, options as convertible's]) -> method | nil, sentence | nil
-- choice: the quantization method the user named, or nil. The method's name when it takes over. The sentence
-- says what happened; where neither took place there is none. (AWQ-06)
function M.override(config, choice, options)
  local d = dialect_of(options and options.dialect)
  if not M.convertible(config, options) then return nil end
  if choice == nil or d.choices[choice] then
    return d.name, ("the checkpoint can be converted to %s while it is loaded: %s is used"):format(d.name, d.name)
  end
  if choice == d.keeps then
    return nil, ("the checkpoint could run as %s, but %s was asked for and is kept; %s would be faster"):format(d.name,
      choice, d.name)
  end
  return nil
end

-- ---- which method a layer gets --------------------------------------------------------

-- Whether Marlin's kernels take the layer's shape. -> true | false, reason
local function fits(c, layer, o)
  if layer.kind == "moe" then
    return marlin.supports_moe(layer.hidden, layer.intermediate, c.group, { platform = o.platform,
      pad = c.dialect.pad, router_weight_on_input = layer.router_weight_on_input })
  end
  local group = c.group == -1 and layer.k_full or c.group
  return marlin.supports_layer(layer.n, layer.k, layer.k_full or layer.k, group, c.dialect.pad)
end

--- config:method(layer [, {fused =, mode = "substring", platform =, policy = "fallback" | "raise"}])
-- -> {action, method, reason, requirement, warning =} | nil where the class says nothing | nil, msg, code
-- layer: {name =, kind = "linear" | "lm_head" | "moe", n =, k =, k_full = | hidden =, intermediate =}, sizes of
-- this rank. The order: skipped, Marlin's limits, Marlin; the plain dialect knows no Marlin. policy "raise" refuses
-- where the default falls back (C-05). The warning is for one per layer. (AWQ-10 to AWQ-16)
function config_mt.__index.method(c, layer, options)
  local o = options or {}
  local moe = layer.kind == "moe"
  if layer.kind == "lm_head" and not c.lm_head then return nil end
  if not moe and layer.kind ~= "linear" and layer.kind ~= "lm_head" then return nil end
  local skipped, entry, code = match.skipped(layer.name, c.skip, { mode = o.mode, moe = moe,
    fused = not moe and o.fused or nil })
  if skipped == nil then return nil, entry, code end
  if skipped then
    if c.automatic then
      return decision("skip", "unquantized", "AWQ-08", "%s holds floats only, the checkpoint's headers say", entry)
    end
    return decision("skip", "unquantized", moe and "AWQ-13" or "AWQ-11", "%q of modules_to_not_convert means it", entry)
  end
  if not c.stages.marlin then
    return decision("method", moe and c.stages.generic or c.stages.plain, moe and "AWQ-16" or "AWQ-15",
      "quantized as AWQ (%s, group %d)", c.type, c.group)
  end
  local ok, reason = fits(c, layer, o)
  if ok then
    return decision("method", c.stages.marlin, moe and "AWQ-16" or "AWQ-15",
      "quantized as AWQ (%s, group %d), and Marlin takes its shape", c.type, c.group)
  end
  if o.policy == "raise" then
    return decision("refuse", nil, moe and "AWQ-16" or "AWQ-15", "%s: Marlin does not take it: %s", layer.name, reason)
  end
  local out = decision("fallback", moe and c.stages.generic or c.stages.plain, moe and "AWQ-16" or "AWQ-15",
    "Marlin does not take it: %s", reason)
  out.warning = ("%s: Marlin does not take it (%s): falling back to %s"):format(layer.name, reason,
    moe and "the generic WNA16 kernels" or "unoptimized AWQ")
  return out
end

return M

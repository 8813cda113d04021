-- methods.gptq_config: GPTQ checkpoints as consumers see them: the config, its per-module rules (`dynamic`), the
-- list of quantized layers, and which method each layer gets (FORMATS 3).
local json = require "nibble.json"
local marlin = require "nibble.marlin"
local match = require "nibble.match"
local overrides = require "nibble.formats.overrides"
local common = require "nibble.methods.config"

local decision = common.decision

local M = {
  name = "auto_gptq", files = { "quantize_config.json" }, activations = { "f16", "bf16" }, min_capability = 75,
  types = { [4] = "uint4b8", [8] = "uint8b128" },
  choices = { marlin = true, gptq = true, gptq_marlin = true, auto_gptq = true },
  stages = { generic = "moe_wna16", marlin = "gptq_marlin" },
}

local config_mt = { __index = {} }

--- tostring(config): type, group size, act-order, LM head flag, rules and quantized layers.
function config_mt.__tostring(c)
  local rules = {}
  for i, rule in ipairs(c.rules) do rules[i] = rule.key end
  return common.printable("AutoGPTQConfig", {
    { "quant_type", raw = c.type }, { "group_size", c.group }, { "desc_act", c.desc_act },
    { "lm_head_quantized", c.lm_head },
    { "dynamic", raw = #rules == 0 and "{}" or "{" .. table.concat(rules, ", ") .. "}" },
    { "modules_in_block_to_quantize", c.layers },
  })
end

-- What vLLM 0.33 takes of bits, symmetry and act-order. -> type | nil, msg, code
local function type_of(bits, sym, desc_act, group, where)
  local kind = sym and M.types[bits] or nil
  if not kind then
    return nil, ("%s: bits = %s with sym = %s is not supported, only 4 and 8 bits with sym = true; convert it to "
      .. "compressed-tensors"):format(where, tostring(bits), tostring(sym)), "eunsupported"
  end
  if desc_act and group ~= -1 then
    return nil, ("%s: desc_act = true with group_size = %s is no longer supported; quantize with desc_act = false or "
      .. "actorder = weight"):format(where, tostring(group)), "eunsupported"
  end
  return kind
end

--- gptq_config.new(config [, {where =}]) -> config | nil, msg, code
-- Required: bits, group_size, desc_act, sym; optional: lm_head (false), dynamic, modules_in_block_to_quantize.
-- act-order without groups is none. -> {bits, group, desc_act, sym, lm_head, rules, layers, type, full}
function M.new(config, options)
  local where = options and options.where or "the GPTQ config"
  local c = setmetatable({ full = config, where = where, stages = M.stages }, config_mt)
  local msg, code
  for _, part in ipairs { { "bits", "number", "bits" }, { "group_size", "number", "group" },
    { "desc_act", "boolean", "desc_act" }, { "sym", "boolean", "sym" } } do
    c[part[3]], msg, code = common.required(config, where, part[2], part[1])
    if c[part[3]] == nil then return nil, msg, code end
  end
  c.lm_head, msg, code = common.optional(config, where, "boolean", false, "lm_head")
  if c.lm_head == nil then return nil, msg, code end
  c.rules, msg, code = overrides.rules({ dynamic = common.present(config, "dynamic") }, where)
  if not c.rules then return nil, msg, code end
  c.layers = common.present(config, "modules_in_block_to_quantize") or {}
  if type(c.layers) ~= "table" then c.layers = { c.layers } end
  c.type, msg, code = type_of(c.bits, c.sym, c.desc_act, c.group, where)
  if not c.type then return nil, msg, code end
  if c.group == -1 then c.desc_act = false end
  return c
end

--- gptq_config.override(config, choice) -> method | nil, sentence: as awq_config.override; any platform.
function M.override(config, choice)
  if common.present(config, "quant_method") ~= "gptq" then return nil end
  if choice ~= nil and not M.choices[choice] then return nil end
  return M.name, ("the checkpoint can be converted to %s while it is loaded: %s is used"):format(M.name, M.name)
end

--- gptq_config.dynamic(rules, name [, key, default]) -> false: not quantized | the rule's fields, or one of them |
-- default.
-- The first rule whose pattern matches at the name's start. rules: of formats.overrides. (FORMATS 3)
function M.dynamic(rules, name, key, default)
  local rule = overrides.find(rules, name)
  if not rule then return default end
  if rule.skip then return false end
  if key == nil then return rule.fields end
  if rule.fields[key] == nil then return default end
  return rule.fields[key]
end

-- What the rules say of a layer: rule | nil, or for a fused layer what its shards agree on. -> rule, or nil, msg, code
local function rule_of(c, name, fused)
  local shards = match.shards(name, fused)
  if not shards or overrides.find(c.rules, name) then return overrides.find(c.rules, name) end
  local first = overrides.find(c.rules, shards[1])
  local function said(rule)
    if not rule then return "nothing" end
    return rule.skip and "not quantized" or json.encode(rule.fields)
  end
  for i = 2, #shards do
    local other = overrides.find(c.rules, shards[i])
    if said(other) ~= said(first) then
      return nil, ("%s: dynamic says %s of %s and %s of %s, but a fused layer's shards must share one precision")
        :format(name, said(first), shards[1], said(other), shards[i]), "eformat"
    end
  end
  return first
end

--- config:method(layer [, {fused =, platform =, capability =}]) -> {action, method, reason, requirement, type =,
-- group =} | nil where the class says nothing | nil, msg, code. layer as in awq_config. The order: LM head, the list of
-- quantized layers, dynamic, what the kernels take.
function config_mt.__index.method(c, layer, options)
  local o = options or {}
  local moe = layer.kind == "moe"
  if layer.kind == "lm_head" and not c.lm_head then return nil end
  if not moe and layer.kind ~= "linear" and layer.kind ~= "lm_head" then return nil end
  local fused = not moe and o.fused or nil
  if layer.kind ~= "lm_head" then
    local listed, msg, code = match.listed(layer.name, c.layers, fused)
    if listed == nil then return nil, msg, code end
    if not listed and not moe then
      return decision("skip", "unquantized", "FORMATS-3",
        "no entry of modules_in_block_to_quantize is a part of its name")
    end
  end
  local rule, msg, code = rule_of(c, layer.name, fused)
  if msg then return nil, msg, code end
  if rule and rule.skip then
    return decision("skip", "unquantized", "FORMATS-3", "dynamic %q: not quantized", rule.key)
  end
  local f = rule and rule.fields or {}
  local function pick(key, own) if f[key] ~= nil then return f[key] end return own end
  local group = pick("group_size", c.group)
  local kind
  kind, msg, code = type_of(pick("bits", c.bits), pick("sym", c.sym), pick("desc_act", c.desc_act), group, layer.name)
  if not kind then return nil, msg, code end
  local ok, reason = marlin.supported(kind, group, false, o.capability or 90, o.platform)
  if moe and ok then
    ok, reason = marlin.supports_moe(layer.hidden, layer.intermediate, group, { platform = o.platform, pad = true })
  end
  local out
  if ok then
    out = decision("method", "gptq_marlin", "INC-19", "quantized as GPTQ (%s, group %d%s)", kind, group,
      rule and (", dynamic %q"):format(rule.key) or "")
  elseif moe then
    out = decision("fallback", "moe_wna16", "AWQ-40", "Marlin does not take it: %s", reason)
  else
    out = decision("method", "gptq_marlin", "INC-19", "quantized as GPTQ (%s, group %d); %s", kind, group, reason)
  end
  out.type, out.group = kind, group
  return out
end

return M

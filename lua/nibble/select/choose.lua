-- select.choose: which config class a checkpoint gets at a consumer, with the user's choice; and what holds for layers
-- where the tensors alone decide (SYSTEMS AWQ-05, AWQ-06, INC-03, CTM-SEL-04).
local overrides = require "nibble.formats.overrides"
local scheme_m = require "nibble.scheme"
local text = require "nibble.text"
local common = require "nibble.methods.config"

local M = {}

local classes = { awq = "awq_config", gptq = "gptq_config", inc = "inc_config", ct = "ct_config",
  pymllm = "pymllm_config" }
-- The requirement behind a refused config, and behind shards that disagree.
local refused_by = { awq = "AWQ-02", gptq = "INC-19", inc = "INC-04", ct = "CTM-SEL-03", pymllm = "MRL-53" }
local disagreement = { awq = "AWQ-12", gptq = "FORMATS-3", inc = "INC-06", ct = "CTM-SEL-02", pymllm = "MRL-53" }

-- quant_method as the file says it; side files leave it out.
local function said_by(source)
  local said = common.present(source.quantization.config, "quant_method")
  said = said and tostring(said):lower() or overrides.method(source)
  if said == "intel/auto-round" then said = "auto-round" end
  return said
end

local function names_of(methods)
  local out = {}
  for name in pairs(methods) do out[#out + 1] = name end
  table.sort(out)
  return out
end

local function wrong_choice(s, said, accepted)
  return nil, ("the checkpoint's quant_method is %s and the method %s was asked for; take %s, or leave the method out")
    :format(said, s.choice, table.concat(accepted, ", ")), "einval"
end

local take = {}

-- -> dialect, or nil, msg, code
function take.awq(s, said, rule)
  local awq = require "nibble.methods.awq_config"
  local config = s.from.quantization.config
  local o = { dialect = rule.dialect, platform = s.platform, capability = s.capability }
  local name, sentence = awq.override(config, s.choice, o)
  s.said = sentence
  if name then
    s.method = name
    return rule.dialect
  end
  local d = awq.dialects[rule.dialect]
  if s.choice and s.choice ~= said and not d.choices[s.choice] then
    local accepted = names_of(d.choices)
    if not d.choices[said] then table.insert(accepted, 1, said) end
    return wrong_choice(s, said, accepted)
  end
  local ok, why = awq.convertible(config, o)
  if s.choice and s.choice ~= said and not ok and d.verify then
    return nil, ("%s was asked for, but the checkpoint can't be converted to %s: %s"):format(s.choice, d.name, why),
      "eunsupported"
  end
  s.method = rule.plain or d.name
  if not ok and rule.plain then s.said = ("not convertible to %s (%s): %s is used"):format(d.name, why, rule.plain) end
  return rule.plain or rule.dialect
end

function take.gptq(s, said)
  local gptq = require "nibble.methods.gptq_config"
  if s.choice and s.choice ~= said and not gptq.choices[s.choice] then
    return wrong_choice(s, said, names_of(gptq.choices))
  end
  local _, sentence = gptq.override({ quant_method = "gptq" }, s.choice)
  s.method, s.said = gptq.name, sentence
  return true
end

function take.inc(s, said)
  local inc = require "nibble.methods.inc_config"
  if s.choice and s.choice ~= said and s.choice ~= inc.name then
    return wrong_choice(s, said, { "auto-round", inc.name })
  end
  local _, sentence = inc.override(s.from.quantization.config)
  s.method, s.said = inc.name, sentence
  return true
end

local function plain_choice(s, said)
  if s.choice and s.choice ~= said then return wrong_choice(s, said, { said }) end
  s.method = said
  return true
end
take.ct, take.scheme = plain_choice, plain_choice

function take.pymllm(s, said)
  if s.choice and s.choice ~= "awq_marlin" and s.choice ~= said then return wrong_choice(s, said, { "awq_marlin" }) end
  s.method = "awq_marlin"
  return true
end

local function capable(s, least)
  if s.platform ~= "cuda" or s.capability >= least then return true end
  s.refused_by = "AWQ-04"
  s.refused = ("%s needs SM %d or above, and the device is %s"):format(s.method, least, s.device)
end

--- choose.class(selection) -> true | nil, msg, code
-- Sets class, config, method, said; or refused, where the consumer takes no such checkpoint. A choice that does not
-- go with the checkpoint is the caller's mistake.
function M.class(s)
  if not s.from.quantization then
    if s.choice then
      return nil, ("the method %s was asked for, but %s has no quantization config"):format(s.choice, s.from.name),
        "einval"
    end
    return true
  end
  local said = said_by(s.from)
  local config = s.from.quantization.config
  if common.present(config, "quant_method") == nil then -- a side file: its keys say whose it is
    local full = { quant_method = said }
    for k, v in pairs(config) do full[k] = v end
    s.from.quantization = { config = full, source = s.source }
  end
  local rule = s.rule.methods[said] or s.rule.methods["*"]
  if not rule then
    s.class, s.method, s.refused_by = "none", said, "MRL-54"
    s.refused = ("%s has no quantization method %s%s"):format(s.consumer, said,
      text.did_you_mean(said, names_of(s.rule.methods)))
    return true
  end
  local dialect, msg, code = take[rule.config](s, said, rule)
  if not dialect then return nil, msg, code end
  s.class, s.disagreement, s.actorder = rule.config, disagreement[rule.config], rule.actorder
  if rule.config == "scheme" then return true end
  local class = require("nibble.methods." .. classes[rule.config])
  s.config, msg = class.new(s.from.quantization.config, { where = s.source, platform = s.platform,
    dialect = dialect ~= true and dialect or nil, capability = s.capability })
  if not s.config then
    s.refused, s.refused_by = msg, refused_by[rule.config]
    return true
  end
  if rule.config == "awq" then
    s.config:map_names(s.target.mapper)
    assert(s.config:complete { tensors = s.from.headers })
    capable(s, s.config.dialect.min_capability)
  end
  return true
end
require("nibble.ffi").interpreted(names_of)
require("nibble.ffi").interpreted(M.class)

--- choose.by_scheme(selection, layer) -> decision: what the tensors say that a layer is, where the consumer has no class.
function M.by_scheme(s, layer)
  local rec = layer.members[1]
  if rec.unreadable then
    return { action = "refuse", requirement = "C-21", reason = rec.unreadable }
  end
  if not rec.scheme then
    return { action = "skip", method = "unquantized", requirement = "AWQ-14",
      reason = ("stored as %s"):format(tostring(rec.dtype)) }
  end
  return { action = "method", method = s.method, requirement = "CTM-SEL-04",
    reason = ("stored as %s, %s"):format(rec.format, scheme_m.describe(rec.scheme)) }
end

return M

-- formats.overrides: configs that say something else for some modules: GPTQModel's `dynamic` and
-- AutoRound's `extra_config`; and whose tensors a config describes (SYSTEMS INC-02, INC-03).
local json = require "nibble.json"
local regex = require "nibble.regex"
local common = require "nibble.formats.common"
local fail = common.fail

local M = {}

-- AutoRound's packing_format -> the format whose tensors it writes; the rest can't be read yet.
local packings = {
  ["auto_round:auto_gptq"] = "gptq", ["auto_round:gptq"] = "gptq", ["auto_round"] = "gptq_v2",
  ["auto_round:gptqmodel"] = "gptq_v2", ["auto_round:auto_awq"] = "awq", ["auto_round:awq"] = "awq",
}

local function side_file_method(config)
  if config.w_bit or config.q_group_size or config.zero_point ~= nil then return "awq" end
  if config.bits and config.group_size then return "gptq" end
end

--- method(ck) -> "awq" | "gptq" | "gptq_v2" | another quant_method | nil
-- quant_method lower-cased; legacy side files leave it out; AutoRound's says it by packing_format
-- (default auto_round:auto_gptq, INC-03), GPTQModel's by checkpoint_format (default gptq).
function M.method(ck)
  if not ck.quantization then return nil end
  local config = common.null_free(ck.quantization.config)
  local name = config.quant_method
  if name == nil then name = side_file_method(config) end
  name = tostring(name):lower()
  if name == "auto-round" or name == "intel/auto-round" then
    local packing = config.packing_format or "auto_round:auto_gptq"
    return packings[packing] or ("auto-round %s"):format(tostring(packing))
  end
  if name == "gptq" then
    local format = tostring(config.checkpoint_format or config.format or "gptq")
    return format == "gptq" and name or format == "gptq_v2" and format or "gptq " .. format
  end
  return name
end

-- `dynamic`: regex -> overrides, in the file's order; "-:" = not quantized. The first that matches wins.
local function dynamic_rules(dynamic, where)
  local rules = {}
  for i, key in ipairs(json.keys(dynamic)) do
    local sign, pattern = tostring(key):match "^([+-]):(.*)$"
    local r, msg = regex.compile(pattern or tostring(key))
    if not r then return fail("eunsupported", "%s: dynamic: %s", where, msg) end
    local value = dynamic[key]
    rules[i] = { key = key, skip = sign == "-", fields = type(value) == "table" and common.null_free(value) or {},
      matches = function(module) return r:match(module) end }
  end
  return rules
end

-- `extra_config`: module name or regex (re.search) -> overrides; exact names first; 16 bits = not quantized.
local function extra_rules(extra, where)
  local exact, patterns = {}, {}
  for _, key in ipairs(json.keys(extra)) do
    local fields = type(extra[key]) == "table" and common.null_free(extra[key]) or {}
    local skip = (tonumber(fields.bits) or 4) >= 16
    exact[#exact + 1] = { key = key, skip = skip, fields = fields, matches = function(module) return module == key end }
    if tostring(key):find "[^%w_.]" then
      local r, msg = regex.compile(tostring(key))
      if not r then return fail("eunsupported", "%s: extra_config: %s", where, msg) end
      patterns[#patterns + 1] = { key = key, skip = skip, fields = fields,
        matches = function(module) return r:search(module) end }
    end
  end
  for _, rule in ipairs(patterns) do exact[#exact + 1] = rule end
  return exact
end

--- rules(config, where) -> array of {key=, skip=bool, fields={...}, matches=function(module)} | nil, msg, code
function M.rules(config, where)
  if type(config.dynamic) == "table" then return dynamic_rules(config.dynamic, where) end
  if type(config.extra_config) == "table" then return extra_rules(config.extra_config, where) end
  return {}
end

--- find(rules, module) -> the first rule that matches, or nil
function M.find(rules, module)
  for _, rule in ipairs(rules) do
    if rule.matches(module) then return rule end
  end
end

return M

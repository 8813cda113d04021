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

-- `extra_config`: module name, its dotted suffix, or a regex (re.search) -> overrides; 16 bits = not quantized.
-- Exact names first, then suffixes, then the keys with a regex's characters (INC-05).
local function extra_rules(extra, where, ignored)
  local exact, suffixes, patterns = {}, {}, {}
  for _, key in ipairs(json.keys(extra)) do
    local name = tostring(key)
    local fields = type(extra[key]) == "table" and common.null_free(extra[key]) or {}
    local skip = (tonumber(fields.bits) or 4) >= 16
    local function rule(how, matches)
      return { key = key, how = how, skip = skip, fields = fields, matches = matches }
    end
    exact[#exact + 1] = rule("exact", function(module) return module == key end)
    suffixes[#suffixes + 1] = rule("suffix", function(module) return module:sub(-#name - 1) == "." .. name end)
    if name:find "[%*%+%?%^%$%(%)%[%]{}|\\]" then
      local r, msg = regex.compile(name)
      if not r and not ignored then return fail("eunsupported", "%s: extra_config: %s", where, msg) end
      if r then patterns[#patterns + 1] = rule("regex", function(module) return r:search(module) end)
      else ignored[#ignored + 1] = msg end
    end
  end
  for _, list in ipairs { suffixes, patterns } do
    for _, rule in ipairs(list) do exact[#exact + 1] = rule end
  end
  return exact
end

--- rules(config, where [, ignored]) -> array of {key=, skip=bool, fields={...}, matches=function(module)} | nil, msg, code
-- extra_config's have how = "exact" | "suffix" | "regex". A regex of extra_config that is none is refused, or
-- with `ignored`, an array that takes the sentence, left out as its consumer does (INC-05).
function M.rules(config, where, ignored)
  if type(config.dynamic) == "table" then return dynamic_rules(config.dynamic, where) end
  if type(config.extra_config) == "table" then return extra_rules(config.extra_config, where, ignored) end
  return {}
end

--- find(rules, module [, how]) -> the first rule that matches, or nil; how: only rules of this kind
function M.find(rules, module, how)
  for _, rule in ipairs(rules) do
    if (not how or rule.how == how) and rule.matches(module) then return rule end
  end
end

return M

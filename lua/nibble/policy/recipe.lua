-- policy.recipe: a policy as the text of a recipe file, proven by the recipe's own rules.
local patterns = require "nibble.patterns"
local common = require "nibble.formats.common"
local layers = require "nibble.select.layers"
local recipes = require "nibble.recipe"
local rules = require "nibble.plan_rules"
local schemes = require "nibble.scheme"
local text = require "nibble.text"

local M = {}

local function quoted(s) return ('"%s"'):format((s:gsub('[\\"]', "\\%0"):gsub("\n", "\\n"))) end

local function names_of(records)
  local out = {}
  for i, rec in ipairs(records) do out[i] = rec.name end
  return out
end

local function is_head(name) return text.leaf(name) == "lm_head" end

-- The head has a key of its own; everything else is named by globs.
local function without_heads(records)
  local out = {}
  for _, rec in ipairs(records) do
    if not is_head(rec.name) then out[#out + 1] = rec end
  end
  return out
end

local function value(v)
  if type(v) == "string" then return quoted(v) end
  return tostring(v)
end

-- What the recipe decides for every module is what the policy says | nil, msg, code
local function prove(source, p)
  local chunk = assert(loadstring(source))
  local recipe, msg, code = recipes.load(setfenv(chunk, {})())
  if not recipe then return nil, msg, code end
  local list = {}
  for i, rule in ipairs(recipe.rules or {}) do list[i] = rule[1] end
  local _, routers = layers.structure(p.config)
  local fake = { recipe = recipe, skips = rules.matchers(recipe.skip or {}), rules = rules.matchers(list), routers = routers,
    settled = {} }
  for _, entry in ipairs(p.entries) do
    local d
    d, msg = rules.decide(fake, entry)
    if not d then return nil, msg, "einexact" end
    local same = entry.scheme and d.scheme and schemes.same(entry.scheme, d.scheme) or not entry.scheme and not d.scheme
    if not same then
      return nil, ("a recipe cannot say this policy: %s would be %s by it (%s)"):format(entry.name,
        d.scheme and schemes.describe(d.scheme) or "float", tostring(d.reason)), "einexact"
    end
  end
  return source
end

--- text(policy, {name =, format =}) -> the text of a recipe | nil, msg, code
-- The scheme of most modules is the recipe's; what stays float is `skip`; every other scheme has its rules.
function M.text(p, o)
  local kinds, head = common.by_scheme(without_heads(p.entries)), nil
  local all = names_of(without_heads(p.entries))
  for _, entry in ipairs(p.entries) do
    if is_head(entry.name) and entry.scheme then head = schemes.describe(entry.scheme) end
  end
  if #kinds == 0 then return nil, "the policy quantizes nothing: there is no recipe for that", "einval" end
  local out = { "return {" }
  local function line(fmt, ...) out[#out + 1] = "  " .. fmt:format(...) .. "," end
  local function list(key, items, shown)
    if #items == 0 then return end
    out[#out + 1] = ("  %s = {"):format(key)
    for _, item in ipairs(items) do out[#out + 1] = "    " .. shown(item) .. "," end
    out[#out + 1] = "  },"
  end
  line("name = %s", quoted(o.name or p.name))
  local model = p.config and p.config.model_type
  if type(model) == "string" then line("model = { model_type = %s }", quoted(model)) end
  line("scheme = %s", quoted(schemes.describe(kinds[1].scheme)))
  if head then line("lm_head = %s", value(head)) end
  list("skip", patterns.globs(common.unquantized(without_heads(p.entries)), all), quoted)
  local own = {}
  for i = 2, #kinds do
    local scheme = schemes.describe(kinds[i].scheme)
    for _, glob in ipairs(patterns.globs(names_of(kinds[i].records), all)) do own[#own + 1] = { glob, scheme } end
  end
  list("rules", own, function(rule) return ("{ %s, scheme = %s }"):format(quoted(rule[1]), quoted(rule[2])) end)
  local format = o.format or p.format
  if format then line("output = { format = %s }", quoted(format)) end
  out[#out + 1] = "}\n"
  return prove(table.concat(out, "\n"), p)
end

return M

-- plan_rules: what a recipe decides for one module: skipped, kept, or quantized by which rule's scheme and method.
local words = require "nibble.text"
local recipes = require "nibble.recipe"
local scheme_m = require "nibble.scheme"

local M = {}

-- ---- patterns over modules ----------------------------------------------------

--- matchers(patterns) -> list: compiles patterns once and remembers which ones ever matched.
function M.matchers(patterns)
  local list = {}
  for i, p in ipairs(patterns) do list[i] = { text = p, test = assert(recipes.matcher(p)), hits = 0 } end
  return list
end

local function first_match(list, name, accept)
  for i, m in ipairs(list) do
    if m.test(name) then
      m.hits = m.hits + 1
      if not accept or accept(i) then return i, m end
    end
  end
end

-- ---- one module's decision ----------------------------------------------------

-- What a rule's `when` sees: the module's header facts at once, statistics of its
-- weight when they are asked for.
local function weight_view(ck, rec)
  local stats
  return setmetatable({ name = rec.name, n = rec.n, k = rec.k, dtype = rec.dtype, params = rec.params }, {
    __index = function(_, key)
      if not stats then
        local w = assert(ck:weight(rec.name))
        stats = w:stats()
        w:drop()
      end
      if stats[key] == nil then
        local known = {}
        for name in pairs(stats) do known[#known + 1] = name end
        table.sort(known)
        error(("when: a weight has no %q%s"):format(tostring(key), words.did_you_mean(key, known)), 0)
      end
      return stats[key]
    end,
  })
end

local scheme_fields = { "group", "symmetric", "strategy", "block", "scale_dtype", "actorder", "activations" }

-- What of the recipe's scheme keys still holds for a rule that names another scheme: the group, where that scheme
-- has groups of no size of its own.
local function inherited(recipe, scheme)
  local s = scheme and recipe.group and scheme_m.try(scheme)
  return s and s.type == "int" and s.strategy == "group" and { group = recipe.group } or {}
end

-- The scheme, method and kernels that hold for a module: the rule's keys over the
-- recipe's. A rule that names another scheme starts from it: of the recipe's scheme keys
-- only the group still holds.
local function settings_of(recipe, rule, head_scheme)
  local s = { scheme = recipe.scheme, method = recipe.method, options = recipe.options, kernels = recipe.kernels }
  local overrides = {}
  for _, f in ipairs(scheme_fields) do overrides[f] = recipe[f] end
  for _, layer in ipairs { rule or false, head_scheme and { scheme = head_scheme } or false } do
    if layer then
      if layer.scheme ~= nil then
        s.scheme = layer.scheme
        if layer.scheme ~= recipe.scheme then overrides = inherited(recipe, layer.scheme) end
      end
      for _, f in ipairs(scheme_fields) do
        if layer[f] ~= nil then overrides[f] = layer[f] end
      end
      if layer.method ~= nil then s.method, s.options = layer.method, layer.options end
      if layer.options ~= nil then s.options = layer.options end
      if layer.kernels ~= nil then s.kernels = layer.kernels end
    end
  end
  s.method = s.method or "rtn"
  s.overrides = overrides
  return s
end

-- settings_of once for a rule and head scheme, with the decision for all modules that they hold for.
local function settled(p, i, head_scheme, reason)
  local key = (i or 0) .. "|" .. (head_scheme or "")
  local s = p.settled[key]
  if s then return s end
  s = settings_of(p.recipe, i and p.recipe.rules[i], head_scheme)
  p.settled[key] = s
  if not s.scheme then return s end
  local scheme
  scheme, s.fault = scheme_m.try(s.scheme, s.overrides)
  s.decision = { action = "quantize", scheme = scheme, method = s.method, options = s.options, kernels = s.kernels,
                 reason = reason, rule = i }
  return s
end

local function is_head(rec) return rec.name == "lm_head" or rec.name:match "%.lm_head$" ~= nil end

-- Routers choose the experts; consumers hold them as plain weights and load no packed ones.
local function is_router(p, rec)
  for _, ending in ipairs(p.routers) do
    if rec.name:sub(-#ending - 1) == "." .. ending then return true end
  end
  return false
end

--- decide(plan, record) -> decision {action, scheme, method, options, reason, rule} | nil, msg
-- plan: {recipe, model, skips = and rules = matchers, routers, settled = {}}.
function M.decide(p, rec)
  local recipe, name = p.recipe, rec.name
  if rec.kind ~= "linear" then return { action = "copy", reason = rec.kind } end
  local head_scheme
  if is_head(rec) then
    if not recipe.lm_head then return { action = "keep", reason = "lm_head = false" } end
    head_scheme = type(recipe.lm_head) == "string" and recipe.lm_head or nil
  end
  local _, skip = first_match(p.skips, name)
  if skip then return { action = "keep", reason = ("skip %q"):format(skip.text) } end
  if is_router(p, rec) then return { action = "keep", reason = "router: consumers load it unquantized" } end
  local problem
  local i, hit = first_match(p.rules, name, function(i)
    local when = recipe.rules[i].when
    if not when then return true end
    local ok, answer = recipes.bounded(when, weight_view(p.model, rec))
    if not ok then problem = ("rule %d (%q) on %s: %s"):format(i, recipe.rules[i][1], name, tostring(answer)) end
    return ok and answer
  end)
  if problem then return nil, problem end
  local reason = hit and ("rule %d %q"):format(i, hit.text) or head_scheme and "lm_head" or "default"
  local s = settled(p, i, head_scheme, reason)
  if s.scheme == false then return { action = "keep", reason = reason, rule = i } end
  if s.scheme == nil then
    return nil, ("%s [%d×%d]: nothing in the recipe names this linear layer; add it to skip, write a rule for it, or set a default scheme")
      :format(name, rec.n, rec.k)
  end
  if s.fault then return nil, ("%s (%s): %s"):format(name, reason, s.fault) end
  return s.decision
end

return M

-- select: which quantization method each layer of a checkpoint gets at a consumer, on a device, and why: the config
-- class decides (nibble.methods.*_config), the oracle names the kernel (nibble.backends), a recipe may force either
-- (SYSTEMS AWQ-10 to AWQ-17, INC-05, CTM-SEL-01, C-05, C-21).
--
-- It knows no consumer: backends.selection says which classes one has.
local backends = require "nibble.backends"
local query = require "nibble.backends.query"
local device_of, copy = query.device, query.copy
local rules = require "nibble.backends.selection"
local choose = require "nibble.select.choose"
local layers = require "nibble.select.layers"
local kernels = require "nibble.select.kernels"
local scheme_m = require "nibble.scheme"
local formats = require "nibble.formats"
local text = require "nibble.text"
local nffi = require "nibble.ffi"
local decision = require("nibble.methods.config").decision

local M = {}

local methods = {}
local selection_mt = { __index = methods, __tostring = function(s)
  return ("%s at %s on %s%s: %d layers; explain(…) tells each, selection:of(name) one"):format(s.from.name, s.consumer, s.device,
    s.tp > 1 and (", %d ranks"):format(s.tp) or "", #s.layers)
end }

-- ---- what a decision is made from ------------------------------------------------------------

-- A checkpoint, a plan's output, or a bare quantization_config as one thing: {name, config, quantization, modules,
-- tensors = what is stored is known}.
local function source_of(from)
  if from.jobs then -- a plan: what it will write
    local records = {}
    for i, job in ipairs(from.jobs) do records[i] = job.out end
    local headers = {}
    for i, rec in ipairs(records) do
      headers[i] = { name = rec.name .. ".weight", dtype = rec.scheme and "i32" or rec.dtype }
    end
    return { name = from.model.name, config = from.model.config, modules = records, headers = headers, stored = true,
      quantization = from.quantization_config and { config = from.quantization_config, source = "the plan's output" } }
  end
  if type(from.modules) == "function" then -- a checkpoint
    local list, msg, code = from:modules()
    if not list then return nil, msg, code end
    return { name = from.name, config = from.config, modules = list, headers = from.tensors, stored = true,
      quantization = from.quantization }
  end
  if from.modules then
    return { name = from.name, config = from.config, modules = from.modules, headers = from.headers, stored = from.stored,
      quantization = from.quantization }
  end
  return { name = "the config", modules = {}, headers = {}, quantization = { config = from, source = "the config" } }
end

local stages = { "skip", "plain", "generic", "marlin" }

-- A recipe, or one by name or path | nil, msg, code
local function loaded(recipe)
  if type(recipe) == "table" and recipe.name then return recipe end
  return require("nibble.recipe").load(recipe)
end

-- The recipe's kernels for each module: by rule, else the recipe's own.
local function recipe_kernels(recipe)
  local recipes = require "nibble.recipe"
  local tests = {}
  for i, rule in ipairs(recipe.rules or {}) do tests[i] = assert(recipes.matcher(rule[1])) end
  return function(name)
    for i, rule in ipairs(recipe.rules or {}) do
      if rule.kernels and tests[i](name) then return rule.kernels, ("rule %d %q"):format(i, rule[1]) end
    end
    return recipe.kernels, "the recipe"
  end
end

-- {pattern or function, stage} pairs, the first that matches a module or its layer.
local function forced_stages(list)
  local recipes = require "nibble.recipe"
  local tests = {}
  for i, pair in ipairs(list) do
    tests[i] = type(pair[1]) == "function" and pair[1] or assert(recipes.matcher(pair[1]))
  end
  return function(name, layer)
    for i, pair in ipairs(list) do
      if tests[i](name) or tests[i](layer.name) then
        return { stage = pair[2] }, type(pair[1]) == "string" and ("%q"):format(pair[1]) or "the user"
      end
    end
  end
end

local function contains(list, x)
  for _, v in ipairs(list) do if v == x then return true end end
  return false
end

-- A copy of the caller's target, looked over | nil, msg
local function known_target(target)
  local t, modes = {}, { "substring", "exact", "suffix" }
  for k, v in pairs(target or {}) do t[k] = v end
  local keys = { "consumer", "device", "tp", "ep", "choice", "method", "backend", "recipe", "force", "kernels_of",
    "skip_mode", "policy", "packages", "disabled", "dtype", "input", "mapper", "warn", "format" }
  for key in pairs(t) do
    if not contains(keys, key) then
      return nil, ("unknown option %s%s"):format(tostring(key), text.did_you_mean(tostring(key), keys))
    end
  end
  if t.tp ~= nil and (type(t.tp) ~= "number" or t.tp < 1 or t.tp % 1 ~= 0) then
    return nil, ("tp = %s: expected a whole number of at least 1"):format(tostring(t.tp))
  end
  if t.policy ~= nil and t.policy ~= "raise" and t.policy ~= "fallback" then
    return nil, ('policy = "%s": expected raise or fallback'):format(tostring(t.policy))
  end
  if t.skip_mode ~= nil and not contains(modes, t.skip_mode) then
    return nil, ("skip mode %q%s"):format(tostring(t.skip_mode), text.did_you_mean(tostring(t.skip_mode), modes))
  end
  for _, pair in ipairs(t.force or {}) do
    if not contains(stages, pair[2]) then
      return nil, ("stage %q%s"):format(tostring(pair[2]), text.did_you_mean(tostring(pair[2]), stages))
    end
  end
  return t
end
require("nibble.ffi").interpreted(known_target)

local devices = { "sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "cuda", "cpu", "xpu", "rocm" }

--- select.new(source, target) -> selection | nil, msg, code
-- source: a checkpoint, a plan (its output), or a quantization_config. target: {consumer = "vllm-0.33", device =
-- "sm_80", tp = 1, ep = 1, method = the user's choice of a quantization method, backend = a kernel by name, recipe =
-- (its kernels count), force = {{pattern, "skip" | "plain" | "generic" | "marlin"}, …}, skip_mode = "substring" |
-- "exact" | "suffix", policy = "fallback" | "raise" (C-05), packages =, disabled =, dtype =, input =, mapper = (AWQ-07),
-- warn = function(text)}.
-- The selection: {consumer, device, tp, method, source = which config was used (C-21), said, layers, …}.
function M.new(from, target)
  local t, why = known_target(target)
  if not t then return nil, why, "einval" end
  local consumer, msg, code = backends.consumer(t.consumer or rules.first)
  if not consumer then return nil, msg, code end
  local device
  device, msg, code = device_of(t.device or "sm_80")
  if not device then
    local known = tostring(t.device):match "^cuda"
    return nil, msg .. (known and "" or text.hint(tostring(t.device), devices)), code
  end
  local given = t.packages
  if device.packages then t.packages = copy(device.packages) end
  for name, value in pairs(device.packages and given or {}) do t.packages[name] = value end
  local rule = rules[consumer.name] or rules.default
  if rule.platform and rule.platform ~= device.platform then
    return nil, ("%s is on %s only, and the device is %s"):format(consumer.name, rule.platform, device.text), "einval"
  end
  local source
  source, msg, code = source_of(from)
  if not source then return nil, msg, code end
  local s = setmetatable({ consumer = consumer.name, device = device.text, platform = device.platform,
    capability = device.capability, tp = t.tp or 1, target = t, rule = rule, from = source, warnings = {},
    decisions = {}, source = source.quantization and source.quantization.source, asked = {} }, selection_mt)
  s.choice = t.method or t.choice
  if t.recipe then
    t.recipe, msg, code = loaded(t.recipe)
    if not t.recipe then return nil, msg, code end
  end
  s.skip_mode = t.skip_mode or t.recipe and t.recipe.kernels and t.recipe.kernels.skip_mode
  local ok
  ok, msg, code = choose.class(s)
  if not ok then return nil, msg, code end
  s.layers, s.by_member, s.fused = layers.of(source.modules, { fuses = rule.fuses, experts = rule.experts, config = source.config })
  s.kernels_of = t.kernels_of or t.force and forced_stages(t.force) or t.recipe and recipe_kernels(t.recipe)
    or function() end
  return s
end

-- ---- one layer -----------------------------------------------------------------------------------

-- What the recipe says of a layer: every module of it must be told the same.
local function wishes_of(s, layer)
  local wishes, by = nil, nil
  for i, rec in ipairs(layer.members) do
    local k, who = s.kernels_of(rec.name, layer)
    if i > 1 and (k and k.stage) ~= (wishes and wishes.stage) then
      return nil, nil, ("%s: the stage %s is forced for %s and %s for %s, but they are one layer"):format(layer.name,
        tostring(wishes and wishes.stage), layer.members[1].name, tostring(k and k.stage), rec.name)
    end
    wishes, by = wishes or k, by or who
  end
  if #layer.members == 0 then wishes, by = s.kernels_of(layer.name, layer) end
  return wishes or {}, by
end

-- A forced stage: the method that it stands for. (AWQ-17)
local function forced(s, layer, stage, by)
  local moe = layer.kind == "moe"
  if stage == "skip" then return decision("skip", "unquantized", "AWQ-17", "%s forces skip", by) end
  local name = s.config.stages[stage]
  local fits = stage == "marlin" or (stage == "generic") == moe
  if stage == "marlin" and not name then
    local d = s.config:method(layer, s:options())
    name = d and d.action ~= "skip" and d.method or nil
  end
  if not fits or not name then
    return decision("refuse", nil, "AWQ-17", "%s forces %s, but %s, %s, has no such stage", by, stage, layer.name,
      moe and "a mixture of experts" or "a linear layer")
  end
  local d = decision("override", name, "AWQ-17", "%s forces %s", by, stage)
  d.stage, d.wanted = stage, stage == "marlin" and "marlin" or nil
  return d
end

-- What a layer's class says, with the tensors' word against it.
local function by_config(s, layer)
  if s.class == "scheme" then return choose.by_scheme(s, layer) end
  local d, msg = s.config:method(layer, s:options())
  if not d and msg then return decision("refuse", nil, s.disagreement, "%s", msg) end
  if not d then
    return decision("skip", "unquantized", "AWQ-10", layer.kind == "lm_head"
      and "an LM head, and the config does not say that it is quantized" or "the method takes no such layers")
  end
  return d
end

-- The config against what is stored.
local function check_stored(s, layer, d)
  if not s.from.stored or d.action == "refuse" then return d end
  local packed, plain
  for _, rec in ipairs(layer.members) do
    if rec.scheme or rec.unreadable then packed = packed or rec else plain = plain or rec end
  end
  if d.method == "unquantized" and packed then
    return decision("refuse", nil, d.requirement, "%s: %s, but %s is stored packed (%s)", layer.name, d.reason,
      packed.name, packed.scheme and scheme_m.describe(packed.scheme) or packed.format)
  end
  if d.method ~= "unquantized" and plain then
    return decision("refuse", nil, d.requirement, "%s: the config quantizes it (%s), but %s is stored as %s; add it "
      .. "to the config's skip list", layer.name, d.reason, plain.name, tostring(plain.dtype))
  end
  for i = 2, #layer.members do
    local a, b = layer.members[1], layer.members[i]
    if a.scheme and b.scheme and a.scheme ~= b.scheme and not scheme_m.same(a.scheme, b.scheme) then
      return decision("refuse", nil, s.disagreement or "AWQ-12",
        "%s: %s is %s and %s is %s, but they are one layer and must share one scheme", layer.name, a.name,
        scheme_m.describe(a.scheme), b.name, scheme_m.describe(b.scheme))
    end
  end
  return d
end

--- selection:options() -> what the config classes are told.
function methods.options(s)
  return { fused = s.fused, mode = s.skip_mode, platform = s.platform, capability = s.capability,
    policy = s.target.policy or s.rule.policy, actorder = s.actorder,
    backend = s.class == "inc" and s.target.backend or nil, packages = s.target.packages }
end

local takes = { linear = true, lm_head = true, moe = true }

local function decide(s, layer)
  if layer.kind == "router" then
    return check_stored(s, layer, decision("skip", "unquantized", "AWQ-10", "a router: consumers load it unquantized"))
  end
  if not takes[layer.kind] then
    return decision("skip", "unquantized", "AWQ-10", "%s: methods take linear layers, LM heads and experts", layer.kind)
  end
  if not s.class then return decision("skip", "unquantized", "C-21", "%s has no quantization config", s.from.name) end
  if s.refused then return decision("refuse", nil, s.refused_by, "%s", s.refused) end
  local ok, msg = layers.shard(layer, s.tp, s.from.config)
  if not ok then return decision("refuse", nil, "MRL-05", "%s", msg) end
  local wishes, by, conflict = wishes_of(s, layer)
  if conflict then return decision("refuse", nil, "AWQ-17", "%s", conflict) end
  local d
  if wishes.stage and s.config then d = forced(s, layer, wishes.stage, by)
  else d = check_stored(s, layer, by_config(s, layer)) end
  if d.action == "refuse" or d.method == "unquantized" then return d end
  return kernels.choose(s, layer, d, wishes, by)
end

--- selection:decide(layer) -> {action = "method" | "fallback" | "override" | "skip" | "refuse", method, reason,
-- requirement, backend, class, rejected, change, note, warning, layer} (AWQ-17)
-- Made once a layer and kept; a warning is told once a layer, to target.warn and in selection.warnings.
function methods.decide(s, layer)
  local d = s.decisions[layer]
  if d then return d end
  d = decide(s, layer)
  d.layer, d.name, d.rejected = layer, layer.name, d.rejected or {}
  s.decisions[layer] = d
  if d.warning then
    s.warnings[#s.warnings + 1] = d.warning
    if s.target.warn then s.target.warn(d.warning) end
  end
  return d
end

--- selection:at(tp) -> a selection of the same layers on tp tensor-parallel ranks; config and layers are shared.
function methods.at(s, tp)
  local out = {}
  for key, value in pairs(s) do out[key] = value end
  out.tp, out.decisions, out.asked, out.warnings = tp, {}, {}, {}
  return setmetatable(out, selection_mt)
end
require("nibble.ffi").interpreted(methods.at)

--- selection:all() -> array of decisions, one for each layer of the consumer.
function methods.all(s)
  local out = {}
  for i, layer in ipairs(s.layers) do
    nffi.stop_check()
    out[i] = s:decide(layer)
  end
  return out
end

--- selection:of(name) -> decision of the layer that a module belongs to | nil, msg, code
function methods.of(s, name)
  local layer = s.by_member[name] or s.by_member[(name:gsub("%.weight$", ""))]
  if layer then return s:decide(layer) end
  local names, short = {}, not name:find(".", 1, true)
  local function add(n) names[#names + 1] = short and text.leaf(n) or n end
  for _, l in ipairs(s.layers) do
    add(l.name)
    for _, rec in ipairs(l.members) do add(rec.name) end
  end
  return nil, ("%s has no module %q%s"):format(s.from.name, name, text.hint(name, names)), "einval"
end

--- selection:grep(pattern) -> array of decisions whose layer or one of whose modules matches | nil, msg, code
-- pattern: a whole name, a glob, "re:" and a regular expression, or a part of a name, as `inspect` takes it.
function methods.grep(s, pattern)
  if s.by_member[pattern] then return { s:decide(s.by_member[pattern]) } end
  local matches, msg, code = formats.matcher(pattern)
  if not matches then return nil, msg, code end
  local out = {}
  for _, layer in ipairs(s.layers) do
    nffi.stop_check()
    local hit = matches(layer.name)
    for _, rec in ipairs(layer.members) do hit = hit or matches(rec.name) end
    if hit then out[#out + 1] = s:decide(layer) end
  end
  if #out == 0 then return s:of(pattern) end
  return out
end

--- select.decide(source, module, target) -> decision | nil, msg, code
-- source: a checkpoint, and module a name or {name =}; or a quantization_config, and module = {name, kind = "linear" |
-- "lm_head" | "moe", n, k [, n_full, k_full] | hidden, intermediate, experts, top}.
function M.decide(from, module, target)
  local s, msg, code = M.new(from, target)
  if not s then return nil, msg, code end
  if s.from.stored then return s:of(type(module) == "string" and module or module.name) end
  local layer = { members = {} }
  for k, v in pairs(module) do layer[k] = v end
  layer.kind = layer.kind or "linear"
  layer.n_full, layer.k_full = layer.n_full or layer.n, layer.k_full or layer.k
  layer.intermediate_full = layer.intermediate_full or layer.intermediate
  layer.outputs = { layer.n_full }
  return s:decide(layer)
end

local function of_quantized(q, options)
  local weight = {}
  for k, v in pairs(q.scheme) do weight[k] = v end
  local o = options or {}
  local result, msg, code, rejected = backends.select {
    consumer = o.consumer or rules.first, device = o.device or "sm_80", kind = "linear", weight = weight,
    activation = q.scheme.activations, n_full = q.n, k_full = q.k, tp = o.tp, parallel = o.parallel,
    backend = o.backend, packages = o.packages, dtype = o.dtype,
  }
  return setmetatable({ result = result, reason = msg, code = code, rejected = result and result.rejected or rejected,
    backend = result and result.backend, change = result and result.change }, { __tostring = function()
    return table.concat(backends.text(result, msg, code, rejected), "\n")
  end })
end

--- explain(what [, target | name, target]) -> what gets which method and kernel: text in a session, fields in a script
-- what: a quantized weight (its kernel), a module of a checkpoint (model["…"]), a checkpoint or a plan (all layers),
-- or a checkpoint and a name or pattern. target as select.new's: explain(q, {device = "sm_80"}).
function M.explain(what, a, b)
  if type(what) ~= "table" then
    error("explain expects a quantized weight, a module, a checkpoint or a plan, found " .. type(what), 2)
  end
  if what.codes and what.scheme then return of_quantized(what, a) end
  local pattern, target = nil, a
  if type(a) == "string" then pattern, target = a, b end
  local from = what
  if what.checkpoint and what.name then from, pattern = what.checkpoint, what.name end
  local s, msg, code = M.new(from, target)
  if not s then return nil, msg, code end
  local list
  if pattern then list, msg, code = s:grep(pattern) else list = s:all() end
  if not list then return nil, msg, code end
  return require("nibble.select.text").new(s, list, pattern)
end

return M

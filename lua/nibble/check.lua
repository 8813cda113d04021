-- check: a lint of checkpoints: what their consumers would refuse, load wrongly or load slowly, before they are tried.
--
-- Rules live in check/<topic>.lua; each file returns an array of {id =, about =, consumer = true where it is asked for
-- each consumer, run = function(context, add) … end}. What consumers accept is data in nibble.backends.checks.
local alike = require "nibble.check.alike"
local backends = require "nibble.backends"
local checkpoint = require "nibble.checkpoint"
local facts = require "nibble.backends.checks"
local formats = require "nibble.formats"
local models = require "nibble.models"
local layers = require "nibble.select.layers"
local nffi = require "nibble.ffi"
local selection = require "nibble.backends.selection"
local text = require "nibble.text"

local M = {}

-- In this order: what an earlier rule explains, a later one doesn't tell again. The last reads the tensors' bytes.
local topics = { "index", "config", "shapes", "fused", "ignore", "coverage", "actorder", "ranks", "values" }

-- ---- the rules ------------------------------------------------------------------------

local function rules_of(topic) return require("nibble.check." .. topic) end

--- check.rules() -> array of {topic, id, about, consumer = bool}: all there are, in the order in which they run.
function M.rules()
  local out = {}
  for _, topic in ipairs(topics) do
    for _, rule in ipairs(rules_of(topic)) do
      out[#out + 1] = { topic = topic, id = rule.id, about = rule.about, consumer = rule.consumer or false }
    end
  end
  return out
end

-- Those with rules of their own, which "all" means, the default first.
local function with_rules()
  local out = {}
  for i, c in ipairs(facts) do out[i] = c.name end
  return out
end

--- check.consumers() -> names of the consumers that may be asked: those with rules of their own, the default first, then
-- those that have tables of kernels alone.
function M.consumers()
  local out, seen = with_rules(), {}
  for _, name in ipairs(out) do seen[name] = true end
  for _, name in ipairs(backends.consumers()) do
    if not seen[name] then out[#out + 1] = name end
  end
  return out
end

-- ---- running ----------------------------------------------------------------------------

local function known_consumers(asked)
  if asked == nil then asked = facts[1].name end
  if asked == "all" then asked = with_rules() end
  if type(asked) == "string" then
    local list = {}
    for name in asked:gmatch "[^,%s]+" do list[#list + 1] = name end
    asked = list
  end
  if #asked == 0 then return nil, "consumer: expected at least one name" end
  local out = {}
  for i, name in ipairs(asked) do
    for _, c in ipairs(facts) do
      if c.name == name then out[i] = c end
    end
    if not out[i] and backends.consumer(name) then out[i] = { name = name, oracle = name } end
    if not out[i] then return nil, ("unknown consumer %q%s"):format(name, text.did_you_mean(name, M.consumers())) end
  end
  return out
end

local function known_options(options)
  local o, msg = text.options(options, { "consumer", "device", "tp", "values", "progress" })
  if not o then return nil, msg end
  o.consumers, msg = known_consumers(o.consumer)
  if not o.consumers then return nil, msg end
  o.device = o.device or "sm_80"
  local device, why = require("nibble.backends.query").device(o.device)
  if not device then return nil, why end
  for _, c in ipairs(o.consumers) do
    local rule = c.oracle and selection[c.oracle]
    if rule and rule.platform and rule.platform ~= device.platform then
      return nil, ("%s is on %s only, and the device is %s"):format(c.name, rule.platform, device.text)
    end
  end
  o.asked_tp = o.tp ~= nil
  if type(o.tp) == "number" then o.tp = { o.tp } end
  o.tp = o.tp or { 1, 2, 4, 8 }
  for _, tp in ipairs(o.tp) do
    if type(tp) ~= "number" or tp < 1 or tp > 1024 or tp % 1 ~= 0 then
      return nil, ("tp = %s: expected whole numbers from 1 to 1024"):format(tostring(tp))
    end
  end
  return o
end

nffi.interpreted(known_options)

-- A checkpoint as rules see it: with the fields that surveys have, which would be modules' names to a checkpoint.
local function view(ck)
  return setmetatable({ warnings = ck.warnings or {}, findings = false, parts = false, config_unknown = false }, { __index = ck })
end

-- An open checkpoint, or where opening refuses, a survey of what is there.
local function opened(from)
  if type(from) ~= "string" then return view(from) end
  local ck, msg, code = checkpoint.open(from)
  if ck then return view(ck) end
  if code == "enomem" or code == "eintr" then return nil, msg, code end
  local s, why, what = require("nibble.check.survey").open(from)
  if not s then return nil, why, what end
  if #s.findings == 0 then
    s.findings[1] = { rule = "damaged-file", says = msg, fix = "get the file again" }
  end
  return s
end

-- A table whose absent fields are the base's, also below `explained`.
local function per_consumer(base, c)
  local context = setmetatable({ facts = c, consumer = c.name }, { __index = base })
  context.explained = setmetatable({}, { __index = base.explained })
  return context
end

-- What all rules see. explained: names of modules and layers that a finding is about already.
local function context_of(ck, o)
  local context = { ck = ck, config = ck.config, quantization = ck.quantization, device = o.device, tp = o.tp,
    asked_tp = o.asked_tp, values = o.values ~= false, progress = o.progress or nffi.progress, explained = {}, by_name = {} }
  context.modules, context.faults = formats.survey(ck)
  for _, rec in ipairs(context.modules) do context.by_name[rec.name] = rec end
  context.fused, context.routers = layers.structure(ck.config)
  context.arch = ck.config and models.of(ck.config) or nil
  return context
end

local result_mt = {}

local function adder(list, rule, context)
  return function(f)
    f.rule = f.rule or rule.id
    f.severity = f.severity or "error"
    f.source = f.source or (rule.consumer and context.consumer) or nil
    if not alike.severities[f.severity] or type(f.says) ~= "string" then
      error(("rule %s: a finding needs a severity and a sentence"):format(rule.id), 2)
    end
    list[#list + 1] = f
  end
end

-- The context with those modules only whose tensors can be read: of damaged files nothing is mapped.
local function readable(context)
  local parts, modules = context.ck.parts, {}
  for _, rec in ipairs(context.modules) do
    local fine = true
    for _, info in pairs(rec.tensors) do fine = fine and parts[info.file] ~= nil end
    if fine then modules[#modules + 1] = rec end
  end
  return setmetatable({ modules = modules }, { __index = context })
end
nffi.interpreted(readable)

-- Runs f while the collector rests: what a look at headers makes nearly all stays, and is looked at again and again.
local function unhurried(f)
  collectgarbage "stop"
  local ok, why = pcall(f)
  collectgarbage "restart"
  if not ok then error(why, 0) end
end

local function run_rules(first, last, context, contexts, list)
  for i = first, last do
    local topic = topics[i]
    local alone = { topic == "values" and context.ck.parts and readable(context) or context }
    for _, rule in ipairs(rules_of(topic)) do
      for _, c in ipairs(rule.consumer and contexts or alone) do
        nffi.stop_check()
        rule.run(c, adder(list, rule, c))
      end
    end
  end
end

--- check.run(checkpoint | path, options) -> result | nil, msg, code
-- options: consumer ("vllm-0.33" unless named; a name, several with commas or in an array, or "all"), device ("sm_80"),
-- tp ({1, 2, 4, 8}: tensor-parallel sizes), values (true: tensors' bytes are read too; false: headers only), progress:
-- what repl.progress gives. A path may be of a checkpoint that opening refuses: then all that is wrong is told at once.
-- result: {findings, counts = {error, warning, note}, name, consumers, device, tp}; tostring is a text for a person,
-- :totable() plain data. A finding: {rule, severity, module | modules, count, tensor, file, says, source, fix, repair}.
function M.run(from, options)
  local o, msg = known_options(options)
  if not o then return nil, msg, "einval" end
  local ck, why, code = opened(from)
  if not ck then return nil, why, code end
  local context, contexts, names, list = nil, {}, {}, {}
  unhurried(function()
    context = context_of(ck, o)
    for i, c in ipairs(o.consumers) do contexts[i], names[i] = per_consumer(context, c), c.name end
    run_rules(1, #topics - 1, context, contexts, list)
  end)
  run_rules(#topics, #topics, context, contexts, list)
  local findings = alike.sorted(alike.collapse(list))
  local counts = { error = 0, warning = 0, note = 0 }
  for _, f in ipairs(findings) do counts[f.severity] = counts[f.severity] + 1 end
  return setmetatable({ findings = findings, counts = counts, name = ck.name or ck.path, consumers = names, device = o.device,
    tp = o.tp, modules = #context.modules, tensors = #ck.tensors, values = context.values }, result_mt)
end

-- ---- showing ------------------------------------------------------------------------------

result_mt.__index = {}

--- result:totable() -> the same as plain data.
function result_mt.__index.totable(r)
  local json = require "nibble.json"
  local findings = {}
  for i, f in ipairs(r.findings) do
    local copy = {}
    for k, v in pairs(f) do copy[k] = v end
    copy.modules, copy.tensors = f.modules and json.array(f.modules), f.tensors and json.array(f.tensors)
    findings[i] = copy
  end
  return { name = r.name, consumers = json.array(r.consumers), device = r.device, tp = json.array(r.tp), values = r.values,
    counts = r.counts, findings = json.array(findings) }
end

nffi.interpreted(result_mt.__index.totable)

function result_mt.__tostring(r) return require("nibble.check.text").of(r) end

return setmetatable(M, { __call = function(_, ...) return M.run(...) end })

-- backends: the oracle. Which kernel a consumer would run a quantized layer with, on which device, why
-- not the others, and the smallest change that would let a better one in (SYSTEMS ORC-01 to ORC-13,
-- AWQ-20, AWQ-21, CTM-NVFP4-10, CTM-FP8-12, INC-18).
--
-- The engine knows no consumer: it evaluates tables (one data file per consumer and version beside
-- this file, their form in backends.table), made of the checks in backends.predicates.
local changes = require "nibble.backends.changes"
local decide = require "nibble.backends.decide"
local description = require "nibble.backends.description"
local query = require "nibble.backends.query"
local rules = require "nibble.backends.table"
local text = require "nibble.text"

local M = {}

--- backends.consumers() -> names of all consumers that have tables.
M.consumers = decide.consumers

--- backends.add(data): one more consumer, its data as backends.table tells; replaces one added before under that name.
M.add = decide.add

--- backends.consumer(name) -> {name, about, packages, tables} | nil, msg, code: its tables, made ready. Not to be
-- changed.
M.consumer = decide.consumer

--- backends.unsupported(label, backend [, reason]) -> the message about a backend that does not take a query. (ORC-07)
M.unsupported = decide.unsupported

-- ---- logging (ORC-05) ---------------------------------------------------------------

local said = setmetatable({}, { __mode = "k" })

-- Calls sink(level, message) once for each message.
local function logger(sink)
  if not sink then return function() end end
  said[sink] = said[sink] or {}
  local seen = said[sink]
  return function(level, message)
    if seen[message] then return end
    seen[message] = true
    sink(level, message)
  end
end

-- ---- selecting ------------------------------------------------------------------------

local function log_all(t, q, refused, b, class, say)
  for _, r in ipairs(refused) do say("debug", M.unsupported(t.name, r.backend, r.reason)) end
  if not b then return end
  local tail = t.say_scheme and (" (group size %d, %d bits)"):format(q.weight.group, q.weight.bits) or ""
  if class.note then say("debug", ("%s: %s"):format(b.name, class.note)) end
  say("info", ("using the %s backend %s%s%s"):format(t.name, b.name, class.name and " (" .. class.name .. ")" or "",
    tail))
end

-- What runs where no backend does: the table's fallback, or nothing where that is no error. (C-05, CTM-FP8-12)
local function otherwise(t, q, consumer, refused, say)
  if q.backend and q.backend ~= "auto" then return nil end
  for _, r in ipairs(refused) do
    if r.final then return nil end
  end
  local out = { consumer = consumer.name, table = t.name, rejected = refused, device = q.device,
    of = #rules.order(t, q) }
  if t.fallback and not q.strict then
    out.backend, out.fallback = t.fallback.name, true
    out.warning = ("%s%s: %s"):format(t.fallback.warning, q.name and " for layer " .. q.name or "",
      decide.reasons_text(refused))
    out.requirement = t.fallback.requirement
    say("warning", out.warning)
    return out
  end
  for _, platform in ipairs(t.none_on or {}) do
    if platform == q.platform then
      out.backend, out.none = "NONE", true
      return out
    end
  end
end

-- For the search of changes: what a query would give: backend's name, its position | nil; nothing is logged.
local function outcome(raw)
  local q, t = decide.prepare(raw)
  if not q then return nil end
  local class, b, _, at = decide.decide(t, q)
  if class then return b.name, at end
end

--- backends.select(query [, options]) -> result | nil, msg, code, rejected
-- query: consumer; kind = "linear" | "moe"; device = "sm_80" | "cpu" | "xpu" | "rocm" | "gfx1100"; name = the layer's
--   weight = a scheme (type, bits, symmetric or zero_points, strategy, group, block, actorder) with its format, or
--   type = a kernel's type ("uint4b8"); activation = a scheme's activations; input = "int8" | "fp8" where the
--   deployment quantizes activations of its own; dtype (bf16)
--   k, n (of this rank), k_full, n_full, parallel = "row" | "column"; or hidden, intermediate, intermediate_full,
--   experts, top; tp, ep: what is missing follows from the rest
--   activation_fn (silu), gated, clamp, bias, lora, batch_invariant, router_weight_on_input, tile_padding
--   format = "standard" | "batched"; all2all, eplb; routing = {method (renormalize), logits (bf16), hash, changed}
--   packages = {name = bool}; disabled = {names}; backend = one asked for by name, which is checked alone;
--   strict = true: no fallback
-- result: {backend, class, variant, table, consumer, position, of, format, monolithic, note, requirement, rejected =
--   {{backend, class, variant, reason, requirement}, …} by priority, quant = description, also = {others that would},
--   change = "pad N from 11008 to 11264" | nil, better = {backend, query}, fallback, warning, none, activation_kind}
-- options: log(level, message), called once for each message (ORC-05); change = false: no search for one.
-- (ORC-01 to ORC-13, AWQ-20, AWQ-21, CTM-NVFP4-10, CTM-NVFP4-11, CTM-FP8-12, CTM-FP8-13)
function M.select(raw, options)
  local o = options or {}
  local q, t, consumer = decide.prepare(raw)
  if not q then return nil, t, consumer, {} end
  local say = logger(o.log)
  local class, b, third, fourth = decide.decide(t, q)
  local refused = class and third or fourth
  log_all(t, q, refused, class and b, class, say)
  local result, msg, code
  if class then
    result = { backend = b.name, class = class.class, variant = class.name, monolithic = class.monolithic,
               table = t.name, consumer = consumer.name, device = q.device, format = q.format,
               requirement = b.requirement, note = class.note, rejected = refused,
               position = fourth, of = #rules.order(t, q), quant = description.new(t, b, q) }
    if b.row.kinds then result.activation_kind = b.row.kinds[q.activation_fn] end
    result.also = {}
    for i, name in ipairs(rules.order(t, q)) do
      local would = i > fourth and not q.backend and decide.ask(t, t.by_name[name], q, {})
      if would then result.also[#result.also + 1] = name end
    end
  else
    msg, code = b, third
    result = otherwise(t, q, consumer, refused, say)
  end
  if o.change ~= false and not (result and result.position == 1) then
    local order = rules.order(t, q)
    local better = changes.find(raw, q, { order = order, position = class and fourth, packages = changes.packages(t) },
      outcome)
    if result and better then
      result.change, result.better = better.change, { backend = better.backend, query = better.query }
    elseif better then
      msg = ("%s; it would work with: %s"):format(msg, better.change)
      refused.change, refused.better = better.change, { backend = better.backend, query = better.query }
    end
  end
  if not result then return nil, msg, code, refused end
  return result
end

-- ---- looking at the tables ---------------------------------------------------------------

--- backends.reasons(query) -> {{backend, class, variant, ok, reason, requirement}, …} | nil, msg, code
-- Every class of every backend in the query's order of priority, also below the one that would be chosen.
function M.reasons(raw)
  local q, t, code = decide.prepare(raw)
  if not q then return nil, t, code end
  local out = {}
  for _, name in ipairs(rules.order(t, q)) do
    local refused, b = {}, t.by_name[name]
    local class = decide.ask(t, b, q, refused)
    for _, r in ipairs(refused) do
      r.ok = false
      out[#out + 1] = r
    end
    if class then
      out[#out + 1] = { backend = name, class = class.class, variant = class.name, ok = true,
        requirement = b.requirement }
    end
  end
  return out
end

-- A table by its name | nil, msg, code
local function table_named(consumer, name)
  local names = {}
  for i, t in ipairs(consumer.tables) do
    if t.name == name then return t end
    names[i] = t.name
  end
  return nil, ("%s has no table %s%s; its tables: %s"):format(consumer.name, tostring(name), text.hint(name, names),
    table.concat(names, ", ")), "einval"
end

--- backends.rows(consumer) -> {{table, kind, backend, class, variant, monolithic, formats, priority, auto, checks =
-- words, requirement}, …} | nil, msg, code: the consumer's tables as they are.
function M.rows(name)
  local consumer, msg, code = M.consumer(name)
  if not consumer then return nil, msg, code end
  local out = {}
  for _, t in ipairs(consumer.tables) do
    local place = {}
    for i, b in ipairs(t.order or {}) do place[b] = i end
    for i, b in ipairs(t.backends) do
      for _, class in ipairs(b.classes) do
        out[#out + 1] = { table = t.name, kind = t.kind, backend = b.name, class = class.class, variant = class.name,
                          monolithic = class.monolithic, formats = class.format or "standard",
                          priority = t.order and place[b.name] or (not t.order and i) or nil,
                          checks = rules.words(class.checks), requirement = b.requirement }
      end
    end
  end
  return out
end

--- backends.priority{consumer, table, device, …} -> names in order | nil, msg, code
-- The other fields of a query (weight, activation, ep …) are needed only where the order depends on them. (ORC-02)
function M.priority(o)
  local consumer, msg, code = M.consumer(o.consumer)
  if not consumer then return nil, msg, code end
  local t
  t, msg, code = table_named(consumer, o.table)
  if not t then return nil, msg, code end
  local device
  device, msg, code = query.device(o.device)
  if not device then return nil, msg, code end
  if not o.weight then
    return rules.order(t, { platform = device.platform, capability = device.capability, chip = device.chip,
                            ep = o.ep or 1, weight = {}, activation_key = "none", packages = {} })
  end
  local raw = query.copy(o)
  raw.kind = t.kind
  local q
  q, t, code = decide.prepare(raw)
  if not q then return nil, t, code end
  return rules.order(t, q)
end

--- backends.explicit(consumer, table, word) -> the backend that the word stands for | nil, msg, code; the message lists
-- the accepted words. (ORC-11)
function M.explicit(name, table_name, word)
  local consumer, msg, code = M.consumer(name)
  if not consumer then return nil, msg, code end
  local t
  t, msg, code = table_named(consumer, table_name)
  if not t then return nil, msg, code end
  return decide.explicit_name(t, word)
end

--- backends.classes(consumer, table, backend) -> names of its kernels' classes; an unknown backend is an error that
-- names it. (ORC-08)
function M.classes(name, table_name, backend)
  local consumer = assert(M.consumer(name))
  local t = assert(table_named(consumer, table_name))
  local b = t.by_name[backend]
  if not b then
    local names = {}
    for i, other in ipairs(t.backends) do names[i] = other.name end
    error(("unknown %s backend %s; known: %s"):format(t.name, tostring(backend), table.concat(names, ", ")), 2)
  end
  local out = {}
  for i, class in ipairs(b.classes) do out[i] = class.class or class.name or b.name end
  return out
end

--- backends.text(result | nil, msg, code, rejected) -> lines for a person: the backend chosen, every rejected one with
-- its reason by priority, and the change that would let a better one in. Takes what backends.select gives.
function M.text(...) return require "nibble.backends.explain".lines(...) end

return M

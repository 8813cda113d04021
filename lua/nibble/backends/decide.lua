-- backends.decide: one query against one consumer's table: which class of which backend takes it, and
-- why the ones before it do not. Knows no consumer; nothing is logged, described or suggested here.
local consumers = require "nibble.backends.consumers"
local query = require "nibble.backends.query"
local rules = require "nibble.backends.table"
local text = require "nibble.text"

local M = {}

-- ---- consumers ------------------------------------------------------------------

local ready, added = {}, {}

--- decide.consumers() -> names of all consumers that have tables.
function M.consumers()
  local out = {}
  for i, c in ipairs(consumers) do out[i] = c.name end
  for _, name in ipairs(added) do out[#out + 1] = name end
  return out
end

--- decide.add(data): one more consumer, its data as backends.table tells; replaces one added before under that name.
function M.add(data)
  local made, known = rules.ready(data), false
  for _, name in ipairs(M.consumers()) do known = known or name == data.name end
  if not known then added[#added + 1] = data.name end
  ready[data.name] = made
end

--- decide.consumer(name) -> {name, about, packages, tables} | nil, msg, code: its tables, made ready. Not to be
-- changed.
function M.consumer(name)
  if ready[name] then return ready[name] end
  for _, c in ipairs(consumers) do
    if c.name == name then
      local data = { name = name, tables = {} }
      for _, file in ipairs(c.files) do
        local part = require("nibble.backends." .. file)
        data.about, data.packages = data.about or part.about, data.packages or part.packages
        for _, t in ipairs(part.tables) do data.tables[#data.tables + 1] = t end
      end
      ready[name] = rules.ready(data)
      return ready[name]
    end
  end
  local all = M.consumers()
  return nil, ("unknown consumer %s%s; known: %s"):format(tostring(name), text.hint(name, all),
    table.concat(all, ", ")),
    "einval"
end

-- ---- one query --------------------------------------------------------------------

-- The table of a consumer that is for this query | nil, msg, code
local function table_for(consumer, q)
  local why = {}
  for _, t in ipairs(consumer.tables) do
    if t.kind == q.kind and (not q.table or q.table == t.name) then
      local reason = rules.first_refusal(q, t.when)
      if not reason then return t end
      why[#why + 1] = ("%s: %s"):format(t.name, reason)
    end
  end
  if #why == 0 then
    return nil, ("%s has no table for %s layers"):format(consumer.name, q.kind == "moe" and "MoE" or "linear"),
      "eunsupported"
  end
  return nil, ("%s has no table for %s (%s)"):format(consumer.name, query.describe(q), table.concat(why, "; ")),
    "eunsupported"
end

--- decide.prepare(raw query) -> the query made whole, the table for it, the consumer | nil, msg, code
function M.prepare(raw)
  if type(raw) ~= "table" then error("backends: a query is a table, found " .. type(raw), 3) end
  local consumer, msg, code = M.consumer(raw.consumer)
  if not consumer then return nil, msg, code end
  local q
  q, msg, code = query.new(raw)
  if not q then return nil, msg, code end
  q.packages = setmetatable({}, { __index = function(_, name)
    local given = (raw.packages or {})[name]
    if given == nil and q.here then given = q.here[name] end
    if given ~= nil then return given end
    return consumer.packages[name]
  end })
  local t
  t, msg, code = table_for(consumer, q)
  if not t then return nil, msg, code end
  if t.block_activation and q.weight.block and q.activation then q.activation_key = t.block_activation end
  if t.keys and t.keys[q.activation_key] then q.activation_key = t.keys[q.activation_key] end
  return q, t, consumer
end

--- decide.ask(t, backend, q, refused) -> the class of the backend that takes the query | nil; every no goes into
-- `refused`.
function M.ask(t, b, q, refused)
  local function refuse(class, reason, check)
    refused[#refused + 1] = { backend = b.name, class = class.class or b.row.class, variant = class.name,
                              reason = reason, requirement = check and check.requirement or b.requirement,
                              final = check and check.final }
  end
  for _, class in ipairs(b.classes) do
    local disabled = q.disabled[b.name:lower()] or q.disabled[(class.class or ""):lower()]
    local reason, check = disabled and "is disabled by name", nil
    if not reason and q.clamp and t.clamp then
      local clamps = false
      for _, name in ipairs(t.clamp) do clamps = clamps or name == b.name end
      if not clamps then reason = ("does not apply the SwiGLU clamp (limit %g)"):format(q.clamp) end
    end
    if not reason then reason, check = rules.first_refusal(q, class.checks) end
    if not reason then return class end
    refuse(class, reason, check)
  end
end

--- decide.reasons_text(refused) -> "MARLIN: why; BATCHED_MARLIN: why"
function M.reasons_text(refused)
  local out = {}
  for i, r in ipairs(refused) do
    out[i] = ("%s%s: %s"):format(r.backend, r.variant and " (" .. r.variant .. ")" or "", r.reason)
  end
  return table.concat(out, "; ")
end

-- Refusals close with what was asked, where the consumer's rules want that. (INC-20)
local function details(t, q)
  if not t.details then return q.name and (" (layer %s)"):format(q.name) or "" end
  return (" (layer %s, backend %s, %d bits, %s, group size %d)"):format(q.name or "?", q.backend or "auto",
    q.weight.bits, q.weight.symmetric and "symmetric" or "asymmetric", q.weight.group)
end

--- decide.unsupported(label, backend [, reason]) -> the message about a backend that does not take a query. (ORC-07)
function M.unsupported(label, backend, reason)
  if reason then return ("the %s backend %s does not support this deployment: it %s"):format(label, backend, reason) end
  return ("the %s backend %s does not support this deployment"):format(label, backend)
end

--- decide.explicit_name(t, word) -> the backend that a person's word stands for in a table | nil, msg, code.
-- (ORC-11, CTM-NVFP4-11, CTM-FP8-13)
function M.explicit_name(t, word)
  local names, low = {}, tostring(word):lower()
  local list = t.explicit
  if not list then
    list = {}
    for i, b in ipairs(t.backends) do list[i] = { b.name, b.name } end
  end
  for i, pair in ipairs(list) do
    if pair[1]:lower() == low then return pair[2] end
    names[i] = pair[1]
  end
  return nil, ("backend %s is unknown to the table %s; expected one of %s"):format(
    word == nil and "(none)" or tostring(word), t.name, table.concat(names, ", ")), "einval"
end

-- The explicitly named backend alone: class, backend | nil, msg, code, refused. It never falls through. (ORC-11)
local function decide_explicit(t, q)
  local name, msg, code = M.explicit_name(t, q.backend)
  if not name then return nil, msg .. details(t, q), code, {} end
  if q.format == "batched" and t.twins and t.twins[name] then name = t.twins[name] end
  local b = t.by_name[name]
  if q.clamp and t.clamp then
    local others, clamps = {}, false
    for _, c in ipairs(t.clamp) do clamps = clamps or c == name end
    for _, pair in ipairs(t.explicit or {}) do
      for _, c in ipairs(t.clamp) do
        if pair[2] == c then others[#others + 1] = pair[1] end
      end
    end
    if not clamps then
      return nil, ("the model clamps SwiGLU at %g, which the backend %s does not apply: use %s%s"):format(q.clamp,
        q.backend, table.concat(others, ", "), details(t, q)), "eunsupported",
        { { backend = name, reason = "does not apply the SwiGLU clamp", requirement = b.requirement } }
    end
  end
  local refused = {}
  local class = M.ask(t, b, q, refused)
  if class then return class, b, refused, 1 end
  local last = refused[#refused]
  return nil, M.unsupported(t.name, name, last and last.reason) .. details(t, q), "eunsupported", refused
end

--- decide.decide(t, q) -> class, backend, refused, position | nil, msg, code, refused
function M.decide(t, q)
  if q.backend and q.backend ~= "auto" then return decide_explicit(t, q) end
  local refused = {}
  local order = rules.order(t, q)
  for i, name in ipairs(order) do
    local b = t.by_name[name]
    local class = M.ask(t, b, q, refused)
    if class then return class, b, refused, i end
  end
  refused.summary = ("no %s backend supports the deployment configuration%s"):format(t.name, details(t, q))
  return nil, ("no %s backend supports the deployment configuration: %s%s"):format(t.name, M.reasons_text(refused),
    details(t, q)), "eunsupported", refused
end

return M

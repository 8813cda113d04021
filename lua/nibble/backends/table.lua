-- backends.table: a consumer's tables made ready for the engine: the checks of every class of every
-- backend put together in the order in which they are asked, and the data looked over.
--
-- A consumer is {name, about, packages = {what its installation has}, tables = {…}}; a table
--   name          "WNA16 MoE": how messages call it; the requirement is the default of its rows
--   kind          "linear" or "moe";  when = checks that say whether the table is for a weight
--   keys          {["fp8 tensor"] = "fp8 group 128"}: activations looked up under another name
--   order         names of backends by priority; orders = {{when = checks, names…}}: the first that fits replaces
--                 it; front = {{when = checks, name}}: moved to the front, one after another
--   staged        true: checks are asked in the order of ORC-09, with its closing ones added
--   rows          {name, class, format, takes, checks | classes = {…}, auto, note, quant, requirement}; a class may have its own note
--   explicit      {{what a person types, backend}, …} in the order of messages;  twins = {name = its batched twin}
--   clamp         names of the backends that apply a SwiGLU clamp
--   fallback      {name, warning}: what runs where no row does;  none_on = {platforms}: where that is no error
--   quant         {block_shape = "group", bits = {4}, …}: see backends.description
--   details       true: messages close with layer, requested backend, bits, symmetry and group (INC-20)
local predicates = require "nibble.backends.predicates"

local M = {}

-- Lists in lists are spliced: tables share groups of checks.
local function splice(list, out)
  for _, c in ipairs(list or {}) do
    if type(c[1]) == "table" then splice(c, out) else out[#out + 1] = c end
  end
  return out
end
M.splice = function(list) return splice(list, {}) end

-- What ORC-09 asks of every MoE backend, unless its `takes` says that it can.
local closing = {
  { flag = "ungated", { "gated" } }, { flag = "hash_routing", { "hash_routing" } },
  { flag = "batch_invariance", { "batch_invariance" } }, { flag = "lora", { "lora" } },
}

local function in_stages(checks)
  local order = {}
  for i, c in ipairs(checks) do order[i] = { predicates[c[1]].stage, i, c } end
  table.sort(order, function(a, b) return a[1] < b[1] or (a[1] == b[1] and a[2] < b[2]) end)
  local out = {}
  for i, o in ipairs(order) do out[i] = o[3] end
  return out
end

local function class_of(t, row, class)
  local checks = splice(row.checks, {})
  if class ~= row then splice(class.checks, checks) end
  local takes = {}
  for _, list in ipairs { row.takes or {}, class.takes or {} } do
    for _, flag in ipairs(list) do takes[flag] = true end
  end
  local format = class.format or row.format
  if t.staged then
    for _, c in ipairs(closing) do
      if not takes[c.flag] then checks[#checks + 1] = c[1] end
    end
    if class.monolithic then checks[#checks + 1] = { "changed_routes" } end
    if format then checks[#checks + 1] = { "format", format } end
    checks = in_stages(checks)
  end
  return { class = class.class, name = class ~= row and class.name or nil, monolithic = class.monolithic or false,
           format = format, note = class.note or row.note, checks = checks }
end

local function look_over(where, checks)
  for _, c in ipairs(checks) do
    if not predicates[c[1]] then
      error(("%s: there is no predicate %q"):format(where, tostring(c[1])), 0)
    end
  end
end

local function check_names(t, where, list)
  for _, name in ipairs(list or {}) do
    if not t.by_name[name] then error(("%s: there is no backend %q in the table"):format(where, tostring(name)), 0) end
  end
end

local function ready_table(consumer, data)
  local where = ("consumer %s, table %s"):format(consumer, tostring(data.name))
  local t = setmetatable({ by_name = {}, backends = {} }, { __index = data })
  t.when = splice(data.when, {})
  look_over(where, t.when)
  for _, list in ipairs { data.orders or {}, data.front or {} } do
    for _, o in ipairs(list) do look_over(where, splice(o.when, {})) end
  end
  for i, row in ipairs(data.rows) do
    local b = { name = row.name, row = row, index = i, classes = {}, requirement = row.requirement or data.requirement }
    for _, list in ipairs { { checks = row.checks }, unpack(row.classes or {}) } do
      look_over(where .. ", backend " .. tostring(row.name), splice(list.checks, {}))
    end
    for _, class in ipairs(row.classes or { row }) do
      b.classes[#b.classes + 1] = class_of(data, row, class)
    end
    if t.by_name[row.name] then error(("%s: the backend %s is there twice"):format(where, row.name), 0) end
    t.by_name[row.name], t.backends[i] = b, b
  end
  check_names(t, where, data.order)
  check_names(t, where, data.clamp)
  for _, list in ipairs { data.orders or {}, data.front or {} } do
    for _, o in ipairs(list) do check_names(t, where, o) end
  end
  for _, pair in ipairs(data.explicit or {}) do check_names(t, where, { pair[2] }) end
  return t
end

--- table.ready(consumer's data) -> {name, about, packages, tables}; wrong data is an error that says where.
function M.ready(data)
  local out = { name = data.name, about = data.about, packages = data.packages or {}, tables = {} }
  for i, t in ipairs(data.tables) do out.tables[i] = ready_table(data.name, t) end
  return out
end

--- table.first_refusal(q, checks) -> reason, the check | nil
function M.first_refusal(q, checks)
  for _, c in ipairs(checks) do
    local reason, check
    if type(c[1]) == "table" then
      reason, check = M.first_refusal(q, c)
    else
      reason, check = predicates[c[1]].check(q, c), c
    end
    if reason then return reason, check end
  end
end

--- table.words(checks) -> "on CUDA; SM 75 or above; …": the checks as a person reads them.
function M.words(checks)
  local out = {}
  for i, c in ipairs(checks) do out[i] = predicates[c[1]].says(c) end
  return table.concat(out, "; ")
end

--- table.order(t, q) -> names by priority for this query: the table's order, with its exceptions.
function M.order(t, q)
  local names = t.order
  for _, o in ipairs(t.orders or {}) do
    if names == t.order and not M.first_refusal(q, o.when) then names = o end
  end
  local out = {}
  for i, name in ipairs(names or {}) do out[i] = name end
  if not names then
    for i, b in ipairs(t.backends) do out[i] = b.name end
  end
  for _, f in ipairs(t.front or {}) do
    if not M.first_refusal(q, f.when) then
      for i, name in ipairs(out) do
        if name == f[1] then
          table.remove(out, i)
          break
        end
      end
      table.insert(out, 1, f[1])
    end
  end
  return out
end

return M

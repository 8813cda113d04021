-- backends.changes: the smallest change to a query that would let a better backend in. Nothing is
-- derived from reasons: candidate edits are made to the query, smallest first, and the table is asked again.
local query = require "nibble.backends.query"

local M = {}

-- What an edit costs: a switch of the deployment, then what is re-saved without loss, padded, installed, quantized
-- anew; a device last.
local cost = { enable = 1, dtype = 3, tp = 4, convert = 5, pad = 6, package = 15, actorder = 20, group = 21,
               symmetric = 24, device = 1000 }

local paddings = { 8, 16, 32, 64, 128, 256 }
local groups = { 128, 64, 32, -1 }
local ranks = { 1, 2, 4, 8 }
local capabilities = { 75, 80, 89, 90, 100, 120 }

--- changes.packages(t) -> names of the packages that a table's checks ask for, in its order.
function M.packages(t)
  local out, seen = {}, {}
  for _, b in ipairs(t.backends) do
    for _, class in ipairs(b.classes) do
      for _, c in ipairs(class.checks) do
        if c[1] == "package" and not seen[c[2]] then
          seen[c[2]] = true
          out[#out + 1] = c[2]
        end
      end
    end
  end
  return out
end

-- ---- edits ------------------------------------------------------------------------
-- An edit is {kind, cost, words, apply = function(raw)}: apply changes a copy of the query, whose weight is a copy too.

local function with_size(name, full)
  return function(raw)
    raw[name], raw[name .. "_full"] = nil, full
  end
end

-- Padding changes what the checkpoint holds, so it is told in whole sizes; each rank's part gets the multiple.
local function add_paddings(out, name, word, full, parts)
  if not full then return end
  local seen = { [full] = true }
  for _, unit in ipairs(paddings) do
    local padded = math.ceil(full / (unit * parts)) * unit * parts
    if not seen[padded] then
      seen[padded] = true
      out[#out + 1] = { kind = name, cost = cost.pad + 10 * (padded - full) / full, apply = with_size(name, padded),
                        words = ("pad %s from %d to %d"):format(word, full, padded) }
    end
  end
end

local function add_groups(out, q)
  local w = q.weight
  if w.type ~= "int" or (w.strategy ~= "group" and w.strategy ~= "channel") then return end
  for i, g in ipairs(groups) do
    if g ~= w.group then
      out[#out + 1] = { kind = "group", cost = cost.group + i / 10,
                        words = ("group %d instead of %d"):format(g, w.group),
                        apply = function(raw)
                          raw.weight.group, raw.weight.strategy = g, g > 0 and "group" or "channel"
                        end }
    end
  end
end

local function add_ranks(out, q)
  local whole = { "k", "n", "intermediate" }
  for _, tp in ipairs(ranks) do
    if tp ~= q.tp then
      out[#out + 1] = { kind = "tp", cost = cost.tp + math.abs(math.log(tp / q.tp)) / 10,
                        words = ("tp %d instead of %d"):format(tp, q.tp), apply = function(raw)
        raw.tp, raw.parallel = tp, q.parallel
        for _, name in ipairs(whole) do
          if q[name .. "_full"] then raw[name], raw[name .. "_full"] = nil, q[name .. "_full"] end
        end
      end }
    end
  end
end

local function add_weight_edits(out, q)
  local w = q.weight
  if w.actorder then
    out[#out + 1] = { kind = "actorder", cost = cost.actorder, words = "no act-order",
                      apply = function(raw) raw.weight.actorder = nil end }
  end
  if w.zero_points and w.type == "int" then
    local format = w.format == "awq" and "compressed-tensors" or w.format
    out[#out + 1] = { kind = "symmetric", cost = cost.symmetric, apply = function(raw)
      raw.weight.symmetric, raw.weight.zero_points, raw.weight.format = true, nil, format
      if raw.weight.type ~= "int" then raw.weight.type, raw.weight.bits = "int", w.bits end
    end, words = "symmetric weights (no zero-points)" .. (w.format == "awq" and " in compressed-tensors" or "") }
  end
  -- Other layouts of the same codes are written without loss.
  if w.format and w.type == "int" and w.format ~= "compressed-tensors" and w.format ~= "gguf" then
    out[#out + 1] = { kind = "format", cost = cost.convert,
      words = ("compressed-tensors instead of the %s layout"):format(w.format),
                      apply = function(raw) raw.weight.format = "compressed-tensors" end }
  end
end

local function add_deployment(out, raw, q, packages)
  for _, dtype in ipairs { "f16", "bf16" } do
    if q.dtype ~= dtype then
      out[#out + 1] = { kind = "dtype", cost = cost.dtype, words = ("dtype %s instead of %s"):format(dtype, q.dtype),
                        apply = function(r) r.dtype = dtype end }
    end
  end
  for _, name in ipairs(packages) do
    if not q.packages[name] then
      out[#out + 1] = { kind = "package " .. name, cost = cost.package, words = ("install %s"):format(name),
        apply = function(r)
        r.packages = query.copy(r.packages or {})
        r.packages[name] = true
      end }
    end
  end
  for i, name in ipairs(raw.disabled or {}) do
    out[#out + 1] = { kind = "enable", cost = cost.enable, words = ("enable %s"):format(name), apply = function(r)
      local left = {}
      for j, other in ipairs(raw.disabled) do
        if j ~= i then left[#left + 1] = other end
      end
      r.disabled = left
    end }
  end
end

local function device_edits(q)
  local out = {}
  for i, sm in ipairs(capabilities) do
    if q.platform == "cuda" and sm ~= q.capability then
      -- Newer ones first, the nearest of them before the others.
      local far = sm < q.capability and 100 or 0
      out[#out + 1] = { kind = "device", cost = cost.device + far + i,
                        words = ("sm_%d instead of sm_%d"):format(sm, q.capability),
                        apply = function(r) r.device = "sm_" .. sm end }
    end
  end
  return out
end

local function by_cost(list)
  for i, e in ipairs(list) do e.at = e.at or i end
  table.sort(list, function(a, b) return a.cost < b.cost or (a.cost == b.cost and a.at < b.at) end)
  return list
end

local function edits(raw, q, packages)
  local out = {}
  add_deployment(out, raw, q, packages)
  add_ranks(out, q)
  add_paddings(out, "n", "N", q.n_full, q.n and q.n_full / q.n or 1)
  add_paddings(out, "k", "K", q.k_full, q.k and q.k_full / q.k or 1)
  add_paddings(out, "intermediate", "the intermediate size", q.intermediate_full, q.tp)
  add_weight_edits(out, q)
  add_groups(out, q)
  return by_cost(out)
end

-- ---- the search ---------------------------------------------------------------------

local function apply(raw, list)
  local r = query.copy(raw)
  r.weight = query.copy(raw.weight)
  for _, e in ipairs(list) do e.apply(r) end
  return r
end

local function pairs_of(a, b)
  local out = {}
  for i, x in ipairs(a) do
    for j = a == b and i + 1 or 1, #b do
      local y = b[j]
      if x.kind ~= y.kind then out[#out + 1] = { x, y, cost = x.cost + y.cost } end
    end
  end
  return by_cost(out)
end

local function words(list)
  local out = {}
  for i, e in ipairs(list) do out[i] = e.words end
  return table.concat(out, " and ")
end

--- changes.find(raw, q, now, outcome) -> {change = words, backend, query = raw with the change made} | nil
-- raw: the caller's query (left as it is), q: the same made whole; now = {order, position = the chosen backend's | nil,
-- packages}; outcome(raw) -> backend | nil. Edits are tried one by one, then two together, a device last of all.
function M.find(raw, q, now, outcome)
  local place = {}
  for i, name in ipairs(now.order) do place[name] = i end
  local function try(list)
    local changed = apply(raw, list)
    local backend = outcome(changed)
    if not backend then return nil end
    local at = place[backend]
    if now.position and not (at and at < now.position) then return nil end
    return { change = words(list), backend = backend, query = changed }
  end
  local single = edits(raw, q, now.packages)
  local device = by_cost(device_edits(q))
  for _, e in ipairs(single) do
    local hit = try { e }
    if hit then return hit end
  end
  for _, pair in ipairs(pairs_of(single, single)) do
    local hit = try(pair)
    if hit then return hit end
  end
  for _, e in ipairs(device) do
    local hit = try { e }
    if hit then return hit end
  end
  for _, pair in ipairs(pairs_of(single, device)) do
    local hit = try(pair)
    if hit then return hit end
  end
end

return M

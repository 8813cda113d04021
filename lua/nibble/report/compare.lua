-- report.compare: two sweeps side by side: the jobs that both ran, with what changed, those that only one has.
local format = require "nibble.report.format"

local M = {}

-- Figures are repeatable, so small changes count; these only keep the last digits quiet.
local PPL, KL, DB, BITS = 5e-4, 0.02, 0.05, 0.005

local function key_by(field)
  return function(row)
    return table.concat({ row[field] or "", row.set, row.model, row.text, tostring(row.context), tostring(row.windows) }, "\0")
  end
end

-- Pairs off what both lists hold under the same key, in order.
local function pair_up(rows, others, key, pairs_, left)
  local waiting = {}
  for _, other in ipairs(others) do
    if not left[other] then
      local k = key(other)
      waiting[k] = waiting[k] or {}
      table.insert(waiting[k], other)
    end
  end
  for _, row in ipairs(rows) do
    local list = not pairs_[row] and waiting[key(row)]
    if list and #list > 0 then
      pairs_[row] = table.remove(list, 1)
      left[pairs_[row]] = true
    end
  end
end

-- The change of a figure, b to a; nil when one of them is none.
local function change(a, b)
  a, b = format.finite(a), format.finite(b)
  return a and b and a - b
end

local rank = { done = 1, missed = 2, failed = 3 }

-- Words for what got worse and what got better.
local function judge(row, was)
  local worse, better = {}, {}
  local function note(is_worse, text) table.insert(is_worse and worse or better, text) end
  if row.status ~= was.status then
    note(rank[row.status] > rank[was.status], ({ failed = "failed", missed = "missed its bound", done = "done" })[row.status])
  end
  local ppl, base = change(row.ppl, was.ppl), format.finite(was.ppl)
  if ppl and math.abs(ppl) > PPL * math.abs(base) then note(ppl > 0, "perplexity") end
  if format.finite(was.ppl) and row.ppl and not format.finite(row.ppl) then note(true, "perplexity") end
  local kl = change(row.kl, was.kl)
  if kl and math.abs(kl) > KL * math.abs(was.kl) + 1e-7 then note(kl > 0, "KL") end
  local db = change(row.sqnr, was.sqnr)
  if db and math.abs(db) > DB then note(db < 0, "worst SQNR") end
  local bits = change(row.bits, was.bits)
  if bits and math.abs(bits) > BITS then note(bits > 0, "bits") end
  return worse, better
end

local kinds = { worse = 1, mixed = 2, better = 3, new = 4, vanished = 5, same = 6 }

--- new(rows, others) -> {items=, counts=}: rows of this sweep against those of another.
-- Jobs are the same by recipe hash, settings, model, text, context and windows, or by the recipe's name instead of its hash.
-- An item: {kind= "worse"|"mixed"|"better"|"new"|"vanished"|"same", row=|nil, was=|nil, worse={words}, better={words}},
-- the worst kinds first.
function M.new(rows, others)
  local paired, taken, items = {}, {}, {}
  pair_up(rows, others, key_by "recipe_hash", paired, taken)
  pair_up(rows, others, key_by "recipe", paired, taken)
  local counts = { worse = 0, mixed = 0, better = 0, new = 0, vanished = 0, same = 0 }
  local function add(item)
    item.place = #items
    items[#items + 1] = item
    counts[item.kind] = counts[item.kind] + 1
  end
  for _, row in ipairs(rows) do
    local was = paired[row]
    if was then
      local worse, better = judge(row, was)
      local kind = #worse > 0 and (#better > 0 and "mixed" or "worse") or #better > 0 and "better" or "same"
      add { kind = kind, row = row, was = was, worse = worse, better = better }
    else
      add { kind = "new", row = row, worse = {}, better = {} }
    end
  end
  for _, other in ipairs(others) do
    if not taken[other] then add { kind = "vanished", was = other, worse = {}, better = {} } end
  end
  table.sort(items, function(a, b)
    if a.kind ~= b.kind then return kinds[a.kind] < kinds[b.kind] end
    return a.place < b.place
  end)
  return { items = items, counts = counts }
end

return M

-- report.rows: results as rows of the report: names for people, figures, the unquantized model to compare with,
-- and groups of what can be compared at all: one model, one text, one way to read it.
-- Results come from files, so every field may be missing or of the wrong kind.
local format = require "nibble.report.format"
local json = require "nibble.json"

local M = {}

local finite = format.finite

-- How much of a recipe's text and of a message the page keeps.
local RECIPE_MOST, MESSAGE_MOST, NAME_MOST = 20000, 1500, 300

local function text(v, most) return type(v) == "string" and v ~= "" and format.clean(v, most or NAME_MOST) or nil end
local function number(v) return type(v) == "number" and v or nil end
local function table_of(v) return type(v) == "table" and v ~= json.null and v or {} end

-- {group = 64} -> "group=64 method=mse", sorted; weights alone measured is a setting too.
local function settings_text(set, activations)
  local out = { activations == "none" and "activations=none" or nil }
  for k, v in pairs(table_of(set)) do out[#out + 1] = tostring(k) .. "=" .. tostring(v) end
  table.sort(out)
  return format.clean(table.concat(out, " "), NAME_MOST)
end

-- The scheme that holds most of the quantized parameters: "W4A16" of "W4A16 g128 sym".
local function main_scheme(modules)
  local by, best = {}, nil
  for _, m in ipairs(modules) do
    local name = type(m) == "table" and type(m.scheme) == "string" and type(m.sqnr_db) == "number" and m.scheme:match "^%S+"
    if name then
      by[name] = (by[name] or 0) + (finite(m.params) or 1)
      if not best or by[name] > by[best] or by[name] == by[best] and name < best then best = name end
    end
  end
  return best and format.clean(best, 40)
end

local function worst_module(worst)
  if type(worst) == "table" and worst ~= json.null then worst = worst.name end
  return text(worst)
end

local function row_of(r)
  local f = table_of(r.figures)
  local row = {
    job = text(r.job) or "", status = r.status == "done" and "done" or "failed", recipe = text(r.recipe),
    set = settings_text(r.set, r.activations),
    reference = r.recipe == nil or r.recipe == json.null,
    recipe_hash = text(r.recipe_hash), recipe_text = text(r.recipe_text, RECIPE_MOST),
    model = text(r.model) or "?", text = text(r.text) or "?", context = number(r.context), windows = number(r.windows),
    bits = number(f.bits_per_weight), bytes = number(f.bytes), ppl = number(f.ppl), kl = number(f.kl),
    top1 = number(f.top1_agreement), sqnr = number(f.worst_sqnr_db), nll = number(f.nll), tokens = number(f.tokens),
    ppl_against = number(f.ppl_against), bytes_model = number(f.bytes_model), worst = worst_module(f.worst),
    seconds = number(r.seconds), seconds_run = number(r.seconds_run), seconds_eval = number(r.seconds_eval),
    peak = number(r.peak_bytes), attempts = number(r.attempts), host = text(r.host), processor = text(r.processor),
    version = text(r.version), modules = table_of(r.modules),
  }
  row.scheme = row.reference and "unquantized" or main_scheme(row.modules) or "–"
  row.recipe = row.reference and "unquantized" or row.recipe or "?"
  row.name = row.recipe .. (row.set ~= "" and " " .. row.set or "")
  if row.status == "failed" then
    row.message = text(r.message, MESSAGE_MOST) or "no message"
  elseif f.accepted == false then
    row.status = "missed"
  end
  return row
end

-- A path's last part, unless two of the sweep's paths would then look alike.
local function short_names(rows, field)
  local leaf_of, path_of = {}, {}
  for _, row in ipairs(rows) do
    local leaf = row[field]:gsub("/+$", ""):match "[^/]*$"
    if leaf == "" then leaf = row[field] end
    leaf_of[row[field]] = leaf
    if path_of[leaf] and path_of[leaf] ~= row[field] then path_of[leaf] = false
    elseif path_of[leaf] == nil then path_of[leaf] = row[field] end
  end
  for _, row in ipairs(rows) do
    local leaf = leaf_of[row[field]]
    row[field .. "_name"] = path_of[leaf] and leaf or row[field]
  end
end

-- Numbers before none; inf and nan last.
local function rank(v) return finite(v) or type(v) == "number" and math.huge or nil end
local function before(a, b)
  a, b = rank(a), rank(b)
  if a == b then return nil end
  if a == nil or b == nil then return b == nil end
  return a < b
end

local function in_order(a, b)
  if a.model ~= b.model then return a.model < b.model end
  if a.group_key ~= b.group_key then return a.group_key < b.group_key end
  if a.reference ~= b.reference then return a.reference end
  local failed_a, failed_b = a.status == "failed", b.status == "failed"
  if failed_a ~= failed_b then return failed_b end
  for _, field in ipairs { "ppl", "bits" } do
    local first = before(a[field], b[field])
    if first ~= nil then return first end
  end
  for _, field in ipairs { "recipe", "set", "job" } do
    local x, y = a[field] or "", b[field] or ""
    if x ~= y then return x < y end
  end
  return a.place < b.place
end

--- front(rows, x, y) -> the rows that no other beats in both figures (names of fields), by rising x. Smaller is better.
function M.front(rows, x, y)
  local points = {}
  for _, row in ipairs(rows) do
    if finite(row[x]) and finite(row[y]) and not row.reference and row.status ~= "failed" then points[#points + 1] = row end
  end
  table.sort(points, function(a, b)
    if a[x] ~= b[x] then return a[x] < b[x] end
    if a[y] ~= b[y] then return a[y] < b[y] end
    return a.i < b.i
  end)
  local out = {}
  for _, row in ipairs(points) do
    if #out == 0 or row[y] < out[#out][y] then out[#out + 1] = row end
  end
  return out
end

-- The fewest bits among those within the given loss of perplexity; without one the smallest loss.
local WITHIN = 1.01
local function best_of(group)
  local best, nearest
  for _, row in ipairs(group.rows) do
    if not row.reference and row.status ~= "failed" and finite(row.ratio) and finite(row.bits) then
      if row.ratio <= WITHIN and (not best or row.bits < best.bits or row.bits == best.bits and row.ratio < best.ratio) then
        best = row
      end
      if not nearest or row.ratio < nearest.ratio then nearest = row end
    end
  end
  return best, nearest
end

local function fill(group)
  for _, row in ipairs(group.rows) do
    if row.reference and row.status ~= "failed" then group.reference = group.reference or row end
  end
  group.ppl = group.reference and finite(group.reference.ppl)
  for _, row in ipairs(group.rows) do
    local against = finite(row.ppl_against) or group.ppl
    group.ppl = group.ppl or against
    if row.ppl and against and against > 0 then row.ratio = row.ppl / against end
  end
  group.front = M.front(group.rows, "bits", "ppl")
  for _, row in ipairs(group.front) do row.front = true end
  group.best, group.nearest = best_of(group)
end

-- ", 32 windows of 2048 tokens"
local function windows_text(group)
  local context, windows = finite(group.context), finite(group.windows)
  return (context and ", %s of %.0f tokens" or ""):format(windows and ("%.0f windows"):format(windows) or "all windows", context)
end

--- new(results) -> rows, groups
-- rows: in the table's order, whatever the results' order was, each with i (1-based), group, name (recipe and
-- settings), and figures as numbers or nil.
-- groups: {model=, model_name=, on= the text and, where it was read in several ways, how, rows=, reference=row|nil, ppl= of the
-- unquantized, front=, best= within 1 % at the fewest bits, nearest= the smallest ratio}.
function M.new(results)
  local rows = {}
  for place, r in ipairs(results) do
    local row = row_of(table_of(r))
    row.place = place
    row.group_key = table.concat({ row.model, row.text, tostring(row.context), tostring(row.windows) }, "\0")
    rows[#rows + 1] = row
  end
  short_names(rows, "model")
  short_names(rows, "text")
  table.sort(rows, in_order)
  local groups = {}
  for i, row in ipairs(rows) do
    row.i = i
    local group = groups[row.group_key]
    if not group then
      group = { model = row.model, model_name = row.model_name, text_name = row.text_name, context = row.context,
                windows = row.windows, rows = {} }
      groups[row.group_key] = group
      groups[#groups + 1] = group
    end
    group.rows[#group.rows + 1] = row
    row.group = group
  end
  local same = {} -- one text read in two ways
  for _, group in ipairs(groups) do
    fill(group)
    local key = group.model .. "\0" .. group.rows[1].text
    same[key] = (same[key] or 0) + 1
  end
  for _, group in ipairs(groups) do
    group.on = group.text_name
    if same[group.model .. "\0" .. group.rows[1].text] > 1 then group.on = group.on .. windows_text(group) end
  end
  return rows, groups
end

return M

-- diff.text: the result of a diff: its order, as a table, as a document for --json.
local json = require "nibble.json"
local show = require "nibble.show"
local units = require "nibble.units"

local M = {}

local methods = {}
local meta = { __index = methods }

-- ---- order ------------------------------------------------------------------------------

-- Least first; what differs by a NaN comes before everything, what is the same last.
local function rank(e)
  if e.odd > 0 then return 0 end
  return e.same and 2 or 1
end

local function worst_first(value)
  return function(x, y)
    local rx, ry = rank(x), rank(y)
    if rx ~= ry then return rx < ry end
    local vx, vy = value(x), value(y)
    if vx ~= vy then return vx < vy end
    return x.at < y.at
  end
end

local orders = {
  name = function(x, y) return x.at < y.at end,
  sqnr = worst_first(function(e) return e.sqnr_db or (e.same and math.huge or -math.huge) end),
  mse = worst_first(function(e) return -e.mse end),
  max = worst_first(function(e) return -e.max_abs end),
  cosine = worst_first(function(e) return e.cosine or -2 end),
}

M.sorts = { "name", "sqnr", "mse", "max", "cosine" }

--- order(name) -> a comparison for table.sort | nil
function M.order(name) return orders[name] end

--- orders() -> "name, sqnr, …"
function M.orders() return table.concat(M.sorts, ", ") end

local function names_of(records)
  local out = {}
  for i, rec in ipairs(records) do out[i] = rec.name end
  return out
end

--- new{entries=, a=, b=, key=, skipped=, notes=, only_a=, only_b=, totals=, seconds=} -> result
function M.new(f)
  local r = { a = f.a.name, b = f.b.name, path_a = f.a.path, path_b = f.b.path, skipped = f.skipped, notes = f.notes,
    only_a = names_of(f.only_a), only_b = names_of(f.only_b), totals = f.totals, seconds = f.seconds }
  for i, e in ipairs(f.entries) do e.at = i end
  table.sort(f.entries, f.key)
  for i, e in ipairs(f.entries) do
    e.at = nil
    r[i] = e
  end
  return setmetatable(r, meta)
end

-- ---- as text -----------------------------------------------------------------------------

local function full_name(e) return e.tensor and e.tensor ~= "weight" and e.tensor ~= "" and e.module .. "." .. e.tensor or e.module end

local function sqnr_text(e)
  if e.odd > 0 then return ("%d NaN/inf"):format(e.odd) end
  if e.same then return e.equal and "equal" or "same" end
  return e.sqnr_db and ("%.2f"):format(e.sqnr_db) or "-inf"
end

local function row_of(e)
  local differs = not e.same
  return { full_name(e), e.scheme_a == e.scheme_b and e.scheme_a or e.scheme_a .. " → " .. e.scheme_b, sqnr_text(e),
    differs and ("%.3g"):format(e.mse) or "", differs and e.cosine and ("%.6f"):format(e.cosine) or "",
    differs and ("%.3g"):format(e.max_abs) or "", e.max_row and ("%d,%d"):format(e.max_row, e.max_column) or "" }
end

-- "a, b, c and 12 more"
local function some(names)
  local out = {}
  for i = 1, math.min(4, #names) do out[i] = names[i] end
  return table.concat(out, ", ") .. (#names > 4 and (" and %d more"):format(#names - 4) or "")
end

local function plural(n, one) return ("%d %s%s"):format(n, one, n == 1 and "" or "s") end

local function total_line(r)
  local t = r.totals
  local parts = { plural(t.compared, "tensor") .. " compared" }
  if t.equal > 0 then parts[#parts + 1] = ("%d equal to the byte"):format(t.equal) end
  if t.same > t.equal then parts[#parts + 1] = ("%d the same in value"):format(t.same - t.equal) end
  if t.sqnr_db then
    parts[#parts + 1] = ("the rest: SQNR %.2f dB  mse %.3g  cosine %.6f  max |Δ| %.3g"):format(t.sqnr_db, t.mse, t.cosine or 0, t.max_abs)
  end
  if t.bytes > 0 then parts[#parts + 1] = units.bytes(t.bytes) .. " at " .. units.rate(t.bytes, r.seconds) end
  return table.concat(parts, "; ")
end

--- result:text{limit =, all =, width =} -> the table: worst first, at most `limit` rows (default: all that differ);
-- all: what is equal, too; width: of the terminal, as show.columns takes it.
function methods.text(r, options)
  local o = options or {}
  local rows, left = { { "module", "scheme", "SQNR dB", "mse", "cosine", "max |Δ|", "row,column" } }, 0
  for _, e in ipairs(r) do
    if o.all or not e.same then
      if #rows <= (o.limit or math.huge) then rows[#rows + 1] = row_of(e) else left = left + 1 end
    end
  end
  local out = { #rows > 1 and show.columns(rows, "llrrrrr", o.width) or "" }
  if left > 0 then out[#out + 1] = ("… %d more\n"):format(left) end
  out[#out + 1] = total_line(r) .. "\n"
  for _, note in ipairs(r.notes) do out[#out + 1] = note .. "\n" end
  for _, only in ipairs { { r.only_a, r.a }, { r.only_b, r.b } } do
    if #only[1] > 0 then out[#out + 1] = ("only in %s: %s\n"):format(only[2], some(only[1])) end
  end
  for i, s in ipairs(r.skipped) do
    if i > 8 then
      out[#out + 1] = ("… and %d more not compared\n"):format(#r.skipped - 8)
      break
    end
    out[#out + 1] = ("not compared: %s: %s\n"):format(full_name(s), s.why)
  end
  return table.concat(out)
end

function meta.__tostring(r)
  return (r:text { limit = 40, width = require("nibble.terminal").width() }:gsub("\n$", ""))
end

--- result:totable() -> plain tables, as --json prints them.
function methods.totable(r)
  local modules, skipped = {}, {}
  for i, e in ipairs(r) do
    modules[i] = {}
    for field, value in pairs(e) do modules[i][field] = value end
  end
  for i, s in ipairs(r.skipped) do skipped[i] = s end
  return { a = r.path_a, b = r.path_b, modules = json.array(modules), only_a = json.array(r.only_a), only_b = json.array(r.only_b),
    skipped = json.array(skipped), notes = json.array(r.notes), totals = r.totals, seconds = r.seconds }
end

--- result:missed{equal =, sqnr_db =} -> nil | sentence: why the two are not equal, or not within the bound.
function methods.missed(r, accept)
  local loose = #r.only_a + #r.only_b + #r.skipped
  if accept.equal and r.totals.same < r.totals.compared then
    return ("%s of %d differ"):format(plural(r.totals.compared - r.totals.same, "tensor"), r.totals.compared)
  elseif accept.equal and loose > 0 then return ("%s could not be compared"):format(plural(loose, "module"))
  end
  if not accept.sqnr_db then return nil end
  for _, e in ipairs(r) do
    if e.odd > 0 then
      local differ = e.odd == 1 and "1 value differs" or e.odd .. " values differ"
      return ("%s: %s by a NaN or an infinity"):format(full_name(e), differ)
    end
    local db = e.sqnr_db or (e.same and math.huge or -math.huge)
    if db < accept.sqnr_db then return ("%s: SQNR is %.2f dB, expected %g dB or more"):format(full_name(e), db, accept.sqnr_db) end
  end
  if #r.skipped > 0 then return ("%s could not be compared"):format(plural(#r.skipped, "module")) end
end

return M

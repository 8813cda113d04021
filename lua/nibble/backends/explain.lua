-- backends.explain: what the oracle decided, as lines for a person.
local M = {}

local function ordinal(n)
  local tail = n % 100
  local ending = (tail < 11 or tail > 13) and ({ "st", "nd", "rd" })[n % 10] or "th"
  return n .. ending
end

local function name_of(r) return r.variant and ("%s (%s)"):format(r.backend, r.variant) or r.backend end

local function add_rejected(out, rejected)
  local width = 0
  for _, r in ipairs(rejected) do width = math.max(width, #name_of(r)) end
  for _, r in ipairs(rejected) do
    out[#out + 1] = ("  no  %-" .. width .. "s  %s%s"):format(name_of(r), r.reason,
      r.requirement and "  [" .. r.requirement .. "]" or "")
  end
end

--- explain.lines(result) or explain.lines(nil, msg, code, rejected) -> lines: what was chosen, every rejected backend
-- in order of priority with its reason and requirement, what else would take it, and the smallest change that lets a
-- better one in.
function M.lines(result, msg, _, rejected)
  local out = {}
  if not result then
    local list = rejected or {}
    out[1] = "refused: " .. tostring(list.summary or msg)
    if list.summary or #list > 1 then add_rejected(out, list) end
    if list.summary and list.change then
      out[#out + 1] = ("  change: %s -> %s"):format(list.change, list.better.backend)
    end
    return out
  end
  local where = ("%s, %s, %s"):format(result.consumer, result.table, result.device)
  if result.none then
    out[1] = where .. ": no backend"
  elseif result.fallback then
    out[1] = ("%s: %s, a fallback"):format(where, result.backend)
  else
    out[1] = ("%s: %s%s"):format(where, name_of(result), result.of and result.of > 1 and
      (", %s of %d"):format(ordinal(result.position), result.of) or "")
  end
  add_rejected(out, result.rejected)
  if result.note then out[#out + 1] = "  note: " .. result.note end
  if result.also and #result.also > 0 then out[#out + 1] = "  also: " .. table.concat(result.also, ", ") end
  if result.change then out[#out + 1] = ("  change: %s -> %s"):format(result.change, result.better.backend) end
  return out
end

return M

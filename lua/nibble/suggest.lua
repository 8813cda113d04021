-- suggest: the nearest known word to a mistyped one, for error messages.
local M = {}

-- Edits between a and b (insert, delete, replace, swap of neighbours).
local function distance(a, b)
  local before, row = nil, {}
  for j = 0, #b do row[j] = j end
  for i = 1, #a do
    local next_row = { [0] = i }
    for j = 1, #b do
      local same = a:byte(i) == b:byte(j)
      local d = math.min(row[j] + 1, next_row[j - 1] + 1, row[j - 1] + (same and 0 or 1))
      if before and i > 1 and j > 1 and a:byte(i) == b:byte(j - 1) and a:byte(i - 1) == b:byte(j) then
        d = math.min(d, before[j - 2] + 1)
      end
      next_row[j] = d
    end
    before, row = row, next_row
  end
  return row[#b]
end

--- nearest(word, known) -> the known word that word was probably meant to be, or nil.
-- known: an array of strings, or a table whose keys are the words.
function M.nearest(word, known)
  local best, best_d
  local list = known[1] and known or {}
  if not known[1] then
    for k in pairs(known) do list[#list + 1] = k end
    table.sort(list)
  end
  for _, k in ipairs(list) do
    local d = distance(word:lower(), tostring(k):lower())
    if not best_d or d < best_d then best, best_d = k, d end
  end
  if best_d and best_d <= math.max(1, math.floor(#word / 3)) then return best end
  return nil
end

--- hint(word, known) -> ' (did you mean "x"?)' or "".
function M.hint(word, known)
  local near = M.nearest(tostring(word), known)
  return near and (" (did you mean %q?)"):format(near) or ""
end

return M

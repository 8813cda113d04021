-- suggest: the known word nearest to a mistyped one, for "did you mean".

-- Edit distance with transpositions of neighbours; stops counting above `most`.
local function distance(a, b, most)
  if math.abs(#a - #b) > most then return most + 1 end
  local before, last, row = nil, {}
  for j = 0, #b do last[j] = j end
  for i = 1, #a do
    row = { [0] = i }
    for j = 1, #b do
      local cost = a:byte(i) == b:byte(j) and 0 or 1
      row[j] = math.min(last[j] + 1, row[j - 1] + 1, last[j - 1] + cost)
      if before and i > 1 and j > 1 and a:byte(i) == b:byte(j - 1) and a:byte(i - 1) == b:byte(j) then
        row[j] = math.min(row[j], before[j - 2] + 1)
      end
    end
    before, last = last, row
  end
  return last[#b]
end

local M = {}

--- nearest(word, known) -> the name in the array `known` that word most likely
-- meant, or nil. Case is ignored; a third of the letters may be wrong.
function M.nearest(word, known)
  local low, best, best_distance = tostring(word):lower(), nil, nil
  for _, name in ipairs(known) do
    local most = math.max(1, math.floor(math.max(#low, #name) / 3))
    local d = distance(low, name:lower(), most)
    if d <= most and (not best or d < best_distance) then best, best_distance = name, d end
  end
  return best
end

--- hint(word, known) -> '; did you mean "x"?' or "".
function M.hint(word, known)
  local best = M.nearest(word, known)
  return best and ('; did you mean "%s"?'):format(best) or ""
end

return M

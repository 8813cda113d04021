-- text: small helpers for sentences and names: suggestions, natural order, shapes.
local M = {}

-- Levenshtein distance, cut off above `limit`.
local function distance(a, b, limit)
  if math.abs(#a - #b) > limit then return limit + 1 end
  local row = {}
  for j = 0, #b do row[j] = j end
  for i = 1, #a do
    local diagonal = row[0]
    row[0] = i
    for j = 1, #b do
      local cost = a:byte(i) == b:byte(j) and 0 or 1
      local best = math.min(row[j] + 1, row[j - 1] + 1, diagonal + cost)
      diagonal, row[j] = row[j], best
    end
  end
  return row[#b]
end

--- nearest(word, words) -> the nearest of words (any case), or nil when none is near.
function M.nearest(word, words)
  word = tostring(word):lower()
  local limit = math.max(1, math.floor(#word / 2))
  local best, best_d
  for _, w in ipairs(words) do
    local d = distance(word, w:lower(), limit)
    if d <= limit and (not best_d or d < best_d) then best, best_d = w, d end
  end
  return best
end

--- did_you_mean(word, words) -> '; did you mean "x"?', or "; known: a b c" when nothing is near.
function M.did_you_mean(word, words)
  local near = M.nearest(word, words)
  if near then return ('; did you mean "%s"?'):format(near) end
  return "; known: " .. table.concat(words, " ")
end

--- natural_key(name) -> a string whose byte order is the natural order of names ("layers.2" before "layers.10").
function M.natural_key(name)
  return (name:gsub("%d+", function(d)
    d = d:gsub("^0+(%d)", "%1")
    return ("%02d%s"):format(#d, d)
  end))
end

--- shape(shape) -> "[256x32]"; shape: array of numbers.
function M.shape(s) return "[" .. table.concat(s, "x") .. "]" end

return M

-- text: small helpers for sentences: suggestions, names and their natural order, shapes.
local ffi = require "ffi"
local nffi = require "nibble.ffi"

local M = {}

-- ---- what a mistyped word was meant to be ----------------------------------------------

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

-- The name in the array `known` that word most likely meant, or nil. Case is ignored; a third of the letters may be wrong.
local function nearest(word, known)
  local low, best, best_distance = tostring(word):lower(), nil, nil
  for _, name in ipairs(known) do
    local most = math.max(1, math.floor(math.max(#low, #name) / 3))
    local d = distance(low, name:lower(), most)
    if d <= most and (not best or d < best_distance) then best, best_distance = name, d end
  end
  return best
end

--- hint(word, known) -> '; did you mean "x"?', or "" when no name in the array `known` is near.
function M.hint(word, known)
  local best = nearest(word, known)
  return best and ('; did you mean "%s"?'):format(best) or ""
end

--- did_you_mean(word, known) -> the hint, or "; known: a b c" when nothing is near.
function M.did_you_mean(word, known)
  local hint = M.hint(word, known)
  return hint ~= "" and hint or "; known: " .. table.concat(known, " ")
end

--- options(given, known) -> a copy of the table given (nil: empty) | nil, msg: a key that isn't in the array known
function M.options(given, known)
  local out = {}
  for key, value in pairs(given or {}) do
    local found
    for _, name in ipairs(known) do found = found or name == key end
    if not found then return nil, ("unknown option %s%s"):format(tostring(key), M.did_you_mean(tostring(key), known)) end
    out[key] = value
  end
  return out
end
nffi.interpreted(M.options)

-- ---- names and shapes ---------------------------------------------------------------------

--- split_name(name) -> module, suffix: at the last dot ("a.b.weight" -> "a.b", "weight"); name, "" without one.
function M.split_name(name)
  for i = #name, 1, -1 do
    if name:byte(i) == 46 then return name:sub(1, i - 1), name:sub(i + 1) end
  end
  return name, ""
end

--- leaf(name) -> what follows the last dot; the name without one.
function M.leaf(name)
  for i = #name, 1, -1 do
    if name:byte(i) == 46 then return name:sub(i + 1) end
  end
  return name
end

--- natural_sort(names) -> a new array in natural order: "layers.2" before "layers.10".
function M.natural_sort(names)
  local count = #names
  local texts, order, out = ffi.new("nb_text[?]", count), ffi.new("int64_t[?]", count), {}
  for i = 1, count do texts[i - 1].data, texts[i - 1].bytes = names[i], #names[i] end
  nffi.must(nffi.C.nb_natural_order(order, texts, count))
  for i = 1, count do out[i] = names[tonumber(order[i - 1]) + 1] end
  return out
end

--- shape(shape) -> "[256x32]"; shape: array of numbers.
function M.shape(s) return "[" .. table.concat(s, "x") .. "]" end

return M

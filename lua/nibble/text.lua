-- text: small helpers for sentences about names and shapes, and the natural order of names.
local ffi = require "ffi"
local nffi = require "nibble.ffi"
local suggest = require "nibble.suggest"

local M = {}

--- did_you_mean(word, words) -> '; did you mean "x"?', or "; known: a b c" when nothing is near.
function M.did_you_mean(word, words)
  local hint = suggest.hint(word, words)
  return hint ~= "" and hint or "; known: " .. table.concat(words, " ")
end

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

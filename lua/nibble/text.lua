-- text: small helpers for sentences about names and shapes, and the natural order of names.
local suggest = require "nibble.suggest"

local M = {}

--- did_you_mean(word, words) -> '; did you mean "x"?', or "; known: a b c" when nothing is near.
function M.did_you_mean(word, words)
  local hint = suggest.hint(word, words)
  return hint ~= "" and hint or "; known: " .. table.concat(words, " ")
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

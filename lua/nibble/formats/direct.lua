-- direct: the repacks that take one format's words to another's without codes between, and back: fast
-- paths beside the two-step way, with the same words (FORMATS 10; nibble.convert proves them by the inverse).
local C = require("nibble.ffi").C

local M = {}

local words = { awq = "qweight", gptq = "qweight", gptq_v2 = "qweight", ["compressed-tensors"] = "weight_packed" }

-- from > to: {forward, inverse, only these bits}.
local repacks = {
  ["awq>compressed-tensors"] = { C.nb_awq_to_ct, C.nb_ct_to_awq, 4 },
  ["compressed-tensors>awq"] = { C.nb_ct_to_awq, C.nb_awq_to_ct, 4 },
  ["awq>gptq"] = { C.nb_awq_to_gptq, C.nb_gptq_to_awq, 4 },
  ["gptq>awq"] = { C.nb_gptq_to_awq, C.nb_awq_to_gptq, 4 },
  ["gptq>compressed-tensors"] = { C.nb_gptq_to_ct, C.nb_ct_to_gptq },
  ["compressed-tensors>gptq"] = { C.nb_ct_to_gptq, C.nb_gptq_to_ct },
}

--- find(from, to, rec) -> {forward, inverse, from_words, to_words} | nil
-- from, to: formats' names; rec: the module's record. forward(out, words) and inverse(words, out) are C
-- functions over whole tensors; from_words and to_words are the suffixes of those tensors. nil where only
-- the way through codes serves: act-order, one scale a tensor, old variants, rows that don't fill words.
function M.find(from, to, rec)
  local s = rec.scheme
  local found = repacks[from:gsub("_v2$", "") .. ">" .. to:gsub("_v2$", "")]
  if not found or (found[3] and found[3] ~= s.bits) then return nil end
  if rec.variant or s.actorder == "group" or s.strategy == "tensor" then return nil end
  if rec.k * s.bits % 32 ~= 0 or rec.n * s.bits % 32 ~= 0 then return nil end
  return { forward = found[1], inverse = found[2], from_words = words[from], to_words = words[to] }
end

return M

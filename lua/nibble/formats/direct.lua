-- direct: the repacks that take one format's words to another's without codes between: fast paths beside
-- the two-step way, with the same words (FORMATS 10; the writer proves them by the way back).
local C = require("nibble.ffi").C

local M = {}

local words = { awq = "qweight", gptq = "qweight", gptq_v2 = "qweight", ["compressed-tensors"] = "weight_packed" }

-- from > to: {way, only these bits}.
local ways = {
  ["awq>compressed-tensors"] = { C.NB_AWQ_TO_CT, 4 },
  ["compressed-tensors>awq"] = { C.NB_CT_TO_AWQ, 4 },
  ["awq>gptq"] = { C.NB_AWQ_TO_GPTQ, 4 },
  ["gptq>awq"] = { C.NB_GPTQ_TO_AWQ, 4 },
  ["gptq>compressed-tensors"] = { C.NB_GPTQ_TO_CT },
  ["compressed-tensors>gptq"] = { C.NB_CT_TO_GPTQ },
}

--- find(from, to, rec) -> {way, from_words, to_words} | nil
-- from, to: formats' names; rec: the module's record. way: for writer:repack; from_words and to_words are the
-- suffixes of the tensors that hold the words. nil where only the way through codes serves: act-order, one
-- scale a tensor, old variants, rows that don't fill words.
function M.find(from, to, rec)
  local s = rec.scheme
  local found = ways[from:gsub("_v2$", "") .. ">" .. to:gsub("_v2$", "")]
  if not found or (found[2] and found[2] ~= s.bits) then return nil end
  if rec.variant or s.actorder == "group" or s.strategy == "tensor" then return nil end
  if rec.k * s.bits % 32 ~= 0 or rec.n * s.bits % 32 ~= 0 then return nil end
  return { way = found[1], from_words = words[from], to_words = words[to] }
end

return M

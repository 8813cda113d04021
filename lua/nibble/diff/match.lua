-- diff.match: which module of one checkpoint is which of the other. Names are the same but for prefixes that exporters
-- put before a model's own, and for a head that is tied to the embedding.
local M = {}

-- What exporters and wrappers put in front, longest first; what is left of it is the model's own name.
local prefixes = { "base_model.model.model.", "model.language_model.model.", "language_model.model.", "model.language_model.",
  "base_model.model.", "language_model.", "transformer.", "_orig_mod.", "module.", "model." }

local function own_name(name)
  for _, prefix in ipairs(prefixes) do
    if name:sub(1, #prefix) == prefix then return name:sub(#prefix + 1), prefix end
  end
  return name, ""
end

local function by_name(list)
  local names, own = {}, {}
  for _, rec in ipairs(list) do
    names[rec.name] = rec
    local short = own_name(rec.name)
    own[short] = own[short] == nil and rec or false -- false: several have it
  end
  return names, own
end

local function is_tied(ck) return type(ck.config) == "table" and ck.config.tie_word_embeddings == true end

-- The embedding that a tied head is; nil unless there is exactly one.
local function embedding(ck, list)
  if not is_tied(ck) then return nil end
  for _, rec in ipairs(list) do
    if rec.kind == "embedding" and rec.name:find "embed_tokens$" or rec.name:find "wte$" then return rec end
  end
end

local function is_head(rec) return own_name(rec.name) == "lm_head" end

--- pairs_of(ck_a, list_a, ck_b, list_b) -> pairs {{a=rec, b=rec}, …} in a's order, only_a, only_b (arrays of records),
-- notes (sentences about names that were reconciled)
function M.pairs_of(ck_a, list_a, ck_b, list_b)
  local out, only_a, only_b, notes, taken, renamed = {}, {}, {}, {}, {}, {}
  local names_b, own_b = by_name(list_b)
  local _, own_a = by_name(list_a)
  for _, rec in ipairs(list_a) do
    local other = names_b[rec.name]
    local short, prefix = own_name(rec.name)
    if not other and own_b[short] and own_a[short] then
      other = own_b[short]
      local _, theirs = own_name(other.name)
      local key = ("%q in one is %q in the other"):format(prefix, theirs)
      renamed[key] = (renamed[key] or 0) + 1
      if renamed[key] == 1 then notes[#notes + 1] = key end
    end
    if other and taken[other] then other = nil end
    if not other and is_head(rec) then
      other = embedding(ck_b, list_b)
      if other then notes[#notes + 1] = ("%s has no head of its own: it is tied to %s"):format(ck_b.name, other.name) end
    elseif other then taken[other] = true end
    if other then out[#out + 1] = { a = rec, b = other } else only_a[#only_a + 1] = rec end
  end
  for _, rec in ipairs(list_b) do
    local tied = not taken[rec] and is_head(rec) and embedding(ck_a, list_a)
    if tied then
      out[#out + 1] = { a = tied, b = rec }
      notes[#notes + 1] = ("%s has no head of its own: it is tied to %s"):format(ck_a.name, tied.name)
    elseif not taken[rec] then only_b[#only_b + 1] = rec end
  end
  for i, note in ipairs(notes) do
    if renamed[note] then notes[i] = ("names differ: %s (%d modules)"):format(note, renamed[note]) end
  end
  return out, only_a, only_b, notes
end

return M

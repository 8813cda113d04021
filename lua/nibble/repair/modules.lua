-- repair.modules: tensors that a module lacks or has too many of: weight_shape of packed weights, a tied LM head.
local json = require "nibble.json"
local match = require "nibble.match"
local tensor = require "nibble.tensor"
local text = require "nibble.text"

-- ---- weight_shape (FORMATS 4) ----------------------------------------------------------------

-- The scheme that a config means for a module | nil
local function scheme_of(view, module)
  local q = view.quantization
  if not q or q.config.quant_method ~= "compressed-tensors" then return nil end
  local ct_config = require "nibble.formats.ct_config"
  local st = ct_config.settings(view)
  local g = st and not match.ignored(module, st.ignore) and ct_config.named_group(st, module)
  return g and g.scheme
end

-- n, k of a packed weight: whole groups of columns tell k, or config.json's sizes do | nil
local function size_of(view, module, packed, expected)
  local s, scale = scheme_of(view, module), view:info(module .. ".weight_scale")
  local n, k = packed.shape[1], nil
  if s and s.strategy == "group" and scale and #scale.shape == 2 then k = scale.shape[2] * s.group
  elseif expected[module] and expected[module].n == n then k = expected[module].k end
  local bits = s and s.bits or 4
  if k and s and packed.shape[2] ~= math.ceil(k * bits / 32) and packed.shape[2] ~= math.ceil(k / math.floor(32 / bits)) then return nil end
  return k and n, k
end

local function weight_shape(view, _, report)
  local expected
  for _, info in ipairs(view.tensors) do -- what is added is at the end and no weight_packed
    local module, suffix = text.split_name(info.name)
    if suffix == "weight_packed" and info.dtype == "i32" and #info.shape == 2 and not view:info(module .. ".weight_shape") then
      expected = expected or view:expected()
      local n, k = size_of(view, module, info, expected)
      if n then
        view:rewrite(module, { weight_shape = { "i64", { 2 } } }, function()
          return { weight_shape = tensor.new("i64", { 2 }, { n, k }) }
        end)
        report.change { module = module, was = "no weight_shape", now = text.shape { n, k }, why = "weight_packed and its scales tell it" }
      else
        report.cannot(("%s has no weight_shape, and neither whole groups nor config.json's sizes tell its columns"):format(module))
      end
    end
  end
end

-- ---- the tied head -------------------------------------------------------------------------------

local heads = { "lm_head", "language_model.lm_head", "model.lm_head" }
local embeddings = { "model.embed_tokens.weight", "language_model.model.embed_tokens.weight", "model.language_model.embed_tokens.weight",
  "transformer.wte.weight" }

local function first_of(view, names, suffix)
  for _, name in ipairs(names) do
    local info = view:info(name .. suffix)
    if info then return info, name end
  end
end

local function of_head(name) return text.leaf((text.split_name(name))) == "lm_head" end

-- Whether there is one, or the index still knows of one that got lost.
local function has_head(view)
  for _, t in ipairs(view.tensors) do
    if of_head(t.name) then return true end
  end
  for _, name in ipairs(view.survey.map and json.keys(view.survey.map) or {}) do
    if of_head(name) then return true end
  end
end

local function same_values(view, a, b)
  if a.dtype ~= b.dtype or text.shape(a.shape) ~= text.shape(b.shape) then return false end
  local x, y = view:read(a), view:read(b)
  local same = x and y and x:equal(y)
  if x then x:drop() end
  if y then y:drop() end
  return same
end

local function untied(view, report, embedding)
  local architecture = type(view.config.architectures) == "table" and tostring(view.config.architectures[1]) or ""
  if not embedding or has_head(view) or not architecture:find "ForCausalLM$" then return true end
  report.change { file = "config.json", was = "tie_word_embeddings false, and no lm_head is stored", now = "true",
    why = "the only head there can be is the embedding" }
  return view:set_config("tie_word_embeddings", true)
end

local function tie(view, o, report)
  if not view.config then return end
  local embedding, head = first_of(view, embeddings, ""), first_of(view, heads, ".weight")
  local tied, wanted = view.config.tie_word_embeddings, o.set.tie_word_embeddings
  if tied == false then return untied(view, report, embedding) end
  if tied ~= true or not head or not embedding then return end
  if same_values(view, head, embedding) then
    view:drop(head.name)
    report.change { tensor = head.name, was = "a copy of the embedding that it is tied to", now = "left out",
      why = "loaders skip it or load it over the embedding" }
  elseif wanted == false then
    report.change { file = "config.json", was = "tie_word_embeddings true beside a head of its own", now = "false", why = "--set says so" }
    return view:set_config("tie_word_embeddings", false)
  elseif wanted == true then
    view:drop(head.name)
    report.change { tensor = head.name, was = "another matrix than the embedding that it is tied to", now = "left out",
      why = "--set says so" }
  else
    report.cannot(("config.json ties the head to the embedding, but %s holds other values; say which is meant: --set "
      .. "tie_word_embeddings=false keeps the head, true leaves it out"):format(head.name))
  end
end

return {
  { kind = "weight_shape", about = "weight_shape that packed weights of compressed-tensors lack", run = weight_shape },
  { kind = "tie", about = "a copy of the embedding as LM head though it is tied; tie_word_embeddings without a head", run = tie },
}

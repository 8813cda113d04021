-- check.ignore: lists of what is not quantized, in the dialects of five formats: entries that mean nothing, entries that mean
-- what is quantized, half of a fused layer, and float layers that no entry means.
local match = require "nibble.match"
local nffi = require "nibble.ffi"
local oracle = require "nibble.check.oracle"
local overrides = require "nibble.formats.overrides"
local present = require("nibble.methods.config").present
local regex = require "nibble.regex"
local text = require "nibble.text"

-- ---- entries in each dialect ---------------------------------------------------------------------

local function part(entry)
  return function(name) return name:find(entry, 1, true) ~= nil end
end

-- fnmatch, an exact name, or a part of one.
local function wildcard(entry)
  if not entry:find "[*?%[]" then return part(entry) end
  local lua = "^" .. entry:gsub("[%^%$%(%)%%%.%+%-]", "%%%0"):gsub("%*", ".*"):gsub("%?", ".") .. "$"
  return function(name) return name:find(lua) ~= nil end
end

local function expression(entry)
  return function(name) return match.name(entry, name) or false end
end

local function is_class(entry) return entry:find "^%u%w*$" ~= nil end

-- The list's key and how an entry is compared.
local dialects = {
  ["compressed-tensors"] = { keys = { "ignore" }, test = expression, says = "ignore" },
  awq = { keys = { "modules_to_not_convert" }, test = part, says = "modules_to_not_convert" },
  fp8 = { keys = { "ignored_layers", "modules_to_not_convert" }, test = part, says = "ignored_layers" },
  mxfp4 = { keys = { "modules_to_not_convert" }, test = part, says = "modules_to_not_convert" },
  modelopt = { keys = { "exclude_modules", "ignore" }, test = wildcard, says = "exclude_modules" },
  gptq = { rules = true, says = 'dynamic (as "-:" and a pattern)' },
  ["auto-round"] = { rules = true, says = "extra_config (with bits = 16)" },
}

local function dialect_of(context)
  local q = context.quantization
  if not q then return nil end
  local method = tostring(present(q.config, "quant_method") or overrides.method(context.ck)):lower()
  if method:find "^modelopt" or method == "nil" then method = "modelopt" end
  return dialects[method] or method:find "auto%-round" and dialects["auto-round"] or method:find "^gptq" and dialects.gptq or nil
end

-- -> array of {text, matches = function(name)}, the key they are under
local function entries_of(context)
  local d, q = dialect_of(context), context.quantization and context.quantization.config
  if not d then return {} end
  if type(q.quantization) == "table" then q = q.quantization end
  local out = {}
  if d.rules then
    local by = {} -- a key may be compared in several ways
    for _, rule in ipairs(overrides.rules(q, "", {}) or {}) do
      local key, before = tostring(rule.key), by[rule.key]
      if before then
        local first = before.matches
        before.matches = function(name) return first(name) or rule.matches(name) end
      else
        by[rule.key] = { text = key, matches = rule.matches }
        out[#out + 1] = by[rule.key]
      end
    end
    return out, type(q.dynamic) == "table" and "dynamic" or "extra_config"
  end
  local list, key = present(q, unpack(d.keys))
  for _, entry in ipairs(type(list) == "table" and list or {}) do
    if type(entry) == "string" then out[#out + 1] = { text = entry, matches = d.test(entry) } end
  end
  return out, key
end

-- ---- entries that mean nothing --------------------------------------------------------------------

-- Names of fused layers, which entries may be about too.
local function fused_names(context)
  local out, seen = {}, {}
  for _, rec in ipairs(context.modules) do
    local parent, leaf = text.split_name(rec.name)
    for _, group in ipairs(context.fused) do
      for _, member in ipairs(group) do
        local name = member == leaf and parent .. "." .. group.as
        if name and not seen[name] then
          seen[name], out[#out + 1] = true, name
        end
      end
    end
    local block = rec.name:match "^(.*%f[^.%z]experts)%.%d+%."
    if block and not seen[block] then
      seen[block], out[#out + 1] = true, block
    end
  end
  return out
end

local function means_any(entry, context, more)
  if context.by_name[entry.text] then return true end
  for _, rec in ipairs(context.modules) do
    if entry.matches(rec.name) then return true end
  end
  for _, name in ipairs(more()) do
    if entry.matches(name) then return true end
  end
  return false
end

-- A head that is tied is named by habit.
local function is_habit(entry) return entry:find("lm_head", 1, true) ~= nil end

local function nothing(context, add)
  if context.partial or context.faults.config then return end
  local names
  local function more()
    names = names or fused_names(context)
    return names
  end
  local entries, key = entries_of(context)
  for _, entry in ipairs(entries) do
    local broken = entry.text:sub(1, 3) == "re:" and not regex.compile(entry.text:sub(4))
    if broken then
      context.broken_pattern = true
      add { rule = "ignore-pattern", says = ("%s: %q is no regular expression that can be matched"):format(key, entry.text),
        fix = "mend the pattern", key = entry.text, source = context.quantization.source }
    elseif not is_class(entry.text) and not is_habit(entry.text) and not means_any(entry, context, more) then
      add { severity = "warning", says = ("%s: %q means no module"):format(key, entry.text), fix = "mend or remove the entry: a name is "
        .. "misspelt, or written as in another dialect", key = key, source = context.quantization.source }
    end
  end
end

-- ---- entries against what is stored ------------------------------------------------------------------

local function entry_of(context, name)
  for _, entry in ipairs(entries_of(context) or {}) do
    if entry.matches(name) then return entry.text end
  end
end

local function listed(context, add)
  oracle.tell(context, add, "listed", function(r)
    local entry = entry_of(context, r.a.name)
    return { fix = entry and ("take %q out of the list, or leave the layer float"):format(entry)
      or "let the config's targets name the layer, or leave it float", key = entry or "" }
  end)
end

local function halves(context, add)
  oracle.tell(context, add, "words", function(r)
    if context.broken_pattern and not r.says:find("share one precision", 1, true) then return nil end
    return { fix = "name all of the fused layer's parts, or none" }
  end)
end

-- Float layers whose names say that consumers build them unquantized anyway.
local function float_anyway(layer, rec)
  return oracle.is_router(rec.name) or layer.kind == "lm_head" or layer.kind == "router"
end

local function unlisted(context, add)
  local d = dialect_of(context)
  oracle.tell(context, add, "float", function(r)
    local weak = oracle.is_tower(r.layer.name) or oracle.is_router(r.layer.name)
    return { severity = weak and "note" or nil, says = ("the config quantizes it, and it is stored as %s"):format(tostring(r.b.dtype)),
      key = weak and "weak" or "", fix = ("name it in %s"):format(d and d.says or "the list of what is not quantized"),
      repair = { kind = "ignore" } }
  end)
end

-- ---- formats whose lists the oracle doesn't ask --------------------------------------------------------

-- Modules that the config names one by one.
local function named_only(context)
  local q = context.quantization.config
  if type(q.quantization) == "table" then q = q.quantization end
  return type((present(q, "quantized_layers"))) == "table"
end

local function matches(entries, name)
  for _, entry in ipairs(entries) do
    if entry.matches(name) then return entry.text end
  end
  return false
end

local function plain_lists(context, add)
  local s, d = oracle.selection(context), dialect_of(context)
  if not s or s.class ~= "scheme" or not d or d.rules or d == dialects.mxfp4 or named_only(context) then return end
  local entries = entries_of(context)
  for _, layer in ipairs(s.layers) do
    if (layer.kind == "linear" or layer.kind == "moe") and not oracle.explained(context, layer) then
      local yes, no, packed, plain
      for _, rec in ipairs(layer.members) do
        if matches(entries, rec.name) or matches(entries, layer.name) then yes = yes or rec else no = no or rec end
        if rec.scheme or rec.unreadable then packed = packed or rec else plain = plain or rec end
      end
      local function tell(f)
        context.explained[layer.name] = true
        f.module, f.source = layer.name, context.consumer
        add(f)
      end
      if yes and no and layer.kind == "linear" then
        tell { rule = "ignore-half-fused", key = "", fix = "name all of the fused layer's parts, or none",
          says = ("%s is ignored and %s is not, but they are one layer"):format(text.leaf(yes.name), text.leaf(no.name)) }
      elseif yes and packed then
        local entry = matches(entries, yes.name) or matches(entries, layer.name)
        tell { rule = "ignore-lists-quantized", key = entry, fix = ("take %q out of the list, or leave the layer float"):format(entry),
          says = ("%q means it, and it is stored packed"):format(entry) }
      elseif no and plain and not float_anyway(layer, plain) then
        local weak = oracle.is_tower(layer.name)
        tell { rule = "ignore-misses-float", severity = weak and "note" or nil, key = weak and "weak" or "",
          says = ("the config quantizes it, and it is stored as %s"):format(tostring(plain.dtype)),
          fix = ("name it in %s"):format(d.says), repair = { kind = "ignore" } }
      end
    end
  end
end

nffi.interpreted(entries_of)

return {
  { id = "ignore-means-nothing", about = "entries that mean no module; ignore-pattern: patterns that are none", run = nothing },
  { id = "ignore-half-fused", about = "entries that mean a part of a fused layer", consumer = true, run = halves },
  { id = "ignore-lists-quantized", about = "layers that the list names, or no target means, and that are quantized", consumer = true,
    run = listed },
  { id = "ignore-misses-float", about = "float layers that the config quantizes", consumer = true, run = unlisted },
  { id = "ignore-lists", about = "the same for formats whose lists are plain names (FP8, ModelOpt)", consumer = true, run = plain_lists },
}

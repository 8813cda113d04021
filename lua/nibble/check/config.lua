-- check.config: the quantization config: whether there is one, what it lacks, what it says that is no key or no value, what
-- the consumer doesn't take, and places that disagree.
local checkpoint = require "nibble.checkpoint"
local ct_args = require "nibble.formats.ct_args"
local json = require "nibble.json"
local methods_config = require "nibble.methods.config"
local nffi = require "nibble.ffi"
local oracle = require "nibble.check.oracle"
local overrides = require "nibble.formats.overrides"
local scheme_m = require "nibble.scheme"
local text = require "nibble.text"
local present = methods_config.present

local function config_of(context) return context.quantization and context.quantization.config or {} end

-- quant_method as consumers' lists have it | nil
local function method_of(context)
  if not context.quantization then return nil end
  local said = present(config_of(context), "quant_method") or overrides.method(context.ck)
  said = tostring(said):lower()
  if said == "intel/auto-round" then return "auto-round" end
  if said:find "^modelopt" then return "modelopt" end
  if said == "nil" and present(config_of(context), "producer") then return "modelopt" end
  return said == "gptq_v2" and "gptq" or said
end

local function keys_text(set)
  local names = {}
  for name in pairs(set) do names[#names + 1] = name end
  table.sort(names)
  return table.concat(names, ", ")
end
nffi.interpreted(keys_text)

-- ---- whatever the consumer --------------------------------------------------------------------

local function lost(context, add)
  if context.faults.packed and not context.ck.config_unknown then
    add { tensor = context.faults.packed, says = ("%s is quantized, but neither config.json nor a side file has a quantization config")
      :format(context.faults.packed), fix = "put the quantization config back", repair = { kind = "quantization_config" },
      source = "config.json" }
  end
end

local function unusable(context, add)
  if context.faults.config then
    add { file = context.quantization.source, says = context.faults.config, source = method_of(context), fix = "mend the config" }
  end
end

-- Keys that mean the same wherever they are.
local shared_keys = { "bits", "group_size", "sym", "desc_act", "zero_point", "quant_method", "checkpoint_format", "quant_algo",
  "version", "w_bit", "q_group_size" }

local function disagree(context, add)
  local q = context.quantization
  if not q or not q.source:find "^config%.json" then return end
  for _, name in ipairs(checkpoint.quant_files) do
    local other = checkpoint.read_object(context.ck.dir .. "/" .. name)
    if other and type(other.quantization) == "table" then other = other.quantization end
    for _, key in ipairs(shared_keys) do
      local a, b = present(q.config, key), other and present(other, key)
      if a ~= nil and b ~= nil and a ~= b and type(a) ~= "table" and tostring(a):lower() ~= tostring(b):lower() then
        add { severity = "warning", file = name, key = key, says = ("%s is %s in config.json and %s in %s"):format(key, tostring(a),
          tostring(b), name), fix = "make them agree: consumers read the one or the other", source = "config.json",
          repair = { kind = "side-file" } }
      end
    end
  end
end

-- Scales of the key-value cache, by their names' ends.
local function cache(context, add)
  local scheme = present(config_of(context), "kv_cache_scheme")
  local has, old = false, nil
  for _, rec in ipairs(context.modules) do
    local leaf = text.leaf(rec.name)
    has = has or leaf == "k_scale" or leaf == "v_scale"
    if leaf == "kv_scale" or rec.tensors.kv_scale then old = old or rec.name end
  end
  if old then
    add { severity = "warning", module = old, key = "", says = "kv_scale is deprecated: one number for keys and values",
      fix = "store k_scale and v_scale", source = "compressed-tensors" }
  elseif type(scheme) == "table" and scheme.dynamic ~= true and not has and not context.partial then
    add { severity = "warning", says = "kv_cache_scheme is there, and no k_scale or v_scale is stored: consumers take 1.0 for them",
      fix = "calibrate the cache's scales, or set kv_cache_scheme to null", source = "compressed-tensors" }
  end
end

-- ---- the consumer's rules -----------------------------------------------------------------------

local group_keys = { targets = true, weights = true, input_activations = true, output_activations = true, format = true }
local args = { "weights", "input_activations", "output_activations" }

-- compressed-tensors forbids keys that it doesn't know in arguments and groups.
local function extra_keys(context, add)
  local groups = config_of(context).config_groups
  if not context.facts.strict_args or method_of(context) ~= "compressed-tensors" or type(groups) ~= "table" then return end
  local function tell(where, says)
    context.told_config = true
    add { says = ("config_groups.%s: %s"):format(where, says), key = says, fix = "leave the key out", source = "compressed-tensors" }
  end
  for _, name in ipairs(json.keys(groups)) do
    local group = type(groups[name]) == "table" and not groups[name][1] and groups[name] or {}
    for _, key in ipairs(json.keys(group)) do
      if not group_keys[key] then tell(name, ("unknown key %s; a group has %s"):format(key, keys_text(group_keys))) end
    end
    for _, part in ipairs(args) do
      local found = type(group[part]) == "table" and group[part] ~= json.null and group[part]
      for _, key in ipairs(found and json.keys(found) or {}) do
        if not ct_args.known[key] then tell(name .. "." .. part, "unknown argument " .. key) end
      end
    end
  end
end

local function missing_keys(q, list)
  local out = {}
  for _, key in ipairs(list or {}) do
    local names = type(key) == "table" and key or { key }
    if present(q, unpack(names)) == nil then out[#out + 1] = table.concat(names, " or ") end
  end
  return out
end

local function required(context, add)
  local q, facts = context.quantization, context.facts
  if not q or context.faults.config then return end
  local config = type(q.config.quantization) == "table" and q.config.quantization or q.config
  local side = facts.side_requires and facts.side_requires[q.source]
  local list = side or (facts.requires or {})[method_of(context)]
  if side and not tostring((present(config, "quant_algo"))):find "NVFP4" then list = facts.requires.modelopt end
  for _, key in ipairs(missing_keys(config, list)) do
    context.told_config = true
    add { file = q.source, says = ("%s is missing"):format(key), fix = "add the key", key = key }
  end
end

local function refused(context, add)
  local q, facts = context.quantization, context.facts
  if not q or context.faults.config or context.told_config then return end
  local said = method_of(context)
  local s = oracle.selection(context)
  if s and s.refused then
    if not (s.refused:find("desc_act", 1, true)) then -- told as act-order
      add { says = s.refused, fix = facts.convert, source = context.consumer .. " " .. (s.refused_by or "") }
    end
  elseif context.selection_fault then
    add { says = context.selection_fault, fix = facts.convert }
  elseif facts.methods and not facts.methods[said] then
    context.told_config = true
    add { says = ("%s doesn't take quant_method %s; it takes %s"):format(context.consumer, said, keys_text(facts.methods)),
      fix = facts.convert }
  end
end

local function contains(list, x)
  for _, v in ipairs(list) do
    if v == x then return true end
  end
  return false
end

-- What the limits say against a module's scheme | nil
local function against(limits, rec)
  local s = rec.scheme
  if limits.bits and not contains(limits.bits, s.bits) then
    return ("%d bits; it takes %s"):format(s.bits, table.concat(limits.bits, ", "))
  end
  local storage = limits.storage and rec.storage
  if storage then
    local strategies = limits.storage[storage]
    if not strategies then return ("the format %s"):format(storage) end
    if type(strategies) == "table" and not contains(strategies, s.strategy) then
      return ("%s by %s; it takes %s"):format(storage, s.strategy, table.concat(strategies, ", "))
    end
    if limits.packed_symmetric and storage == "pack-quantized" and not s.symmetric then
      return "pack-quantized weights with zero-points"
    end
  end
end

local function limits(context, add)
  local facts, q = context.facts, config_of(context)
  local limit = facts.methods and facts.methods[method_of(context)]
  if not limit or context.told_config then return end
  local groups = type(q.config_groups) == "table" and #json.keys(q.config_groups) or 0
  if limit.groups and groups > limit.groups then
    context.told_config = true
    return add { says = ("the config has %d config groups, and %s takes %d"):format(groups, context.consumer, limit.groups),
      fix = "quantize all modules by one scheme" }
  end
  local algo = present(type(q.quantization) == "table" and q.quantization or q, "quant_algo")
  if limit.algos and algo and not contains(limit.algos, algo) then
    context.told_config = true
    return add { says = ("quant_algo is %s, and %s takes %s"):format(tostring(algo), context.consumer, table.concat(limit.algos, ", ")),
      fix = facts.convert }
  end
  for _, rec in ipairs(context.modules) do
    local why = rec.scheme and not context.explained[rec.name] and against(limit, rec)
    if why then
      context.explained[rec.name] = true
      add { module = rec.name, says = ("%s doesn't take %s (%s)"):format(context.consumer, why, scheme_m.describe(rec.scheme)), key = why,
        fix = "quantize by a scheme that it takes" }
    end
  end
end

local function transforms(context, add)
  local t = present(config_of(context), "transform_config")
  if type(t) ~= "table" or next(t) == nil then return end
  local groups = present(t, "config_groups")
  if type(groups) == "table" and next(groups) == nil then return end
  local over = context.facts.transforms == false
  add { severity = over and "error" or "note", fix = "quantize without transforms, or fold them into the weights",
    says = over and "transform_config is passed over, so that the weights come out rotated"
      or "transform_config: online rotations run only on some kernels, and cost time" }
end

local function sparsity(context, add)
  local s = present(config_of(context), "sparsity_config")
  local format = type(s) == "table" and present(s, "format")
  if context.facts.sparsity == false and format and format ~= "dense" then
    add { says = ("sparsity_config: weights are compressed as %s, which the consumer no longer loads"):format(tostring(format)),
      fix = "write the weights dense, and leave sparsity_config out" }
  end
end

return {
  { id = "config-lost", about = "quantized tensors without a quantization config", run = lost },
  { id = "config-unusable", about = "a quantization config that contradicts itself", run = unusable },
  { id = "config-disagrees", about = "config.json and a side file that say different things", run = disagree },
  { id = "cache-scales", about = "a key-value cache scheme without scales, or with a deprecated one", run = cache },
  { id = "config-extra-key", about = "keys that compressed-tensors forbids", consumer = true, run = extra_keys },
  { id = "config-missing-key", about = "keys that the consumer needs", consumer = true, run = required },
  { id = "config-refused", about = "methods, bits, schemes that the consumer doesn't take", consumer = true, run = refused },
  { id = "config-limits", about = "modules' schemes that the consumer doesn't take", consumer = true, run = limits },
  { id = "sparsity", about = "sparse weights at consumers that don't load them", consumer = true, run = sparsity },
  { id = "transforms", about = "transform_config at consumers that pass it over", consumer = true, run = transforms },
}

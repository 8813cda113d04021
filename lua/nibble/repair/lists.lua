-- repair.lists: what configs say otherwise than the tensors: act-order that is none, float layers that nothing lists, side
-- files that contradict config.json.
local checkpoint = require "nibble.checkpoint"
local json = require "nibble.json"
local layers = require "nibble.select.layers"
local match = require "nibble.match"
local patterns = require "nibble.patterns"
local policy = require "nibble.policy"
local text = require "nibble.text"
local common = require "nibble.formats.common"
local present = require("nibble.methods.config").present

-- Whether the modules can be read and the config is one that can be written back.
local function sound(view)
  local _, faults = view:modules()
  return view.quantization and #faults == 0 and not faults.config
end

-- ---- act-order that is none -------------------------------------------------------------------

local function out_of_order(view)
  for _, rec in ipairs((view:modules())) do
    if rec.scheme and rec.scheme.actorder == "group" then return true end
  end
end

local function orders(word) return word == "group" or word == "dynamic" or word == true end

local function actorder(view, _, report)
  if not sound(view) or out_of_order(view) then return end
  local config, was = view:quantization_copy(), nil
  if config.desc_act == true and config.group_size ~= -1 then
    config.desc_act, was = false, "desc_act true"
  end
  for _, key in ipairs(type(config.config_groups) == "table" and json.keys(config.config_groups) or {}) do
    local group = config.config_groups[key]
    local weights = type(group) == "table" and group.weights
    if type(weights) == "table" and weights ~= json.null and orders(weights.actorder) then
      weights.actorder, was = json.null, "actorder " .. tostring(weights.actorder)
    end
  end
  if not was then return end
  local ok, msg, code = view:set_quantization(config)
  if not ok then return nil, msg, code end
  local dropped = 0
  for i = #view.tensors, 1, -1 do
    local name = view.tensors[i].name
    if config.config_groups and text.leaf(name) == "weight_g_idx" then
      view:drop(name)
      dropped = dropped + 1
    end
  end
  report.change { file = view.quantization.source:match "^[^:]*", was = was, now = was:find "^desc" and "false" or "null",
    why = "the columns of every module are in order" .. (dropped > 0 and (", and %d weight_g_idx are left out"):format(dropped) or "") }
end

-- ---- float layers that nothing lists -------------------------------------------------------------

-- Names of the layers that the check says are stored float and quantized by the config.
local function flagged(view, consumer)
  local out = {}
  local result = require("nibble.check").run(view:as_now(), { values = false, consumer = consumer, tp = 1 })
  for _, f in ipairs(result and result.findings or {}) do
    for _, name in ipairs(f.repair and f.repair.kind == "ignore" and (f.modules or { f.module }) or {}) do out[name] = true end
  end
  return out
end

-- Modules that are float, and quantized by the config's word; the names of the others, by what they are.
local function missed(own, said, told, fused)
  local out, quantized, all = {}, {}, {}
  for i, entry in ipairs(own.entries) do
    all[i] = entry.name
    local layer = match.layer_names({ entry.name }, fused)[1]
    if entry.scheme then quantized[#quantized + 1] = entry.name
    elseif said:scheme(entry.name) and (told[entry.name] or told[layer]) then out[#out + 1] = entry.name end
  end
  return out, quantized, all
end

local function append(config, keys, entries)
  local _, key = present(config, unpack(keys))
  key = key or keys[1]
  local list = json.array {}
  for _, source in ipairs { type(config[key]) == "table" and config[key] ~= json.null and config[key] or {}, entries } do
    for _, entry in ipairs(source) do list[#list + 1] = entry end
  end
  config[key] = list
  return key
end

-- New rules before the old: the first that matches counts.
local function before(config, key, entries, value)
  local old = type(config[key]) == "table" and config[key] ~= json.null and config[key] or {}
  local rules = { __order = {} }
  for _, entry in ipairs(entries) do rules[entry], rules.__order[#rules.__order + 1] = value, entry end
  for _, k in ipairs(json.keys(old)) do rules[k], rules.__order[#rules.__order + 1] = old[k], k end
  config[key] = rules
  return key
end

local function regexes(names, all, prefix, exact)
  local out = {}
  for i, p in ipairs(patterns.regexes(names, all)) do out[i] = exact and p.name or prefix .. p.text end
  return out
end

-- By dialect: into the config, which key took the entries.
local add = {
  ["compressed-tensors"] = function(config, names, _, all) return append(config, { "ignore" }, regexes(names, all, "re:", true)) end,
  awq = function(config, names, quantized, _, fused)
    local list = patterns.substrings(names, match.with_layers(quantized, fused))
    return list and append(config, { "modules_to_not_convert" }, list)
  end,
  fp8 = function(config, names) return append(config, { "ignored_layers", "modules_to_not_convert" }, names) end,
  modelopt = function(config, names, _, all, fused)
    local inner = type(config.quantization) == "table" and config.quantization or config
    return append(inner, { "exclude_modules", "ignore" }, patterns.globs(match.with_layers(names, fused), match.with_layers(all, fused)))
  end,
  gptq = function(config, names, _, all, fused)
    return before(config, "dynamic", regexes(match.with_layers(names, fused), match.with_layers(all, fused), "-:"), {})
  end,
  ["auto-round"] = function(config, names, _, all)
    return before(config, "extra_config", regexes(match.with_layers(names, {}), match.with_layers(all, {}), "", true), { bits = 16 })
  end,
}

local function ignore(view, o, report)
  if not sound(view) then return end
  local config = view:quantization_copy()
  local said, own = policy.parse(nil, config, view), policy.of(view)
  if not said or not own then return end
  local fused = layers.structure(view.config)
  local told = flagged(view, o.consumer)
  local names, quantized, all = missed(own, said, told, fused)
  if #names == 0 then return end
  local key = add[said.name](config, names, quantized, all, fused)
  local after = key and policy.parse(nil, config, view)
  local same, why
  if after then same, why = after:scheme(names[1]) == false, "" end
  for _, name in ipairs(after and quantized or {}) do
    if not after:scheme(name) then same, why = false, name .. " would be left float, too" end
  end
  if not same then
    return report.cannot(("%s and %d more are float and not listed, and %s can't list them alone%s"):format(names[1], #names - 1, said.name,
      why and why ~= "" and ": " .. why or ""))
  end
  local ok, msg, code = view:set_quantization(config)
  if not ok then return nil, msg, code end
  for _, name in ipairs(names) do
    report.change { module = name, was = "stored float, quantized by the config's word", now = "named in " .. key }
  end
end

-- ---- side files ----------------------------------------------------------------------------------

local aliases = { w_bit = "bits", q_group_size = "group_size", exclude_modules = "ignore" }

-- A side file's keys as config.json spells them; ModelOpt's lie one deeper.
local function spelled(config)
  local inner, out = type(config.quantization) == "table" and config.quantization or config, {}
  for key, value in pairs(common.null_free(inner)) do out[aliases[key] or key] = value end
  return out
end

-- The first key that both have with different values.
local function disagreement(a, b)
  a, b = spelled(a), spelled(b)
  for _, key in ipairs(json.keys(a)) do
    if b[key] ~= nil and json.encode(a[key]) ~= json.encode(b[key]) and key ~= "meta" and key ~= "producer" then
      return ("%s = %s"):format(key, json.encode(b[key])), ("%s = %s"):format(key, json.encode(a[key]))
    end
  end
end

local function side_files(view, _, report)
  local q = view.quantization
  if not q or not q.source:find "^config%.json" then return end
  local _, faults = view:modules()
  for _, name in ipairs(checkpoint.quant_files) do
    local side = view.texts[name] and json.decode(view.texts[name])
    local was, is
    if view.texts[name] and type(side) ~= "table" then was, is = "no JSON object", "the config" end
    if type(side) == "table" then was, is = disagreement(q.config, side) end
    if was and (#faults > 0 or faults.config) then
      report.cannot(("%s says %s and config.json says %s, which its tensors contradict (%s); mend config.json first"):format(name,
        was, is, faults.config or faults[1].unreadable))
    elseif was then
      local keeps = q.config.quant_method == "gptq" and name == "quantize_config.json"
      view:set_text(name, keeps and json.encode(q.config, { indent = 2 }) .. "\n" or nil)
      report.change { file = name, was = was, now = keeps and is .. ", as config.json" or "left out",
        why = "config.json says " .. is .. ", and the tensors fit it" }
    end
  end
end

return {
  { kind = "actorder", about = "act-order in the config where every module's columns are in order", run = actorder },
  { kind = "ignore", about = "float layers that the config's ignore list forgets", run = ignore },
  { kind = "side-file", about = "quantize_config.json and the like that contradict config.json", run = side_files },
}

-- policy.dialects: how each quantization config says which module gets what, both ways.
--
-- A dialect: {name =, format = nibble's format that writes it | nil, write(records, fused) -> data | nil, msg, code,
-- read(data) -> reader | nil, msg, code, same(wanted, found) | nil}. A reader evaluates the data by the dialect's own rule:
--   module(name)          -> scheme | false: not quantized | nil, msg, code
--   layer(layer, fused)   -> the same of a layer that a consumer makes of modules (select.layers)
-- The rules are those of nibble.formats and nibble.methods; here they are only put together.
local formats = require "nibble.formats"
local match = require "nibble.match"
local patterns = require "nibble.patterns"
local schemes = require "nibble.scheme"
local text = require "nibble.text"
local common = require "nibble.formats.common"
local config = require "nibble.methods.config"

local M = { list = {} }

local function is_head(name) return text.leaf(name) == "lm_head" end

local function names_of(records)
  local out = {}
  for i, rec in ipairs(records) do out[i] = rec.name end
  return out
end

-- What a format's settings() looks at.
local function holder(data) return { name = "the policy", quantization = { config = data, source = "the data" } } end

local function add(dialect)
  M.list[#M.list + 1], M.list[dialect.name] = dialect, dialect
  local format = dialect.format and function() return assert(formats.get(dialect.format)) end
  if format then
    dialect.can = function(...) return format().can(...) end
    dialect.write = function(records, fused) return format().config(records, { fused = fused }) end
  end
end

-- ---- compressed-tensors: targets and ignore lists ---------------------------------------------

add { name = "compressed-tensors", format = "compressed-tensors", read = function(data)
  local st, msg, code = require("nibble.formats.ct_config").settings(holder(data))
  if not st then return nil, msg, code end
  local consumer
  consumer, msg, code = require("nibble.methods.ct_config").new(data, { where = "the data" })
  if not consumer then return nil, msg, code end
  local by_name = {}
  for _, g in ipairs(st.groups) do by_name[g.name] = g end
  local function of(g, why, kind)
    if g == nil then return nil, why, kind end
    return g and by_name[g.name] and by_name[g.name].scheme or false
  end
  local reader = {}
  function reader.module(name) return of(consumer:group(name, { class = "Linear" })) end
  function reader.layer(layer, fused)
    if layer.kind == "moe" then return of(consumer:moe_group(layer.name, { projections = layer.projections })) end
    return of(consumer:group(layer.name, { class = layer.kind == "lm_head" and "ParallelLMHead" or "Linear", fused = fused }))
  end
  return reader
end }

-- ---- AWQ: one scheme, and parts of names that stay floats ----------------------------------------

-- A reader where one scheme holds for all that a list does not skip.
local function skipping(base, list, head, mode)
  local reader = {}
  local function of(name, options)
    options.mode = mode
    local skipped, entry, code = match.skipped(name, list, options)
    if skipped == nil then return nil, entry, code end
    return not skipped and base
  end
  function reader.module(name)
    if is_head(name) and head ~= nil then return head and base end
    return of(name, {})
  end
  function reader.layer(layer, fused)
    if layer.kind == "lm_head" and head ~= nil then return head and base end
    return of(layer.name, { moe = layer.kind == "moe", fused = layer.fused and fused or nil })
  end
  return reader
end

-- AWQ stores zero-points of 8 for a symmetric weight: the two differ in nothing that the data could say.
local function same_group(wanted, found) return wanted.bits == found.bits and wanted.group == found.group end

add { name = "awq", format = "awq", same = same_group, read = function(data)
  local st, msg, code = assert(formats.get "awq").settings(holder(data))
  if not st then return nil, msg, code end
  local list
  list, msg, code = config.names(data, "the data", "modules_to_not_convert")
  if not list then return nil, msg, code end
  local base
  base, msg, code = schemes.new { bits = 4, group = st.group, symmetric = not st.zero_point }
  if not base then return nil, msg, code end
  return skipping(base, list, data.lm_head == true, "substring")
end }

-- ---- FP8: one scheme, and exact names that stay floats ----------------------------------------------

add { name = "fp8", format = "fp8", read = function(data)
  local fp8 = assert(formats.get "fp8")
  local st, msg, code = fp8.settings(holder(data))
  if not st then return nil, msg, code end
  local list
  list, msg, code = config.names(data, "the data", config.present(data, "ignored_layers") and "ignored_layers"
    or "modules_to_not_convert")
  if not list then return nil, msg, code end
  return skipping(assert(fp8.says(st)), list, nil, "exact")
end }

-- ---- GPTQ: `dynamic`, the first regular expression that matches ------------------------------------

local function by_says(format, data, also)
  local f = assert(formats.get(format))
  local st, msg, code = f.settings(holder(data))
  if not st then return nil, msg, code end
  local function module(name)
    if also and also(name) == false then return false end
    return f.says(st, name)
  end
  -- Consumers look for a layer under its own name, merged or not.
  return { module = module, layer = function(layer) return module(layer.name) end }
end

add { name = "gptq", format = "gptq", read = function(data)
  local layers = config.present(data, "modules_in_block_to_quantize") or {}
  if type(layers) ~= "table" then layers = { layers } end
  return by_says("gptq", data, function(name)
    if is_head(name) then return data.lm_head == true end
    return (match.listed(name, layers)) or false
  end)
end }

-- ---- ModelOpt: wildcards, and in mixed precision the modules' own entries ---------------------------

add { name = "modelopt", format = "modelopt", read = function(data)
  local reader, msg, code = by_says("modelopt", data)
  if not reader then return nil, msg, code end
  -- Of a merged layer in mixed precision the shards' entries count.
  function reader.layer(layer)
    local scheme, why, kind = reader.module(layer.name)
    if scheme ~= false or data.quant_algo ~= "MIXED_PRECISION" then return scheme, why, kind end
    return reader.module(layer.members[1].name)
  end
  return reader
end }

-- ---- AutoRound: extra_config and block_name_to_quantize ----------------------------------------------

-- What stands before the number of a layer; a name without one is its own block.
local function blocks_of(names)
  local out, seen = {}, {}
  for _, name in ipairs(names) do
    local block = name:match "^(.-)%.%d+%f[.%z]" or name
    if not seen[block] then out[#out + 1], seen[block] = block, true end
  end
  return out
end

local function begins_one(name, blocks)
  for _, block in ipairs(blocks) do
    if name:sub(1, #block) == block then return true end
  end
  return false
end

local function auto_round_fault(s)
  local other = common.weight_only_fault(s, "AutoRound")
  if other then return other end
  if s.strategy ~= "group" and s.strategy ~= "channel" then
    return ("AutoRound has scales by group or row, not by %s"):format(s.strategy)
  end
  if s.actorder == "group" then return "AutoRound writes no column groups (act-order)" end
end

local function auto_round(records)
  local kinds = common.by_scheme(records)
  if #kinds == 0 then return common.fail("einval", "no module is quantized: nothing to say as AutoRound") end
  local quantized, within, awq = {}, {}, true
  for _, rec in ipairs(records) do
    if rec.scheme then
      quantized[#quantized + 1] = rec.name
      awq = awq and rec.scheme.bits == 4 and not rec.scheme.symmetric
    end
  end
  local blocks = blocks_of(quantized)
  for _, name in ipairs(match.with_layers(names_of(records), {})) do
    if begins_one(name, blocks) then within[#within + 1] = name end
  end
  local extra, base = {}, kinds[1].scheme
  local function add_entries(names, fields)
    for _, p in ipairs(patterns.regexes(match.with_layers(names, {}), within)) do extra[p.name or p.text] = fields end
  end
  for i = 2, #kinds do
    local s = kinds[i].scheme
    add_entries(names_of(kinds[i].records), { bits = s.bits, group_size = s.group, sym = s.symmetric })
  end
  local floats = {}
  for _, name in ipairs(common.unquantized(records)) do
    if begins_one(name, blocks) then floats[#floats + 1] = name end
  end
  add_entries(floats, { bits = 16 })
  return { quant_method = "auto-round", bits = base.bits, group_size = base.group, sym = base.symmetric, data_type = "int",
    packing_format = awq and "auto_round:auto_awq" or "auto_round:auto_gptq", block_name_to_quantize = table.concat(blocks, ","),
    extra_config = next(extra) and extra or nil }
end

add { name = "auto-round", write = auto_round,
  can = function(s, _, k)
    local fault = auto_round_fault(s) or common.group_fault(s, k)
    return not fault, fault
  end,
  read = function(data)
    local c, msg, code = require("nibble.methods.inc_config").new(data, { where = "the data" })
    if not c then return nil, msg, code end
    local function of(name, kind, fused)
      local r, why, what = c:resolve(name, kind, fused)
      if not r then return nil, why, what end
      if not r.quantized then return false end
      return schemes.new { bits = r.bits, group = r.group, symmetric = r.sym }
    end
    return { module = function(name) return of(name, is_head(name) and "lm_head" or "linear") end,
      layer = function(layer, fused) return of(layer.name, layer.kind, fused) end }
  end }

M.list.autoround, M.list.inc = M.list["auto-round"], M.list["auto-round"]
M.list.ct = M.list["compressed-tensors"]

--- get(name) -> dialect | nil, msg, "einval"
function M.get(name)
  local found = M.list[tostring(name):lower()]
  if found then return found end
  local known = {}
  for i, d in ipairs(M.list) do known[i] = d.name end
  return nil, ("unknown dialect %q%s"):format(tostring(name), text.did_you_mean(name, known)), "einval"
end

--- of(data) -> dialect | nil, msg, "einval": by the quant_method that a config names.
function M.of(data)
  local method = config.present(data, "quant_method")
  if type(method) ~= "string" then
    return nil, "the data has no quant_method; name the dialect: policy.parse(dialect, data)", "einval"
  end
  return M.get((tostring(method):lower():gsub("^intel/", ""):gsub("^modelopt.*", "modelopt")))
end

return M

-- formats.ct_config: compressed-tensors' quantization_config: its config groups as schemes and targets, and
-- writing one (FORMATS 4, SYSTEMS CTM-SEL-02, CTM-SEL-03).
local json = require "nibble.json"
local match = require "nibble.match"
local patterns = require "nibble.patterns"
local schemes = require "nibble.scheme"
local presets = require "nibble.scheme_presets"
local activations = require "nibble.scheme_activations"
local text = require "nibble.text"
local common = require "nibble.formats.common"
local ct_args = require "nibble.formats.ct_args"
local fail = common.fail

local M = { PACKED = "pack-quantized" }

local torch_dtypes = { f8_e4m3 = "torch.float8_e4m3fn", e8m0 = "torch.uint8" }

-- ---- arguments ---------------------------------------------------------------------

--- activations_from_args(args) -> activations | nil, msg: of input_activations.
function M.activations_from_args(args)
  if type(args) ~= "table" then return nil, ("input_activations: expected an object, found %s"):format(tostring(args)) end
  local a, msg = ct_args.parse(args, { unknown = true })
  if not a then return nil, "input_activations: " .. msg end
  if a.actorder then return nil, ("input_activations: actorder = %s: activations have no order of columns"):format(a.actorder) end
  if a.block then return nil, "input_activations: block_structure: activations have no blocks of rows" end
  local out
  out, msg = activations.new { type = a.type, bits = a.bits, symmetric = a.symmetric, group = a.group, strategy = a.strategy,
    dynamic = a.dynamic, scale_dtype = a.scale_dtype }
  if not out then return nil, "input_" .. msg end
  return out
end

--- from_args(weights [, input_activations [, format]]) -> scheme | nil, msg, code
-- compressed-tensors' arguments with their defaults (CTM-SEL-03); format: one that says what scales are.
function M.from_args(args, inputs, format)
  local a, msg, code = ct_args.parse(args, { unknown = true })
  if not a then return nil, msg, code end
  if a.dynamic then return fail("eformat", "dynamic = %s: a stored weight has fixed scales", tostring(a.dynamic)) end
  local act, s
  if inputs then act, msg = M.activations_from_args(inputs) end
  if inputs and not act then return nil, msg, "eformat" end
  s, msg = schemes.new {
    type = a.type, bits = a.bits, symmetric = a.symmetric, group = a.group, strategy = a.strategy, block = a.block,
    actorder = a.actorder, activations = act, scale_dtype = a.scale_dtype or (format == "mxfp8-quantized" and "e8m0" or nil),
  }
  if not s then return nil, msg, "eformat" end
  return s
end

local function weight_args(s)
  return {
    num_bits = s.bits, type = s.type, symmetric = s.symmetric, strategy = s.strategy,
    group_size = s.group > 0 and s.group or json.null, dynamic = false, actorder = s.actorder or json.null,
    block_structure = s.block and json.array { s.block[1], s.block[2] } or nil, scale_dtype = torch_dtypes[s.scale_dtype],
  }
end

local function input_args(a)
  if not a then return json.null end
  return { num_bits = a.bits, type = a.type, symmetric = a.symmetric, strategy = a.strategy, group_size = a.group or json.null,
    dynamic = a.dynamic, actorder = json.null, scale_dtype = torch_dtypes[a.scale_dtype] }
end

--- storage(scheme) -> the format that compressed-tensors chooses for it ("float-quantized"), whatever it can hold.
function M.storage(s)
  if s.type == "int" then return s.activations and "int-quantized" or M.PACKED end
  local mx = s.scale_dtype == "e8m0" and s.strategy == "group"
  if s.bits == 4 then return mx and "mxfp4-pack-quantized" or "nvfp4-pack-quantized" end
  if mx then return "mxfp8-quantized" end
  return s.activations and "float-quantized" or "naive-quantized"
end

-- ---- reading -----------------------------------------------------------------------

-- One target -> function(name) -> bool; a class's name, and a pattern that can't be matched here, match no module.
local function name_matcher(target)
  return function(name) return match.name(target, name) or false end
end

-- A group whose key is a preset and whose value lists targets, spelled out.
local function spelled_out(name, value)
  local group = type(value) == "table" and common.null_free(value) or {}
  if not group[1] then return group end
  if ct_args.presets[name] then return { targets = value, weights = ct_args.presets[name] } end
  local s = presets.get(name) and schemes.try(name)
  if not s then return group end
  return { targets = value, weights = weight_args(s), input_activations = s.activations and input_args(s.activations) or nil }
end

local function parse_group(name, value, st, where)
  local group = spelled_out(name, value)
  if type(group.targets) ~= "table" then
    return fail("eformat", "%s: config_groups.%s has no list of targets", where, name)
  end
  if type(group.weights) ~= "table" then return true end
  local format = group.format or st.format
  if format == "mixed-precision" then
    return fail("eformat", '%s: the format is "mixed-precision", so config_groups.%s must name its own', where, name)
  end
  local g = { name = name, names = {}, classes = {}, seen = {} }
  for _, target in ipairs(group.targets) do
    g.names[#g.names + 1] = name_matcher(tostring(target))
    g.classes[tostring(target)] = true
  end
  local s, msg, code = M.from_args(group.weights, group.input_activations, format)
  if not s then return fail(code, "%s: config_groups.%s: %s", where, name, msg) end
  g.scheme, g.format = s, format or M.storage(s)
  if group.output_activations then g.unreadable = "quantized output activations" end
  st.groups[#st.groups + 1] = g
  return true
end

--- settings(ck) -> {groups={...}, ignore={...}, format=, where=} | nil, msg, code
-- A group: {name=, scheme=, format=, names={matchers}, classes={}, seen={}, unreadable=what|nil}.
function M.settings(ck)
  local config, where = common.null_free(ck.quantization.config), common.source_name(ck)
  local st = { groups = {}, ignore = {}, format = config.format, where = where }
  if type(config.config_groups) ~= "table" then return fail("eformat", "%s: config_groups is missing", where) end
  local names, groups = {}, {}
  for key, group in pairs(config.config_groups) do -- a list has numbers for names
    names[#names + 1], groups[tostring(key)] = tostring(key), group
  end
  for _, name in ipairs(text.natural_sort(names)) do
    local ok, msg, code = parse_group(name, groups[name], st, where)
    if not ok then return nil, msg, code end
  end
  for _, entry in ipairs(type(config.ignore) == "table" and config.ignore or {}) do
    st.ignore[#st.ignore + 1] = tostring(entry)
  end
  return st
end

--- first_name_match(settings, module) -> the group that names the module, by name or pattern | nil
function M.first_name_match(st, module)
  for _, g in ipairs(st.groups) do
    for _, matches in ipairs(g.names) do
      if matches(module) then return g end
    end
  end
end

--- named_group(settings, module) -> the group that names the module, or else its class (CTM-SEL-02) | nil
function M.named_group(st, module)
  local g = M.first_name_match(st, module)
  if g then return g end
  for _, candidate in ipairs(st.groups) do
    if candidate.classes.Linear then return candidate end
  end
end

-- ---- writing -----------------------------------------------------------------------

-- What the source's config says of other things than weights' formats, where it is compressed-tensors' too.
local function carried(ck, key)
  local config = ck and ck.quantization and ck.quantization.config
  if not config or config.quant_method ~= "compressed-tensors" then return nil end
  return config[key]
end

-- As the module is on the disk, or as it will be written.
local function storage_of(rec) return rec.storage or M.storage(rec.scheme) end

-- Entries that mean these names, of the names of all linear modules, and no other.
local function entries_of(names, all)
  local out = json.array {}
  for i, pattern in ipairs(patterns.regexes(names, all)) do out[i] = pattern.name or "re:" .. pattern.text end
  return out
end

local function names_of(records)
  local out = {}
  for i, rec in ipairs(records) do out[i] = rec.name end
  return out
end

-- A consumer's LM head is no Linear: where it is quantized, a target names it.
local function targets_of(kind, all, only)
  if not only then return entries_of(names_of(kind.records), all) end
  local out = json.array { "Linear" }
  for _, rec in ipairs(kind.records) do
    if text.leaf(rec.name) == "lm_head" then out[#out + 1] = rec.name end
  end
  return out
end

--- config(records [, {source = checkpoint}]) -> quantization_config
-- records: every module written. One config group where all are quantized alike, with target Linear and
-- the other linear layers in `ignore`; several groups name their modules by patterns. Each says its format; the
-- whole is "mixed-precision" where they differ. kv_cache_scheme and transform_config of the source stay.
function M.config(records, opts)
  local config_groups, kinds, whole = {}, common.by_scheme(records, storage_of), nil
  local all = names_of(common.linear(records))
  for i, kind in ipairs(kinds) do
    local targets, format = targets_of(kind, all, #kinds == 1), storage_of(kind.records[1])
    whole = (whole == nil or whole == format) and format or "mixed-precision"
    config_groups["group_" .. i - 1] = { targets = targets, weights = weight_args(kind.scheme), format = format,
      input_activations = input_args(kind.scheme.activations), output_activations = json.null }
  end
  local source = opts and opts.source
  return {
    quant_method = "compressed-tensors", format = whole, quantization_status = "compressed", version = "0.12.0",
    config_groups = config_groups, ignore = entries_of(common.unquantized(records), all),
    kv_cache_scheme = carried(source, "kv_cache_scheme") or json.null, global_compression_ratio = json.null,
    transform_config = carried(source, "transform_config"),
  }
end

--- fitting(settings, fits) -> the config group of a module that no target names, a note that says so | nil, why
-- fits(scheme): whether the module's tensors are those of a group's scheme; exactly one group's must be.
function M.fitting(st, fits)
  local fitting = {}
  for _, candidate in ipairs(st.groups) do
    if fits(candidate.scheme) then fitting[#fitting + 1] = candidate end
  end
  if #fitting == 1 then
    return fitting[1], ("no target of the config names it; config group %s fits its tensors"):format(fitting[1].name)
  end
  return nil, ("%d config groups fit its tensors"):format(#fitting)
end

return M

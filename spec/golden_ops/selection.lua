-- Golden operations: which quantization method a layer gets, and why: configs, name matching, dispatch.
local match = require "nibble.match"
local json = require "nibble.json"
local overrides = require "nibble.formats.overrides"
local ct_args = require "nibble.formats.ct_args"
local awq = require "nibble.methods.awq_config"
local gptq = require "nibble.methods.gptq_config"
local ct = require "nibble.methods.ct_config"

local function value(v) if v ~= json.null then return v end end
local function null(v) if v == nil then return json.null end return v end

local function rows(case, fn)
  local out = {}
  for i, row in ipairs(case.rows) do out[i] = fn(row) end
  return out
end

-- The result, or the kind of the peer's error where nibble refuses too.
local function outcome(row, ok, result)
  if ok then return { result = null(result) } end
  assert(row.error_type, "nibble refuses what the peer takes: " .. tostring(result))
  return { error_type = row.error_type }
end

local ops = {}

function ops.AWQMarlinConfig(case)
  return rows(case, function(row)
    local o = { platform = row.platform, capability = value(row.capability) }
    if row.fn == "is_awq_marlin_compatible" then return { result = (awq.convertible(row.config, o)) } end
    if row.fn == "override_quantization_method" then
      return { result = null((awq.override(row.config, value(row.user_quant), o))) }
    end
    local c, msg = awq.new(row.config, o)
    return outcome(row, c ~= nil, c and { pack_factor = c.pack_factor, repr = tostring(c) } or msg)
  end)
end

function ops.from_config(case)
  return rows(case, function(row)
    local c, msg
    if row.cls == "AutoAWQConfig" then c, msg = awq.new(row.config, { dialect = "auto_awq" })
    else c, msg = gptq.new(row.config) end
    return outcome(row, c ~= nil, c and tostring(c) or msg)
  end)
end

function ops.override_quantization_method(case)
  return rows(case, function(row)
    local config, choice = { quant_method = row.quant_method }, value(row.user_quant)
    local cls = row.cls == "AutoAWQConfig" and awq or gptq
    return { result = null((cls.override(config, choice, { dialect = "auto_awq", platform = row.platform }))) }
  end)
end

function ops.get_dynamic_override(case)
  return rows(case, function(row)
    local rules = assert(overrides.rules({ dynamic = row.dynamic }, "row"))
    return { result = null(gptq.dynamic(rules, row.layer_name, value(row.key), value(row.default))) }
  end)
end

function ops.is_layer_gptq_quantized(case)
  return rows(case, function(row)
    local yes, msg = match.listed(row.prefix, row.quantized_layers, row.fused_mapping)
    return outcome(row, yes ~= nil, yes == nil and msg or yes)
  end)
end

function ops.is_layer_skipped(case)
  return rows(case, function(row)
    local yes, msg = match.skipped(row.prefix, row.ignored, { mode = row.match_mode, fused = row.fused_mapping })
    return outcome(row, yes ~= nil, yes == nil and msg or yes)
  end)
end

function ops.find_matched_target(case)
  return rows(case, function(row)
    local target, how, code = match.target(row.targets, row.layer_name, { class = row.module, fused = row.fused_mapping })
    return outcome(row, not code, code and how or target)
  end)
end

function ops.should_ignore_layer(case)
  return rows(case, function(row)
    local yes, msg = match.ignored(row.layer_name, row.ignore, row.fused_mapping)
    return outcome(row, yes ~= nil, yes == nil and msg or yes)
  end)
end

ops["match_name/is_match"] = function(case)
  return rows(case, function(row)
    return { match_name = match.name(row.target, row.name), is_match_linear = match.module(row.target, row.name, "Linear") }
  end)
end

-- The arguments that the tables name.
local named = {
  w4g128 = { num_bits = 4, strategy = "group", group_size = 128 },
  w4g128a = { num_bits = 4, strategy = "group", group_size = 128, symmetric = false },
  w8ch = { num_bits = 8, strategy = "channel" }, w4ch = { num_bits = 4, strategy = "channel" },
  w3g = { num_bits = 3, strategy = "group", group_size = 64 }, w8t = { num_bits = 8, strategy = "tensor" },
  fp8t = { type = "float", strategy = "tensor" }, fp8c = { type = "float", strategy = "channel" },
  fp8b = { type = "float", strategy = "block", block_structure = { 128, 128 } },
  nvfp4 = { num_bits = 4, type = "float", strategy = "tensor_group", group_size = 16 },
  mxfp4 = { num_bits = 4, type = "float", strategy = "group", group_size = 32 },
  mxfp8 = { num_bits = 8, type = "float", strategy = "group", group_size = 32, scale_dtype = "torch.uint8" },
  i8tok = { strategy = "token", dynamic = true }, i8ten = { strategy = "tensor" },
  i8tok_asym = { strategy = "token", dynamic = true, symmetric = false },
  f8tok = { type = "float", strategy = "token", dynamic = true }, f8ten = { type = "float", strategy = "tensor" },
  f8g128 = { type = "float", strategy = "group", group_size = 128, dynamic = true },
}

local function args(name, local_scales)
  if value(name) == nil then return nil end
  local a = assert(ct_args.parse(named[name]))
  if local_scales and name == "nvfp4" then a.dynamic = "local" end
  return a
end

ops["CompressedTensorsConfig._get_scheme_from_parts"] = function(case)
  return rows(case, function(row)
    local rule, msg = ct.method_of { weights = args(row.weights), activations = args(row.input, true), format = row.format,
      kind = "linear", capability = row.capability }
    return outcome(row, rule ~= nil, rule and rule.peer or msg)
  end)
end

function ops.infer_module_format(case)
  return rows(case, function(row)
    return { result = ct_args.format(args(row.weights), args(row.input)) }
  end)
end

return ops

-- Golden operations: tables of what Marlin takes.
local marlin = require "nibble.marlin"
local json = require "nibble.json"

local function value(v) if v ~= json.null then return v end end

local function rows(case, fn)
  local out = {}
  for i, row in ipairs(case.rows) do out[i] = fn(row) end
  return out
end

local ops = {}

function ops.scalar_types(case)
  return rows(case, function(row)
    local t = marlin.types[row.name]
    local min, max = marlin.type_range(row.name)
    local id = tostring(t.id):gsub("ULL$", "")
    assert(marlin.type_of_id(t.id).id == t.id)
    return { id = id, size_bits = t.bits, bias = t.bias, min = min, max = max }
  end)
end

function ops.query_marlin_supported_quant_types(case)
  return rows(case, function(row)
    return { types = marlin.supported_types { platform = row.platform, capability = value(row.capability),
                                              zero_points = value(row.has_zp), floats = row.include_fp_type } }
  end)
end

ops["_check_marlin_supported / verify_marlin_supported"] = function(case)
  return rows(case, function(row)
    return { supported = marlin.check_supported(row.quant_type, value(row.group_size), value(row.has_zp),
                                                value(row.capability), row.platform) }
  end)
end

function ops.check_marlin_supports_shape(case)
  return rows(case, function(row)
    return { supported = (marlin.supports_shape(row.output_size_per_partition, row.input_size_per_partition,
                                                row.input_size, row.group_size)) }
  end)
end

function ops.check_marlin_supports_layer(case)
  return rows(case, function(row)
    return { supported = (marlin.supports_layer(row.output_size_per_partition, row.input_size_per_partition,
                                                row.input_size, row.group_size, row.allow_tile_padding)) }
  end)
end

function ops.check_moe_marlin_supports_layer(case)
  return rows(case, function(row)
    return { supported = (marlin.supports_moe(row.hidden_size, row.intermediate, row.group_size,
                                              { platform = row.platform, pad = row.allow_tile_padding })) }
  end)
end

ops["MarlinLinearKernel.can_implement"] = function(case)
  return rows(case, function(row)
    return { supported = (marlin.can_implement { type = row.weight_type, zero_points = row.zero_points,
      group = row.group_size, k = row.partition[1], n = row.partition[2], k_full = row.full[1], capability = 80 }) }
  end)
end

function ops.marlin_padded_nk(case)
  return rows(case, function(row)
    local n, k = marlin.padded_size(row.size_n, row.size_k, row.group_size)
    return { padded_n = n, padded_k = k }
  end)
end

function ops.marlin_moe_padded_intermediate(case)
  return rows(case, function(row) return { padded = marlin.padded_intermediate(row.intermediate, row.group_size) } end)
end

function ops.marlin_repeat_scales_on_all_ranks(case)
  return rows(case, function(row) return { result = marlin.scales_on_all_ranks(row.group_size, row.is_row_parallel) } end)
end

function ops.get_marlin_input_dtype(case)
  local names = { int8 = "int8", fp8 = "float8_e4m3fn", none = json.null }
  return rows(case, function(row)
    local dtype, reason = marlin.activation_dtype(value(row.VLLM_MARLIN_INPUT_DTYPE), row.capability)
    if dtype then return { result = names[dtype] } end
    assert(reason:find "int8")
    return { error_type = "ValueError" }
  end)
end

function ops.marlin_make_workspace_new(case)
  return rows(case, function(row)
    return { workspace_len = marlin.workspace(row.sms, row.max_blocks_per_sm):numel() }
  end)
end

function ops.MarlinWorkspace(case)
  return rows(case, function(row) return { size = marlin.workspace_legacy(row.out_features):numel() } end)
end

return ops

-- repair.config: a quantization config that got lost, derived from the tensors: their names tell the format, their shapes
-- bits and groups, their zero-points symmetry (FORMATS 2-6). What they don't tell is asked for by name.
local nffi = require "nibble.ffi"
local formats = require "nibble.formats"
local layers = require "nibble.select.layers"
local schemes = require "nibble.scheme"
local tensor = require "nibble.tensor"
local text = require "nibble.text"
local common = require "nibble.formats.common"
local C, must = nffi.C, nffi.must

local function numel(info)
  local n = 1
  for _, d in ipairs(info.shape) do n = n * d end
  return n
end

-- A module -> its tensors by suffix, in the view's order.
local function by_module(view)
  local order, by = {}, {}
  for _, info in ipairs(view.tensors) do
    local module, suffix = text.split_name(info.name)
    if not by[module] then by[module], order[#order + 1] = {}, module end
    by[module][suffix] = info
  end
  return order, by
end

-- group of a scale's columns: -1 where one scale serves the row.
local function group_of(k, groups) return groups == 1 and -1 or k / groups end

local function whole(x) return x == math.floor(x) and x > 0 end

-- ---- GPTQ and AWQ ------------------------------------------------------------------------------

local widths = { 4, 8, 2, 3 }

local function bits_by(width, count)
  for _, b in ipairs(widths) do
    if math.ceil(count * b / 32) == width then return b end
  end
end

-- Whether all zero-points are in the middle, read with this much added: 1 (GPTQ v1) or 0 (v2).
local function centered(view, t, bits, n, plus)
  local words, msg, code = view:read(t.qzeros)
  if not words then return nil, msg, code end
  local zeros = tensor.new("u8", { n, t.qzeros.shape[1] })
  must(C.nb_gptq_unpack_zeros(zeros, words, bits, 0, n, plus))
  local p, middle, all = zeros:ptr(), 2 ^ (bits - 1), true
  for i = 0, zeros:numel() - 1 do all = all and p[i] == middle end
  zeros:free()
  return all
end

-- -> {format, n, k, scheme} | nil, what is missing
local function of_gptq(view, module, t, set, expected)
  local n, groups, rows = t.scales.shape[2], t.scales.shape[1], t.qweight.shape[1]
  local bits = set.bits or t.qzeros and bits_by(t.qzeros.shape[2], n)
  local k = t.g_idx and t.g_idx.shape[1] or bits and rows * 32 / bits
  if not bits and (k or expected) then bits = bits_by(rows, k or expected.k) end
  if not bits then return nil, "bits (--set bits=4)" end
  k = k or rows * 32 / bits
  if not whole(k) or not whole(k / groups) then
    return nil, ("a sound shape: %s.qweight %s holds no whole columns of %d bits"):format(module, text.shape(t.qweight.shape), bits)
  end
  local words = { groups, math.ceil(n * bits / 32) }
  if t.qzeros and (t.qzeros.dtype ~= "i32" or text.shape(t.qzeros.shape) ~= text.shape(words)) then
    return nil, ("a sound shape: %s.qzeros is %s for %s of %d bits"):format(module, text.shape(t.qzeros.shape), text.shape(words), bits)
  end
  local acts = false
  if t.g_idx and (t.g_idx.dtype ~= "i32" or #t.g_idx.shape ~= 1) then
    return nil, ("a sound shape: %s.g_idx is %s %s"):format(module, t.g_idx.dtype, text.shape(t.g_idx.shape))
  end
  if t.g_idx and groups > 1 then
    local g_idx, msg = view:read(t.g_idx)
    if not g_idx then return nil, msg end
    acts = common.acts(module, g_idx, k / groups, groups) == true
  end
  local s, why = schemes.new { bits = bits, group = group_of(k, groups), symmetric = true, actorder = acts and "group" or nil }
  if not s then return nil, why end
  return { family = "gptq", n = n, k = k, scheme = s }
end

local function of_awq(_, module, t)
  local n, k, groups = t.scales.shape[2], t.qweight.shape[1], t.scales.shape[1]
  if not whole(k / groups) then return nil, ("a sound shape: %s has %d columns in %d groups"):format(module, k, groups) end
  local s = assert(schemes.new { bits = 4, group = group_of(k, groups), symmetric = not t.qzeros })
  return { family = "awq", n = n, k = k, scheme = s }
end

local function of_qweight(view, module, t, set, expected)
  if not t.scales or #t.scales.shape ~= 2 or #t.qweight.shape ~= 2 then
    return nil, ("a layout that nibble derives: %s has no scales of two dimensions"):format(module)
  end
  if t.qweight.shape[2] == t.scales.shape[2] then return of_gptq(view, module, t, set, expected) end
  if t.qweight.shape[2] * 8 == t.scales.shape[2] then return of_awq(view, module, t) end
  return nil, ("a layout that nibble derives: %s.qweight is %s beside scales %s"):format(module, text.shape(t.qweight.shape),
    text.shape(t.scales.shape))
end

-- ---- compressed-tensors ----------------------------------------------------------------------------

local function of_packed(view, module, t, set, expected)
  local packed, scale = t.weight_packed, t.weight_scale
  if not scale then return nil, module .. ".weight_scale" end
  local n = packed.shape[1]
  if packed.dtype == "u8" then
    local k = packed.shape[2] * 2
    if scale.dtype == "f8_e4m3" then
      return { family = "compressed-tensors", n = n, k = k, scheme = schemes.parse(t.input_global_scale and "NVFP4" or "NVFP4A16") }
    end
    if not set.scheme then return nil, "whether inputs are quantized, too (--set scheme=MXFP4 or --set scheme=MXFP4A16)" end
    return { family = "compressed-tensors", n = n, k = k }
  end
  local k, shape = expected and expected.k, t.weight_shape
  if shape and (numel(shape) ~= 2 or shape.dtype ~= "i64") then return nil, module .. ".weight_shape, which is no two numbers" end
  if shape then k = view:read(shape):get(2) end
  if not k then return nil, ("%s.weight_shape"):format(module) end
  local bits = set.bits
  for b = 8, 2, -1 do
    if not bits and math.ceil(k * b / 32) == packed.shape[2] then bits = b end
  end
  if not bits then return nil, "bits (--set bits=4)" end
  local single = numel(scale) == 1 and n > 1
  local groups = single and 1 or scale.shape[2] or 1
  local s, why = schemes.new { bits = bits, group = not single and group_of(k, groups) or nil, symmetric = t.weight_zero_point == nil,
    actorder = t.weight_g_idx and "group" or nil }
  if not s then return nil, why end
  return { family = "compressed-tensors", n = n, k = k, scheme = s }
end

-- ---- codes of one byte each ---------------------------------------------------------------------------

local function of_bytes(_, module, t, set)
  local w, scale, n = t.weight, t.weight_scale_inv or t.weight_scale, t.weight.shape[1]
  local k = w.dtype == "u8" and w.shape[2] * 2 or w.shape[2]
  local function is(family, words, fields)
    return { family = family, n = n, k = k, scheme = words and schemes.parse(words, fields) }
  end
  if t.weight_scale_2 then return is("modelopt", t.input_scale and "NVFP4" or "NVFP4A16") end
  if t.weight_scale_inv then
    local rows, columns = scale.shape[1] or 0, scale.shape[2] or 0
    local side = set.block or 128
    if math.ceil(n / side) ~= rows or math.ceil(k / side) ~= columns then
      return nil, ("the blocks' size: %s has %d×%d scales for [%d×%d] (--set block=64)"):format(module, rows, columns, n, k)
    end
    return is("fp8", "FP8_BLOCK", { block = { side, side }, activations = { type = "float", bits = 8, symmetric = true,
      strategy = "group", group = side, dynamic = true } })
  end
  if w.dtype == "f8_e4m3" and numel(scale) == 1 then
    return is("fp8", t.input_scale and "FP8" or "FP8 act:fp8:token")
  end
  if w.dtype == "f8_e4m3" and #scale.shape == 1 then return is("modelopt", "FP8_DYNAMIC") end
  if set.scheme then return is("compressed-tensors") end
  return nil, w.dtype == "i8" and "how inputs are quantized (--set scheme=W8A8, or the scheme that it was)"
    or "how inputs are quantized (--set scheme=FP8_DYNAMIC or --set scheme=FP8A16)"
end

-- A weight without elements tells nothing.
local function is_empty(t)
  for _, info in ipairs { t.qweight or t.weight_packed or t.weight, t.scales } do
    if numel(info) == 0 then return true end
  end
end

local function family_of(t)
  if is_empty(t) then return nil end
  if t.qweight then return of_qweight end
  if t.weight_packed then return of_packed end
  local w = t.weight
  if w and #w.shape == 2 and (w.dtype == "f8_e4m3" or w.dtype == "i8" or w.dtype == "u8") and (t.weight_scale or t.weight_scale_inv) then
    return of_bytes
  end
end

-- ---- all modules together -------------------------------------------------------------------------------

-- A row that is one group of the size that the others have counts as theirs.
local function settle_groups(records)
  local count, most = {}, nil
  for _, rec in ipairs(records) do
    local g = rec.scheme and rec.scheme.strategy == "group" and rec.scheme.type == "int" and rec.scheme.group
    if g then
      count[g] = (count[g] or 0) + 1
      if not most or count[g] > count[most] then most = g end
    end
  end
  for _, rec in ipairs(most and records or {}) do
    local s = rec.scheme
    if s and s.strategy == "channel" and s.type == "int" and rec.k == most then
      rec.scheme = assert(schemes.new { bits = s.bits, group = most, symmetric = s.symmetric })
    end
  end
end

-- Of GPTQ: which of its two formats, and whether symmetric | nil, what is missing
local function settle_zeros(view, records, set)
  local v1, v2, some = true, true, false
  for _, rec in ipairs(records) do
    if rec.family == "gptq" and rec.tensors.qzeros then
      some = true
      if v1 then v1 = centered(view, rec.tensors, rec.scheme.bits, rec.n, 1) end
      if v2 then v2 = centered(view, rec.tensors, rec.scheme.bits, rec.n, 0) end
    end
  end
  local format, symmetric = set.checkpoint_format, set.sym
  if symmetric == nil then symmetric = v1 or v2 end
  if not format then
    if some and not v1 and not v2 then
      return nil, "whether zero-points are stored less one (--set checkpoint_format=gptq) or as they are (--set "
        .. "checkpoint_format=gptq_v2)"
    end
    format = (v1 or not some) and "gptq" or "gptq_v2"
  end
  if format ~= "gptq" and format ~= "gptq_v2" then
    return nil, ("the format: checkpoint_format is gptq or gptq_v2, not %s"):format(tostring(format))
  end
  for _, rec in ipairs(records) do
    if rec.family == "gptq" then
      rec.scheme = common.with(rec.scheme, {})
      rec.scheme.symmetric = symmetric
    end
  end
  return format
end

-- Records of the quantized modules as their tensors tell them | nil, sentence
local function derived(view, set)
  local order, by = by_module(view)
  local records, family, leader = {}, nil, nil
  local expected = view:expected()
  for _, module in ipairs(order) do
    local probe = family_of(by[module])
    if probe then
      nffi.stop_check()
      local rec, missing = probe(view, module, by[module], set, expected[module])
      if not rec then return nil, "the tensors don't tell " .. missing end
      if family and rec.family ~= family then
        return nil, ("%s looks like %s and %s like %s: no one config says both"):format(leader, family, module, rec.family)
      end
      family, leader = rec.family, leader or module
      if set.scheme then
        local told = rec.scheme
        rec.scheme, missing = schemes.try(set.scheme)
        if not rec.scheme then return nil, missing end
        if told and (told.type ~= rec.scheme.type or told.bits ~= rec.scheme.bits) then
          return nil, ("the scheme %s that --set names is not what %s holds: %s"):format(set.scheme, module, schemes.describe(told))
        end
      end
      if set.group_size and rec.scheme.type == "int" then
        rec.scheme, missing = schemes.try(rec.scheme, { group = set.group_size })
        if not rec.scheme then return nil, missing end
      end
      rec.name, rec.kind, rec.tensors = module, "linear", by[module]
      records[#records + 1] = rec
    end
  end
  return records, family
end

local function summary(records, family)
  local words = {}
  for i, kind in ipairs(common.by_scheme(records)) do
    if i <= 3 then words[i] = ("%s (%d modules)"):format(schemes.describe(kind.scheme), #kind.records) end
  end
  return family .. ": " .. table.concat(words, ", ")
end

-- The config is tried on; where the tensors refuse it, config.json is as it was.
local function try_on(view, config, told, report)
  local before = view.texts["config.json"]
  local ok, msg, code = view:set_config("quantization_config", config)
  if not ok then return nil, msg, code end
  local _, faults = view:modules()
  local fault = faults.config or faults[1] and faults[1].unreadable
  if not fault then
    return report.change { file = "config.json", was = "no quantization_config", now = told, why = "the tensors tell it" }
  end
  view.quantization = nil
  view:set_text("config.json", before)
  view:forget()
  report.cannot(("the config that the tensors seem to mean (%s) does not fit them: %s"):format(told, fault))
end

local function quantization_config(view, o, report)
  if view.quantization then return end
  local records, family = derived(view, o.set)
  if not records then return report.cannot(family) end
  if #records == 0 then return end
  settle_groups(records)
  local format = family
  if family == "gptq" then
    local missing
    format, missing = settle_zeros(view, records, o.set)
    if not format then return report.cannot("the tensors don't tell " .. missing) end
  end
  local quantized = {}
  for _, rec in ipairs(records) do quantized[rec.name] = true end
  local told = summary(records, format)
  for _, rec in ipairs((view:modules())) do
    if rec.kind == "linear" and not quantized[rec.name] then records[#records + 1] = { name = rec.name, kind = "linear" } end
  end
  local config, msg = assert(formats.get(format)).config(records, { fused = (layers.structure(view.config)) })
  if not config then return report.cannot(msg) end
  return try_on(view, config, told, report)
end

return {
  { kind = "quantization_config", about = "a quantization config that is lost, from the tensors", run = quantization_config },
}

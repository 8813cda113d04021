-- formats.modelopt: NVIDIA ModelOpt's exports (FORMATS 6), by quant_algo, one for the checkpoint or (MIXED_PRECISION)
-- one a module:
--
--   NVFP4, W4A16_NVFP4          weight U8 [n,k/2]; weight_scale F8_E4M3 [n,k/16]; weight_scale_2 F32 []
--   FP8                         weight F8_E4M3 [n,k]; weight_scale F32 []
--   FP8_PER_CHANNEL_PER_TOKEN   weight F8_E4M3 [n,k]; weight_scale F32 [n]
--   FP8_PB_WO                   weight F8_E4M3 [n,k]; weight_scale F32 [ceil(n/128),1,ceil(k/128),1] (2-D seen)
--   MXFP8                       weight F8_E4M3 [n,k]; weight_scale U8 [n,k/32]
--   input_scale F32 []          NVFP4 and FP8: activations with a calibrated scale
-- NVFP4: w = code * weight_scale * weight_scale_2. Where others keep a divisor ModelOpt keeps a factor, here in
-- q.factor (weight_scale_2) and q.input_factor; q.global and q.input_global are their reciprocals in float32.
local nffi = require "nibble.ffi"
local json = require "nibble.json"
local match = require "nibble.match"
local patterns = require "nibble.patterns"
local scheme = require "nibble.scheme"
local common = require "nibble.formats.common"
local floats = require "nibble.formats.floats"
local fail, expect = common.fail, common.expect
local C, must = nffi.C, nffi.must

local M = { name = "modelopt", title = "ModelOpt (NVFP4, FP8, MXFP8)", factors = true }

local BLOCK = 128

-- ---- algorithms ------------------------------------------------------------------------

local fp8_static = { type = "float", bits = 8, symmetric = true, strategy = "tensor", dynamic = false }
local fp8_token = { type = "float", bits = 8, symmetric = true, strategy = "token", dynamic = true }
local fp8_groups = { type = "float", bits = 8, symmetric = true, strategy = "group", group = BLOCK, dynamic = true }
local mxfp8 = { type = "float", bits = 8, symmetric = true, strategy = "group", group = 32, dynamic = true, scale_dtype = "e8m0" }
local nvfp4 = { type = "float", bits = 4, symmetric = true, strategy = "tensor_group", group = 16, dynamic = "local",
  scale_dtype = "f8_e4m3" }

-- In the order in which a scheme is looked for: the fields of its scheme, the dtypes and shapes of its tensors.
-- Consumers compute FP8_PB_WO with activations in groups of 128, whatever WO (weight only) says.
local algos = {
  { name = "NVFP4", strategy = "tensor_group", bits = 4, group = 16, scale_dtype = "f8_e4m3", activations = nvfp4, scales = "f8_e4m3" },
  { name = "W4A16_NVFP4", strategy = "tensor_group", bits = 4, group = 16, scale_dtype = "f8_e4m3", scales = "f8_e4m3" },
  { name = "FP8", strategy = "tensor", bits = 8, activations = fp8_static, scales = "f32 bf16 f16" },
  { name = "FP8_PER_CHANNEL_PER_TOKEN", strategy = "channel", bits = 8, activations = fp8_token, scales = "f32 bf16 f16" },
  { name = "FP8_PB_WO", strategy = "block", bits = 8, block = { BLOCK, BLOCK }, activations = fp8_groups, scales = "f32 bf16 f16" },
  { name = "MXFP8", strategy = "group", bits = 8, group = 32, scale_dtype = "e8m0", activations = mxfp8, scales = "u8 f8_e8m0" },
}
local by_name = {}
for _, algo in ipairs(algos) do by_name[algo.name] = algo end
by_name.FP8_BLOCK_SCALES = by_name.FP8_PB_WO

local function scheme_fields(algo, scale_dtype)
  return { type = "float", bits = algo.bits, symmetric = true, strategy = algo.strategy, group = algo.group, block = algo.block,
    scale_dtype = algo.scale_dtype or scale_dtype, activations = algo.activations }
end

-- The algorithm that a scheme is, or nil.
local function algo_of(s)
  for _, algo in ipairs(algos) do
    local plain = s.scale_dtype == "f16" or s.scale_dtype == "bf16" or s.scale_dtype == "f32" or s.scale_dtype == nil
    if plain or s.scale_dtype == algo.scale_dtype then
      local like = scheme.new(scheme_fields(algo, algo.scale_dtype or s.scale_dtype))
      if like and scheme.same(like, s) then return algo end
    end
  end
end

-- ---- the config ------------------------------------------------------------------------

-- quant_method modelopt, modelopt_fp4 …; the side file says it by its producer or only by its keys.
local function inner(config)
  local nested = type(config.quantization) == "table" and config.quantization or nil
  return nested and common.null_free(nested) or common.null_free(config)
end

--- detect(ck) -> true for quant_method modelopt… and for hf_quant_config.json.
function M.detect(ck)
  if not ck.quantization then return false end
  local config = common.null_free(ck.quantization.config)
  if config.quant_method ~= nil then return tostring(config.quant_method):lower():find("^modelopt") ~= nil end
  return inner(config).quant_algo ~= nil
end

-- fnmatch's * and ?, the rest literal.
local function wildcard(entry)
  local pattern = "^" .. entry:gsub("[%^%$%(%)%%%.%[%]%+%-]", "%%%0"):gsub("%*", ".*"):gsub("%?", ".") .. "$"
  return function(name) return name:find(pattern) ~= nil end
end

-- Newer exports say by a config group's missing input_activations that activations stay floats.
local function weight_only(config)
  local groups, some = config.config_groups, false
  if type(groups) ~= "table" then return false end
  for _, group in pairs(groups) do
    if type(group) ~= "table" then return false end
    some = true
    local a = group.input_activations
    if a ~= nil and a ~= json.null then return false end
  end
  return some
end
nffi.interpreted(weight_only)

local function algo_named(name)
  local algo = by_name[tostring(name):upper()]
  if algo then return algo end
  return nil, tostring(name)
end

-- Module -> algorithm of MIXED_PRECISION.
local function quantized_layers(config, st)
  local layers = config.quantized_layers
  if type(layers) ~= "table" or next(layers) == nil then
    return fail("eformat", "%s: quant_algo is MIXED_PRECISION, but quantized_layers names no module", st.where)
  end
  st.layers = {}
  for _, name in ipairs(json.keys(layers)) do
    local entry = type(layers[name]) == "table" and common.null_free(layers[name]) or {}
    local algo, unknown = algo_named(entry.quant_algo)
    st.layers[tostring(name)] = algo or { unknown = unknown }
  end
  return true
end

--- settings(ck) -> {algo=|nil, layers=|nil, excluded={function(name)…}, where=} | nil, msg, code
function M.settings(ck)
  local config, where = inner(common.null_free(ck.quantization.config)), common.source_name(ck)
  local st, excluded = { where = where, excluded = {}, names = {} }, config.exclude_modules or config.ignore
  if type(config.quant_algo) ~= "string" then
    return fail("eformat", "%s: quant_algo is %s, expected a name", where, config.quant_algo == nil and "missing"
      or tostring(config.quant_algo))
  end
  if config.quant_algo:upper() == "MIXED_PRECISION" then
    local ok, msg, code = quantized_layers(config, st)
    if not ok then return nil, msg, code end
  else
    st.algo, st.unknown = algo_named(config.quant_algo)
    if st.algo == by_name.NVFP4 and weight_only(config) then st.algo = by_name.W4A16_NVFP4 end
  end
  local group = config.group_size
  if group ~= nil and st.algo and st.algo.group and group ~= st.algo.group then
    return fail("eformat", "%s: group_size is %s, but %s has groups of %d", where, tostring(group), st.algo.name, st.algo.group)
  end
  for i, entry in ipairs(type(excluded) == "table" and excluded or {}) do
    st.excluded[i], st.names[i] = wildcard(tostring(entry)), tostring(entry)
  end
  return st
end

-- ---- reading -----------------------------------------------------------------------------

local function exclusion(st, module)
  for i, matches in ipairs(st.excluded) do
    if matches(module) then return st.names[i] end
  end
end

local function scale_shapes(algo, s, n, k)
  if algo.strategy == "block" then
    local rows, columns = scheme.scale_rows(s, n), scheme.groups(s, k)
    return { { rows, 1, columns, 1 }, { rows, columns } }
  end
  if algo.strategy == "channel" then return { { n }, { n, 1 } } end
  if algo.strategy == "tensor" then return { {}, { 1 } } end
  return floats.scale_shapes(s, n, k)
end

local function shapes_fit(module, tensors, algo, s, n, k)
  local why = ("the config says %s and the weight is [%dx%d]"):format(algo.name, n, k)
  if algo.group and k % algo.group ~= 0 then
    return common.contradiction(module, algo.name, ("k = %d is not a multiple of %d"):format(k, algo.group))
  end
  local ok, msg, code = expect(module, tensors, "weight_scale", algo.scales, scale_shapes(algo, s, n, k), why)
  if ok and algo.bits == 4 then ok, msg, code = expect(module, tensors, "weight_scale_2", "f32", { {}, { 1 } }, why) end
  if ok and scheme.static_activations(s) then ok, msg, code = expect(module, tensors, "input_scale", "f32", { {}, { 1 } }, why) end
  if ok then ok, msg, code = common.bias_ok(module, tensors, n) end
  return ok, msg, code
end

-- The algorithm of a module that holds codes ({unknown = sentence} where it is none of ours) | nil, msg, code
local function module_algo(module, st)
  local skip = exclusion(st, module)
  if skip then
    return common.contradiction(module, ("not to quantize it (%q)"):format(skip), "it holds codes and scales")
  end
  if not st.layers then return st.algo or { unknown = st.unknown } end
  if st.layers[module] then return st.layers[module] end
  return common.contradiction(module, "nothing of it in quantized_layers", "it holds codes and scales")
end

--- says(settings, module) -> scheme | false: not quantized | nil, msg, code: what the config means for a module, by its
-- name. An entry is an exact name, a wildcard or, for older exports, a part of a name (FORMATS 6).
function M.says(st, module)
  if exclusion(st, module) then return false end
  for _, name in ipairs(st.names) do
    if module:find(name, 1, true) then return false end
  end
  local algo = st.layers and st.layers[module] or st.algo
  if not algo and st.layers then return false end
  local unknown = algo and algo.unknown or st.unknown
  if unknown then return fail("eunsupported", "%s: modelopt's %s is not known here", module, unknown) end
  return scheme.new(scheme_fields(algo))
end

--- probe(ck, module, tensors, settings) -> rec | nil (not quantized) | nil, msg, code
function M.probe(_, module, tensors, st)
  local weight = tensors.weight
  if not weight or not (tensors.weight_scale or weight.dtype == "u8" or weight.dtype == "f8_e4m3") then return nil end
  local algo, msg, code = module_algo(module, st)
  if not algo then return nil, msg, code end
  if algo.unknown then return common.unreadable(module, tensors, "modelopt " .. algo.unknown) end
  local ok
  ok, msg, code = expect(module, tensors, "weight", algo.bits == 4 and "u8" or "f8_e4m3")
  if ok then ok, msg, code = floats.matrix(module, weight) end
  if not ok then return nil, msg, code end
  ok, msg, code = expect(module, tensors, "weight_scale", algo.scales)
  if not ok then return nil, msg, code end
  local n, k, dtype = weight.shape[1], weight.shape[2] * (algo.bits == 4 and 2 or 1), tensors.weight_scale.dtype
  local s = assert(scheme.new(scheme_fields(algo, dtype)))
  ok, msg, code = shapes_fit(module, tensors, algo, s, n, k)
  if not ok then return nil, msg, code end
  return { name = module, kind = "linear", n = n, k = k, scheme = s, dtype = scheme.scale_storage(s.scale_dtype), tensors = tensors,
    bias = tensors.bias ~= nil }
end

M.row_step = floats.row_step

-- A factor and the divisor that other formats keep: f32 [1] each.
local function factor_of(rec, src, suffix)
  local factor, msg, code = floats.number(rec, src, suffix)
  if not factor then return nil, msg or ("%s: the tensor %s is missing"):format(rec.name, suffix), code or "eformat" end
  local global = floats.reciprocal(factor)
  if not (global:get(1) > 0 and global:get(1) < math.huge) then
    return fail("eformat", "%s: %s is %g, whose reciprocal is no finite number above 0", rec.name, suffix, factor:get(1))
  end
  return factor, global
end

local function read_numbers(src, rec, q)
  local msg, code
  if rec.scheme.strategy == "tensor_group" then
    q.factor, q.global, code = factor_of(rec, src, "weight_scale_2")
    if not q.factor then return nil, q.global, code end
    if rec.scheme.activations then
      q.input_factor, q.input_global, code = factor_of(rec, src, "input_scale")
      if not q.input_factor then return nil, q.input_global, code end
    end
  elseif scheme.static_activations(rec.scheme) then
    q.input_scale, msg, code = floats.number(rec, src, "input_scale")
    if not q.input_scale then return nil, msg, code end
  end
  return true
end

--- read(src, rec, a, b, q) -> true | nil, msg, code: rows a..b into the tile q.
function M.read(src, rec, a, b, q)
  common.rows_ok(rec, a, b, q)
  if rec.scheme.bits == 8 then floats.read_codes(src.weight, q, a, b)
  elseif q.codes then must(C.nb_fp4_unpack(q.codes, src.weight, a - 1)) end
  local scales = floats.as_e8m0(src.weight_scale)
  if scales.ndim == 4 then scales = scales:reshape { scales:size(1), scales:size(3) } end
  floats.read_scales(scales, rec, a, b, q)
  local ok, msg, code = read_numbers(src, rec, q)
  if not ok then return nil, msg, code end
  return floats.finish(rec, src, a, b, q)
end

--- input(src, rec) -> {scale=} or {global=} | nil, msg, code
function M.input(src, rec)
  if rec.scheme.strategy ~= "tensor_group" then return floats.input_numbers(rec, src, { scale = "input_scale" }) end
  if not rec.scheme.activations then return {} end
  local factor, global, code = factor_of(rec, src, "input_scale")
  if not factor then return nil, global, code end
  return { global = global:get(1) }
end

-- ---- writing -----------------------------------------------------------------------------

--- layout(rec) -> ordered list of {suffix, dtype, shape, rows=function(a,b)|nil}.
function M.layout(rec)
  local s, n, k = rec.scheme, rec.n, rec.k
  local algo, four = algo_of(s), s.bits == 4
  local rows = floats.scale_rows(s)
  local out = {
    { suffix = "weight", dtype = four and "u8" or "f8_e4m3", shape = { n, four and k / 2 or k }, rows = floats.same_rows },
    { suffix = "weight_scale", dtype = s.scale_dtype == "e8m0" and "u8" or scheme.scale_storage(rec.dtype),
      shape = scale_shapes(algo, s, n, k)[1], rows = rows },
  }
  if four then out[3] = { suffix = "weight_scale_2", dtype = "f32", shape = {} } end
  if scheme.static_activations(s) then out[#out + 1] = { suffix = "input_scale", dtype = "f32", shape = {} } end
  if rec.bias then
    out[#out + 1] = { suffix = "bias", dtype = rec.bias_dtype or "bf16", shape = { n }, rows = floats.same_rows }
  end
  return out
end

local function write_numbers(dst, rec, q)
  local input = q.input_scale
  if dst.weight_scale_2 then
    must(C.nb_tensor_copy(dst.weight_scale_2, q.factor or floats.reciprocal(q.global)))
    input = q.input_factor or q.input_global and floats.reciprocal(q.input_global)
  end
  if not dst.input_scale then return true end
  if not input then
    return fail("einexact", "%s: activations with a calibrated scale, but none is known; calibrate, or use a scheme without", rec.name)
  end
  must(C.nb_tensor_copy(dst.input_scale, input))
  return true
end

--- write(dst, rec, a, b, q [, base]) -> true | nil, msg, code
function M.write(dst, rec, a, b, q, base)
  common.rows_ok(rec, a, b, q)
  base = base or 1
  if rec.scheme.bits == 8 then floats.write_codes(dst.weight, q, a, b, base)
  elseif q.codes then must(C.nb_fp4_pack(dst.weight, q.codes, a - base)) end
  local scales = floats.as_e8m0(dst.weight_scale)
  if scales.ndim == 4 then scales = scales:reshape { scales:size(1), scales:size(3) } end
  local ok, msg, code = floats.write_scales(scales, rec, a, b, q, base)
  if ok and a == 1 then ok, msg, code = write_numbers(dst, rec, q) end
  if not ok then return nil, msg, code end
  return common.put_bias(dst, rec, q, a - base + 1)
end

-- Module name -> {quant_algo, group_size} of every quantized module.
local function layers_of(records)
  local out = {}
  for _, rec in ipairs(records) do
    local algo = rec.scheme and algo_of(rec.scheme)
    if algo then out[rec.name] = { quant_algo = algo.name, group_size = algo.group } end
  end
  return out
end

local function args(s, group)
  return { num_bits = s.bits, type = s.type, dynamic = s.dynamic ~= nil and s.dynamic or false, group_size = group }
end

-- Entries that mean these names of all. Consumers look for a merged layer under its own name, and take an entry without
-- a wildcard for a part of names, too.
local function excluding(names, all)
  local selected, out = {}, patterns.globs(names, all)
  for _, name in ipairs(names) do selected[name] = true end
  for i, entry in ipairs(out) do
    for _, name in ipairs(entry:find("*", 1, true) and {} or all) do
      if not selected[name] and name:find(entry, 1, true) then out[i] = "*" .. entry end
    end
  end
  return out
end

-- Informative, but some consumers take the group size and whether activations are quantized from it.
local function config_group(algo)
  return { group_0 = { targets = json.array { "Linear" }, weights = args({ bits = algo.bits, type = "float" }, algo.group),
    input_activations = algo.activations and args({ bits = algo.activations.bits, type = "float",
      dynamic = algo.activations.dynamic == true }, algo.activations.group) or json.null } }
end

--- config(records [, {fused =}]) -> quantization_config, flat as newer exports have it.
function M.config(records, opts)
  local kinds, algo, all, fused = common.by_scheme(records), nil, {}, opts and opts.fused
  for i, rec in ipairs(common.linear(records)) do all[i] = rec.name end
  local excluded = excluding(match.with_layers(common.unquantized(records), fused), match.with_layers(all, fused))
  for i, kind in ipairs(kinds) do
    local this = algo_of(kind.scheme)
    if i == 1 then algo = this elseif algo ~= this then algo = nil end
  end
  return {
    quant_method = "modelopt", quant_algo = algo and algo.name or "MIXED_PRECISION", kv_cache_scheme = json.null,
    group_size = algo and algo.group or nil, ignore = json.array(excluded),
    config_groups = algo and config_group(algo) or nil, quantized_layers = not algo and layers_of(records) or nil,
    producer = { name = "nibble", version = nffi.version },
  }
end

--- can(scheme, n, k) -> true | false, reason
function M.can(s, _, k)
  local algo = algo_of(s)
  if not algo then
    return false, ("modelopt has no quant_algo for %s; it has %s"):format(scheme.describe(s),
      "NVFP4, NVFP4A16, FP8, FP8_DYNAMIC, FP8_BLOCK and MXFP8")
  end
  local width = algo.group
  if width and k % width ~= 0 then return false, ("k = %d is not a multiple of the group size %d"):format(k, width) end
  return true
end

--- scale_dtype(scheme, model_dtype) -> the scheme's own kind, or f32, which consumers load.
function M.scale_dtype(s)
  return (s.scale_dtype == "e8m0" or s.scale_dtype == "f8_e4m3") and s.scale_dtype or "f32"
end

return M

-- formats.compressed_tensors: compressed-tensors' pack-quantized (FORMATS 4): 2 to 8 bits, symmetric or
-- with zero-points, one scale a tensor, channel or group, act-order, several config groups.
--
--   weight_packed      I32 [n, ceil(k*b/32)]   dense LSB-first bits of u = q + 2^(b-1); files from before
--                      [n, ceil(k/(32//b))]    dense packing have floor(32/b) codes a word: told by width
--   weight_scale       f16|bf16|f32 [n,G]; [1] with strategy tensor
--   weight_zero_point  I32 [ceil(n*b/32), G]   packed along n; only when asymmetric
--   weight_shape       I64 [2] = n, k
--   weight_g_idx       I32 [k]                 only with actorder = "group"
-- The other formats of the same name (int-, float-quantized, nvfp4 ...) are recognized and refused by name.
local nffi = require "nibble.ffi"
local scheme = require "nibble.scheme"
local match = require "nibble.match"
local text = require "nibble.text"
local common = require "nibble.formats.common"
local ct_args = require "nibble.formats.ct_args"
local C, must = nffi.C, nffi.must
local fail, expect = common.fail, common.expect

local M = { name = "compressed-tensors", title = "compressed-tensors pack-quantized" }

local PACKED = "pack-quantized"

--- detect(ck) -> true when the quantization config's quant_method is compressed-tensors.
function M.detect(ck)
  return ck.quantization ~= nil and ck.quantization.config.quant_method == "compressed-tensors"
end

--- from_args(args) -> scheme | nil, msg, code
-- compressed-tensors' weight arguments with their defaults (CTM-SEL-03).
function M.from_args(args)
  local a, msg, code = ct_args.parse(args, { unknown = true })
  if not a then return nil, msg, code end
  if a.dynamic then return fail("eformat", "dynamic = %s: a packed weight has fixed scales", tostring(a.dynamic)) end
  local s
  s, msg = scheme.new {
    type = a.type, bits = a.bits, symmetric = a.symmetric, group = a.group, strategy = a.strategy, actorder = a.actorder,
    scale_dtype = a.scale_dtype,
  }
  if not s then return nil, msg, "eformat" end
  return s
end

-- One target -> function(name) -> bool; a class's name, and a pattern that can't be matched here, match no module.
local function name_matcher(target)
  return function(name) return match.name(target, name) or false end
end

local function parse_group(name, value, st, where)
  local group = type(value) == "table" and common.null_free(value) or {}
  if ct_args.presets[name] and group[1] then group = { targets = value, weights = ct_args.presets[name] } end
  if type(group.targets) ~= "table" then
    return fail("eformat", "%s: config_groups.%s has no list of targets", where, name)
  end
  if type(group.weights) ~= "table" then return true end
  local format = group.format or st.format
  if format == "mixed-precision" then
    return fail("eformat", '%s: the format is "mixed-precision", so config_groups.%s must name its own', where, name)
  end
  local g = { name = name, format = format or PACKED, names = {}, classes = {}, args = group.weights,
    seen = {} }
  for _, target in ipairs(group.targets) do
    g.names[#g.names + 1] = name_matcher(tostring(target))
    g.classes[tostring(target)] = true
  end
  if g.format == PACKED then
    local s, msg, code = M.from_args(group.weights)
    if not s then return fail(code, "%s: config_groups.%s: %s", where, name, msg) end
    g.scheme = s
  end
  st.groups[#st.groups + 1] = g
  return true
end

--- settings(ck) -> {groups={...}, ignore={...}, format=} | nil, msg, code
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

-- Scales per row that a scheme has for k columns, or nil where k is not a multiple of the group.
local function groups_of(s, k)
  if s.strategy == "group" and k % s.group ~= 0 then return nil end
  return scheme.groups(s, k)
end

local function legacy_width(k, bits) return math.ceil(k / math.floor(32 / bits)) end

local function scale_shapes(s, n, groups)
  if s.strategy == "tensor" then return { { 1 }, {}, { 1, 1 } } end
  if groups == 1 then return { { n, 1 }, { n } } end
  return { { n, groups } }
end

local function zero_shapes(s, n, groups)
  if s.strategy == "tensor" then return { { 1 }, { 1, 1 }, {} } end
  return { { math.ceil(n * s.bits / 32), groups }, { n, groups } }
end

-- Whether the module's tensors have the shapes that this scheme means; otherwise the first that hasn't.
local function shapes_fit(module, tensors, s, n, k, says)
  local groups = groups_of(s, k)
  if not groups then
    return common.contradiction(module, says, ("k = %d is not a multiple of %d"):format(k, s.group))
  end
  local why = ("the config says %s and the weight is [%dx%d]"):format(says, n, k)
  local ok, msg, code = expect(module, tensors, "weight_packed", "i32",
    { { n, math.ceil(k * s.bits / 32) }, { n, legacy_width(k, s.bits) } }, why)
  if ok then
    ok, msg, code = expect(module, tensors, "weight_scale", "f16 bf16 f32", scale_shapes(s, n, groups), why)
  end
  if ok and (tensors.weight_zero_point or not s.symmetric) then
    ok, msg, code = expect(module, tensors, "weight_zero_point", "i32 i8", zero_shapes(s, n, groups), why)
  end
  if ok then ok, msg, code = common.bias_ok(module, tensors, n) end
  return ok, msg, code
end

local function first_name_match(st, module)
  for _, g in ipairs(st.groups) do
    for _, matches in ipairs(g.names) do
      if matches(module) then return g end
    end
  end
end

-- The config group that names the module, by name or pattern, or else by its class.
local function named_group(st, module)
  local g = first_name_match(st, module)
  if g then return g end
  for _, candidate in ipairs(st.groups) do
    if candidate.classes.Linear then return candidate end
  end
end

-- The config group whose scheme the tensors fit, where none names the module, and a note that says so.
local function fitting_group(st, module, tensors, n, k)
  local fitting = {}
  for _, candidate in ipairs(st.groups) do
    local s = candidate.scheme
    if s and shapes_fit(module, tensors, s, n, k, scheme.describe(s)) then fitting[#fitting + 1] = candidate end
  end
  if #fitting == 1 then
    return fitting[1], ("no target of the config names it; config group %s fits its tensors"):format(fitting[1].name)
  end
  return nil, ("%d config groups fit its tensors"):format(#fitting)
end

-- Where the shapes alone say n and k: rows of packed words, and whole groups of columns that fill them.
local function implied_shape(g, tensors)
  local s, packed, scales = g and g.scheme, tensors.weight_packed.shape, tensors.weight_scale
  if not s or s.strategy ~= "group" or not scales or #scales.shape ~= 2 then return nil end
  local n, k = packed[1], scales.shape[2] * s.group
  if n < 1 or k < 1 or (packed[2] ~= math.ceil(k * s.bits / 32) and packed[2] ~= legacy_width(k, s.bits)) then return nil end
  return n, k
end

local function shape_fault(module, n, k, packed)
  return fail("eformat", "%s: weight_shape says [%gx%g], but weight_packed is %s", module, n, k, text.shape(packed))
end

-- n and k from weight_shape's two numbers, the only data that probing reads, and only where it must.
local function read_shape(ck, module, tensors)
  local t, msg, code = ck:tensor(module .. ".weight_shape")
  if not t then return nil, msg, code end
  local n, k = t:get(1), t:get(2)
  t:drop()
  local packed = tensors.weight_packed.shape
  if n < 1 or k < 1 or k > 2 ^ 40 or n ~= packed[1] then return shape_fault(module, n, k, packed) end
  return n, k
end

local function act_order(ck, rec, s)
  local info = rec.tensors.weight_g_idx
  if not info then
    if s.actorder ~= "group" then return s end
    return common.contradiction(rec.name, 'actorder = "group"', "weight_g_idx is missing")
  end
  if s.strategy ~= "group" then return s end
  local ok, msg, code = expect(rec.name, rec.tensors, "weight_g_idx", "i32", { { rec.k } },
    ("the weight has %d columns"):format(rec.k))
  if not ok then return nil, msg, code end
  local g_idx
  g_idx, msg, code = ck:tensor(rec.name .. ".weight_g_idx")
  if not g_idx then return nil, msg, code end
  local acts
  acts, msg, code = common.acts(rec.name, g_idx, s.group, scheme.groups(s, rec.k))
  if acts == nil then return nil, msg, code end
  return common.with(s, { actorder = acts and "group" or s.actorder == "weight" and "weight" })
end

local function is_packed(tensors) return tensors.weight_packed and tensors.weight_packed.dtype == "i32" end

-- What old writers did otherwise than M.write does, or nil.
local function old_layout(tensors, s, k)
  local zeros = tensors.weight_zero_point
  if tensors.weight_packed.shape[2] ~= math.ceil(k * s.bits / 32) then return "legacy packing" end
  if zeros and (zeros.dtype ~= "i32" or s.symmetric) then return "legacy zero-points" end
end

-- The tensors' dtypes and shapes as a string: modules that have it in common have one record but for the name.
local function signature(tensors)
  local out = {}
  for i, suffix in ipairs { "weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "bias" } do
    local info = tensors[suffix]
    out[i] = info and info.dtype .. table.concat(info.shape, "x") or "-"
  end
  return table.concat(out, " ")
end

local function record(module, tensors, like)
  return { name = module, kind = "linear", format = M.name, tensors = tensors, n = like.n, k = like.k,
    dtype = like.dtype, scheme = like.scheme, bias = tensors.bias ~= nil, note = like.note, variant = like.variant,
    bytes = 0, params = 0, bits_per_weight = 0 } -- formats.measure fills these: room for them
end

-- What a packed module is: a record to be named, or nil, msg, code.
local function examine(ck, module, tensors, st, g)
  local ok, msg, code = expect(module, tensors, "weight_shape", "i64 i32", { { 2 } }, "the format says n and k")
  if not ok then return nil, msg, code end
  local n, k = implied_shape(g, tensors)
  if not n then n, k, code = read_shape(ck, module, tensors) end
  if not n then return nil, k, code end
  local note
  if not g then g, note = fitting_group(st, module, tensors, n, k) end
  if not g then
    return fail("eformat", "%s: no target of %s's config groups names it, and %s", module, st.where, note)
  end
  local says = ("%s (config group %s)"):format(scheme.describe(g.scheme), g.name)
  ok, msg, code = shapes_fit(module, tensors, g.scheme, n, k, says)
  if not ok then return nil, msg, code end
  local s
  s, msg, code = act_order(ck, { name = module, tensors = tensors, k = k }, g.scheme)
  if not s then return nil, msg, code end
  local dtype = tensors.weight_scale.dtype
  return { n = n, k = k, note = note, variant = old_layout(tensors, g.scheme, k), dtype = dtype,
    scheme = common.with(s, { scale_dtype = dtype }) }
end

--- probe(ck, module, tensors, settings) -> rec | nil (not quantized) | nil, msg, code
-- From headers where shapes say n and k; read() compares weight_shape with them.
function M.probe(ck, module, tensors, st)
  if not (tensors.weight_packed or tensors.weight_scale) then return nil end
  if not is_packed(tensors) then
    local g = first_name_match(st, module) or st.groups[1]
    local format = g and g.format or st.format or "of this module"
    if format ~= PACKED then return common.unreadable(module, tensors, format) end
    return expect(module, tensors, "weight_packed", "i32")
  end
  if tensors.weight then return fail("eformat", "%s: holds both weight and weight_packed", module) end
  if #tensors.weight_packed.shape ~= 2 then
    return fail("eformat", "%s: weight_packed is %s, expected two dimensions", module,
      text.shape(tensors.weight_packed.shape))
  end
  local g = named_group(st, module)
  if g and g.format ~= PACKED then return common.unreadable(module, tensors, g.format) end
  local key = g and not tensors.weight_g_idx and signature(tensors)
  local like = key and g.seen[key]
  if not like then
    local msg, code
    like, msg, code = examine(ck, module, tensors, st, g)
    if not like then return nil, msg, code end
    if key and implied_shape(g, tensors) then g.seen[key] = like end
  end
  return record(module, tensors, like)
end

-- Zero-points of 32/gcd(32,bits) rows fill whole words.
local function zero_step(bits)
  local a, b = 32, bits
  while b > 0 do a, b = b, a % b end
  return 32 / a
end

--- row_step(rec) -> tiles begin at a multiple of this many rows (after row 1) and end there or at n.
function M.row_step(rec) return rec.scheme.symmetric and 1 or math.max(8, zero_step(rec.scheme.bits)) end

local function same_rows(a, b) return a, b end

--- layout(rec) -> ordered list of {suffix, dtype, shape, rows=function(a,b)|nil}.
function M.layout(rec)
  local s, n, k = rec.scheme, rec.n, rec.k
  local groups, bits = scheme.groups(s, k), s.bits
  local single = s.strategy == "tensor"
  local out = {
    { suffix = "weight_packed", dtype = "i32", shape = { n, math.ceil(k * bits / 32) }, rows = same_rows },
    { suffix = "weight_scale", dtype = rec.dtype, shape = single and { 1 } or { n, groups },
      rows = not single and same_rows or nil },
    { suffix = "weight_shape", dtype = "i64", shape = { 2 } },
  }
  if not s.symmetric then
    local shape = single and { 1 } or { math.ceil(n * bits / 32), groups }
    local function word_rows(a, b) return (a - 1) * bits / 32 + 1, math.ceil(b * bits / 32) end
    out[#out + 1] = { suffix = "weight_zero_point", dtype = "i32", shape = shape, rows = not single and word_rows or nil }
  end
  if s.actorder == "group" then out[#out + 1] = { suffix = "weight_g_idx", dtype = "i32", shape = { k } } end
  if rec.bias then
    out[#out + 1] = { suffix = "bias", dtype = rec.bias_dtype or rec.dtype, shape = { n }, rows = same_rows }
  end
  return out
end

local function read_scales(src, rec, a, b, q)
  local scales = src.weight_scale
  if rec.scheme.strategy == "tensor" then
    scales = scales:reshape { 1, 1 }
    for r = 1, q.n do must(C.nb_tensor_copy(q.scales:rows(r, r), scales)) end
  else
    must(C.nb_tensor_copy(q.scales, scales:reshape { rec.n, q.groups }:rows(a, b)))
  end
end

-- Zero-points that very old files leave unpacked (I8, signed) or that belong to the whole tensor.
local function read_plain_zeros(zeros, stored, rec, a)
  local p, half = zeros:ptr(), scheme.zero_code(rec.scheme)
  local groups = zeros:size(2)
  if rec.scheme.strategy == "tensor" then
    local z = stored:type() == "i8" and stored:ptr()[0] + half or stored:ptr()[0] % 2 ^ rec.scheme.bits
    for i = 0, zeros:numel() - 1 do p[i] = z end
    return true
  end
  local s = stored:ptr()
  for i = 0, zeros:numel() - 1 do
    local z = s[(a - 1) * groups + i] + half
    if z < 0 or z >= 2 * half then
      return fail("eformat", "%s: weight_zero_point of row %d, group %d is %d: it doesn't fit %d bits", rec.name,
        a - 1 + math.floor(i / groups), i % groups, z - half, rec.scheme.bits)
    end
    p[i] = z
  end
  return true
end

local function read_zeros(zeros, src, rec, a)
  local stored = src.weight_zero_point
  if rec.scheme.strategy == "tensor" or stored:type() == "i8" then return read_plain_zeros(zeros, stored, rec, a) end
  must(C.nb_ct_unpack_zeros(zeros, stored, rec.scheme.bits, a - 1, rec.n))
  return true
end

--- read(src, rec, a, b, q) -> true | nil, msg, code
-- Rows a..b (1-based, inclusive) of the module into q, a tile of b-a+1 rows; src: suffix -> tensor.
function M.read(src, rec, a, b, q)
  common.rows_ok(rec, a, b, q)
  local n, k = src.weight_shape:get(1), src.weight_shape:get(2)
  if n ~= rec.n or k ~= rec.k then return shape_fault(rec.name, n, k, src.weight_packed:size()) end
  if q.codes then must(C.nb_ct_unpack(q.codes, src.weight_packed, rec.scheme.bits, a - 1)) end
  read_scales(src, rec, a, b, q)
  if src.weight_zero_point then
    local zeros = common.zeros_of(q)
    local ok, msg, code = read_zeros(zeros, src, rec, a)
    if ok and rec.scheme.symmetric then ok, msg, code = common.symmetric_zeros(rec, zeros, a, "symmetric") end
    if not ok then return nil, msg, code end
  end
  q.g_idx = rec.scheme.actorder == "group" and src.weight_g_idx or nil
  return common.finish(rec, src, a, b, q)
end

-- Strategy tensor stores one scale (and zero-point): every row of the tile must have it.
local function write_single(dst, rec, a, q)
  if a == 1 then
    local ok, msg, code = common.put_scales(dst.weight_scale:reshape { 1, 1 }, rec, q:rows(1, 1), 1)
    if not ok then return nil, msg, code end
    if dst.weight_zero_point then dst.weight_zero_point:ptr()[0] = q.zeros:get(1) end
  end
  local first, bits = q.scales:rows(1, 1), q.zeros and q.zeros:get(1)
  for r = 2, q.n do
    if not q.scales:rows(r, r):equal(first) or (bits and q.zeros:get(r) ~= bits) then
      return fail("einval", '%s: strategy = "tensor", but row %d has another scale than row %d', rec.name, a + r - 2, a - 1)
    end
  end
  return true
end

--- write(dst, rec, a, b, q [, base]) -> true | nil, msg, code
-- Rows a..b from q; dst: suffix -> whole tensor, or (base given) the rows from row `base` on of those
-- whose layout entry has `rows`.
function M.write(dst, rec, a, b, q, base)
  common.rows_ok(rec, a, b, q)
  base = base or 1
  local s = rec.scheme
  local ok, msg, code
  if q.codes then must(C.nb_ct_pack(dst.weight_packed, q.codes, s.bits, a - base)) end
  if s.strategy == "tensor" then ok, msg, code = write_single(dst, rec, a, q)
  else
    ok, msg, code = common.put_scales(dst.weight_scale, rec, q, a - base + 1)
    if ok and not s.symmetric then
      local held = math.floor(dst.weight_zero_point:size(1) * 32 / s.bits)
      must(C.nb_ct_pack_zeros(dst.weight_zero_point, common.zeros_of(q), s.bits, a - base,
        math.min(held, rec.n - base + 1)))
    end
  end
  if not ok then return nil, msg, code end
  if a == 1 then
    dst.weight_shape:set(1, rec.n)
    dst.weight_shape:set(2, rec.k)
    if dst.weight_g_idx then must(C.nb_tensor_copy(dst.weight_g_idx, q.g_idx)) end
  end
  return common.put_bias(dst, rec, q, a - base + 1)
end

local function args_of(s)
  local json = require "nibble.json"
  return {
    num_bits = s.bits, type = "int", symmetric = s.symmetric, strategy = s.strategy,
    group_size = s.strategy == "group" and s.group or json.null, dynamic = false, actorder = s.actorder or json.null,
  }
end

--- config(records) -> quantization_config
-- records: every module written. One config group where all are quantized alike, with target Linear and
-- the other linear layers in `ignore`; several groups name their modules one by one.
function M.config(records)
  local json = require "nibble.json"
  local config_groups, kinds = {}, common.by_scheme(records)
  for i, kind in ipairs(kinds) do
    local targets = json.array {}
    if #kinds == 1 then targets[1] = "Linear"
    else
      for j, rec in ipairs(kind.records) do targets[j] = rec.name end
    end
    config_groups["group_" .. i - 1] = { targets = targets, weights = args_of(kind.scheme),
      input_activations = json.null, output_activations = json.null }
  end
  return {
    quant_method = "compressed-tensors", format = PACKED, quantization_status = "compressed", version = "0.12.0",
    config_groups = config_groups, ignore = json.array(common.unquantized(records)), kv_cache_scheme = json.null,
    global_compression_ratio = json.null,
  }
end

--- can(scheme, n, k) -> true | false, reason
function M.can(s, _, k)
  local other = common.weight_only_fault(s, "pack-quantized")
  if other then return false, other end
  if s.bits < 2 or s.bits > 8 then return false, ("compressed-tensors packs 2 to 8 bits, not %d"):format(s.bits) end
  local fault = common.group_fault(s, k)
  if fault then return false, fault end
  return true
end

--- scale_dtype(scheme, model_dtype) -> the weight's own where it has one, else the model's.
function M.scale_dtype(s, model_dtype) return s.scale_dtype or model_dtype end

return M

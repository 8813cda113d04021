-- formats.awq: AutoAWQ checkpoints, 4 bits (FORMATS 2, SYSTEMS AWQ-01..03). gemm is read and written, gemv and
-- gemv_fast are read.
--
--              gemm                       gemv                   gemv_fast
--   qweight    I32 [k, n/8] interleaved   I32 [n, k/8]           I16 [n/4, k]
--   qzeros     I32 [G, n/8] interleaved   I32 [n, w]             F16 [8w, n] = -(scale*zero)
--   scales     F16 [G, n]                 F16 [n, 8w]            F16 [8w, n]
-- with w = words of zero-points a row, padded: their groups past G hold nothing.
local ffi = require "ffi"
local nffi = require "nibble.ffi"
local match = require "nibble.match"
local patterns = require "nibble.patterns"
local scheme = require "nibble.scheme"
local text = require "nibble.text"
local common = require "nibble.formats.common"
local overrides = require "nibble.formats.overrides"
local C, must = nffi.C, nffi.must
local fail, expect = common.fail, common.expect

local M = { name = "awq", title = "AutoAWQ (gemm)" }

--- detect(ck) -> true for quant_method awq, its legacy side files, and AutoRound's auto_awq packing.
function M.detect(ck) return overrides.method(ck) == "awq" end

-- The number under the first of the keys that the config has (AWQ-01).
local function required(config, where, ...)
  for _, key in ipairs { ... } do
    if type(config[key]) == "number" then return config[key] end
    if config[key] ~= nil then
      return fail("eformat", "%s: %s is %s, expected a number", where, key, tostring(config[key]))
    end
  end
  return fail("eformat", "%s: none of the keys %s is there", where, table.concat({ ... }, ", "))
end

--- settings(ck) -> {bits=, group=, zero_point=, version=} | nil, msg, code
function M.settings(ck)
  local config, where = common.null_free(ck.quantization.config), common.source_name(ck)
  local bits, msg, code = required(config, where, "bits", "w_bit")
  if not bits then return nil, msg, code end
  if bits ~= 4 then return fail("eformat", "%s: %s bits; AWQ files hold 4 (AWQ-02)", where, tostring(bits)) end
  local group
  group, msg, code = required(config, where, "group_size", "q_group_size")
  if not group then return nil, msg, code end
  local zero_point = config.zero_point
  if zero_point == nil and tostring(config.quant_method):lower():find("auto-round", 1, true) then
    zero_point = config.sym == false
  end
  if zero_point == nil then
    return fail("eformat", "%s: none of the keys zero_point is there", where)
  end
  local rules
  rules, msg, code = overrides.rules(config, where)
  if not rules then return nil, msg, code end
  return { bits = bits, group = group, zero_point = zero_point, rules = rules, where = where,
    version = tostring(config.version or config.format or "gemm"):lower() }
end

-- AutoAWQ pads the words of zero-points a row: to whole words for groups of 128 and more, to 2 of
-- them for 64 and 4 for 32.
local function padded_words(groups, group)
  local multiple = group == 64 and 2 or group == 32 and 4 or 1
  return math.ceil(math.ceil(groups / 8) / multiple) * multiple
end

-- Per version: dtype of qweight, size of the weight from its shape, shapes of the other two, reading.
local versions = {}

versions.gemm = {
  dtype = "i32",
  size = function(shape) return shape[2] * 8, shape[1] end,
  zeros = function(n, groups) return "i32", { groups, n / 8 } end,
  scales = function(n, groups) return { groups, n } end,
  step = 8,
  read = function(src, a, q)
    if q.codes then must(C.nb_awq_unpack(q.codes, src.qweight, 4, a - 1)) end
    must(C.nb_transpose_get(q.scales, src.scales, a - 1))
  end,
  read_zeros = function(src, zeros, a) return C.nb_awq_unpack_zeros(zeros, src.qzeros, 4, a - 1) end,
}

-- The first G columns of rows a.. of wide [n, 8w].
local function copy_columns(tile, wide, a)
  local size = tile:bytes() / tile:numel()
  local columns, stride = tile:size(2), wide:size(2)
  local to, from = ffi.cast("uint8_t *", tile.data), ffi.cast("uint8_t *", wide.data)
  for r = 0, tile:size(1) - 1 do
    ffi.copy(to + r * columns * size, from + (a - 1 + r) * stride * size, columns * size)
  end
end

versions.gemv = {
  dtype = "i32",
  size = function(shape) return shape[1], shape[2] * 8 end,
  zeros = function(n, _, words) return "i32", { n, words } end,
  scales = function(n, _, words) return { n, 8 * words } end,
  step = 1,
  read = function(src, a, q)
    if q.codes then must(C.nb_awq_gemv_unpack(q.codes, src.qweight, 4, a - 1)) end
    copy_columns(q.scales, src.scales, a)
  end,
  read_zeros = function(src, zeros, a) return C.nb_awq_gemv_unpack_zeros(zeros, src.qzeros, 4, a - 1) end,
}

versions.gemv_fast = {
  dtype = "i16",
  size = function(shape) return shape[1] * 4, shape[2] end,
  zeros = function(n, _, words) return "f16", { 8 * words, n } end,
  scales = function(n, _, words) return { 8 * words, n } end,
  step = 4,
  read = function(src, a, q)
    if q.codes then must(C.nb_awq_gemv_fast_unpack(q.codes, src.qweight, 4, a - 1)) end
    must(C.nb_transpose_get(q.scales, src.scales:rows(1, q.groups), a - 1))
  end,
  read_zeros = function(src, zeros, a)
    return C.nb_awq_gemv_fast_unpack_zeros(zeros, src.qzeros, src.scales, a - 1)
  end,
}

local function shapes_fit(module, tensors, v, s, n, k, says)
  local groups = scheme.groups(s, k)
  if s.strategy == "group" and k % s.group ~= 0 then
    return common.contradiction(module, says, ("k = %d is not a multiple of %d"):format(k, s.group))
  end
  local words = padded_words(groups, s.strategy == "group" and s.group or k)
  local why = ("the config says %s and qweight %s means a weight of [%dx%d]"):format(says,
    text.shape(tensors.qweight.shape), n, k)
  local ok, msg, code = expect(module, tensors, "scales", "f16 bf16", { v.scales(n, groups, words) }, why)
  if ok and (tensors.qzeros or not s.symmetric) then
    local dtype, shape = v.zeros(n, groups, words)
    ok, msg, code = expect(module, tensors, "qzeros", dtype, { shape }, why)
  end
  if ok then ok, msg, code = common.bias_ok(module, tensors, n) end
  return ok, msg, code
end

-- What holds for this module: AutoRound's config may say it per module.
local function scheme_of(module, st)
  local rule = overrides.find(st.rules, module)
  local f = rule and rule.fields or {}
  local symmetric = not st.zero_point
  if f.sym ~= nil then symmetric = f.sym end
  if (f.bits or 4) ~= 4 then
    return fail("eformat", "%s: the config says %s bits; AWQ files hold 4", module, tostring(f.bits))
  end
  local s, msg = scheme.new { bits = 4, group = f.group_size or st.group, symmetric = symmetric }
  if not s then return fail("eformat", "%s: the config contradicts itself: %s", module, msg) end
  return s
end

--- probe(ck, module, tensors, settings) -> rec | nil (not quantized) | nil, msg, code
function M.probe(_, module, tensors, st)
  local info = tensors.qweight
  if not info then return nil end
  local v = versions[st.version]
  if not v then return common.unreadable(module, tensors, "awq " .. st.version) end
  if tensors.weight then return fail("eformat", "%s: holds both weight and qweight", module) end
  local s, msg, code = scheme_of(module, st)
  if not s then return nil, msg, code end
  local says = ("%s, version %s"):format(scheme.describe(s), st.version)
  if info.dtype ~= v.dtype or #info.shape ~= 2 then
    return common.contradiction(module, says, ("qweight is %s %s and not %s with two dimensions"):format(info.dtype,
      text.shape(info.shape), v.dtype))
  end
  local n, k = v.size(info.shape)
  local ok
  ok, msg, code = shapes_fit(module, tensors, v, s, n, k, says)
  if not ok then return nil, msg, code end
  s.scale_dtype = tensors.scales.dtype
  return { name = module, kind = "linear", n = n, k = k, scheme = s, dtype = s.scale_dtype, tensors = tensors,
    bias = tensors.bias ~= nil, version = st.version,
    variant = st.version ~= "gemm" and st.version or not tensors.qzeros and "without zero-points" or nil }
end

--- row_step(rec) -> tiles begin after a multiple of this many rows and end there or at n.
function M.row_step(rec) return versions[rec.version or "gemm"].step end

--- layout(rec) -> qweight, qzeros, scales, bias, as gemm: what fills columns has no `rows`.
function M.layout(rec)
  local n, k, groups = rec.n, rec.k, scheme.groups(rec.scheme, rec.k)
  local out = {
    { suffix = "qweight", dtype = "i32", shape = { k, n / 8 } },
    { suffix = "qzeros", dtype = "i32", shape = { groups, n / 8 } },
    { suffix = "scales", dtype = rec.dtype, shape = { groups, n } },
  }
  if rec.bias then out[4] = { suffix = "bias", dtype = rec.bias_dtype or rec.dtype, shape = { n } } end
  return out
end

--- read(src, rec, a, b, q) -> true | nil, msg, code: rows a..b, 1-based and inclusive, of any version.
function M.read(src, rec, a, b, q)
  common.rows_ok(rec, a, b, q)
  local v = versions[rec.version or "gemm"]
  v.read(src, a, q)
  q.g_idx = nil
  if src.qzeros then
    local zeros = common.zeros_of(q)
    local ok, msg, code = nffi.check(v.read_zeros(src, zeros, a))
    if not ok then return nil, rec.name .. ": " .. msg, code end
    if rec.scheme.symmetric then
      ok, msg, code = common.symmetric_zeros(rec, zeros, a, "zero_point = false")
      if not ok then return nil, msg, code end
    end
  end
  return common.finish(rec, src, a, b, q)
end

--- write(dst, rec, a, b, q) -> true | nil, msg, code: gemm; a symmetric weight gets zero-points of 8.
function M.write(dst, rec, a, b, q)
  common.rows_ok(rec, a, b, q)
  if q.g_idx then return fail("einexact", "%s: AWQ has no column groups (act-order)", rec.name) end
  if q.codes then must(C.nb_awq_pack(dst.qweight, q.codes, 4, a - 1)) end
  must(C.nb_awq_pack_zeros(dst.qzeros, common.zeros_of(q), 4, a - 1))
  local ok, msg, code = common.put_scales(dst.scales, rec, q, a, true)
  if not ok then return nil, msg, code end
  return common.put_bias(dst, rec, q, a)
end

-- Consumers skip a module when an entry occurs anywhere in its name (AWQ-11), so an entry must not occur
-- in the name of a quantized one, nor of a layer that a consumer makes of quantized ones.
local function skip_list(records, fused)
  local names, quantized = {}, {}
  for _, name in ipairs(common.unquantized(records)) do
    if text.leaf(name) ~= "lm_head" then names[#names + 1] = name end
  end
  for _, rec in ipairs(records) do
    if rec.scheme then quantized[#quantized + 1] = rec.name end
  end
  for _, name in ipairs(match.layer_names(quantized, fused)) do quantized[#quantized + 1] = name end
  local entries, name, other = patterns.substrings(names, quantized)
  if entries then return entries end
  return fail("einexact", "%s stays as it is and %s is quantized, but AWQ's modules_to_not_convert is matched "
    .. "as a part of names: the first would skip the second; write compressed-tensors", name, other)
end

--- config(records [, {fused =}]) -> quantization_config | nil, msg, code
-- One scheme for all quantized modules; modules_to_not_convert means the other linear layers (lm_head apart).
function M.config(records, opts)
  local json = require "nibble.json"
  local kinds = common.by_scheme(records)
  if #kinds == 0 then return fail("einval", "no module is quantized: nothing to write as AWQ") end
  local s = kinds[1].scheme
  for i = 2, #kinds do
    if kinds[i].scheme.group ~= s.group then
      return fail("einexact", "AWQ has one group size for all modules, but %s is %s and %s is %s; write "
        .. "compressed-tensors", kinds[1].records[1].name, scheme.describe(s), kinds[i].records[1].name,
        scheme.describe(kinds[i].scheme))
    end
  end
  local skipped, msg, code = skip_list(records, opts and opts.fused)
  if not skipped then return nil, msg, code end
  local head
  for _, rec in ipairs(records) do
    if rec.scheme and text.leaf(rec.name) == "lm_head" then head = true end
  end
  return { quant_method = "awq", bits = 4, group_size = s.group, zero_point = true, version = "gemm", lm_head = head,
    modules_to_not_convert = #skipped > 0 and json.array(skipped) or json.null }
end

--- can(scheme, n, k) -> true | false, reason
function M.can(s, n, k)
  local other = common.weight_only_fault(s, "AWQ")
  if other then return false, other end
  if s.bits ~= 4 then return false, ("AWQ holds 4 bits, not %d"):format(s.bits) end
  if s.actorder == "group" then return false, "AWQ has no column groups (act-order)" end
  if s.strategy == "tensor" then return false, "AWQ has a scale for every row or group, not one a tensor" end
  local fault = common.group_fault(s, k)
  if fault then return false, fault end
  if n % 8 ~= 0 then return false, ("n = %d is not a multiple of 8"):format(n) end
  return true
end

--- scale_dtype() -> f16: AWQ's own.
function M.scale_dtype() return "f16" end

return M

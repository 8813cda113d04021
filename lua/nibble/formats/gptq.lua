-- formats.gptq: GPTQ checkpoints (FORMATS 3), 2, 3, 4 and 8 bits, as AutoGPTQ, GPTQModel and AutoRound write them.
--
--   qweight  I32 [ceil(k*b/32), n]  along k, LSB first
--   qzeros   I32 [G, ceil(n*b/32)]  along n, LSB first
--   scales   F16 (BF16 seen) [G,n]
--   g_idx    I32 [k]                group of each column; absent = k//group (AutoRound)
-- Two formats differ in the zero-points only: "gptq" (v1) stores z-1 mod 2^b in each field, "gptq_v2" z itself.
local nffi = require "nibble.ffi"
local match = require "nibble.match"
local patterns = require "nibble.patterns"
local scheme = require "nibble.scheme"
local text = require "nibble.text"
local common = require "nibble.formats.common"
local overrides = require "nibble.formats.overrides"
local C, must = nffi.C, nffi.must
local fail, expect = common.fail, common.expect

local widths = { [2] = true, [3] = true, [4] = true, [8] = true }

-- bits, group, sym, desc_act of a config or of a rule's overrides, over `base`.
local function fields_of(config, base)
  base = base or {}
  local function pick(key, name)
    if config[key] ~= nil then return config[key] end
    return base[name]
  end
  return { bits = pick("bits", "bits"), group = pick("group_size", "group"), sym = pick("sym", "sym"),
    desc_act = pick("desc_act", "desc_act") }
end

local function settings(ck)
  local config, where = common.null_free(ck.quantization.config), common.source_name(ck)
  for _, key in ipairs { "bits", "group_size" } do
    if type(config[key]) ~= "number" then
      return fail("eformat", "%s: %s is %s, expected a number", where, key,
        config[key] == nil and "missing" or tostring(config[key]))
    end
  end
  local base = fields_of(config)
  -- AutoRound leaves out what has its default value: symmetric.
  if base.sym == nil and tostring(config.quant_method):lower():find("auto-round", 1, true) then base.sym = true end
  local rules, msg, code = overrides.rules(config, where)
  if not rules then return nil, msg, code end
  return { base = base, rules = rules, where = where }
end

-- "W4A16 g128 sym" of the fields that hold for a module | nil, msg, code
local function scheme_of(module, f)
  if not widths[f.bits] then
    return fail("eformat", "%s: the config says %s bits; GPTQ files hold 2, 3, 4 or 8", module, tostring(f.bits))
  end
  -- Without a word on symmetry the stored zero-points are taken at their word.
  local s, msg = scheme.new { bits = f.bits, group = f.group, symmetric = f.sym == true }
  if not s then return fail("eformat", "%s: the config contradicts itself: %s", module, msg) end
  return s
end

-- What the config means for a module, by its name: scheme | false: not quantized | nil, msg, code
local function meant(st, module)
  local rule = overrides.find(st.rules, module)
  if rule and rule.skip then return false end
  local f = rule and fields_of(rule.fields, st.base) or st.base
  local s, msg, code = scheme_of(module, f)
  if not s then return nil, msg, code end
  if f.desc_act and s.strategy == "group" then s.actorder = "group" end
  return s
end

-- n and k of a module: n from qweight, k from g_idx or, without one, from qweight's words.
local function size_of(module, tensors, bits, says)
  local q = tensors.qweight
  if q.dtype ~= "i32" or #q.shape ~= 2 then
    return fail("eformat", "%s: qweight is %s %s, expected i32 with two dimensions", module, q.dtype, text.shape(q.shape))
  end
  local k = q.shape[1] * 32 / bits
  if tensors.g_idx and #tensors.g_idx.shape == 1 then k = tensors.g_idx.shape[1] end
  if k ~= math.floor(k) or math.ceil(k * bits / 32) ~= q.shape[1] then
    return common.contradiction(module, says, ("%d rows of qweight hold %s columns%s"):format(q.shape[1],
      tostring(q.shape[1] * 32 / bits), tensors.g_idx and (" and g_idx %d"):format(k) or ""))
  end
  return q.shape[2], k
end

local function shapes_fit(module, tensors, s, n, k, says)
  local groups = scheme.groups(s, k)
  if s.strategy == "group" and k % s.group ~= 0 then
    return common.contradiction(module, says, ("k = %d is not a multiple of %d"):format(k, s.group))
  end
  local why = ("the config says %s and qweight %s means a weight of [%dx%d]"):format(says,
    text.shape(tensors.qweight.shape), n, k)
  local ok, msg, code = expect(module, tensors, "scales", "f16 bf16 f32", { { groups, n } }, why)
  if ok and (tensors.qzeros or not s.symmetric) then
    ok, msg, code = expect(module, tensors, "qzeros", "i32", { { groups, math.ceil(n * s.bits / 32) } }, why)
  end
  if ok and tensors.g_idx then ok, msg, code = expect(module, tensors, "g_idx", "i32", { { k } }, why) end
  if ok then ok, msg, code = common.bias_ok(module, tensors, n) end
  return ok, msg, code
end

-- Whether the columns' groups are out of order; only asked for where the config says act-order.
local function act_order(ck, module, tensors, s, k)
  if not tensors.g_idx or s.strategy ~= "group" then return false end
  local g_idx, msg, code = ck:tensor(module .. ".g_idx")
  if not g_idx then return nil, msg, code end
  return common.acts(module, g_idx, s.group, scheme.groups(s, k))
end

local function probe(ck, module, tensors, st)
  if not tensors.qweight then return nil end
  local rule = overrides.find(st.rules, module)
  if rule and rule.skip then
    return common.contradiction(module, ('not to quantize it ("%s")'):format(rule.key), "it holds qweight")
  end
  if tensors.weight then return fail("eformat", "%s: holds both weight and qweight", module) end
  local f = rule and fields_of(rule.fields, st.base) or st.base
  local s, msg, code = scheme_of(module, f)
  if not s then return nil, msg, code end
  local says = ("%s%s"):format(scheme.describe(s), rule and (' ("%s")'):format(rule.key) or "")
  local n, k
  n, k, code = size_of(module, tensors, s.bits, says)
  if not n then return nil, k, code end
  local ok
  ok, msg, code = shapes_fit(module, tensors, s, n, k, says)
  if not ok then return nil, msg, code end
  if f.desc_act then
    local acts
    acts, msg, code = act_order(ck, module, tensors, s, k)
    if acts == nil then return nil, msg, code end
    if acts then s.actorder = "group" end
  end
  s.scale_dtype = tensors.scales.dtype
  return { name = module, kind = "linear", n = n, k = k, scheme = s, dtype = s.scale_dtype, tensors = tensors,
    bias = tensors.bias ~= nil }
end

local function row_step(rec) return math.max(8, rec.scheme.bits == 3 and 32 or 32 / rec.scheme.bits) end

local function layout(rec)
  local s, n, k = rec.scheme, rec.n, rec.k
  local groups = scheme.groups(s, k)
  local out = {
    { suffix = "qweight", dtype = "i32", shape = { math.ceil(k * s.bits / 32), n } },
    { suffix = "qzeros", dtype = "i32", shape = { groups, math.ceil(n * s.bits / 32) } },
    { suffix = "scales", dtype = rec.dtype, shape = { groups, n } },
    { suffix = "g_idx", dtype = "i32", shape = { k } },
  }
  if rec.bias then out[5] = { suffix = "bias", dtype = rec.bias_dtype or rec.dtype, shape = { n } } end
  return out
end

local function read_g_idx(src, rec, q)
  q.g_idx = nil
  if not src.g_idx or rec.scheme.strategy ~= "group" then return true end
  local acts, msg, code = common.acts(rec.name, src.g_idx, rec.scheme.group, q.groups)
  if acts == nil then return nil, msg, code end
  if acts and rec.scheme.actorder ~= "group" then
    return common.contradiction(rec.name, "desc_act = false", "g_idx puts the columns in another order of groups")
  end
  if acts then q.g_idx = src.g_idx end
  return true
end

-- A stored v1 field of all ones is a zero-point of 0 or of 2^b: it wrapped, and readers differ.
local function count_wrapped(zeros)
  local p, count = zeros:ptr(), 0
  for i = 0, zeros:numel() - 1 do
    if p[i] == 0 then count = count + 1 end
  end
  return count
end

local function read_zeros(src, rec, a, q, v1)
  if not src.qzeros then return true end
  local zeros = common.zeros_of(q)
  must(C.nb_gptq_unpack_zeros(zeros, src.qzeros, rec.scheme.bits, a - 1, rec.n, v1))
  if rec.scheme.symmetric then return common.symmetric_zeros(rec, zeros, a, "sym = true") end
  q.wrapped_zeros = v1 == 1 and count_wrapped(zeros) or 0
  return true
end

local function read(src, rec, a, b, q, v1)
  common.rows_ok(rec, a, b, q)
  if q.codes then must(C.nb_gptq_unpack(q.codes, src.qweight, rec.scheme.bits, a - 1)) end
  must(C.nb_transpose_get(q.scales, src.scales, a - 1))
  local ok, msg, code = read_zeros(src, rec, a, q, v1)
  if ok then ok, msg, code = read_g_idx(src, rec, q) end
  if not ok then return nil, msg, code end
  return common.finish(rec, src, a, b, q)
end

-- v1 has no field for a zero-point of 0: what it would store reads back as 2^b elsewhere.
local function zero_fits(rec, zeros, a)
  local p, groups = zeros:ptr(), zeros:size(2)
  for i = 0, zeros:numel() - 1 do
    if p[i] == 0 then
      return fail("einexact", "%s: the zero-point of row %d, group %d is 0, which GPTQ v1 (it stores z-1) cannot "
        .. "hold; write gptq_v2", rec.name, a - 1 + math.floor(i / groups), i % groups)
    end
  end
  return true
end

local function write(dst, rec, a, b, q, v1)
  common.rows_ok(rec, a, b, q)
  local zeros = common.zeros_of(q)
  local ok, msg, code
  if v1 == 1 then
    ok, msg, code = zero_fits(rec, zeros, a)
    if not ok then return nil, msg, code end
  end
  if q.codes then must(C.nb_gptq_pack(dst.qweight, q.codes, rec.scheme.bits, a - 1)) end
  must(C.nb_gptq_pack_zeros(dst.qzeros, zeros, rec.scheme.bits, a - 1, rec.n, v1))
  ok, msg, code = common.put_scales(dst.scales, rec, q, a, true)
  if not ok then return nil, msg, code end
  if a == 1 and q.g_idx then must(C.nb_tensor_copy(dst.g_idx, q.g_idx))
  elseif a == 1 then
    local p, group = dst.g_idx:ptr(), rec.scheme.strategy == "group" and rec.scheme.group or rec.k
    for c = 0, rec.k - 1 do p[c] = math.floor(c / group) end
  end
  return common.put_bias(dst, rec, q, a)
end

local function names_of(records)
  local names = {}
  for i, rec in ipairs(records) do names[i] = rec.name end
  return names
end

-- GPTQModel's `dynamic` keys are matched by re.match on the name of the layer, which may be a merged one.
local function add_rules(dynamic, names, all, sign, value, fused)
  for _, pattern in ipairs(patterns.regexes(match.with_layers(names, fused), all)) do
    dynamic[sign .. ":" .. pattern.text] = value
  end
end

local function acts(s) return s.actorder == "group" end

-- What a module says otherwise than most.
local function override_of(s, base)
  local desc_act
  if acts(s) ~= acts(base) then desc_act = acts(s) end
  return { bits = s.bits, group_size = s.group, sym = s.symmetric, desc_act = desc_act }
end

-- Overrides for modules quantized otherwise than most, and skips for linear layers that stay floats.
local function dynamic_of(records, kinds, opts)
  local dynamic, all = {}, match.with_layers(names_of(common.linear(records)), opts.fused)
  for i = 2, #kinds do
    add_rules(dynamic, names_of(kinds[i].records), all, "+", override_of(kinds[i].scheme, kinds[1].scheme), opts.fused)
  end
  local skipped = {}
  for _, name in ipairs(common.unquantized(records)) do
    if name:match "[^.]*$" ~= "lm_head" then skipped[#skipped + 1] = name end
  end
  add_rules(dynamic, skipped, all, "-", {}, opts.fused)
  return next(dynamic) and dynamic or nil
end

local function has_quantized_head(records)
  for _, rec in ipairs(records) do
    if rec.scheme and rec.name:match "[^.]*$" == "lm_head" then return true end
  end
  return false
end

local function config(records, opts, checkpoint_format)
  local kinds = common.by_scheme(records)
  if #kinds == 0 then return fail("einval", "no module is quantized: nothing to write as %s", checkpoint_format) end
  local s = kinds[1].scheme
  return {
    quant_method = "gptq", bits = s.bits, group_size = s.group, desc_act = acts(s), sym = s.symmetric,
    checkpoint_format = checkpoint_format, lm_head = has_quantized_head(records),
    dynamic = dynamic_of(records, kinds, opts or {}),
  }
end

local function can(s, n, k)
  local other = common.weight_only_fault(s, "GPTQ")
  if other then return false, other end
  if not widths[s.bits] then return false, ("GPTQ holds 2, 3, 4 or 8 bits, not %d"):format(s.bits) end
  if s.strategy == "tensor" then return false, "GPTQ has a scale for every row or group, not one a tensor" end
  local fault = common.group_fault(s, k)
  if fault then return false, fault end
  for _, side in ipairs { { "k", k }, { "n", n } } do
    if side[2] * s.bits % 32 ~= 0 then
      return false, ("%s = %d at %d bits doesn't fill whole 32-bit words"):format(side[1], side[2], s.bits)
    end
  end
  return true
end

-- f16 unless the weight comes with bf16 scales.
local function scale_dtype(s) return s.scale_dtype == "bf16" and "bf16" or "f16" end

local function variant(name, title, v1)
  return {
    name = name, title = title, settings = settings, probe = probe, row_step = row_step, layout = layout,
    can = can, scale_dtype = scale_dtype, says = meant,
    side_file = "quantize_config.json", -- older consumers look there
    detect = function(ck) return overrides.method(ck) == name end,
    read = function(src, rec, a, b, q) return read(src, rec, a, b, q, v1) end,
    write = function(dst, rec, a, b, q) return write(dst, rec, a, b, q, v1) end,
    config = function(records, opts) return config(records, opts, name) end,
  }
end

local M = variant("gptq", "GPTQ (v1: zero-points less one)", 1)
M.v2 = variant("gptq_v2", "GPTQ v2 (true zero-points)", 0)
return M

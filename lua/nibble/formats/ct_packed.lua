-- formats.ct_packed: compressed-tensors' pack-quantized weights (FORMATS 4): 2 to 8 bits, symmetric or with
-- zero-points, one scale a tensor, channel or group, act-order.
--
--   weight_packed      I32 [n, ceil(k*b/32)]   dense LSB-first bits of u = q + 2^(b-1); files from before
--                      [n, ceil(k/(32//b))]    dense packing have floor(32/b) codes a word: told by width
--   weight_zero_point  I32 [ceil(n*b/32), G]   packed along n; only when asymmetric
--   weight_shape       I64 [2] = n, k
--   weight_g_idx       I32 [k]                 only with actorder = "group"
-- and the scales of ct_scales.
local nffi = require "nibble.ffi"
local scheme = require "nibble.scheme"
local text = require "nibble.text"
local common = require "nibble.formats.common"
local config = require "nibble.formats.ct_config"
local scales = require "nibble.formats.ct_scales"
local C, must = nffi.C, nffi.must
local fail, expect = common.fail, common.expect

local M = {}

local function legacy_width(k, bits) return math.ceil(k / math.floor(32 / bits)) end

local function zero_shapes(s, n, groups)
  if s.strategy == "tensor" then return { { 1 }, { 1, 1 }, {} } end
  return { { math.ceil(n * s.bits / 32), groups }, { n, groups } }
end

-- Whether the module's tensors have the shapes that this scheme means; otherwise the first that hasn't.
local function shapes_fit(module, tensors, s, n, k, says)
  local bad = common.group_fault(s, k)
  if bad then
    return common.contradiction(module, says, ("k = %d is not a multiple of %d"):format(k, s.group))
  end
  local why = ("the config says %s and the weight is [%dx%d]"):format(says, n, k)
  local ok, msg, code = expect(module, tensors, "weight_packed", "i32",
    { { n, math.ceil(k * s.bits / 32) }, { n, legacy_width(k, s.bits) } }, why)
  if ok then ok, msg, code = scales.fit(module, tensors, s, n, k, why) end
  if ok and (tensors.weight_zero_point or not s.symmetric) then
    ok, msg, code = expect(module, tensors, "weight_zero_point", "i32 i8", zero_shapes(s, n, scheme.groups(s, k)), why)
  end
  if ok then ok, msg, code = common.bias_ok(module, tensors, n) end
  return ok, msg, code
end

-- The config group whose scheme the tensors fit, and a note that says so.
local function fitting_group(st, module, tensors, n, k)
  return config.fitting(st, function(s)
    return s.type == "int" and shapes_fit(module, tensors, s, n, k, scheme.describe(s))
  end)
end

-- Where the shapes alone say n and k: rows of packed words, and whole groups of columns that fill them.
local function implied_shape(g, tensors)
  local s, packed, stored = g and g.scheme, tensors.weight_packed.shape, tensors.weight_scale
  if not s or s.strategy ~= "group" or not stored or #stored.shape ~= 2 then return nil end
  local n, k = packed[1], stored.shape[2] * s.group
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

-- What old writers did otherwise than M.write does, or nil.
local function old_layout(tensors, s, k)
  local zeros = tensors.weight_zero_point
  if tensors.weight_packed.shape[2] ~= math.ceil(k * s.bits / 32) then return "legacy packing" end
  if zeros and (zeros.dtype ~= "i32" or s.symmetric) then return "legacy zero-points" end
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
  return { n = n, k = k, note = note or scales.note(tensors, s), variant = old_layout(tensors, g.scheme, k), dtype = dtype,
    scheme = common.with(s, { scale_dtype = dtype }) }
end

--- probe(ck, module, tensors, settings, group, key) -> what its record has in common with others' | nil, msg, code
-- key: a signature of the tensors; modules that have it in common are examined once.
function M.probe(ck, module, tensors, st, g, key)
  if tensors.weight then return fail("eformat", "%s: holds both weight and weight_packed", module) end
  if #tensors.weight_packed.shape ~= 2 then
    return fail("eformat", "%s: weight_packed is %s, expected two dimensions", module,
      text.shape(tensors.weight_packed.shape))
  end
  if g and g.scheme.type ~= "int" then
    return common.contradiction(module, scheme.describe(g.scheme), "its weight_packed is i32, which holds integer codes")
  end
  key = g and not tensors.weight_g_idx and key
  local like = key and g.seen[key]
  if like then return like end
  local msg, code
  like, msg, code = examine(ck, module, tensors, st, g)
  if like and key and implied_shape(g, tensors) then g.seen[key] = like end
  return like, msg, code
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

--- layout(rec) -> array of layout entries, without the bias (see formats).
function M.layout(rec)
  local s, n, k = rec.scheme, rec.n, rec.k
  local groups, bits = scheme.groups(s, k), s.bits
  local single = s.strategy == "tensor"
  local out = { { suffix = "weight_packed", dtype = "i32", shape = { n, math.ceil(k * bits / 32) }, rows = same_rows } }
  for _, entry in ipairs(scales.layout(rec)) do out[#out + 1] = entry end
  out[#out + 1] = { suffix = "weight_shape", dtype = "i64", shape = { 2 } }
  if not s.symmetric then
    local shape = single and { 1 } or { math.ceil(n * bits / 32), groups }
    local function word_rows(a, b) return (a - 1) * bits / 32 + 1, math.ceil(b * bits / 32) end
    out[#out + 1] = { suffix = "weight_zero_point", dtype = "i32", shape = shape, rows = not single and word_rows or nil }
  end
  if s.actorder == "group" then out[#out + 1] = { suffix = "weight_g_idx", dtype = "i32", shape = { k } } end
  return out
end

local function read_zeros(zeros, src, rec, a)
  local stored = src.weight_zero_point
  if rec.scheme.strategy == "tensor" or stored:type() == "i8" then return scales.read_plain_zeros(zeros, stored, rec, a) end
  must(C.nb_ct_unpack_zeros(zeros, stored, rec.scheme.bits, a - 1, rec.n))
  return true
end

--- read(src, rec, a, b, q) -> true | nil, msg, code: rows a..b into the tile q.
function M.read(src, rec, a, b, q)
  local n, k = src.weight_shape:get(1), src.weight_shape:get(2)
  if n ~= rec.n or k ~= rec.k then return shape_fault(rec.name, n, k, src.weight_packed:size()) end
  if q.codes then must(C.nb_ct_unpack(q.codes, src.weight_packed, rec.scheme.bits, a - 1)) end
  local ok, msg, code = scales.read(src, rec, a, b, q)
  if not ok then return nil, msg, code end
  if src.weight_zero_point then
    local zeros = common.zeros_of(q)
    ok, msg, code = read_zeros(zeros, src, rec, a)
    if ok and rec.scheme.symmetric then ok, msg, code = common.symmetric_zeros(rec, zeros, a, "symmetric") end
    if not ok then return nil, msg, code end
  end
  q.g_idx = rec.scheme.actorder == "group" and src.weight_g_idx or nil
  return true
end

--- write(dst, rec, a, b, q, base) -> true | nil, msg, code: rows a..b from the tile q.
function M.write(dst, rec, a, b, q, base)
  local s = rec.scheme
  if q.codes then must(C.nb_ct_pack(dst.weight_packed, q.codes, s.bits, a - base)) end
  local ok, msg, code = scales.write(dst, rec, a, b, q, base)
  if not ok then return nil, msg, code end
  if not s.symmetric and s.strategy ~= "tensor" then
    local held = math.floor(dst.weight_zero_point:size(1) * 32 / s.bits)
    must(C.nb_ct_pack_zeros(dst.weight_zero_point, common.zeros_of(q), s.bits, a - base,
      math.min(held, rec.n - base + 1)))
  end
  if a == 1 then
    dst.weight_shape:set(1, rec.n)
    dst.weight_shape:set(2, rec.k)
    if dst.weight_g_idx then must(C.nb_tensor_copy(dst.weight_g_idx, q.g_idx)) end
  end
  return true
end

--- can(scheme, n, k) -> true | false, reason
function M.can(s, _, k)
  if s.bits < 2 or s.bits > 8 then return false, ("compressed-tensors packs 2 to 8 bits, not %d"):format(s.bits) end
  local bad = common.group_fault(s, k)
  if bad then return false, bad end
  return true
end

M.names = { [config.PACKED] = true }

return M

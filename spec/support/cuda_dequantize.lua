-- cuda_dequantize: weights of every kind, dequantized on the stand-in device and in the computer's memory. For the
-- processes that spec/cuda_dequantize_spec.lua begins, one driver each.
local nb = require "nibble"
local ffi = require "ffi"
local emulator = require "spec.support.emulator"
local nffi = require "nibble.ffi"
local C, must = nffi.C, nffi.must

local M = {}

local DTYPES = { "f32", "bf16", "f16" }

--- random(seed) -> function(n) -> 0 to n-1
function M.random(seed)
  local state = seed
  return function(n)
    state = (state * 1103515245 + 12345) % 2147483648
    return math.floor(state / 2147483648 * n)
  end
end

--- bytes(shape, next, limit [, dtype]) -> tensor of random bytes below limit.
function M.bytes(shape, next, limit, dtype)
  local t = nb.tensor(dtype or "u8", shape)
  local p = ffi.cast("uint8_t *", t.data)
  for i = 0, t:bytes() - 1 do p[i] = next(limit) end
  return t
end

-- Scales: positive ones, in between negative, subnormal and zero.
local function scales_of(dtype, shape, next)
  if dtype:find "^f8" then return M.bytes(shape, next, 0x7f, dtype) end
  local t = nb.tensor(dtype, shape)
  for i = 1, t:numel() do
    local kind = next(12)
    t:set(i, kind == 0 and 0 or (kind == 1 and -1 or 1) * (next(1000) + 1) * (kind == 2 and 2 ^ -26 or 2 ^ -9))
  end
  return t
end

-- Groups in no order, all in use.
local function g_idx_of(k, groups, next)
  local t = nb.tensor("i32", { k })
  for i = 0, k - 1 do t:ptr()[i] = i % groups end
  for i = k - 1, 1, -1 do
    local j = next(i + 1)
    t:ptr()[i], t:ptr()[j] = t:ptr()[j], t:ptr()[i]
  end
  return t
end

-- The codes u8 [n,k] in words of a packing.
local function pack(codes, packing, bits)
  local n, k = codes:size(1), codes:size(2)
  local streams = math.ceil(k * bits / 32)
  local words = codes
  if packing == "ct" then
    words = nb.tensor("i32", { n, streams })
    must(C.nb_ct_pack(words, codes, bits, 0))
  elseif packing == "gptq" then -- nb_gptq_pack takes fewer bits, all in the same stream
    words = nb.tensor("i32", { streams, n })
    must(C.nb_bits_pack(words, codes:transpose(), bits, 0))
  elseif packing == "awq" then
    words = nb.tensor("i32", { k, n * bits / 32 })
    must(C.nb_awq_pack(words, codes, bits, 0))
  elseif packing == "fp4" then
    words = nb.tensor("u8", { n, math.ceil(k / 2) })
    must(C.nb_fp4_pack(words, codes, 0))
  end
  return words
end

--- weight(o) -> {values =, scales =, …} as cuda.dequantize takes it, in the computer's memory; and its codes.
-- o: n, k, bits (ints) or code ("e2m1", "f8_e4m3", "f8_e4m3fnuz"), packing, group (-1: a row; 0: the weight) or block, scales (dtype), asym, act_order,
-- global, factor, seed.
function M.weight(o)
  local next = M.random(o.seed or o.n * 1000 + o.k + (o.bits or 0))
  local n, k, group = o.n, o.k, o.group
  local limit = o.code == "e2m1" and 16 or o.code and 256 or 2 ^ o.bits
  local codes = M.bytes({ n, k }, next, limit, o.code and o.code ~= "e2m1" and o.code or "u8")
  local rows, columns = 1, group and group > 0 and group or k
  if o.block then rows, columns = o.block[1], o.block[2] end
  local groups = math.ceil(k / columns)
  local shape = group == 0 and { 1 } or { math.ceil(n / rows), groups }
  return { values = pack(codes, o.packing, o.bits or 4), packing = o.packing, n = n, k = k, bits = o.bits, block = { rows, columns },
           scales = scales_of(o.scales or "f16", shape, next), zeros = o.asym and M.bytes(shape, next, 2 ^ o.bits) or nil,
           g_idx = o.act_order and g_idx_of(k, groups, next) or nil, global = o.global and nb.tensor("f32", { 1 }, { o.global }),
           factor = o.factor }, codes
end

--- here(w, codes, dtype) -> the tensor that the computer's functions give.
function M.here(w, codes, dtype)
  local out = nb.tensor(dtype, { w.n, w.k })
  if w.bits then
    must(C.nb_dequantize(out, codes, w.scales, w.zeros, w.g_idx, w.bits))
    return out
  end
  local exact = w.factor and nb.tensor("f32", { w.n, w.k })
  must(C.nb_dequantize_float(exact or out, codes, w.scales, w.global, w.block[1], w.block[2]))
  if exact then must(C.nb_scales_multiply(out, exact, w.factor)) end
  return out
end

--- there(w) -> w with its values, scales and zero-points on the device.
function M.there(w)
  local moved = {}
  for field, v in pairs(w) do moved[field] = v end
  for _, field in ipairs { "values", "scales", "zeros" } do moved[field] = w[field] and assert(w[field]:to "cuda") end
  return moved
end

--- same(a, b) -> true | false, where: the same bytes, of NaNs only that they are some.
function M.same(a, b)
  local wide = a:type() == "f32"
  local p, q = ffi.cast(wide and "uint32_t *" or "uint16_t *", a.data), ffi.cast(wide and "uint32_t *" or "uint16_t *", b.data)
  local magnitude = wide and 0x7fffffff or 0x7fff
  local inf = ({ f32 = 0x7f800000, bf16 = 0x7f80, f16 = 0x7c00 })[a:type()]
  for i = 0, a:numel() - 1 do
    if p[i] ~= q[i] and not (bit.band(p[i], magnitude) > inf and bit.band(q[i], magnitude) > inf) then
      return false, ("element %d: %x, expected %x"):format(i, p[i], q[i])
    end
  end
  return a:type() == b:type() and a:numel() == b:numel()
end

local function describe(o)
  local words = {}
  for k, v in pairs(o) do words[#words + 1] = k .. "=" .. (type(v) == "table" and table.concat(v, "x") or tostring(v)) end
  table.sort(words)
  return table.concat(words, " ")
end

--- check(o [, dtypes]) -> counts of the last launch. o: as weight() has it; compared for each dtype in every order
-- (o.orders = false: in one).
function M.check(o, dtypes)
  local w, codes = M.weight(o)
  local moved, counts = M.there(w)
  for _, dtype in ipairs(dtypes or DTYPES) do
    local expected = M.here(w, codes, dtype)
    local function compare(order)
      local out = assert(nb.cuda.dequantize(moved, { dtype = dtype })):to "cpu"
      counts = emulator.counts()
      local same, where = M.same(out, expected)
      if not same then error(("%s to %s, order %d: %s"):format(describe(o), dtype, order, where), 0) end
    end
    if o.orders == false then compare(0) else emulator.orders(compare) end
  end
  return counts
end

--- marlin(o) -> an integer weight as gemm.marlin takes it: k, n, bits, groups, scales (dtype), zeros, act_order.
function M.marlin(o)
  local next, k, n, groups = M.random(o.k + o.n + o.bits), o.k, o.n, o.groups
  local scales = nb.tensor(o.scales or "f16", { groups, n })
  for i = 1, groups * n do scales:set(i, (next(1000) + 1) * 2 ^ -9) end
  return {
    type = (o.bits == 4 and "uint4" or "uint8") .. (o.zeros and "" or o.bits == 4 and "b8" or "b128"), k = k, n = n,
    words = M.bytes({ k / 16, n * o.bits / 2 }, next, 256, "i32"), scales = scales,
    zeros = o.zeros and M.bytes({ groups, n * o.bits / 32 }, next, 256, "i32") or nil,
    perm = o.act_order and g_idx_of(k, k, next) or nil, sorted_g_idx = o.act_order and g_idx_of(k, groups, next) or nil,
  }
end

--- marlin_there(m) -> m with its tensors on the device, but those that say in which order.
function M.marlin_there(m)
  local there = {}
  for field, v in pairs(m) do there[field] = v end
  for _, field in ipairs { "words", "scales", "zeros" } do there[field] = m[field] and assert(m[field]:to "cuda") end
  return there
end

--- check_marlin(o) -> counts of the last launch; against gemm.marlin of one input after the other.
function M.check_marlin(o)
  local m, x, counts = M.marlin(o), nb.tensor("f32", { o.k, o.k })
  for i = 0, o.k - 1 do x:ptr()[i * o.k + i] = 1 end
  local exact, there = nb.gemm.marlin(x, m), M.marlin_there(m)
  for _, dtype in ipairs { "bf16", "f16" } do
    local expected = exact:cast(dtype)
    emulator.orders(function(order)
      local out = assert(nb.cuda.marlin_dequantize(there, { dtype = dtype })):to "cpu"
      counts = emulator.counts()
      local same, where = M.same(out, expected)
      if not same then error(("%s to %s, order %d: %s"):format(describe(o), dtype, order, where), 0) end
    end)
  end
  return counts
end

return M

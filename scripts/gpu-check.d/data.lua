-- data: random tensors of a seed, memory that holds rubbish, and two tensors byte for byte.
local ffi = require "ffi"
local bit = require "bit"
local nffi = require "nibble.ffi"
local tensor = require "nibble.tensor"
local cuda = require "nibble.cuda"
local bxor, lshift, rshift, band, bor = bit.bxor, bit.lshift, bit.rshift, bit.band, bit.bor

local M = {}

-- What a random bit pattern keeps, and what is set in it, so that it is a number of a magnitude around 1.
local float_bits = {
  f32 = { 0x81ffffff, 0x3e000000 }, -- 2^-3 to 2
  f16 = { 0x8fff8fff, 0x30003000 }, -- 2^-3 to 2
  bf16 = { 0x83ff83ff, 0x3c003c00 }, -- 2^-7 to 2
}
local sign = { f32 = 0x80000000, f16 = 0x80008000, bf16 = 0x80008000 }

-- A number from 1 to 2^31 of a seed and a name.
local function state_of(seed, name)
  local x = bxor(seed, 0x9e3779b9)
  for i = 1, #name do x = bxor(x * 31 % 2147483648, name:byte(i)) end
  return x == 0 and 1 or x
end

-- Large tensors say it again after a prime number of words, so that no row is another.
local PERIOD = 4194301

local function fill(p, words, x, keep, set)
  for i = 0, math.min(words, PERIOD) - 1 do -- xorshift32
    x = bxor(x, lshift(x, 13))
    x = bxor(x, rshift(x, 17))
    x = bxor(x, lshift(x, 5))
    p[i] = bor(band(x, keep), set)
  end
  for at = PERIOD, words - 1, PERIOD do ffi.copy(p + at, p, math.min(PERIOD, words - at) * 4) end
end

--- random(dtype, shape, seed, name [, {keep =, set =}]) -> tensor: f32, f16 and bf16 between -2 and 2 (zero and special numbers
-- aside), other dtypes any bits; keep, set: masks on each 32-bit word instead.
function M.random(dtype, shape, seed, name, mask)
  local t, masks = tensor.new(dtype, shape), float_bits[dtype] or { -1, 0 }
  local words = math.floor(t:bytes() / 4)
  local room = words * 4 == t:bytes() and t or tensor.new("i32", { words + 1 })
  fill(ffi.cast("int32_t *", room.data), words * 4 == t:bytes() and words or words + 1, state_of(seed, name),
    bit.tobit(mask and mask.keep or masks[1]), bit.tobit(mask and mask.set or masks[2]))
  if room ~= t then ffi.copy(t.data, room.data, t:bytes()) end
  return t
end

--- scales(dtype, shape, seed, name) -> tensor of positive numbers below 2, as scales are
function M.scales(dtype, shape, seed, name)
  local keep, set = unpack(float_bits[dtype])
  return M.random(dtype, shape, seed, name, { keep = band(keep, bit.bnot(sign[dtype])), set = set })
end

--- permutations(experts, k, seed, name) -> i32 [experts, k], or [k] for experts = nil: each row 0..k-1 in an order of its own
function M.permutations(experts, k, seed, name)
  local t, x = tensor.new("i32", experts and { experts, k } or { k }), state_of(seed, name)
  for e = 0, (experts or 1) - 1 do
    local row = t:ptr() + e * k
    for i = 0, k - 1 do row[i] = i end
    for i = k - 1, 1, -1 do
      x = bxor(x, lshift(x, 13))
      x = bxor(x, rshift(x, 17))
      x = bxor(x, lshift(x, 5))
      local j = rshift(x, 1) % (i + 1)
      row[i], row[j] = row[j], row[i]
    end
  end
  return t
end

local rubbish = {} -- the tensors that were poisoned with last, by byte

--- poison(bytes, byte): the device memory that the next allocation of this size is likely to be given holds this byte.
function M.poison(bytes, byte)
  local t = rubbish[byte]
  if not t or t:bytes() ~= bytes then
    t = tensor.new("u8", { bytes })
    ffi.fill(t.data, bytes, byte)
    rubbish[byte] = t
  end
  assert(cuda.to(t, "cuda")):free()
end

local function hex(t, at, bytes)
  local p, out = ffi.cast("const uint8_t *", t.data) + at, {}
  for i = bytes, 1, -1 do out[#out + 1] = ("%02x"):format(p[i - 1]) end
  return "0x" .. table.concat(out)
end

--- difference(found, expected) -> nil, or a sentence: how many elements differ, the first of them, its bits
function M.difference(found, expected)
  local function shape(t) return ("%s [%s]"):format(t:type(), table.concat(t:size(), "×")) end
  if shape(found) ~= shape(expected) then return ("it is %s, expected %s"):format(shape(found), shape(expected)) end
  if found:equal(expected) then return nil end
  local size = math.max(1, math.floor(tonumber(nffi.C.nb_dtype_bits(expected.dtype)) / 8))
  local a, b, bytes = ffi.cast("const uint8_t *", found.data), ffi.cast("const uint8_t *", expected.data), expected:bytes()
  local wrong, first = 0, nil
  for at = 0, bytes - size, size do
    local same = true
    for i = at, at + size - 1 do same = same and a[i] == b[i] end
    if not same then wrong, first = wrong + 1, first or at end
  end
  return ("%d of %d elements of %s differ, the first is number %d: %s, expected %s"):format(wrong, bytes / size,
    shape(expected), first / size + 1, hex(found, first, size), hex(expected, first, size))
end

return M

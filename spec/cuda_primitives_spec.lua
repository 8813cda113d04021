-- cuda_primitives: ptx.cuh's primitives in the emulator (cuda/kernels/primitives.cu) against what they are defined as:
-- numbers against the processor's casts and exact sums, the tensor cores' product against its definition.
-- scripts/gpu-check holds a GPU to the same kernels.
local ffi = require "ffi"
local nb = require "nibble"
local emulator = require "spec.support.emulator"
local files = require "spec.support.files"

local source = files.read "cuda/kernels/primitives.cu"

describe("the primitives of cuda/ptx.cuh", function()
  -- Types, addresses and bits seen otherwise: no instruction that could be another one.
  local VIEWS = { cast = true, shared_words = true, shared_address = true, float_of_bits = true, bits_of_float = true,
                  double_of_bits = true, bits_of_double = true }

  it("are each used by a kernel of primitives.cu and named in gpu-check's list", function()
    local code, listed, found = source:gsub("/%*.-%*/", ""), {}, 0
    package.path = "scripts/gpu-check.d/?.lua;" .. package.path
    for _, case in ipairs(dofile "scripts/gpu-check.d/pieces/primitives.lua".correctness()) do
      for name in case.name:gmatch "[%w_]+" do listed[name] = true end
    end
    for name in files.read("cuda/ptx.cuh"):gmatch "NB_DEVICE [^%(;]-([%w_]+)%(" do
      found = found + 1
      if not VIEWS[name] then
        assert.is_truthy(code:find("%f[%w_]" .. name .. "%f[^%w_]"), name .. " is not in cuda/kernels/primitives.cu")
        assert.is_true(listed[name], name .. " is not in scripts/gpu-check.d/pieces/primitives.lua")
      end
    end
    assert.is_true(found > 40, found)
  end)
end)

local function bits_of(f) return tonumber(ffi.cast("uint32_t *", ffi.new("float[1]", f))[0]) end
local function float_of(u) return tonumber(ffi.cast("float *", ffi.new("uint32_t[1]", u))[0]) end

-- One number of 16 bits as the bits of a float, a float as one of 16 bits, by nibble's casts.
local function widened(dtype, half)
  local t = nb.tensor("u16", { 1 })
  t:ptr()[0] = half
  return t:as(dtype, { 1 }):cast("f32"):as("u32", { 1 }):ptr()[0]
end
local function wide(dtype, half) return float_of(widened(dtype, half)) end
local function narrow(dtype, f)
  local t = nb.tensor("f32", { 1 })
  t:ptr()[0] = f
  return t:cast(dtype):as("u16", { 1 }):ptr()[0]
end

local function pair(dtype) return function(a, b) return narrow(dtype, float_of(a)) + 65536 * narrow(dtype, float_of(b)) end end

-- Small numbers, whose sums are exact in float64 and in f32.
local function fma_pairs(dtype)
  return function(a, b, c)
    local r = 0
    for s = 0, 1 do
      local function part(u) return wide(dtype, math.floor(u / 65536 ^ s) % 65536) end
      r = r + narrow(dtype, part(a) * part(b) + part(c)) * 65536 ^ s
    end
    return r
  end
end

local function bitwise(f) return function(a, b, c) return f(bit.tobit(a), bit.tobit(b), bit.tobit(c)) % 4294967296 end end

local function halves(f)
  return function(a, b) return f(a % 65536, b % 65536) % 65536 + f(math.floor(a / 65536), math.floor(b / 65536)) % 65536 * 65536 end
end

-- By their names in primitives.cu; arguments and result are words.
local NUMBERS = {
  FLOAT_OF_F16 = function(a) return widened("f16", a % 65536) end,
  FLOAT_OF_BF16 = function(a) return widened("bf16", a % 65536) end,
  F16_PAIR = pair "f16", BF16_PAIR = pair "bf16",
  MUL_RN = function(a, b, c) return bits_of(float_of(bits_of(float_of(a) * float_of(b))) + float_of(c)) end,
  FMA_RN = function(a, b, c) return bits_of(float_of(a) * float_of(b) + float_of(c)) end,
  FMA_F16X2 = fma_pairs "f16", FMA_BF16X2 = fma_pairs "bf16",
  LOP3_AND_OR = bitwise(function(a, b, c) return bit.bor(bit.band(a, b), c) end),
  LOP3_XOR = bitwise(bit.bxor),
  PICK_BYTES = function(a, b, c)
    local r = 0
    for i = 0, 3 do
      local which = math.floor(c / 16 ^ i) % 8
      r = r + math.floor((which < 4 and a or b) / 256 ^ (which % 4)) % 256 * 256 ^ i
    end
    return r
  end,
  COUNT_ONES = function(a)
    local n = 0
    for i = 0, 31 do n = n + math.floor(a / 2 ^ i) % 2 end
    return n
  end,
  MUL_RN_F64 = function(a, b, c)
    local x, d = math.floor(a / 2048), ffi.new("union { double d; uint32_t u[2]; }")
    d.u[0], d.u[1] = b % 4096 * 1048576 + math.floor(c / 4096), 0x3ff00000 + math.floor(b / 4096)
    d.d = x * d.d + -x
    return bit.bxor(d.u[0], d.u[1]) % 4294967296
  end,
  F16_PAIR_OF_E4M3 = function(a)
    local r = 0
    for i = 0, 1 do
      local code = math.floor(a / 256 ^ i) % 256
      local e, m = math.floor(code % 128 / 8), code % 8
      local v = e == 0 and m * 2 ^ -9 or (8 + m) * 2 ^ (e - 10)
      r = r + (code % 128 == 127 and 0xffff or narrow("f16", v) + (code >= 128 and 32768 or 0)) * 65536 ^ i
    end
    return r
  end,
  PICK_SIGNS = function(a, b, c)
    local r = 0
    for i = 0, 3 do
      local which = math.floor(c / 16 ^ i) % 16
      local byte = math.floor((which % 8 < 4 and a or b) / 256 ^ (which % 4)) % 256
      r = r + (which < 8 and byte or byte < 128 and 0 or 255) * 256 ^ i
    end
    return r
  end,
  MAX_S16X2 = halves(function(a, b) return math.max((a + 32768) % 65536, (b + 32768) % 65536) - 32768 end),
  MAX_U16X2 = halves(math.max),
  EXP2_NEAR = function(a)
    local y = 2 ^ (64 * float_of(a))
    return bits_of(y < 2 ^ -126 and 0 or y)
  end,
}

-- Words: small floats in as many forms as the primitive reads, so that sums are exact; all the others any bits.
local function input(name, count)
  local t, seed = nb.tensor("u32", { 3, count }), 1
  local function random(n)
    seed = (seed * 1103515245 + 12345) % 2147483648
    return math.floor(seed / 65536) % n
  end
  local function small() return (random(255) - 127) * 2 ^ (random(7) - 3) end
  for i = 0, 3 * count - 1 do
    local dtype = name:match "^FMA_(%a*F16)X2"
    if dtype then t:ptr()[i] = narrow(dtype:lower(), small()) + 65536 * narrow(dtype:lower(), small())
    elseif name == "EXP2_NEAR" then t:ptr()[i] = bits_of((random(32768) / 8192 - 2) * (1 + random(2) / 16))
    elseif name == "FMA_RN" or name == "MUL_RN" then t:ptr()[i] = bits_of(small() + random(2) / 4096)
    elseif name:match "_PAIR" then t:ptr()[i] = bits_of(small() * (1 + random(32768) / 32768) * 2 ^ (random(40) - 24))
    else t:ptr()[i] = random(32768) * 131072 + random(32768) * 4 + random(4) end
  end
  return t
end

describe("an emulated primitive", function()
  local place = 0
  for name in source:match("enum {(.-)}"):gmatch "[%u%d_]+" do
    local which = place
    place = place + 1
    it("is what it says: " .. name:lower(), function()
      local count = 1024
      local t, out = input(name, count), nb.tensor("u32", { count })
      local from, to = emulator.memory(t), emulator.memory(4 * count)
      assert.is_nil((emulator.run("nb_primitive_numbers", { grid = 2, block = 64 }, from, to, count, which)))
      emulator.read(to, out)
      local p = t:ptr()
      for i = 0, count - 1 do
        local a, b, c = p[i], p[count + i], p[2 * count + i]
        local want, got = assert(NUMBERS[name], name)(a, b, c), out:ptr()[i]
        local nan = name:match "^FLOAT_OF" and want % 2 ^ 31 > 0x7f800000 and got % 2 ^ 31 > 0x7f800000
        local near = name == "EXP2_NEAR" and math.abs(float_of(got) / float_of(want) - 1) <= 2 ^ -21
        if want ~= got and not nan and not near then error(("%s(%08x, %08x, %08x) is %08x, expected %08x"):format(name, a, b, c, got, want)) end
      end
      emulator.free(from)
      emulator.free(to)
    end)
  end

  it("looks at other lanes: shuffle_from, match_any, shuffle_xor_f64", function()
    local t, out = input("", 11), nb.tensor("u32", { 128 }) -- 33 words
    local from, to = emulator.memory(t), emulator.memory(out:bytes())
    assert.is_nil((emulator.run("nb_primitive_lanes", {}, from, to)))
    emulator.read(to, out)
    for l = 0, 31 do
      local same = 0
      for m = 0, 31 do
        if t:ptr()[m] % 256 == t:ptr()[l] % 256 then same = same + 2 ^ m end
      end
      local word = t:ptr()[bit.bxor(l, 18)]
      assert.same({ t:ptr()[t:ptr()[l] % 32], same, word, 4294967295 - word },
        { out:ptr()[4 * l], out:ptr()[4 * l + 1], out:ptr()[4 * l + 2], out:ptr()[4 * l + 3] })
    end
    emulator.free(from)
    emulator.free(to)
  end)

  -- Numbers of the tensor cores' products by their place in primitives.cu: how many a word has, one as the word's bits there.
  local function byte(v) return v % 256 end
  local function e4m3(v)
    local t = nb.tensor("f32", { 1 })
    t:set(1, v)
    return t:cast("f8_e4m3"):as("u8", { 1 }):ptr()[0]
  end
  local mma = { { "f16", 2, function(v) return narrow("f16", v) end }, { "bf16", 2, function(v) return narrow("bf16", v) end },
                { "s8", 4, byte, whole = true }, { "e4m3", 4, e4m3 } }
  for place_of_mma, kind in ipairs(source:match "nb_primitive_mma" and mma or {}) do
    local name, per, bits = unpack(kind)
    it("multiplies as the tensor cores do: " .. name, function()
      -- a [16,K], two b [K,8], sums two [16,8], of small whole numbers, and which lane holds what (ptx.cuh).
      local function value(i) return i * 2654435761 % 4294967296 % 17 - 8 end
      local function a(r, c) return value(r * 32 + c) end
      local function b(n, r, c) return value(1000 + n * 256 + r * 8 + c) end
      local function sum(n, r, c) return value(5000 + n * 128 + r * 8 + c) end
      local function word(of)
        local w = 0
        for j = 0, per - 1 do w = w + bits(of(j)) * 2 ^ (32 / per * j) end
        return w
      end
      local t, out = nb.tensor("u32", { 32, 16 }), nb.tensor("u32", { 32, 8 })
      for l = 0, 31 do
        local g, q, at = math.floor(l / 4), l % 4, t:ptr() + l * 16
        for i = 0, 3 do
          at[i] = word(function(j) return a(g + i % 2 * 8, per * q + math.floor(i / 2) * 4 * per + j) end)
        end
        for n = 0, 1 do
          for i = 0, 1 do at[4 + 2 * n + i] = word(function(j) return b(n, per * q + 4 * per * i + j, g) end) end
          for i = 0, 3 do
            local s = sum(n, g + math.floor(i / 2) * 8, 2 * q + i % 2)
            at[8 + 4 * n + i] = kind.whole and s % 4294967296 or bits_of(s)
          end
        end
      end
      local from, to = emulator.memory(t), emulator.memory(out:bytes())
      assert.is_nil((emulator.run("nb_primitive_mma", {}, from, to, place_of_mma - 1)))
      emulator.read(to, out)
      for l = 0, 31 do
        for n = 0, 1 do
          for i = 0, 3 do
            local r, c = math.floor(l / 4) + math.floor(i / 2) * 8, 2 * (l % 4) + i % 2
            local want, got = sum(n, r, c), out:ptr()[l * 8 + n * 4 + i]
            for k = 0, 8 * per - 1 do want = want + a(r, k) * b(n, k, c) end
            assert.equal(want, kind.whole and bit.tobit(got) or float_of(got))
          end
        end
      end
      emulator.free(from)
      emulator.free(to)
    end)
  end
end)

-- Marlin layouts: weights, scales, bias, zero-points and their inverses (MRL-14, MRL-20 to MRL-35).
local nb = require "nibble"
local nffi = require "nibble.ffi"
local bit = require "bit"
local layout = nb.layout
local marlin = layout.marlin

local CASES = { { 4, false }, { 8, false }, { 4, true }, { 8, true } }

local function fill(t, limit, seed)
  local x, p = seed or 1, t:ptr()
  for i = 0, t:numel() - 1 do
    x = (x * 1103515245 + 12345) % 2147483648
    p[i] = math.floor(x / 65536) % limit
  end
  return t
end

local function codes_kn(k, n, bits, seed) return fill(nb.tensor("u8", { k, n }), 2 ^ bits, seed) end

local function field(word, slot, bits) return bit.band(bit.rshift(word, slot * bits), 2 ^ bits - 1) end

-- Where SYSTEMS 2.4 says slot u of word m comes from, written out again from the table.
local function source(m, u, bits, a8)
  local I4, I8, r4 = { 0, 2, 4, 6, 1, 3, 5, 7 }, { 0, 2, 1, 3 }, { 0, 1, 8, 9 }
  local f = math.floor
  if bits == 4 and not a8 then
    local i, j, t = f(m / 4), m % 4, I4[u + 1]
    return 2 * (i % 4) + r4[t % 4 + 1], 16 * j + f(i / 4) + 8 * f(t / 4)
  elseif bits == 8 and not a8 then
    local i, j, h, t = f(m / 8), f(m / 2) % 4, m % 2, I8[u + 1]
    return 2 * (i % 4) + r4[t + 1], 16 * j + f(i / 4) + 8 * h
  elseif bits == 4 then
    local i, j, h, r = f(m / 4), f(m / 2) % 2, m % 2, f(u / 2) + 4 * (u % 2)
    return 4 * (i % 4) + r % 4 + 16 * f(r / 4), 16 * j + f(i / 4) + 8 * h
  end
  local i, j, h, x = f(m / 8), f(m / 4) % 2, f(m / 2) % 2, m % 2
  return 4 * (i % 4) + u + 16 * x, 16 * j + f(i / 4) + 8 * h
end

describe("marlin weights", function()
  it("MRL-30: every code of a 128x192 matrix lies where the table says, once", function()
    for _, case in ipairs(CASES) do
      local bits, a8 = case[1], case[2]
      local K, N, pf = 128, 192, 32 / bits
      local q = codes_kn(K, N, bits)
      local out = marlin.repack(layout.pack.rows(q, bits), bits, a8)
      assert.same({ K / 16, N * bits / 2 }, out:size())
      local tk, tn, words, seen = a8 and 32 or 16, a8 and 32 or 64, 32 * bits, 0
      local taken = {}
      for at = 0, out:numel() - 1 do
        local tile, m = math.floor(at / words), at % words
        local kt, nt = math.floor(tile / (N / tn)), tile % (N / tn)
        for u = 0, pf - 1 do
          local k, n = source(m, u, bits, a8)
          k, n = k + kt * tk, n + nt * tn
          assert.equal(q:ptr()[k * N + n], field(out:ptr()[at], u, bits))
          if not taken[k * N + n] then seen, taken[k * N + n] = seen + 1, true end
        end
      end
      assert.equal(K * N, seen)
    end
  end)

  it("unpack is the inverse, and MRL-35: sizes come back from the shape", function()
    for _, case in ipairs(CASES) do
      local bits, a8 = case[1], case[2]
      local words = layout.pack.rows(codes_kn(128, 192, bits), bits)
      local out = marlin.repack(words, bits, a8)
      assert.is_true(marlin.unpack(out, bits, a8):equal(words))
      local k, n = marlin.weight_size(out, bits)
      assert.same({ 128, 192 }, { k, n })
    end
  end)

  it("MRL-14: words of ones, bit 31 set, go through", function()
    for _, case in ipairs(CASES) do
      local words = nb.tensor("i32", { 64 * case[1] / 32, 64 })
      for i = 1, words:numel() do words:set(i, -1) end
      local out = marlin.repack(words, case[1], case[2])
      for i = 1, out:numel() do assert.equal(-1, out:get(i)) end
      assert.is_true(marlin.unpack(out, case[1], case[2]):equal(words))
    end
  end)

  it("MRL-32: a perm takes source rows; unpack undoes it; empty means none; not with a8", function()
    for _, bits in ipairs { 4, 8 } do
      local K, N = 64, 64
      local q = codes_kn(K, N, bits)
      local perm = nb.tensor("i32", { K })
      for i = 0, K - 1 do perm:set(i + 1, (i * 37 + 11) % K) end
      local moved = nb.tensor("u8", { K, N })
      for i = 0, K - 1 do
        for n = 0, N - 1 do moved:ptr()[i * N + n] = q:ptr()[perm:get(i + 1) * N + n] end
      end
      local words = layout.pack.rows(q, bits)
      local out = marlin.repack(words, bits, false, perm)
      assert.is_true(out:equal(marlin.repack(layout.pack.rows(moved, bits), bits)))
      assert.is_true(marlin.unpack(out, bits, false, perm):equal(words))
      assert.is_true(marlin.repack(words, bits, false, nb.tensor("i32", { 0 })):equal(marlin.repack(words, bits)))
      assert.error_matches(function() marlin.repack(words, bits, true, perm) end,
        "cannot be combined with 8%-bit activations")
      perm:set(5, perm:get(4))
      assert.error_matches(function() marlin.repack(words, bits, false, perm) end,
        "no permutation of 0..63: %d+ at position 4 occurs twice")
      perm:set(5, 64)
      assert.error_matches(function() marlin.repack(words, bits, false, perm) end, "64 at position 4 lies outside")
    end
  end)

  it("MRL-33: from AWQ words the result is the same", function()
    for _, case in ipairs(CASES) do
      local bits, a8 = case[1], case[2]
      local q = codes_kn(128, 192, bits, 5)
      local awq = layout.awq.pack(layout.transpose(q), bits)
      assert.is_true(marlin.awq_repack(awq, bits, a8):equal(marlin.repack(layout.pack.rows(q, bits), bits, a8)))
    end
  end)

  it("MRL-34: experts are repacked one by one", function()
    for _, case in ipairs(CASES) do
      local bits, a8 = case[1], case[2]
      local E, K, N = 3, 64, 64
      local words = nb.tensor("i32", { E, K * bits / 32, N })
      local perm = nb.tensor("i32", { E, a8 and 0 or K })
      for e = 1, E do
        local one = layout.pack.rows(codes_kn(K, N, bits, e), bits)
        nffi.C.nb_tensor_copy(words:rows(e, e), one)
        if not a8 then for i = 0, K - 1 do perm:set((e - 1) * K + i + 1, (i * 5 + e) % K) end end
      end
      local out = marlin.repack(words, bits, a8, perm)
      assert.same({ E, K / 16, N * bits / 2 }, out:size())
      for e = 1, E do
        local p = not a8 and perm:rows(e, e):reshape { K } or nil
        local one = marlin.repack(words:rows(e, e):reshape { K * bits / 32, N }, bits, a8, p)
        assert.is_true(out:rows(e, e):reshape(one:size()):equal(one))
      end
      assert.is_true(marlin.unpack(out, bits, a8, perm):equal(words))
    end
  end)

  it("MRL-30, MRL-32, MRL-33: the same words for any number of threads and instruction set", function()
    for _, case in ipairs(CASES) do
      local words = layout.pack.rows(codes_kn(512, 256, case[1]), case[1])
      local awq = layout.awq.pack(layout.transpose(codes_kn(512, 256, case[1])), case[1])
      local want = marlin.repack(words, case[1], case[2])
      local perm = nb.tensor("i32", { 512 })
      for i = 0, 511 do perm:set(i + 1, (i * 37 + 11) % 512) end
      local turned = not case[2] and marlin.repack(words, case[1], false, perm)
      for _, limit in ipairs { 0, 1, -1 } do
        nffi.C.nb_cpu_limit(limit)
        for threads = 1, 3 do
          nffi.C.nb_threads_set(threads)
          assert.is_true(marlin.repack(words, case[1], case[2]):equal(want))
          assert.is_true(marlin.awq_repack(awq, case[1], case[2]):equal(want))
          assert.is_true(marlin.unpack(want, case[1], case[2]):equal(words))
          assert.is_true(not turned or marlin.repack(words, case[1], false, perm):equal(turned))
        end
      end
      nffi.C.nb_cpu_limit(-1)
      nffi.C.nb_threads_set(0)
    end
  end)

  it("MRL-31: says which size does not fit which tile", function()
    local function words(rows, n) return nb.tensor("i32", { rows, n }) end
    assert.error_matches(function() marlin.repack(words(3, 64), 4) end,
      "K = 24 is not a multiple of the tile's 16 rows")
    assert.error_matches(function() marlin.repack(words(2, 96), 4) end,
      "N = 96 is not a multiple of the tile's 64 columns")
    assert.error_matches(function() marlin.repack(words(2, 64), 4, true) end,
      "K = 16 is not a multiple of the tile's 32 rows")
    assert.error_matches(function() marlin.repack(words(4, 48), 4, true) end,
      "N = 48 is not a multiple of the tile's 32 columns")
    assert.error_matches(function() marlin.awq_repack(words(24, 8), 4) end, "K = 24")
    assert.error_matches(function() marlin.repack(words(2, 64), 3) end, "bits must be 4 or 8, found 3")
    assert.error_matches(function() marlin.repack(nb.tensor("f32", { 2, 64 }), 4) end,
      "expected i32 .*, found f32 %[2x64%]")
    assert.error_matches(function() marlin.repack(nb.tensor("i32", { 2 }), 4) end,
      "2 or 3 dimensions, found 1 dimensions")
    assert.error_matches(function()
      nffi.must(nffi.C.nb_marlin_repack(words(1, 64), words(2, 64), nil, 4, 0))
    end, "expected i32 %[1x128%], found i32 %[1x64%]")
  end)
end)

describe("marlin scales", function()
  it("MRL-20: the grouped permutation is its own inverse, the single one has the formula's", function()
    local g, s = marlin.scale_perm(false), marlin.scale_perm(true)
    for p = 0, 63 do
      assert.equal(math.floor(p / 8) + 8 * (p % 8), g:get(p + 1))
      assert.equal(p, g:get(g:get(p + 1) + 1))
    end
    for n = 0, 31 do
      local p = 8 * math.floor((n % 8) / 2) + n % 2 + 2 * math.floor(n / 8)
      assert.equal(n, s:get(p + 1))
    end
  end)

  it("MRL-21: grouped where g < k and not a8, else single; the inverse undoes it", function()
    for _, dtype in ipairs { "u8", "u16", "i32" } do
      local s = fill(nb.tensor(dtype, { 3, 128 }), 251)
      for _, case in ipairs { { 256, 128, false, true }, { 256, -1, false, false }, { 128, 128, false, false },
                              { 256, 128, true, false } } do
        local k, group, a8, grouped = unpack(case)
        local out = marlin.permute_scales(s, k, group, a8)
        local perm, block = marlin.scale_perm(not grouped), grouped and 64 or 32
        for r = 0, 2 do
          for n = 0, 127 do
            local from = block * math.floor(n / block) + perm:get(n % block + 1)
            assert.equal(s:get(r * 128 + from + 1), out:get(r * 128 + n + 1))
          end
        end
        assert.is_true(marlin.unpermute_scales(out, k, group, a8):equal(s))
      end
    end
    assert.error_matches(function() marlin.permute_scales(nb.tensor("f16", { 2, 96 }), 256, 64) end,
      "N = 96 is not a multiple of 64, the block of the grouped permutation")
    assert.error_matches(function() marlin.permute_scales(nb.tensor("f16", { 2, 48 }), 256, -1) end,
      "N = 48 is not a multiple of 32, the block of the single permutation")
  end)

  it("MRL-23, MRL-24: bias on the last axis, experts one by one", function()
    local b = fill(nb.tensor("u16", { 2, 3, 64 }), 60000)
    local out = marlin.permute_bias(b)
    assert.same({ 2, 3, 64 }, out:size())
    assert.is_true(out:reshape { 6, 64 }:equal(marlin.permute_scales(b:reshape { 6, 64 }, 1, -1)))
    assert.is_true(marlin.unpermute_bias(out):equal(b))
    local s = fill(nb.tensor("u16", { 2, 4, 64 }), 60000)
    local moe = marlin.permute_scales(s, 256, 64)
    for e = 1, 2 do
      assert.is_true(moe:rows(e, e):reshape { 4, 64 }:equal(marlin.permute_scales(s:rows(e, e):reshape { 4, 64 }, 256, 64)))
    end
  end)

  it("MRL-25 to MRL-28: zero-points, permuted, interleaved without a8, packed; back; from AWQ and plain words, of experts", function()
    local I = { [4] = { 0, 2, 4, 6, 1, 3, 5, 7 }, [8] = { 0, 2, 1, 3 } }
    for _, case in ipairs(CASES) do
      local bits, a8 = case[1], case[2]
      local z, pf = fill(nb.tensor("u8", { 2, 128 }), 2 ^ bits), 32 / bits
      local out = marlin.zero_points(z, bits, a8)
      assert.same({ 2, 128 / pf }, out:size())
      for r = 0, 1 do
        for c = 0, 128 / pf - 1 do
          for u = 0, pf - 1 do
            local iu = a8 and u or I[bits][u + 1]
            local n = bits == 4 and 64 * math.floor(c / 8) + c % 8 + 8 * iu
              or 64 * math.floor(c / 16) + math.floor(c % 16 / 2) + 32 * (c % 2) + 8 * iu
            assert.equal(z:ptr()[r * 128 + n], field(out:ptr()[r * (128 / pf) + c], u, bits))
          end
        end
      end
      assert.is_true(marlin.unpack_zero_points(out, bits, a8):equal(z))
      local awq = layout.awq.pack(layout.transpose(z), bits)
      local plain = layout.pack.cols(z, bits)
      assert.is_true(marlin.awq_zero_points(awq, bits, a8):equal(out))
      assert.is_true(marlin.packed_zero_points(plain, bits, a8):equal(out))
      local shape = { 2, 1, 128 / pf }
      assert.is_true(marlin.awq_zero_points(awq:reshape(shape), bits, a8):equal(out:reshape(shape)))
      assert.is_true(marlin.packed_zero_points(plain:reshape(shape), bits, a8):equal(out:reshape(shape)))
    end
    assert.error_matches(function() marlin.zero_points(nb.tensor("u8", { 2, 64 }), 2) end,
      "bits must be 4 or 8, found 2")
    assert.error_matches(function() marlin.zero_points(nb.tensor("u8", { 2, 96 }), 4) end,
      "N = 96 is not a multiple of 64")
    assert.error_matches(function() marlin.zero_points(nb.tensor("i32", { 2, 64 }), 4) end,
      "expected u8 .*, found i32")
    local z = nb.tensor("u8", { 1, 64 })
    z:set(10, 16)
    assert.error_matches(function() marlin.zero_points(z, 4) end, "the code 16 at row 0, column 9")
  end)
end)

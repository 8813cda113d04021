-- Packings of codes and zero-points: dense and legacy CT, GPTQ, AWQ, gemv (MRL-10 to MRL-14, FORMATS 2 to 4).
local nb = require "nibble"
local nffi = require "nibble.ffi"
local layout = nb.layout
local bit = require "bit"

-- A fixed sequence of codes below 2^bits.
local function codes(n, k, bits, seed)
  local t, x = nb.tensor("u8", { n, k }), seed or 12345
  local p = t:ptr()
  for i = 0, n * k - 1 do
    x = (x * 1103515245 + 12345) % 2147483648
    p[i] = bit.band(bit.rshift(x, 16), 2 ^ bits - 1)
  end
  return t
end

-- The code at stream position i, straight from the definition.
local function dense(words, base, step, i, bits)
  local v = 0
  for b = 0, bits - 1 do
    local at = i * bits + b
    local word = words[base + math.floor(at / 32) * step]
    v = v + bit.band(bit.rshift(word, at % 32), 1) * 2 ^ b
  end
  return v
end

describe("packing", function()
  it("ct: bit i*b of a row's stream is code i's first bit, 1 to 8 bits", function()
    for bits = 1, 8 do
      for _, k in ipairs { 96, 37 } do
        local c = codes(5, k, bits)
        local w = layout.ct.pack(c, bits)
        assert.same({ 5, math.ceil(k * bits / 32) }, w:size())
        for n = 0, 4 do
          for i = 0, k - 1 do
            assert.equal(c:ptr()[n * k + i], dense(w:ptr(), n * w:size(2), 1, i, bits))
          end
        end
        assert.is_true(layout.ct.unpack(w, bits, k):equal(c))
      end
    end
  end)

  it("ct: legacy words hold floor(32/b) codes, told by the width", function()
    for _, bits in ipairs { 3, 5, 6, 7 } do
      local k, pf = 64, math.floor(32 / bits)
      local c = codes(4, k, bits)
      local w = layout.ct.pack(c, bits, nb.tensor("i32", { 4, math.ceil(k / pf) }))
      for i = 0, k - 1 do
        local word = w:ptr()[w:size(2) + math.floor(i / pf)]
        assert.equal(c:ptr()[k + i], bit.band(bit.rshift(word, i % pf * bits), 2 ^ bits - 1))
      end
      assert.is_true(layout.ct.unpack(w, bits, k):equal(c))
    end
  end)

  it("ct: a tile leaves its neighbours alone", function()
    local c = codes(24, 40, 3)
    local whole = layout.ct.pack(c, 3)
    local tiled = nb.tensor("i32", whole:size())
    for _, r in ipairs { { 17, 24 }, { 1, 8 }, { 9, 16 } } do layout.ct.pack(c:rows(r[1], r[2]), 3, tiled, r[1]) end
    assert.is_true(tiled:equal(whole))
    local out = nb.tensor("u8", { 8, 40 })
    assert.is_true(layout.ct.unpack(whole, 3, out, 9):equal(c:rows(9, 16)))
  end)

  it("MRL-10: gptq packs along k, 2, 3, 4, 8 bits, in tiles of columns", function()
    for _, bits in ipairs { 2, 3, 4, 8 } do
      local n, k = 24, 96
      local c = codes(n, k, bits)
      local w = layout.gptq.pack(c, bits)
      assert.same({ k * bits / 32, n }, w:size())
      for i = 0, k - 1 do assert.equal(c:ptr()[7 * k + i], dense(w:ptr(), 7, n, i, bits)) end
      assert.is_true(layout.gptq.unpack(w, bits, k):equal(c))
      local tiled = nb.tensor("i32", w:size())
      layout.gptq.pack(c:rows(9, 24), bits, tiled, 9)
      layout.gptq.pack(c:rows(1, 8), bits, tiled, 1)
      assert.is_true(tiled:equal(w))
    end
    assert.same({ 3, 8 }, layout.gptq.pack(codes(8, 25, 3), 3):size())
  end)

  it("MRL-12, MRL-13: awq interleaves columns in a word", function()
    local order = { [4] = { 0, 2, 4, 6, 1, 3, 5, 7 }, [8] = { 0, 2, 1, 3 } }
    for bits, I in pairs(order) do
      local n, k, pf = 32, 70, 32 / bits
      local c = codes(n, k, bits)
      local w = layout.awq.pack(c, bits)
      assert.same({ k, n / pf }, w:size())
      for kk = 0, k - 1 do
        for u = 0, pf - 1 do
          local word = w:ptr()[kk * (n / pf) + 1]
          assert.equal(c:ptr()[(pf + I[u + 1]) * k + kk], bit.band(bit.rshift(word, u * bits), 2 ^ bits - 1))
        end
      end
      assert.is_true(layout.awq.unpack(w, bits, k):equal(c))
      local tiled = nb.tensor("i32", w:size())
      layout.awq.pack(c:rows(9, 32), bits, tiled, 9)
      layout.awq.pack(c:rows(1, 8), bits, tiled, 1)
      assert.is_true(tiled:equal(w))
    end
  end)

  it("MRL-14: the top slot of a word, bit 31 set, round-trips", function()
    for _, bits in ipairs { 2, 4, 8 } do
      local c = nb.tensor("u8", { 32, 32 })
      for i = 1, 1024 do c:set(i, 2 ^ bits - 1) end
      local w = layout.gptq.pack(c, bits)
      assert.equal(-1, w:get(1))
      assert.is_true(layout.gptq.unpack(w, bits, 32):equal(c))
      assert.is_true(layout.ct.unpack(layout.ct.pack(c, bits), bits, 32):equal(c))
      if bits > 2 then assert.is_true(layout.awq.unpack(layout.awq.pack(c, bits), bits, 32):equal(c)) end
      -- and nothing of it runs over into the next word
      for i = 0, 1023 do c:set(i + 1, i % (32 / bits) == 32 / bits - 1 and 2 ^ (bits - 1) or 0) end
      assert.is_true(layout.gptq.unpack(layout.gptq.pack(c, bits), bits, 32):equal(c))
      assert.is_true(layout.ct.unpack(layout.ct.pack(c, bits), bits, 32):equal(c))
    end
  end)

  it("MRL-10, MRL-11: rows and cols of codes [K,N], and their inverses", function()
    for _, bits in ipairs { 4, 8 } do
      local c = codes(32, 64, bits)
      local rows, cols = layout.pack.rows(c, bits), layout.pack.cols(c, bits)
      assert.is_true(rows:equal(layout.gptq.pack(layout.transpose(c), bits)))
      assert.is_true(cols:equal(layout.ct.pack(c, bits)))
      assert.is_true(layout.pack.unpack_rows(rows, bits, 32, 64):equal(c))
      assert.is_true(layout.pack.unpack_cols(cols, bits, 32, 64):equal(c))
    end
    assert.error_matches(function() layout.pack.rows(codes(12, 8, 4), 4) end, "12 is not a multiple of pf = 8")
    assert.error_matches(function() layout.pack.cols(codes(8, 12, 4), 4) end, "12 is not a multiple of pf = 8")
    assert.error_matches(function() layout.pack.unpack_cols(nb.tensor("i32", { 4, 3 }), 4, 4, 16) end,
      "expected words %[4x2%] for K=4, N=16, pf=8, found %[4x3%]")
  end)

  it("zero-points: ct along n, gptq and awq along n in rows of groups", function()
    for _, bits in ipairs { 2, 3, 4, 8 } do
      local n, G = 40, 3
      local z = codes(n, G, bits, 99)
      local ct, v2 = layout.ct.pack_zeros(z, bits), layout.gptq.pack_zeros(z, bits, false)
      assert.same({ math.ceil(n * bits / 32), G }, ct:size())
      assert.same({ G, math.ceil(n * bits / 32) }, v2:size())
      for i = 0, n - 1 do
        assert.equal(z:ptr()[i * G + 1], dense(ct:ptr(), 1, G, i, bits))
        assert.equal(z:ptr()[i * G + 1], dense(v2:ptr(), v2:size(2), 1, i, bits))
      end
      assert.is_true(layout.ct.unpack_zeros(ct, bits, n):equal(z))
      assert.is_true(layout.gptq.unpack_zeros(v2, bits, false, n):equal(z))
      -- tiles of 8 rows, in any order
      local ct2, g2 = nb.tensor("i32", ct:size()), nb.tensor("i32", v2:size())
      for _, r in ipairs { 33, 1, 17, 9, 25 } do
        layout.ct.pack_zeros(z:rows(r, r + 7), bits, ct2, r, n)
        layout.gptq.pack_zeros(z:rows(r, r + 7), bits, false, g2, r, n)
      end
      assert.is_true(ct2:equal(ct))
      assert.is_true(g2:equal(v2))
      local tile = nb.tensor("u8", { 8, G })
      assert.is_true(layout.ct.unpack_zeros(ct, bits, tile, 9, n):equal(z:rows(9, 16)))
    end
  end)

  it("zero-points of many groups, whole and from any multiple of 8 rows", function()
    for _, bits in ipairs { 1, 2, 4, 8 } do
      for _, size in ipairs { { 72, 70 }, { 40, 130 }, { 64, 2 } } do
        local n, G = size[1], size[2]
        local z = codes(n, G, bits, 5 * n)
        local ct = layout.ct.pack_zeros(z, bits)
        for g = 0, G - 1, 23 do
          for i = 0, n - 1 do assert.equal(z:ptr()[i * G + g], dense(ct:ptr() + g, 0, G, i, bits)) end
        end
        assert.is_true(layout.ct.unpack_zeros(ct, bits, n):equal(z))
        local pieces = nb.tensor("i32", ct:size())
        layout.ct.pack_zeros(z:rows(25, n), bits, pieces, 25, n)
        layout.ct.pack_zeros(z:rows(1, 24), bits, pieces, 1, n)
        assert.is_true(pieces:equal(ct))
        local tile = nb.tensor("u8", { n - 8, G })
        assert.is_true(layout.ct.unpack_zeros(ct, bits, tile, 9, n):equal(z:rows(9, n)))
        z:set(3 * G + 2, 2 ^ bits % 256)
        if bits < 8 then
          assert.error_matches(function() layout.ct.pack_zeros(z, bits) end,
            ("the code %d at row 3, column 1"):format(2 ^ bits))
        end
      end
    end
  end)

  it("gptq v1 takes one off field by field, mod 2^b, never from the packed word", function()
    local z = nb.tensor("u8", { 8, 1 }, { 0, 1, 8, 15, 0, 7, 3, 0 })
    local v1 = layout.gptq.pack_zeros(z, 4, true)
    assert.equal("f26fe70f", bit.tohex(v1:get(1)))
    assert.is_true(layout.gptq.unpack_zeros(v1, 4, true, 8):equal(z))
    local eight = nb.tensor("u8", { 8, 1 }, { 8, 8, 8, 8, 8, 8, 8, 8 })
    assert.equal("77777777", bit.tohex(layout.gptq.pack_zeros(eight, 4, true):get(1)))
    assert.equal("88888888", bit.tohex(layout.gptq.pack_zeros(eight, 4, false):get(1)))
  end)

  it("4-bit zero-points of any number of groups come back from awq's and gptq's words, a tile of them too", function()
    for _, groups in ipairs { 1, 15, 16, 17, 32, 40, 64, 100 } do
      for _, n in ipairs { 8, 32, 40, 64, 1032 } do
        local z = codes(n, groups, 4, n + groups)
        local awq = layout.awq.pack_zeros(z, 4)
        assert.is_true(layout.awq.unpack_zeros(awq, 4, nb.tensor("u8", { n, groups })):equal(z), groups .. " " .. n)
        for _, v1 in ipairs { false, true } do
          local words = layout.gptq.pack_zeros(z, 4, v1)
          assert.is_true(layout.gptq.unpack_zeros(words, 4, v1, n):equal(z), groups .. " " .. n)
          if n > 32 then
            local tile = nb.tensor("u8", { n - 16, groups })
            assert.is_true(layout.gptq.unpack_zeros(words, 4, v1, tile, 9, n):equal(z:rows(9, n - 8)))
            assert.is_true(layout.awq.unpack_zeros(awq, 4, tile, 9):equal(z:rows(9, n - 8)))
          end
        end
      end
    end
  end)

  it("awq gemv and gemv_fast are inverses; zero-points that were folded into scales come back", function()
    local n, k, G = 64, 128, 2
    local c, z = codes(n, k, 4), codes(n, G, 4, 7)
    assert.is_true(layout.awq_gemv.unpack(layout.awq_gemv.pack(c, 4), 4, k):equal(c))
    local fast = layout.awq_gemv_fast.pack(c, 4)
    assert.same({ n / 4, k }, fast:size())
    assert.is_true(layout.awq_gemv_fast.unpack(fast, 4, k):equal(c))
    for y = 0, 3 do -- row 5, k 96 to 127: nibble 8y+4h+x of the 32 holds k = 8x+2y+h
      for h = 0, 1 do
        for x = 0, 3 do
          local nibble = 8 * y + 4 * h + x
          local word = fast:as("u16"):get(1 * k + 64 + 16 + 8 + math.floor(nibble / 4) + 1)
          assert.equal(c:ptr()[5 * k + 96 + 8 * x + 2 * y + h], bit.band(bit.rshift(word, nibble % 4 * 4), 15))
        end
      end
    end
    local zw = layout.awq_gemv.pack_zeros(z, 4, nb.tensor("i32", { n, 2 }))
    assert.equal(0, zw:get(2))
    assert.is_true(layout.awq_gemv.unpack_zeros(zw, 4, G):equal(z))
    local scales, qzeros = nb.tensor("f16", { 8, n }), nb.tensor("f16", { 8, n })
    local s = scales:as("u16", { 8 * n })
    for i = 1, 2 * n do s:set(i, 0x2000 + i * 3) end
    layout.awq_gemv_fast.pack_zeros(z, scales, qzeros)
    assert.is_true(layout.awq_gemv_fast.unpack_zeros(qzeros, scales, G):equal(z))
    local width = layout.awq_gemv.width
    assert.same({ 1, 2, 4 }, { width(128, 128), width(256, 64), width(256, 32) })
    local padded = layout.awq_gemv.pad_scales(nb.tensor("u16", { 2, 3 }, { 1, 2, 3, 4, 5, 6 }), 1)
    assert.same({ 1, 2, 3, 0, 0, 0, 0, 0, 4 }, { unpack(padded:totable(), 1, 9) })
    assert.same({ 1, 2, 4, 5 }, layout.awq_gemv.unpad_scales(padded, 2):totable())
    qzeros:as("u16", { 8 * n }):set(3, 0x3c00)
    local ok, msg, code = layout.awq_gemv_fast.unpack_zeros(qzeros, scales, G)
    assert.is_nil(ok)
    assert.equal("einexact", code)
    assert.matches("group 0, column 2", msg)
  end)

  it("transposes 8 to 64 bits, whole and as strips", function()
    for _, dtype in ipairs { "u8", "u16", "i32", "i64" } do
      local t = nb.tensor(dtype, { 37, 51 })
      for i = 1, t:numel() do t:set(i, i % 127) end
      local x = layout.transpose(t)
      assert.same({ 51, 37 }, x:size())
      assert.equal(t:get(3 * 51 + 8), x:get(7 * 37 + 4))
      assert.is_true(layout.transpose(x):equal(t))
    end
    local whole, tile = nb.tensor("u16", { 3, 10 }), nb.tensor("u16", { 4, 3 }, { 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12 })
    nffi.must(nffi.C.nb_transpose_put(whole, tile, 5))
    assert.same({ 1, 4, 7, 10 }, { whole:get(6), whole:get(7), whole:get(8), whole:get(9) })
    local back = nb.tensor("u16", { 4, 3 })
    nffi.must(nffi.C.nb_transpose_get(back, whole, 5))
    assert.is_true(back:equal(tile))
  end)

  it("gives the same words for any number of threads and instruction set", function()
    local c = codes(256, 512, 4)
    local want = { layout.ct.pack(c, 4), layout.gptq.pack(c, 4), layout.awq.pack(c, 4) }
    for _, limit in ipairs { 0, 1, -1 } do
      for threads = 1, 3 do
        nffi.C.nb_threads_set(threads)
        nffi.C.nb_cpu_limit(limit)
        assert.is_true(layout.ct.pack(c, 4):equal(want[1]))
        assert.is_true(layout.gptq.pack(c, 4):equal(want[2]))
        assert.is_true(layout.awq.pack(c, 4):equal(want[3]))
        for i, P in ipairs { layout.ct, layout.gptq, layout.awq } do
          assert.is_true(P.unpack(want[i], 4, 512):equal(c))
        end
      end
    end
    nffi.C.nb_threads_set(0)
    nffi.C.nb_cpu_limit(-1)
  end)

  it("names the first code that does not fit, for every packing", function()
    local c = nb.tensor("u8", { 64, 64 })
    c:set(5 * 64 + 10, 16)
    c:set(50 * 64 + 3, 200)
    for _, name in ipairs { "ct", "gptq", "awq", "awq_gemv", "awq_gemv_fast" } do
      assert.error_matches(function() layout[name].pack(c, 4) end,
        name .. " pack: the code 16 at row 5, column 9 %(from 0%) is above 15, the largest of 4 bits")
    end
    assert.error_matches(function() layout.gptq.pack_zeros(c, 4, true) end, "the code 16 at row 5, column 9")
  end)

  it("says what is wrong with sizes, dtypes and rows", function()
    local c = nb.tensor("u8", { 12, 24 })
    assert.error_matches(function() layout.awq.pack(c, 4) end, "n must be a multiple of 8, found 12")
    assert.error_matches(function() layout.awq.pack(c, 3) end, "AWQ packs 4 or 8 bits, found 3")
    assert.error_matches(function() layout.ct.pack(c, 9) end, "bits must be a whole number from 1 to 8, found 9")
    assert.error_matches(function() layout.ct.pack(nb.tensor("i32", { 2, 2 }), 4) end,
      "expected codes as a u8 matrix, found i32")
    assert.error_matches(function() layout.ct.unpack(nb.tensor("i32", { 2, 7 }), 3, 96) end,
      "96 codes of 3 bits along k take 9 words %(or 10 in the legacy packing%), found 7")
    assert.error_matches(function() layout.ct.unpack(nb.tensor("f32", { 2, 9 }), 3, 96) end, "found f32 %[2x9%]")
    assert.error_matches(function() layout.ct.pack(c, 4, nb.tensor("i32", { 12, 3 }), 5) end,
      "rows %[4, 16%) lie outside the 12 rows")
    assert.error_matches(function() layout.gptq.unpack(nb.tensor("i32", { 4, 8 }), 4, 24) end,
      "expected i32 %[3x%*%], found i32 %[4x8%]")
    assert.error_matches(function() layout.ct.unpack("words", 4, 8) end, "ct unpack: expected a matrix, found string")
    assert.error_matches(function() layout.transpose(nb.tensor("u8", { 2 })) end,
      "expected a matrix, found a tensor of 1 dimensions")
    local ok, msg, code = layout.gptq.pack(c, 5)
    assert.is_nil(ok)
    assert.equal("eunsupported", code)
    assert.matches("GPTQ packs 2, 3, 4 or 8 bits, found 5", msg)
    assert.error_matches(function() layout.ct.pack_zeros(nb.tensor("u8", { 4, 2 }), 4, nb.tensor("i32", { 2, 2 }), 5, 16) end,
      "rows %[4, 8%) must begin and end on a multiple of 8")
  end)
end)

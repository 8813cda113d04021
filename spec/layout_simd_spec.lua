-- Every path that nb_cpu_limit can select gives the portable path's words.
local nb = require "nibble"
local ffi = require "ffi"
local bit = require "bit"
local C = require("nibble.ffi").C
local layout = nb.layout

local paths = {
  { name = "avx2", features = tonumber(C.NB_CPU_AVX2) },
  { name = "avx512", features = bit.bor(tonumber(C.NB_CPU_AVX2), tonumber(C.NB_CPU_AVX512), tonumber(C.NB_CPU_AVX512_VNNI),
    tonumber(C.NB_CPU_AVX512_BF16), tonumber(C.NB_CPU_AVX512_VBMI)) },
}
local here, ran, skipped = C.nb_cpu_detected(), { "portable" }, {}
for i = #paths, 1, -1 do
  if bit.band(here, paths[i].features) ~= paths[i].features then
    table.insert(skipped, 1, table.remove(paths, i).name)
  end
end
for _, path in ipairs(paths) do ran[#ran + 1] = path.name end
print("layout paths run: " .. table.concat(ran, ", ")
  .. (#skipped > 0 and "; not on this processor: " .. table.concat(skipped, ", ") or ""))

local seed = 1
local function random(dtype, shape, limit)
  local t = nb.tensor(dtype, shape)
  local bytes = ffi.cast("uint8_t *", t.data)
  for i = 0, t:bytes() - 1 do
    seed = (seed * 16807) % 2147483647
    bytes[i] = bit.band(bit.rshift(seed, 11), limit or 255)
  end
  return t
end

local function shuffled(k)
  local t = nb.tensor("i32", { k })
  local p = ffi.cast("int32_t *", t.data)
  for i = 0, k - 1 do p[i] = i end
  for i = k - 1, 1, -1 do
    seed = (seed * 16807) % 2147483647
    local j = seed % (i + 1)
    p[i], p[j] = p[j], p[i]
  end
  return t
end

-- make() on every path and with one and two threads.
local function same_everywhere(what, make)
  C.nb_cpu_limit(0)
  local want = make()
  for _, path in ipairs(paths) do
    for threads = 1, 2 do
      C.nb_cpu_limit(path.features)
      C.nb_threads_set(threads)
      local got = make()
      assert.is_true(want:equal(got), ("%s: %s with %d threads differs from portable"):format(what, path.name, threads))
    end
  end
  return want
end

describe("vector paths of the layouts", function()
  after_each(function()
    C.nb_cpu_limit(-1)
    C.nb_threads_set(0)
    jit.flush() -- traces hold the closures that hold tensors
  end)

  -- whole strips, edges on either side, fewer than one vector
  local shapes = { { 512, 1024 }, { 520, 1032 }, { 64, 128 }, { 8, 8 }, { 1000, 136 }, { 24, 2200 }, { 2064, 64 } }

  it("turns AWQ, GPTQ and CT words into one another as the portable loops do", function()
    for _, s in ipairs(shapes) do
      local k, n = s[1], s[2]
      local at = k .. "x" .. n
      local awq, gptq, ct = random("i32", { k, n / 8 }), random("i32", { k / 8, n }), random("i32", { n, k / 8 })
      same_everywhere("awq_to_ct " .. at, function() return layout.awq_to_ct(awq) end)
      same_everywhere("ct_to_awq " .. at, function() return layout.ct_to_awq(ct) end)
      same_everywhere("awq_to_gptq " .. at, function() return layout.awq_to_gptq(awq, 4) end)
      same_everywhere("gptq_to_awq " .. at, function() return layout.gptq_to_awq(gptq, 4, k) end)
      same_everywhere("gptq_to_ct " .. at, function() return layout.gptq_to_ct(gptq) end)
      same_everywhere("ct_to_gptq " .. at, function() return layout.ct_to_gptq(ct) end)
    end
  end)

  it("turns 8- to 64-bit elements, whole and by strips of columns, as the portable loops do", function()
    for _, dtype in ipairs { "u8", "f16", "i32", "i64" } do
      for _, s in ipairs { { 32, 200 }, { 200, 32 }, { 86, 1030 }, { 1030, 86 }, { 16, 8 }, { 7, 3 }, { 65, 4100 } } do
        local t = random(dtype, s)
        local what = ("%s %dx%d"):format(dtype, s[1], s[2])
        local whole = same_everywhere("transpose " .. what, function() return layout.transpose(t) end)
        same_everywhere("transpose_get " .. what, function()
          local tile = nb.tensor(dtype, { s[2] - 1, s[1] })
          assert.equal(0, C.nb_transpose_get(tile, t, 1))
          assert.is_true(tile:equal(whole:rows(2, s[2])))
          return tile
        end)
        same_everywhere("transpose_put " .. what, function()
          local into = nb.tensor(dtype, { s[2], s[1] + 5 })
          assert.equal(0, C.nb_transpose_put(into, t, 5))
          return into
        end)
      end
    end
  end)

  it("hashes tensors alike on every path, whatever the last page holds", function()
    local hex = ffi.new "char[33]"
    local seen = {}
    for _, bytes in ipairs { 0, 1, 240, 4095, 4096, 4097, 12000, 9 * 2 ^ 20 + 17 } do
      local t, first = random("u8", { bytes }), nil
      for _, features in ipairs { 0, -1 } do
        C.nb_cpu_limit(features)
        assert.equal(0, C.nb_tensor_hash(hex, t))
        first = first or ffi.string(hex)
        assert.equal(first, ffi.string(hex))
      end
      assert.is_nil(seen[first])
      seen[first] = true
    end
  end)

  it("takes a K that fills no whole word", function()
    for _, k in ipairs { 1, 7, 515 } do
      local awq = random("i32", { k, 34 })
      local ct = same_everywhere("awq_to_ct", function() return layout.awq_to_ct(awq) end)
      assert.is_true(awq:equal(same_everywhere("ct_to_awq", function() return layout.ct_to_awq(ct, k) end)))
      local gptq = same_everywhere("awq_to_gptq", function() return layout.awq_to_gptq(awq, 4) end)
      assert.is_true(awq:equal(same_everywhere("gptq_to_awq", function() return layout.gptq_to_awq(gptq, 4, k) end)))
    end
  end)

  it("DESIGN 4: a direct repack equals the two-step way bit for bit", function()
    for _, s in ipairs(shapes) do
      local k, n = s[1], s[2]
      local awq, gptq, ct = random("i32", { k, n / 8 }), random("i32", { k / 8, n }), random("i32", { n, k / 8 })
      local codes = layout.awq.unpack(awq, 4, k)
      assert.is_true(layout.awq_to_ct(awq):equal(layout.ct.pack(codes, 4)))
      assert.is_true(layout.awq_to_gptq(awq, 4):equal(layout.gptq.pack(codes, 4)))
      assert.is_true(layout.gptq_to_ct(gptq):equal(layout.ct.pack(layout.gptq.unpack(gptq, 4, k), 4)))
      assert.is_true(layout.gptq_to_awq(gptq, 4, k):equal(layout.awq.pack(layout.gptq.unpack(gptq, 4, k), 4)))
      assert.is_true(layout.ct_to_awq(ct):equal(layout.awq.pack(layout.ct.unpack(ct, 4, k), 4)))
    end
  end)

  -- way, k x n -> words of the source, and the words of the result as the whole repack makes them
  local ways = {
    awq_to_ct = function(k, n) local w = random("i32", { k, n / 8 }); return w, layout.awq_to_ct(w) end,
    ct_to_awq = function(k, n) local w = random("i32", { n, k / 8 }); return w, layout.ct_to_awq(w) end,
    awq_to_gptq = function(k, n) local w = random("i32", { k, n / 8 }); return w, layout.awq_to_gptq(w, 4) end,
    gptq_to_awq = function(k, n) local w = random("i32", { k / 8, n }); return w, layout.gptq_to_awq(w, 4, k) end,
    gptq_to_ct = function(k, n) local w = random("i32", { k / 8, n }); return w, layout.gptq_to_ct(w) end,
    ct_to_gptq = function(k, n) local w = random("i32", { n, k / 8 }); return w, layout.ct_to_gptq(w) end,
  }

  it("makes the same words by rows of the result, and takes those back", function()
    for _, s in ipairs(shapes) do
      for name, make in pairs(ways) do
        local way, words, whole = C["NB_" .. name:upper()], make(s[1], s[2])
        local rows, what = whole:size(1), ("%s %dx%d"):format(name, s[1], s[2])
        for _, part in ipairs { { 0, rows }, { 0, 8 }, { 8, 72 }, { math.floor(rows / 16) * 8, rows } } do
          local a, b = part[1], math.min(part[2], rows)
          if a < b then
            local got = same_everywhere(what, function()
              local out = nb.tensor("i32", { b - a, whole:size(2) })
              assert.equal(0, C.nb_repack_rows(out, words, way, a), ffi.string(C.nb_error()))
              assert.equal(1, C.nb_repack_check(out, words, way, a))
              return out
            end)
            assert.is_true(whole:rows(a + 1, b):equal(got), what)
          end
        end
      end
    end
  end)

  it("sees every nibble that doesn't go back, in the rows and in the source", function()
    for name, make in pairs(ways) do
      for _, features in ipairs { 0, -1 } do
        C.nb_cpu_limit(features)
        for _, s in ipairs { { 520, 1032 }, { 512, 1024 } } do -- the second is compared by the kernel itself
          local way, words, whole = C["NB_" .. name:upper()], make(s[1], s[2])
          local part, a = whole:rows(65, whole:size(1)), 64
          for _, t in ipairs { part, words } do
            local p, missed, count = ffi.cast("uint32_t *", t.data), 0, 0
            for i = 0, t:numel() - 1, 499 do
              local was = p[i]
              p[i] = bit.bxor(was, bit.lshift(1, i % 32))
              missed, count = missed + C.nb_repack_check(part, words, way, a), count + 1
              p[i] = was
            end
            -- of the source, what the first 64 rows of the result came from doesn't count
            local most = t == words and math.ceil(count * 64 / whole:size(1)) + 1 or 0
            assert.is_true(missed <= most, ("%s: %d of %d changes were missed"):format(name, missed, count))
            assert.equal(1, C.nb_repack_check(part, words, way, a))
          end
        end
      end
    end
  end)

  it("refuses rows that lie elsewhere or begin inside a word", function()
    local awq, rows = random("i32", { 64, 16 }), nb.tensor("i32", { 16, 8 })
    local function refused(sentence, ...)
      assert.equal(tonumber(C.NB_EINVAL), C.nb_repack_rows(...))
      assert.matches(sentence, ffi.string(C.nb_error()))
    end
    refused("awq to ct: rows %[120, 136%) lie outside the 128 rows of the result", rows, awq, C.NB_AWQ_TO_CT, 120)
    refused("rows %[%-8, 8%) lie outside", rows, awq, C.NB_AWQ_TO_CT, -8)
    refused("rows %[4, 20%) must begin and end on a multiple of 8", rows, awq, C.NB_AWQ_TO_CT, 4)
    refused("ct to awq: rows %[4, 8%) must begin and end", nb.tensor("i32", { 4, 2 }), random("i32", { 16, 8 }), C.NB_CT_TO_AWQ, 4)
    refused("ct to awq: n = 12 is not a multiple of 8", rows, random("i32", { 12, 8 }), C.NB_CT_TO_AWQ, 0)
    refused("awq to ct: expected i32 %[%*x8%], found i32 %[16x9%]", nb.tensor("i32", { 16, 9 }), awq, C.NB_AWQ_TO_CT, 0)
    refused("there is no way 6", rows, awq, 6, 0)
    assert.equal(tonumber(C.NB_EINVAL), C.nb_repack_check(nb.tensor("i32", { 128, 2 }), random("i32", { 15, 16 }), C.NB_AWQ_TO_CT, 0))
    assert.matches("k = 15 leaves a part of a word", ffi.string(C.nb_error()))
  end)

  it("streams results of 16 MiB and more past the caches with the same words", function()
    local k, n = 4096, 8192 + 128
    local awq = random("i32", { k, n / 8 })
    local ct = layout.awq_to_ct(awq)
    assert.is_true(awq:equal(layout.ct_to_awq(ct)))
    assert.is_true(ct:equal(layout.gptq_to_ct(layout.awq_to_gptq(awq, 4))))
    local direct, by_gptq = nb.tensor("i32", { k / 16, 2 * n }), nb.tensor("i32", { k / 16, 2 * n })
    assert.equal(0, C.nb_marlin_awq_repack(direct, awq, 4, 0))
    assert.equal(0, C.nb_marlin_repack(by_gptq, layout.awq_to_gptq(awq, 4), nil, 4, 0))
    assert.is_true(direct:equal(by_gptq))
    C.nb_cpu_limit(0)
    assert.is_true(ct:equal(layout.awq_to_ct(awq)))
  end)

  it("packs and unpacks codes of 4 and 8 bits, whole and by tiles of rows", function()
    for _, s in ipairs { { 1024, 512 }, { 648, 200 }, { 64, 8 }, { 515, 72 }, { 1096, 136 } } do
      local k, n = s[1], s[2]
      for bits = 4, 8, 4 do
        local codes = random("u8", { n, k }, 2 ^ bits - 1)
        for _, name in ipairs { "ct", "gptq", "awq" } do
          local P, what = layout[name], ("%s %d bits %dx%d"):format(name, bits, k, n)
          local words = same_everywhere("pack " .. what, function() return P.pack(codes, bits) end)
          local back = same_everywhere("unpack " .. what, function() return P.unpack(words, bits, k) end)
          assert.is_true(back:equal(codes), what)
          local cut = math.floor(n / 2 / 8) * 8
          if cut > 0 then
            same_everywhere("pack by tiles " .. what, function()
              local whole = random("i32", words:size())
              P.pack(codes:rows(cut + 1, n), bits, whole, cut + 1)
              P.pack(codes:rows(1, cut), bits, whole, 1)
              assert.is_true(whole:equal(words), what)
              return P.unpack(whole, bits, nb.tensor("u8", { n - cut, k }), cut + 1)
            end)
          end
        end
      end
    end
  end)

  it("names a code that doesn't fit on every path", function()
    for _, name in ipairs { "ct", "gptq", "awq" } do
      for _, features in ipairs { 0, -1 } do
        C.nb_cpu_limit(features)
        local codes = random("u8", { 128, 512 }, 15)
        codes:set(3 * 512 + 201, 16)
        assert.has_error(function() layout[name].pack(codes, 4) end,
          name .. " pack: the code 16 at row 3, column 200 (from 0) is above 15, the largest of 4 bits")
      end
    end
  end)

  it("MRL-30, MRL-32, MRL-33: Marlin tiles of both widths and activations, with and without an order", function()
    for _, s in ipairs { { 64, 128 }, { 160, 192 }, { 512, 1024 } } do
      local k, n = s[1], s[2]
      for bits = 4, 8, 4 do
        local gptq, awq, perm = random("i32", { k * bits / 32, n }), random("i32", { k, n * bits / 32 }), shuffled(k)
        local function repack(fn, words, ...)
          local out = nb.tensor("i32", { k / 16, n * bits / 2 })
          assert.equal(0, fn(out, words, ...))
          return out
        end
        for a8 = 0, 1 do
          local what = ("%d bits, a8 = %d, %dx%d"):format(bits, a8, k, n)
          same_everywhere("repack " .. what, function() return repack(C.nb_marlin_repack, gptq, nil, bits, a8) end)
          same_everywhere("awq_repack " .. what, function() return repack(C.nb_marlin_awq_repack, awq, bits, a8) end)
        end
        same_everywhere("repack with perm", function() return repack(C.nb_marlin_repack, gptq, perm, bits, 0) end)
      end
    end
  end)
end)

-- Statistics, histograms, comparisons; elements and printing of tensors (DESIGN 3 and 5).
local nb = require "nibble"
local C = require("nibble.ffi").C

local function near(want, got, tolerance)
  local most = (tolerance or 1e-9) * math.max(1, math.abs(want))
  assert.is_true(math.abs(want - got) <= most, ("%g, expected %g"):format(got, want))
end

describe("stats", function()
  it("are the moments of the values, to the last block", function()
    local n = 300001 -- beyond one chunk
    local x, sum = nb.tensor("f32", { n }), 0
    math.randomseed(5)
    local p = x:ptr()
    for i = 0, n - 1 do p[i] = math.random() + 3 end
    for i = 0, n - 1 do sum = sum + p[i] end
    local mean, m2, m4 = sum / n, 0, 0
    for i = 0, n - 1 do
      local d = p[i] - mean
      m2, m4 = m2 + d * d, m4 + d ^ 4
    end
    local s = x:stats()
    near(mean, s.mean) near(math.sqrt(m2 / n), s.std) near(m4 * n / m2 ^ 2, s.kurtosis, 1e-7)
    assert.equal(n, s.numel)
  end)

  it("have the same bits for any number of threads", function()
    local x = nb.tensor("f32", { 1000, 1000 })
    local p = x:ptr()
    for i = 0, 999999 do p[i] = math.sin(i) * 0.01 end
    local texts = {}
    for threads = 1, 4 do
      C.nb_threads_set(threads)
      local s = x:stats()
      texts[threads] = ("%a %a %a %a"):format(s.mean, s.std, s.kurtosis, s.absmax)
    end
    C.nb_threads_set(0)
    for threads = 2, 4 do assert.equal(texts[1], texts[threads]) end
  end)

  it("and comparisons have the same bits on every instruction set", function()
    local x, y = nb.tensor("bf16", { 3, 1001 }), nb.tensor("f32", { 3, 1001 })
    for i = 1, 3003 do
      x:set(i, math.sin(i) * i)
      y:set(i, math.sin(i) * i + math.cos(i * 7) * 1e-3)
    end
    local function text()
      local s, c = x:stats(), nb.compare(x, y)
      return ("%a %a %a %a %a %a %a %d"):format(s.mean, s.std, s.kurtosis, s.min, c.mse, c.cosine, c.max_abs, c.max_at)
    end
    C.nb_cpu_limit(0)
    local portable = text()
    for _, features in ipairs { C.NB_CPU_AVX2, -1 } do
      C.nb_cpu_limit(features)
      assert.equal(portable, text())
    end
    C.nb_cpu_limit(-1)
  end)

  it("count NaN, infinities and zeros and leave the first two out", function()
    local s = nb.tensor("bf16", { 6 }, { 1, -3, 0, 0 / 0, math.huge, -math.huge }):stats()
    assert.same({ 1, 2, 1 }, { s.nan, s.inf, s.zeros })
    assert.same({ -3, 1, 3 }, { s.min, s.max, s.absmax })
  end)

  it("take wide integers and f64 as they are, and any length of the last lanes", function()
    local s = nb.tensor("i32", { 3 }, { 2147483647, -5, 2147483646 }):stats()
    assert.same({ -5, 2147483647 }, { s.min, s.max })
    assert.equal(1 + 2 ^ -40, nb.tensor("f64", { 2 }, { 1 + 2 ^ -40, 1 }):stats().max)
    for n = 1, 20 do
      local t = nb.tensor("f32", { n }):fill(3)
      if n > 1 then t:set(n, 5) end
      s = t:stats()
      local mean = n > 1 and (3 * n + 2) / n or 3
      near(mean, s.mean)
      near(n > 1 and math.sqrt(((n - 1) * (3 - mean) ^ 2 + (5 - mean) ^ 2) / n) or 0, s.std)
      assert.equal(0, s.zeros)
    end
    s = nb.tensor("f32", { 0 }):stats()
    assert.same({ 0, 0, 0 }, { s.numel, s.absmax, s.std })
  end)

  it("comparisons count pairs that differ by a NaN or an infinity", function()
    local nan, inf = 0 / 0, math.huge
    local a = nb.tensor("f32", { 2, 4 }, { nan, inf, nan, 1, inf, 2, 3, 4 })
    local b = nb.tensor("f32", { 2, 4 }, { nan, inf, 1, 1, -inf, 2, 3, 4 })
    local c = nb.compare(a, b)
    assert.equal(2, c.odd)
    assert.equal(0, c.mse)
    assert.matches("2 values differ by a NaN or an infinity", tostring(c))
    b:set(8, 6)
    assert.equal(4 / 8, nb.compare(a, b).mse)
  end)

  it("comparisons tell the error by span of columns", function()
    local a = nb.tensor("bf16", { 40, 160 }):fill(1)
    local b = a:cast "f32"
    b:set({ 7, 160 }, 2)
    b:set({ 30, 1 }, 3)
    local c = nb.compare(a, b)
    assert.equal(16, #c.by_column)
    assert.same({ 4, 1, 0 }, { c.by_column[1], c.by_column[16], c.by_column[8] })
    assert.equal(30, c.worst_row)
  end)

  it("histograms count every value inside, the upper end too", function()
    local x = nb.tensor("f32", { 8 }, { -2, -1, -0.5, 0, 0.5, 1, 2, 0 / 0 })
    assert.same({ 1, 2, 2, 2 }, { unpack(x:hist(4)) })
    assert.same({ 2, 1 }, { unpack(x:hist(2, 0.4, 2)) })
    assert.error_matches(function() x:hist(0) end, "expected 1 to 65536")
  end)

  it("compare tells where and how much", function()
    local a = nb.tensor("f32", { 3, 4 }, { 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12 })
    local b = a:clone()
    assert.equal(math.huge, nb.compare(a, b).sqnr_db)
    assert.matches("no difference", tostring(nb.compare(a, b)))
    b:set({ 2, 3 }, 8)
    b:set({ 3, 1 }, 6)
    local c = nb.compare(a, b)
    near(10 / 12, c.mse) near(10 * math.log10(650 / 10), c.sqnr_db) near(3, c.max_abs) near(0.9, c.worst_row_share)
    assert.equal(9, c.max_at)
    assert.equal(3, c.worst_row)
    assert.error_matches(function() nb.compare(a, nb.tensor("f32", { 4, 3 })) end, "expected any dtype %[3x4%], found f32 %[4x3%]")
  end)
end)

describe("elements", function()
  it("of every dtype are read and written with bounds", function()
    for _, dtype in ipairs { "f32", "bf16", "f16", "f64", "f8_e4m3", "f8_e5m2", "i8", "i32", "i64", "f4", "i4", "f6_e2m3" } do
      local t = nb.tensor(dtype, { 2, 8 })
      t:set({ 2, 3 }, 2)
      t:set(1, 1)
      assert.equal(2, t:get(11), dtype)
      assert.equal(2, t[{ 2, 3 }], dtype)
      assert.equal(1, t[{ 1, 1 }], dtype)
      assert.equal(0, t:get(12), dtype)
    end
    local t = nb.tensor("bf16", { 2, 8 })
    assert.error_matches(function() return t[{ 3, 1 }] end, "index 3 is outside 1..2")
    assert.error_matches(function() return t[3] end, "index 3 is outside 1..2")
    assert.error_matches(function() return t[{ 1 }] end, "1 indices for 2 dimensions")
    assert.error_matches(function() return t.statz end, 'no field or method "statz"')
    assert.same({ 8 }, t[2]:size())
    t[2][5] = 3
    assert.equal(3, t[{ 2, 5 }])
  end)

  it("map in place or into another tensor, at the speed of a loop over memory", function()
    local x = nb.tensor("f32", { 70000 })
    x:map(function() return 2 end)
    local y = x:map(function(v) return v * 3 end, nb.tensor("bf16", { 70000 }))
    assert.equal(6, y:get(70000))
    assert.equal(2, x:get(70000))
  end)

  it("print as one line with the shape, size and a sparkline", function()
    local x = nb.tensor("f32", { 2, 512 })
    for i = 1, 1024 do x:set(i, math.sin(i)) end
    assert.matches("^f32 %[2×512%]  4.0 KiB  absmax 1  std 0.71  █", tostring(x))
    assert.matches("all zero$", tostring(nb.tensor("bf16", { 4, 4 })))
    x:set(1, 0 / 0)
    assert.matches("1 NaN", tostring(x))
    assert.matches("…\n", x:show())
  end)
end)

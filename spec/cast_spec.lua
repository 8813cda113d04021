-- Casts: every path gives the same bytes; the wide road rounds once (DESIGN 1.5, FORMATS 1).
-- Bit-exactness to torch and the peers is the golden runner's (spec/golden_ops/numbers.lua).
local nb = require "nibble"
local C = require("nibble.ffi").C

local function noise(n, seed)
  math.randomseed(seed)
  local t = nb.tensor("u32", { n })
  local p = t:ptr()
  for i = 0, n - 1 do p[i] = math.random(0, 2 ^ 31 - 1) + (math.random() < 0.5 and 2 ^ 31 or 0) end
  return t:as "f32"
end

describe("cast", function()
  it("gives the portable path's bytes on every path, NaN payloads too", function()
    local paths = { C.NB_CPU_AVX2, -1 } -- -1: all that this processor has
    local x = noise(9001, 3) -- an odd length: every vector loop has a tail
    -- signs and ties of the small formats: multiples of 1/32 between -40 and 40, and both zeros
    local near_one = nb.tensor("f32", { 9001 })
    local q = near_one:ptr()
    for i = 0, 9000 do q[i] = (i % 2561 - 1280) / 32 * (i % 3 == 0 and 16 or 1) end
    q[1] = -0.0
    local halves = x:as("u16", { 9001 * 2 }):rows(1, 9001)
    local bytes = x:as("u8"):rows(1, 9001)
    local function check(from, to)
      C.nb_cpu_limit(0)
      local want = from:cast(to)
      for _, features in ipairs(paths) do
        C.nb_cpu_limit(features)
        assert.is_true(want:equal(from:cast(to)), from:type() .. " to " .. to)
      end
      C.nb_cpu_limit(-1)
    end
    for _, to in ipairs { "bf16", "f16", "f8_e4m3", "f8_e5m2", "f8_e4m3fnuz", "f8_e5m2fnuz", "i8", "u8" } do
      check(x, to)
      check(near_one, to)
    end
    for _, to in ipairs { "f4", "i4", "u4" } do
      check(x:rows(1, 9000), to)
      check(near_one:rows(1, 9000), to)
    end
    for _, from in ipairs { "bf16", "f16" } do check(halves:as(from, { 9001 }), "f32") end
    for _, from in ipairs { "f8_e4m3", "f8_e5m2", "f8_e4m3fnuz", "f8_e8m0" } do check(bytes:as(from, { 9001 }), "f32") end
  end)

  it("keeps every code that is a number, there and back through f32", function()
    local codes = nb.tensor("u16", { 65536 })
    local p = codes:ptr()
    for i = 0, 65535 do p[i] = i end
    for _, dtype in ipairs { "f16", "bf16", "f8_e4m3", "f8_e5m2", "f8_e4m3fnuz", "f8_e5m2fnuz", "f8_e8m0" } do
      local c = codes
      if dtype:match "f8" then c = codes:cast "u8" end
      local there = c:as(dtype, { 65536 }):cast "f32"
      local back = there:cast(dtype):as(c:type(), { 65536 })
      for i = 1, 65536 do
        local v = there:get(i)
        if v == v and back:get(i) ~= c:get(i) then error(("%s code %d came back as %d"):format(dtype, c:get(i), back:get(i))) end
      end
    end
  end)

  it("saturates on demand: infinities and what lies beyond, but not NaN", function()
    local x = nb.tensor("f32", { 4 }, { 1 / 0, -1e38, 0 / 0, 1 })
    for dtype, max in pairs { f8_e4m3 = 448, f8_e5m2 = 57344, f8_e4m3fnuz = 240, f16 = 65504 } do
      local y = x:cast(dtype, { saturate = true }):cast("f32"):totable()
      assert.same({ max, -max, 1 }, { y[1], y[2], y[4] }, dtype)
      assert.is_true(y[3] ~= y[3], dtype)
    end
    assert.same({ 1 / 0, -1 / 0 }, x:cast("f8_e5m2"):cast("f32"):rows(1, 2):totable())
    assert.same({ 6, -6, 6, 1 }, x:cast("f4"):cast("f32"):totable())
  end)

  it("does not depend on the number of threads", function()
    local x = noise(300000, 4)
    C.nb_threads_set(1)
    local one = x:cast "f8_e4m3"
    C.nb_threads_set(3)
    assert.is_true(one:equal(x:cast "f8_e4m3"))
    C.nb_threads_set(0)
  end)

  it("rounds f64 and 64-bit integers once", function()
    -- just above halfway between two f16 values: through f32 first it would tie and go to even
    local x = nb.tensor("f64", { 2 }, { 1 + 2 ^ -11 + 2 ^ -40, -(1 + 2 ^ -11 + 2 ^ -40) })
    assert.equal(1 + 2 ^ -10, x:cast("f16"):cast("f32"):get(1))
    assert.equal(-(1 + 2 ^ -10), x:cast("f16"):cast("f32"):get(2))
    local i = nb.tensor("i64", { 1 })
    i:ptr()[0] = 2LL ^ 60 + 2LL ^ 36 + 1LL
    assert.equal(2 ^ 60 + 2 ^ 37, i:cast("f32"):get(1))
    assert.equal(i:ptr()[0], i:cast("u64"):cast("i64"):ptr()[0])
  end)

  it("saturates integers and takes NaN for 0", function()
    local x = nb.tensor("f32", { 6 }, { 300, -300, 2.5, 3.5, 0 / 0, 1e30 })
    assert.same({ 127, -128, 2, 4, 0, 127 }, x:cast("i8"):totable())
    assert.same({ 255, 0, 2, 4, 0, 255 }, x:cast("u8"):totable())
    assert.same({ 300, -300, 2, 4, 0, 2147483647 }, x:cast("i32"):totable())
  end)

  it("packs four- and six-bit values and unpacks them again", function()
    for _, dtype in ipairs { "i4", "u4", "f4", "f6_e2m3", "f6_e3m2" } do
      local n = 4104 -- beyond one block
      local x = nb.tensor("f32", { n })
      for i = 1, n do x:set(i, (i * 7) % 6 - (dtype == "u4" and 0 or 2)) end
      assert.is_true(x:equal(x:cast(dtype):cast "f32"), dtype)
    end
  end)

  it("refuses different sizes and complex numbers", function()
    assert.equal("eunsupported", select(2, pcall(function() nb.tensor("c64", { 2 }):cast "f32" end)):match "complex" and "eunsupported")
    local a, b = nb.tensor("f32", { 4 }), nb.tensor("bf16", { 5 })
    assert.equal(tonumber(C.NB_EINVAL), C.nb_cast(b, a, 0))
    assert.matches("expected the 4 elements of f32 %[4%], found bf16 %[5%]", require("ffi").string(C.nb_error()))
  end)
end)

describe("mx scales", function()
  it("are powers of two from the largest magnitude; what is not finite is e8m0's NaN", function()
    local amax = nb.tensor("f32", { 6 }, { 6, 7, 0, 2 ^ -140, math.huge, 0 / 0 })
    local scales = nb.tensor("f8_e8m0", { 6 })
    assert.equal(0, C.nb_mx_scales(scales, amax, 4))
    assert.same({ 127, 128, 0, 0, 255, 255 }, scales:as("u8"):totable())
    assert.equal(tonumber(C.NB_EINVAL), C.nb_mx_scales(scales, amax, 6))
    assert.matches("elements of 6 bits, expected 4 %(f4%) or 8", require("ffi").string(C.nb_error()))
    assert.equal(tonumber(C.NB_EINVAL), C.nb_mx_scales(amax, amax, 4))
  end)
end)

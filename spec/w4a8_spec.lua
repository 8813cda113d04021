-- 4-bit weights times int8 activations: the packed form and its inverse, and the product
-- against plain Lua with integer sums, the same bits on every path.
local nb = require "nibble"
local nffi = require "nibble.ffi"
local w4a8 = require "nibble.methods.w4a8_moe"
local random = require("spec.support.numbers").random
local C, must = nffi.C, nffi.must

local function codes_of(n, k, seed)
  math.randomseed(seed)
  local t = nb.tensor("i8", { n, k })
  for i = 0, n * k - 1 do t:ptr()[i] = math.random(-8, 7) end
  return t
end

-- A matrix: codes, scales as stored, bias, packed.
local function matrix(n, k, group, seed, bias)
  local m = { n = n, k = k, group = group, codes = codes_of(n, k, seed) }
  m.scales = random({ n, group == -1 and 1 or k / group }, seed + 1, 0.2):cast(group == -1 and "f32" or "bf16")
  m.bias = bias and random({ n }, seed + 2) or nil
  m.packed = assert(w4a8.pack(m.codes, m.scales, m.bias, group))
  return m
end

local function product(m, x)
  local y = nb.tensor("f32", { x:size(1), m.n })
  must(C.nb_w4a8_gemm(y, x, m.packed, m.group))
  return y
end

local f = nb.tensor("f32", { 1 })
local function f32(v)
  f:set(1, v)
  return f:get(1)
end

local function round_half_away(v) return v >= 0 and math.floor(v + 0.5) or math.ceil(v - 0.5) end

-- x's row (0-based) as the reference quantizes it: codes, scale.
local function quantized(x, row, k)
  local max = f32(1e-10)
  for i = 1, k do max = math.max(max, math.abs(x:get(row * k + i))) end
  local up, q = f32(127 / max), {}
  for i = 1, k do q[i] = math.max(-127, math.min(127, round_half_away(f32(x:get(row * k + i) * up)))) end
  return q, f32(max / 127)
end

-- y in Lua, every float operation rounded to float32 in the kernel's order.
local function reference(m, x)
  local y, k, group = nb.tensor("f32", { x:size(1), m.n }), m.k, m.group == -1 and m.k or m.group
  for row = 0, x:size(1) - 1 do
    local q, scale = quantized(x, row, k)
    for o = 0, m.n - 1 do
      local sum = 0
      for g = 0, k / group - 1 do
        local dot = 0
        for i = g * group + 1, (g + 1) * group do dot = dot + m.codes:get(o * k + i) * q[i] end
        sum = f32(sum + f32(f32(dot) * m.scales:get(o * (k / group) + g + 1)))
      end
      y:set(row * m.n + o + 1, f32(f32(sum * scale) + (m.bias and m.bias:get(o + 1) or 0)))
    end
  end
  return y
end

-- Outputs, inputs, group: odd numbers of outputs, groups that are no multiple of 8, one group a row.
local shapes = { { 1, 2, -1 }, { 16, 8, -1 }, { 17, 40, -1 }, { 33, 64, 32 }, { 5, 30, 10 }, { 20, 12, 2 }, { 16, 256, 128 },
  { 7, 90, 45 }, { 40, 66, -1 } }

describe("w4a8 packing", function()
  for _, s in ipairs(shapes) do
    it(("CTM-W4A8-08: %d outputs of %d inputs in groups of %d come back: codes, scales, bias"):format(unpack(s)), function()
      local m = matrix(s[1], s[2], s[3], 3, true)
      local codes, scales, bias = w4a8.unpack(m.packed, m.n, m.k, m.group)
      assert.is_true(codes:equal(m.codes))
      assert.is_true(scales:equal(m.scales))
      assert.is_true(bias:equal(m.bias))
      assert.equal(tonumber(C.nb_w4a8_bytes(unpack(s))), m.packed:numel())
    end)
  end

  it("CTM-W4A8-06: two codes a byte, plus 8, the even input low, all sixteen of them", function()
    local codes = nb.tensor("i8", { 2, 8 }, { -8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7 })
    local nibbles = assert(w4a8.nibbles(codes))
    assert.same({ 0x10, 0x32, 0x54, 0x76, 0x98, 0xba, 0xdc, 0xfe }, nibbles:totable())
    local back = nb.tensor("i8", { 2, 8 })
    must(C.nb_w4a8_codes(back, nibbles))
    assert.is_true(back:equal(codes))
  end)

  it("CTM-W4A8-03: a code outside -8 to 7 is an error that says where", function()
    local codes = codes_of(3, 6, 1)
    codes:set(11, 8)
    local nibbles, msg, code = w4a8.nibbles(codes)
    assert.is_nil(nibbles)
    assert.equal("w4a8: the code 8 at row 1, column 4 (from 0) is outside -8 to 7", msg)
    assert.equal("eformat", code)
    codes:set(11, -9)
    assert.matches("the code %-9 at row 1", select(2, w4a8.pack(codes, nb.tensor("f32", { 3, 1 }):fill(1), nil, -1)))
  end)

  it("CTM-W4A8-04, CTM-W4A8-06, C-15: scales are kept as float32 by row, as bfloat16 by group; the bias as float32", function()
    local codes, fine = codes_of(2, 8, 1), random({ 2, 1 }, 2)
    local _, scales = w4a8.unpack(w4a8.pack(codes, fine, nil, -1), 2, 8, -1)
    assert.is_true(scales:equal(fine))
    local grouped = random({ 2, 2 }, 2)
    local bias = random({ 2 }, 3):cast "bf16"
    local _, coarse, wide = w4a8.unpack(w4a8.pack(codes, grouped, bias, 4), 2, 8, 4)
    assert.is_true(coarse:equal(grouped:cast "bf16"))
    assert.is_true(wide:equal(bias:cast "f32"))
  end)

  it("CTM-W4A8-06: odd inputs and groups that don't divide them are errors; scales must be finite", function()
    local scales = nb.tensor("f32", { 3, 1 }):fill(1)
    assert.error_matches(function() w4a8.pack(codes_of(3, 7, 1), scales, nil, -1) end, "7 inputs; two go into a byte, so they must be even")
    assert.error_matches(function() w4a8.pack(codes_of(3, 8, 1), scales, nil, 3) end, "groups of 3 do not divide 8 inputs")
    assert.error_matches(function() w4a8.pack(codes_of(3, 8, 1), scales, nil, 0) end, "groups of 0 do not divide 8 inputs")
    assert.error_matches(function() w4a8.pack(codes_of(3, 8, 1), nb.tensor("f32", { 3, 2 }), nil, -1) end,
      "scales: expected f32 %[3x1%], found f32 %[3x2%]")
    scales:set(2, 1 / 0)
    local packed, msg, code = w4a8.pack(codes_of(3, 8, 1), scales, nil, -1)
    assert.same({ nil, "w4a8: 1 scales are infinite or NaN", "eformat" }, { packed, msg, code })
  end)
end)

describe("w4a8 product", function()
  for _, s in ipairs(shapes) do
    it(("CTM-W4A8-14, CTM-W4A8-15: %d outputs of %d inputs in groups of %d, bit for bit on every path"):format(unpack(s)), function()
      for _, rows in ipairs { 1, 3, 4, 9 } do
        local m, x = matrix(s[1], s[2], s[3], 5, rows % 2 == 1), random({ rows, s[2] }, 6, 5)
        local want = reference(m, x)
        for _, features in ipairs { 0, -1 } do
          C.nb_cpu_limit(features)
          for _, threads in ipairs { 1, 2, 3 } do
            C.nb_threads_set(threads)
            assert.is_true(product(m, x):equal(want), ("%d rows, features %d, %d threads"):format(rows, features, threads))
          end
        end
        C.nb_cpu_limit(-1)
        C.nb_threads_set(0)
      end
    end)
  end

  it("CTM-W4A8-14: does not overflow: the largest codes against the largest activations", function()
    local n, k = 16, 4096
    local m = { n = n, k = k, group = -1, codes = nb.tensor("i8", { n, k }):fill(-8), scales = nb.tensor("f32", { n, 1 }):fill(1) }
    for o = 0, 7 do m.codes:rows(o + 1, o + 1):fill(7) end
    m.packed = assert(w4a8.pack(m.codes, m.scales, nil, -1))
    local x = nb.tensor("f32", { 2, k }):fill(127)
    x:rows(2, 2):fill(-127)
    for _, features in ipairs { 0, -1 } do
      C.nb_cpu_limit(features)
      local y = product(m, x)
      assert.equal(7 * 127 * k, y:get(1))
      assert.equal(-8 * 127 * k, y:get(9))
      assert.equal(-7 * 127 * k, y:get(n + 1))
      assert.equal(8 * 127 * k, y:get(n + 9))
    end
  end)

  it("CTM-W4A8-14: takes f16 and bf16 activations, each row by its own largest value", function()
    local m = matrix(24, 64, 32, 7, true)
    local x = random({ 5, 64 }, 8, 3)
    for i = 1, 64 do x:set(i, x:get(i) * 1000) end
    for _, dtype in ipairs { "f16", "bf16" } do
      local narrow = x:cast(dtype)
      assert.is_true(product(m, narrow):equal(product(m, narrow:cast "f32")))
    end
    local one = nb.tensor("f32", { 1, 24 })
    must(C.nb_w4a8_gemm(one, x:rows(4, 4), m.packed, 32))
    assert.is_true(one:equal(product(m, x):rows(4, 4)))
    -- The quantization is that of the kernels' activations elsewhere.
    local q, scales = nb.tensor("i8", { 5, 64 }), nb.tensor("f32", { 5, 1 })
    must(C.nb_act_quant_int8(q, scales, x, 1))
    for row = 0, 4 do
      local mine, scale = quantized(x, row, 64)
      assert.equal(scale, scales:get(row + 1))
      for i = 1, 64 do assert.equal(mine[i], q:get(row * 64 + i)) end
    end
  end)

  it("CTM-W4A8-14: a row of zeros gives the bias, a row with NaN or infinity gives NaN, and no other row", function()
    local m = matrix(20, 16, 8, 9, true)
    local x = random({ 4, 16 }, 8)
    x:rows(1, 1):fill(0)
    x:set(16 + 3, 0 / 0)
    x:set(32 + 16, -1 / 0)
    for _, features in ipairs { 0, -1 } do
      C.nb_cpu_limit(features)
      local y = product(m, x)
      for o = 1, 20 do
        assert.equal(m.bias:get(o), y:get(o))
        for row = 1, 2 do
          local v = y:get(row * 20 + o)
          assert.is_true(v ~= v)
        end
        assert.is_true(y:get(60 + o) == y:get(60 + o))
      end
    end
  end)

  it("CTM-W4A8-15: stops when asked to, and fails cleanly without memory", function()
    local m, x = matrix(20, 16, 8, 9), random({ 4, 16 }, 8):cast "bf16"
    C.nb_stop_request()
    local ok, msg = pcall(product, m, x)
    C.nb_stop_clear()
    assert.same({ false, "interrupted" }, { ok, msg })
    local failures = 0
    for nth = 2, 9 do -- the first is y's own
      C.nb_debug_fail_alloc(nth)
      ok, msg = pcall(product, m, x)
      local left = tonumber(C.nb_debug_fail_left())
      C.nb_debug_fail_alloc(0)
      if left > 0 then break end
      assert.is_false(ok)
      assert.matches("out of memory", msg)
      failures = failures + 1
    end
    assert.is_true(failures >= 4, failures .. " allocations failed")
    local sorted, owners = nb.tensor("i32", { 2 }), nb.tensor("i32", { 1 })
    local total, ids = require("ffi").new "int64_t[1]", nb.tensor("i32", { 1 })
    C.nb_debug_fail_alloc(1)
    assert.error_matches(function() must(C.nb_moe_align(sorted, owners, total, ids, 2, 2, nil, 0)) end, "out of memory")
    C.nb_debug_fail_alloc(0)
  end)

  it("CTM-W4A8-15: says what doesn't fit", function()
    local m = matrix(20, 16, 8, 9)
    local function says(msg, ...)
      local args = { ... }
      assert.error_matches(function() must(C.nb_w4a8_gemm(unpack(args))) end, msg)
    end
    local x, y = nb.tensor("f32", { 2, 16 }), nb.tensor("f32", { 2, 20 })
    says("y: expected f32 %[2x%*%], found f32 %[3x20%]", nb.tensor("f32", { 3, 20 }), x, m.packed, 8)
    says("packed weights: expected u8", nb.tensor("f32", { 2, 40 }), x, m.packed, 8)
    says("expected f32, bf16 or f16, found i8", y, nb.tensor("i8", { 2, 16 }), m.packed, 8)
    says("groups of 5 do not divide 16 inputs", y, x, m.packed, 5)
    must(C.nb_w4a8_gemm(nb.tensor("f32", { 0, 20 }), nb.tensor("f32", { 0, 16 }), m.packed, 8))
  end)
end)

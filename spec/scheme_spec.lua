-- Schemes: presets, words, options, and every contradiction's sentence (CTM-SEL-03).
local nb = require "nibble"
local scheme = nb.scheme

describe("scheme", function()
  it("has presets W2A16 to W8A16 and their asymmetric twins, group 128", function()
    for bits = 2, 8 do
      assert.same({ type = "int", bits = bits, symmetric = true, strategy = "group", group = 128 },
        scheme.parse(("W%dA16"):format(bits)))
      assert.is_false(scheme.parse(("W%dA16_ASYM"):format(bits)).symmetric)
    end
  end)

  it("reads words and options, and describe() is read back", function()
    local s = scheme.parse "W4A16 g64 asym"
    assert.equal(64, s.group)
    assert.is_false(s.symmetric)
    assert.same(s, scheme.parse("W4A16", { group = 64, symmetric = false }))
    assert.same(s, scheme.parse(s))
    for _, text in ipairs { "W4A16 g128 sym", "W8A16 channel sym", "W3A16 tensor asym", "W4A16 g32 asym actorder" } do
      assert.equal(text, scheme.describe(scheme.parse(text)))
    end
  end)

  it("CTM-SEL-03: infers the strategy from the group, and the group from the strategy", function()
    assert.equal("channel", scheme.parse("W4A16", { group = -1 }).strategy)
    assert.equal(-1, scheme.parse("W4A16", { strategy = "channel" }).group)
    assert.equal("tensor", scheme.new({ bits = 8 }).strategy)
    assert.equal("group", scheme.new({ bits = 4, group = 32 }).strategy)
    assert.equal("channel", scheme.parse(scheme.parse "W4A16 channel").strategy)
    assert.equal("group", scheme.parse("W4A16 channel", { group = 32 }).strategy)
  end)

  it("CTM-SEL-03: actorder dynamic and true mean group, static means weight", function()
    for given, meant in pairs { dynamic = "group", group = "group", static = "weight", weight = "weight" } do
      assert.equal(meant, scheme.parse("W4A16", { actorder = given }).actorder)
    end
    assert.equal("group", scheme.parse("W4A16", { actorder = true }).actorder)
    assert.is_nil(scheme.parse("W4A16", { actorder = false }).actorder)
  end)

  it("CTM-SEL-03: refuses contradictions with both fields named", function()
    local cases = {
      { { strategy = "group", group = -1 }, 'strategy = "group" needs group > 0, found group = %-1' },
      { { strategy = "channel", group = 64 }, 'strategy = "channel" contradicts group = 64' },
      { { strategy = "tensor", group = 64 }, 'strategy = "tensor" contradicts group = 64' },
      { { strategy = "channel", actorder = "group" }, 'actorder = "group" needs strategy = "group", found strategy = "channel"' },
      { { group = 0 }, "group = 0: expected a number above 0" },
      { { group = 1.5 }, "group = 1.5" },
      { { bits = 9 }, "bits = 9: expected 2 to 8" },
      { { strategy = "rows" }, 'strategy = "rows": expected group, channel, tensor, block or tensor_group' },
      { { scale_dtype = "f64" }, 'scale_dtype = "f64"' },
      { { actorder = "maybe" }, 'actorder = "maybe"' },
      { { symmetric = 1 }, "symmetric = 1" },
      { { type = "complex" }, 'type = "complex": expected int or float' },
    }
    for _, case in ipairs(cases) do
      assert.error_matches(function() scheme.parse("W4A16", case[1]) end, case[2])
    end
  end)

  it("suggests what an unknown name may have meant", function()
    assert.error_matches(function() scheme.parse "W4A61" end, 'unknown scheme "W4A61"; did you mean "W4A16"')
    assert.error_matches(function() scheme.parse("W4A16", { gruop = 64 }) end,
      'unknown scheme option gruop; did you mean "group"')
    assert.error_matches(function() scheme.parse "W4A16 g64 lopsided" end, 'unknown word "lopsided"; known: g<size>')
    local s, msg, code = scheme.try "fp9"
    assert.is_nil(s)
    assert.matches('unknown scheme "fp9"', msg)
    assert.equal("einval", code)
  end)

  it("raises at the caller", function()
    local ok, msg = pcall(function() scheme.parse "W4A61" end)
    assert.is_false(ok)
    assert.matches("scheme_spec", msg)
  end)
end)

describe("quantized", function()
  local function sample(s, n, k)
    local q = scheme.quantized(s, n, k, "bf16")
    local c, sc = q.codes:ptr(), q.scales:as("u16"):ptr()
    for i = 0, n * k - 1 do c[i] = (i * 7 + 3) % 2 ^ s.bits end
    for i = 0, n * q.groups - 1 do sc[i] = 0x3c00 + i end
    if q.zeros then
      local z = q.zeros:ptr()
      for i = 0, n * q.groups - 1 do z[i] = i % 2 ^ s.bits end
    end
    return q
  end

  it("allocates codes, scales and zero-points by the scheme", function()
    local q = scheme.quantized(scheme.parse "W4A16 g32 asym", 6, 96, "f16")
    assert.same({ 6, 96 }, q.codes:size())
    assert.same({ 6, 3 }, q.scales:size())
    assert.equal("f16", q.scales:type())
    assert.same({ 6, 3 }, q.zeros:size())
    assert.is_nil(scheme.quantized(scheme.parse "W4A16 channel", 6, 96, "f16").zeros)
    assert.matches("W4A16 g32 asym", tostring(q))
  end)

  it("hashes the same whatever the tiles' size", function()
    local ffi = require "ffi"
    local C = require("nibble.ffi").C
    local q = sample(scheme.parse "W4A16 g32 asym", 10, 64)
    q.g_idx = nb.tensor("i32", { 64 })
    local whole = q:hash()
    for step = 1, 10 do
      local h = ffi.gc(C.nb_hash_new(), C.nb_hash_free)
      for a = 1, 10, step do q:rows(a, math.min(10, a + step - 1)):hash_into(h) end
      local hex = ffi.new "char[33]"
      C.nb_hash_hex(h, hex)
      assert.equal(whole, ffi.string(hex), "step " .. step)
    end
    q.codes:set(640, 1 + q.codes:get(640))
    assert.not_equal(whole, q:hash())
  end)

  it("compares numbers: symmetric equals stored zero-points that are all 2^(bits-1)", function()
    local a = sample(scheme.parse "W4A16 g32 sym", 4, 64)
    local b = sample(scheme.parse "W4A16 g32 asym", 4, 64)
    local equal, what = a:equal(b)
    assert.is_false(equal)
    assert.equal("zeros", what)
    for i = 1, b.zeros:numel() do b.zeros:set(i, 8) end
    assert.is_true(a:equal(b))
    assert.equal(a:hash(), b:hash())
    b.scales:as("u16"):set(1, 1)
    assert.same({ false, "scales" }, { a:equal(b) })
    b.codes:set(1, 15 - b.codes:get(1))
    assert.same({ false, "codes" }, { a:equal(b) })
    a.g_idx = nb.tensor("i32", { 64 })
    assert.same({ false, "g_idx" }, { a:equal((function() local c = sample(a.scheme, 4, 64); return c end)()) })
  end)
end)

describe("scales", function()
  local function of(dtype, as, values)
    local t = nb.tensor(dtype, { #values, 1 })
    for i, v in ipairs(values) do t:as(as):set(i, v) end
    return t
  end
  local C = require("nibble.ffi").C

  it("are equal as numbers whatever their dtypes, and hash alike", function()
    local bf16 = of("bf16", "u16", { 0x3f80, 0x3c20, 0xbc20, 0 })
    local f16 = of("f16", "u16", { 0x3c00, 0x2100, 0xa100, 0 })
    assert.equal(1, C.nb_scales_equal(bf16, f16))
    assert.equal(1, C.nb_scales_equal(f16, bf16))
    assert.equal(0, C.nb_scales_equal(bf16, of("f16", "u16", { 0x3c00, 0x2101, 0xa100, 0 })))
    assert.equal(0, C.nb_scales_equal(bf16, of("f16", "u16", { 0x3c00 })))
    local a = scheme.quantized(scheme.parse "W4A16 channel", 4, 8, "bf16")
    local b = scheme.quantized(scheme.parse "W4A16 channel", 4, 8, "f16")
    a.scales, b.scales = bf16, f16
    assert.is_true(a:equal(b))
    assert.equal(a:hash(), b:hash())
  end)

  it("cast only where every value survives", function()
    local nffi = require "nibble.ffi"
    local bf16 = of("bf16", "u16", { 0x3f80, 0x3c20 })
    local f16 = nb.tensor("f16", { 2, 1 })
    assert.equal(0, C.nb_scales_cast(f16, bf16, 0, "m"))
    assert.equal(1, C.nb_scales_equal(bf16, f16))
    local small = of("bf16", "u16", { 0x3f80, 0x3001 }) -- 2^-31 has no f16
    local ok, msg, code = nffi.check(C.nb_scales_cast(f16, small, 8, "m: scales"))
    assert.is_nil(ok)
    assert.equal("einexact", code)
    assert.matches("m: scales: the bf16 value .* of row 9, group 0 has no exact f16", msg)
    assert.equal(C.NB_EINEXACT, C.nb_scales_cast(nb.tensor("bf16", { 1, 1 }), of("f16", "u16", { 0x3c01 }), 0, "m"))
  end)
end)

-- Schemes of float weights and of quantized activations, and weights quantized by them (CTM-SEL-03).
local nb = require "nibble"
local ffi = require "ffi"
local C = require("nibble.ffi").C
local scheme = nb.scheme
local activations = require "nibble.scheme_activations"
local support = require "spec.support.formats"

local every = { "W4A8", "W2A8", "W4A4", "W8A8", "W8A8_STATIC", "W4AFP8", "FP8", "FP8_DYNAMIC", "FP8_BLOCK", "FP8A16", "NVFP4",
  "NVFP4A16", "MXFP4", "MXFP4A16", "MXFP8", "MXFP8A16" }

describe("float and activation schemes", function()
  it("has compressed-tensors' presets", function()
    local fp8_token = { type = "float", bits = 8, symmetric = true, strategy = "token", dynamic = true }
    assert.same({ type = "float", bits = 8, symmetric = true, strategy = "channel", group = -1, activations = fp8_token },
      scheme.parse "FP8_DYNAMIC")
    assert.same({ type = "float", bits = 8, symmetric = true, strategy = "block", group = -1, block = { 128, 128 },
      activations = { type = "float", bits = 8, symmetric = true, strategy = "group", group = 128, dynamic = true } },
      scheme.parse "FP8_BLOCK")
    local fp8 = scheme.parse "fp8"
    assert.same({ "tensor", false, "tensor" }, { fp8.activations.strategy, fp8.activations.dynamic, fp8.strategy })
    assert.is_true(scheme.static_activations(fp8))
    assert.is_false(scheme.static_activations(scheme.parse "FP8_DYNAMIC"))
    assert.is_false(scheme.static_activations(scheme.parse "W4A16"))
    assert.same({ type = "float", bits = 4, symmetric = true, strategy = "tensor_group", group = 16, scale_dtype = "f8_e4m3",
      activations = { type = "float", bits = 4, symmetric = true, strategy = "tensor_group", group = 16, dynamic = "local",
                      scale_dtype = "f8_e4m3" } }, scheme.parse "NVFP4")
    assert.is_true(scheme.static_activations(scheme.parse "NVFP4"))
    assert.is_nil(scheme.parse("NVFP4A16").activations)
    assert.same({ "e8m0", 32, true }, { scheme.parse("MXFP4").scale_dtype, scheme.parse("MXFP4").activations.group,
      scheme.parse("MXFP4").activations.dynamic })
    assert.same({ "int", 8, "channel", "token" }, { scheme.parse("W8A8").type, scheme.parse("INT8").bits,
      scheme.parse("W8A8").strategy, scheme.parse("W8A8").activations.strategy })
    assert.same({ 4, 128, "float" }, { scheme.parse("W4AFP8").bits, scheme.parse("W4AFP8").group,
      scheme.parse("W4AFP8").activations.type })
  end)

  it("describe() is read back by parse(), whatever the scheme", function()
    for _, name in ipairs(every) do
      local s = scheme.parse(name)
      assert.same(s, scheme.parse(scheme.describe(s)), name)
    end
    for _, words in ipairs { "FP8_DYNAMIC", "NVFP4", "FP8 channel", "MXFP8A16", "W8A8 channel sym", "W8A8 g128 asym",
        "FP8A16 block64x32", "NVFP4A16 g32", "W4A16 g64 sym act:int8:tensor:static:asym", "FP8A16 act:fp8:tensor",
        "FP8A16 g128", "MXFP8A16 block128x128", "MXFP8A16 tensor" } do
      assert.equal(words, scheme.describe(scheme.parse(words)))
    end
  end)

  it("CTM-SEL-03: block_structure may be a string, and options decide the strategy", function()
    assert.same({ 64, 32 }, scheme.parse("FP8_BLOCK", { block = "64x32" }).block)
    assert.equal("block", scheme.parse("FP8_DYNAMIC", { block = { 128, 128 } }).strategy)
    assert.is_nil(scheme.parse("FP8_BLOCK", { strategy = "channel" }).block)
    assert.equal("group", scheme.parse("FP8_BLOCK", { group = 64 }).strategy)
    assert.equal("tensor_group", scheme.parse("NVFP4", { group = 32 }).strategy)
    assert.is_nil(scheme.parse("FP8_DYNAMIC", { activations = false }).activations)
    assert.equal("e8m0", scheme.parse("FP8_BLOCK", { scale_dtype = "f8_e8m0" }).scale_dtype)
    assert.equal("f8_e4m3", scheme.new({ type = "float", bits = 4, strategy = "tensor_group", group = 16 }).scale_dtype)
    assert.equal("weight", scheme.parse("W8A8", { actorder = "static" }).actorder)
  end)

  it("CTM-SEL-03: refuses contradictions with both fields named", function()
    local float8, float4 = { type = "float", bits = 8 }, { type = "float", bits = 4 }
    local cases = {
      { float8, { strategy = "block" }, 'strategy = "block" needs block = {rows, columns}, found none' },
      { float8, { strategy = "tensor", block = { 8, 8 } }, 'strategy = "tensor" contradicts block = 8x8' },
      { float8, { block = "8" , strategy = "block" }, 'block = 8: expected {rows, columns}' },
      { float8, { block = { 8, 0 }, strategy = "block" }, "block = {8, 0}: expected" },
      { float8, { symmetric = false }, 'type = "float" contradicts symmetric = false' },
      { float8, { bits = 6 }, 'type = "float" needs bits = 4 or 8, found bits = 6' },
      { float8, { group = 32, actorder = "group" }, 'type = "float" contradicts actorder = "group"' },
      { float8, { strategy = "tensor_group", group = 16 }, 'scale_dtype = "f8_e4m3" and strategy = "tensor_group" belong together' },
      { float8, { strategy = "tensor_group", group = 16, scale_dtype = "f8_e4m3" }, 'strategy = "tensor_group" needs bits = 4, found bits = 8' },
      { float8, { scale_dtype = "f8_e4m3" }, 'belong together, found scale_dtype = "f8_e4m3" and strategy = "tensor"' },
      { float4, { strategy = "channel" }, 'needs strategy = "tensor_group" or "group", found strategy = "channel"' },
      { float4, { strategy = "tensor_group" }, 'strategy = "tensor_group" needs group > 0, found group = nil' },
      { float4, { group = 32, scale_dtype = "f16" }, 'needs scale_dtype = "e8m0", found scale_dtype = "f16"' },
      { { bits = 8 }, { strategy = "block", block = { 8, 8 } }, 'strategy = "block" needs type = "float", found type = "int"' },
      { { bits = 8 }, { strategy = "tensor_group", group = 16 }, 'strategy = "tensor_group" needs type = "float", found type = "int"' },
      { { bits = 8 }, { group = 32, scale_dtype = "e8m0" }, 'scale_dtype = "e8m0" needs type = "float", found type = "int"' },
      { { bits = 8 }, { strategy = "tensor", actorder = true }, 'actorder = "group" needs strategy = "group", found strategy = "tensor"' },
      { { bits = 8 }, { activations = { strategy = "token" } }, 'activations: strategy = "token" contradicts dynamic = false' },
      { { bits = 8 }, { activations = { dynamic = "local" } }, 'dynamic = "local" needs strategy = "tensor_group", found strategy = "tensor"' },
      { { bits = 8 }, { activations = { dynamic = "sometimes" } }, 'dynamic = sometimes: expected true, false or "local"' },
      { { bits = 8 }, { activations = { strategy = "channel", dynamic = true } }, 'dynamic = true contradicts strategy = "channel"' },
      { { bits = 8 }, { activations = { strategy = "group", dynamic = true } }, 'strategy = "group" needs group > 0, found none' },
      { { bits = 8 }, { activations = { strategy = "tensor", group = 16 } }, 'strategy = "tensor" contradicts group = 16' },
      { { bits = 8 }, { activations = { type = "float", symmetric = false } }, 'type = "float" contradicts symmetric = false' },
      { { bits = 8 }, { activations = { type = "float", bits = 5 } }, 'type = "float" needs bits = 4 or 8, found bits = 5' },
      { { bits = 8 }, { activations = { strategy = "tensor_group", group = 16 } }, 'strategy = "tensor_group" needs type = "float" and bits = 4' },
      { { bits = 8 }, { activations = { strategy = "rows" } }, 'strategy = "rows": expected token, tensor' },
      { { bits = 8 }, { activations = { bits = 1 } }, "activations: bits = 1" },
      { { bits = 8 }, { activations = { symmetric = 1 } }, "activations: symmetric = 1" },
      { { bits = 8 }, { activations = { type = "fp" } }, 'activations: type = "fp"' },
      { { bits = 8 }, { activations = { group = 0 } }, "activations: group = 0" },
      { { bits = 8 }, { activations = { scale_dtype = "u8" } }, 'activations: scale_dtype = "u8"' },
      { { bits = 8 }, { activations = { dynamics = true } }, 'activations: unknown field dynamics; did you mean "dynamic"' },
      { { bits = 8 }, { activations = "int8:often" }, 'activations = "int8:often": expected a table, or words' },
      { { bits = 8 }, { activations = 8 }, "activations: expected a table, found a number" },
    }
    for _, case in ipairs(cases) do
      local f = {}
      for _, part in ipairs { case[1], case[2] } do for k, v in pairs(part) do f[k] = v end end
      local s, msg, code = scheme.new(f)
      assert.is_nil(s, case[3])
      assert.equal("einval", code)
      assert.is_truthy(msg:find(case[3], 1, true), ("expected %q in %q"):format(case[3], msg))
    end
  end)

  it("CTM-SEL-03: an activation's strategy follows from its group", function()
    assert.equal("tensor", activations.new({}).strategy)
    assert.equal("group", activations.new({ group = 32, dynamic = true }).strategy)
    assert.equal("channel", activations.new({ group = -1 }).strategy)
    assert.equal("e8m0", activations.new({ type = "float", bits = 4, group = 32, dynamic = true }).scale_dtype)
    for _, word in ipairs { "int8:token", "fp8:tensor:static", "fp4:tensor_group:g16:local", "fp8:g128", "int8:tensor:static:asym" } do
      assert.equal(word, activations.word(assert(activations.new(word))))
    end
  end)

  it("same() tells schemes apart by what changes numbers", function()
    local function same(a, b) return scheme.same(scheme.parse(a), scheme.parse(b)) end
    assert.is_true(same("FP8 bf16", "FP8 f32"))
    assert.is_false(same("FP8", "FP8_DYNAMIC"))
    assert.is_false(same("NVFP4", "NVFP4A16"))
    assert.is_false(same("FP8A16 g32", "MXFP8A16"))
    assert.is_false(same("FP8_BLOCK", "FP8_BLOCK block64x128"))
  end)
end)

describe("a weight of float codes", function()
  after_each(function()
    C.nb_cpu_limit(-1)
    C.nb_threads_set(0)
  end)

  -- What dequantize should give, element by element in double and rounded once to float32.
  local e2m1 = { [0] = 0, 0.5, 1, 1.5, 2, 3, 4, 6 }
  local function value(q, r, c)
    local code = q.codes:as("u8", q.codes:size()):ptr()[r * q.k + c]
    if q.scheme.bits == 4 then return (code >= 8 and -1 or 1) * e2m1[code % 8] end
    return q.codes:get(r * q.k + c + 1)
  end
  local function reference(q)
    local rows, columns = scheme.block(q.scheme, q.n, q.k)
    local f, out = ffi.new "float[1]", {}
    for r = 0, q.n - 1 do
      for c = 0, q.k - 1 do
        local s = q.scales:get(math.floor(r / rows) * q.groups + math.floor(c / columns) + 1)
        if q.global then
          f[0] = s / q.global:get(1)
          s = f[0]
        end
        f[0] = value(q, r, c) * s
        out[#out + 1] = f[0]
      end
    end
    return out
  end

  it("CTM-FP8-15, CTM-NVFP4-07: dequantizes code * scale, tensor, channel, group, block and under a global scale", function()
    for _, case in ipairs { { "FP8", 6, 40 }, { "FP8_DYNAMIC", 5, 37 }, { "FP8A16 g16", 3, 64 }, { "FP8_BLOCK", 200, 300 },
        { "FP8A16 block3x5", 7, 13 }, { "NVFP4A16", 4, 96 }, { "MXFP4", 4, 64 }, { "MXFP8", 3, 2112 } } do
      local q = support.quantized(scheme.parse(case[1]), case[2], case[3], "bf16")
      local want = nb.tensor("f32", { q.n, q.k }, reference(q))
      for _, limit in ipairs { 0, C.NB_CPU_AVX2, -1 } do
        C.nb_cpu_limit(limit)
        for _, threads in ipairs { 1, 3 } do
          C.nb_threads_set(threads)
          assert.is_true(q:dequantize("f32"):equal(want), case[1])
          assert.is_true(q:dequantize("bf16"):equal(want:cast "bf16"), case[1])
        end
      end
      local step = q.scheme.block and q.scheme.block[1] or 2
      for a = 1, q.n, step do
        local tile = q:rows(a, math.min(q.n, a + step - 1))
        assert.is_true(tile:dequantize("f32"):equal(want:rows(a, math.min(q.n, a + step - 1))))
      end
    end
  end)

  it("CTM-NVFP4-07: a global scale of zero, NaN or infinity is an error", function()
    local q = support.quantized(scheme.parse "NVFP4A16", 2, 32, "bf16")
    for _, bad in ipairs { 0, -1, 1 / 0, 0 / 0 } do
      q.global:set(1, bad)
      assert.error_matches(function() q:dequantize "f32" end, "the global scale is .*, expected a finite number above 0")
    end
  end)

  it("hashes the same whatever the tiles' size, and everything counts", function()
    local hex = ffi.new "char[33]"
    for _, name in ipairs { "FP8_DYNAMIC", "FP8A16 block4x16", "NVFP4", "MXFP4" } do
      local q = support.quantized(scheme.parse(name), 16, 64, "bf16")
      q.input_global = nb.tensor("f32", { 1 }, { 3 })
      local whole = q:hash()
      for _, step in ipairs { 4, 8, 12 } do
        local h = ffi.gc(C.nb_hash_new(), C.nb_hash_free)
        for a = 1, 16, step do q:rows(a, math.min(16, a + step - 1)):hash_into(h) end
        C.nb_hash_hex(h, hex)
        assert.equal(whole, ffi.string(hex), name)
      end
      local o = support.quantized(scheme.parse(name), 16, 64, "bf16")
      assert.same({ false, "input_global" }, { q:equal(o) })
      assert.not_equal(whole, o:hash())
      o.input_global = nb.tensor("f32", { 1 }, { 3 })
      assert.is_true(q:equal(o))
      assert.equal(whole, o:hash())
      if o.global then
        o.global:set(1, 5)
        assert.same({ false, "global" }, { q:equal(o) })
        assert.not_equal(whole, o:hash())
      end
      local bytes = o.codes:as("u8", { 16 * 64 })
      bytes:set(1024, bytes:get(1024) == 1 and 2 or 1)
      assert.same({ false, "codes" }, { q:equal(o) })
      assert.not_equal(whole, o:hash())
    end
  end)

  it("counts its bytes, shows itself, and takes rows on block borders only", function()
    local q = scheme.quantized(scheme.parse "FP8_BLOCK", 256, 384, "f32")
    assert.same({ 2, 3 }, q.scales:size())
    assert.equal("f8_e4m3", q.codes:type())
    assert.equal(256 * 384 + 24, q:bytes())
    assert.equal("quantized [256×384]  FP8_BLOCK  scales f32", tostring(q))
    assert.same({ 1, 3 }, q:rows(129, 256).scales:size())
    assert.error_matches(function() q:rows(64, 128) end, "rows 64..128: blocks are 128 rows high")
    assert.error_matches(function() q:rows(1, 64) end, "rows 1..64: blocks are 128 rows high")
    local nv = scheme.quantized(scheme.parse "NVFP4", 2, 32, "bf16")
    assert.same({ "u8", "f8_e4m3", "f32" }, { nv.codes:type(), nv.scales:type(), nv.global:type() })
    assert.equal("f8_e8m0", scheme.quantized(scheme.parse "MXFP4", 2, 32, "bf16").scales:type())
    assert.equal("bf16", nv:dequantize():type())
  end)

  it("refuses codes and scales that are no numbers, with their place", function()
    local nffi = require "nibble.ffi"
    local function check(q)
      local rows, columns = scheme.block(q.scheme, q.n, q.k)
      local ok, msg, code = nffi.check(C.nb_float_check(q.scales, q.codes, rows, columns, 8, "m"))
      return ok and "ok" or code == "eformat" and msg or code
    end
    local q = support.quantized(scheme.parse "FP8_DYNAMIC", 4, 8, "bf16")
    assert.equal("ok", check(q))
    q.codes:as("u8", { 32 }):set(10, 0xff)
    assert.matches("m: the code of row 9, column 1 is 0xff, which is NaN in f8_e4m3", check(q))
    q = support.quantized(scheme.parse "FP8A16 block2x4", 4, 8, "bf16")
    q.scales:set(4, 1 / 0)
    assert.matches("m: the scale of row 10, group 1 is infinite", check(q))
    q.scales:set(4, 0)
    assert.matches("m: the scale of row 10, group 1 is zero, but row 10, column 4 holds code 0x", check(q))
    for _, i in ipairs { 21, 22, 23, 24, 29, 30, 31, 32 } do q.codes:as("u8", { 32 }):set(i, i % 2 * 0x80) end
    assert.equal("ok", check(q), "zeros under a zero scale")
    q = support.quantized(scheme.parse "MXFP4", 2, 32, "bf16")
    q.scales:as("u8", { 2 }):set(2, 255)
    assert.matches("m: the scale of row 9, group 0 is NaN", check(q))
    q = support.quantized(scheme.parse "NVFP4A16", 2, 16, "bf16")
    q.scales:as("u8", { 2 }):set(1, 0)
    assert.equal("ok", check(q), "an e4m3 scale may have underflowed")
    q.scales:as("u8", { 2 }):set(2, 0x7f)
    assert.matches("m: the scale of row 9, group 0 is NaN", check(q))
  end)
end)

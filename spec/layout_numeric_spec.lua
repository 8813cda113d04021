-- Numbers for 8-bit activations, activation quantization, scale folding (MRL-40 to MRL-48), AWQ to GPTQ (INC-11).
local nb = require "nibble"
local nffi = require "nibble.ffi"
local bit = require "bit"
local layout = nb.layout
local marlin = layout.marlin

-- A float tensor from exact bit patterns.
local function bits16(dtype, shape, patterns)
  local t = nb.tensor(dtype, shape)
  local u = t:as "u16"
  for i, v in ipairs(patterns) do u:set(i, v) end
  return t
end

local function words16(t) return t:as("u16"):totable() end

describe("int8 scales", function()
  it("MRL-40: the largest becomes 4096; global is max/4096; shape and dtype stay", function()
    -- f16: 1.0, 0.5, 0.25, 2.0
    local s = bits16("f16", { 2, 2 }, { 0x3c00, 0x3800, 0x3400, 0x4000 })
    local out, global = marlin.int8_scales(s)
    assert.same({ "f16", 2, 2 }, { out:type(), out:size(1), out:size(2) })
    assert.same({ 2048, 1024, 512, 4096 }, words16(out))
    assert.equal(2 / 4096, global)
  end)

  it("MRL-40: the largest is of all experts together", function()
    local s = bits16("f16", { 2, 1, 2 }, { 0x3c00, 0x3800, 0x3400, 0x4000 })
    local out, global = marlin.int8_scales(s)
    assert.same({ 2, 1, 2 }, out:size())
    assert.same({ 2048, 1024, 512, 4096 }, words16(out))
    assert.equal(2 / 4096, global)
  end)

  it("MRL-41: rounds in the scales' dtype", function()
    -- bf16 1.0078125 / 2 * 4096 = 2064; bf16 has steps of 16 there
    local out = marlin.int8_scales(bits16("bf16", { 2 }, { 0x3f81, 0x4000 }))
    assert.same({ 2064, 4096 }, words16(out))
    -- 1.0078125 / 1.9921875 = 0.50588, in bf16 0.5078125: 2080, where float32 has 2072
    assert.same({ 2080, 4096 }, words16(marlin.int8_scales(bits16("bf16", { 2 }, { 0x3f81, 0x3fff }))))
    -- f16 too, and never above half a step of float32's
    for _, dtype in ipairs { "f16", "bf16" } do
      local s = nb.tensor("f32", { 64 })
      for i = 1, 64 do s:set(i, 0.37 + i * 0.0131) end
      s = s:cast(dtype)
      local got, max = marlin.int8_scales(s):as "u16", s:stats().max
      for i = 1, 64 do
        assert.is_true(math.abs(got:get(i) - s:get(i) / max * 4096) <= (dtype == "f16" and 2.5 or 16.5))
      end
      assert.equal(4096, got:stats().max)
    end
  end)

  it("refuses what has no largest positive scale", function()
    assert.error_matches(function() marlin.int8_scales(nb.tensor("f16", { 4 })) end,
      "must be positive and finite, found 0")
    assert.error_matches(function() marlin.int8_scales(bits16("f16", { 2 }, { 0x7e00, 0x3c00 })) end, "found %-?nan")
    assert.error_matches(function() marlin.int8_scales(nb.tensor("f32", { 4 })) end,
      "expected f16 or bf16, found f32")
  end)
end)

describe("fp8 preprocess", function()
  it("MRL-42: all 256 (q,z) become q-z or 15-q, decode to q-z, and come back", function()
    -- 32 rows of K, one group; column pairs cover every q against every z
    local words, zeros = nb.tensor("i32", { 32, 16 }), nb.tensor("i32", { 1, 16 })
    local function repeated(v)
      local w = 0
      for u = 0, 28, 4 do w = bit.bor(w, bit.lshift(v, u)) end
      return w
    end
    for z = 0, 15 do
      zeros:set(z + 1, repeated(z))
      for k = 0, 31 do words:set(k * 16 + z + 1, repeated(k % 16)) end
    end
    local out = marlin.fp8_preprocess(words, zeros)
    for z = 0, 15 do
      for q = 0, 15 do
        local c = bit.band(bit.rshift(out:get(q * 16 + z + 1), 28), 15)
        assert.equal(q >= z and q - z or 15 - q, c)
        assert.equal(q - z, c + z <= 15 and c or 15 - c - z)
      end
    end
    assert.is_true(marlin.fp8_preprocess(out, zeros, { inverse = true }):equal(words))
  end)

  it("MRL-42: without zero-points z is 8; MRL-43: it commutes with repacking", function()
    local words = nb.tensor("i32", { 4, 64 })
    for i = 1, 256 do words:set(i, bit.tobit(i * 2654435761)) end
    local out = marlin.fp8_preprocess(words)
    local want = 0
    for u = 0, 28, 4 do
      local q = bit.band(bit.rshift(words:get(7), u), 15)
      want = bit.bor(want, bit.lshift(q >= 8 and q - 8 or 15 - q, u))
    end
    assert.equal(want, out:get(7))
    assert.is_true(marlin.repack(out, 4, true):equal(marlin.fp8_preprocess(marlin.repack(words, 4, true))))
    nffi.C.nb_cpu_limit(0)
    assert.is_true(marlin.fp8_preprocess(words):equal(out))
    nffi.C.nb_cpu_limit(-1)
    local copy = words:clone()
    assert.is_true(marlin.fp8_preprocess(copy, nil, { in_place = true }):equal(out))
    assert.is_true(copy:equal(out))
  end)

  it("MRL-43: the byte n, 0 to 16, read as e4m3 is n * 2^-9, which 512 times the scale makes n", function()
    local bytes = nb.tensor("u8", { 17 })
    for n = 0, 16 do bytes:set(n + 1, n) end
    local read = bytes:as("f8_e4m3"):cast "f32"
    for n = 0, 16 do assert.equal(n, read:get(n + 1) * 512) end
  end)

  it("MRL-44: each failed precondition names its quantity", function()
    local function words(...) return nb.tensor("i32", { ... }) end
    local pre = marlin.fp8_preprocess
    assert.error_matches(function() pre(words(3, 5)) end, "multiple of 32, found 15")
    assert.error_matches(function() pre(words(40, 2), words(1, 2)) end, "K must be a multiple of 32, found 40")
    assert.error_matches(function() pre(words(64, 2), words(3, 2)) end, "K = 64 is not a multiple of the 3 groups")
    assert.error_matches(function() pre(words(64, 2), words(16, 2)) end, "group of 4 rows %(K = 64, 16 groups%)")
    assert.error_matches(function() pre(words(64, 2), words(1, 3)) end, "expected i32 %[%*x2%], found i32 %[1x3%]")
    assert.error_matches(function() pre(words(64, 2), nil, { bits = 8 }) end, "weights must be of 4 bits, found 8")
    assert.error_matches(function() pre(nb.tensor("f32", { 32 })) end, "expected i32 %[32%], found f32")
  end)
end)

describe("activations", function()
  it("MRL-45: int8 by token, half away from zero, with the global factor", function()
    local x = nb.tensor("f32", { 3, 4 }, { 127, -63.5, 0.5, -0.4, 0, 0, 0, 0, 1, -1, 0.25, 0.75 })
    local q, s = marlin.quantize_activations(x, "int8")
    assert.same({ 127, -64, 1, 0, 0, 0, 0, 0, 127, -127, 32, 95 }, q:totable())
    assert.equal(1, s:get(1))
    assert.is_true(s:get(2) > 0)
    local _, scaled = marlin.quantize_activations(x, "int8", { global = 0.5 })
    assert.equal(0.5, scaled:get(1))
  end)

  it("MRL-45: fp8 by token, by tensor and static; anything else is an error", function()
    local x = nb.tensor("f32", { 2, 2 }, { 448, -224, 1, 0.5 })
    local q, s = marlin.quantize_activations(x, "fp8")
    assert.same({ 0x7e, 0xf6, 0x7e, 0x76 }, q:as("u8"):totable())
    assert.equal(1, s:get(1))
    q, s = marlin.quantize_activations(x, "fp8", { per_tensor = true })
    assert.same({ 0x7e, 0xf6, 0x38, 0x30 }, q:as("u8"):totable())
    assert.equal(1, s:get(1))
    q = marlin.quantize_activations(x, "fp8", { scale = nb.tensor("f32", { 1 }, { 0.5 }) })
    assert.same({ 0x7e, 0xfe, 0x40, 0x38 }, q:as("u8"):totable())
    assert.error_matches(function() marlin.quantize_activations(x, "int4") end, 'become int8 or fp8, found "int4"')
    assert.error_matches(function() marlin.quantize_activations(nb.tensor("i32", { 1, 1 }), "int8") end, "found i32")
  end)

  it("MRL-45: NaN and infinity make a scale NaN that they share, and NaN its own code under a given one", function()
    for _, odd in ipairs { 0 / 0, 1 / 0, -1 / 0 } do
      for _, dtype in ipairs { "f32", "f16", "bf16" } do
        local x = nb.tensor("f32", { 2, 3 }, { 1, odd, 2, 3, 4, 5 }):cast(dtype)
        for _, how in ipairs { { "int8" }, { "fp8" }, { "fp8", { group = 128 } }, { "fp8", { per_tensor = true } } } do
          local _, s = marlin.quantize_activations(x, how[1], how[2])
          assert.is_true(s:get(1) ~= s:get(1))
          assert.is_true(s:numel() == 1 or s:get(2) == s:get(2))
        end
        local q = marlin.quantize_activations(x, "fp8", { scale = nb.tensor("f32", { 1 }, { 1 }) }):as "u8"
        assert.equal(odd ~= odd and 0x7f or odd > 0 and 0x7e or 0xfe, q:get(2))
        assert.equal(0x38, q:get(1))
      end
    end
    -- a scale of 0, which a tensor of zeros has, hides no zeros
    local zeros = marlin.quantize_activations(nb.tensor("f32", { 1, 2 }), "fp8", { per_tensor = true })
    assert.same({ 0x7e, 0x7e }, zeros:as("u8"):totable())
  end)
end)

describe("scale folding", function()
  it("MRL-48: fp8 scales times 2^8 (f16) or 2^120 (bf16), x512 for fp8 activations", function()
    assert.same({ 0x5c00 }, words16(marlin.fold_fp8_exponent(bits16("f16", { 1 }, { 0x3c00 }))))
    assert.same({ 0x7b80 }, words16(marlin.fold_fp8_exponent(bits16("bf16", { 1 }, { 0x3f80 }))))
    assert.same({ 0x6000 }, words16(marlin.multiply_scales(bits16("f16", { 1 }, { 0x3c00 }), 512)))
    assert.error_matches(function() marlin.fold_fp8_exponent(nb.tensor("f32", { 1 })) end,
      "expected f16 or bf16, found f32")
  end)

  it("MRL-48: NVFP4 global scales times 2^(e-7), block scales as S0E5M3 bytes", function()
    assert.equal(128, marlin.nvfp4_global(nb.tensor("f32", { 1 }, { 1 }), "f16"):get(1))
    assert.equal(2 ^ 119 / 64, marlin.nvfp4_global(nb.tensor("f32", { 1 }, { 1 }), "bf16", 64):get(1))
    -- f16 1, 2, 4, 8 -> columns 0 2 1 3, times 128: exponents 22, 24, 23, 25 -> bits 14..7
    local out, factor = marlin.nvfp4_scales(bits16("f16", { 1, 4 }, { 0x3c00, 0x4000, 0x4400, 0x4800 }))
    assert.equal(1, factor)
    assert.same({ 22 * 8, 24 * 8, 23 * 8, 25 * 8 }, out:as("u8"):totable())
    -- bf16 scales below 448 are raised by a power of two
    local _, raised = marlin.nvfp4_scales(bits16("bf16", { 1, 4 }, { 0x3f80, 0x4000, 0x4080, 0x4100 }))
    assert.equal(32, raised)
    -- 2^-7 times 128 is 1, below 2: 0; 2^-6 is the smallest that stays
    out = marlin.nvfp4_scales(bits16("f16", { 1, 4 }, { 0x2000, 0x2400, 0x0001, 0 }))
    assert.same({ 0, 0, 16 * 8, 0 }, out:as("u8"):totable())
    assert.error_matches(function() marlin.nvfp4_scales(nb.tensor("f16", { 1, 6 })) end,
      "N = 6 is not a multiple of 4")
  end)

  it("CTM-NVFP4-14: block scales are padded to 128 x 4 and swizzled", function()
    local s = nb.tensor("u8", { 130, 6 })
    for i = 1, s:numel() do s:set(i, i % 255 + 1) end
    local out = marlin.swizzle_blockscale(s)
    assert.same({ 256, 8 }, out:size())
    local left = out:numel()
    for m = 0, 129 do
      for k = 0, 5 do
        local f = math.floor
        local at = (((f(m / 128) * 2 + f(k / 4)) * 32 + m % 32) * 4 + f(m % 128 / 32)) * 4 + k % 4
        assert.equal(s:get(m * 6 + k + 1), out:get(at + 1))
        left = left - 1
      end
    end
    for i = 1, out:numel() do if out:get(i) == 0 then left = left - 1 end end
    assert.equal(0, left) -- all the others are 0
  end)
end)

describe("awq and gptq words", function()
  it("INC-11: convert into one another without loss", function()
    for _, bits in ipairs { 4, 8 } do
      local words = nb.tensor("i32", { 64, 64 * bits / 32 })
      for i = 1, words:numel() do words:set(i, bit.tobit(i * 2654435761)) end
      local gptq = layout.awq_to_gptq(words, bits)
      assert.same({ 64 * bits / 32, 64 }, gptq:size())
      assert.is_true(layout.gptq_to_awq(gptq, bits, 64):equal(words))
    end
    assert.error_matches(function() layout.awq_to_gptq(nb.tensor("i32", { 8, 8 }), 3) end, "4 or 8 bits, found 3")
  end)

  it("MRL-32: the stable order that sorts the groups", function()
    local sorted, perm = marlin.sort_g_idx(nb.tensor("i32", { 6 }, { 1, 0, 2, 0, 1, 0 }))
    assert.same({ 0, 0, 0, 1, 1, 2 }, sorted:totable())
    assert.same({ 1, 3, 5, 0, 4, 2 }, perm:totable())
    local _, moe = marlin.sort_g_idx(nb.tensor("i32", { 2, 3 }, { 1, 0, 0, 0, 1, 0 }))
    assert.same({ 1, 2, 0, 0, 2, 1 }, moe:totable())
  end)
end)

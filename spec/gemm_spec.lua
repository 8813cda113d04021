-- Products with weights in Marlin's own form against the dequantized float reference
-- (MRL-22, MRL-45, MRL-48, MRL-51, MRL-52).
local nb = require "nibble"
local gemm = require "nibble.gemm"
local quantized = require "nibble.quantized"
local method = require "nibble.methods.marlin"
local method_float = require "nibble.methods.marlin_float"
local C = require("nibble.ffi").C
local awq = require "spec.support.awq"
local layout = nb.layout

local each, codes, floats, powers, whole = awq.each, awq.codes, awq.floats, awq.powers, awq.whole

-- A quantized weight [n,k], its words in GPTQ order, and scales [G,n], zeros as Marlin's preparation takes them.
local function weight(o)
  local n, k, g = o.n, o.k, o.group == -1 and o.k or o.group
  local q = quantized.wrap {
    scheme = { type = "int", bits = o.bits, symmetric = not o.zeros, strategy = "group", group = o.group },
    codes = codes(n, k, o.bits), scales = (o.scales or powers)(o.dtype or "bf16", { n, k / g }, 0.01, 0.1),
    zeros = o.zeros and codes(n, k / g, o.bits) or nil, g_idx = o.g_idx,
  }
  local m = { bits = o.bits, group = o.group, order = "gptq", words = layout.gptq.pack(q.codes, o.bits),
              scales = layout.transpose(q.scales), zeros = o.zeros and layout.awq.pack_zeros(q.zeros, o.bits) or nil,
              g_idx = o.g_idx, bias = o.bias, activations = o.activations }
  return q, m
end

local function described(p, q, o)
  p.type = o.zeros and "uint" .. o.bits or o.bits == 4 and "uint4b8" or "uint8b128"
  p.k, p.n = layout.marlin.weight_size(p.words, o.bits)
  p.outputs, p.group, p.activations, p.dtype = q.n, o.group, o.activations, o.dtype or "bf16"
  return p
end

local function reference(x, w, bias)
  return nb.compute.gemm(nb.tensor("f32", { x:size(1), w:size(1) }), x, w, bias)
end

local function assert_close(want, found, bound)
  assert.same(want:size(), found:size())
  local r = nb.compare(want, found)
  assert.equal(0, r.odd)
  if r.max_abs > bound then error(("differs by %g, at most %g is allowed"):format(r.max_abs, bound), 2) end
end

describe("gemm.marlin", function()
  before_each(function() math.randomseed(7) end)
  after_each(function()
    C.nb_cpu_limit(-1)
    C.nb_threads_set(0)
  end)

  -- Whole activations and powers of two: every sum is exact, so equal means equal.
  local function exact(o)
    o.m, o.k, o.n = o.m or 3, o.k or 128, o.n or 64
    local q, m = weight(o)
    local x = whole { o.m, o.k }
    local p = described(assert(method.prepare(m)), q, o)
    local want = reference(x, q:dequantize "f32", o.bias)
    assert.is_true(want:equal(gemm.marlin(x, p)))
    return x, p, want
  end

  for path, features in pairs { portable = 0, all = -1 } do
    for _, bits in ipairs { 4, 8 } do
      it(("MRL-51, MRL-22: %d bits, zero-points or not, grouped and single scales (%s)"):format(bits, path), function()
        C.nb_cpu_limit(features)
        for _, zeros in ipairs { true, false } do
          exact { bits = bits, zeros = zeros, group = 32 }
          exact { bits = bits, zeros = zeros, group = 128 }  -- one row of scales: the single permutation
          exact { bits = bits, zeros = zeros, group = -1, k = 192, n = 320, m = 1 }
        end
      end)
    end

    it(("MRL-51: past one strip of columns and one block of rows, any number of threads (%s)"):format(path), function()
      C.nb_cpu_limit(features)
      local x, p, want = exact { bits = 4, zeros = true, group = 64, k = 1152, n = 576, m = 5 }
      C.nb_threads_set(1)
      assert.is_true(want:equal(gemm.marlin(x, p)))
    end)

    it(("MRL-51: activation order: inputs gathered by perm, groups by the sorted g_idx (%s)"):format(path), function()
      C.nb_cpu_limit(features)
      local order = {}
      for i = 1, 128 do order[i] = (i - 1) % 4 end
      for i = 128, 2, -1 do
        local at = math.random(i)
        order[i], order[at] = order[at], order[i]
      end
      local g_idx = nb.tensor("i32", { 128 }, order)
      exact { bits = 4, group = 32, g_idx = g_idx }
      exact { bits = 8, group = 32, g_idx = g_idx }
    end)
  end

  it("MRL-51: a whole K is not needed for activation order: k_full = false takes any groups", function()
    -- this rank has 128 of 256 rows, of groups 1 and 3 of 4, and all scales
    local g_idx = each(nb.tensor("i32", { 128 }), function(i) return i % 2 == 0 and 1 or 3 end)
    local q = quantized.wrap { scheme = { type = "int", bits = 4, symmetric = true, strategy = "group", group = 64 },
                               codes = codes(64, 128, 4), scales = powers("bf16", { 64, 4 }), g_idx = g_idx }
    local p = assert(method.prepare { bits = 4, group = 64, order = "gptq", words = layout.gptq.pack(q.codes, 4),
                                      scales = layout.transpose(q.scales), g_idx = g_idx, scale_k = 256 })
    p.type, p.k, p.n, p.k_full = "uint4b8", 128, 64, false
    local x = whole { 3, 128 }
    assert.is_true(reference(x, q:dequantize "f32"):equal(gemm.marlin(x, p)))
  end)

  it("MRL-51, MRL-23: bias is read in Marlin's order; f16 activations are exact too", function()
    local bias = each(nb.tensor("f32", { 128 }), function(i) return i end)
    local x, p, want = exact { bits = 4, zeros = true, group = 32, n = 128, bias = bias }
    assert.is_true(want:equal(gemm.marlin(x:cast "f16", p)))
    assert.is_true(want:equal(gemm.marlin(x:cast "bf16", p)))
  end)

  it("MRL-51: ordinary numbers agree with the reference to float rounding", function()
    local o = { bits = 4, zeros = true, group = 64, k = 256, n = 128, scales = floats, dtype = "f16" }
    local q, m = weight(o)
    local x = floats("f32", { 9, 256 }, -1, 1)
    assert_close(reference(x, q:dequantize "f32"), gemm.marlin(x, described(assert(method.prepare(m)), q, o)), 2e-4)
  end)

  it("MRL-08: padded words: missing inputs count as 0, padded outputs are left out", function()
    local q, m = weight { bits = 4, zeros = true, group = 32, k = 96, n = 40 }
    local p = described(assert(method.prepare(m)), q, { bits = 4, zeros = true, group = 32 })
    assert.is_true(p.k > 96 and p.n > 40)
    local x = whole { 3, 96 }
    assert.is_true(reference(x, q:dequantize "f32"):equal(gemm.marlin(x, p)))
  end)

  it("MRL-45, MRL-40: int8 activations: a scale a token, int16 scales, their global", function()
    for _, o in ipairs { { group = 32 }, { group = -1 }, { group = 128, zeros = true, moe = true } } do
      o.bits, o.k, o.n, o.activations, o.scales, o.dtype = 4, 256, 64, "int8", floats, "bf16"
      local q, m = weight(o)
      if o.zeros then -- experts only (MRL-47)
        for _, name in ipairs { "words", "scales", "zeros" } do
          local shape = m[name]:size()
          table.insert(shape, 1, 1)
          m[name] = m[name]:reshape(shape)
        end
      end
      local p = described(assert(method.prepare(m)), q, o)
      if o.zeros then p = gemm.marlin_expert(p, 0) end
      assert.equal(o.group ~= -1, p.global ~= nil)
      local x = floats("f32", { 3, 256 }, -2, 2)
      local xq, xs = layout.marlin.quantize_activations(x, "int8")
      local seen = nb.tensor("f32", x:size())
      for i = 1, 3 do
        for j = 1, 256 do seen:set({ i, j }, xq:get { i, j } * xs:get(i)) end
      end
      -- half a step of the int16 scales, of 4096 at the largest
      assert_close(reference(seen, q:dequantize "f32"), gemm.marlin(x, p), 0.1 / 4096 * 256 * 15)
    end
  end)

  it("MRL-45, MRL-42: fp8 activations: folded codes and scales times 512 give the same weights exactly", function()
    for _, zeros in ipairs { false, true } do
      local o = { bits = 4, group = 64, k = 128, n = 64, zeros = zeros, activations = "fp8" }
      local q, m = weight(o)
      m.order, m.words = "awq", layout.awq.pack(q.codes, 4)
      if zeros then
        for _, name in ipairs { "words", "scales", "zeros" } do
          local shape = m[name]:size()
          table.insert(shape, 1, 1)
          m[name] = m[name]:reshape(shape)
        end
      end
      local p = described(assert(method.prepare(m)), q, o)
      if zeros then p = gemm.marlin_expert(p, 0) end
      -- powers of two, the greatest 448: their token scale is 1 and e4m3 holds them
      local x = each(nb.tensor("f32", { 2, 128 }), function(i) return i % 128 == 1 and 448 or 2 ^ math.random(0, 3) end)
      assert.is_true(reference(x, q:dequantize "f32"):equal(gemm.marlin(x, p)))
    end
  end)

  it("MRL-45: takes codes that are made already, with their rows' scales, also of weights that no peer's kernel takes with them", function()
    local o = { bits = 4, group = -1, k = 128, n = 64, activations = "int8" }
    local q, m = weight(o)
    local p, x = described(assert(method.prepare(m)), q, o), floats("f32", { 3, 128 }, -2, 2)
    local made, scales = gemm.codes(x, p)
    local y = gemm.marlin(x, p)
    assert.is_true(y:equal(gemm.marlin(made, p, scales)))
    p.scale_factor = 4
    assert.is_true(nb.compute.scale_rows(y, nb.tensor("f32", { 3 }):fill(4)):equal(gemm.marlin(made, p, scales)))
    assert.error_matches(function() gemm.marlin(made, p) end, "codes of int8 activations need their row scales")
    assert.error_matches(function() gemm.marlin(x, p, scales) end, "int8 activations make their own row scales")
    o = { bits = 8, group = -1, k = 128, n = 64 }
    q, m = weight(o)
    m.any_width, m.activations = true, "int8"
    p = described(assert(method.prepare(m)), q, o)
    p.activations = "int8"
    made, scales = gemm.codes(x, p)
    local seen = nb.compute.scale_rows(made:cast "f32", scales:reshape { 3 })
    assert_close(reference(seen, q:dequantize "f32"), gemm.marlin(made, p, scales), 2e-3)
  end)

  it("MRL-47: dense uint4 takes no 8-bit activations, 8-bit weights none at all", function()
    local _, m = weight { bits = 4, zeros = true, group = 32, k = 128, n = 64 }
    local p = described(assert(method.prepare(m)), { n = 64 }, { bits = 4, zeros = true, activations = "int8" })
    assert.error_matches(function() gemm.marlin(whole { 1, 128 }, p) end, "int8 activations need uint4b8 weights, found uint4")
    p.type, p.zeros = "uint8b128", nil
    assert.error_matches(function() gemm.marlin(whole { 1, 128 }, p) end, "W8A8 is unsupported")
  end)

  for _, dtype in ipairs { "f16", "bf16" } do
    it(("MRL-48: FP8 weights, by channel and by block, exponents folded into %s scales"):format(dtype), function()
      local w = floats("f32", { 128, 256 }, -4, 4):cast "f8_e4m3"
      for _, block in ipairs { false, { 64, 128 } } do
        local scale = block and powers("f32", { 2, 2 }) or powers("f32", { 128, 1 })
        local bias = each(nb.tensor(dtype, { 128 }), function(i) return i end)
        local p = assert(method_float.prepare { kind = "fp8", weight = w, scale = scale, block = block or nil,
                                                dtype = dtype, bias = bias })
        p.type, p.k, p.n, p.dtype = "float8_e4m3fn", 256, 128, dtype
        local real = w:cast "f32"
        for i = 1, 128 do
          for j = 1, 256 do
            local s = block and scale:get { math.ceil(i / 64), math.ceil(j / 128) } or scale:get(i)
            real:set({ i, j }, real:get { i, j } * s)
          end
        end
        local x = whole { 3, 256 }
        assert.is_true(reference(x, real, bias:cast "f32"):equal(gemm.marlin(x, p)))
      end
    end)

    it(("MRL-48: NVFP4 weights: scale bytes and the global factor for %s; bias is not scaled"):format(dtype), function()
      local n, k = 64, 128
      local nibbles = codes(n, k, 4)
      local bytes = each(nb.tensor("u8", { n, k / 2 }), function(i)
        return nibbles:get(2 * i - 1) + 16 * nibbles:get(2 * i)
      end)
      local values = { [0] = 0, 0.5, 1, 1.5, 2, 3, 4, 6 }
      local scale = each(nb.tensor("f8_e4m3", { n, k / 16 }), function() return 2 ^ math.random(-2, 3) end)
      local global = nb.tensor("f32", { 1 }, { 0.125 })
      local bias = each(nb.tensor(dtype, { n }), function(i) return i end)
      local p = assert(method_float.prepare { kind = "nvfp4", weight = bytes, scale = scale, global = global,
                                              dtype = dtype, bias = bias })
      p.type, p.k, p.n, p.dtype = "float4_e2m1f", k, n, dtype
      local real = nb.tensor("f32", { n, k })
      for i = 1, n do
        for j = 1, k do
          local c = nibbles:get { i, j }
          real:set({ i, j }, (c < 8 and 1 or -1) * values[c % 8] * scale:get { i, math.ceil(j / 16) } * 0.125)
        end
      end
      local x = whole { 3, k }
      assert.is_true(reference(x, real, bias:cast "f32"):equal(gemm.marlin(x, p)))
    end)
  end

  it("MX weights: E8M0 scales; with fp8 activations raised by 6", function()
    local n, k = 64, 128
    local nibbles = codes(n, k, 4)
    local bytes = each(nb.tensor("u8", { n, k / 2 }), function(i) return nibbles:get(2 * i - 1) + 16 * nibbles:get(2 * i) end)
    local values = { [0] = 0, 0.5, 1, 1.5, 2, 3, 4, 6 }
    local scale = each(nb.tensor("u8", { n, k / 32 }), function() return 127 + math.random(-3, 3) end)
    local real = nb.tensor("f32", { n, k })
    for i = 1, n do
      for j = 1, k do
        local c = nibbles:get { i, j }
        real:set({ i, j }, (c < 8 and 1 or -1) * values[c % 8] * 2 ^ (scale:get { i, math.ceil(j / 32) } - 127))
      end
    end
    for _, activations in ipairs { false, "fp8" } do
      local p = assert(method_float.prepare { kind = "mxfp4", weight = bytes, scale = scale, dtype = "bf16",
                                              activations = activations or nil })
      p.type, p.k, p.n, p.dtype, p.activations = "float4_e2m1f", k, n, "bf16", activations or nil
      local x = each(nb.tensor("f32", { 2, k }), function(i) return i % 128 == 1 and 448 or 2 ^ math.random(0, 3) end)
      assert.is_true(reference(x, real):equal(gemm.marlin(x, p)))
    end
  end)

  it("MRL-51: FP8 codes all decode as e4m3 does", function()
    local all = nb.tensor("u8", { 64, 256 })
    for i = 1, 64 do
      for j = 1, 256 do all:set({ i, j }, j % 128 == 0 and 1 or j == 129 and 0 or j - 1) end -- no NaN, no -0
    end
    local w = all:as("f8_e4m3", { 64, 256 })
    local p = assert(method_float.prepare { kind = "fp8", weight = w, scale = nb.tensor("f32", { 1 }, { 1 }), dtype = "f16" })
    p.type, p.k, p.n, p.dtype = "float8_e4m3fn", 256, 64, "f16"
    local unit = nb.tensor("f32", { 256, 256 })
    for i = 1, 256 do unit:set({ i, i }, 1) end
    for _, features in ipairs { 0, -1 } do
      C.nb_cpu_limit(features)
      assert.is_true(w:cast("f32"):transpose():equal(gemm.marlin(unit, p)))
    end
  end)

  it("MRL-51: experts are views into a stack", function()
    local q, words, scales, zeros = {}, nb.tensor("i32", { 3, 8, 128 }), nb.tensor("bf16", { 3, 4, 64 }), nb.tensor("i32", { 3, 4, 8 })
    for e = 1, 3 do
      local m
      q[e], m = weight { bits = 4, zeros = true, group = 32, k = 128, n = 64 }
      local p = assert(method.prepare(m))
      for name, to in pairs { words = words, scales = scales, zeros = zeros } do
        C.nb_tensor_copy(to:rows(e, e):reshape(p[name]:size()), p[name])
      end
    end
    local stack = { type = "uint4", words = words, scales = scales, zeros = zeros, group = 32, k = 128, n = 64 }
    local x = whole { 2, 128 }
    for e = 1, 3 do
      assert.is_true(reference(x, q[e]:dequantize "f32"):equal(gemm.marlin(x, gemm.marlin_expert(stack, e - 1))))
    end
    assert.error_matches(function() gemm.marlin_expert(stack, 3) end, "expert 3 is outside 0..2")
  end)

  it("MRL-51: every refusal names its values", function()
    local _, m = weight { bits = 4, zeros = true, group = 32, k = 128, n = 64 }
    local good = described(assert(method.prepare(m)), { n = 64 }, { bits = 4, zeros = true, group = 32 })
    good.outputs = nil
    local x = whole { 1, 128 }
    local function refused(change, pattern)
      local p = setmetatable(change, { __index = good })
      assert.error_matches(function() gemm.marlin(change.x or x, p) end, pattern)
    end
    local i32 = function(...) return nb.tensor("i32", { ... }) end
    refused({ k = 120 }, "K = 120 is not a multiple of 16")
    refused({ k = 112 }, "the words have 8 rows, K = 112 needs 7")
    refused({ n = 128 }, "the words' 128 columns hold N = 64, expected 128")
    refused({ words = i32(8, 64), n = 32 }, "N = 32 is not a multiple of 64")
    refused({ scales = nb.tensor("bf16", { 4, 32 }) }, "scales must be %[groups, N = 64%], found 2 dimensions and 32 columns")
    refused({ scales = nb.tensor("bf16", { 256 }) }, "found 1 dimensions and 256 columns")
    refused({ scales = nb.tensor("i32", { 4, 64 }) }, "scales of this weight cannot be i32")
    refused({ scales = nb.tensor("bf16", { 3, 64 }), zeros = i32(3, 8) }, "K = 128 is not a multiple of the 3 groups")
    refused({ zeros = i32(2, 8) }, "zero%-points must be %[4 groups, N/8 = 8%], found %[2, 8%]")
    refused({ zeros = i32(4, 7) }, "found %[4, 7%]")
    refused({ type = "uint4b8" }, "zero%-points go with uint4 and uint8 weights, found them with uint4b8")
    refused({ type = "int4" }, "found int4")
    refused({ stride = 132 }, "row stride 132 is not a multiple of 8")
    refused({ x = whole { 1, 136 } }, "x has 136 columns for K = 128")
    refused({ perm = i32(128) }, "perm and g_idx belong together, found only perm")
    refused({ perm = i32(64), sorted_g_idx = i32(128) }, "perm must be i32 of length 0 or K = 128, found i32 of 64")
    refused({ perm = i32(128), sorted_g_idx = i32(12) }, "g_idx must be i32 of length 0 or K = 128, found i32 of 12")
    refused({ perm = i32(128), sorted_g_idx = i32(128):fill(4) }, "g_idx: 4 at position 0 is outside 0..3")
    refused({ perm = i32(128):fill(128), sorted_g_idx = i32(128) }, "perm: 128 at position 0 is outside 0..127")
    refused({ scales = nb.tensor("bf16", { 1, 64 }), zeros = i32(1, 8), perm = i32(128), sorted_g_idx = i32(128) },
      "activation order over the full K needs more than one group, found 1")
    refused({ bias = nb.tensor("bf16", { 32 }) }, "bias")
    refused({ type = "float4_e2m1f", zeros = false, dtype = "f32" }, "NVFP4 weights need dtype f16 or bf16, found f32")
    good.zeros = nil
    refused({}, "uint4 weights need zero%-points, found none")
    assert.is_true(gemm.marlin(x, setmetatable({ type = "uint4b8", perm = i32(0), sorted_g_idx = i32(0) },
      { __index = good })):numel() == 64)
  end)
end)

describe("gemm.reduction", function()
  it("MRL-52: atomic adds only when asked for, on CUDA, small N, long K, no bf16 before SM 90; one hint", function()
    local function how(o)
      return (gemm.reduction(setmetatable(o, { __index = { n = 1024, k = 4096, dtype = "f16", capability = 80 } })))
    end
    assert.equal("atomic", how { atomic = true })
    assert.equal("fp32", how { atomic = true, device = "rocm" })
    assert.equal("fp32", how { atomic = true, n = 2048 })
    assert.equal("atomic", how { atomic = true, n = 2047 })
    assert.equal("fp32", how { atomic = true, k = 2047 })
    assert.equal("atomic", how { atomic = true, k = 2048 })
    assert.equal("fp32", how { atomic = true, dtype = "bf16" })
    assert.equal("atomic", how { atomic = true, dtype = "bf16", capability = 90 })
    local _, none = gemm.reduction { n = 4096, k = 4096, dtype = "f16", capability = 80 }
    assert.is_nil(none)
    local kind, hint = gemm.reduction { n = 1024, k = 4096, dtype = "f16", capability = 80 }
    assert.equal("fp32", kind)
    assert.matches("N = 1024 < 2048 and K = 4096", hint)
    assert.is_nil(select(2, gemm.reduction { n = 1024, k = 4096, dtype = "f16", capability = 80 }))
  end)
end)

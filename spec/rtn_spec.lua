-- Round to nearest: formulas, every path alike, degenerate groups, refusals, and
-- the bytes that llm-compressor wrote for the same model.
local nb = require "nibble"
local ffi = require "ffi"
local nffi = require "nibble.ffi"
local C = nffi.C

-- XXH3 (first 16 digits) of weight_packed and weight_scale, one after the other, in the checkpoint that
-- llm-compressor 0.14.0.1 made of tiny-llama: oneshot, QuantizationModifier, scheme W4A16 (4 bits, group 128,
-- symmetric, bf16 scales).
local llm_compressor = {
  ["0.mlp.down_proj"] = "5e269b0023b09d72",
  ["0.mlp.gate_proj"] = "65538509e5829da6",
  ["0.mlp.up_proj"] = "d3514ed1bbd50302",
  ["0.self_attn.k_proj"] = "f3084819f281e05a",
  ["0.self_attn.o_proj"] = "968a1474196600f9",
  ["0.self_attn.q_proj"] = "9888837c1b0c5a9b",
  ["0.self_attn.v_proj"] = "69267ea85252d4f6",
  ["1.mlp.down_proj"] = "ad4de2da798dc48c",
  ["1.mlp.gate_proj"] = "e6c569a8cfade89e",
  ["1.mlp.up_proj"] = "0250bf9983ef70b2",
  ["1.self_attn.k_proj"] = "1a75dfb8b99e5f36",
  ["1.self_attn.o_proj"] = "be56ab95fa307461",
  ["1.self_attn.q_proj"] = "60b8418450454937",
  ["1.self_attn.v_proj"] = "47c5638c38526046",
  ["2.mlp.down_proj"] = "8740a8df9dbdc23b",
  ["2.mlp.gate_proj"] = "48348857ea965171",
  ["2.mlp.up_proj"] = "a908a9a1855f2ebd",
  ["2.self_attn.k_proj"] = "f79966c4f020ea69",
  ["2.self_attn.o_proj"] = "5855b8c244183047",
  ["2.self_attn.q_proj"] = "7852aba72c5f3dde",
  ["2.self_attn.v_proj"] = "98ace4735b0d9803",
  ["3.mlp.down_proj"] = "79d7c50ead06ae5f",
  ["3.mlp.gate_proj"] = "ad4af68a11069d57",
  ["3.mlp.up_proj"] = "44a3ddb0f41a1bac",
  ["3.self_attn.k_proj"] = "ae73d9aa41f2d030",
  ["3.self_attn.o_proj"] = "cf2db3968e06c439",
  ["3.self_attn.q_proj"] = "82ed2f8e448b956d",
  ["3.self_attn.v_proj"] = "e71e2fd684fab3d3",
}

local function options(t)
  return ffi.new("nb_rtn_options", {
    bits = t.bits or 4, symmetric = t.symmetric == false and 0 or 1, group = t.group or -1,
    range = t.range and C["NB_RANGE_" .. t.range:upper()] or C.NB_RANGE_FULL,
    arithmetic = t.arithmetic == "dtype" and C.NB_ARITHMETIC_DTYPE or C.NB_ARITHMETIC_F32,
  })
end

-- -> {codes, scales, zeros} | nil, msg, code
local function rtn(w, t)
  local n, k = w:size(1), w:size(2)
  local group = (t.group or -1) > 0 and t.group or k
  local groups = math.ceil(k / group)
  local q = { codes = nb.tensor("u8", { n, k }), scales = nb.tensor(t.scales or w:type(), { n, groups }) }
  if t.symmetric == false then q.zeros = nb.tensor("u8", { n, groups }) end
  local rc = C.nb_rtn_quantize(q.codes, q.scales, q.zeros, w, options(t))
  if rc < 0 then return nil, ffi.string(C.nb_error()), ffi.string(C.nb_error_name(rc)) end
  return q
end

local f32 = ffi.typeof "float[1]"
local function fround(x) return f32(x)[0] end
local function rint(x) -- half to even, |x| < 2^51
  return (x + 6755399441055744) - 6755399441055744
end

-- A float of any dtype as its bits, by the library's own rounding (shown by the dtype specs).
local function tensor_of(dtype, shape, values)
  local t = nb.tensor(dtype, shape)
  if dtype == "f32" then
    for i = 1, #values do t:ptr()[i - 1] = values[i] end
    return t
  end
  local p, id = ffi.cast("uint16_t *", t.data), t.dtype
  local bits = ffi.new("union { float f; uint32_t u; }")
  for i = 1, #values do
    bits.f = C.nb_round_scale(values[i], id)
    if dtype == "bf16" then
      p[i - 1] = bit.rshift(bits.u, 16)
    else -- f16: normal numbers, zero and infinity are enough here
      local e = bit.band(bit.rshift(bits.u, 23), 255) - 112
      local m = bit.band(bit.rshift(bits.u, 13), 1023)
      local h = e > 30 and 0x7c00 + (e == 143 and m or 0) or e > 0 and bit.bor(bit.lshift(e, 10), m) or 0
      p[i - 1] = bit.bor(bit.rshift(bit.band(bits.u, 0x80000000), 16), h)
    end
  end
  return t
end

local function random(seed)
  local state = seed
  return function()
    state = (state * 1103515245 + 12345) % 2147483648
    return state / 1073741824 - 1
  end
end

local function weight(dtype, n, k, seed)
  local next, values = random(seed), {}
  for i = 1, n * k do values[i] = next() * next() * 0.3 end
  return tensor_of(dtype, { n, k }, values)
end

-- Any float tensor as a Lua table: 1 * scale is the value.
local function floats(t)
  local ones = nb.tensor("u8", { t:numel(), 1 })
  for i = 0, t:numel() - 1 do ones:ptr()[i] = 129 end
  local wide = nb.tensor("f32", { t:numel(), 1 })
  nffi.must(C.nb_dequantize(wide, ones, t:reshape(t:numel(), 1), nil, nil, 8))
  return wide:totable()
end

-- The definition, in Lua: float32 arithmetic, one group.
local function reference(values, t, round)
  local half, levels = 2 ^ (t.bits - 1), 2 ^ t.bits - 1
  local pos, neg = 0, 0
  for _, v in ipairs(values) do pos, neg = math.max(pos, v), math.max(neg, -v) end
  local raw
  if t.symmetric == false then raw = fround(fround(pos + neg) / levels)
  elseif t.range == "tight" then raw = math.max(fround(pos / (half - 1)), fround(neg / half))
  else raw = fround(math.max(pos, neg) / (t.range == "narrow" and half - 1 or levels / 2)) end
  local s = round(raw)
  local z = t.symmetric == false and math.min(rint(fround(neg / s)), levels) or half
  local codes = {}
  for i, v in ipairs(values) do codes[i] = math.max(0, math.min(levels, rint(fround(v / s)) + z)) end
  return codes, s, z
end

describe("round to nearest", function()
  after_each(function()
    C.nb_cpu_limit(-1)
    C.nb_threads_set(0)
    C.nb_stop_clear()
  end)

  it("writes llm-compressor's bytes in the weight's own arithmetic, all 28 linears of tiny-llama", function()
    local model, count = assert(nb.open "spec/models/tiny-llama"), 0
    for name, expected in pairs(llm_compressor) do
      local q = assert(rtn(model:tensor("model.layers." .. name .. ".weight"), { group = 128, arithmetic = "dtype" }))
      local words, h, hex = nb.layout.ct.pack(q.codes, 4), C.nb_hash_new(), ffi.new "char[33]"
      C.nb_hash_update(h, words.data, words:bytes())
      C.nb_hash_update(h, q.scales.data, q.scales:bytes())
      C.nb_hash_hex(h, hex)
      C.nb_hash_free(h)
      assert.equal(expected, ffi.string(hex, 16), name)
      count = count + 1
    end
    assert.equal(28, count)
  end)

  it("follows its definition: bits, ranges, symmetric or not", function()
    local next = random(7)
    for bits = 2, 8 do
      for _, t in ipairs { { range = "full" }, { range = "narrow" }, { range = "tight" }, { symmetric = false } } do
        for _, scales in ipairs { "f32", "bf16", "f16" } do
          local values, k, group = {}, 48, 24
          for i = 1, 2 * k do values[i] = fround(next()) end
          t.bits, t.group, t.scales = bits, group, scales
          local w = tensor_of("f32", { 2, k }, values)
          local q = assert(rtn(w, t))
          local stored = floats(q.scales)
          for g = 1, 4 do
            local part = { unpack(values, (g - 1) * group + 1, g * group) }
            local codes, s, z = reference(part, t, function(x) return C.nb_round_scale(x, q.scales.dtype) end)
            assert.equal(s, stored[g])
            if q.zeros then assert.equal(z, q.zeros:get(g)) end
            for i = 1, group do
              assert.equal(codes[i], q.codes:get((g - 1) * group + i), ("bits %d group %d value %d"):format(bits, g, i))
            end
          end
        end
      end
    end
  end)

  it("rounds halves to even and clips at both ends", function()
    local w = tensor_of("f32", { 1, 8 }, { 7.5, -7.5, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5 })
    local q = assert(rtn(w, { bits = 4 }))
    assert.equal(1, q.scales:get(1))
    assert.same({ 15, 0, 8, 10, 10, 8, 6, 6 }, q.codes:totable())
  end)

  -- DESIGN 1.5: the same bytes whatever the path and the threads.
  it("gives the same bytes on every path and any number of threads", function()
    local shapes = { { 1, 1, -1 }, { 3, 7, -1 }, { 5, 32, 8 }, { 4, 33, 11 }, { 2, 96, 32 }, { 70, 1040, 65 },
                     { 33, 4096, 128 }, { 9, 257, -1 }, { 6, 130, 0 }, { 40, 2048, 0 } }
    for case, s in ipairs(shapes) do
      for _, dtype in ipairs { "f32", "bf16", "f16" } do
        local w = weight(dtype, s[1], s[2], case * 31)
        for _, t in ipairs {
          { bits = 4 }, { bits = 8, range = "narrow" }, { bits = 3, symmetric = false }, { bits = 2, range = "tight" },
          { bits = 4, arithmetic = "dtype" }, { bits = 4, symmetric = false, arithmetic = "dtype" },
          { bits = 4, symmetric = false, arithmetic = "dtype", range = "tight" },
        } do
          t.group = s[3]
          C.nb_cpu_limit(0)
          C.nb_threads_set(1)
          local portable = assert(rtn(w, t))
          C.nb_cpu_limit(-1)
          C.nb_threads_set(3)
          local fast = assert(rtn(w, t))
          local where = ("%s [%d×%d] group %d, %d bits"):format(dtype, s[1], s[2], s[3], t.bits)
          assert.is_true(portable.codes:equal(fast.codes), where)
          assert.is_true(portable.scales:equal(fast.scales), where)
          assert.is_true(not portable.zeros or portable.zeros:equal(fast.zeros), where)
        end
      end
    end
  end)

  it("repeats one scale in every row when the whole tensor is one group", function()
    local w = tensor_of("f32", { 3, 2 }, { 1, 2, -15, 3, 4, 5 })
    local q = assert(rtn(w, { bits = 4, group = 0 }))
    assert.same({ 2, 2, 2 }, q.scales:totable())
    assert.same({ 8, 9, 0, 10, 10, 10 }, q.codes:totable())
  end)

  -- FORMATS 12: scales above 0; lmdeploy#1786: all-zero groups gave 0/0.
  it("gives a group of zeros the dtype's epsilon, as compressed-tensors does", function()
    for dtype, eps in pairs { f32 = 2 ^ -23, bf16 = 2 ^ -7, f16 = 2 ^ -10 } do
      for _, arithmetic in ipairs { "float32", "dtype" } do
        for _, symmetric in ipairs { true, false } do
          local q = assert(rtn(nb.tensor(dtype, { 2, 16 }), { symmetric = symmetric, arithmetic = arithmetic }))
          assert.same({ eps, eps }, floats(q.scales))
          local zero = q.zeros and q.zeros:get(1) or 8
          for i = 1, 32 do assert.equal(zero, q.codes:get(i)) end
        end
      end
    end
  end)

  it("keeps scales above 0 where the values are subnormal", function()
    local w = nb.tensor("f32", { 1, 8 })
    w:ptr()[3] = 2 ^ -149
    local q = assert(rtn(w, {}))
    assert.equal(2 ^ -149, q.scales:get(1))
    assert.equal(9, q.codes:get(4))
    q = assert(rtn(tensor_of("f32", { 1, 4 }, { 1e-9, 0, -1e-9, 0 }), { scales = "f16" }))
    assert.equal(2 ^ -24, floats(q.scales)[1])
    assert.same({ 8, 8, 8, 8 }, q.codes:totable())
  end)

  it("refuses NaN and infinities with row and column, the first of them", function()
    for _, dtype in ipairs { "f32", "bf16", "f16" } do
      local w = weight(dtype, 300, 512, 3)
      local p = dtype == "f32" and w:as("u32", { 300, 512 }):ptr() or ffi.cast("uint16_t *", w.data)
      local inf = ({ f32 = 0x7f800000, bf16 = 0x7f80, f16 = 0x7c00 })[dtype]
      p[299 * 512 + 5] = inf + 1
      p[17 * 512 + 300] = inf
      for _, cpu in ipairs { 0, -1 } do
        C.nb_cpu_limit(cpu)
        local q, msg, code = rtn(w, { group = 128 })
        assert.is_nil(q)
        assert.equal("eformat", code)
        assert.equal("round to nearest: the weight has Inf in row 17, column 300 (counted from 0); expected "
          .. "finite values", msg)
      end
      p[17 * 512 + 300] = 0
      assert.matches("has NaN in row 299, column 5", select(2, rtn(w, { group = 0 })))
    end
  end)

  it("refuses a scale that its dtype cannot hold", function()
    local w = tensor_of("f32", { 2, 4 }, { 1, 1, 1, 1, 1, 1, 1e6, 1 })
    local q, msg, code = rtn(w, { group = 2, scales = "f16" })
    assert.is_nil(q)
    assert.equal("eunsupported", code)
    assert.equal("round to nearest: the scale of row 1, columns 2 to 3 (counted from 0) is too large for f16; "
      .. "store the scales as bf16 or f32", msg)
    assert.is_table(rtn(w, { group = 2, scales = "bf16" }))
    w = tensor_of("f32", { 1, 2 }, { 3e38, -3e38 })
    assert.matches("too large for f32; the values span more than float32 holds",
      select(2, rtn(w, { symmetric = false })))
  end)

  it("refuses what doesn't fit, with the numbers", function()
    local w = nb.tensor("f32", { 2, 100 })
    local function why(t) return select(2, rtn(w, t)) end
    assert.matches("K = 100 is not a multiple of the group size 32", why { group = 32 })
    assert.matches("1 bits, expected 2 to 8", why { bits = 1 })
    assert.matches("9 bits, expected 2 to 8", why { bits = 9 })
    assert.matches("group size %-5", why { group = -5 })
    assert.matches("expected f32 scales, found bf16", why { arithmetic = "dtype", scales = "bf16" })
    local codes, scales = nb.tensor("u8", { 2, 100 }), nb.tensor("f32", { 2, 1 })
    local function call(c, s, z, t)
      assert.is_true(C.nb_rtn_quantize(c, s, z, w, options(t)) < 0)
      return ffi.string(C.nb_error())
    end
    assert.matches("codes: expected u8 %[2x100%], found f32 %[2x1%]", call(scales, scales, nil, {}))
    assert.matches("scales: expected any dtype %[2x2%]", call(codes, scales, nil, { group = 50 }))
    assert.matches("scales: expected f32, bf16 or f16", call(codes, codes, nil, {}))
    assert.matches("needs a tensor u8 %[2x1%]", call(codes, scales, nil, { symmetric = false }))
    assert.matches("no zero%-points", call(codes, scales, codes, {}))
    local odd = options {}
    odd.range = 9
    assert.is_true(C.nb_rtn_quantize(codes, scales, nil, w, odd) < 0)
    assert.matches("unknown range 9", ffi.string(C.nb_error()))
  end)

  it("takes empty weights and heeds the stop flag", function()
    assert.is_table(rtn(nb.tensor("f32", { 0, 16 }), { group = 8 }))
    local w, codes, scales = weight("f32", 4, 64, 1), nb.tensor("u8", { 4, 64 }), nb.tensor("f32", { 4, 1 })
    C.nb_stop_request()
    local rc = C.nb_rtn_quantize(codes, scales, nil, w, options {})
    assert.equal("eintr", ffi.string(C.nb_error_name(rc)))
    assert.equal("interrupted", ffi.string(C.nb_error()))
  end)

  -- PROTOCOL.md, "RTN baselines": relW of tiny-llama, narrow range, float32 scales.
  it("has the published relative weight errors on tiny-llama", function()
    local model = assert(nb.open "spec/models/tiny-llama")
    for _, row in ipairs {
      { 0.0065, 0.00005, bits = 8, group = 128 }, { 0.11794, 5e-6, bits = 4, group = 128 },
      { 0.08093, 5e-6, bits = 4, group = 32, symmetric = false }, { 0.27528, 5e-6, bits = 3, group = 128 },
      { 0.21665, 5e-6, bits = 3, group = 128, symmetric = false },
      { 0.45773, 5e-6, bits = 2, group = 64, symmetric = false }, { 0.71727, 5e-6, bits = 2, group = 64 },
    } do
      row.range, row.scales = "narrow", "f32"
      local sums = ffi.new "nb_quant_sums"
      for _, info in ipairs(model.tensors) do
        if info.name:match "_proj%.weight$" then
          local w = model:tensor(info.name)
          local q = assert(rtn(w, row))
          nffi.must(C.nb_quant_error(sums, q.codes, q.scales, q.zeros, nil, row.bits, w))
        end
      end
      assert.near(row[1], math.sqrt(sums.error2 / sums.weight2), row[2])
    end
  end)
end)

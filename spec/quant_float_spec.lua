-- Round to nearest onto small floats: scales and codes against plain formulas, every path and tile alike.
local nb = require "nibble"
local ffi = require "ffi"
local C = require("nibble.ffi").C
local floats = require "nibble.quant_float"
local quant, scheme = nb.quant, nb.scheme

local f32 = ffi.new "float[1]"
local function single(x)
  f32[0] = x
  return tonumber(f32[0])
end
local function rounded(x, dtype) return tonumber(C.nb_round_scale(x, dtype == "f32" and C.NB_F32 or dtype == "bf16" and C.NB_BF16 or C.NB_F16)) end

-- Values of many sizes, with zeros of both signs, blocks of zeros, and ties.
local function weight(n, k, dtype)
  local w, state = nb.tensor("f32", { n, k }), 5
  local p = w:ptr()
  for i = 0, n * k - 1 do
    state = (state * 1103515245 + 12345) % 2147483648
    local x = (state / 2147483648 - 0.5) * 2 ^ (state % 7 - 5)
    p[i] = state % 11 == 0 and (state % 2 == 0 and 0 or -1 / (1 / 0)) or i % k < 32 and i < 2 * k and 0 or x
  end
  return dtype == "f32" and w or w:cast(dtype)
end

-- The value of v rounded to a small float's grid, clamped.
local function to_grid(v, dtype, max)
  local t = nb.tensor("f32", { 2 }, { math.max(-max, math.min(max, v)), 0 })
  return t:cast(dtype):cast("f32"):get(1)
end

local names = { "FP8", "FP8A16", "FP8A16 g16", "FP8A16 block24x40", "NVFP4A16", "MXFP4A16", "MXFP8A16" }

-- What compressed-tensors computes: the dequantized value of element (r, c), and its scale.
local function reference(w, s, arithmetic, s_dtype)
  local n, k, dtype = w:size(1), w:size(2), w:type()
  local dtype_of = arithmetic == "dtype" and dtype or "f32"
  local rows, columns = scheme.block(s, n, k)
  if s.strategy == "tensor" then rows = n end
  local amax, all = {}, 0
  for r = 0, n - 1 do
    for c = 0, k - 1 do
      local at = math.floor(r / rows) * 1000 + math.floor(c / columns)
      local a = math.abs(w:get(r * k + c + 1))
      amax[at], all = math.max(amax[at] or 0, a), math.max(all, a)
    end
  end
  local global = s.strategy == "tensor_group" and (arithmetic == "float32" and single(2688 / all)
    or rounded(single(rounded(single(1 / all), dtype) * 2688), dtype)) -- torch: by the rounded reciprocal
  local function scale(at)
    local m = amax[at]
    if s.scale_dtype == "e8m0" then
      if m == 0 then return 2 ^ -127 end
      local e = math.floor(math.log(m) / math.log(2) + 1e-12)
      if m / 2 ^ e >= 1.75 then e = e + 1 end
      return 2 ^ (e - (s.bits == 4 and 2 or 8))
    elseif global then
      local x = to_grid(single(rounded(single(m / 6), dtype_of) * global), "f8_e4m3", 448)
      if x == 0 then x = 0.125 end
      return single(x / global), x
    end
    local x = rounded(single(m / 448), arithmetic == "dtype" and dtype or s_dtype)
    if m == 0 then x = ({ f32 = 2 ^ -23, bf16 = 2 ^ -7, f16 = 2 ^ -10 })[s_dtype] end
    return x
  end
  return function(r, c)
    local at = math.floor(r / rows) * 1000 + math.floor(c / columns)
    local divisor, stored = scale(at)
    local quotient = single(w:get(r * k + c + 1) / divisor)
    if not s.scale_dtype then quotient = rounded(quotient, dtype_of) end
    local value = s.bits == 4 and to_grid(quotient, "f4", 6) or to_grid(quotient, "f8_e4m3", 448)
    return stored or divisor, value, global
  end
end

describe("quantization onto small floats", function()
  after_each(function()
    C.nb_cpu_limit(-1)
    C.nb_threads_set(0)
    C.nb_stop_clear()
  end)

  local e2m1 = { [0] = 0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6 }

  it("gives compressed-tensors' scales and codes, in either arithmetic", function()
    for _, dtype in ipairs { "bf16", "f16", "f32" } do
      local w = weight(50, 96, dtype)
      for _, name in ipairs(names) do
        for _, arithmetic in ipairs { "float32", "dtype" } do
          local q = assert(quant.quantize(w, name, { options = { arithmetic = arithmetic } }))
          local want = reference(w, q.scheme, arithmetic, dtype)
          local rows, columns = scheme.block(q.scheme, q.n, q.k)
          local codes = q.codes:as("u8", { q.n, q.k }):ptr()
          for r = 0, q.n - 1, 3 do
            for c = r % 5, q.k - 1, 7 do
              local scale, value, global = want(r, c)
              local what = ("%s %s %s row %d column %d"):format(dtype, name, arithmetic, r, c)
              assert.equal(scale, q.scales:get(math.floor(r / rows) * q.groups + math.floor(c / columns) + 1), what)
              local got = q.scheme.bits == 4 and e2m1[codes[r * q.k + c]] or q.codes:get(r * q.k + c + 1)
              assert.equal(value, got, what)
              if global then assert.equal(global, q.global:get(1)) end
            end
          end
        end
      end
    end
  end)

  it("gives the same bytes on every path, by any number of threads, and tile by tile", function()
    for _, dtype in ipairs { "bf16", "f16", "f32" } do
      local w = weight(72, 2112, dtype)
      for _, name in ipairs(names) do
        for _, arithmetic in ipairs { "float32", "dtype" } do
          local options, whole = { arithmetic = arithmetic }, nil
          for _, limit in ipairs { 0, C.NB_CPU_AVX2, -1 } do
            C.nb_cpu_limit(limit)
            for _, threads in ipairs { 1, 3 } do
              C.nb_threads_set(threads)
              local hash = assert(quant.quantize(w, name, { options = options })):hash()
              whole = whole or hash
              assert.equal(whole, hash, name)
            end
          end
          local s = scheme.parse(name)
          local absmax = assert(floats.absmax(w))
          local first = floats.needs_whole(s) and floats.whole(s, absmax, dtype, s.scale_dtype or dtype, options) or nil
          local h = ffi.gc(C.nb_hash_new(), C.nb_hash_free)
          local q = scheme.quantized(s, 72, 2112, dtype)
          for a = 1, 72, 24 do
            local tile = q:rows(a, a + 23)
            assert(floats.tile(tile, w:rows(a, a + 23), options, first))
            tile:hash_into(h)
          end
          local hex = ffi.new "char[33]"
          C.nb_hash_hex(h, hex)
          assert.equal(whole, ffi.string(hex), name)
        end
      end
    end
  end)

  it("rounds ties to even and saturates (E4M3: steps of 2^-9 below 2^-6, 448 the largest)", function()
    local w = nb.tensor("f32", { 2, 6 }, { 448, -1.0625, 1.1875, 0.0009765625, -0.00293, 17, 896, 2, 0, 0, 0, -896 })
    local q = assert(quant.quantize(w, "FP8A16"))
    assert.same({ 1, 2 }, q.scales:totable())
    assert.same({ 448, -1, 1.25, 0, -0.00390625, 16, 896, 2, 0, 0, 0, -896 }, q:dequantize():totable())
    q = assert(quant.quantize(w, "FP8", { scale_dtype = "bf16" }))
    assert.equal("bf16", q.scales:type())
    assert.same({ 448, -1, 1.25, 0, -0.00390625, 16 }, { unpack(q:dequantize("f32"):totable(), 1, 6) })
    assert.same({ 2 ^ -23, 2 ^ -23 }, assert(quant.quantize(nb.tensor("f32", { 2, 4 }), "FP8A16")).scales:totable())
    -- every finite code comes back from its own value
    local all = scheme.quantized(scheme.parse "FP8A16", 1, 256, "f32")
    for i = 0, 255 do all.codes:ptr()[i] = i % 128 == 127 and 126 or i end
    all.scales:set(1, 1)
    assert.is_true(assert(quant.quantize(all:dequantize(), "FP8A16")).codes:equal(all.codes))
    -- e2m1's middles go to the even neighbour
    w = nb.tensor("f32", { 1, 32 }, { 6, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, -0.25, -0.75, -5, 0.26, 5.01 })
    q = assert(quant.quantize(w, "MXFP4A16"))
    assert.same({ 6, 0, 1, 1, 2, 2, 4, 4, 0, -1, -4, 0.5, 6 }, { unpack(q:dequantize("f32"):totable(), 1, 13) })
    assert.equal(8, q.codes:get(9), "what rounds to zero from below is minus zero")
    assert.equal(0, q.codes:get(20))
  end)

  it("siblings that are fused can share one global scale", function()
    local s = scheme.parse "NVFP4A16"
    assert.equal(1344, floats.whole(s, 2, "f32", "f8_e4m3").global)
    assert.equal(10048, floats.whole(s, 0.267578125, "bf16", "f8_e4m3", { arithmetic = "dtype" }).global)
    assert.equal(single(2688 / 0.267578125), floats.whole(s, 0.267578125, "bf16", "f8_e4m3").global)
    assert.equal(1, floats.whole(s, 0, "f32", "f8_e4m3").global, "a weight of zeros")
    assert.equal(1, floats.whole(s, 0.01, "f16", "f8_e4m3", { arithmetic = "dtype" }).global, "beyond f16")
    local q = scheme.quantized(s, 1, 16, "f32")
    assert(floats.tile(q, nb.tensor("f32", { 1, 16 }, { 1, 0.5 }), nil, { global = 1344 }))
    assert.same({ 1344, 224 }, { q.global:get(1), q.scales:get(1) })
  end)

  it("names NaN and Inf with their place, and scales that don't fit", function()
    for _, name in ipairs(names) do
      local w = weight(30, 96, "bf16")
      w:set(29 * 96 + 3, 0 / 0)
      local q, msg, code = quant.quantize(w, name)
      assert.is_nil(q)
      assert.equal("eformat", code)
      assert.matches("the weight has NaN in row 29, column 2 %(counted from 0%)", msg)
    end
    local huge = nb.tensor("f32", { 1, 16 }, { 3e38 })
    local q, msg, code = quant.quantize(huge, "FP8A16", { scale_dtype = "f16" })
    assert.is_nil(q)
    assert.equal("eunsupported", code)
    assert.matches("a scale is too large for f16; store the scales as bf16 or f32", msg)
    local out = ffi.new "float[1]"
    assert.equal(C.NB_EINVAL, C.nb_absmax(out, nb.tensor("u8", { 4 })))
    local empty = nb.tensor("f32", { 3 }, { -7, 2, 1 })
    assert.equal(7, floats.absmax(empty))
  end)

  it("refuses what doesn't fit together", function()
    local w = nb.tensor("f32", { 4, 32 })
    local function raw(codes, scales, options)
      local rc = C.nb_float_quantize(codes, scales, w, ffi.new("nb_float_options", options))
      return rc < 0 and ffi.string(C.nb_error()) or "ok"
    end
    local e4m3, u8 = nb.tensor("f8_e4m3", { 4, 32 }), nb.tensor("u8", { 4, 32 })
    local row = { rows = 1, columns = 32 }
    assert.matches("codes: expected f8_e4m3, or u8", raw(nb.tensor("i8", { 4, 32 }), nb.tensor("f32", { 4, 1 }), row))
    assert.matches("e2m1 codes under scales of f32; expected f8_e4m3 or f8_e8m0", raw(u8, nb.tensor("f32", { 4, 1 }), row))
    assert.matches("e4m3 codes under scales of f8_e4m3; expected f32", raw(e4m3, nb.tensor("f8_e4m3", { 4, 1 }), row))
    assert.matches("the global scale is 0, expected a finite number above 0", raw(u8, nb.tensor("f8_e4m3", { 4, 1 }), row))
    assert.matches("scales: .*%[4x2%]", raw(e4m3, nb.tensor("f32", { 4, 2 }), row))
    assert.matches("blocks of 0x32, expected at least 1x1", raw(e4m3, nb.tensor("f32", { 4, 1 }), { rows = 0, columns = 32 }))
    assert.matches("stores scales in it too: expected f32 scales, found bf16",
      raw(e4m3, nb.tensor("bf16", { 4, 1 }), { rows = 1, columns = 32, arithmetic = C.NB_ARITHMETIC_DTYPE }))
    assert.matches("unknown arithmetic 7", raw(e4m3, nb.tensor("f32", { 4, 1 }), { rows = 1, columns = 32, arithmetic = 7 }))
    assert.matches("vLLM's rule is for f8_e4m3 and f8_e8m0 scales",
      raw(e4m3, nb.tensor("f32", { 4, 1 }), { rows = 1, columns = 32, rule = C.NB_FLOAT_VLLM }))
    assert.error_matches(function() quant.quantize(w, "NVFP4A16 g48") end, "K = 32 is not a multiple of the group size 48")
    assert.error_matches(function() quant.quantize(w, "FP8A16", { method = "mse" }) end,
      "method mse searches integer grids; use rtn for FP8A16")
    assert.error_matches(function() quant.quantize(w, "FP8A16", { method = function() end }) end,
      "a function fills integer codes; use method = \"rtn\" for FP8A16")
    C.nb_stop_request()
    assert.error_matches(function() quant.quantize(w, "FP8A16") end, "interrupted")
  end)

  it("quantizes through a tensor, and counts the error", function()
    local w = weight(64, 256, "bf16")
    local q = w:quantize { scheme = "FP8_BLOCK", block = "32x64" }
    assert.same({ 2, 4 }, q.scales:size())
    local e = quant.error_of(q, w)
    assert.is_true(e.sqnr_db > 25 and e.sqnr_db < 40)
    assert.is_true(quant.error_of(w:quantize "NVFP4A16", w).sqnr_db < e.sqnr_db)
    assert.equal(math.huge, quant.error_of(w:quantize "FP8A16", w:quantize("FP8A16"):dequantize "f32").sqnr_db)
    local ints = w:quantize { scheme = "W8A8" }
    assert.equal("W8A8 channel sym", scheme.describe(ints.scheme))
  end)
end)

describe("bytes of files", function()
  local function random(n, k, below)
    local t, state = nb.tensor("u8", { n, k }), 3
    for i = 0, n * k - 1 do
      state = (state * 1103515245 + 12345) % 2147483648
      t:ptr()[i] = math.floor(state / 65536) % below
    end
    return t
  end

  it("hold two e2m1 codes, the even column in the low nibble", function()
    for _, k in ipairs { 1, 2, 7, 16, 33, 4096 } do
      local codes = random(5, k, 16)
      local bytes = nb.tensor("u8", { 5, math.ceil(k / 2) })
      assert.equal(0, C.nb_fp4_pack(bytes, codes, 0))
      for r = 0, 4 do
        for c = 0, k - 1 do
          local b = bytes:ptr()[r * math.ceil(k / 2) + math.floor(c / 2)]
          assert.equal(codes:ptr()[r * k + c], math.floor(b / 16 ^ (c % 2)) % 16)
        end
      end
      local back = nb.tensor("u8", { 5, k })
      assert.equal(0, C.nb_fp4_unpack(back, bytes, 0))
      assert.is_true(back:equal(codes))
      local tile = nb.tensor("u8", { 2, k })
      assert.equal(0, C.nb_fp4_unpack(tile, bytes, 3))
      assert.is_true(tile:equal(codes:rows(4, 5)))
    end
    local codes = random(2, 8, 16)
    codes:set(11, 16)
    assert.equal(C.NB_EINVAL, C.nb_fp4_pack(nb.tensor("u8", { 2, 4 }), codes, 0))
    assert.matches("fp4 pack: .*16", ffi.string(C.nb_error()))
    assert.equal(C.NB_EINVAL, C.nb_fp4_pack(nb.tensor("u8", { 2, 3 }), random(2, 8, 16), 0))
    assert.equal(C.NB_EINVAL, C.nb_fp4_unpack(codes, nb.tensor("u8", { 2, 4 }), 1))
  end)

  it("hold signed integers; what doesn't fit is named", function()
    for _, bits in ipairs { 4, 8 } do
      local codes, bytes = random(3, 10, 2 ^ bits), nb.tensor("i8", { 3, 10 })
      assert.equal(0, C.nb_int8_pack(bytes, codes, bits, 0))
      for i = 0, 29 do assert.equal(codes:ptr()[i] - 2 ^ (bits - 1), bytes:ptr()[i]) end
      local back = nb.tensor("u8", { 2, 10 })
      assert.equal(0, C.nb_int8_unpack(back, bytes, bits, 1, "m"))
      assert.is_true(back:equal(codes:rows(2, 3)))
    end
    local bytes = nb.tensor("i8", { 2, 4 }, { 7, -8, 0, 1, 2, 8, 3, 4 })
    assert.equal(C.NB_EFORMAT, C.nb_int8_unpack(nb.tensor("u8", { 2, 4 }), bytes, 4, 0, "m"))
    assert.equal("m: the weight in row 1, column 1 is 8; 4 bits hold -8 to 7", ffi.string(C.nb_error()))
    assert.equal(C.NB_EINVAL, C.nb_int8_pack(bytes, random(2, 4, 256), 4, 0))
  end)
end)

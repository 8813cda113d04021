-- Activations quantized and dequantized: each form against its formula in Lua, value by value in float32, with the
-- portable and the vector path giving the same bits.
local nb = require "nibble"
local ffi = require "ffi"
local nffi = require "nibble.ffi"
local C, act = nffi.C, nb.act

local one = ffi.new "float[1]"
local function f32(v)
  one[0] = v
  return one[0]
end

-- Half to even.
local function rint(v)
  local r = math.floor(v)
  if v - r > 0.5 or (v - r == 0.5 and r % 2 == 1) then r = r + 1 end
  return r
end

local function clamp(v, lo, hi) return math.max(lo, math.min(hi, v)) end

-- v on a small float's grid: mantissa bits, smallest normal exponent, largest value.
local grids = { [8] = { bits = 3, least = -6, max = 448 }, [4] = { bits = 1, least = 0, max = 6 } }
local function small(v, g)
  v = clamp(v, -g.max, g.max)
  if v == 0 then return 0 end
  local _, e = math.frexp(math.abs(v))
  local unit = 2 ^ (math.max(e - 1, g.least) - g.bits)
  return rint(v / unit) * unit
end

local function power_of_two(absmax, bits) -- the MX rule: from 1.75 * 2^e up the next one
  if absmax == 0 then return 2 ^ -127 end
  local m, e = math.frexp(absmax)
  return 2 ^ math.max((2 * m >= 1.75 and e or e - 1) - (bits == 4 and 2 or 8), -127)
end

-- The values of one scale's span, by the rules in float32.
local function fake(values, a, o)
  local lo, hi = 0, 0
  for _, v in ipairs(values) do lo, hi = math.min(lo, v), math.max(hi, v) end
  local top = a.type == "float" and grids[a.bits].max or 2 ^ (a.bits - 1) - 1
  local bottom = a.type == "float" and -top or -top - 1
  local absmax, zero = math.max(-lo, hi), 0
  local scale
  if not a.dynamic then scale, zero = f32(o.scale), o.zero_point or 0
  elseif a.symmetric == false then
    scale = f32(f32(hi - lo) / (top - bottom))
    zero = scale == 0 and 0 or rint(clamp(f32(bottom - f32(lo / scale)), bottom, top))
  elseif a.scale_dtype == "e8m0" or a.bits == 4 and a.strategy == "group" then scale = power_of_two(absmax, a.bits)
  elseif a.strategy == "tensor_group" then
    local stored = small(f32(f32(o.global) * f32(absmax / 6)), grids[8])
    scale = f32((stored == 0 and 0.125 or stored) / f32(o.global))
  else scale = f32(absmax / ((top - bottom) / 2)) end
  if scale == 0 then scale = 2 ^ -23 end
  local out = {}
  for i, v in ipairs(values) do
    local q = clamp(f32(f32(v / scale) + zero), bottom, top)
    q = a.type == "float" and small(q, grids[a.bits]) or rint(q)
    out[i] = f32((q - zero) * scale)
  end
  return out
end

local function reference(x, a, o)
  local m, k = x:size(1), x:size(2)
  local rows, columns = 1, k
  if a.strategy == "tensor" then rows = o.span or m elseif a.strategy ~= "token" then columns = a.group end
  local out = nb.tensor("f32", { m, k })
  for r = 0, m - 1, rows do
    for c = 0, k - 1, columns do
      local values, at = {}, {}
      for i = r, math.min(m, r + rows) - 1 do
        for j = c, c + columns - 1 do
          values[#values + 1], at[#at + 1] = x:get(i * k + j + 1), i * k + j + 1
        end
      end
      for i, v in ipairs(fake(values, a, o)) do out:set(at[i], v) end
    end
  end
  return out
end

local function random(m, k, seed)
  math.randomseed(seed)
  local t = nb.tensor("f32", { m, k })
  for i = 1, m * k do t:set(i, (math.random() - 0.5) * 2 ^ math.random(-12, 6)) end
  for i = 1, math.min(k, 40) do t:set(i, 0) end -- groups of zeros
  return t
end

-- Equal as numbers: -0 is 0.
local function assert_same(want, found)
  for i = 1, want:numel() do
    if want:get(i) ~= found:get(i) then error(("value %d is %.9g, expected %.9g"):format(i, found:get(i), want:get(i)), 2) end
  end
end

local function check(a, o, m, k)
  local x = random(m or 7, k or 96, 3)
  local before = x:clone()
  C.nb_cpu_limit(0)
  local portable = assert(act.quantize_dequantize(x, a, o))
  C.nb_cpu_limit(-1)
  local here = assert(act.quantize_dequantize(x, a, o))
  assert.is_true(portable:equal(here), "the paths differ")
  assert.is_true(x:equal(before), "x was written to")
  assert_same(reference(x, a, o or {}), here)
  local again = {}
  for key, v in pairs(o or {}) do again[key] = v end
  again.out = x
  assert.is_true(assert(act.quantize_dequantize(x, a, again)):equal(here), "in place")
end

local forms = {
  { "int8 token dynamic", { type = "int", bits = 8, symmetric = true, strategy = "token", dynamic = true } },
  { "int8 token dynamic asym", { type = "int", bits = 8, symmetric = false, strategy = "token", dynamic = true } },
  { "int4 token dynamic", { type = "int", bits = 4, symmetric = true, strategy = "token", dynamic = true } },
  { "int8 tensor static", { type = "int", bits = 8, symmetric = true, strategy = "tensor", dynamic = false }, { scale = 0.031 } },
  { "int8 tensor static asym", { type = "int", bits = 8, symmetric = false, strategy = "tensor", dynamic = false },
    { scale = 0.031, zero_point = -37 } },
  { "int8 tensor dynamic", { type = "int", bits = 8, symmetric = true, strategy = "tensor", dynamic = true } },
  { "fp8 token dynamic", { type = "float", bits = 8, symmetric = true, strategy = "token", dynamic = true } },
  { "fp8 tensor static", { type = "float", bits = 8, symmetric = true, strategy = "tensor", dynamic = false }, { scale = 0.0173 } },
  { "fp8 tensor dynamic", { type = "float", bits = 8, symmetric = true, strategy = "tensor", dynamic = true } },
  { "fp8 group 16 dynamic", { type = "float", bits = 8, symmetric = true, strategy = "group", group = 16, dynamic = true } },
  { "nvfp4", { type = "float", bits = 4, symmetric = true, strategy = "tensor_group", group = 16, dynamic = "local" }, { global = 84.5 } },
  { "mxfp4", { type = "float", bits = 4, symmetric = true, strategy = "group", group = 32, dynamic = true } },
  { "mxfp8", { type = "float", bits = 8, symmetric = true, strategy = "group", group = 32, dynamic = true, scale_dtype = "e8m0" } },
}

describe("act.quantize_dequantize", function()
  after_each(function() C.nb_cpu_limit(-1) end)

  for _, form in ipairs(forms) do
    it(("CTM-FP8-03, CTM-W4A8-14: %s is compressed-tensors' fake quantization"):format(form[1]), function()
      check(form[2], form[3])
      assert.equal(form[1], act.describe(form[2]))
    end)
  end

  it("does groups of 128 of many columns, as block weights' activations", function()
    check({ type = "float", bits = 8, symmetric = true, strategy = "group", group = 128, dynamic = true }, nil, 3, 384)
  end)

  it("C-16: a dynamic scale by tensor is one scale, never groups of 128, whatever kernels are selected by", function()
    local x = random(2, 256, 4)
    x:set(256, 300)
    local y = assert(act.quantize_dequantize(x, forms[9][2]))
    local scale = ffi.new("float[1]", 300 / 448)[0]
    for i = 1, 512 do assert.equal(f32(small(f32(x:get(i) / scale), grids[8]) * scale), y:get(i)) end
  end)

  it("starts a new tensor after each span of rows", function()
    check(forms[9][2], { span = 3 })
    check(forms[6][2], { span = 7 })
  end)

  it("gives the same bits for any number of threads", function()
    local x, threads = random(64, 512, 9), C.nb_threads()
    for _, form in ipairs(forms) do
      local o = form[3] or {}
      C.nb_threads_set(1)
      local single = assert(act.quantize_dequantize(x, form[2], o))
      C.nb_threads_set(4)
      assert.is_true(assert(act.quantize_dequantize(x, form[2], o)):equal(single), form[1])
    end
    C.nb_threads_set(threads)
  end)

  it("rounds x to the model's dtype first where asked", function()
    local x = random(4, 64, 5)
    for _, dtype in ipairs { "bf16", "f16" } do
      local rounded = x:cast(dtype):cast "f32"
      local want = assert(act.quantize_dequantize(rounded, forms[1][2]))
      assert.is_true(assert(act.quantize_dequantize(x, forms[1][2], { dtype = dtype })):equal(want))
    end
    assert.is_false(assert(act.quantize_dequantize(x, forms[1][2])):equal(
      assert(act.quantize_dequantize(x, forms[1][2], { dtype = "bf16" }))))
  end)

  it("ties go to even, and what is beyond the range stays at its end", function()
    local x = nb.tensor("f32", { 1, 16 }, { 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, 6, -0.25, -0.75, -2.5, -5, 7, -9, 5.1, 1e-9 })
    -- The largest magnitude is 9; with global = 1 the stored scale is e4m3(1.5), so divide by that.
    local y = assert(act.quantize_dequantize(x, { type = "float", bits = 8, symmetric = true, strategy = "tensor",
      dynamic = false }, { scale = 1 / 64 }))
    assert.same({ 7, -7, 5 }, { y:get(13), y:get(14), y:get(15) }) -- 448 / 64 = 7
    y = assert(act.quantize_dequantize(x, { type = "int", bits = 8, symmetric = true, strategy = "tensor", dynamic = false },
      { scale = 0.5 }))
    assert.same({ 0, 1, 1, 2, 2.5 }, { y:get(1), y:get(2), y:get(3), y:get(4), y:get(5) })
  end)

  it("MX values and NVFP4 on their codes come back as they are", function()
    local codes = { 0, 0.5, 1, 1.5, 2, 3, 4, 6 }
    local x = nb.tensor("f32", { 2, 32 })
    for i = 1, 64 do x:set(i, codes[(i - 1) % 8 + 1] * (i % 3 == 0 and -1 or 1) * (i > 32 and 4 or 1)) end
    assert_same(x, assert(act.quantize_dequantize(x, forms[12][2])))
    assert_same(x, assert(act.quantize_dequantize(x, forms[11][2], { global = 1 })))
  end)

  it("NaN and infinity reach all that shares their scale, and nothing else", function()
    for _, bad in ipairs { 0 / 0, math.huge, -math.huge } do
      for i, form in ipairs(forms) do
        if form[2].dynamic then
          local x = random(3, 96, 8)
          x:set(97, bad)
          local y = assert(act.quantize_dequantize(x, form[2], form[3]))
          assert.is_true(y:get(97) ~= y:get(97), form[1])
          if i == 1 or i == 2 then assert.equal(96, nb.compute.nonfinite(y)) end
        end
      end
    end
  end)

  it("CTM-FP8-02: refuses what it does not compute, and says what it expected", function()
    local function refused(fields, pattern, o)
      local a = { type = "float", bits = 8, symmetric = true, strategy = "token", dynamic = true }
      for key, v in pairs(fields) do a[key] = v end
      assert.error_matches(function() act.quantize_dequantize(nb.tensor("f32", { 2, 48 }), a, o) end, pattern)
    end
    refused({ strategy = "token", dynamic = false }, 'static scales need strategy = "tensor", found "token"; expected static '
      .. "by tensor or dynamic by token")
    refused({ strategy = "channel" }, 'strategy = "channel", expected token, tensor, group or tensor_group')
    refused({ type = "nf4" }, 'type = "nf4", expected int or float')
    refused({ bits = 6 }, "floats of 6 bits, expected 4 %(f4%) or 8 %(f8_e4m3%)")
    refused({ type = "int", bits = 9 }, "integers of 9 bits, expected 2 to 8")
    refused({ symmetric = false }, "float elements have no zero%-point")
    refused({ strategy = "group" }, 'strategy = "group" needs group > 0, found group = nil')
    refused({ strategy = "group", group = 32 }, "48 columns are not a multiple of the group size 32")
    refused({ dynamic = "local" }, 'dynamic = "local" needs strategy = "tensor_group", found "token"')
    refused({ strategy = "tensor_group", group = 16, type = "int" }, 'tensor_group" needs type = "float"')
    refused({ strategy = "tensor", dynamic = false }, "static, so a scale is needed")
    refused({ strategy = "tensor_group", group = 16, dynamic = "local", bits = 4 }, 'dynamic = "local" needs a global scale')
    refused({ strategy = "tensor", dynamic = false }, "scale must be a number or a tensor of one, found a tensor of 2",
      { scale = nb.tensor("f32", { 2 }) })
    refused({}, "dtype = i8, expected f32, bf16 or f16", { dtype = "i8" })
  end)

  it("scales that are zero, negative, infinite or NaN are a file's fault", function()
    local x = nb.tensor("f32", { 2, 16 })
    for _, v in ipairs { 0, -1, math.huge, 0 / 0 } do
      local y, msg, code = act.quantize_dequantize(x, forms[8][2], { scale = v })
      assert.is_nil(y)
      assert.matches("the static scale is .*, expected a finite number above 0", msg)
      assert.equal("eformat", code)
      y, msg, code = act.quantize_dequantize(x, forms[11][2], { global = v })
      assert.is_nil(y)
      assert.matches("the global scale is .*, expected a finite number above 0", msg)
      assert.equal("eformat", code)
    end
    local _, msg = act.quantize_dequantize(x, forms[4][2], { scale = 1, zero_point = 3 })
    assert.matches("the zero%-point 3 does not fit symmetric integers of 8 bits", msg)
    _, msg = act.quantize_dequantize(x, forms[5][2], { scale = 1, zero_point = 128 })
    assert.matches("the zero%-point 128 does not fit asymmetric integers of 8 bits", msg)
  end)

  it("MRL-45: gives codes too, whose products with their rows' scales are the same values", function()
    local function values(codes, scales)
      local out = codes:cast "f32"
      for i = 1, out:numel() do out:set(i, f32(out:get(i) * scales:get(math.floor((i - 1) / 96) + 1))) end
      return out
    end
    for _, i in ipairs { 1, 3, 4, 6, 7, 8, 9 } do
      for _, o in ipairs { {}, { span = 3 }, { dtype = "bf16" } } do
        local a, x = forms[i][2], random(7, 96, i)
        for key, v in pairs(forms[i][3] or {}) do o[key] = v end
        local codes, scales = act.quantize(x, a, o)
        assert.equal(a.type == "int" and "i8" or "f8_e4m3", codes:type())
        assert_same(assert(act.quantize_dequantize(x, a, o)), values(codes, scales))
        x:set(100, 0 / 0)
        codes, scales = act.quantize(x, a, o)
        local want, found = assert(act.quantize_dequantize(x, a, o)), values(codes, scales)
        for j = 1, 96 do assert.is_true(want:get(j) == found:get(j) or want:get(j) ~= want:get(j) and found:get(j) ~= found:get(j)) end
        assert.is_true(scales:get(2) ~= scales:get(2))
      end
    end
    for _, i in ipairs { 2, 10, 11, 12, 13 } do
      local codes, msg, code = act.quantize(random(2, 96, 1), forms[i][2], forms[i][3])
      assert.is_nil(codes)
      assert.matches("codes are integers or f8_e4m3 without zero%-points, and a scale a row or a tensor; found", msg)
      assert.equal("eunsupported", code)
    end
    assert.equal(0, assert(act.quantize(nb.tensor("f32", { 0, 16 }), forms[1][2])):numel())
  end)

  it("takes no rows, and says when no memory is left", function()
    assert.equal(0, assert(act.quantize_dequantize(nb.tensor("f32", { 0, 16 }), forms[1][2])):numel())
    local x, out = random(4, 64, 2), nb.tensor("f32", { 4, 64 })
    for n = 1, 2 do
      C.nb_debug_fail_alloc(n)
      local y, _, code = act.quantize_dequantize(x, forms[9][2], { out = out })
      C.nb_debug_fail_alloc(0)
      assert.is_nil(y)
      assert.equal("enomem", code)
    end
  end)
end)

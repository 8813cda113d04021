-- Golden operations of the number formats: each takes a case's tensors and returns
-- what nibble computes, to compare bit for bit.
local nb = require "nibble"

-- Cases store bit patterns as i32, i16 or u8: the same bytes under their own dtype.
local function read_as(t, dtype) return t:as(dtype, t:size()) end

-- Where x is NaN, y's NaN takes the expected payload: the notes ask for NaN-ness only.
local function nan_as_expected(y, x, want, dtype)
  local got, expected = y:cast "f32", read_as(want, dtype):cast "f32"
  local i16, e16 = y:as(want:type()), want:as(want:type())
  for i = 1, x:numel() do
    local v, g, e = x:get(i), got:get(i), expected:get(i)
    if v ~= v and g ~= g and e ~= e then i16:set(i, e16:get(i)) end
  end
  return y
end

local ops = {}

local function to_half(dtype)
  return function(case)
    local x, want = read_as(case.tensors["in.f32_bits"], "f32"), case.tensors["out.bits"]
    return { ["out.bits"] = read_as(nan_as_expected(x:cast(dtype), x, want, dtype), "i16") }
  end
end
ops.f32_to_fp16 = to_half "f16"
ops.f32_to_bf16 = to_half "bf16"

function ops.fp16_to_f32(case)
  local x, want = read_as(case.tensors["in.bits"], "f16"), case.tensors["out.f32_bits"]
  local y = x:cast "f32"
  return { ["out.f32_bits"] = read_as(nan_as_expected(y, y:clone(), want, "f32"), "i32") }
end

local fp8 = { e4m3fn = "f8_e4m3", e5m2 = "f8_e5m2", e4m3fnuz = "f8_e4m3fnuz", e5m2fnuz = "f8_e5m2fnuz" }
for suffix, dtype in pairs(fp8) do
  ops["fp8_" .. suffix .. "_to_f32"] = function(case)
    return { ["out.f32_bits"] = read_as(read_as(case.tensors["in.codes"], dtype):cast "f32", "i32") }
  end
  ops["f32_to_fp8_" .. suffix] = function(case)
    local x = read_as(case.tensors["in.f32_bits"], "f32")
    return { ["out.codes"] = read_as(x:cast(dtype), "u8"),
      ["out.codes_saturating"] = read_as(x:cast(dtype, { saturate = true }), "u8") }
  end
  for _, half in ipairs { "f16", "bf16" } do
    ops[half .. "_to_fp8_" .. suffix] = function(case)
      local x = read_as(case.tensors["in." .. half .. "_bits"], half)
      return { ["out.codes"] = read_as(x:cast(dtype), "u8") }
    end
  end
end

function ops.e8m0_to_f32(case)
  local x = read_as(case.tensors["in.codes"], "f8_e8m0")
  return { ["out.f32_bits"] = read_as(x:cast "f32", "i32"), ["out.bf16_bits"] = read_as(x:cast "bf16", "i16"),
    ["out.f16_bits"] = read_as(x:cast "f16", "i16") }
end

function ops.f32_to_e8m0(case)
  return { ["out.codes"] = read_as(read_as(case.tensors["in.f32_bits"], "f32"):cast "f8_e8m0", "u8") }
end

function ops.fp4_e2m1_to_f32(case)
  -- One code a byte in the case; f4 packs two: the low nibble first.
  local codes = case.tensors["in.codes"]
  return { ["out.f32_bits"] = read_as(read_as(codes:cast "u4", "f4"):cast "f32", "i32") }
end

function ops.break_fp4_bytes(case)
  local packed = case.tensors["in.packed"]
  local x = packed:as("f4", { packed:size(1), packed:size(2) * 2 })
  return { ["out.f32"] = x:cast "f32", ["out.bf16"] = x:cast "bf16" }
end

function ops.f32_to_fp4_e2m1(case)
  local q = read_as(case.tensors["in.f32_bits"], "f32"):cast "f4"
  return { ["out.rounded_f32_bits"] = read_as(q:cast "f32", "i32"), ["out.packed"] = q:as "u8" }
end

function ops.f32_to_fp6_e2m3(case)
  local x = read_as(case.tensors["in.f32_bits"], "f32")
  local n = x:numel() -- f6 packs four to three bytes: pad to a multiple of four
  local padded = nb.tensor("f32", { math.ceil(n / 4) * 4 })
  for i = 1, n do padded:set(i, x:get(i)) end
  return { ["out.rounded_f32_bits"] = read_as(padded:cast("f6_e2m3"):cast("f32"):rows(1, n), "i32") }
end

function ops.round_half_even_clamp(case)
  local x = read_as(case.tensors["in.f32_bits"], "f32")
  local n = x:numel()
  local even = nb.tensor("f32", { math.ceil(n / 2) * 2 })
  for i = 1, n do even:set(i, x:get(i)) end
  local i8 = x:cast "i8"
  local sym = i8:clone()
  for i = 1, n do sym:set(i, math.max(sym:get(i), -127)) end
  return { ["out.int8"] = i8, ["out.int8_sym127"] = sym,
    ["out.int4"] = even:cast("i4"):cast("i8"):rows(1, n), ["out.uint4"] = even:cast("u4"):cast("u8"):rows(1, n) }
end

return ops

-- Golden operations: number formats. Inputs and outputs are bit patterns in integer tensors.
local nb = require "nibble"
local nffi = require "nibble.ffi"

local ops = {}

local function input(case)
  for name in pairs(case.entry.tensors) do
    if name:match "^in%." then return case.tensors[name] end
  end
end

-- How the file's tensor of outputs stores what nibble casts to.
local function stored(t, entry) return t:as(({ float32 = "f32", int32 = "i32", int16 = "i16", int8 = "i8", uint8 = "u8" })[entry.dtype], entry.shape) end

-- operation: bits of `from` in, bits of every output as casts to `to`.
local function cast(from, to)
  return function(case)
    local bits = input(case)
    local x = bits:as(from, bits:size())
    local results = { nan = {} }
    for name, entry in pairs(case.entry.tensors) do
      if name:match "^out%." then
        local dtype = type(to) == "table" and to[name] or to
        results[name] = stored(x:cast(dtype, { saturate = name:match "saturating" ~= nil }), entry)
        results.nan[name] = dtype
      end
    end
    return results
  end
end

ops.f32_to_fp16, ops.f32_to_bf16, ops.fp16_to_f32 = cast("f32", "f16"), cast("f32", "bf16"), cast("f16", "f32")
for golden, name in pairs { fp8_e4m3fn = "f8_e4m3", fp8_e5m2 = "f8_e5m2", fp8_e4m3fnuz = "f8_e4m3fnuz", fp8_e5m2fnuz = "f8_e5m2fnuz" } do
  ops[golden .. "_to_f32"] = cast(name, "f32")
  for short, from in pairs { f32 = "f32", f16 = "f16", bf16 = "bf16" } do ops[short .. "_to_" .. golden] = cast(from, name) end
end
ops.e8m0_to_f32 = cast("f8_e8m0", { ["out.f32_bits"] = "f32", ["out.bf16_bits"] = "bf16", ["out.f16_bits"] = "f16" })
ops.f32_to_e8m0 = cast("f32", "f8_e8m0")

function ops.fp4_e2m1_to_f32(case)
  local codes = case.tensors["in.codes"]
  local n = codes:numel()
  local packed = nb.tensor("u8", { n / 2 })
  for i = 1, n / 2 do packed:set(i, codes:get(2 * i - 1) + 16 * codes:get(2 * i)) end
  return { ["out.f32_bits"] = packed:as("f4", { n }):cast("f32"):as("i32") }
end

function ops.f32_to_fp4_e2m1(case)
  local bits = case.tensors["in.f32_bits"]
  local codes = bits:as("f32", bits:size()):cast "f4"
  return { ["out.packed"] = codes:as "u8", ["out.rounded_f32_bits"] = codes:cast("f32"):as("i32") }
end

function ops.f32_to_fp6_e2m3(case)
  local bits = case.tensors["in.f32_bits"]
  local n = bits:numel()
  local padded = nb.tensor("f32", { math.ceil(n / 4) * 4 })
  local x = bits:as "f32"
  for i = 1, n do padded:set(i, x:get(i)) end
  return { ["out.rounded_f32_bits"] = padded:cast("f6_e2m3"):cast("f32"):rows(1, n):as("i32") }
end

function ops.break_fp4_bytes(case)
  local packed = case.tensors["in.packed"]
  local x = packed:as("f4", { packed:size(1), packed:size(2) * 2 })
  return { ["out.f32"] = x:cast "f32", ["out.bf16"] = x:cast "bf16" }
end

function ops.generate_mx_scales(case)
  local amax = case.tensors["in.amax"]
  local scales = nb.tensor("f8_e8m0", amax:size())
  nffi.must(nffi.C.nb_mx_scales(scales, amax, case.params.num_bits))
  return { ["out.scale_exp"] = scales:as("u8", amax:size()):cast "i32" }
end

function ops.round_half_even_clamp(case)
  local bits = case.tensors["in.f32_bits"]
  local x = bits:as("f32", bits:size())
  local function nibbles(dtype, out, sign)
    local n = x:numel()
    local even = nb.tensor("f32", { math.ceil(n / 2) * 2 })
    for i = 1, n do even:set(i, x:get(i)) end
    local p = even:cast(dtype):as "u8"
    local t = nb.tensor(out, { n })
    for i = 1, n do
      local v = math.floor(p:get(math.ceil(i / 2)) / (i % 2 == 1 and 1 or 16)) % 16
      t:set(i, sign and v > 7 and v - 16 or v)
    end
    return t
  end
  local sym = x:cast "i8"
  for i = 1, sym:numel() do sym:set(i, math.max(-127, sym:get(i))) end
  return { ["out.int4"] = nibbles("i4", "i8", true), ["out.uint4"] = nibbles("u4", "u8"), ["out.int8"] = x:cast "i8",
           ["out.int8_sym127"] = sym }
end

return ops

-- Scales, bias and zero-points in Marlin's order, and what 8-bit activations and small floats need done to them: layout.marlin's
-- functions of a tensor on the device and of one here.
local cuda = require "nibble.cuda"
local marlin = require "nibble.layout.marlin"
local checks = require "checks"
local data = require "data"

-- Scales are positive where their numbers matter; else random bits, but of E8M0 scales and zero-points of 4 bits those that fit.
local function bits_of(f, dtype, shape, seed, name, code_bits)
  if f:match "^int8_" or f:match "^nvfp4_" then return data.scales(dtype, shape, seed, name) end
  local keep = f == "mx_scales" and 0x7f7f7f7f or code_bits == 4 and dtype == "u8" and 0x0f0f0f0f or -1
  return data.random(dtype, shape, seed, name, { keep = keep, set = 0 })
end

-- {function, dtype, shape, its further arguments …}; experts of 3, groups of 64 rows
local function calls(groups, n)
  local k, list = groups * 64, {}
  local function add(...) list[#list + 1] = { ... } end
  for _, dtype in ipairs { "u8", "bf16", "f32" } do
    for _, name in ipairs { "permute_scales", "unpermute_scales" } do
      add(name, dtype, { groups, n }, k, 64, false)
      add(name, dtype, { 3, groups, n }, k, 64, true)
      add(name, dtype, { groups, n }, k, -1, false)
    end
  end
  add("permute_bias", "bf16", { n })
  add("unpermute_bias", "f32", { 3, n })
  for _, bits in ipairs { 4, 8 } do
    for _, a8 in ipairs { false, true } do
      add("zero_points", "u8", { groups, n }, bits, a8)
      add("awq_zero_points", "i32", { 3, groups, n * bits / 32 }, bits, a8)
      add("packed_zero_points", "i32", { groups, n * bits / 32 }, bits, a8)
    end
  end
  for _, dtype in ipairs { "f16", "bf16" } do
    add("int8_scales", dtype, { groups, n })
    add("nvfp4_scales", dtype, { groups, n })
  end
  add("mx_scales", "u8", { groups, n }, false)
  add("mx_scales", "u8", { 3, groups, n }, true)
  add("swizzle_blockscale", "u8", { 3, n, groups * 3 })
  add("fp8_preprocess", "i32", { groups * 8, n })
  return list
end

local function correctness(ctx)
  local cases = {}
  for _, size in ipairs(ctx.small and { { 2, 128 } } or { { 3, 320 }, { 64, 28672 } }) do
    for _, call in ipairs(calls(size[1], size[2])) do
      local f, dtype, shape = call[1], call[2], call[3]
      local words = {}
      for i = 4, #call do words[#words + 1] = tostring(call[i]) end
      local name = ("%s(%s [%s]%s)"):format(f, dtype, table.concat(shape, "x"), #words > 0 and ", " .. table.concat(words, ", ") or "")
      cases[#cases + 1] = checks.same {
        name = name,
        inputs = function(c)
          local t = bits_of(f, dtype, shape, c.seed, name, call[4])
          return { here = t, there = assert(cuda.to(t, "cuda")) }
        end,
        device = function(i) return marlin[f](i.there, unpack(call, 4)) end,
        cpu = function(i) return marlin[f](i.here, unpack(call, 4)) end,
      }
    end
  end
  return cases
end

return { correctness = correctness }

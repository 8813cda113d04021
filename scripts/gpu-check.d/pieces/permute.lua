-- Scales, bias and zero-points in Marlin's order: layout.marlin's functions of a tensor on the device and of one here.
local cuda = require "nibble.cuda"
local marlin = require "nibble.layout.marlin"
local checks = require "checks"
local data = require "data"

-- Random bits: nothing here reads them as numbers. Of zero-points of 4 bits only those fit.
local function bits_of(dtype, shape, seed, name, code_bits)
  local keep = code_bits == 4 and dtype == "u8" and 0x0f0f0f0f or -1
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
  return list
end

local function correctness(ctx)
  local cases = {}
  if not require("nibble.cuda.repack").permute_scales then
    return { { name = "permutations", run = function() return { status = "skipped", why = "there are none on a device yet" } end } }
  end
  for _, size in ipairs(ctx.small and { { 2, 128 } } or { { 3, 320 }, { 64, 28672 } }) do
    for _, call in ipairs(calls(size[1], size[2])) do
      local f, dtype, shape = call[1], call[2], call[3]
      local words = {}
      for i = 4, #call do words[#words + 1] = tostring(call[i]) end
      local name = ("%s(%s [%s]%s)"):format(f, dtype, table.concat(shape, "x"), #words > 0 and ", " .. table.concat(words, ", ") or "")
      cases[#cases + 1] = checks.same {
        name = name,
        inputs = function(c)
          local t = bits_of(dtype, shape, c.seed, name, call[4])
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

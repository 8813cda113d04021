-- Products with Marlin's weights of 4 bits and 8-bit activations: int8 and fp8, against the CPU's, the same bits in every run.
local cuda = require "nibble.cuda"
local gemm = require "nibble.gemm"
local prepare = require("nibble.methods.marlin").prepare
local checks = require "checks"
local data = require "data"
local timing = require "timing"

local function name_of(c)
  return ("product %dx%d %s %s activations%s m=%d"):format(c.k, c.n, c.group > 0 and "g" .. c.group or "channel", c.activations,
    c.dtype == "f16" and " f16" or "", c.m)
end

-- A weight as gemm.marlin takes it, in the computer's memory.
local function weight_of(c, seed)
  local name, groups = name_of(c), c.group > 0 and c.k / c.group or 1
  local p = assert(prepare { bits = 4, group = c.group, order = "gptq", activations = c.activations,
    words = data.random("i32", { c.k / 8, c.n }, seed, name), scales = data.scales(c.dtype, { groups, c.n }, seed, name),
    bias = data.random(c.dtype, { c.n }, seed, name .. " bias") })
  p.type, p.k, p.n, p.group, p.dtype, p.activations = "uint4b8", c.k, c.n, c.group, c.dtype, c.activations
  return p
end

local function there(p)
  local out = setmetatable({}, { __index = p })
  for _, part in ipairs { "words", "scales", "bias" } do out[part] = p[part] and assert(cuda.to(p[part], "cuda")) end
  return out
end

-- Allowed: a unit of y's last place and the roundings of k terms, of the size of y's largest.
local function correctness_case(c)
  local name = name_of(c)
  return { name = name, run = function(ctx)
    local p, x = weight_of(c, ctx.seed), data.random(c.dtype, { c.m, c.k }, ctx.seed, name .. " x")
    local m, on_device = there(p), assert(cuda.to(x, "cuda"))
    local found, runs = checks.again(ctx, name, function() return assert(gemm.marlin(on_device, m)) end)
    local want, largest, most = gemm.marlin(x, p), 0, 0
    for i = 0, want:numel() - 1 do largest = math.max(largest, math.abs(want:ptr()[i])) end
    for i = 1, want:numel() do
      local w = want:get(i)
      local allowed = (c.dtype == "f16" and 2 ^ -10 or 2 ^ -7) * math.abs(w) + (c.k + 2) * 2 ^ -23 * largest
      local part = math.abs(found:get(i) - w) / allowed
      if not (part <= 1) then error(("y[%d] is %.9g, expected %.9g within %.3g"):format(i - 1, found:get(i), w, allowed), 0) end
      most = math.max(most, part)
    end
    return { runs = runs, error_of_bound = most }
  end }
end

local function correctness(ctx)
  local cases, k, n = {}, ctx.small and 512 or 2048, ctx.small and 192 or 1088
  for _, activations in ipairs { "int8", "fp8" } do
    for i, group in ipairs(ctx.small and { 128 } or { -1, 32, 64, 128 }) do
      for _, m in ipairs(ctx.small and { 3, 40 } or { 1, 16, 17, 33, 64, 129 }) do
        cases[#cases + 1] = correctness_case { k = k, n = n, m = m, group = group, activations = activations,
          dtype = i % 2 == 0 and "f16" or "bf16" }
      end
    end
  end
  return cases
end

local function benchmark(k, n, m, activations)
  local c = { k = k, n = n, m = m, group = 128, activations = activations, dtype = "bf16" }
  local weight_bytes = k * n / 2 + k / 128 * n * 2
  return timing.case {
    name = name_of(c), piece = "product_a8", m = m, n = n, k = k, weight_bytes = weight_bytes, bytes = weight_bytes + m * (2 * k + 2 * n),
    flops = 2 * m * n * k,
    setup = function(ctx, copies)
      local list, x, p = {}, assert(cuda.to(data.random("bf16", { m, k }, ctx.seed, "a8"), "cuda")), weight_of(c, ctx.seed)
      for i = 1, copies do
        local weight = there(p)
        list[i] = function() return assert(gemm.marlin(x, weight)) end
      end
      return list
    end,
  }
end

local function benchmarks(ctx)
  local cases = {}
  for _, activations in ipairs { "int8", "fp8" } do
    for _, m in ipairs(ctx.small and { 1 } or { 1, 16, 64, 256, 1024, 4096 }) do
      cases[#cases + 1] = benchmark(ctx.small and 256 or 8192, ctx.small and 128 or 28672, m, activations)
    end
  end
  return cases
end

return { correctness = correctness, benchmarks = benchmarks }

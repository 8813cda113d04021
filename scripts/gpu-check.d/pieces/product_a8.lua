-- Products with Marlin's weights of 4 bits and 8-bit activations: int8 and fp8, of one weight and of experts, against the CPU's,
-- the same bits in every run; layers whose inputs are quantized so, by their method.
local act = require "nibble.act"
local compute = require "nibble.compute"
local cuda = require "nibble.cuda"
local cuda_experts = require "nibble.cuda.experts"
local gemm = require "nibble.gemm"
local layer = require "nibble.methods.layer"
local layers = require "nibble.methods.marlin_a8_cuda"
local prepare = require("nibble.methods.marlin").prepare
local checks = require "checks"
local data = require "data"
local tensor = require "nibble.tensor"
local timing = require "timing"

local function name_of(c)
  return ("product %dx%d %s %s activations%s%s m=%d"):format(c.k, c.n, c.group > 0 and "g" .. c.group or "channel", c.activations,
    c.dtype == "f16" and " f16" or "", c.experts and (" of %d experts"):format(c.experts) or "", c.m)
end

-- A weight as gemm.marlin takes it, or c.experts of them in a stack, in the computer's memory.
local function weight_of(c, seed)
  local name, groups, e = name_of(c), c.group > 0 and c.k / c.group or 1, c.experts
  local p = assert(prepare { bits = 4, group = c.group, order = "gptq", activations = c.activations,
    words = data.random("i32", e and { e, c.k / 8, c.n } or { c.k / 8, c.n }, seed, name),
    scales = data.scales(c.dtype, e and { e, groups, c.n } or { groups, c.n }, seed, name),
    bias = data.random(c.dtype, e and { e, c.n } or { c.n }, seed, name .. " bias") })
  p.type, p.k, p.n, p.group, p.dtype, p.activations = "uint4b8", c.k, c.n, c.group, c.dtype, c.activations
  return p
end

local function there(p)
  local out = setmetatable({}, { __index = p })
  for _, part in ipairs { "words", "scales", "bias" } do out[part] = p[part] and assert(cuda.to(p[part], "cuda")) end
  return out
end

-- Allowed: a unit of y's last place and the roundings of k terms, of the size of y's largest. -> the largest part of it
local function part_of_bound(c, want, found)
  local largest, most = want:stats().absmax, 0
  for i = 1, want:numel() do
    local w = want:get(i)
    local allowed = (c.dtype == "f16" and 2 ^ -10 or 2 ^ -7) * math.abs(w) + (c.k + 2) * 2 ^ -23 * largest
    local part = math.abs(found:get(i) - w) / allowed
    if not (part <= 1) then error(("y[%d] is %.9g, expected %.9g within %.3g"):format(i - 1, found:get(i), w, allowed), 0) end
    most = math.max(most, part)
  end
  return most
end

local function correctness_case(c)
  local name = name_of(c)
  return { name = name, run = function(ctx)
    local p, x = weight_of(c, ctx.seed), data.random(c.dtype, { c.m, c.k }, ctx.seed, name .. " x")
    local m, on_device = there(p), assert(cuda.to(x, "cuda"))
    local found, runs = checks.again(ctx, name, function() return assert(gemm.marlin(on_device, m)) end)
    return { runs = runs, error_of_bound = part_of_bound(c, gemm.marlin(x, p), found) }
  end }
end

-- Two experts to a token, in turn.
local function experts_case(c)
  local name = name_of(c)
  return { name = name, run = function(ctx)
    local p, x, ids = weight_of(c, ctx.seed), data.random(c.dtype, { c.m, c.k }, ctx.seed, name .. " x"), tensor.new("i32", { c.m, 2 })
    for i = 0, 2 * c.m - 1 do ids:ptr()[i] = i % c.experts end
    local m, on_device, blocks = there(p), assert(cuda.to(x, "cuda")), cuda_experts.align(assert(cuda.to(ids, "cuda")), c.experts)
    local found, runs = checks.again(ctx, name, function() return assert(cuda_experts.gemm(on_device, m, blocks)) end)
    local want, product = tensor.new("f32", { 2 * c.m, c.n }), gemm.marlin_experts(p)
    for e = 0, c.experts - 1 do
      local of = product(e, x)
      for pair = e, 2 * c.m - 1, c.experts do
        compute.copy(want:rows(pair + 1, pair + 1), of:rows(math.floor(pair / 2) + 1, math.floor(pair / 2) + 1))
      end
    end
    return { runs = runs, error_of_bound = part_of_bound(c, want, found) }
  end }
end

-- A layer under a scheme: what fake quantization and the dequantized weight give, within roundings of y and, of scales, of each term.
local function layer_case(scheme, c)
  local name = ("layer %s %dx%d m=%d"):format(scheme, c.k, c.n, c.m)
  return { name = name, run = function(ctx)
    local q = assert(data.random("f32", { c.n, c.k }, ctx.seed, name):quantize { scheme = scheme, scale_dtype = "f16" })
    local L = layer.new { name = "l", kind = "linear", dtype = "f16", k = c.k, n = c.n }
    local m = assert(layers.new({ scheme = q.scheme, format = "compressed-tensors" }, { on = "cuda" }))
    assert(m:create(L))
    assert(m:keep(L, q))
    assert(m:process(L))
    local x, want = data.random("f32", { c.m, c.k }, ctx.seed, name .. " x"), tensor.new("f32", { c.m, c.n })
    local on_device = assert(cuda.to(x, "cuda"))
    local found, runs = checks.again(ctx, name, function() return assert(m:apply(L, on_device)) end)
    compute.gemm(want, assert(act.quantize_dequantize(x, q.scheme.activations)), q:dequantize "f32")
    return { runs = runs, error_of_bound = part_of_bound({ dtype = L.dtype, k = c.k }, want, found) }
  end }
end

local function correctness(ctx)
  local cases, k, n = {}, ctx.small and 512 or 2048, ctx.small and 192 or 1088
  for _, activations in ipairs { "int8", "fp8" } do
    for i, group in ipairs(ctx.small and { 128 } or { -1, 32, 64, 128 }) do
      local dtype = i % 2 == 0 and "f16" or "bf16"
      for _, m in ipairs(ctx.small and { 3, 40 } or { 1, 16, 17, 33, 64, 129 }) do
        cases[#cases + 1] = correctness_case { k = k, n = n, m = m, group = group, activations = activations, dtype = dtype }
      end
      for _, m in ipairs(ctx.small and { 3 } or { 1, 16, 50, 300 }) do
        cases[#cases + 1] = experts_case { experts = ctx.small and 3 or 8, k = k, n = n, m = m, group = group, activations = activations,
          dtype = dtype }
      end
    end
  end
  for _, scheme in ipairs { "W8A8", "W4A8", "W4AFP8" } do
    cases[#cases + 1] = layer_case(scheme, { k = k, n = n, m = ctx.small and 3 or 65 })
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

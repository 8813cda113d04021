-- Quantization of weights, every scheme by round to nearest, and of activations.
local cuda = require "nibble.cuda"
local quant = require "nibble.quant"
local marlin = require "nibble.layout.marlin"
local schemes = require "nibble.scheme"
local checks = require "checks"
local data = require "data"
local timing = require "timing"

local SCHEMES = { "W4A16", "W4A16_ASYM", "W8A16", "W3A16", "W8A8", "W8A8_STATIC", "FP8", "FP8_DYNAMIC", "FP8_BLOCK", "NVFP4A16",
  "MXFP4A16", "MXFP8A16" }
local DTYPES = { "f32", "bf16", "f16" }

-- Ties, signed zeros and subnormal numbers, a row of zeros: what a rounding of one's own gets wrong first.
local function with_edges(t)
  local edges = { 0, -0.0, 0.5, -0.5, 1.5, 2.5, -2.5, 6, 448, -448, 1e-7, -1e-7, 6e-5, 0.25, 0.75 }
  local k = t:size(2)
  for i, v in ipairs(edges) do t:set(i, v) end
  for i = 1, k do t:set((t:size(1) - 1) * k + i, 0) end
  return t
end

local function weight_case(scheme, dtype, n, k)
  local name = ("quantize %s of %s, %dx%d"):format(scheme, dtype, n, k)
  local function parts(q)
    local out = { assert(q).codes, q.scales }
    for _, part in ipairs { "zeros", "global" } do out[#out + 1] = q[part] end
    return unpack(out)
  end
  return checks.same {
    name = name,
    inputs = function(ctx)
      local w = with_edges(data.random(dtype, { n, k }, ctx.seed, name))
      return { w = w, on_device = assert(cuda.to(w, "cuda")) }
    end,
    device = function(i) return parts(assert(i.on_device:quantize { scheme = scheme })) end,
    cpu = function(i) return parts(i.w:quantize { scheme = scheme }) end,
  }
end

local function activation_case(what, o, dtype, m, k)
  local name = ("quantize activations %s%s of %s, %dx%d"):format(what, o.per_tensor and " by tensor" or " by token", dtype, m, k)
  return checks.same {
    name = name,
    inputs = function(ctx)
      local x = with_edges(data.random(dtype, { m, k }, ctx.seed, name))
      return { x = x, on_device = assert(cuda.to(x, "cuda")) }
    end,
    device = function(i) return marlin.quantize_activations(i.on_device, what, o) end,
    cpu = function(i) return marlin.quantize_activations(i.x, what, o) end,
  }
end

local function correctness(ctx)
  local cases = {}
  local sizes = ctx.small and { { 5, 256 } } or { { 37, 384 }, { 4096, 4096 } }
  for i, scheme in ipairs(SCHEMES) do
    for _, size in ipairs(sizes) do
      for _, dtype in ipairs((ctx.small or size[1] > 100) and { DTYPES[i % 3 + 1] } or DTYPES) do
        local n = scheme == "FP8_BLOCK" and math.ceil(size[1] / 128) * 128 or size[1]
        cases[#cases + 1] = weight_case(scheme, dtype, n, size[2])
      end
    end
  end
  for _, dtype in ipairs(DTYPES) do
    for _, size in ipairs(ctx.small and { { 3, 256 } } or { { 1, 8192 }, { 17, 4096 + 64 }, { 1000, 8192 } }) do
      cases[#cases + 1] = activation_case("int8", {}, dtype, size[1], size[2])
      cases[#cases + 1] = activation_case("fp8", {}, dtype, size[1], size[2])
      cases[#cases + 1] = activation_case("fp8", { per_tensor = true }, dtype, size[1], size[2])
    end
  end
  return cases
end

local function bytes_of(q)
  local bytes = 0
  for _, part in ipairs { "codes", "scales", "zeros" } do bytes = bytes + (q[part] and q[part]:bytes() or 0) end
  return bytes
end

-- Into storage that is there already: what a call writes once more to clear it would be counted else.
local function weight_benchmark(scheme_name, n, k)
  local name = ("quantize %s of bf16, %dx%d"):format(scheme_name, n, k)
  local scheme = schemes.parse(scheme_name)
  return timing.case {
    name = name, piece = "quantize", weight_bytes = 2 * n * k, bytes = 2 * n * k + bytes_of(schemes.quantized(scheme, n, k, "bf16")),
    eager = true, -- it waits, to tell of NaN
    setup = function(ctx, copies)
      local w, list = data.random("bf16", { n, k }, ctx.seed, name), {}
      local whole = require("nibble.quant_float").whole(scheme, 2, "bf16", "bf16")
      for i = 1, math.min(copies, 2) do -- do_bench uses one
        local there = assert(cuda.to(w, "cuda"))
        local q = assert(there:quantize { scheme = scheme_name })
        list[i] = function() assert(quant.methods.rtn.tile(q, there, scheme, {}, whole)) end
      end
      return list
    end,
  }
end

local function activation_benchmark(what, m, k)
  local name = ("quantize activations %s of bf16, %dx%d"):format(what, m, k)
  return timing.case {
    name = name, piece = "quantize", bytes = 3 * m * k + 4 * m, weight_bytes = 2 * m * k,
    setup = function(ctx, copies)
      local x, list = data.random("bf16", { m, k }, ctx.seed, name), {}
      for i = 1, copies do
        local there = assert(cuda.to(x, "cuda"))
        list[i] = function() return assert(marlin.quantize_activations(there, what)) end
      end
      return list
    end,
  }
end

local function benchmarks(ctx)
  local cases = {}
  local n, k, m = 28672, 8192, 4096
  if ctx.small then n, k, m = 4, 256, 2 end
  for _, scheme in ipairs { "W4A16", "FP8_DYNAMIC", "NVFP4A16", "MXFP4A16" } do cases[#cases + 1] = weight_benchmark(scheme, n, k) end
  for _, what in ipairs { "int8", "fp8" } do cases[#cases + 1] = activation_benchmark(what, m, k) end
  return cases
end

return { correctness = correctness, benchmarks = benchmarks }

-- Dequantization: every scheme, and words as they lie in files.
local nffi = require "nibble.ffi"
local cuda = require "nibble.cuda"
local tensor = require "nibble.tensor"
local checks = require "checks"
local data = require "data"
local timing = require "timing"
local C, must = nffi.C, nffi.must

local SCHEMES = { "W4A16", "W4A16_ASYM", "W8A16", "W3A16_ASYM", "W8A8", "W8A8_STATIC", "FP8", "FP8_DYNAMIC", "FP8_BLOCK", "NVFP4A16",
  "MXFP4A16", "MXFP8A16" }
local DTYPES = { "f32", "bf16", "f16" }

local function scheme_case(scheme, dtype, n, k, act_order)
  local name = ("dequantize %s%s to %s, %dx%d"):format(scheme, act_order and " act-order" or "", dtype, n, k)
  return checks.same {
    name = name,
    inputs = function(ctx)
      local importance = act_order and data.scales("f32", { k }, ctx.seed, name .. " importance") or nil
      local q = assert(data.random("bf16", { n, k }, ctx.seed, name):quantize { scheme = scheme, importance = importance,
        actorder = act_order and "group" or nil })
      return { q = q, on_device = assert(q:to "cuda") }
    end,
    device = function(i) return i.on_device:dequantize(dtype) end,
    cpu = function(i) return i.q:dequantize(dtype) end,
  }
end

-- Integers in a file's words: fields as cuda.dequantize takes them, and the codes u8 [n,k].
local function packed(packing, bits, n, k, seed, name)
  local codes = data.random("u8", { n, k }, seed, name, { keep = (2 ^ bits - 1) * 0x01010101, set = 0 })
  local words
  if packing == "ct" then
    words = tensor.new("i32", { n, math.ceil(k * bits / 32) })
    must(C.nb_ct_pack(words, codes, bits, 0))
  elseif packing == "gptq" then
    words = tensor.new("i32", { k * bits / 32, n })
    must(C.nb_gptq_pack(words, codes, bits, 0))
  else
    words = tensor.new("i32", { k, n * bits / 32 })
    must(C.nb_awq_pack(words, codes, bits, 0))
  end
  return { values = words, packing = packing, n = n, k = k, bits = bits, group = 128,
           scales = data.scales("bf16", { n, k / 128 }, seed, name),
           zeros = data.random("u8", { n, k / 128 }, seed, name .. "zeros", { keep = (2 ^ bits - 1) * 0x01010101, set = 0 }) }, codes
end

local function packed_case(packing, bits, dtype, n, k)
  local name = ("dequantize %s words, %d bits to %s, %dx%d"):format(packing, bits, dtype, n, k)
  return checks.same {
    name = name,
    inputs = function(ctx)
      local fields, codes = packed(packing, bits, n, k, ctx.seed, name)
      return { fields = fields, codes = codes, on_device = checks.on_device(fields) }
    end,
    device = function(i) return cuda.dequantize(i.on_device, { dtype = dtype }) end,
    cpu = function(i)
      local out = tensor.new(dtype, { n, k })
      must(C.nb_dequantize(out, i.codes, i.fields.scales, i.fields.zeros, nil, bits))
      return out
    end,
  }
end

local function correctness(ctx)
  local cases = {}
  for i, scheme in ipairs(SCHEMES) do
    for _, size in ipairs(ctx.small and { { 5, 256 } } or { { 37, 384 }, { 4096, 4096 } }) do
      for _, dtype in ipairs((ctx.small or size[1] > 100) and { DTYPES[i % 3 + 1] } or DTYPES) do
        local n = scheme == "FP8_BLOCK" and math.ceil(size[1] / 128) * 128 or size[1]
        cases[#cases + 1] = scheme_case(scheme, dtype, n, size[2])
      end
    end
  end
  cases[#cases + 1] = scheme_case("W4A16_ASYM", "bf16", 40, 512, true)
  for _, packing in ipairs { "ct", "gptq", "awq" } do
    for _, bits in ipairs { 4, 8 } do
      local n, k = 4096, 4096
      if ctx.small then n, k = 16, 256 end
      if packing ~= "awq" or bits == 4 then cases[#cases + 1] = packed_case(packing, bits, "bf16", n, k) end
    end
  end
  return cases
end

local function words_benchmark(packing, n, k)
  local name = ("dequantize %s words, 4 bits to bf16, %dx%d"):format(packing, n, k)
  local weight_bytes = n * k / 2 + n * k / 128 * 3
  return timing.case {
    name = name, piece = "dequantize", weight_bytes = weight_bytes, bytes = weight_bytes + 2 * n * k,
    setup = function(ctx, copies)
      local fields, list = packed(packing, 4, n, k, ctx.seed, name), {}
      for i = 1, copies do
        local there = checks.on_device(fields)
        list[i] = function() return assert(cuda.dequantize(there, { dtype = "bf16" })) end
      end
      return list
    end,
  }
end

local function scheme_benchmark(scheme, n, k)
  local name = ("dequantize %s to bf16, %dx%d"):format(scheme, n, k)
  return timing.case {
    name = name, piece = "dequantize", weight_bytes = n * k, bytes = 3 * n * k,
    setup = function(ctx, copies)
      local q, list = assert(data.random("bf16", { n, k }, ctx.seed, name):quantize { scheme = scheme }), {}
      for i = 1, copies do
        local there = assert(q:to "cuda")
        list[i] = function() return assert(there:dequantize "bf16") end
      end
      return list
    end,
  }
end

local function benchmarks(ctx)
  local n, k = 28672, 8192
  if ctx.small then n, k = 16, 256 end
  local cases = {}
  for _, packing in ipairs { "ct", "gptq", "awq" } do cases[#cases + 1] = words_benchmark(packing, n, k) end
  for _, scheme in ipairs { "FP8_DYNAMIC", "MXFP8A16" } do cases[#cases + 1] = scheme_benchmark(scheme, n, k) end
  return cases
end

return { correctness = correctness, benchmarks = benchmarks }

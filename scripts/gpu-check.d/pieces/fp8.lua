-- Products of FP8 codes with their scales, by nibble's own kernel and by cuBLASLt: against float64 on sampled rows and columns, the
-- same bits in every run; NVFP4 activations to the bit, and its products where the device has them.
local ffi = require "ffi"
local nffi = require "nibble.ffi"
local cuda = require "nibble.cuda"
local tensor = require "nibble.tensor"
local checks = require "checks"
local data = require "data"
local timing = require "timing"

local FEW = 16 -- rows of x that nibble's own kernel takes, wherever it runs
-- Hopper's FP8 tensor cores keep some 14 bits of the sums of 128 products, of which the documentation of cuBLASLt says nothing.
local LIBRARY = 2 ^ -13

local function groups(k) return math.ceil(k / 128) end

-- Shapes of scales by kind, and the index of the scale of a row and a column.
local KINDS = {
  tensor = { shape = function() return { 1 } end, at = function() return 0 end },
  row = { shape = function(rows) return { rows, 1 } end, at = function(r) return r end },
  group = { shape = function(rows, k) return { rows, groups(k) } end,
    at = function(r, c, k) return r * groups(k) + math.floor(c / 128) end },
  block = { shape = function(rows, k) return { groups(rows), groups(k) } end,
    at = function(r, c, k) return math.floor(r / 128) * groups(k) + math.floor(c / 128) end },
}

-- Codes from 2^-6 to 480 times a sign; NaN becomes the largest number.
local function codes(rows, k, seed, name)
  local t = data.random("f8_e4m3", { rows, k }, seed, name)
  local p = ffi.cast("uint8_t *", t.data)
  for i = 0, rows * k - 1 do if p[i] % 128 == 127 then p[i] = p[i] - 1 end end
  return t
end

local function operand(rows, k, kind, seed, name)
  return { codes = codes(rows, k, seed, name), scales = data.scales("f32", KINDS[kind].shape(rows, k), seed, name .. " scales"),
           kind = KINDS[kind], k = k }
end

-- Row r of codes times scales, f64 [k].
local function numbers(o, r)
  local out = ffi.new("double[?]", o.k)
  for c = 0, o.k - 1 do out[c] = o.codes:get(r * o.k + c + 1) * o.scales:get(o.kind.at(r, c, o.k) + 1) end
  return out
end

local function product_case(m, n, k, of_x, of_w, dtype, with_bias)
  local name = ("fp8 product %s x %s to %s%s, %dx%dx%d"):format(of_x, of_w, dtype, with_bias and " bias" or "", m, n, k)
  return { name = name, run = function(ctx)
    local x, w = operand(m, k, of_x, ctx.seed, name), operand(n, k, of_w, ctx.seed, name .. " w")
    local bias = with_bias and data.random(dtype, { n }, ctx.seed, name .. " bias") or nil
    local there = checks.on_device { x = x.codes, xs = x.scales, w = w.codes, ws = w.scales, bias = bias }
    local first, runs = checks.again(ctx, name, function()
      local y = assert(cuda.new("cuda", dtype, { m, n }))
      return assert(cuda.fp8_gemm(y, there.x, there.xs, there.w, there.ws, there.bias))
    end)
    return { runs = runs, error_of_bound = checks.product { m = m, n = n, k = k, y = first, dtype = dtype, bias = bias,
      loose = m > FEW and LIBRARY or nil, row = function(r) return numbers(x, r) end, column = function(c) return numbers(w, c) end } }
  end }
end

-- Codes two to a byte and swizzled scales; and, on the device, the product of two of them.
local function fp4_case(dtype, m, k)
  local name = ("quantize activations fp4 of %s, %dx%d"):format(dtype, m, k)
  return checks.same {
    name = name,
    inputs = function(ctx)
      local x = data.random(dtype, { m, k }, ctx.seed, name)
      return { x = x, on_device = assert(cuda.to(x, "cuda")) }
    end,
    device = function(i) return cuda.fp4_activations(i.on_device, 100) end,
    cpu = function(i)
      local q = tensor.new("u8", { m, k / 2 })
      local s = tensor.new("f8_e4m3", { math.ceil(m / 128) * 128, math.ceil(k / 64) * 4 })
      nffi.must(nffi.C.nb_act_quant_fp4(q, s, i.x, 100))
      return q, s
    end,
  }
end

local function correctness(ctx)
  if ctx.small then
    return { product_case(3, 40, 160, "row", "row", "bf16"), product_case(20, 16, 272, "group", "block", "bf16", true),
      fp4_case("bf16", 3, 80) }
  end
  local cases = {}
  for i, m in ipairs { 1, 2, 8, 9, 16, 17, 20, 33, 64, 129, 1000 } do
    local dtype = i % 2 == 0 and "f16" or "bf16"
    cases[#cases + 1] = product_case(m, 1088, 4096, "tensor", "tensor", dtype, i % 3 == 0)
    cases[#cases + 1] = product_case(m, 1088, 4096, "row", "row", dtype, i % 3 == 1)
    cases[#cases + 1] = product_case(m, 1088, 4096, "group", "block", dtype, i % 3 == 2)
  end
  for _, pair in ipairs { { "tensor", "row" }, { "row", "tensor" }, { "group", "row" }, { "row", "block" }, { "tensor", "block" } } do
    for _, m in ipairs { 7, 40 } do cases[#cases + 1] = product_case(m, 1000, 2064, pair[1], pair[2], "f32") end
  end
  for _, dtype in ipairs { "f32", "bf16", "f16" } do
    for _, size in ipairs { { 1, 8192 }, { 130, 4096 + 16 } } do cases[#cases + 1] = fp4_case(dtype, size[1], size[2]) end
  end
  return cases
end

-- Against the same baseline with the same kind of scales.
local function benchmark(piece, of_x, of_w, k, n, m)
  local name = ("fp8 product %s x %s %dx%d m=%d"):format(of_x, of_w, k, n, m)
  return timing.case {
    name = name, piece = piece, m = m, n = n, k = k, weight_bytes = k * n, bytes = k * n + m * k + 2 * m * n, flops = 2 * m * n * k,
    setup = function(ctx, copies)
      local x, w, list = operand(m, k, of_x, ctx.seed, name), operand(n, k, of_w, ctx.seed, name .. " w"), {}
      local there = checks.on_device { x = x.codes, xs = x.scales, ws = w.scales }
      for i = 1, copies do
        local weight = assert(cuda.to(w.codes, "cuda"))
        list[i] = function()
          return assert(cuda.fp8_gemm(assert(cuda.new("cuda", "bf16", { m, n })), there.x, there.xs, weight, there.ws))
        end
      end
      return list
    end,
  }
end

local function benchmarks(ctx)
  if ctx.small then return { benchmark("fp8", "tensor", "tensor", 256, 64, 2), benchmark("fp8 rows", "row", "row", 256, 64, 20) } end
  local cases = {}
  for _, size in ipairs { { 8192, 28672 }, { 4096, 14336 } } do
    for _, m in ipairs { 1, 16, 64, 1024, 4096 } do
      cases[#cases + 1] = benchmark("fp8", "tensor", "tensor", size[1], size[2], m)
      cases[#cases + 1] = benchmark("fp8 rows", "row", "row", size[1], size[2], m)
    end
    cases[#cases + 1] = benchmark("fp8 blocks", "group", "block", size[1], size[2], 16)
    cases[#cases + 1] = benchmark("fp8 blocks", "group", "block", size[1], size[2], 1024)
  end
  return cases
end

return { correctness = correctness, benchmarks = benchmarks }

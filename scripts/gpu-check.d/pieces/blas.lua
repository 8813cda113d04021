-- Products of floats by cuBLASLt: against float64 on sampled rows and columns.
local ffi = require "ffi"
local cuda = require "nibble.cuda"
local checks = require "checks"
local data = require "data"

local function numbers(t, row, k)
  local out = ffi.new("double[?]", k)
  for i = 0, k - 1 do out[i] = t:get(row * k + i + 1) end
  return out
end

local function case(dtype, y_dtype, m, n, k, with_bias)
  local name = ("cuBLASLt %s to %s%s, %dx%dx%d"):format(dtype, y_dtype, with_bias and " bias" or "", m, n, k)
  return { name = name, run = function(ctx)
    local library, why = cuda.cublaslt()
    if not library then return { status = "skipped", why = why } end
    local x, w = data.random(dtype, { m, k }, ctx.seed, name), data.random(dtype, { n, k }, ctx.seed, name .. " w")
    local bias = with_bias and data.random(y_dtype, { n }, ctx.seed, name .. " bias") or nil
    local there = checks.on_device { x = x, w = w, bias = bias }
    local first, runs = checks.again(ctx, name, function()
      local y = assert(cuda.new("cuda", y_dtype, { m, n }))
      return assert(cuda.gemm(y, there.x, there.w, there.bias))
    end)
    return { library = library, runs = runs, error_of_bound = checks.product {
      m = m, n = n, k = k, y = first, dtype = y_dtype, row = function(r) return numbers(x, r, k) end,
      column = function(c) return numbers(w, c, k) end, bias = bias } }
  end }
end

local function correctness(ctx)
  if ctx.small then return { case("bf16", "bf16", 5, 24, 64, true), case("f32", "f32", 3, 16, 40) } end
  return { case("bf16", "bf16", 1000, 1088, 4096), case("f16", "f16", 33, 1088, 4096, true), case("bf16", "f32", 129, 1024, 4096, true),
           case("f32", "f32", 65, 512, 2048) }
end

return { correctness = correctness }

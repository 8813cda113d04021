-- products: what the pieces of products with Marlin's weights have in common: x W against float64 on sampled rows and columns,
-- the same bits in every run; and its benchmark, over copies of the weight.
local ffi = require "ffi"
local cuda = require "nibble.cuda"
local gemm = require "nibble.gemm"
local checks = require "checks"
local data = require "data"
local timing = require "timing"

local M = {}

local LARGE = 256 -- more rows of x than that are multiplied by floats of the weight, by cuBLASLt

--- correctness(c, name, o) -> case
-- c: m, n, k, dtype; o.weight_of(c, seed) -> w: a weight in the computer's memory, of which w.bias is the bias or nil;
-- o.prepared(c, w): as gemm.marlin takes it, on the device; o.column(c, w, col): its column, f64 [k].
function M.correctness(c, name, o)
  return { name = name, run = function(ctx)
    local w, x = o.weight_of(c, ctx.seed), data.random(c.dtype, { c.m, c.k }, ctx.seed, name .. " x")
    local m, there = o.prepared(c, w), assert(cuda.to(x, "cuda"))
    local first, runs = checks.again(ctx, name, function() return assert(gemm.marlin(there, m)) end)
    local function row(r)
      local out = ffi.new("double[?]", c.k)
      for k = 0, c.k - 1 do out[k] = x:get(r * c.k + k + 1) end
      return out
    end
    return { runs = runs, error_of_bound = checks.product { m = c.m, n = c.n, k = c.k, y = first, dtype = c.dtype, bias = w.bias,
      rounded = c.m > LARGE, row = row, column = function(col) return o.column(c, w, col) end } }
  end }
end

--- copies(first, count) -> array of weights on the device, as gemm.marlin takes them: first's, each with words of its own
function M.copies(first, count)
  local words, list = first.words:to "cpu", {}
  for i = 1, count do
    list[i] = setmetatable({ words = i > 1 and assert(cuda.to(words, "cuda")) or nil }, { __index = first })
  end
  return list
end

--- benchmark(c, name, piece, weight_bytes, weights) -> case: x in bf16 times each of weights(ctx, copies)
-- c: m, n, k; weight_bytes: of one.
function M.benchmark(c, name, piece, weight_bytes, weights)
  return timing.case {
    name = name, piece = piece, m = c.m, n = c.n, k = c.k, weight_bytes = weight_bytes,
    bytes = weight_bytes + 2 * c.m * (c.k + c.n), flops = 2 * c.m * c.n * c.k,
    setup = function(ctx, copies)
      local list, x = {}, assert(cuda.to(data.random("bf16", { c.m, c.k }, ctx.seed, name), "cuda"))
      for i, weight in ipairs(weights(ctx, copies)) do
        list[i] = function() return assert(gemm.marlin(x, weight)) end
      end
      return list
    end,
  }
end

return M

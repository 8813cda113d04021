-- The forward pass: products as a share of this machine's multiply-add peak, the
-- other operations as a share of its copy rate, and whole evaluations.
local nb = require "nibble"
local C = require("nibble.ffi").C
local compute = nb.compute

local M, K = 4096, 1024

local function best_of(n, f)
  local best = math.huge
  f()
  for _ = 1, n do
    local start = C.nb_now()
    f()
    best = math.min(best, C.nb_now() - start)
  end
  return best
end

local function row(what, threads, value, unit, share)
  print(("  %-34s %dT  %8.2f %-9s %s"):format(what, threads, value, unit, share and ("%3.0f %% of peak"):format(100 * share) or ""))
end

local function products(threads)
  local peak = compute.peak_flops(threads)
  row("multiply-add peak, measured", threads, peak / 1e9, "Gflop/s")
  local x = nb.tensor("f32", { M, K })
  for _, n in ipairs { 256, 1024, 4096 } do
    local y = nb.tensor("f32", { M, n })
    for _, dtype in ipairs { "f32", "bf16" } do
      local w = nb.tensor(dtype, { n, K })
      local rate = 2 * M * n * K / best_of(3, function() compute.gemm(y, x, w) end)
      row(("gemm %d×%d×%d %s"):format(M, n, K, dtype), threads, rate / 1e9, "Gflop/s", rate / peak)
    end
  end
  local out, kv = nb.tensor("f32", { M, K }), nb.tensor("f32", { M, K / 4 })
  for _, length in ipairs { 256, 2048 } do
    local o = { heads = K / 64, kv_heads = K / 256, length = length }
    local rate = 2 * M * length * K / best_of(3, function() compute.attention(out, x, kv, kv, o) end)
    row(("attention, length %d (causal half)"):format(length), threads, rate / 1e9, "Gflop/s", rate / peak)
  end
end

local function evaluation(threads)
  local ids = "spec/models/eval/test_tokens.safetensors"
  for _, name in ipairs { "tiny-llama", "tiny-moe" } do
    local ck = assert(nb.open("spec/models/" .. name))
    local r = assert(nb.eval.run { model = ck, ids = ids, context = 256 })
    row(("eval %s, %d tokens: %.2f s"):format(name, r.tokens, r.seconds), threads, r.tokens_per_second, "tokens/s")
  end
end

return {
  title = "forward pass and evaluation",
  run = function()
    print("  " .. compute.blas())
    for threads = 1, math.min(2, C.nb_threads()) do
      C.nb_threads_set(threads)
      products(threads)
    end
    evaluation(C.nb_threads())
    C.nb_threads_set(0)
  end,
}

-- Experts at 512 tokens, the top 2 of 8, hidden 2048: what routing, alignment and the loop
-- around the products cost beside the products themselves, and 4-bit experts against float.
local nb = require "nibble"
local nffi = require "nibble.ffi"
local w4a8 = require "nibble.methods.w4a8_moe"
local C, must = nffi.C, nffi.must
local moe, compute = nb.moe, nb.compute

local TOKENS, EXPERTS, TOP, HIDDEN = 512, 8, 2, 2048
local BOUND = 0.05

local function filled(shape, scale)
  local t = nb.tensor("f32", shape)
  local p, state = t:ptr(), 1
  for i = 0, t:numel() - 1 do
    state = (state * 1103515245 + 12345) % 2 ^ 31
    p[i] = (state / 2 ^ 31 - 0.5) * scale
  end
  return t
end

-- A product [n,k] per expert, in float, and a clock that sums what it takes. One matrix serves all experts.
local function timed(clock, n, k)
  local w = filled({ n, k }, 0.05)
  return function(_, x, room)
    local y, start = room("y" .. n, x:size(1), n), C.nb_now()
    compute.gemm(y, x, w)
    clock.products = clock.products + C.nb_now() - start
    return y
  end
end

local function share(intermediate, threads)
  local clock = {}
  local x, logits = filled({ TOKENS, HIDDEN }, 4), filled({ TOKENS, EXPERTS }, 4)
  local w13, w2 = timed(clock, 2 * intermediate, HIDDEN), timed(clock, HIDDEN, intermediate)
  local shares = {}
  for turn = 0, 5 do
    clock.products = 0
    local start = C.nb_now()
    local weights, ids = moe.route(logits, { top = TOP, normalize = true })
    moe.align(ids, moe.block_size { tokens = TOKENS, top = TOP, experts = EXPERTS }, EXPERTS)
    moe.forward(x, { ids = ids, weights = weights, experts = EXPERTS, w13 = w13, w2 = w2 }):free()
    local total = C.nb_now() - start
    if turn > 0 then shares[turn] = { value = (total - clock.products) / clock.products, total = total, products = clock.products } end
  end
  table.sort(shares, function(a, b) return a.value < b.value end)
  local m = shares[math.ceil(#shares / 2)]
  print(("  intermediate %4d  %dT  products %7.1f ms, the rest %5.1f ms: %4.1f %% of them  %s"):format(intermediate, threads,
    m.products * 1e3, (m.total - m.products) * 1e3, 100 * m.value,
    m.value < BOUND and "(below 5 %)" or "ABOVE 5 %"))
end

local function packed(n, k, group)
  local codes = nb.tensor("i8", { n, k })
  for i = 0, n * k - 1 do codes:ptr()[i] = i * 7919 % 16 - 8 end
  return assert(w4a8.pack(codes, nb.tensor("f32", { n, group == -1 and 1 or k / group }):fill(0.01), nil, group))
end

local function against_float(ctx, m, n, k, group, threads)
  local x, w, q, y = filled({ m, k }, 4), filled({ n, k }, 0.05), packed(n, k, group), nb.tensor("f32", { m, n })
  local r = ctx.compare({ { run = function() compute.gemm(y, x, w) end },
    { run = function() must(C.nb_w4a8_gemm(y, x, q, group)) end } }, { reps = 9, seconds = 3 })
  print(("  int4 x int8 %4d x %d x %d, %s  %dT  %7.2f ms  %5.1f Gmac/s  %4.1f times the float product"):format(m, n, k,
    group == -1 and "a scale a row  " or "groups of " .. group, threads, r[2].median * 1e3, m * n * k / r[2].median / 1e9, r[2].ratio))
end

return {
  title = ("experts: %d tokens, the top %d of %d, hidden %d"):format(TOKENS, TOP, EXPERTS, HIDDEN),
  run = function(ctx)
    for _, threads in ipairs(ctx.threads) do
      C.nb_threads_set(threads)
      for _, intermediate in ipairs { 5632, 1408 } do share(intermediate, threads) end
    end
    for _, threads in ipairs(ctx.threads) do
      C.nb_threads_set(threads)
      for _, m in ipairs { 1, 128 } do
        against_float(ctx, m, 5632, HIDDEN, 128, threads)
        against_float(ctx, m, HIDDEN, 5632, -1, threads)
      end
    end
  end,
}

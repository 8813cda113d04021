-- A mixture's tokens: the router, blocks and batches by expert, activations, sums: byte for byte the CPU's.
local moe = require "nibble.moe"
local there = require "nibble.cuda.moe"
local tensor = require "nibble.tensor"
local checks = require "checks"
local data = require "data"
local timing = require "timing"

local LIMITED = { swigluoai_uninterleave = 1.5 } -- of values up to 2; others have theirs, or none

-- Experts 0 to n-1, a power of two.
local function ids_of(tokens, top, n, seed, name) return data.random("i32", { tokens, top }, seed, name, { keep = n - 1, set = 0 }) end

local function case(name, inputs, device, cpu)
  return checks.same {
    name = name,
    inputs = function(ctx)
      local here = inputs(ctx.seed, name)
      return { here = here, there = checks.on_device(here) }
    end,
    device = function(i) return device(i.there) end,
    cpu = function(i) return (cpu or device)(i.here) end,
  }
end

local ROUTERS = {
  { experts = 8, top = 2, normalize = true },
  { experts = 256, top = 8, scoring = "sigmoid", groups = 8, top_groups = 4, normalize = true, scale = 2.5, biased = true },
  { experts = 160, top = 6, groups = 8, top_groups = 3, scale = 16 },
  { experts = 60, top = 4 },
}

local function router_inputs(r, dtype, tokens, seed, name)
  local bias = r.biased and data.random("f32", { r.experts }, seed, "bias") or nil
  return { logits = data.random(dtype, { tokens, r.experts }, seed, name), bias = bias }
end

local function routed(r, t)
  local o = { bias = t.bias }
  for k, v in pairs(r) do o[k] = v end
  return moe.route(t.logits, o)
end

local function route_case(r, dtype, tokens)
  local name = ("moe: route %d of %d, %s%s, %d tokens of %s"):format(r.top, r.experts, r.scoring or "softmax",
    r.groups and ", in groups" or "", tokens, dtype)
  return case(name, function(seed) return router_inputs(r, dtype, tokens, seed, name) end, function(t) return routed(r, t) end)
end

local function align_case(tokens, top, experts, block)
  local name = ("moe: align %dx%d to %d, blocks of %d"):format(tokens, top, experts, block)
  return case(name, function(seed) return { ids = ids_of(tokens, top, experts, seed, name) } end,
    function(t)
      local sorted, owners, total = moe.align(t.ids, block, experts)
      return sorted, owners, type(total) == "number" and tensor.new("i32", { 1 }, { total }) or total
    end)
end

local function activation_case(kind, dtype, rows, n)
  local name = ("moe: %s of %s, %dx%d"):format(kind, dtype, rows, n)
  local o = { dtype = dtype, limit = LIMITED[kind] }
  return case(name, function(seed) return { h = data.random(dtype, { rows, moe.gated(kind) and 2 * n or n }, seed, name) } end,
    function(t) return moe.activation(kind, t.h, o) end,
    function(t)
      local y = moe.activation(kind, t.h:cast "f32", o)
      return dtype == "f32" and y or y:cast(dtype)
    end)
end

local function batch_case(dtype, tokens, top, experts, hidden)
  local name = ("moe: batches and their sums, %s %dx%d, %d of %d"):format(dtype, tokens, hidden, top, experts)
  return case(name, function(seed)
    return { x = data.random(dtype, { tokens, hidden }, seed, name), ids = ids_of(tokens, top, experts, seed, name),
             weights = data.random("f32", { tokens, top }, seed, "weights") }
  end, function(t)
    local batch, counts, places = moe.dispatch(t.x, t.ids, experts)
    return moe.combine(batch, places, t.weights), counts, places
  end)
end

local function correctness(ctx)
  local cases = {}
  local function add(c) cases[#cases + 1] = c end
  for i, r in ipairs(ROUTERS) do
    for _, tokens in ipairs(ctx.small and { 5 } or { 1, 33, 4096 }) do
      add(route_case(r, ({ "f32", "bf16", "f16" })[i % 3 + 1], tokens))
    end
  end
  local aligned = { { 1, 2, 8, 16 }, { 16, 2, 8, 16 }, { 4096, 8, 256, 64 }, { 131072, 8, 4096, 16 } }
  for _, c in ipairs(ctx.small and { { 5, 2, 8, 16 } } or aligned) do
    add(align_case(c[1], c[2], c[3], c[4]))
  end
  for i, kind in ipairs(moe.activations()) do
    for j, dtype in ipairs { "f32", "bf16", "f16" } do
      for _, size in ipairs(ctx.small and { { 3, 72 } } or { { 1, 33 }, { 300, 14336 } }) do
        if not ctx.small or i % 3 + 1 == j then add(activation_case(kind, dtype, size[1], size[2])) end
      end
    end
  end
  for _, c in ipairs(ctx.small and { { 5, 2, 8, 64 } } or { { 7, 8, 64, 4096 }, { 300, 2, 8, 4104 }, { 64, 8, 256, 7168 } }) do
    add(batch_case(c[1] % 2 == 0 and "bf16" or "f16", c[1], c[2], c[3], c[4]))
  end
  return cases
end

-- A benchmark of call(tensors on the device), which gives one tensor.
local function benchmark(name, m, bytes, inputs, call)
  return timing.case {
    name = name, piece = "moe_tokens", m = m, bytes = bytes,
    weight_bytes = math.max(bytes, 2 ^ 24), -- not thousands of copies of little
    setup = function(ctx, copies)
      local here, list = inputs(ctx.seed, name), {}
      for i = 1, copies do
        local t = checks.on_device(here)
        list[i] = function() return (call(t)) end
      end
      return list
    end,
  }
end

local function benchmarks(ctx)
  local cases = {}
  for _, m in ipairs(ctx.small and { 2 } or { 1, 4096 }) do
    local hidden, n, top, experts = 4096, 14336, 2, 8
    if ctx.small then hidden, n = 64, 64 end
    local pairs_ = m * top
    for _, kind in ipairs { "silu", "swigluoai", "gelu" } do
      local name = ("moe: %s of bf16, %dx%d"):format(kind, pairs_, n)
      cases[#cases + 1] = benchmark(name, m, 6 * pairs_ * n, function(seed)
        return { h = data.random("bf16", { pairs_, 2 * n }, seed, name) }
      end, function(t) return moe.activation(kind, t.h) end)
    end
    local sum = ("moe: sum of %d, bf16 %dx%d"):format(top, m, hidden)
    cases[#cases + 1] = benchmark(sum, m, 2 * (pairs_ + m) * hidden, function(seed)
      return { x = data.random("bf16", { pairs_, hidden }, seed, sum), ids = ids_of(m, top, experts, seed, sum) }
    end, function(t) return there.sum(t.x, t.ids, nil, experts) end)
    for _, r in ipairs { ROUTERS[1], ROUTERS[2] } do
      local name = ("moe: route %d of %d, %d tokens"):format(r.top, r.experts, m)
      cases[#cases + 1] = benchmark(name, m, m * (4 * r.experts + 8 * r.top), function(seed)
        return router_inputs(r, "f32", m, seed, name)
      end, function(t) return routed(r, t) end)
      local align = ("moe: align %dx%d to %d"):format(m, r.top, r.experts)
      cases[#cases + 1] = benchmark(align, m, 8 * m * r.top, function(seed) return { ids = ids_of(m, r.top, r.experts, seed, align) } end,
        function(t) return moe.align(t.ids, 16, r.experts) end)
    end
  end
  return cases
end

return { correctness = correctness, benchmarks = benchmarks }

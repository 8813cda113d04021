-- The loop over experts against plain Lua doubles: every way of weighting, mapping,
-- batching and rounding, with results that don't depend on threads or chunks.
local nb = require "nibble"
local C = require("nibble.ffi").C
local numbers = require "spec.support.numbers"
local moe, compute = nb.moe, nb.compute

local function random(shape, seed, span) return numbers.random(shape, seed, span or 1) end

local function randint(shape, seed, count)
  math.randomseed(seed)
  local t = nb.tensor("i32", shape)
  for i = 1, t:numel() do t:set(i, math.random(0, count - 1)) end
  return t
end

-- A layer of E experts: weights f32 [E, s*I, H] and [E, H, I], biases or nil, and o's w13 and w2.
local function layer(E, H, I, o)
  o = o or {}
  local s = o.gated == false and 1 or 2
  local L = { E = E, H = H, I = I, s = s, w13 = random({ E, s * I, H }, 1), w2 = random({ E, H, I }, 2) }
  if o.bias then L.b13, L.b2 = random({ E, s * I }, 3), random({ E, H }, 4) end
  local function product(w, b)
    return function(e, x)
      local n = w:size(2)
      return compute.gemm(nb.tensor("f32", { x:size(1), n }), x, w:rows(e + 1, e + 1):reshape { n, w:size(3) },
        b and b:rows(e + 1, e + 1):reshape { n })
    end
  end
  L.first, L.second = product(L.w13, L.b13), product(L.w2, L.b2)
  function L.with(more)
    local all = { experts = E, w13 = L.first, w2 = L.second }
    for k, v in pairs(more) do all[k] = v end
    return all
  end
  return L
end

-- W x + b of expert e (0-based), in doubles.
local function times(w, b, e, x)
  local n, k, y = w:size(2), w:size(3), {}
  for r = 1, n do
    local sum = b and b:get(e * n + r) or 0
    for c = 1, k do sum = sum + w:get((e * n + r - 1) * k + c) * x[c] end
    y[r] = sum
  end
  return y
end

local function silu(x) return x / (1 + math.exp(-x)) end

-- y in doubles, flat. o: ids, weights, map (table of global -> local), on_input = true | "after_w13".
local function reference(L, x, o)
  local T, k, y = x:size(1), o.ids:size(2), {}
  for t = 0, T - 1 do
    for h = 1, L.H do y[t * L.H + h] = 0 end
    for j = 1, k do
      local id, w = o.ids:get(t * k + j), o.weights:get(t * k + j)
      local e = o.map and (o.map[id + 1] or -1) or id
      if e >= 0 and e < L.E then
        local row, before = {}, o.on_input == true and w or 1
        for h = 1, L.H do row[h] = x:get(t * L.H + h) * before end
        local g, a = times(L.w13, L.b13, e, row), {}
        local middle = o.on_input == "after_w13" and w or 1
        for i = 1, L.I do
          if L.s == 2 then a[i] = silu(g[i] * middle) * g[L.I + i] * middle else a[i] = math.max(g[i] * middle, 0) ^ 2 end
        end
        local out = times(L.w2, L.b2, e, a)
        for h = 1, L.H do y[t * L.H + h] = y[t * L.H + h] + out[h] * (o.on_input and 1 or w) end
      end
    end
  end
  return y
end

-- Token by token: `top` different experts of `count`.
local function choose(T, top, count, seed)
  return moe.route(random({ T, count }, seed, 6), { top = top, normalize = true })
end

describe("moe.forward", function()
  for _, top in ipairs { 1, 2, 4 } do
    for _, T in ipairs { 1, 9 } do
      it(("FWD-01: is the weighted sum over %d experts, %d tokens"):format(top, T), function()
        for _, bias in ipairs { false, true } do
          local L = layer(6, 12, 10, { bias = bias })
          local x = random({ T, 12 }, 9, 4)
          local weights, ids = choose(T, top, 6, 11)
          local y = moe.forward(x, L.with { ids = ids, weights = weights })
          assert.same({ T, 12 }, y:size())
          numbers.all_near(reference(L, x, { ids = ids, weights = weights }), y, 1e-5)
        end
      end)
    end
  end

  it("FWD-01: the weight multiplies the second bias too, and a token may name an expert twice", function()
    local L = layer(2, 4, 3, { bias = true })
    local x = random({ 2, 4 }, 1)
    local ids = nb.tensor("i32", { 2, 3 }, { 1, 1, 0, 0, 0, 0 })
    local weights = nb.tensor("f32", { 2, 3 }, { 2, 3, -1, 0.5, 0.25, 0 })
    numbers.all_near(reference(L, x, { ids = ids, weights = weights }), moe.forward(x, L.with { ids = ids, weights = weights }), 1e-5)
  end)

  it("FWD-01, FWD-03: experts elsewhere and ids outside the map contribute nothing", function()
    local L = layer(3, 8, 6, { bias = true })
    local x, weights = random({ 7, 8 }, 2), random({ 7, 2 }, 3)
    local map = { -1, 2, 0, -1, 1 }
    local ids = randint({ 7, 2 }, 4, 5)
    ids:set(1, 99)
    ids:set(2, -1)
    local o = L.with { ids = ids, weights = weights, expert_map = nb.tensor("i32", { 5 }, map) }
    local y = moe.forward(x, o)
    numbers.all_near(reference(L, x, { ids = ids, weights = weights, map = map }), y, 1e-5)
    for h = 1, 8 do assert.equal(0, y:get(h)) end
    -- Without a map global and local ids are the same.
    o.expert_map = nil
    numbers.all_near(reference(L, x, { ids = ids, weights = weights }), moe.forward(x, o), 1e-5)
    o.strict = true
    assert.error_matches(function() moe.forward(x, o) end, "expert 99 at place 0 is outside the 3 experts")
  end)

  it("FWD-03: two halves of the experts add up to all of them", function()
    local L = layer(4, 8, 6, { bias = true })
    local x = random({ 5, 8 }, 2)
    local weights, ids = choose(5, 2, 4, 5)
    local whole = moe.forward(x, L.with { ids = ids, weights = weights })
    local sum = nb.tensor("f32", { 5, 8 })
    for rank, map in ipairs { { 0, 1, -1, -1 }, { -1, -1, 0, 1 } } do
      local function shifted(f) return function(e, r) return f(e + (rank - 1) * 2, r) end end
      compute.add(sum, moe.forward(x, { experts = 2, w13 = shifted(L.first), w2 = shifted(L.second), ids = ids,
        weights = weights, expert_map = nb.tensor("i32", { 4 }, map) }))
    end
    numbers.all_near(whole:totable(), sum, 1e-6)
  end)

  it("FWD-01: experts without tokens are not asked, and no tokens give no rows", function()
    local L = layer(4, 8, 6)
    local asked, begun = {}, {}
    local ids, weights = nb.tensor("i32", { 3, 1 }, { 2, 0, 2 }), nb.tensor("f32", { 3, 1 }, { 1, 2, 3 })
    local o = L.with { ids = ids, weights = weights, begin = function(e) begun[#begun + 1] = e end,
      done = function(e) begun[#begun + 1] = -e end }
    o.w13 = function(e, x)
      asked[#asked + 1] = e .. ":" .. x:size(1)
      return L.first(e, x)
    end
    moe.forward(random({ 3, 8 }, 1), o)
    assert.same({ "0:1", "2:2" }, asked)
    assert.same({ 0, -0, 2, -2 }, begun)
    local none = moe.forward(nb.tensor("f32", { 0, 8 }), L.with { ids = nb.tensor("i32", { 0, 2 }), weights = nb.tensor("f32", { 0, 2 }) })
    assert.same({ 0, 8 }, none:size())
  end)

  it("FWD-02, C-20: the router weight on the input, once, for one expert a token", function()
    local L = layer(4, 8, 6, { bias = true })
    local x = random({ 5, 8 }, 2)
    local weights, ids = random({ 5, 1 }, 3, 3), randint({ 5, 1 }, 4, 4)
    local o = L.with { ids = ids, weights = weights, router_weight_on_input = true }
    numbers.all_near(reference(L, x, { ids = ids, weights = weights, on_input = true }), moe.forward(x, o), 1e-5)
    -- The Marlin kernel's way: w13's output, bias included.
    o.router_weight_on_input = "after_w13"
    numbers.all_near(reference(L, x, { ids = ids, weights = weights, on_input = "after_w13" }), moe.forward(x, o), 1e-5)
    -- Without a bias of w13 both are the same.
    local plain = layer(4, 8, 6)
    local a = moe.forward(x, plain.with { ids = ids, weights = weights, router_weight_on_input = true })
    local b = moe.forward(x, plain.with { ids = ids, weights = weights, router_weight_on_input = "after_w13" })
    numbers.all_near(a:totable(), b, 1e-6)
    local two = { ids = randint({ 5, 2 }, 4, 4), weights = random({ 5, 2 }, 5), router_weight_on_input = true }
    assert.error_matches(function() moe.forward(x, L.with(two)) end, "only where each token has 1 expert, found 2")
    two.any_top = true
    numbers.all_near(reference(L, x, { ids = two.ids, weights = two.weights, on_input = true }), moe.forward(x, L.with(two)), 1e-5)
  end)

  it("FWD-01: ungated experts, and gate and up apart", function()
    local L = layer(3, 8, 6, { gated = false, bias = true })
    local x = random({ 5, 8 }, 2)
    local weights, ids = choose(5, 2, 3, 6)
    numbers.all_near(reference(L, x, { ids = ids, weights = weights }),
      moe.forward(x, L.with { ids = ids, weights = weights, activation = "relu2_no_mul", gated = false }), 1e-5)
    local G = layer(3, 8, 6)
    local whole = moe.forward(x, G.with { ids = ids, weights = weights })
    local o = G.with { ids = ids, weights = weights }
    o.w13 = function(e, rows)
      local w, parts = G.w13:rows(e + 1, e + 1):reshape { 12, 8 }, {}
      for i = 1, 2 do parts[i] = compute.gemm(nb.tensor("f32", { rows:size(1), 6 }), rows, w:rows(i * 6 - 5, i * 6)) end
      return parts[1], parts[2]
    end
    numbers.all_near(whole:totable(), moe.forward(x, o), 1e-6)
  end)

  it("FWD-06: the activation's limit, alpha and beta reach it", function()
    local L = layer(2, 8, 6)
    local x, ids, weights = random({ 3, 8 }, 2, 30), randint({ 3, 1 }, 1, 2), random({ 3, 1 }, 2)
    local o = L.with { ids = ids, weights = weights, activation = "swigluoai_uninterleave", limit = 2, alpha = 1.5, beta = 0.5 }
    local y = moe.forward(x, o)
    for t = 0, 2 do
      local e, row = ids:get(t + 1), {}
      for h = 1, 8 do row[h] = x:get(t * 8 + h) end
      local g, a = times(L.w13, nil, e, row), {}
      for i = 1, 6 do
        local gc = math.min(g[i], 2)
        a[i] = gc / (1 + math.exp(-1.5 * gc)) * (math.max(-2, math.min(g[6 + i], 2)) + 0.5)
      end
      local out = times(L.w2, nil, e, a)
      for h = 1, 8 do assert(math.abs(out[h] * weights:get(t + 1) - y:get(t * 8 + h)) < 1e-5) end
    end
  end)

  it("FWD-01: a 16-bit x is rounded where a kernel stores its values, and nowhere else", function()
    local L = layer(3, 16, 12, { bias = true })
    for _, dtype in ipairs { "f16", "bf16" } do
      local x = random({ 6, 16 }, 2, 4):cast(dtype)
      local weights, ids = choose(6, 2, 3, 6)
      local y = moe.forward(x, L.with { ids = ids, weights = weights })
      assert.equal(dtype, y:type())
      numbers.all_near(reference(L, x:cast "f32", { ids = ids, weights = weights }), y, dtype == "f16" and 4e-3 or 4e-2)
      local function round(t) return t:cast(dtype):cast "f32" end
      local sum = nb.tensor("f32", { 6, 16 })
      for e = 0, 2 do
        for t = 1, 6 do
          for j = 1, 2 do
            if ids:get((t - 1) * 2 + j) == e then
              local h = round(L.first(e, x:rows(t, t):cast "f32"))
              local out = L.second(e, round(moe.activation("silu", h)))
              local w = weights:reshape({ 12 }):rows((t - 1) * 2 + j, (t - 1) * 2 + j)
              compute.add(sum:rows(t, t), round(compute.scale_rows(out, w)))
            end
          end
        end
      end
      -- A product of one row may differ in the last place from the same row among others: before rounding only.
      numbers.all_near(sum:totable(), y:cast "f32", dtype == "f16" and 2e-3 or 2e-2)
      local wide = moe.forward(x, L.with { ids = ids, weights = weights, dtype = "f32" })
      numbers.all_near(reference(L, x:cast "f32", { ids = ids, weights = weights }), wide, 1e-5)
    end
  end)

  it("FWD-14: writes over x only when told to", function()
    local L = layer(3, 8, 6, { bias = true })
    for _, dtype in ipairs { "f32", "bf16" } do
      local x = random({ 9, 8 }, 2, 4):cast(dtype)
      local weights, ids = choose(9, 2, 3, 6)
      local before = x:clone()
      local y = moe.forward(x, L.with { ids = ids, weights = weights })
      assert.is_true(x:equal(before), "x changed")
      assert.are_not.equal(tostring(x.data), tostring(y.data))
      local same = moe.forward(x, L.with { ids = ids, weights = weights, inplace = true })
      assert.equal(tostring(x.data), tostring(same.data))
      assert.is_true(same:equal(y) and x:equal(y))
    end
    local x = nb.tensor("bf16", { 1, 8 })
    assert.error_matches(function()
      moe.forward(x, L.with { ids = nb.tensor("i32", { 1, 1 }), weights = nb.tensor("f32", { 1, 1 }), inplace = true, dtype = "f32" })
    end, "an output in f32 cannot be written over an x in bf16")
  end)

  it("FWD-01: the same bits for any number of threads and any storage, and chunks", function()
    local L = layer(5, 32, 48, { bias = true })
    local x = random({ 300, 32 }, 2, 4)
    local weights, ids = choose(300, 2, 5, 6)
    local want
    for _, threads in ipairs { 1, 2, 3 } do
      C.nb_threads_set(threads)
      local y = moe.forward(x, L.with { ids = ids, weights = weights })
      want = want or y
      assert.is_true(y:equal(want), threads .. " threads")
    end
    C.nb_threads_set(0)
    local pool = {}
    local function buffer(name, rows, columns)
      if not pool[name] or pool[name]:numel() < rows * columns then pool[name] = nb.tensor("f32", { rows * columns }):fill(0 / 0) end
      return pool[name]:as("f32", { rows, columns })
    end
    assert.is_true(moe.forward(x:clone(), L.with { ids = ids, weights = weights, buffer = buffer, inplace = true }):equal(want))
    numbers.all_near(want:totable(), moe.forward(x, L.with { ids = ids, weights = weights, chunk = 7 }), 1e-5)
  end)

  it("FWD-10: quantizes before each product when told to", function()
    local L = layer(2, 8, 6)
    local x, ids, weights = random({ 3, 8 }, 2), randint({ 3, 1 }, 1, 2), random({ 3, 1 }, 2)
    local seen = {}
    local y = moe.forward(x, L.with { ids = ids, weights = weights, quantize = function(t, stage, e)
      seen[#seen + 1] = ("%s %d [%d,%d]"):format(stage, e, t:size(1), t:size(2))
      return compute.scale_rows(t, nb.tensor("f32", { t:size(1) }):fill(stage == "w13" and 2 or 3))
    end })
    local counts = { 0, 0 }
    for t = 1, 3 do counts[ids:get(t) + 1] = counts[ids:get(t) + 1] + 1 end
    local want = {}
    for e = 0, 1 do
      if counts[e + 1] > 0 then
        want[#want + 1] = ("w13 %d [%d,8]"):format(e, counts[e + 1])
        want[#want + 1] = ("w2 %d [%d,6]"):format(e, counts[e + 1])
      end
    end
    assert.same(want, seen)
    local doubled = x:clone():map(function(v) return 2 * v end)
    local tripled = weights:clone():map(function(v) return 3 * v end)
    numbers.all_near(reference(L, doubled, { ids = ids, weights = tripled }), y, 1e-5)
  end)

  it("FWD-10: 8-bit activations: a token at a time before both products, each with its own input global scale", function()
    local L = layer(3, 8, 6, { bias = true })
    local x = random({ 5, 8 }, 2, 3)
    local weights, ids = choose(5, 2, 3, 6)
    local activations = { type = "int", bits = 8, symmetric = true, strategy = "token", dynamic = true }
    -- What a row's int8 codes stand for.
    local function fake(row, factor)
      local max, out = 1e-10, {}
      for _, v in ipairs(row) do max = math.max(max, math.abs(v)) end
      for i, v in ipairs(row) do
        local q = math.floor(v / (max / 127.5) + 0.5)
        out[i] = math.max(-128, math.min(127, q)) * (max / 127.5) * factor
      end
      return out
    end
    for _, globals in ipairs { { 1, 1 }, { 0.5, 3 } } do
      local want = {}
      for t = 0, 4 do
        for h = 1, 8 do want[t * 8 + h] = 0 end
        for j = 1, 2 do
          local e, row, a = ids:get(t * 2 + j), {}, {}
          for h = 1, 8 do row[h] = x:get(t * 8 + h) end
          local g = times(L.w13, L.b13, e, fake(row, globals[1]))
          for i = 1, 6 do a[i] = silu(g[i]) * g[6 + i] end
          for h, v in ipairs(times(L.w2, L.b2, e, fake(a, globals[2]))) do
            want[t * 8 + h] = want[t * 8 + h] + v * weights:get(t * 2 + j)
          end
        end
      end
      local products = globals[1] ~= 1 and { w13 = { input_global = nb.tensor("f32", { 1 }, { globals[1] }) },
        w2 = { input_global = nb.tensor("f32", { 3 }):fill(globals[2]) } } or nil
      local before = x:clone()
      local y = moe.forward(x, L.with { ids = ids, weights = weights, quantize = moe.quantizer(activations, products) })
      -- The largest value lies half-way between two codes, so float32 may take the other one.
      local error2, total2 = 0, 0
      for i, v in ipairs(want) do error2, total2 = error2 + (v - y:get(i)) ^ 2, total2 + v * v end
      assert.is_true(math.sqrt(error2 / total2) < 2e-2)
      assert.is_true(x:equal(before))
    end
  end)

  it("FWD-04, FWD-07: says which sizes don't agree", function()
    local L = layer(2, 8, 6)
    local x, ids, weights = random({ 3, 8 }, 2), nb.tensor("i32", { 3, 2 }), nb.tensor("f32", { 3, 2 })
    local function says(msg, more, input)
      local o = { ids = ids, weights = weights }
      for k, v in pairs(more or {}) do o[k] = v end
      assert.error_matches(function() moe.forward(input or x, L.with(o)) end, msg)
    end
    says("x must be an f32, f16 or bf16 tensor %[tokens, hidden%], found i32 %[3x8%]", {}, nb.tensor("i32", { 3, 8 }))
    says("ids must be i32 %[3 tokens, k%], found i32 %[2x2%]", { ids = nb.tensor("i32", { 2, 2 }) })
    says("weights must be f32 %[3, 2%] as ids, found f32 %[3x1%]", { weights = nb.tensor("f32", { 3, 1 }) })
    says("weights must be f32 %[3, 2%] as ids, found bf16 %[3x2%]", { weights = weights:cast "bf16" })
    says("experts must be the number of experts here, found nil", { experts = false and 1 or "nil" })
    says("dtype must be f32, f16 or bf16, found i8", { dtype = "i8" })
    says("unknown activation \"slu\"; known: silu, gelu", { activation = "slu" })
    says("activation silu is gated, and the experts are not", { gated = false })
    says("activation silu_no_mul is not gated, and the experts are gated", { activation = "silu_no_mul", gated = true })
    says("w13 of expert 0 gave f32 %[3x7%]; a gated activation needs an even width",
      { ids = ids:reshape({ 6 }):rows(1, 3):reshape { 3, 1 }, weights = nb.tensor("f32", { 3, 1 }),
        w13 = function(_, r) return nb.tensor("f32", { r:size(1), 7 }) end })
    says("w2 of expert 0 gave f32 %[6x9%], expected f32 %[6, 8%]", { w2 = function(_, a) return nb.tensor("f32", { a:size(1), 9 }) end })
    says("w13 of expert 0 gave nil, expected f32 %[6, I or 2I%]", { w13 = function() end })
    says("w13's second part of expert 0 gave f32 %[6x5%], expected f32 %[6, 6%]",
      { w13 = function(_, r) return nb.tensor("f32", { r:size(1), 6 }), nb.tensor("f32", { r:size(1), 5 }) end })
  end)
end)

describe("moe.batched", function()
  it("FWD-09, FWD-12: gives what the standard form gives, token for token", function()
    local L = layer(4, 8, 6, { bias = true })
    local x = random({ 9, 8 }, 2, 4)
    local map = nb.tensor("i32", { 6 }, { 3, -1, 0, 1, -1, 2 })
    local weights, ids = choose(9, 3, 6, 6)
    local standard = moe.forward(x, L.with { ids = ids, weights = weights, expert_map = map })
    local batch, counts, places = moe.dispatch(x, ids, 4, { map = map })
    assert.equal("standard", moe.format(x))
    assert.equal("batched", moe.format(batch))
    local y = moe.batched(batch, L.with { counts = counts })
    assert.same(batch:size(), y:size())
    numbers.all_near(standard:totable(), moe.combine(y, places, weights), 1e-6)
    local roomy = moe.dispatch(x, ids, 4, { map = map, rows = 20 })
    assert.same({ 4, 20, 8 }, roomy:size())
    assert.error_matches(function() moe.dispatch(x, ids, 4, { map = map, rows = 1 }) end, "rows, and there is room for 1")
  end)

  it("FWD-09: rows past an expert's count are not read and come out 0", function()
    local L = layer(3, 8, 6, { bias = true })
    local x = random({ 3, 4, 8 }, 2)
    local counts = nb.tensor("i32", { 3 }, { 2, 0, 4 })
    local clean = moe.batched(x, L.with { counts = counts })
    for e = 0, 2 do
      for r = counts:get(e + 1), 3 do
        for h = 1, 8 do
          x:set((e * 4 + r) * 8 + h, 0 / 0)
          assert.equal(0, clean:get((e * 4 + r) * 8 + h))
        end
      end
    end
    assert.is_true(moe.batched(x, L.with { counts = counts }):equal(clean))
    assert.equal("bf16", moe.batched(x:cast "bf16", L.with { counts = counts }):type())
  end)

  it("FWD-09: the expert axis and the counts must fit", function()
    local L = layer(3, 8, 6)
    local counts = nb.tensor("i32", { 3 }, { 2, 0, 5 })
    local function says(msg, x, c)
      assert.error_matches(function() moe.batched(x, L.with { counts = c }) end, msg)
    end
    says("x has 2 experts in its first dimension, and the layer has 3", nb.tensor("f32", { 2, 4, 8 }), counts)
    says("must be an f32, f16 or bf16 tensor %[experts, rows, hidden%], found f32 %[4x8%]", nb.tensor("f32", { 4, 8 }), counts)
    says("counts must be i32 %[3%], found i32 %[2%]", nb.tensor("f32", { 3, 4, 8 }), nb.tensor("i32", { 2 }))
    says("expert 2 has 5 valid rows, expected 0 to 4", nb.tensor("f32", { 3, 4, 8 }), counts)
  end)
end)

describe("moe contracts", function()
  it("FWD-12: a method says how it is called, and the other way is an error", function()
    local inside, outside = { name = "one", monolithic = true }, { name = "two" }
    assert.equal("monolithic", moe.kind(inside))
    assert.equal("modular", moe.kind(outside))
    moe.expect(inside, "monolithic")
    moe.expect(outside, "modular")
    assert.error_matches(function() moe.expect(inside, "modular") end, "one routes by itself; call apply_monolithic")
    assert.error_matches(function() moe.expect(outside, "monolithic") end, "two takes routed tokens; call apply with the router's weights and ids")
    assert.error_matches(function() moe.format(nb.tensor("f32", { 2 })) end, "%(standard%) or .* %(batched%), found f32 %[2%]")
  end)

  it("FWD-04: Marlin's operands must fit, each violation with its pair of numbers", function()
    local H, I = 128, 64
    local x, weights = nb.tensor("bf16", { 2, H }), nb.tensor("f32", { 2, 2 })
    local w13, w2 = nb.tensor("i32", { 2, H / 16, 2 * I * 2 }), nb.tensor("i32", { 2, I / 16, H * 2 })
    moe.check_marlin(x, w13, w2, weights, 4)
    local function says(msg, ...)
      local args = { ... }
      assert.error_matches(function() moe.check_marlin(unpack(args)) end, msg)
    end
    says("take f16 or bf16 activations, found f32", x:cast "f32", w13, w2, weights, 4)
    says("w13 has 7 rows of 16, which is 112 inputs, and the activations are 128 wide", x, nb.tensor("i32", { 2, 7, 256 }), w2, weights, 4)
    says("w2 has 256 words a row, which is 64 outputs of 8 bits, and the activations are 128 wide", x, w13, w2, weights, 8)
    says("the router's weights must be f32, found bf16", x, w13, w2, weights:cast "bf16", 4)
  end)
end)

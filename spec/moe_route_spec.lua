-- The router, the grouping of tokens by expert, their alignment to blocks, and the sizes
-- that kernels ask for: each against the rule in Lua doubles.
local nb = require "nibble"
local numbers = require "spec.support.numbers"
local moe = nb.moe
local random, on_each_path, near = numbers.random, numbers.on_each_path, numbers.near

local function softmax(x)
  local sum, p = 0, {}
  for i, v in ipairs(x) do
    p[i] = math.exp(v)
    sum = sum + p[i]
  end
  for i in ipairs(p) do p[i] = p[i] / sum end
  return p
end

local function sigmoid(x)
  local p = {}
  for i, v in ipairs(x) do p[i] = 1 / (1 + math.exp(-v)) end
  return p
end

-- The places of the n greatest, best first, the lower first where they are equal.
local function best(p, n)
  local order = {}
  for i in ipairs(p) do order[i] = i end
  table.sort(order, function(a, b) return p[a] > p[b] or p[a] == p[b] and a < b end)
  return { unpack(order, 1, n) }
end

-- The router of one row in doubles: weights, ids (1-based).
local function reference(x, o)
  local p = (o.scoring == "sigmoid" and sigmoid or softmax)(x)
  local choice = {}
  for i, v in ipairs(p) do choice[i] = v + (o.bias and o.bias:get(i) or 0) end
  if (o.groups or 0) > 0 then
    local size, score = #x / o.groups, {}
    for g = 1, o.groups do
      local members = { unpack(choice, (g - 1) * size + 1, g * size) }
      local top = best(members, 2)
      score[g] = members[top[1]] + (o.bias and size > 1 and members[top[2]] or 0)
    end
    local kept = {}
    for _, g in ipairs(best(score, o.top_groups)) do kept[g] = true end
    for i in ipairs(choice) do
      if not kept[math.ceil(i / size)] then choice[i] = -math.huge end
    end
  end
  local ids, weights, sum = best(choice, o.top), {}, 0
  for _, i in ipairs(ids) do sum = sum + p[i] end
  for t, i in ipairs(ids) do weights[t] = p[i] / (o.normalize and sum or 1) * (o.scale or 1) end
  return weights, ids
end

local function row(t, r, n)
  local out = {}
  for i = 1, n do out[i] = t:get((r - 1) * n + i) end
  return out
end

describe("moe.route", function()
  local bias = { 0.3, -0.2, 0.1, 0, 0.4, -0.4, 0.2, 0.05, 0, 0.25, -0.1, 0.15 }
  local cases = {
    { "softmax", { top = 3 } }, { "softmax, normalized", { top = 3, normalize = true } },
    { "one expert", { top = 1, normalize = true } }, { "all experts", { top = 12 } },
    { "sigmoid", { top = 4, scoring = "sigmoid" } },
    { "sigmoid, normalized and scaled", { top = 4, scoring = "sigmoid", normalize = true, scale = 2.5 } },
    { "groups", { top = 3, groups = 4, top_groups = 2 } },
    { "groups of one expert", { top = 2, groups = 12, top_groups = 3, biased = true } },
    { "the bias of the choice alone", { top = 3, biased = true } },
    { "DeepSeek-V3: sigmoid, groups by their best two with the bias, scaled",
      { top = 4, scoring = "sigmoid", groups = 3, top_groups = 2, biased = true, normalize = true, scale = 2.5 } },
  }
  for _, case in ipairs(cases) do
    it("FWD-12, CTM-NVFP4-18, CTM-W4A8-12: chooses by " .. case[1], function()
      local T, E, o = 70, 12, {}
      for k, v in pairs(case[2]) do o[k] = v end
      if o.biased then o.bias = nb.tensor("f32", { E }, bias) end
      local logits = random({ T, E }, 7, 8)
      local weights = on_each_path(function(l) return (moe.route(l, o)) end, logits)
      local _, ids = moe.route(logits, o)
      for r = 1, T do
        local w, chosen = reference(row(logits, r, E), o)
        for t = 1, o.top do
          assert.equal(chosen[t] - 1, ids:get((r - 1) * o.top + t))
          near(w[t], weights:get((r - 1) * o.top + t), 2e-6)
        end
      end
    end)
  end

  it("FWD-12: scores f16 and bf16 logits in float32, and gives a tie to the lower expert", function()
    local logits = random({ 9, 8 }, 3, 4):cast "bf16"
    local weights, ids = moe.route(logits, { top = 2 })
    local wide_weights, wide_ids = moe.route(logits:cast "f32", { top = 2 })
    assert.is_true(weights:equal(wide_weights) and ids:equal(wide_ids))
    local _, tied = moe.route(nb.tensor("f32", { 1, 4 }, { 1, 3, 3, 3 }), { top = 2, normalize = true })
    assert.same({ 1, 2 }, tied:totable())
    local _, far = moe.route(nb.tensor("f32", { 1, 3 }, { -200, 200, 0 }), { top = 3, scoring = "sigmoid" })
    assert.same({ 1, 2, 0 }, far:totable())
  end)

  it("FWD-12: says what doesn't fit", function()
    local logits = nb.tensor("f32", { 1, 4 })
    local function says(msg, o, l) assert.error_matches(function() moe.route(l or logits, o) end, msg) end
    says("the top 5 of 4 experts", { top = 5 })
    says("top must be how many experts a token gets, found nil", {})
    says('unknown scoring "sigmod"; expected softmax or sigmoid; did you mean "sigmoid"', { top = 1, scoring = "sigmod" })
    says("3 groups do not divide 4 experts", { top = 1, groups = 3, top_groups = 1 })
    says("the top 3 of 2 groups, expected 1 to all of them", { top = 1, groups = 2, top_groups = 3 })
    says("the top 3 experts of 1 groups of 2", { top = 3, groups = 2, top_groups = 1 })
    says("score correction bias: expected f32 %[4%]", { top = 1, bias = nb.tensor("f32", { 3 }) })
    says("must be an f32, f16 or bf16 tensor %[tokens, experts%], found i32 %[2x2%]", { top = 1 }, nb.tensor("i32", { 2, 2 }))
  end)
end)

describe("moe.group", function()
  it("FWD-03: buckets the pairs by expert, rows ascending", function()
    local ids = nb.tensor("i32", { 3, 2 }, { 2, 0, 0, 3, 2, 3 })
    local rows, weights, offsets = moe.group(ids, nb.tensor("f32", { 3, 2 }, { 1, 2, 3, 4, 5, 6 }), 5)
    assert.same({ 0, 2, 2, 4, 6, 6 }, offsets:totable())
    assert.same({ 0, 1, 0, 2, 1, 2 }, rows:totable())
    assert.same({ 2, 3, 1, 5, 4, 6 }, weights:totable())
  end)

  it("FWD-03: goes through the map, and leaves out what is elsewhere or outside it", function()
    local ids = nb.tensor("i32", { 3, 2 }, { 2, 0, 1, 3, 9, -1 })
    local weights, map = nb.tensor("f32", { 3, 2 }, { 1, 2, 3, 4, 5, 6 }), nb.tensor("i32", { 4 }, { 1, -1, 0, -1 })
    local rows, shares, offsets = moe.group(ids, weights, 2, { map = map, skip = true })
    assert.same({ 0, 1, 2 }, offsets:totable())
    assert.equal(0, rows:get(1))
    assert.equal(0, rows:get(2))
    assert.same({ 1, 2 }, { shares:get(1), shares:get(2) })
    assert.error_matches(function() moe.group(ids, weights, 2, { map = map }) end, "expert 1 at place 2 is outside the 2 experts")
    map:set(2, 2)
    assert.error_matches(function() moe.group(ids, weights, 2, { map = map, skip = true }) end,
      "expert 1 is mapped to 2, expected %-1 %(elsewhere%) to 1")
    assert.error_matches(function() moe.group(nb.tensor("i32", { 1, 1 }, { 4 }), nb.tensor("f32", { 1, 1 }), 4) end,
      "expert 4 at place 0 is outside the 4 experts")
  end)
end)

describe("moe.align", function()
  local function list(t, n) return { unpack(t:totable(), 1, n) } end

  it("FWD-08: groups, pads with the number of pairs, and names each block's expert", function()
    local ids = nb.tensor("i32", { 3, 2 }, { 2, 0, 0, 3, 2, 2 })
    local sorted, owners, total = moe.align(ids, 4, 4)
    assert.equal(12, total)
    assert.equal(6 + 4 * 3, sorted:numel())
    assert.same({ 1, 2, 6, 6, 0, 4, 5, 6, 3, 6, 6, 6 }, list(sorted, 12))
    assert.same({ 0, 2, 3, -1, -1 }, owners:totable())
    for i = total + 1, sorted:numel() do assert.equal(6, sorted:get(i)) end
  end)

  it("FWD-08: a run that fills its blocks gets no padding, and few pairs bound the room", function()
    local _, owners, total = moe.align(nb.tensor("i32", { 4, 1 }, { 1, 1, 1, 1 }), 2, 2)
    assert.equal(4, total)
    assert.same({ 1, 1 }, list(owners, 2))
    local sorted = moe.align(nb.tensor("i32", { 1, 2 }, { 0, 5 }), 8, 64)
    assert.equal(16, sorted:numel())
    sorted, owners, total = moe.align(nb.tensor("i32", { 0, 2 }), 8, 4)
    assert.same({ 0, 0, 0 }, { sorted:numel(), owners:numel(), total })
  end)

  it("FWD-08: marks the blocks of experts that are elsewhere, or leaves their pairs out", function()
    local ids = nb.tensor("i32", { 2, 2 }, { 3, 1, 2, 3 })
    local map = nb.tensor("i32", { 4 }, { -1, -1, 1, 0 })
    local sorted, owners, total = moe.align(ids, 2, 4, { map = map })
    assert.equal(6, total)
    assert.same({ 1, 4, 2, 4, 0, 3 }, list(sorted, 6))
    assert.same({ -1, 1, 0 }, list(owners, 3))
    sorted, owners, total = moe.align(ids, 2, 4, { map = map, ignore = true })
    assert.equal(4, total)
    assert.same({ 0, 3, 2, 4 }, list(sorted, 4))
    assert.same({ 0, 1, -1, -1 }, owners:totable())
  end)

  it("FWD-08: leaves ids outside the experts out", function()
    local sorted, _, total = moe.align(nb.tensor("i32", { 1, 3 }, { -1, 0, 7 }), 2, 2)
    assert.equal(2, total)
    assert.same({ 1, 3 }, list(sorted, 2))
  end)

  it("FWD-08: says what doesn't fit", function()
    local ids = nb.tensor("i32", { 1, 2 })
    assert.error_matches(function() moe.align(ids, 0, 4) end, "blocks of 0 for 4 experts")
    assert.error_matches(function() moe.align(ids, 4, 4, { map = nb.tensor("i32", { 3 }) }) end, "expert map has 3 entries for 4 experts")
    assert.error_matches(function() moe.align(nb.tensor("f32", { 1, 2 }), 4, 4) end, "ids must be i32, found f32")
  end)
end)

describe("moe sizes", function()
  it("FWD-05: the block is the least that the mean expert fills to less than 90 %", function()
    local function size(tokens, more)
      local o = { tokens = tokens, top = 2, experts = 8 }
      for k, v in pairs(more or {}) do o[k] = v end
      return moe.block_size(o)
    end
    assert.equal(8, size(1))
    assert.equal(8, size(28))         -- 7 rows: 0.875 of 8
    assert.equal(16, size(29))        -- 7.25: 0.906 of 8
    assert.equal(16, size(57))
    assert.equal(32, size(58))
    assert.equal(48, size(116))
    assert.equal(64, size(173))
    assert.equal(64, size(100000))
    assert.equal(16, size(1, { a8 = true }))
    assert.equal(48, size(116, { a8 = true }))
    assert.equal(16, size(113, { experts_global = 32 }))  -- ceil(113 * 8/32) = 29 tokens
    assert.equal(8, size(112, { experts_global = 32 }))
    assert.equal(16, size(29, { experts_global = -1 }))
  end)

  it("FWD-05: batched, by the fullest expert", function()
    assert.equal(8, moe.block_size { batch = 7 })
    assert.equal(16, moe.block_size { batch = 8 })
    assert.equal(64, moe.block_size { batch = 500 })
    assert.equal(16, moe.block_size { batch = 1, a8 = true })
  end)

  it("FWD-11: workspaces and output of the modular form, standard and batched", function()
    local a, b, out = moe.workspace { tokens = 5, top = 2, hidden = 64, intermediate = 48 }
    assert.same({ { 10, 64 }, { 960 }, { 5, 64 } }, { a, b, out })
    a, b = moe.workspace { tokens = 5, top = 2, hidden = 64, intermediate = 100 }
    assert.same({ { 10, 100 }, { 2000 } }, { a, b })
    a, b = moe.workspace { tokens = 5, top = 2, hidden = 64, intermediate = 16 }
    assert.same({ { 10, 64 }, { 640 } }, { a, b })
    a, b, out = moe.workspace { experts = 3, batch = 4, dispatchers = 2, hidden = 64, intermediate = 48 }
    assert.same({ { 24, 96 }, { 24, 48 }, { 3, 8, 64 } }, { a, b, out })
    a = moe.workspace { experts = 3, batch = 4, hidden = 200, intermediate = 48 }
    assert.same({ 12, 200 }, a)
  end)
end)

-- Losses, best tokens and KL divergences, streamed over the vocabulary, against
-- sums over whole rows of logits in Lua.
local nb = require "nibble"
local C = require("nibble.ffi").C
local random = require("spec.support.numbers").random
local compute = nb.compute

-- From a row of logits: log-sum-exp, and the first best place (0-based).
local function row_of(logits, row, vocab)
  local p, max, at, sum = logits:ptr() + row * vocab, -math.huge, 0, 0
  for i = 0, vocab - 1 do
    if p[i] > max then max, at = p[i], i end
  end
  for i = 0, vocab - 1 do sum = sum + math.exp(p[i] - max) end
  return p, max + math.log(sum), at
end

local function targets_for(m, vocab)
  local t = nb.tensor("i32", { m })
  for i = 1, m do t:set(i, i % 4 == 0 and -1 or (i * 7919) % vocab) end
  return t
end

describe("compute.score and compare", function()
  after_each(function()
    C.nb_cpu_limit(-1)
    C.nb_threads_set(0)
  end)

  for path, features in pairs { portable = 0, all = -1 } do
    -- rows, vocabulary, features: one; odd; past a tile of vocabulary (256) and of rows (256)
    for _, s in ipairs { { 1, 1, 3 }, { 5, 13, 8 }, { 3, 531, 9 }, { 259, 257, 4 } } do
      it(("%d rows of %d logits, %s"):format(s[1], s[2], path), function()
        C.nb_cpu_limit(features)
        local m, vocab, k = s[1], s[2], s[3]
        local xp, xq, hp, hq = random({ m, k }, 1, 8), random({ m, k + 1 }, 2, 8), random({ vocab, k }, 3), random({ vocab, k + 1 }, 4)
        local targets = targets_for(m, vocab)
        local lp = compute.gemm(nb.tensor("f32", { m, vocab }), xp, hp)
        local lq = compute.gemm(nb.tensor("f32", { m, vocab }), xq, hq)
        local nll, top = compute.score(xp, hp, targets)
        local kl, nll_p, nll_q, top_p, top_q = compute.compare(xp, hp, xq, hq, targets)
        for row = 0, m - 1 do
          local p, lse_p, at_p = row_of(lp, row, vocab)
          local q, lse_q, at_q = row_of(lq, row, vocab)
          local target, want = targets:get(row + 1), 0
          for i = 0, vocab - 1 do want = want + math.exp(p[i] - lse_p) * ((p[i] - lse_p) - (q[i] - lse_q)) end
          local scored = target >= 0
          assert.is_true(math.abs(nll:get(row + 1) - (scored and lse_p - p[target] or 0)) < 5e-6)
          assert.is_true(math.abs(nll_q:get(row + 1) - (scored and lse_q - q[target] or 0)) < 5e-6)
          assert.is_true(math.abs(kl:get(row + 1) - (scored and want or 0)) < 1e-5)
          assert.equal(at_p, top:get(row + 1))
          assert.equal(at_q, top_q:get(row + 1))
        end
        assert.is_true(top_p:equal(top))
        for row = 1, m do assert.is_true(math.abs(nll_p:get(row) - nll:get(row)) < 1e-12) end
      end)
    end
  end

  it("gives exactly 0 between a model and itself, and a divergence of 1e-9 its digits", function()
    local x, head, targets = random({ 4, 6 }, 1, 8), random({ 300, 6 }, 2), nb.tensor("i32", { 4 })
    assert.same({ 0, 0, 0, 0 }, compute.compare(x, head, x, head, targets):totable())
    -- Two tokens with logits (0, 0) and (0, d): KL = log((1 + e^d)/2) - d/2, about d²/8.
    local d = 2 ^ -13
    local one, p, q = nb.tensor("f32", { 1, 1 }, { 1 }), nb.tensor("f32", { 2, 1 }), nb.tensor("f32", { 2, 1 }, { 0, d })
    local kl = compute.compare(one, p, one, q, nb.tensor("i32", { 1 })):get(1)
    assert.is_true(math.abs(kl / (d * d / 8) - 1) < 1e-6)
  end)

  it("doesn't overflow, and keeps what is not a number", function()
    local one, targets = nb.tensor("f32", { 1, 1 }, { 1 }), nb.tensor("i32", { 1 }, { 1 })
    assert.is_true(math.abs(compute.score(one, nb.tensor("f32", { 2, 1 }, { 1e38, -1e38 }), targets):get(1) / 2e38 - 1) < 1e-6)
    local nll = compute.score(one, nb.tensor("f32", { 3, 1 }, { 1, 2, 0 / 0 }), targets):get(1)
    assert.is_true(nll ~= nll)
    -- A NaN whose bits LuaJIT would take for another type's.
    local odd = nb.tensor("u32", { 2, 1 }, { 0, 0xfffff123 }):as("f32", { 2, 1 })
    assert.equal("number", type(compute.score(one, odd, targets):totable()[1]))
  end)

  it("gives the same bits on any number of threads", function()
    local x, head, targets = random({ 600, 8 }, 1), random({ 300, 8 }, 2), targets_for(600, 300)
    C.nb_threads_set(1)
    local want = compute.score(x, head, targets)
    C.nb_threads_set(3)
    assert.is_true(compute.score(x, head, targets):equal(want))
  end)

  it("scores with a bf16 output layer as with its f32 values", function()
    local x, wide = random({ 7, 5 }, 1), random({ 270, 5 }, 2)
    local narrow = nb.tensor("bf16", { 270, 5 })
    for i = 0, 1349 do narrow:as("u16"):ptr()[i] = wide:as("u16"):ptr()[2 * i + 1] end
    local targets = targets_for(7, 270)
    assert.is_true(compute.score(x, narrow, targets):equal((compute.score(x, compute.widen(narrow), targets))))
  end)

  it("says what doesn't fit", function()
    local x, head = nb.tensor("f32", { 2, 3 }), nb.tensor("f32", { 4, 3 })
    assert.error_matches(function() compute.score(x, head, nb.tensor("i32", { 2 }, { 1, 4 })) end,
      "target 4 at place 1 is outside the vocabulary of 4")
    assert.error_matches(function() compute.score(x, nb.tensor("f32", { 4, 5 }), nb.tensor("i32", { 2 })) end,
      "logits: head: expected any dtype %[4x3%], found f32 %[4x5%]")
    assert.error_matches(function() compute.compare(x, head, x, nb.tensor("f32", { 5, 3 }), nb.tensor("i32", { 2 })) end,
      "logits: head: expected any dtype %[4x3%]")
  end)
end)

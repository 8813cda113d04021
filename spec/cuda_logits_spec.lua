-- Likelihoods, best tokens and divergences on a device against the processor's, by the emulator in every order of threads,
-- with products by the library (the stand-in's) and by nibble's own kernel.
local run = require("spec.support.forward").run

local PRELUDE = [[
  local function near(found, expected)
    for i = 1, expected:numel() do
      local x, y = found:get(i), expected:get(i)
      local same = math.abs(x - y) <= 1e-5 + 1e-7 * math.abs(y) or x ~= x and y ~= y or x == y
      if not same then return ("element %d is %.9g, expected %.9g"):format(i, x, y) end
    end
  end
  -- a score or, with another x and head, a comparison
  local function check(name, x, head, targets, x_q, head_q)
    local m, t = targets:numel(), { x = x, head = head, targets = targets, x_q = x_q, head_q = head_q }
    local results = x_q and { "kl", "nll", "nll_q", "top", "top_q" } or { "nll", "top" }
    for _, r in ipairs(results) do t[r] = nb.tensor(r:match "^top" and "i32" or "f64", { m }):fill(-7) end
    local wrong = forward.same(t, results, function(r)
      local found = x_q and { compute.compare(r.x, r.head, r.x_q, r.head_q, r.targets) } or { compute.score(r.x, r.head, r.targets) }
      for i, result in ipairs(results) do compute.copy(r[result], found[i]) end
    end, near)
    if wrong then print(name, wrong) end
  end
  local function targets(m, vocab)
    local t = nb.tensor("i32", { m })
    for i = 1, m do t:set(i, i % 5 == 3 and -1 or i * 7919 % vocab) end
    return t
  end
]]

local function logits(code, environment) return run(PRELUDE .. code, environment) end

local CASES = [[
  for _, dtypes in ipairs { { "f32", "f32" }, { "f16", "f16" }, { "bf16", "bf16" }, { "f32", "bf16" }, { "bf16", "f16" } } do
    local x, head = forward.random(dtypes[1], { 5, 24 }, 1), forward.random(dtypes[2], { 43, 24 }, 2)
    check(dtypes[1] .. " " .. dtypes[2], x, head, targets(5, 43))
    check(dtypes[1] .. " " .. dtypes[2] .. " compared", x, head, targets(5, 43), forward.random(dtypes[1], { 5, 16 }, 3),
      forward.random(dtypes[2], { 43, 16 }, 4))
  end
  check("one of one", forward.random("f32", { 1, 1 }, 1), forward.random("f32", { 1, 1 }, 2), targets(1, 1))
  check("odd", forward.random("f16", { 7, 19 }, 1), forward.random("f16", { 33, 19 }, 2), targets(7, 33)) ]]

describe("logits on a device are the processor's", function()
  it("for every dtype, and two of them", function() assert.equal("", logits(CASES)) end)

  it("without cuBLASLt", function() assert.equal("", logits(CASES, { NB_CUBLASLT = "/nowhere" })) end)

  it("for a vocabulary of several blocks, whose best tokens come again", function()
    assert.equal("", logits [[
      local head = forward.random("f32", { 16400, 4 }, 2)
      for _, id in ipairs { 11, 4000, 8191, 8192, 16399 } do compute.copy(head:rows(id + 1, id + 1), head:rows(1, 1):fill(3)) end
      local x = forward.random("f32", { 2, 4 }, 1)
      compute.zero(x:rows(1, 1)):set({ 1, 1 }, 1)
      x:rows(2, 2):fill(0.5)
      for id, v in pairs { [9000] = 3.5, [16390] = 4 } do -- larger ones in later blocks
        for j = 1, 4 do head:set({ id + 1, j }, j == 1 and 3 or v) end
      end
      check("ties", x, head, nb.tensor("i32", { 2 }, { 16399, 8191 }))
      check("compared", x, head, nb.tensor("i32", { 2 }, { 8192, 0 }), forward.random("f32", { 2, 4 }, 5), head) ]])
  end)

  it("for more tokens than are taken at once", function()
    assert.equal("2052 0", logits [[
      local x, head, ids = forward.random("f32", { 1026, 2 }, 1), forward.random("f32", { 9, 2 }, 2), targets(1026, 9)
      local nll, top = compute.score(x, head, ids)
      local a, b = compute.score(x:to "cuda", head:to "cuda", ids:to "cuda")
      a, b = a:to "cpu", b:to "cpu"
      local same, wrong = 0, 0
      for i = 1, 1026 do
        if math.abs(a:get(i) - nll:get(i)) < 1e-5 then same = same + 1 else wrong = wrong + 1 end
        if b:get(i) == top:get(i) then same = same + 1 else wrong = wrong + 1 end
      end
      print(same .. " " .. wrong) ]])
  end)

  it("for large values, and for what is no number", function()
    assert.equal("", logits [[
      local x = nb.tensor("f32", { 6, 8 })
      for i = 1, 8 do
        x:set({ 1, i }, 1e4)
        x:set({ 2, i }, -1e4)
      end
      x:set({ 3, 1 }, 0 / 0)
      x:set({ 4, 1 }, 1 / 0)
      x:set({ 5, 8 }, -1 / 0)
      x:set({ 6, 2 }, 3)
      local head = forward.random("f32", { 40, 8 }, 3)
      for i = 1, 40 do head:set({ i, 8 }, 1) end
      check("odd", x, head, nb.tensor("i32", { 6 }, { 1, 2, 3, 4, 5, 6 }))
      check("compared", x, head, nb.tensor("i32", { 6 }, { 1, 2, 3, 4, -5, 6 }), forward.random("f32", { 6, 8 }, 2), head) ]])
  end)
end)

describe("logits on a device", function()
  it("are NaN for a target outside that lies there, an error where it can be seen", function()
    assert.equal("nan 0.69\nlogits: target 2 at place 0 is outside the vocabulary of 2", logits [[
      local x, head = nb.tensor("f32", { 2, 8 }):to "cuda", nb.tensor("f32", { 2, 8 }):to "cuda"
      local ids = nb.tensor("i32", { 2 }, { 2, 1 })
      local nll = compute.score(x, head, ids:to "cuda"):to "cpu"
      print((nll:get(1) ~= nll:get(1) and "nan" or "?") .. (" %.2f"):format(nll:get(2)))
      print(forward.fails(compute.score, x, head, ids)) ]])
  end)

  it("keep a bounded workspace, and can be a graph", function()
    assert.equal("true true", logits [[
      local x, head = forward.random("f16", { 3, 16 }, 1):to "cuda", forward.random("f16", { 500, 16 }, 2):to "cuda"
      local ids = targets(3, 500):to "cuda"
      local first = compute.score(x, head, ids):to "cpu"
      local g, nll = nb.cuda.graph(function() return (compute.score(x, head, ids)) end)
      g()
      print(tostring(nll:to("cpu"):equal(first)) .. " " .. tostring(nb.cuda.wait() == true)) ]])
  end)

  it("say in one sentence what is wrong", function()
    assert.equal(table.concat({
      "logits: head: f16 [4x8] lies in the computer's memory, expected on a device",
      "logits: x: expected f32, bf16 or f16, found i32 [2x8]",
      "logits: targets: expected i32 [2], found i32 [3]",
    }, "\n"), (logits [[
      local function there(dtype, ...) return nb.tensor(dtype, { ... }):to "cuda" end
      local ids = there("i32", 2)
      print(forward.fails(compute.score, there("f16", 2, 8), nb.tensor("f16", { 4, 8 }), ids))
      print(forward.fails(compute.score, there("i32", 2, 8), there("f16", 4, 8), ids))
      local x, head = there("f16", 2, 8), there("f16", 4, 8)
      local ok, msg = pcall(compute.compare, x, head, x, head, there("i32", 3))
      local C = require("nibble.ffi").C
      local nll, top = there("f64", 2), there("i32", 2)
      C.nb_device_logits_score(nll.t, top.t, x.t, head.t, there("i32", 3).t)
      print(require("ffi").string(C.nb_error())) ]]))
  end)
end)

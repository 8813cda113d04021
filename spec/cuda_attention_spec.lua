-- Attention on a device: tensor cores' kernels, run by the emulator in every order of threads, against the processor's.
local run = require("spec.support.forward").run

-- check{head_dim, heads, kv_heads, sequences, length, sliding = 0, dtype = "f16", q =, k =, v =} prints what is wrong.
local PRELUDE = [[
  -- Weights and results are rounded to the dtype: each is off by half a place of the largest value at most.
  local ROUNDING = { f16 = 2 ^ -11, bf16 = 2 ^ -8, f32 = 2 ^ -21 }
  local function check(o)
    local d, h, g, n, length, dtype = o[1], o[2], o[3], o[4], o[5], o.dtype or "f16"
    local function make(heads, seed) return forward.random(dtype, { n * length, heads * d }, seed) end
    local t = { q = o.q or make(h, d), k = o.k or make(g, length), v = o.v or make(g, h), out = make(h, 5) }
    local bound = 2 * 2.2 * ROUNDING[dtype]
    local wrong = forward.same(t, { "out" }, function(r)
      compute.attention(r.out, r.q, r.k, r.v, { heads = h, kv_heads = g, length = length, sliding = o.sliding })
    end, function(found, expected)
      local a, b = found:cast "f32", expected:cast "f32"
      for i = 0, a:numel() - 1 do
        local x, y = a:ptr()[i], b:ptr()[i]
        if not (math.abs(x - y) <= bound or x ~= x and y ~= y) then return ("element %d is %g, expected %g"):format(i, x, y) end
      end
    end)
    if wrong then print(table.concat({ d, h, g, n, length, o.sliding or 0, dtype }, " "), wrong) end
  end
]]

local function attention(code) return run(PRELUDE .. code) end

describe("attention on a device is the processor's", function()
  it("for heads of every size", function()
    assert.equal("", attention [[
      for i, d in ipairs { 2, 6, 32, 40, 64, 80, 96, 128, 160, 256 } do
        check { d, 2, 1, 1, 21 + i, dtype = i % 2 == 0 and "f16" or "bf16" }
      end ]])
  end)

  it("for grouped heads, many sequences, sequences of one", function()
    assert.equal("", attention [[
      check { 32, 8, 1, 2, 3 }
      check { 32, 6, 2, 1, 9, dtype = "bf16" }
      check { 32, 3, 3, 3, 17 }
      check { 64, 4, 2, 5, 1 } ]])
  end)

  it("through more blocks of keys than are on their way, with and without a window", function()
    assert.equal("", attention [[
      check { 32, 1, 1, 1, 400 }
      check { 256, 1, 1, 1, 170, dtype = "bf16" }
      check { 32, 1, 1, 2, 200, sliding = 1 }
      check { 32, 1, 1, 1, 330, sliding = 65 }
      check { 32, 1, 1, 1, 200, sliding = 128, dtype = "bf16" }
      check { 32, 1, 1, 1, 129, sliding = 127 }
      check { 32, 1, 1, 1, 70, sliding = 5000 } ]])
  end)

  it("in f32, nearly to the last place: heads of every size, groups, windows", function()
    assert.equal("", attention [[
      for _, d in ipairs { 2, 32, 40, 64, 66, 128, 160, 256 } do check { d, 2, 1, 1, 11, dtype = "f32" } end
      check { 32, 8, 2, 2, 9, dtype = "f32" }
      check { 64, 4, 2, 5, 1, dtype = "f32" }
      check { 32, 1, 1, 1, 70, dtype = "f32" }
      check { 32, 1, 1, 2, 30, sliding = 1, dtype = "f32" }
      check { 32, 1, 1, 1, 70, sliding = 33, dtype = "f32" }
      local q, k = forward.random("f32", { 20, 32 }, 1), forward.random("f32", { 20, 32 }, 2)
      q:set({ 3, 1 }, 0 / 0)
      q:set({ 10, 1 }, 1 / 0)
      check { 32, 1, 1, 1, 20, q = q, k = k, dtype = "f32" }
      check { 32, 1, 1, 1, 6, q = nb.tensor("f32", { 6, 32 }):fill(1), k = nb.tensor("f32", { 6, 32 }):fill(-1 / 0), dtype = "f32" } ]])
  end)

  it("for large scores, which grow from block to block, and for such that are no numbers", function()
    assert.equal("", attention [[
      local q, k = forward.random("f16", { 140, 32 }, 1), forward.random("f16", { 140, 32 }, 2)
      for i = 1, 140 do
        for j = 1, 32 do k:set({ i, j }, k:get { i, j } * i / 3) end
      end
      check { 32, 1, 1, 1, 140, q = q, k = k }
      q:set({ 3, 1 }, 0 / 0)
      q:set({ 100, 1 }, 1 / 0)
      check { 32, 1, 1, 1, 140, q = q, k = k }
      -- all scores -Inf: no weights
      check { 32, 1, 1, 1, 5, q = nb.tensor("bf16", { 5, 32 }):fill(1), k = nb.tensor("bf16", { 5, 32 }):fill(-1 / 0), dtype = "bf16" } ]])
  end)

  it("where tensors begin at odd places, and for nothing", function()
    assert.equal("", attention [[
      local all = forward.random("f16", { 8 * 32 + 8 }, 3)
      local part = all:rows(3, 2 + 7 * 32):reshape(7, 32)
      local there, out = all:to("cuda"):rows(3, 2 + 7 * 32):reshape(7, 32), nb.tensor("f16", { 7, 32 })
      local found, expected = out:to "cuda", nb.tensor("f32", { 7, 32 })
      compute.attention(found, there, there, there, { heads = 1, kv_heads = 1, length = 7 })
      local wide = part:cast "f32"
      compute.attention(expected, wide, wide, wide, { heads = 1, kv_heads = 1, length = 7 })
      found = found:to "cpu"
      for i = 1, 7 * 32 do if math.abs(found:get(i) - expected:get(i)) > 0.003 then print(i, found:get(i), expected:get(i)) end end
      local none = nb.tensor("f16", { 0, 32 }):to "cuda"
      compute.attention(none, none, none, none, { heads = 1, kv_heads = 1, length = 7 }) ]])
  end)
end)

describe("attention on a device", function()
  it("says in one sentence what is wrong", function()
    assert.equal(table.concat({
      "attention: 3 heads over 2 key/value heads don't divide rows of 64",
      "attention: 6 rows are not whole sequences of 4",
      "attention: a sliding window of -1, expected 0 (none) or more",
      "attention on a device takes heads of an even number up to 256, found 1",
      "attention on a device takes heads of an even number up to 256, found 512",
      "attention on a device takes f32, f16 and bf16, found i32 [6x64]",
      "attention: expected f16 [6x64], found bf16 [6x64]",
      "attention: f16 [6x64] lies in the computer's memory, expected on a device",
    }, "\n"), (attention [[
      local function there(dtype, ...) return nb.tensor(dtype, { ... }):to "cuda" end
      local function try(q, o, v)
        print((forward.fails(compute.attention, q, q, q, v or q, o):gsub("expected f16 %[6x64%].*found", "expected f16 [6x64], found")))
      end
      local q = there("f16", 6, 64)
      try(q, { heads = 3, kv_heads = 2, length = 6 })
      try(q, { heads = 2, kv_heads = 2, length = 4 })
      try(q, { heads = 2, kv_heads = 2, length = 6, sliding = -1 })
      try(q, { heads = 64, kv_heads = 64, length = 6 })
      try(there("f16", 1, 512), { heads = 1, kv_heads = 1, length = 1 })
      try(there("i32", 6, 64), { heads = 2, kv_heads = 2, length = 6 })
      try(q, { heads = 2, kv_heads = 2, length = 6 }, there("bf16", 6, 64))
      try(q, { heads = 2, kv_heads = 2, length = 6 }, nb.tensor("f16", { 6, 64 })) ]]))
  end)
end)

-- moe.forward and moe.batched on a device, run by the emulator: what they give in the computer's memory, but for the order of
-- float32 sums, whatever the activation, the weighting, the map and the experts' weights; and nothing in them waits.
local standin = require "spec.support.standin"

local process = standin.with [[
  package.path = "./?.lua;" .. package.path
  local experts = require "spec.support.marlin_experts"
  local awq = require "spec.support.awq"
  local moe = nb.moe
  math.randomseed(29)

  -- A layer as moe.forward takes it, here and there; o: tokens, top, experts, hidden, inner, dtype, … and forward's.
  local function layer(o)
    local ungated = o.activation and not moe.gated(o.activation)
    local function stack(k, n)
      return experts.case { experts = o.experts, tokens = 1, top = 1, block = 16, dtype = o.dtype or "f16", bits = o.bits, k = k, n = n,
        group = o.group or 64, zeros = o.zeros, bias = o.bias, exact = false, g_idx = o.order and o.order(k) }
    end
    local a, b = stack(o.hidden, (ungated and 1 or 2) * o.inner), stack(o.inner, o.hidden)
    local everywhere = o.map and #o.map or o.experts
    local ids = o.ids or experts.ids(o.tokens, o.top, everywhere)
    local more = setmetatable({ experts = o.experts, w13 = a.p, w2 = b.p, ids = ids, weights = awq.floats("f32", { o.tokens, o.top }, 0.1, 1),
      expert_map = o.map and nb.tensor("i32", { #o.map }, o.map) or nil }, { __index = o.with })
    local x = awq.floats(o.dtype or "f16", { o.tokens, o.hidden }, -1, 1)
    return x, more
  end
  local function there(more, changes)
    local out = { w13 = experts.there(more.w13), w2 = experts.there(more.w2) }
    for _, name in ipairs { "ids", "weights", "expert_map", "counts" } do out[name] = more[name] and assert(more[name]:to "cuda") end
    for name, value in pairs(changes or {}) do out[name] = value end
    return setmetatable(out, { __index = more })
  end
  -- How far y is from want, in units of the last place of its largest value.
  local function off(y, want)
    local r, most = nb.compare(want:cast "f32", y:cast "f32"), 0
    for _, v in ipairs(want:cast("f32"):totable()) do most = math.max(most, math.abs(v)) end
    if r.odd > 0 then return "odd values" end
    local units = r.max_abs / math.max(most, 1e-30) * (y:type() == "bf16" and 2 ^ 8 or 2 ^ 11)
    return units <= 2 and "same" or units
  end
  local function same(o)
    local x, more = layer(o)
    local y = moe.forward(x:to "cuda", there(more))
    local want = moe.forward(x, more)
    io.write(tostring(off(assert(y:to "cpu"), want)), y:type() == want:type() and " " or " other dtype ")
  end
  local base = { tokens = 5, top = 2, experts = 4, hidden = 128, inner = 64 }
  local function with(o) return setmetatable(o, { __index = base }) end
]]

describe("moe.forward of tensors on a device", function()
  it("gives the CPU's y: dtypes, bits, zero-points, groups, biases, orders", function()
    assert.equal(("same "):rep(6), process [[
      same(with { bias = true })
      same(with { dtype = "bf16", bits = 8, zeros = true, group = 32 })
      same(with { zeros = true, group = -1, bias = true, tokens = 40 })
      same(with { dtype = "bf16", tokens = 1 })
      local function order(k)
        local list = {}
        for e = 1, 4 do
          local t = nb.tensor("i32", { k })
          for i = 0, k - 1 do t:set(i + 1, math.floor((i * 37 + e) % k / 32)) end
          list[e] = t
        end
        return list
      end
      same(with { group = 32, order = order, bias = true })
      same(with { group = 32, order = order, dtype = "bf16", with = { router_weight_on_input = true, any_top = true } })]])
  end)

  it("knows every activation", function()
    assert.equal(("same "):rep(10), process [[
      for _, name in ipairs(moe.activations()) do
        same(with { activation = name, tokens = 3, with = { activation = name, limit = name == "swigluoai_uninterleave" and 5 or nil } })
      end]])
  end)

  it("puts the router's weight on the input, behind w13, or on the output; in float32, or over x", function()
    assert.equal(("same "):rep(5), process [[
      same(with { top = 1, with = { router_weight_on_input = true } })
      same(with { with = { router_weight_on_input = true, any_top = true } })
      same(with { top = 1, with = { router_weight_on_input = "after_w13" } })
      same(with { with = { dtype = "f32" } })
      local x, more = layer(with { with = { inplace = true } })
      local far = x:to "cuda"
      local y = moe.forward(far, there(more))
      assert(y == far)
      io.write(tostring(off(y:to "cpu", moe.forward(x, more))), " ")]])
  end)

  it("takes experts of a map, ids outside, experts without tokens and no tokens", function()
    assert.equal("same same same same 0 128", process [[
      same(with { experts = 2, map = { -1, 1, -1, 0, -1, -1 }, tokens = 9, top = 3 })
      same(with { experts = 2, map = { -1, 1, 0 }, tokens = 2, ids = nb.tensor("i32", { 2, 2 }, { 0, 3, -1, 7 }) })
      same(with { experts = 4, tokens = 2, ids = nb.tensor("i32", { 2, 2 }, { 4, -1, 2, 2 ^ 31 - 1 }) })
      same(with { experts = 16, tokens = 2, top = 1 })
      local x, more = layer(with { tokens = 1 })
      local none = moe.forward(nb.tensor("f16", { 0, 128 }):to "cuda", there(more, { ids = nb.tensor("i32", { 0, 2 }):to "cuda",
        weights = nb.tensor("f32", { 0, 2 }):to "cuda" }))
      io.write(none:size(1), " ", none:size(2))]])
  end)

  it("routes there too, in a graph that is launched again, with the same bits", function()
    assert.equal("same true true", process [[
      local cuda = nb.cuda
      local x, more = layer(with { tokens = 7 })
      local logits = awq.floats("f32", { 7, 4 }, -2, 2)
      local far, o, wide = x:to "cuda", there(more), logits:to "cuda"
      local function step()
        o.weights, o.ids = moe.route(wide, { top = 2, normalize = true })
        return moe.forward(far, o)
      end
      local once = step():to "cpu"
      more.weights, more.ids = moe.route(logits, { top = 2, normalize = true })
      io.write(tostring(off(once, moe.forward(x, more))), " ")
      local g, made = assert(cuda.graph(step))
      assert(g())
      assert(cuda.wait())
      io.write(tostring(made:to("cpu"):equal(once)), " ")
      assert(g())
      assert(cuda.wait())
      io.write(tostring(made:to("cpu"):equal(once)))]])
  end)

  it("takes batches of experts' own rows", function()
    assert.equal("same [4x6x128] same", process [[
      local x, more = layer(with { tokens = 24, bias = true })
      x = x:reshape(4, 6, 128)
      more.counts = nb.tensor("i32", { 4 }, { 6, 0, 1, 3 })
      local y, want = moe.batched(x:to "cuda", there(more)):to "cpu", moe.batched(x, more)
      io.write(tostring(off(y, want)), " [", table.concat(y:size(), "x"), "] ")
      local zeros = true
      for i = 6 * 128 + 1, 12 * 128 do zeros = zeros and y:get(i) == 0 end
      io.write(zeros and "same" or "not zero")]])
  end)

  it("multiplies a peer's processed layer (golden)", function()
    assert.equal("same", process [[
      local ck = assert(nb.open "spec/golden/cases/gptq_moe_layer_w8_e2_h128_i64_g64_a16_float16.safetensors")
      local function stack(w, k, n)
        return { type = "uint8b128", k = k, n = n, group = 64, dtype = "f16", words = ck:tensor("out." .. w .. "_qweight"):clone(),
          scales = ck:tensor("out." .. w .. "_scales"):clone() }
      end
      local more = { experts = 2, w13 = stack("w13", 128, 128), w2 = stack("w2", 64, 128), ids = experts.ids(5, 2, 2),
        weights = awq.floats("f32", { 5, 2 }, 0.1, 1) }
      local x = awq.floats("f16", { 5, 128 }, -0.1, 0.1)
      io.write(tostring(off(moe.forward(x:to "cuda", there(more)):to "cpu", moe.forward(x, more))))]])
  end)

  it("says in a sentence what it doesn't take", function()
    local said = process [[
      local x, more = layer(with { bias = true })
      local far, o = x:to "cuda", there(more)
      local function says(x, changes)
        print((select(2, pcall(moe.forward, x, setmetatable(changes, { __index = o })))))
      end
      says(x:cast("f32"):to "cuda", {})
      says(far, { ids = more.ids })
      says(far, { weights = nb.tensor("f32", { 5, 1 }):to "cuda" })
      says(far, { w13 = function() end })
      says(far, { strict = true })
      says(far, { expert_map = nb.tensor("i32", { 4 }) })
      says(far, { dtype = "bf16" })
      says(far, { dtype = "f32", inplace = true })
      says(far, { router_weight_on_input = true })
      says(far, { w2 = more.w2 })
      says(far, { activation = "slu" })
      says(far, { activation = "silu_no_mul" })
      says(far, { experts = 5 })
      io.write(tostring(off(moe.forward(far, o):to "cpu", moe.forward(x, more))))]]
    local expected = {
      "x must be an f16 or bf16 tensor %[tokens, hidden%], found f32", "ids must be i32 %[5 tokens, k%] on cuda:0, found i32 %[5x2%] on cpu",
      "weights must be f32 %[5 tokens, k%]", "w13 must be the stacks of Marlin's experts", "strict",
      "expert_map must be i32", "y is f32 or as x, which is f16, found bf16", "cannot be written over an x in f16",
      "only where each token has 1 expert, found 2", "in the computer's memory", "unknown activation", "x has 128 columns for K = 64",
      "words of 4 experts, and the layer has 5", "same",
    }
    standin.each_line(said, expected)
  end)
end)

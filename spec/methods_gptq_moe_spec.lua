-- GPTQ experts on Marlin, converted and run as the WNA16 oracle's document says (ORC-14 to ORC-21).
local nb = require "nibble"
local layer = require "nibble.methods.layer"
local gptq = require "nibble.methods.gptq_marlin_moe"
local support = require "spec.support.experts"
local layout = nb.layout

local H, I, E = 128, 128, 3

-- One projection as a GPTQ file has it, and the float weight it stands for. Gate and up share their g_idx.
local function projection(n, k, o, seed)
  local bits, groups = o.bits, o.group == -1 and 1 or k / o.group
  local codes, scales = support.codes(n, k, bits, seed), support.floats(n, groups, seed + 1, 0.02):cast "f16"
  local g_idx = nb.tensor("i32", { k })
  for c = 0, k - 1 do g_idx:set(c + 1, o.desc_act and (c * 7 + math.floor(seed / 10)) % groups or math.floor(c * groups / k)) end
  return { qweight = layout.gptq.pack(codes, bits), scales = scales:transpose(), g_idx = g_idx,
    qzeros = nb.tensor("i32", { groups, n * bits / 32 }) }, support.weight(codes, scales, bits, g_idx)
end

-- The largest difference to the dequantized reference, over tp ranks.
local function error_of(o, tp)
  local experts, floats = {}, {}
  for e = 1, E do
    experts[e], floats[e] = {}, {}
    for j, w in ipairs { "w1", "w2", "w3" } do
      experts[e][w], floats[e][w] = projection(w == "w2" and H or I, w == "w2" and I or H, o, e * 10 + j)
    end
  end
  local x = support.floats(5, H, 3)
  local weights, ids = support.routed(5, 2, E)
  local got = support.over_ranks(tp, 1, function(ranks)
    local method = assert(gptq.new({ bits = o.bits, group = o.group, sym = true, desc_act = o.desc_act },
      { activations = o.activations }))
    local L = layer.new { name = "mlp.experts", kind = "moe", dtype = "f16", experts = E, hidden = H, intermediate = I, top = 2,
      tp = ranks.tp, rank = ranks.rank }
    assert(method:create(L))
    for e, files in ipairs(experts) do
      for _, w in ipairs { "w1", "w2", "w3" } do method:load(L, e - 1, w, files[w]) end
    end
    assert(method:process(L))
    assert.has_error(function() method:process(L) end, "layer mlp.experts: its weights are processed already")
    return method:apply(L, x, weights, ids)
  end)
  return support.error(support.reference(x, weights, ids, floats), got)
end

describe("gptq_marlin_moe", function()
  it("ORC-15, ORC-18: runs from the conversion's values as the dequantized weights do, on 1 and 2 ranks", function()
    for _, o in ipairs { { bits = 4, group = 32 }, { bits = 8, group = 64 }, { bits = 4, group = -1 } } do
      assert.is_true(error_of(o, 1) < 1e-5)
      assert.is_true(error_of(o, 2) < 1e-5)
    end
  end)

  it("ORC-17: in activation order, w2's scales whole and its K cut", function()
    assert.is_true(error_of({ bits = 4, group = 32, desc_act = true }, 1) < 1e-5)
    assert.is_true(error_of({ bits = 4, group = 32, desc_act = true }, 2) < 1e-5)
    assert.is_true(error_of({ bits = 4, group = 64, desc_act = true }, 2) < 1e-5) -- a rank's K is one group long, and has two
  end)

  it("ORC-16, ORC-20: int8 and fp8 activations stay near", function()
    assert.is_true(error_of({ bits = 4, group = 32, activations = "int8" }, 1) < 0.03)
    assert.is_true(error_of({ bits = 4, group = 32, activations = "fp8" }, 1) < 0.08)
  end)

  it("refuses what Marlin has no experts for", function()
    local function why(config, options) return (select(2, gptq.new(config, options))) end
    assert.equal("gptq_marlin_moe takes symmetric weights of 4 or 8 bits, found 4 bits, asymmetric", why { bits = 4, group = 32 })
    assert.equal("gptq_marlin_moe takes symmetric weights of 4 or 8 bits, found 3 bits, symmetric",
      why { bits = 3, group = 32, sym = true })
    assert.matches("W8A8 is unsupported", why({ bits = 8, group = 32, sym = true }, { activations = "int8" }))
    local L = layer.new { name = "m", kind = "moe", experts = 2, hidden = 100, intermediate = 128 }
    assert.equal("layer m: the hidden size 100 is not a multiple of 128",
      (select(2, assert(gptq.new { bits = 4, group = 32, sym = true }):create(L))))
  end)
end)

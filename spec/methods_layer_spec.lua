-- Layers: sizes per rank, parameters, loading and sharding (MRL-58, MRL-59, AWQ-22, AWQ-32, FWD-13).
local nb = require "nibble"
local layer = require "nibble.methods.layer"

local function count(dtype, shape, from)
  local t = nb.tensor(dtype, shape)
  for i = 1, t:numel() do t:set(i, i - 1 + (from or 0)) end
  return t
end

local function values(t) return t:totable() end

describe("a linear layer", function()
  it("AWQ-22: output-parallel ranks cut N, input-parallel ones K", function()
    local column = layer.new { name = "qkv", k = 256, outputs = { 64, 32, 32 }, parallel = "column", tp = 2, rank = 1 }
    assert.same({ 256, 64, 256, 128 }, { column.k, column.n, column.k_full, column.n_full })
    assert.same({ 32, 16, 16 }, column.parts)
    local row = layer.new { name = "o", k = 256, n = 64, parallel = "row", tp = 2 }
    assert.same({ 128, 64, 256, 64 }, { row.k, row.n, row.k_full, row.n_full })
  end)

  it("AWQ-22: sizes that the ranks don't divide are refused with both numbers", function()
    assert.has_error(function() layer.new { name = "o", k = 100, n = 64, parallel = "row", tp = 3 } end,
      "layer o: k = 100 does not divide among 3 tensor-parallel ranks")
    assert.has_error(function() layer.new { name = "o", k = 2.5, n = 4 } end,
      "layer o: k must be a whole number of at least 1, found 2.5")
    assert.has_error(function() layer.new { name = "o", k = 2, n = 4, tp = 2, rank = 2 } end, "layer o: rank 2 of 2")
    assert.equal("lm_head", layer.new({ name = "lm_head", kind = "lm_head", k = 2, n = 4 }).kind)
    assert.has_error(function() layer.new { name = "o", kind = "conv" } end,
      "layer o: kind must be linear, lm_head or moe, found conv")
    assert.has_error(function() layer.new { name = "o", k = 2, n = 4, parallel = "both" } end,
      'layer o: parallel must be "column" or "row", found both')
  end)

  it("AWQ-22: a fused shard goes to its place, packed sizes in words, each rank its part", function()
    for rank = 0, 1 do
      local L = layer.new { name = "qkv", k = 4, outputs = { 32, 16 }, shards = { "q_proj", "k_proj" }, parallel = "column",
        tp = 2, rank = rank }
      L:register("qweight", { dtype = "i32", shape = { 4, L.n / 8 }, input_dim = 0, output_dim = 1, packed_dim = 1, pack_factor = 8 })
      local q, k = count("i32", { 4, 4 }), count("i32", { 4, 2 }, 100)
      L:load("qweight", q, "q_proj")
      L:load("qweight", k, 2)
      local got = L:get "qweight"
      for r = 1, 4 do
        assert.equal(q:get { r, 2 * rank + 1 }, got:get { r, 1 })
        assert.equal(q:get { r, 2 * rank + 2 }, got:get { r, 2 })
        assert.equal(k:get { r, rank + 1 }, got:get { r, 3 })
      end
      local both = nb.tensor("i32", { 4, 6 })
      layer.block(both, 0, q, 0, 4, 1)
      layer.block(both, 4, k, 0, 2, 1)
      local before = got:clone()
      got:fill(0)
      L:load("qweight", both)
      assert.is_true(L:get("qweight"):equal(before))
    end
  end)

  it("MRL-59: input-parallel ranks share a single row of scales and cut several", function()
    local function scales(groups, rank)
      local L = layer.new { name = "o", k = 8, n = 2, parallel = "row", tp = 2, rank = rank }
      L:register("scales", { dtype = "f32", shape = { math.max(1, groups / 2), 2 }, input_dim = 0, output_dim = 1 })
      L:load("scales", count("f32", { groups, 2 }))
      return values(L:get "scales")
    end
    assert.same({ 0, 1 }, scales(1, 0))
    assert.same({ 0, 1 }, scales(1, 1))
    assert.same({ 4, 5, 6, 7 }, scales(4, 1))
    assert.same({ 0, 1, 2, 3 }, scales(4, 0))
  end)

  it("loads one value a shard, casts floats, and names what doesn't fit", function()
    local L = layer.new { name = "gu", k = 4, outputs = { 8, 8 }, shards = { "gate_proj", "up_proj" }, parallel = "column", tp = 2 }
    L:register("weight_scale", { dtype = "f32", shape = { 2 } })
    L:load("weight_scale", nb.tensor("f32", { 1 }, { 3 }), "up_proj")
    L:load("weight_scale", nb.tensor("f32", { 1 }, { 5 }):cast "bf16", 1)
    assert.same({ 5, 3 }, values(L:get "weight_scale"))
    L:register("bias", { dtype = "f16", shape = { L.n }, output_dim = 0 })
    L:load("bias", count("f32", { 8 }), "up_proj")
    assert.same({ 0, 0, 0, 0, 0, 1, 2, 3 }, values(L:get "bias"))
    L:register("qweight", { dtype = "i32", shape = { 4, 2 }, input_dim = 0, output_dim = 1 })
    assert.has_error(function() L:load("qweight", nb.tensor("i64", { 4, 2 }), 1) end,
      "layer gu: qweight takes i32, the checkpoint's tensor is i64")
    assert.has_error(function() L:load("bias", count("f32", { 9 }), 1) end,
      "layer gu: bias is [8] on this rank, the checkpoint's tensor is [9]: dimension 0 must be 8 (2 ranks of 4)")
    assert.has_error(function() L:load("bias", count("f32", { 8 }), "v_proj") end,
      "layer gu: bias has no shard v_proj: expected gate_proj, up_proj")
    assert.has_error(function() L:load("baas", count("f32", { 8 })) end, 'layer gu has no parameter "baas"; did you mean "bias"?')
  end)
end)

describe("parameters", function()
  local function made()
    local L = layer.new { name = "l", k = 4, n = 4 }
    L:register("w", { dtype = "f32", shape = { 2, 2 }, output_dim = 1, scale_method = "group" })
    return L
  end

  it("MRL-58: data of the same form go into the storage that is there", function()
    local L = made()
    local at = L:get("w").data
    L:replace("w", nb.tensor("f32", { 2, 2 }, { 1, 2, 3, 4 }))
    assert.equal(at, L:get("w").data)
    assert.same({ 1, 2, 3, 4 }, values(L:get "w"))
  end)

  it("MRL-58: another shape or dtype rebinds, attributes survive, nil clears", function()
    local L = made()
    local at, new = L:get("w").data, nb.tensor("f32", { 4 })
    L:replace("w", new)
    assert.are_not.equal(at, L:get("w").data)
    assert.equal("group", L:param("w").scale_method)
    assert.same({ 4 }, L:param("w").shape)
    L:replace("w", nb.tensor("f16", { 4 }))
    assert.equal("f16", L:param("w").dtype)
    L:replace("w", nil)
    assert.is_nil(L:get "w")
    assert.same({}, L:names())
  end)

  it("MRL-58: registers only what is absent; tied parameters can't be replaced", function()
    local L = made()
    L:replace("new", nb.tensor("f32", { 1 }))
    assert.same({ "w", "new" }, L:names())
    assert.has_error(function() L:register("w", { dtype = "f32", shape = { 1 } }) end,
      "layer l: the parameter w is registered already")
    L:register("head", { dtype = "f32", shape = { 1 }, tied = true })
    assert.has_error(function() L:replace("head", nb.tensor("f32", { 1 })) end,
      "layer l: head is tied to another layer's parameter and can't be replaced; untie it first")
    L:rename("w", "v")
    assert.same({ "v", "new", "head" }, L:names())
    assert.has_error(function() L:rename("w", "u") end, "layer l has no parameter w")
  end)
end)

describe("experts", function()
  local function experts(o)
    o.name, o.kind, o.experts, o.hidden, o.intermediate = "mlp", "moe", 4, 6, 4
    return layer.new(o)
  end

  it("AWQ-32: w13 holds gate, then up; ranks cut I of both, never H", function()
    local L = experts { tp = 2, rank = 1 }
    assert.same({ 4, 6, 2, 4, 2 }, { L.e, L.h, L.i, L.i_full, L.s })
    L:register("w13", { dtype = "f32", shape = { 4, 2 * L.i, 6 } })
    L:register("w2", { dtype = "f32", shape = { 4, 6, L.i } })
    local w1, w3, w2 = count("f32", { 4, 6 }), count("f32", { 4, 6 }, 100), count("f32", { 6, 4 }, 200)
    assert.is_true(L:load_expert("w13", w1, "w1", 2))
    assert.is_true(L:load_expert("w13", w3, "w3", 2))
    assert.is_true(L:load_expert("w2", w2, "w2", 2))
    local got = L:get("w13"):rows(3, 3):reshape { 4, 6 }
    assert.is_true(got:rows(1, 2):equal(w1:rows(3, 4)))
    assert.is_true(got:rows(3, 4):equal(w3:rows(3, 4)))
    local down = L:get("w2"):rows(3, 3):reshape { 6, 2 }
    for r = 1, 6 do assert.equal(w2:get { r, 4 }, down:get { r, 2 }) end
  end)

  it("FWD-13: transposed parameters swap the axis that is cut; flip turns the file's tensor", function()
    local L = experts { tp = 2, rank = 1 }
    L:register("w13", { dtype = "f32", shape = { 4, 6, 2 * L.i }, transposed = true })
    L:register("w2", { dtype = "f32", shape = { 4, L.i, 6 }, transposed = true, flip = true })
    local w3, w2 = count("f32", { 6, 4 }), count("f32", { 6, 4 }, 50)
    L:load_expert("w13", w3, "w3", 0)
    L:load_expert("w2", w2, "w2", 0)
    local up, down = L:get("w13"):rows(1, 1):reshape { 6, 4 }, L:get("w2"):rows(1, 1):reshape { 2, 6 }
    for r = 1, 6 do
      assert.equal(w3:get { r, 3 }, up:get { r, 3 })
      assert.equal(0, up:get { r, 1 })
      assert.equal(w2:get { r, 4 }, down:get { 2, r })
    end
  end)

  it("FWD-13: experts of other ranks are skipped and reported false", function()
    local L = experts { ep = 2, ep_rank = 1 }
    assert.same({ -1, -1, 0, 1 }, values(L.expert_map))
    L:register("w2", { dtype = "f32", shape = { L.e, 6, 4 } })
    assert.is_false(L:load_expert("w2", count("f32", { 6, 4 }), "w2", 1))
    assert.is_true(L:load_expert("w2", count("f32", { 6, 4 }), "w2", 3))
    assert.equal(5, L:get("w2"):get { 2, 2, 2 })
  end)

  it("FWD-13: scalar scales go to column 0 and 1; w1 and w3 share an input scale", function()
    local L = experts {}
    L:register("scale", { dtype = "f32", shape = { 4, 2 }, scale_method = "tensor" })
    L:register("input", { dtype = "f32", shape = { 4 }, scale_method = "tensor", shared = true })
    local function one(v) return nb.tensor("f32", { 1 }, { v }) end
    L:load_expert("scale", one(7), "w1", 1)
    L:load_expert("scale", one(8), "w3", 1)
    assert.same({ 0, 0, 7, 8 }, { unpack(values(L:get "scale"), 1, 4) })
    L:load_expert("input", one(2), "w1", 1)
    L:load_expert("input", one(2.000001), "w3", 1)
    assert.has_error(function() L:load_expert("input", one(3), "w3", 1) end,
      "layer mlp: input of expert 1: w1 and w3 must have one input scale, found 2 and 3")
  end)

  it("FWD-13: act-order's w2 scales and channel scales are whole on every rank", function()
    local L = experts { tp = 2 }
    L:register("group", { dtype = "f32", shape = { 4, 6, 4 }, scale_method = "group", whole = true })
    L:register("channel", { dtype = "f32", shape = { 4, 6, 1 }, scale_method = "channel" })
    L:register("g_idx", { dtype = "i32", shape = { 4, L.i }, input_dim = 0 })
    L:load_expert("group", count("f32", { 6, 4 }), "w2", 0)
    L:load_expert("channel", count("f32", { 6, 1 }), "w2", 0)
    L:load_expert("g_idx", count("i32", { 4 }), "w2", 0)
    assert.equal(23, L:get("group"):get { 1, 6, 4 })
    assert.equal(5, L:get("channel"):get { 1, 6, 1 })
    assert.same({ 0, 1 }, { unpack(values(L:get "g_idx"), 1, 2) })
  end)

  it("FWD-13: unknown shards, experts and scale methods are errors", function()
    local L = experts {}
    L:register("w2", { dtype = "f32", shape = { 4, 6, 4 }, scale_method = "row" })
    local t = count("f32", { 6, 4 })
    assert.has_error(function() L:load_expert("w2", t, "w4", 0) end, "layer mlp: w2: the shard must be w1, w2 or w3, found w4")
    assert.has_error(function() L:load_expert("w2", t, "w2", 4) end, "layer mlp: w2: expert 4 of 4")
    assert.has_error(function() L:load_expert("w2", t, "w2", 0) end,
      'layer mlp: w2: unknown scale method "row": expected tensor, channel, group or block')
    assert.has_error(function() experts { ep = 3 } end, "layer mlp: experts = 4 does not divide among 3 expert-parallel ranks")
  end)
end)

-- pymllm's AWQ layers on Marlin (MRL-06, MRL-55 to MRL-57, MRL-59; SYSTEMS C-02, C-03, C-04, C-05).
local nb = require "nibble"
local layer = require "nibble.methods.layer"
local pymllm = require "nibble.methods.pymllm"
local ck = require "spec.support.awq"
local layout = nb.layout

local function new(o, options)
  return assert(pymllm.new(setmetatable(o, { __index = { bits = 4, group = 64, zero_point = true } }), options))
end

local function loaded(method, m, o)
  local L = layer.new(setmetatable(o or {}, { __index = { name = "proj", dtype = "bf16", k = m.q.k, n = m.q.n } }))
  assert(method:create(L))
  for _, name in ipairs { "qweight", "qzeros", "scales" } do L:load(name, m[name]) end
  return L
end

local function ready(method, m, o)
  local L = loaded(method, m, o)
  if o and o.values then L:load("bias", o.values) end
  assert(method:process(L))
  return L
end

describe("a pymllm AWQ layer", function()
  before_each(function() math.randomseed(21) end)

  it("MRL-06: SM 80 and up, groups are checked, types are not: 8 bits are taken, and other bits refused", function()
    local none, msg, code = pymllm.new({ bits = 4, group = 128, zero_point = true }, { capability = 75 })
    assert.is_nil(none)
    assert.equal("pymllm awq_marlin: Marlin needs a device of SM 80 or above, found SM 75", msg)
    assert.equal("eunsupported", code)
    assert.matches("group size 16", select(2, pymllm.new { bits = 4, group = 16, zero_point = true }))
    assert.equal("pymllm awq_marlin: 3 bits are not supported, only 4, 8",
      select(2, pymllm.new { bits = 3, group = 128, zero_point = true }))
    assert.is_table(new { bits = 8 })
    assert.is_table(new { zero_point = false })
    assert.equal("vllm", nb.marlin.policy)
  end)

  it("MRL-55: parameters of the fused outputs; g = -1 means the whole K", function()
    for _, bits in ipairs { 4, 8 } do
      local L = layer.new { name = "qkv", dtype = "f16", k = 256, outputs = { 128, 64, 64 } }
      assert(new({ bits = bits }):create(L))
      assert.same({ 256, 256 * bits / 32 }, L:get("qweight"):size())
      assert.same({ 4, 256 * bits / 32 }, L:get("qzeros"):size())
      assert.same({ 4, 256 }, L:get("scales"):size())
      assert.equal("f16", L:get("scales"):type())
      for _, name in ipairs { "qweight", "qzeros", "scales" } do
        assert.same({ 0, 1 }, { L:param(name).input_dim, L:param(name).output_dim })
      end
    end
    local L = layer.new { name = "down", dtype = "f16", k = 256, n = 64, parallel = "row", tp = 2 }
    assert(new({ group = -1 }):create(L))
    assert.same({ 1, 64 }, L:get("scales"):size())
  end)

  it("MRL-55, MRL-05: a shape that doesn't fit is raised, or told for a fallback where asked (SYSTEMS C-05)", function()
    local function made(o, options) return new({ group = o.group }, options):create(layer.new(o)) end
    assert.error_matches(function() made { name = "o", k = 128, n = 96 } end, "layer o: N = 96 is not a multiple of 64: use a smaller")
    assert.error_matches(function() made { name = "o", k = 64, n = 64 } end, "layer o: K = 64 is not a multiple of 128")
    local ok, msg, code = made({ name = "o", k = 128, n = 96 }, { on_bad_shape = "fallback" })
    assert.is_nil(ok)
    assert.matches("layer o: N = 96", msg)
    assert.equal("eunsupported", code)
  end)

  it("MRL-56: workspace, weights, scales, zero-points, empty indices, in this order; 4 and 8 bits (SYSTEMS C-02, C-03)", function()
    for _, bits in ipairs { 4, 8 } do
      local m = ck.matrix { n = 64, k = 256, group = 64, bits = bits }
      local L = loaded(new({ bits = bits }, { sms = 7 }), m, { bias = true })
      assert.is_nil(L.workspace)
      assert(new({ bits = bits }, { sms = 7 }):process(L))
      assert.same({ "workspace", "qweight", "scales", "qzeros", "g_idx", "g_idx_sort_indices" }, L.steps)
      assert.same({ 7 }, L.workspace:size()) -- one block a multiprocessor
      assert.is_true(L:get("qweight"):equal(layout.marlin.awq_repack(m.qweight, bits)))
      assert.is_true(L:get("scales"):equal(layout.marlin.permute_scales(m.scales, 256, 64)))
      assert.is_true(L:get("qzeros"):equal(layout.marlin.awq_zero_points(m.qzeros, bits)))
      assert.same({ 0 }, L:get("g_idx"):size())
      assert.same({ 0 }, L:get("g_idx_sort_indices"):size())
      assert.is_nil(L:param("bias").permuted)
    end
  end)

  it("MRL-57: x·Ŵ, then the bias in its plain order; leading dimensions stay; 4 and 8 bits, g = -1", function()
    for _, o in ipairs { { 4, 64 }, { 8, 64 }, { 4, -1 }, { 8, 128 } } do
      local m = ck.matrix { n = 128, k = 256, group = o[2], bits = o[1] }
      local bias, x = ck.whole({ 128 }, "bf16"), ck.whole { 6, 256 }
      local method = new { bits = o[1], group = o[2] }
      local L = ready(method, m, { bias = true, values = bias })
      local y = method:apply(L, x:reshape { 3, 2, 256 })
      assert.same({ 3, 2, 128 }, y:size())
      assert.is_true(ck.product(x, m.w, bias):equal(y:reshape { 6, 128 }))
      assert.is_true(ck.product(x, m.w):equal(method:apply(L, x, false)))
      assert.is_true(y:equal(method:finish(L, y)))
      local alone = ready(method, m, { bias = true, values = bias, parallel = "row" }) -- nothing to reduce
      assert.is_true(ck.product(x, m.w, bias):equal(method:apply(alone, x)))
    end
  end)

  it("MRL-57: the product is rounded to x's dtype before the bias is added", function()
    local m = ck.matrix { n = 64, k = 128, group = 64, scales = ck.floats }
    local bias = ck.floats("bf16", { 64 }, -1, 1)
    local method = new {}
    local L = ready(method, m, { bias = true, values = bias })
    local x = ck.floats("bf16", { 2, 128 }, -1, 1)
    local product, y = method:apply(L, x, false), method:apply(L, x)
    for i = 1, y:numel() do
      local sum = nb.tensor("bf16", { 1 }, { product:get(i) + bias:get((i - 1) % 64 + 1) })
      assert.equal(sum:get(1), y:get(i))
    end
  end)

  it("MRL-57: a bias in Marlin's order is an error (SYSTEMS C-04)", function()
    local m = ck.matrix { n = 64, k = 128, group = 64 }
    local method = new {}
    local L = ready(method, m)
    local permuted = { data = layout.marlin.permute_bias(ck.whole({ 64 }, "bf16")), permuted = true }
    assert.error_matches(function() method:apply(L, ck.whole { 1, 128 }, permuted) end,
      "the bias is in Marlin's order, the method takes its plain")
    assert.error_matches(function() method:apply(loaded(method, m), ck.whole { 1, 128 }) end, "layer proj is not processed yet")
  end)

  it("MRL-57, MRL-59: row-parallel ranks add the bias after the sum; column-parallel ones their part", function()
    for _, group in ipairs { 64, -1 } do
      local m = ck.matrix { n = 128, k = 256, group = group }
      local bias, x = ck.whole({ 128 }, "bf16"), ck.whole { 3, 256 }
      local want = ck.product(x, m.w, bias)
      local method, sum, L = new { group = group }, nb.tensor("f32", { 3, 128 }), nil
      for rank = 0, 1 do
        L = ready(method, m, { parallel = "row", tp = 2, rank = rank, bias = true, values = bias })
        nb.compute.add(sum, method:apply(L, ck.columns(x, 128 * rank + 1, 128 * rank + 128)))
        local C = ready(method, m, { parallel = "column", tp = 2, rank = rank, bias = true, values = bias })
        assert.is_true(ck.columns(want, 64 * rank + 1, 64 * rank + 64):equal(method:apply(C, x)))
      end
      assert.is_true(ck.product(x, m.w):equal(sum))
      assert.is_true(want:equal(method:finish(L, sum)))
    end
  end)

  it("MRL-55: a checkpoint without zero-points is symmetric", function()
    for _, bits in ipairs { 4, 8 } do
      local m = ck.matrix { n = 64, k = 128, group = 64, bits = bits, symmetric = true }
      local method = new { bits = bits, zero_point = false }
      local L = layer.new { name = "o", dtype = "bf16", k = 128, n = 64 }
      assert(method:create(L))
      L:load("qweight", m.qweight)
      L:load("scales", m.scales)
      assert(method:process(L))
      local x = ck.whole { 2, 128 }
      assert.is_true(ck.product(x, m.w):equal(method:apply(L, x)))
    end
  end)
end)

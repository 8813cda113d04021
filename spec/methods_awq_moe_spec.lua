-- AWQ experts: on Marlin (AWQ-30 to AWQ-38, SYSTEMS C-03, C-06, C-09, C-10, C-20) and in the generic kernels' bytes
-- (AWQ-16, AWQ-39, AWQ-40).
local nb = require "nibble"
local gemm = require "nibble.gemm"
local on_marlin = require "nibble.methods.awq_marlin_moe"
local generic = require "nibble.methods.moe_wna16"
local ck = require "spec.support.awq"
local ex = require "spec.support.awq_experts"
local layout = nb.layout

local function marlin(group, options) return assert(on_marlin.new({ bits = 4, group = group, zero_point = true }, options)) end

local function bytes(group, more)
  return assert(generic.new(setmetatable(more or {}, { __index = { bits = 4, group = group, zero_point = true } })))
end

-- The experts' layer, loaded and processed.
local function ready(method, set, options)
  local L = ex.layer(set, options)
  assert(method:create(L))
  ex.load(L, set)
  assert(method:process(L))
  return L
end

describe("AWQ experts on Marlin", function()
  local set, x, weights, ids
  before_each(function()
    math.randomseed(5)
    set = ex.experts { experts = 4, hidden = 128, intermediate = 64, group = 32, bias = true }
    x = ck.floats("f32", { 5, 128 }, -1, 1)
    weights, ids = ex.routes(5, 2, 4)
  end)
  after_each(function() set, x, weights, ids = nil, nil, nil, nil end)

  it("AWQ-30: only 4 bits; k_full where the rank has the whole I; the activation dtype is on the layer", function()
    local none, msg = on_marlin.new { bits = 8, group = 32, zero_point = true }
    assert.is_nil(none)
    assert.equal("awq_marlin_moe: experts of 8 bits are not supported, only 4", msg)
    assert.is_nil((on_marlin.new { bits = 4, group = 32, zero_point = false }))
    local method = marlin(32, { activations = "int8" })
    local L = ex.layer(set)
    assert(method:create(L))
    assert.is_true(L.k_full)
    assert.equal("int8", L.input_dtype)
    L = ex.layer(ex.experts { experts = 2, hidden = 128, intermediate = 128, group = 32 }, { tp = 2 })
    assert(method:create(L))
    assert.is_false(L.k_full)
  end)

  it("AWQ-31: parameters and their attributes, gated and not", function()
    for _, gated in ipairs { true, false } do
      local s = gated and 2 or 1
      local L = ex.layer(set, { gated = gated })
      L.gated, L.s = gated, s
      assert(marlin(32):create(L))
      local want = { w13_qweight = { 4, 128, s * 8 }, w2_qweight = { 4, 64, 16 }, w13_scales = { 4, 4, s * 64 },
                     w2_scales = { 4, 2, 128 }, w13_qzeros = { 4, 4, s * 8 }, w2_qzeros = { 4, 2, 16 },
                     w13_bias = { 4, s * 64 }, w2_bias = { 4, 128 } }
      for _, name in ipairs(L:names()) do
        assert.same(want[name], L:get(name):size(), name)
        if not name:match "bias" then
          assert.is_true(L:param(name).transposed)
          assert.equal("group", L:param(name).scale_method)
        end
      end
      assert.equal(8, #L:names())
    end
  end)

  it("AWQ-31, MRL-50: the workspace has 4 blocks a multiprocessor, made at first use (SYSTEMS C-03)", function()
    local L = ready(marlin(32, { sms = 7 }), set)
    assert.is_nil(L.workspace)
    marlin(32, { sms = 7 }):apply(L, x, weights, ids)
    assert.same({ 28 }, L.workspace:size())
    L = ex.layer(set)
    assert(marlin(32, { sms = 7, compat = { workspace_at_create = true } }):create(L))
    assert.same({ 28 }, L.workspace:size())
  end)

  it("AWQ-32: gate is first, up next; ranks share I", function()
    local method = marlin(32)
    local wide = ex.experts { experts = 2, hidden = 128, intermediate = 128, group = 32 }
    local L = ex.layer(wide, { tp = 2, rank = 1 })
    assert(method:create(L))
    ex.load(L, wide)
    local words = L:get("w13_qweight"):rows(2, 2):reshape { 128, 16 }
    assert.is_true(ck.columns(words, 1, 8):equal(ck.columns(wide[1].w1.qweight, 9, 16)))
    assert.is_true(ck.columns(words, 9, 16):equal(ck.columns(wide[1].w3.qweight, 9, 16)))
    assert.is_true(L:get("w2_qweight"):rows(1, 1):reshape({ 64, 16 }):equal(wide[0].w2.qweight:rows(65, 128)))
    assert.is_true(L:get("w2_scales"):rows(1, 1):reshape({ 2, 128 }):equal(wide[0].w2.scales:rows(3, 4)))
  end)

  it("AWQ-33: g = -1 is one group, on every rank; or refused as the peer's negative groups are (SYSTEMS C-09)", function()
    local channel = ex.experts { experts = 2, hidden = 128, intermediate = 128, group = -1 }
    local method = marlin(-1)
    weights, ids = ex.routes(5, 1, 2)
    local want = ex.forward(channel, x, weights, ids)
    ex.close(want, method:apply(ready(method, channel), x, weights, ids), 1e-5)
    local sum = nb.tensor("f32", { 5, 128 })
    for rank = 0, 1 do
      local L = ready(method, channel, { tp = 2, rank = rank })
      assert.same({ 2, 1, 128 }, L:get("w2_scales"):size())
      nb.compute.add(sum, method:apply(L, x, weights, ids))
    end
    ex.close(want, sum, 1e-5)
    local ok, msg, code = marlin(-1, { compat = { refuse_channel_experts = true } }):create(ex.layer(channel))
    assert.is_nil(ok)
    assert.equal("layer mlp.experts: group_size -1 gives H / g = -128 groups: experts need groups", msg)
    assert.equal("eunsupported", code)
  end)

  it("AWQ-34: the steps in their order; the tensors that each leaves", function()
    local L = ready(marlin(32), set)
    assert.same({ "sort_indices w13", "sort_indices w2", "repack w13", "repack w2", "alias w13", "alias w2", "scales w13",
                  "scales w2", "zeros w13", "zeros w2", "bias w13", "bias w2" }, L.steps)
    assert.same({ 4, 8, 256 }, L:get("w13_qweight"):size())
    assert.same({ 4, 4, 256 }, L:get("w2_qweight"):size())
    assert.same({ 4, 0 }, L:get("w13_g_idx_sort_indices"):size())
    assert.same({ 4, 0 }, L:get("w2_g_idx_sort_indices"):size())
    assert.is_true(L:get("w13_weight").data == L:get("w13_qweight").data)
    assert.is_true(L:get("w2_weight").data == L:get("w2_qweight").data)
    assert.is_nil(L:get "w13_input_global_scale")
    local raw = ex.layer(set)
    assert(marlin(32):create(raw))
    ex.load(raw, set)
    assert.is_true(L:get("w13_scales"):equal(layout.marlin.permute_scales(raw:get "w13_scales", 128, 32)))
    assert.is_true(L:get("w2_qzeros"):equal(layout.marlin.awq_zero_points(raw:get "w2_qzeros", 4)))
    assert.is_true(L:get("w2_bias"):equal(layout.marlin.permute_bias(raw:get "w2_bias")))
    assert.is_true(L:param("w13_bias").permuted)
    assert.error_matches(function() marlin(32):process(L) end, "layer mlp.experts was processed before, or interrupted")
  end)

  it("AWQ-34, AWQ-35: fp8 comes first, on AWQ's words with AWQ's zero-points, which stay; scales times 512", function()
    local raw = ex.layer(set)
    assert(marlin(32):create(raw))
    ex.load(raw, set)
    local L = ready(marlin(32, { activations = "fp8" }), set)
    assert.same({ "fp8 w13", "fp8 w2", "fp8_scales w13", "fp8_scales w2", "sort_indices w13" }, { unpack(L.steps, 1, 5) })
    local words = layout.marlin.fp8_preprocess(raw:get "w13_qweight", raw:get "w13_qzeros")
    assert.is_true(L:get("w13_qweight"):equal(layout.marlin.awq_repack(words, 4, true)))
    assert.is_true(L:get("w13_qzeros"):equal(layout.marlin.awq_zero_points(raw:get "w13_qzeros", 4, true)))
    local scales = layout.marlin.multiply_scales(raw:get "w2_scales", 512)
    assert.is_true(L:get("w2_scales"):equal(layout.marlin.permute_scales(scales, 64, 32, true)))
  end)

  it("AWQ-34: int8: a global scale for a matrix of several groups, none for one", function()
    local two = ex.experts { experts = 2, hidden = 128, intermediate = 64, group = 64 }
    local L = ready(marlin(64, { activations = "int8" }), two)
    assert.same({ 1 }, L:get("w13_input_global_scale"):size())
    assert.is_nil(L:get "w2_input_global_scale")
  end)

  it("AWQ-36: the description that kernels get", function()
    local method = marlin(32)
    local L = ready(method, set)
    local q = method:quant(L)
    assert.same({ 4, 32 }, { q.bits, q.group })
    for key, name in pairs { w1_scale = "w13_scales", w2_scale = "w2_scales", w1_zp = "w13_qzeros", w2_zp = "w2_qzeros",
                             w1_bias = "w13_bias", w2_bias = "w2_bias" } do
      assert.is_true(q[key]:equal(L:get(name)), key)
    end
    method.config.zero_point = false
    q = method:quant(L)
    assert.is_nil(q.w1_zp)
    assert.is_nil(q.w2_zp)
    local plain = ex.experts { experts = 1, hidden = 128, intermediate = 64, group = 32 }
    assert.is_nil(marlin(32):quant(ready(marlin(32), plain)).w1_bias)
  end)

  it("AWQ-37: modular experts are for LoRA, after the description; batched ones need their sizes", function()
    local method = marlin(32)
    local L = ready(method, set)
    assert.has_error(function() method:experts(L, {}) end,
      "awq_marlin_moe has its own apply: modular experts are for LoRA only")
    assert.has_error(function() method:experts(L, { lora = true }) end,
      "layer mlp.experts: call quant(L) before asking for experts")
    method:quant(L)
    local standard = method:experts(L, { lora = true })
    assert.equal("MarlinExperts", standard.name)
    assert.is_true(standard.k_full)
    assert.same({ 4, 0 }, standard.g_idx[1]:size())
    local want = ex.forward(set, x, weights, ids)
    ex.close(want, standard.apply(x, weights, ids), 1e-5)
    assert.error_matches(function() method:experts(L, { lora = true, format = "batched", dispatchers = 1 }) end,
      "batched experts need max_tokens_per_rank, found nil")
    assert.error_matches(function() method:experts(L, { lora = true, format = "batched", max_tokens_per_rank = 8 }) end,
      "batched experts need dispatchers, found nil")
    assert.error_matches(function() method:experts(L, { lora = true, format = "other" }) end, "found other")
    local batched = method:experts(L, { lora = true, format = "batched", max_tokens_per_rank = 8, dispatchers = 2 })
    assert.same({ "BatchedMarlinExperts", 8, 2 }, { batched.name, batched.max_tokens, batched.dispatchers })
    local moe = require "nibble.moe"
    local batch, counts, places = moe.dispatch(x, ids, 4)
    ex.close(want, moe.combine(batched.apply(batch, counts), places, weights), 1e-5)
  end)

  it("AWQ-38, AWQ-39: the forward pass equals the dequantized reference, as the generic bytes do", function()
    for _, o in ipairs { { 128, 64, 32, true }, { 256, 128, 128, false }, { 128, 128, 64, true } } do
      local one = ex.experts { experts = 3, hidden = o[1], intermediate = o[2], group = o[3], bias = o[4] }
      local input = ck.floats("f32", { 5, o[1] }, -1, 1)
      weights, ids = ex.routes(5, 2, 3)
      local want = ex.forward(one, input, weights, ids)
      for _, method in ipairs { marlin(o[3]), bytes(o[3]) } do
        ex.close(want, method:apply(ready(method, one), input, weights, ids), 1e-5)
      end
    end
  end)

  it("AWQ-38: bf16 activations, rounded as the kernels round", function()
    local method, xb = marlin(32), x:cast "bf16"
    local y = method:apply(ready(method, set), xb, weights, ids)
    assert.equal("bf16", y:type())
    ex.close(ex.forward(set, xb, weights, ids):cast "f32", y:cast "f32", 2 ^ -7)
  end)

  it("AWQ-38, FWD-10: int8 and fp8 activations, quantized before each product", function()
    local want = ex.forward(set, x, weights, ids)
    for activations, share in pairs { int8 = 0.02, fp8 = 0.08 } do
      local method = marlin(32, { activations = activations })
      local y = method:apply(ready(method, set), x, weights, ids)
      ex.close(want, y, share)
      assert.is_false(want:equal(y))
    end
  end)

  it("AWQ-38: the layer's activation is used, not SiLU always (SYSTEMS C-10)", function()
    local method = marlin(32)
    local want = ex.forward(set, x, weights, ids, { activation = "gelu" })
    ex.close(want, method:apply(ready(method, set, { activation = "gelu" }), x, weights, ids), 1e-5)
    method = marlin(32, { compat = { silu_always = true } })
    ex.close(ex.forward(set, x, weights, ids), method:apply(ready(method, set, { activation = "gelu" }), x, weights, ids), 1e-5)
    local ungated = ex.experts { experts = 2, hidden = 128, intermediate = 64, group = 32, gated = false }
    weights, ids = ex.routes(5, 2, 2)
    want = ex.forward(ungated, x, weights, ids, { activation = "relu2_no_mul" })
    method = marlin(32)
    ex.close(want, method:apply(ready(method, ungated, { activation = "relu2_no_mul" }), x, weights, ids), 1e-5)
  end)

  it("AWQ-38, AWQ-39: an expert map: each rank computes its experts; together they give the whole", function()
    local want = ex.forward(set, x, weights, ids)
    for _, method in ipairs { marlin(32), bytes(32) } do
      local sum = nb.tensor("f32", { 5, 128 })
      for rank = 0, 1 do
        local L = ready(method, set, { ep = 2, ep_rank = rank })
        assert.equal(2, L.e)
        nb.compute.add(sum, method:apply(L, x, weights, ids))
      end
      ex.close(want, sum, 1e-5)
    end
  end)

  it("AWQ-32, AWQ-38, AWQ-39: two ranks of I sum to the whole, biases once", function()
    local wide = ex.experts { experts = 3, hidden = 128, intermediate = 128, group = 32, bias = true }
    weights, ids = ex.routes(5, 2, 3)
    local want = ex.forward(wide, x, weights, ids)
    for _, method in ipairs { marlin(32), bytes(32) } do
      local sum = nb.tensor("f32", { 5, 128 })
      for rank = 0, 1 do nb.compute.add(sum, method:apply(ready(method, wide, { tp = 2, rank = rank }), x, weights, ids)) end
      ex.close(want, sum, 1e-5)
    end
  end)

  it("AWQ-38: the router's weight on the input: once, on w13's output; twice as the peer (SYSTEMS C-20)", function()
    weights, ids = ex.routes(5, 1, 4)
    local on_input = { router_weight_on_input = true }
    local want = ex.forward(set, x, weights, ids, { router_weight_on_input = "after_w13" })
    local method = marlin(32)
    ex.close(want, method:apply(ready(method, set, on_input), x, weights, ids), 1e-5)
    local twice = marlin(32, { compat = { router_weight_twice = true } })
    local scaled = nb.compute.scale_rows(x:clone(), weights:reshape { 5 })
    want = ex.forward(set, scaled, weights, ids, { router_weight_on_input = "after_w13" })
    ex.close(want, twice:apply(ready(twice, set, on_input), x, weights, ids), 1e-5)
    assert.error_matches(function() method:apply(ready(method, set, on_input), x, ex.routes(5, 2, 4)) end, "1 expert, found 2")
    -- without a bias of w13 it is the input that may as well be multiplied
    local plain = ex.experts { experts = 4, hidden = 128, intermediate = 64, group = 32 }
    want = ex.forward(plain, x, weights, ids, { router_weight_on_input = true })
    ex.close(want, method:apply(ready(method, plain, on_input), x, weights, ids), 1e-5)
    ex.close(want, bytes(32):apply(ready(bytes(32), plain, on_input), x, weights, ids), 1e-5)
  end)

  it("AWQ-38, FWD-14: over the input unless disabled", function()
    local method, before = marlin(32), x:clone()
    local want = method:apply(ready(method, set), x, weights, ids)
    assert.is_true(before:equal(x))
    local y = method:apply(ready(method, set, { disable_inplace = false }), x, weights, ids)
    assert.is_true(y.data == x.data)
    assert.is_true(want:equal(x))
  end)

  it("AWQ-38: w13's scales are permuted by its own K; with the peer's K they are wrong where I <= g < H (SYSTEMS C-06)", function()
    local odd = ex.experts { experts = 1, hidden = 256, intermediate = 128, group = 128 }
    local input = ck.floats("f32", { 3, 256 }, -1, 1)
    weights, ids = ex.routes(3, 1, 1)
    local want = ex.forward(odd, input, weights, ids)
    local right, wrong = marlin(128), marlin(128, { compat = { scale_permutation_k = true } })
    local R, W = ready(right, odd), ready(wrong, odd)
    assert.is_false(R:get("w13_scales"):equal(W:get "w13_scales"))
    assert.is_true(R:get("w2_scales"):equal(W:get "w2_scales"))
    ex.close(want, right:apply(R, input, weights, ids), 1e-5)
    assert.has_error(function() ex.close(want, wrong:apply(W, input, weights, ids), 1e-2) end)
    -- elsewhere both are the same
    local P, Q = ready(marlin(32), set), ready(marlin(32, { compat = { scale_permutation_k = true } }), set)
    assert.is_true(P:get("w13_scales"):equal(Q:get "w13_scales"))
  end)

  it("AWQ-16, MRL-07: what Marlin's experts don't take is refused by name, for the fallback", function()
    local function why(o, group, options)
      local ok, msg, code = marlin(group, options):create(ex.layer({ o = o }, o.more))
      assert.is_nil(ok)
      assert.equal("eunsupported", code)
      return msg
    end
    assert.matches("hidden size 192 is not a multiple of 128", why({ experts = 1, hidden = 192, intermediate = 64 }, 64))
    assert.matches("intermediate size 96 is not a multiple of 64", why({ experts = 1, hidden = 128, intermediate = 96 }, 32))
    assert.matches("intermediate size 64 is not a multiple of 128",
      why({ experts = 1, hidden = 128, intermediate = 128, more = { tp = 2 } }, 128))
    assert.matches("ROCm", why({ experts = 1, hidden = 128, intermediate = 64 }, 64, { platform = "rocm" }))
    local L = ex.layer(set)
    assert(marlin(32):create(L))
    assert.error_matches(function() marlin(32):apply(L, x, weights, ids) end, "layer mlp.experts is not processed yet")
  end)
end)

describe("experts in the generic kernels' bytes", function()
  before_each(function() math.randomseed(6) end)

  it("AWQ-40: shapes and bytes: codes along K, zero-points along N", function()
    local set = ex.experts { experts = 2, hidden = 128, intermediate = 64, group = 32 }
    local method = bytes(32)
    local L = ready(method, set)
    local want = { w13_qweight = { 2, 128, 64 }, w2_qweight = { 2, 128, 32 }, w13_scales = { 2, 128, 4 },
                   w2_scales = { 2, 128, 2 }, w13_qzeros = { 2, 64, 4 }, w2_qzeros = { 2, 64, 2 } }
    for _, name in ipairs(L:names()) do assert.same(want[name], L:get(name):size(), name) end
    assert.same({ "u8", "bf16", "u8" }, { L:get("w13_qweight"):type(), L:get("w13_scales"):type(), L:get("w13_qzeros"):type() })
    for _, n in ipairs { 0, 17, 63 } do
      for _, k in ipairs { 0, 1, 127 } do
        local byte = L:get("w13_qweight"):get { 2, 64 + n + 1, math.floor(k / 2) + 1 } -- up follows gate
        assert.equal(set[1].w3.q.codes:get { n + 1, k + 1 }, math.floor(byte / 16 ^ (k % 2)) % 16)
      end
      local z = L:get("w2_qzeros"):get { 1, math.floor(n / 2) + 1, 2 }
      assert.equal(set[0].w2.q.zeros:get { n + 1, 2 }, math.floor(z / 16 ^ (n % 2)) % 16)
      assert.equal(set[0].w2.q.scales:get { n + 1, 2 }, L:get("w2_scales"):get { 1, n + 1, 2 })
    end
    local q = method:quant(L)
    assert.same({ 4, 32, { 0, 32 } }, { q.bits, q.group, q.block_shape })
  end)

  it("AWQ-40: GPTQ files, whose zero-points are one less, and 8 bits give the same experts", function()
    for _, bits in ipairs { 4, 8 } do
      local set = ex.experts { experts = 2, hidden = 64, intermediate = 64, group = 32, bits = bits }
      local x = ck.floats("f32", { 4, 64 }, -1, 1)
      local weights, ids = ex.routes(4, 2, 2)
      local want = ex.forward(set, x, weights, ids)
      local method = bytes(32, { bits = bits })
      local L = ready(method, set)
      ex.close(want, method:apply(L, x, weights, ids), 1e-5)
      for e = 0, 1 do
        for _, shard in ipairs { "w1", "w2", "w3" } do
          local m = set[e][shard]
          m.qweight = layout.gptq.pack(m.q.codes, bits)
          m.qzeros = layout.gptq.pack_zeros(m.q.zeros, bits, true)
        end
      end
      local from_gptq = bytes(32, { bits = bits, method = "gptq" })
      local G = ready(from_gptq, set)
      for _, name in ipairs(L:names()) do assert.is_true(L:get(name):equal(G:get(name)), name) end
    end
  end)

  it("AWQ-40: symmetric GPTQ has no zero-points: 2^(b-1) everywhere", function()
    local set = ex.experts { experts = 1, hidden = 64, intermediate = 64, group = 32 }
    for _, shard in ipairs { "w1", "w2", "w3" } do
      local m = set[0][shard]
      m.q.zeros, m.qweight, m.qzeros = nil, layout.gptq.pack(m.q.codes, 4), nil
      m.w = m.q:dequantize "f32"
    end
    local x = ck.floats("f32", { 2, 64 }, -1, 1)
    local weights, ids = ex.routes(2, 1, 1)
    local method = bytes(32, { method = "gptq", zero_point = false })
    local L = ready(method, set)
    assert.is_nil(L:get "w13_qzeros")
    ex.close(ex.forward(set, x, weights, ids), method:apply(L, x, weights, ids), 1e-5)
  end)

  it("AWQ-40: a group that doesn't divide a rank's I is halved, its scales repeated", function()
    local set = ex.experts { experts = 2, hidden = 128, intermediate = 128, group = 128 }
    local x = ck.floats("f32", { 4, 128 }, -1, 1)
    local weights, ids = ex.routes(4, 2, 2)
    local method, sum = bytes(128), nb.tensor("f32", { 4, 128 })
    for rank = 0, 1 do
      local L = ready(method, set, { tp = 2, rank = rank })
      assert.equal(64, L.group)
      assert.same({ 2, 128, 2 }, L:get("w13_scales"):size())
      nb.compute.add(sum, method:apply(L, x, weights, ids))
    end
    ex.close(ex.forward(set, x, weights, ids), sum, 1e-5)
    local ok, msg = method:create(ex.layer({ o = { experts = 1, hidden = 128, intermediate = 80 } }))
    assert.is_nil(ok)
    assert.matches("no group of at least 32 divides both the hidden size 128 and the intermediate size 80", msg)
  end)

  it("AWQ-40, AWQ-39: g = -1 is one group, on every rank", function()
    local set = ex.experts { experts = 2, hidden = 64, intermediate = 128, group = -1 }
    local x = ck.floats("f32", { 4, 64 }, -1, 1)
    local weights, ids = ex.routes(4, 1, 2)
    local method, sum = bytes(-1), nb.tensor("f32", { 4, 64 })
    for rank = 0, 1 do nb.compute.add(sum, method:apply(ready(method, set, { tp = 2, rank = rank }), x, weights, ids)) end
    ex.close(ex.forward(set, x, weights, ids), sum, 1e-5)
  end)

  it("AWQ-40: only AWQ and GPTQ, 4 or 8 bits, AWQ from SM 75 on", function()
    local function why(config, options)
      local none, msg, code = generic.new(setmetatable(config, { __index = { group = 32, zero_point = true, bits = 4 } }), options)
      assert.is_nil(none)
      assert.equal("eunsupported", code)
      return msg
    end
    assert.equal("moe_wna16 takes awq and gptq checkpoints, found fp8", why { method = "fp8" })
    assert.equal("moe_wna16 takes 4 or 8 bits, found 3", why { bits = 3 })
    assert.equal("moe_wna16: AWQ needs a device of SM 75 or above, found SM 70", why({}, { capability = 70 }))
    assert.is_table(generic.new({ method = "gptq", bits = 4, group = 32 }, { capability = 70 }))
  end)

  it("AWQ-39: experts are the same numbers as Marlin's, expert by expert", function()
    local set = ex.experts { experts = 2, hidden = 128, intermediate = 64, group = 64, scales = ck.powers }
    local L = ready(marlin(64), set)
    local unit = nb.tensor("f32", { 128, 128 })
    for i = 1, 128 do unit:set({ i, i }, 1) end
    local m = { type = "uint4", words = L:get "w13_qweight", scales = L:get "w13_scales", zeros = L:get "w13_qzeros", k = 128, n = 128 }
    local w = gemm.marlin(unit, gemm.marlin_expert(m, 1))
    assert.is_true(ck.columns(w, 1, 64):equal(set[1].w1.w:transpose()))
    assert.is_true(ck.columns(w, 65, 128):equal(set[1].w3.w:transpose()))
  end)
end)

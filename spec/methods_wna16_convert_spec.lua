-- The conversion of GPTQ-packed experts for Marlin's MoE kernels (ORC-14 to ORC-21; C-06, C-07, C-12, C-28).
local nb = require "nibble"
local gemm = require "nibble.gemm"
local convert = require "nibble.methods.wna16_convert"
local support = require "spec.support.experts"
local layout = nb.layout

-- E experts of [K,N]: words, scales, a shuffled g_idx, and the weights [N,K] each stands for.
local function experts(o)
  local e, k, n, g, bits = o.e or 2, o.k, o.n, o.g, o.bits or 4
  local groups = g == -1 and 1 or k / g
  local m = { words = nb.tensor("i32", { e, k * bits / 32, n }), scales = nb.tensor("f32", { e, groups, n }),
    g_idx = nb.tensor("i32", { e, k }), bias = nb.tensor("f16", { e, n }), weights = {} }
  for i = 1, e * groups * n do m.scales:set(i, (1 + i % 7) / 64) end
  m.scales = m.scales:cast(o.dtype or "f16")
  for i = 1, e * n do m.bias:set(i, i % 5) end
  for x = 1, e do
    local c = support.codes(n, k, bits, x + (o.seed or 0))
    nb.compute.copy(m.words[x], layout.gptq.pack(c, bits))
    for i = 0, k - 1 do m.g_idx:set({ x, i + 1 }, o.act and (i * 5 + x) % groups or math.floor(i / (k / groups))) end
    m.weights[x] = support.weight(c, layout.transpose(m.scales[x]), bits, m.g_idx[x])
  end
  return m
end

local H, I = 128, 128

local function layer_of(o)
  o = o or {}
  local function with(k, n, seed)
    return experts { k = k, n = n, g = o.g or 32, bits = o.bits, act = o.act, dtype = o.dtype, seed = seed }
  end
  return with(o.h or H, 2 * (o.i or I), 1), with(o.i or I, o.h or H, 9)
end

local function config(o) return { method = "gptq_marlin", bits = o.bits or 4, group = o.g or 32, desc_act = o.act or false } end

local function run(o)
  local a, b = layer_of(o)
  local out, msg, code = convert.named(convert.convert(o.backend or "MARLIN", { i = o.i or I }, config(o), o.activations, a.words, b.words, a.scales,
    b.scales, a.g_idx, b.g_idx, o.bias and a.bias, o.bias and b.bias, { compat = o.compat, say = o.say }))
  return out, a, b, msg, code
end

local function input(m, k)
  local x = nb.tensor("f32", { m, k })
  for i = 1, m * k do x:set(i, ((i * 37) % 17 - 8) / 8) end
  return x
end

-- The largest difference between Marlin's product and the dequantized weight's, over all experts.
local function worst(out, which, given, o, k, n)
  local m = { words = out[which], scales = out[which .. "_scale"], sorted_g_idx = out[which .. "_g_idx"],
    perm = out[which .. "_g_idx_sort_indices"], global = out[which .. "_input_global_scale"],
    bias = out[which .. "_bias"], type = o.bits == 8 and "uint8b128" or "uint4b8", group = o.g or 32, k = k, n = n,
    activations = o.activations, dtype = "f16" }
  local x, most = input(3, k), 0
  for e = 0, 1 do
    local y, want = gemm.marlin(x, gemm.marlin_expert(m, e)), nb.tensor("f32", { 3, n })
    nb.compute.gemm(want, x, given.weights[e + 1], o.bias and given.bias[e + 1]:cast "f32")
    most = math.max(most, nb.compare(want, y).max_abs)
  end
  return most
end

describe("wna16_convert", function()
  it("ORC-14: takes a gptq_marlin config and the two Marlin backends, nothing else", function()
    local a, b = layer_of()
    local function with(backend, c)
      return function()
        convert.convert(backend, { i = I }, c, nil, a.words, b.words, a.scales, b.scales, a.g_idx, b.g_idx)
      end
    end
    assert.error_matches(with("MARLIN", { method = "awq_marlin" }), "MARLIN needs a gptq_marlin config, found awq_marlin")
    assert.error_matches(with("BATCHED_MARLIN", 4), "needs a gptq_marlin config, found number")
    assert.error_matches(with("MARLINE", config {}), "unsupported backend MARLINE: expected MARLIN or BATCHED_MARLIN")
    assert.error_matches(with(nil, config {}), "unsupported backend nil")
    assert.is_truthy(run { backend = "BATCHED_MARLIN" })
  end)

  it("ORC-15, ORC-18: twelve values in order; K and N come from the standard packing", function()
    local a, b = layer_of()
    local out = { convert.convert("MARLIN", { i = I }, config {}, nil, a.words, b.words, a.scales, b.scales, a.g_idx, b.g_idx) }
    assert.equal(12, #convert.outputs)
    assert.same({ 2, H / 16, 2 * I * 2 }, out[1]:size())
    assert.same({ 2, I / 16, H * 2 }, out[2]:size())
    assert.same({ 2, 4, 2 * I }, out[3]:size())
    for i = 5, 8 do assert.same({ 2, 0 }, out[i]:size()) end
    for i = 9, 12 do assert.is_nil(out[i]) end
    -- Each at its place, by its size.
    local function values(o)
      local x, y = layer_of(o)
      return { convert.convert("MARLIN", { i = I }, config(o), o.activations, x.words, y.words, x.scales, y.scales, x.g_idx, y.g_idx,
        x.bias, y.bias) }
    end
    out = values { act = true, h = 256 }
    for i, size in pairs { [5] = 256, [6] = I, [7] = 256, [8] = I } do assert.same({ 2, size }, out[i]:size()) end
    for i = 2, 256 do assert.is_true(out[5]:get { 1, i } >= out[5]:get { 1, i - 1 }) end
    local seen = {}
    for i = 1, 256 do seen[out[7]:get { 1, i }] = true end
    for i = 0, 255 do assert.is_true(seen[i]) end
    out = values { activations = "int8" }
    assert.same({ 1, 1, 2 * I, H }, { out[9]:numel(), out[10]:numel(), out[11]:size(2), out[12]:size(2) })
    assert.same({ "f32", "f32", "f16", "f16" }, { out[9]:type(), out[10]:type(), out[11]:type(), out[12]:type() })
    local with_bias = run { bias = true }
    assert.is_true(layout.marlin.unpermute_bias(with_bias.w2_bias):equal(b.bias))
  end)

  it("ORC-16: fp8 first, then order, repack w13 and w2, scales w13 and w2, int8, biases", function()
    local seen = {}
    run { bias = true, say = function(step, i) seen[#seen + 1] = step .. i end }
    assert.equal("codes1 codes2 act_order1 act_order2 repack1 repack2 scales1 scales2 int81 int82 bias1 bias2",
      table.concat(seen, " "))
  end)

  it("ORC-16, ORC-18, ORC-20: the product equals the dequantized weight's, with 16-bit, int8 and fp8 activations", function()
    for _, o in ipairs { {}, { bits = 8 }, { act = true }, { bits = 8, act = true }, { bias = true }, { g = -1 },
      { g = 128 }, { g = 128, bits = 8 } } do
      local out, a, b = run(o)
      assert.is_true(worst(out, "w13", a, o, H, 2 * I) < 1e-4)
      assert.is_true(worst(out, "w2", b, o, I, H) < 1e-4)
    end
    for activations, bound in pairs { int8 = 0.08, fp8 = 0.4 } do
      local o = { activations = activations }
      local out, a, b = run(o)
      assert.is_true(worst(out, "w13", a, o, H, 2 * I) < bound)
      assert.is_true(worst(out, "w2", b, o, I, H) < bound)
      assert.equal(activations == "int8", out.w13_input_global_scale ~= nil)
    end
    local one = run { activations = "int8", g = -1 }
    assert.is_nil(one.w13_input_global_scale)
    local mixed = run { activations = "int8", g = 128, h = 256 }  -- two groups in w13, one in w2
    assert.is_truthy(mixed.w13_input_global_scale)
    assert.is_nil(mixed.w2_input_global_scale)
  end)

  it("ORC-17, C-07: sorted g_idx and its stable order come back; the switch returns it unsorted", function()
    local out, a = run { act = true }
    for e = 1, 2 do
      local before = -1
      local seen = {}
      for i = 1, H do
        local p, g = out.w13_g_idx_sort_indices:get { e, i }, out.w13_g_idx:get { e, i }
        assert.equal(a.g_idx:get { e, p + 1 }, g)
        assert.is_true(g >= before)
        if seen[g] then assert.is_true(p > seen[g]) end
        seen[g], before = p, g
      end
    end
    local peer, given = run { act = true, compat = { unsorted_g_idx = true } }
    assert.is_true(peer.w13_g_idx:equal(given.g_idx))
    assert.is_false(out.w13_g_idx:equal(a.g_idx))
    assert.is_true(peer.w13:equal(out.w13))
  end)

  it("ORC-19, C-06: scales are permuted with each matrix's own K; the switch takes the document's", function()
    local o = { g = 128, h = 256, i = 128 } -- one group of I, two of H
    local out, a = run(o)
    assert.is_true(layout.marlin.unpermute_scales(out.w13_scale, 256, 128):equal(a.scales))
    local peer = run { g = 128, h = 256, i = 128, compat = { scale_permutation_k = true } }
    assert.is_false(peer.w13_scale:equal(out.w13_scale))
    assert.is_true(layout.marlin.unpermute_scales(peer.w13_scale, 128, 128):equal(a.scales))
    assert.is_true(peer.w2_scale:equal(out.w2_scale))
    assert.is_true(run({ compat = { scale_permutation_k = true } }).w13_scale:equal(run({}).w13_scale))
    assert.error_matches(function() run { compat = { scale_permutation = true } } end,
      'there is no switch "scale_permutation"')
    assert.error_matches(function() run { compat = { unsorted_g_idx = 1 } } end, "must be true or false, found 1")
  end)

  it("ORC-21: inputs stay as they are, and converting twice gives the same", function()
    for _, o in ipairs { { activations = "fp8" }, { act = true }, { activations = "int8" } } do
      local a, b = layer_of(o)
      local words, scales, g_idx = a.words:clone(), a.scales:clone(), a.g_idx:clone()
      local function once()
        return { convert.convert("MARLIN", { i = I }, config(o), o.activations, a.words, b.words, a.scales, b.scales,
          a.g_idx, b.g_idx) }
      end
      local first, second = once(), once()
      assert.is_true(a.words:equal(words) and a.scales:equal(scales) and a.g_idx:equal(g_idx))
      for i = 1, 10 do assert.is_true(first[i] == nil and second[i] == nil or first[i]:equal(second[i])) end
    end
  end)

  it("C-12: 8-bit weights with fp8 activations are refused; the switch does to them what the peer does", function()
    local out, _, _, msg, code = run { bits = 8, activations = "fp8" }
    assert.is_nil(out)
    assert.equal("eunsupported", code)
    assert.matches("W8A8 is unsupported: uint8b128 weights with fp8 activations", msg)
    local peer, a = run { bits = 8, activations = "fp8", compat = { fp8_preprocess_any_width = true } }
    local changed = layout.marlin.fp8_preprocess(a.words)
    assert.is_true(peer.w13:equal(layout.marlin.repack(changed, 8, true)))
    assert.is_false(layout.marlin.unpack(peer.w13, 8, true):equal(a.words))
  end)

  it("C-28: activation order with 8-bit activations is refused with both named", function()
    for _, activations in ipairs { "int8", "fp8" } do
      local out, _, _, msg, code = run { act = true, activations = activations }
      assert.is_nil(out)
      assert.equal("eunsupported", code)
      assert.matches("no weight in activation order for " .. activations .. " activations", msg)
    end
  end)
end)

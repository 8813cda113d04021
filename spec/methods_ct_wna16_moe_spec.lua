-- Experts of compressed-tensors' packed integers (CTM-WNA16-01 to CTM-WNA16-15; C-06, C-12, C-13, C-22, C-26, C-28).
local nb = require "nibble"
local ct = require "nibble.methods.ct_wna16_moe"
local support = require "spec.support.experts"
local layout = nb.layout

local H, I, E = support.size, support.size, support.count

local function scheme(o)
  local g = o.g or 32
  return { type = "int", bits = o.bits or 4, symmetric = true, strategy = g == -1 and "channel" or "group", group = g,
           actorder = o.act and "group" or o.actorder }
end

-- One projection as its file has it, and the float weight it stands for.
local function projection(n, k, o, seed)
  local bits, g = o.bits or 4, o.g or 32
  local groups = g == -1 and 1 or k / g
  local codes = support.codes(n, k, bits, seed)
  local scales = support.floats(n, groups, seed + 1, 0.02):cast(o.dtype or "bf16")
  local g_idx = nb.tensor("i32", { k })
  for c = 0, k - 1 do g_idx:set(c + 1, o.act and (c * 7 + math.floor(seed / 10)) % groups or math.floor(c * groups / k)) end
  local file = { weight_packed = layout.ct.pack(codes, bits), weight_scale = scales,
                 weight_shape = nb.tensor("i64", { 2 }, { n, k }) }
  if o.act then file.weight_g_idx = g_idx end
  return file, support.weight(codes, scales, bits, g_idx)
end

local function experts_of(o)
  return support.experts(o, function(n, k, seed) return projection(n, k, o, seed) end)
end

local function new(o) return ct.new(scheme(o), o.options or { activations = o.activations, compat = o.compat }) end

local function loaded(o, ranks, experts)
  local method, L = assert(new(o)), support.layer(o, ranks)
  assert(method:create(L))
  support.load(method, L, experts)
  return method, L
end

-- The layer's result over all ranks against the dequantized weights'.
local function error_of(o, tp, ep, act)
  local experts = experts_of(o)
  local x = support.floats(5, o.h or H, 3)
  local weights, ids = support.routed(5, o.top or 2, o.e or E)
  local want = support.reference(x, weights, ids, support.weights(experts), { act = act })
  local got = support.over_ranks(tp or 1, ep or 1, function(ranks)
    local method, L = loaded(o, ranks, experts)
    assert(method:process(L))
    return (method:apply(L, x, weights, ids, o.apply))
  end)
  return support.error(want, got)
end

describe("ct_wna16_moe", function()
  it("CTM-WNA16-01: symmetric integers of 4 or 8 bits by group or channel; the rest is refused by name", function()
    assert.equal("uint4b8", new({}).type)
    assert.equal("uint8b128", new({ bits = 8 }).type)
    local function refused(change, text)
      local s = scheme {}
      for key, value in pairs(change) do s[key] = value end
      local m, msg, code = ct.new(s)
      assert.is_nil(m)
      assert.equal("eunsupported", code)
      assert.matches(text, msg)
    end
    refused({ symmetric = false }, "symmetric weights only, found asymmetric")
    for _, bits in ipairs { 2, 3, 5, 6, 7 } do refused({ bits = bits }, "4 or 8 bits, found " .. bits) end
    refused({ type = "float" }, "takes int weights, found float")
    refused({ strategy = "tensor" }, 'strategy = "group" or "channel", found "tensor"')
  end)

  it("CTM-WNA16-02: MXINT4 where it is available, with groups of 32 and 4 bits, else Marlin; one info line says so", function()
    local there = { device = "sm_100", mxint4 = true }
    local m = ct.new(scheme {}, there)
    assert.equal("Flashinfer", m.backend)
    assert.is_true(m.monolithic)
    assert.same({ { level = "info", text = "WNA16 experts on the Flashinfer backend (group size 32, 4 bits)" } }, m.messages)
    m:say("info", m.messages[1].text)
    assert.equal(1, #m.messages)
    for _, o in ipairs { { device = "sm_90", mxint4 = true }, { device = "sm_100" } } do
      assert.equal("Marlin", ct.new(scheme {}, o).backend)
    end
    for _, s in ipairs { { bits = 8 }, { g = 64 }, { g = -1 }, { act = true } } do
      assert.equal("Marlin", ct.new(scheme(s), there).backend)
    end
    assert.matches("SM 100 family, found sm_90", select(2, ct.mxint4_available { device = "sm_90", mxint4 = true }))
    assert.matches("groups of 32, found 64", select(2, ct.new(scheme { g = 64 }, { backend = "flashinfer" })))
    assert.matches("4%-bit weights, found 8", select(2, ct.new(scheme { bits = 8 }, { backend = "flashinfer" })))
    assert.matches("activation order", select(2, ct.new(scheme { act = true }, { backend = "flashinfer" })))
    assert.error_matches(function() ct.new(scheme {}, { backend = "triton" }) end,
      "unknown backend triton: expected Marlin, Flashinfer")
    local lines = {}
    ct.new(scheme {}, { log = function(level, text) lines[#lines + 1] = level .. " " .. text end })
    assert.matches("^info WNA16 experts on the Marlin", lines[1])
  end)

  it("CTM-WNA16-03: shapes of both kernels; a scale's shape without its groups is an error", function()
    local marlin, flashinfer = new {}, ct.new(scheme {}, { backend = "Flashinfer" })
    local o = { groups_w13 = 8, groups_w2 = 4 }
    assert.same({ 2, 32, 256 }, marlin:weight_shape("w13_weight", 2, 256, 128))
    assert.same({ 2, 8, 256 }, marlin:weight_shape("w13_scale", 2, 256, 128, o))
    assert.same({ 2, 16, 256 }, marlin:weight_shape("w2_weight", 2, 256, 128))
    assert.same({ 2, 256, 32 }, flashinfer:weight_shape("w13_weight", 2, 256, 128))
    assert.same({ 2, 256, 4 }, flashinfer:weight_shape("w2_scale", 2, 256, 128, o))
    assert.same({ 2, 128, 32 }, flashinfer:weight_shape("w13_weight", 2, 256, 128, { gated = false }))
    assert.error_matches(function() marlin:weight_shape("w13_scale", 2, 256, 128, { groups_w2 = 4 }) end,
      "num_groups_w13 must be provided for weight scales")
    assert.error_matches(function() marlin:weight_shape("w2_scale", 2, 256, 128) end, "num_groups_w2 must be")
    assert.error_matches(function() marlin:weight_shape("w3_weight", 2, 256, 128) end, "found w3_weight")
  end)

  it("CTM-WNA16-04: loads N-first files transposed for Marlin, as they are for FlashInfer; TP cuts I", function()
    local o = { g = 32 }
    local experts = experts_of(o)
    local _, L = loaded(o, { tp = 2, rank = 1 }, experts)
    local packed = L:get "w13_weight_packed"
    assert.is_true(L:param("w13_weight_packed").transposed)
    assert.same({ E, H / 8, I }, packed:size())
    for e = 1, E do -- rank 1's halves of w1 and w3, one behind the other, turned
      local w1, w3 = experts[e].file.w1.weight_packed, experts[e].file.w3.weight_packed
      assert.equal(w1:get { I / 2 + 1, 3 }, packed:get { e, 3, 1 })
      assert.equal(w3:get { I, 2 }, packed:get { e, 2, I })
      assert.equal(experts[e].file.w2.weight_packed:get { 5, I / 16 + 2 }, L:get "w2_weight_packed":get { e, 2, 5 })
      assert.equal(experts[e].file.w2.weight_scale:get { 5, 3 }, L:get "w2_weight_scale":get { e, 1, 5 })
    end
    assert.equal("group", L:param("w13_weight_scale").scale_method)
    assert.equal("channel", select(2, loaded({ g = -1 }, {}, {})):param("w2_weight_scale").scale_method)
    local flashinfer = assert(ct.new(scheme {}, { backend = "Flashinfer" }))
    local F = support.layer { h = 256, i = 256 }
    assert(flashinfer:create(F))
    assert.is_false(F:param("w13_weight_packed").transposed)
    assert.same({ E, 512, 32 }, F:get "w13_weight_packed":size())
    local file = projection(256, 256, { g = 32 }, 5)
    flashinfer:load(F, 1, "w3", file)
    assert.is_true(F:get "w13_weight_packed"[2]:rows(257, 512):equal(file.weight_packed))
  end)

  it("CTM-WNA16-05: one group by channel, else H/g and S/g; what doesn't divide is refused", function()
    local L = support.layer { g = -1 }
    local m = new { g = -1 }
    assert(m:create(L))
    assert.same({ 1, 1, -1 }, { L.groups_w13, L.groups_w2, m.group })
    local given = scheme { g = -1 }
    given.group = nil -- by channel, whatever the group
    assert.equal(-1, ct.new(given).group)
    assert.same({ E, 1, 2 * I }, L:get "w13_weight_scale":size())
    L = support.layer { h = 256 }
    assert(new({ g = 64 }):create(L))
    assert.same({ 4, 2 }, { L.groups_w13, L.groups_w2 })
    local ok, msg, code = new({ g = 128 }):create(support.layer { i = 192 })
    assert.is_nil(ok)
    assert.equal("eunsupported", code)
    assert.matches("intermediate size 192 is not a multiple of the group size 128", msg)
    assert.matches("hidden size 64 is not a multiple of the group size 128", select(2, new({ g = 128 }):create(support.layer { h = 64 })))
    assert.matches("hidden size 64 is not a multiple of 128", select(2, new({ g = 32 }):create(support.layer { h = 64 })))
    assert.matches("intermediate size 32 is not", select(2, new({ g = 32 }):create(support.layer({ i = 64 }, { tp = 2 }))))
  end)

  it("CTM-WNA16-06, C-13: whole w2 scales and a cut K only for activation order by group; the switch for any", function()
    local function made(o)
      local L = support.layer(o, { tp = 2 })
      assert(new(o):create(L))
      return L.k_full, L.groups_w2
    end
    assert.same({ true, 2 }, { made {} })
    assert.same({ false, 4 }, { made { act = true } })
    assert.same({ true, 2 }, { made { actorder = "weight" } })
    assert.same({ false, 4 }, { made { actorder = "weight", compat = { actorder_any = true } } })
    assert.same({ true, 1 }, { made { g = -1 } })
    local L = support.layer({ act = true }, {})
    assert(new({ act = true }):create(L))
    assert.is_true(L.k_full)
  end)

  it("CTM-WNA16-07, C-22: shapes are integers, or floats by the switch; indices, and the state before repacking", function()
    local L = support.layer {}
    assert(new({}):create(L))
    assert.same({ "i64", E, 2 }, { L:get "w2_weight_shape":type(), L:get "w2_weight_shape":size(1), L:get "w2_weight_shape":size(2) })
    assert.same({ E, H }, L:get "w13_weight_g_idx":size())
    assert.same({ E, I }, L:get "w2_g_idx_sort_indices":size())
    assert.is_nil(L:get "w13_input_scale")
    assert.equal("repack", L.marlin_state)
    local peer = support.layer {}
    assert(new({ compat = { float_weight_shape = true } }):create(peer))
    assert.equal("f32", peer:get "w13_weight_shape":type())
    local _, full = loaded({}, {}, experts_of {})
    assert.same({ H, I }, full:get "w2_weight_shape"[3]:totable())
  end)

  it("CTM-WNA16-08: MXINT4: signed codes, up before gate, rows and bytes shuffled; then nothing else", function()
    local mxint4 = require "nibble.methods.mxint4"
    local file = projection(256, 256, { g = 32 }, 4)
    local words = file.weight_packed:clone()
    local bytes, scales = assert(mxint4.prepare(words:reshape { 1, 256, 32 }, file.weight_scale:reshape { 1, 256, 8 }, true))
    assert.same({ 1, 1, 256, 128 }, bytes:size())
    assert.same({ 1, 256 * 8 }, scales:size())
    -- Row r of the kernel: in each 32, row 8(i%4) + i/4 comes from row i; of those, even ones are up's and odd ones gate's.
    local source, plain = {}, file.weight_packed:as("u8", { 256, 128 })
    for i = 0, 255 do source[i - i % 32 + i % 4 * 8 + math.floor(i % 32 / 4)] = i % 2 == 0 and 128 + i / 2 or (i - 1) / 2 end
    for r = 0, 255, 37 do
      for c = 0, 127, 29 do
        local b = plain:get { source[r] + 1, c + 1 }
        local low, high = (b % 16 + 8) % 16, (math.floor(b / 16) + 8) % 16
        assert.equal(low + 16 * high, bytes:get(r * 128 + c + 1))
      end
    end
    local back, s = mxint4.unpack(bytes[1], scales[1], true)
    assert.is_true(back:equal(file.weight_packed) and s:equal(file.weight_scale))
    local _, msg = mxint4.prepare(words:reshape { 1, 256, 32 }, file.weight_scale:cast("f16"):reshape { 1, 256, 8 }, true)
    assert.matches("bf16 scales, found f16", msg)
    assert.matches("multiples of 128 and K of 256, found N = 256 and K = 128", select(2, mxint4.prepare(
      nb.tensor("i32", { 1, 256, 16 }), nb.tensor("bf16", { 1, 256, 4 }), true)))
    local m = ct.new(scheme {}, { backend = "Flashinfer" })
    assert.matches("MXINT4 takes bf16 scales and activations, found f16", select(2, m:create(support.layer { dtype = "f16", h = 256, i = 256 })))
    assert.matches("multiple of 256 as hidden size, found 128", select(2, m:create(support.layer { i = 256 })))
    assert.matches("gated experts only", select(2, m:create(support.layer { h = 256, i = 256, gated = false })))
  end)

  it("CTM-WNA16-09: Marlin: codes, order, repack of both, then scales and int8 of each, and the workspace", function()
    local seen = {}
    local o = { options = { activations = "int8", sms = 10, say = function(step, i) seen[#seen + 1] = step .. i end } }
    local experts = experts_of(o)
    local method, L = loaded(o, {}, experts)
    local before = L:get("w13_weight_packed"):clone()
    assert.is_true(method:process(L))
    assert.equal("codes1 codes2 act_order1 act_order2 repack1 repack2 scales1 int81 scales2 int82", table.concat(seen, " "))
    assert.is_true(layout.marlin.unpack(L:get "w13_weight_packed", 4, true):equal(before))
    assert.same({ E, 0 }, L:get "w13_weight_g_idx":size())
    assert.same({ E, 0 }, L:get "w2_g_idx_sort_indices":size())
    assert.equal("f32", L:get "w13_input_global_scale":type())
    assert.equal(40, L:get("workspace"):numel())
    assert.error_matches(function() method:process(L) end, "processed already; to load them once more call ct_wna16_moe's reload")
    assert.error_matches(function() method:process(support.layer {}) end, "not there; create and load")
    local narrow = { options = { activations = "fp8" } }
    local folder, F = loaded(narrow, {}, experts)
    local codes, scales = F:get("w2_weight_packed"):clone(), F:get("w2_weight_scale"):clone()
    assert(folder:process(F))
    assert.is_true(layout.marlin.unpack(F:get "w2_weight_packed", 4, true):equal(layout.marlin.fp8_preprocess(codes)))
    assert.is_true(layout.marlin.unpermute_scales(F:get "w2_weight_scale", I, 32, true):equal(
      layout.marlin.multiply_scales(scales, 512)))
    local act = { act = true }
    local sorter, A = loaded(act, {}, experts_of(act))
    local given = A:get("w13_weight_g_idx"):clone()
    assert(sorter:process(A))
    for i = 1, H do
      assert.equal(given:get { 2, A:get "w13_g_idx_sort_indices":get { 2, i } + 1 }, A:get "w13_weight_g_idx":get { 2, i })
    end
  end)

  it("CTM-WNA16-10, C-06: scales are permuted with each matrix's own K; the switch takes the document's", function()
    local o = { g = 128 } -- one group in H: single; the document's K is always above the group
    local function scales(compat)
      local method, L = loaded({ g = 128, compat = compat }, {}, experts_of(o))
      assert(method:process(L))
      return L:get "w13_weight_scale", L:get "w2_weight_scale"
    end
    local wide = { g = 128, h = 256 } -- two groups in w13, one in w2
    local both, W = loaded(wide, {}, experts_of(wide))
    local before = { L13 = W:get("w13_weight_scale"):clone(), L2 = W:get("w2_weight_scale"):clone() }
    assert(both:process(W))
    assert.is_true(layout.marlin.unpermute_scales(W:get "w13_weight_scale", 256, 128):equal(before.L13))
    assert.is_true(layout.marlin.unpermute_scales(W:get "w2_weight_scale", 128, 128):equal(before.L2))
    local _, plain = loaded(o, {}, experts_of(o))
    local own13, own2 = scales()
    local peer13, peer2 = scales { scale_permutation_k = true }
    assert.is_true(layout.marlin.unpermute_scales(own13, H, 128):equal(plain:get "w13_weight_scale"))
    assert.is_true(layout.marlin.unpermute_scales(peer13, 129, 128):equal(plain:get "w13_weight_scale"))
    assert.is_false(own13:equal(peer13))
    assert.is_true(own2:equal(peer2))
  end)

  it("CTM-WNA16-11: a quant description for 4 bits, without zero-points, of block shape 0, g; none for 8 bits", function()
    local method, L = loaded({}, {}, experts_of {})
    assert(method:process(L))
    assert.same({ 0, 32 }, L.quant.block_shape)
    assert.equal(4, L.quant.bits)
    assert.is_true(L.quant.w1_scale:equal(L:get "w13_weight_scale") and L.quant.w2_scale:equal(L:get "w2_weight_scale"))
    assert.is_nil(L.quant.w1_zp)
    local wide, W = loaded({ bits = 8 }, {}, experts_of { bits = 8 })
    assert(wide:process(W))
    assert.is_nil(W.quant)
  end)

  it("CTM-WNA16-12: experts objects, standard and batched; only of 4 bits, after processing", function()
    local o = { act = true }
    local method, L = loaded(o, {}, experts_of(o))
    assert.error_matches(function() method:experts(L) end, "need the quant description; process the layer first")
    assert(method:process(L))
    local standard = method:experts(L, { format = "standard" })
    assert.equal("MarlinExperts", standard.name)
    assert.is_true(standard.k_full)
    assert.is_true(standard.w13_g_idx:equal(L:get "w13_weight_g_idx"))
    assert.is_true(standard.w2_g_idx_sort_indices:equal(L:get "w2_g_idx_sort_indices"))
    assert.is_true(L:get("w13_weight"):equal(L:get "w13_weight_packed"))
    local batched = method:experts(L, { format = "batched", max_tokens = 64, dispatchers = 2 })
    assert.same({ "BatchedMarlinExperts", 64, 2 }, { batched.name, batched.max_tokens, batched.dispatchers })
    assert.error_matches(function() method:experts(L, { format = "batched" }) end, "needs max_tokens")
    assert.error_matches(function() new({ bits = 8 }):experts(L) end, "only 4%-bit weights have them, found 8 bits")
  end)

  it("CTM-WNA16-13: apply, with the router's weight on the input, over x, and with shared experts; not on MXINT4", function()
    local o = {}
    local experts = experts_of(o)
    local method, L = loaded(o, {}, experts)
    local x = support.floats(4, H, 3)
    local weights, ids = support.routed(4, 1, E)
    assert.error_matches(function() method:apply(L, x, weights, ids) end, "apply before the weights are processed")
    assert(method:process(L))
    local want = support.reference(x, weights, ids, support.weights(experts))
    local on_input = method:apply(L, x, weights, ids, { router_weight_on_input = true })
    local xs = x:clone()
    for t = 1, 4 do for c = 1, H do xs:set({ t, c }, x:get { t, c } * weights:get(t)) end end
    local once = support.reference(xs, nb.tensor("f32", { 4, 1 }):fill(1), ids, support.weights(experts))
    assert.is_true(support.error(once, on_input) < 1e-4)
    assert.error_matches(function()
      method:apply(L, x, support.routed(4, 2, E), select(2, support.routed(4, 2, E)), { router_weight_on_input = true })
    end, "1 expert, found 2")
    local kept = x:clone()
    assert.is_true(support.error(want, method:apply(L, x, weights, ids)) < 1e-4)
    assert.is_true(x:equal(kept))
    local over = method:apply(L, x, weights, ids, { inplace = true })
    assert.is_true(rawequal(over.data, x.data) or over.data == x.data)
    L.options.disable_inplace = true
    local apart = method:apply(L, kept, weights, ids, { inplace = true })
    assert.is_true(apart.data ~= kept.data)
    L.options.shared_experts = function(t) return t:rows(1, 1) end
    local _, shared = method:apply(L, kept, weights, ids, { shared_input = xs })
    assert.is_true(shared:equal(xs:rows(1, 1)))
    local flashinfer = ct.new(scheme {}, { backend = "Flashinfer" })
    assert.error_matches(function() flashinfer:apply(L, x, weights, ids) end,
      "with the backend Flashinfer routes by itself; call apply_monolithic")
  end)

  it("CTM-WNA16-14: MXINT4 routes by itself, in bf16; dtype errors name the tensor; not on Marlin", function()
    local o = { h = 256, i = 256, options = { backend = "Flashinfer" }, e = 4 }
    local experts = experts_of(o)
    local x = support.floats(5, 256, 3):cast "bf16"
    local given = support.floats(5, 4, 8, 3)
    local logits
    local moe = require "nibble.moe"
    for _, router in ipairs { { routing = "default" }, { routing = "renormalize" },
      { routing = "deepseek_v3", groups = 2, top_groups = 1, bias = support.floats(1, 4, 2):reshape { 4 } },
      -- rounded to bf16 the third is as large as the first two, which come before it
      { routing = "deepseek_v3", bias = nb.tensor("f32", { 4 }, { 1, 1, 1.001, 0 }), flat = true } } do
      logits = router.flat and nb.tensor("f32", { 5, 4 }) or given
      local bias = router.bias and router.bias:cast("bf16"):cast "f32"
      local weights, ids = moe.route(logits, { top = 2, scoring = bias and "sigmoid" or "softmax",
        normalize = router.routing ~= "default", groups = router.groups, top_groups = router.top_groups, bias = bias })
      local want = support.reference(x:cast "f32", weights, ids, support.weights(experts))
      local got = support.over_ranks(1, 2, function(ranks)
        local method, L = loaded(o, ranks, experts)
        assert(method:process(L))
        local y = method:apply_monolithic(L, x, logits, router)
        assert.equal("bf16", y:type())
        return y:cast "f32"
      end)
      assert.is_true(support.error(want, got) < 0.02)
    end
    local method, L = loaded(o, {}, experts)
    assert.error_matches(function() method:apply_monolithic(L, x, logits) end, "before the weights are processed")
    assert(method:process(L))
    assert.error_matches(function() method:apply_monolithic(L, x:cast "f16", logits) end, "x must be bf16 for MXINT4, found f16")
    assert.error_matches(function() method:apply_monolithic(L, x, nb.tensor("f32", { 5, 3 })) end, "router logits %[5x3%] for 4 experts")
    assert.error_matches(function() method:apply_monolithic(L, x, logits, { routing = "top" }) end, "unknown routing top")
    L:replace("w2_weight_scale", L:get("w2_weight_scale"):cast "f16")
    assert.error_matches(function() method:apply_monolithic(L, x, logits) end, "w2_weight_scale must be bf16")
    local marlin, M = loaded({}, {}, experts_of {})
    assert.error_matches(function() marlin:apply_monolithic(M, x, logits) end, "takes routed tokens; call apply")
  end)

  it("CTM-WNA16-15: equals the dequantized weights for 4 and 8 bits, groups and channels, TP, expert ranks, order", function()
    for _, o in ipairs { {}, { bits = 8 }, { g = -1 }, { g = 64, dtype = "f16" }, { act = true }, { bits = 8, act = true },
      { actorder = "weight" } } do
      assert.is_true(error_of(o) < 1e-5)
      assert.is_true(error_of(o, 2) < 1e-5)
    end
    assert.is_true(error_of({ e = 4 }, 2, 2) < 1e-5)
    -- one group of w2 for two ranks' K: only with k_full = false
    assert.is_true(error_of({ act = true, g = 128, h = 256 }, 2) < 1e-5)
    assert.is_true(error_of({ gated = false, activation = "relu2", h = 128 }, 1, 1,
      function(g) return math.max(g, 0) ^ 2 end) < 1e-5)
    assert.is_true(error_of({ activations = "int8" }, 2) < 0.03)
    assert.is_true(error_of { activations = "fp8" } < 0.08)
    local method, L = loaded({ act = true }, {}, {})
    local file = projection(I, H, { act = true }, 11)
    method:load(L, 1, "w1", file)
    file.weight_g_idx = projection(I, H, { act = true }, 21).weight_g_idx
    assert.error_matches(function() method:load(L, 1, "w3", file) end, "w1 and w3 of expert 1 have different weight_g_idx")
  end)

  it("MRL-58: a processed layer is loaded again through reload, into the same storage", function()
    local o = { act = true }
    local experts = experts_of(o)
    local method, L = loaded(o, {}, experts)
    assert(method:process(L))
    local at, before = L:get "w2_weight_packed".data, L:get("w2_weight_packed"):clone()
    method:reload(L)
    assert.same({ E, I / 8, H }, L:get "w2_weight_packed":size())
    for e, x in ipairs(experts) do
      for _, w in ipairs { "w1", "w2", "w3" } do method:load(L, e - 1, w, x.file[w]) end
    end
    assert(method:process(L))
    assert.is_true(L:get "w2_weight_packed".data == at and L:get "w2_weight_packed":equal(before))
  end)

  it("C-12, C-28: 8-bit activations take 4-bit weights without activation order", function()
    assert.matches("W8A8 is unsupported", select(2, new { bits = 8, activations = "fp8" }))
    assert.is_truthy(new { bits = 8, activations = "fp8", compat = { fp8_preprocess_any_width = true } })
    assert.matches("activation order take 16%-bit activations only, found int8", select(2, new { act = true, activations = "int8" }))
    assert.matches("nil, int8 or fp8, found int4", select(2, new { activations = "int4" }))
  end)

  it("C-26: a cut K without activation order in groups is refused", function()
    local o = { actorder = "weight", compat = { actorder_any = true } }
    local method, L = loaded(o, { tp = 2 }, experts_of(o))
    assert(method:process(L))
    local weights, ids = support.routed(2, 2, E)
    assert.error_matches(function() method:apply(L, support.floats(2, H, 1), weights, ids) end,
      "k_full must be true without activation order in groups, found actorder = weight on 2 ranks")
  end)
end)

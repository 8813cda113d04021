-- FP8 experts of compressed-tensors (CTM-FP8-01 to CTM-FP8-11, CTM-FP8-14 to CTM-FP8-17, CTM-SEL-05; C-16, C-24).
local nb = require "nibble"
local nffi = require "nibble.ffi"
local act = require "nibble.act"
local ct = require "nibble.methods.ct_fp8_moe"
local support = require "spec.support.experts"
local layout = nb.layout

local H, I, E = support.size, support.size, support.count

local function scheme(strategy, o)
  o = o or {}
  local a = { type = "float", bits = 8, symmetric = true, dynamic = true, strategy = "token" }
  if strategy == "tensor" then a.strategy, a.dynamic = "tensor", o.dynamic or false end
  if strategy == "block" then a.strategy, a.group = "group", o.group or 128 end
  if o.a16 then a = nil end
  return { type = "float", bits = 8, symmetric = true, strategy = strategy, block = strategy == "block" and (o.block or { 128, 128 }) or nil,
    activations = a }
end

-- One projection as its file has it, and the float weight. Scales that bf16 holds.
local function projection(n, k, o, seed, scale)
  local codes = support.floats(n, k, seed, 100):cast "f8_e4m3"
  local rows, columns = n, k
  if o.strategy == "channel" then rows, columns = 1, k end
  if o.strategy == "block" then rows, columns = o.block and o.block[1] or 128, o.block and o.block[2] or 128 end
  local scales = nb.tensor("f32", { math.ceil(n / rows), math.ceil(k / columns) })
  for i = 1, scales:numel() do scales:set(i, (scale or 1) * (1 + (i + seed) % 3) / 1024) end
  if o.strategy == "tensor" then scales:set(1, scale or 1 / 512) end
  local w = nb.tensor("f32", { n, k })
  nffi.must(nffi.C.nb_dequantize_float(w, codes, scales, nil, rows, columns))
  local file = { weight = codes, weight_scale = o.strategy == "tensor" and scales:reshape { 1 } or scales }
  if o.static then file.input_scale = nb.tensor("f32", { 1 }, { o.static }) end
  return file, w
end

local function experts_of(o)
  return support.experts(o, function(n, k, seed, w)
    return projection(n, k, o, seed, o.strategy == "tensor" and (w == "w3" and 1 / 256 or 1 / 512) or nil)
  end)
end

local function new(o)
  local options = { backend = o.backend or "TRITON", compat = o.compat }
  for key, value in pairs(o.options or {}) do options[key] = value end
  return ct.new(scheme(o.strategy, o), options)
end

local function loaded(o, ranks, experts)
  local method, L = assert(new(o)), support.layer(o, ranks)
  assert(method:create(L))
  support.load(method, L, experts or experts_of(o))
  return method, L
end

local weight_only = { MARLIN = true, CPU = true }

local function error_of(o, tp, ep)
  local experts = experts_of(o)
  local x = support.floats(4, o.h or H, 3):cast(o.x or "f32")
  local weights, ids = support.routed(4, 2, o.e or E)
  local a, logits = scheme(o.strategy, o).activations, nil
  if o.backend == "FLASHINFER_TRTLLM" then
    logits = support.floats(4, o.e or E, 8, 3)
    weights, ids = require("nibble.moe").route(logits, { top = 2, scoring = "softmax" })
  end
  local quantize = not weight_only[o.backend] and a and function(row) return act.quantize_dequantize(row, a, { scale = o.static }) end
  local want = support.reference(x:cast "f32", weights, ids, support.weights(experts),
    { quantize = quantize or nil, act = o.activation == "relu2" and function(g) return math.max(g, 0) ^ 2 end or nil })
  local got = support.over_ranks(tp or 1, ep or 1, function(ranks)
    local method, L = loaded(o, ranks, experts)
    assert(method:process(L))
    if logits then return (method:apply_monolithic(L, x, logits)) end
    return (method:apply(L, x, weights, ids))
  end)
  return support.error(want, got)
end

describe("ct_fp8_moe", function()
  it("CTM-FP8-01: by tensor both, by channel and token, or by block; the rest is refused by name", function()
    for _, s in ipairs { "tensor", "channel", "block" } do assert.is_truthy(new { strategy = s }) end
    local function refused(change, text)
      local s = scheme "channel"
      change(s)
      local m, msg, code = ct.new(s, { backend = "TRITON" })
      assert.is_nil(m)
      assert.equal("eunsupported", code)
      assert.matches(text, msg)
    end
    refused(function(s) s.strategy = "tensor" end, "found weights by tensor, activations by token")
    refused(function(s) s.activations.strategy = "tensor" end, "found weights by channel, activations by tensor")
    refused(function(s) s.strategy = "block" end, "need block = {rows, columns}, found nil")
    refused(function(s) s.bits = 4 end, "8%-bit float weights, found float of 4 bits")
    refused(function(s) s.activations = nil end, "TRITON takes FP8 activations.*MARLIN and CPU do that")
    refused(function(s) s.strategy, s.activations = "group", nil end, "by tensor, channel or block, found group")
    refused(function(s) s.activations.type = "int" end, "found int of 8 bits")
  end)

  it("CTM-FP8-02: static scales by channel or block are refused with the two accepted forms", function()
    assert.is_true(new({ strategy = "tensor" }).static)
    assert.is_false(new({ strategy = "channel" }).static)
    for _, strategy in ipairs { "channel", "block" } do
      local s = scheme(strategy)
      s.activations.dynamic = false
      local m, msg = ct.new(s, { backend = "TRITON" })
      assert.is_nil(m)
      assert.matches("either by tensor both, or weights by channel with dynamic activations by token", msg)
    end
  end)

  it("CTM-FP8-03, C-16: keys for choosing; what runs follows the scheme, or the key by the switch", function()
    local function keys(strategy, o)
      local m = new { strategy = strategy, dynamic = o and o.dynamic, block = o and o.block, compat = o and o.compat }
      return { m.weight_key, m.activation_key, m.run_activations.strategy }
    end
    assert.same({ "fp8 static tensor", "fp8 static tensor", "tensor" }, keys "tensor")
    assert.same({ "fp8 static channel", "fp8 dynamic token", "token" }, keys "channel")
    assert.same({ "fp8 static tensor", "fp8 dynamic group 128", "tensor" }, keys("tensor", { dynamic = true }))
    assert.same({ "fp8 static tensor", "fp8 dynamic group 128", "group" },
      keys("tensor", { dynamic = true, compat = { dynamic_tensor_as_group = true } }))
    assert.same({ "fp8 static block 128x128", "fp8 dynamic group 128", "group" }, keys "block")
    local s = scheme "block" -- always by groups of 128
    s.activations.strategy, s.activations.group = "token", nil
    local m = assert(ct.new(s, { backend = "TRITON" }))
    assert.same({ "fp8 dynamic group 128", "group", 128 }, { m.activation_key, m.run_activations.strategy, m.run_activations.group })
    assert.same("fp8 static block 128x128", keys("block", { block = { 64, 64 } })[1])
    -- Other blocks need a backend that says so.
    assert.is_truthy(new { strategy = "block", block = { 64, 64 }, backend = "MARLIN" })
    assert.matches("VLLM_CUTLASS takes blocks of 128x128, found 64x64; TRITON takes any",
      select(2, new { strategy = "block", block = { 64, 64 }, backend = "VLLM_CUTLASS" }))
    assert.is_truthy(new { strategy = "block", block = { 64, 64 }, backend = "VLLM_CUTLASS", compat = { block_key_128 = true } })
  end)

  it("CTM-FP8-04: e4m3 weights per rank; the parameters' dtype is remembered", function()
    local L = support.layer({ strategy = "channel", dtype = "f16" }, { tp = 2 })
    assert(new({ strategy = "channel" }):create(L))
    assert.same({ "f8_e4m3", E, I, H }, { L:get "w13_weight":type(), unpack(L:get "w13_weight":size()) })
    assert.same({ E, H, I / 2 }, L:get "w2_weight":size())
    assert.equal("f16", L.orig_dtype)
    local ungated = support.layer { strategy = "channel", gated = false }
    assert(new({ strategy = "channel" }):create(ungated))
    assert.same({ E, I, H }, ungated:get "w13_weight":size())
  end)

  it("CTM-FP8-05: blocks must divide the intermediate size, along K too where ranks cut it", function()
    local function fails(o, ranks, text)
      local m = new { strategy = "block", block = o.block }
      local ok, msg, code = m:create(support.layer(o, ranks))
      assert.is_nil(ok)
      assert.equal("eunsupported", code)
      assert.matches(text, msg)
    end
    fails({ i = 192 }, {}, "gate/up output size 192 is not a multiple of the block's 128 rows")
    fails({ i = 192, block = { 32, 128 } }, { tp = 2 }, "down input size 96 is not a multiple of the block's 128 columns")
    assert.is_true(new({ strategy = "block", block = { 32, 128 } }):create(support.layer { i = 192 }))
  end)

  it("CTM-FP8-06: shapes of the scales, 1 until they are loaded", function()
    local function shapes(strategy, o)
      local L = support.layer(o or {})
      assert(new({ strategy = strategy, block = o and o.block }):create(L))
      assert.equal(1, L:get "w13_weight_scale":get(1))
      assert.equal(strategy, L:param("w2_weight_scale").scale_method)
      return { L:get "w13_weight_scale":size(), L:get "w2_weight_scale":size() }
    end
    assert.same({ { E, 2 }, { E } }, shapes "tensor")
    assert.same({ { E, 2 * I, 1 }, { E, H, 1 } }, shapes "channel")
    assert.same({ { E, 2 * 2, 2 }, { E, 2, 2 } }, shapes("block", { h = 192, i = 256 }))
    assert.same({ { E, 2 * 3, 2 }, { E, 3, 2 } }, shapes("block", { h = 192, i = 192, block = { 64, 128 } }))
    assert.same({ { E, 1 }, { E } }, shapes("tensor", { gated = false }))
  end)

  it("CTM-FP8-07: input scales only when static; w1 and w3 must have the same one", function()
    local method, L = loaded({ strategy = "tensor", static = 0.25 })
    assert.same({ 0.25, 0.25, 0.25 }, L:get "w13_input_scale":totable())
    local fresh = support.layer {}
    assert(method:create(fresh))
    assert.same({ 1, 1, 1 }, fresh:get "w2_input_scale":totable())
    fresh:load_expert("w13_input_scale", nb.tensor("f32", { 1 }, { 0.25 }), "w1", 1)
    assert.error_matches(function()
      fresh:load_expert("w13_input_scale", nb.tensor("f32", { 1 }, { 0.5 }), "w3", 1)
    end, "w1 and w3 must have one input scale, found 0.25 and 0.5")
    local _, dynamic = loaded { strategy = "channel" }
    assert.is_nil(dynamic:get "w13_input_scale")
  end)

  it("CTM-FP8-08, CTM-FP8-10: fnuz, one input scale, one for gate and up, the kernel's form, replaced; then ready", function()
    local seen = {}
    local method, L = loaded { strategy = "tensor", static = 0.25, options = { say = function(s) seen[#seen + 1] = s end } }
    L:get("w13_input_scale"):set(2, 0.5)
    assert.is_true(method:process(L))
    assert.equal("fnuz input requantize convert replace", table.concat(seen, " "))
    assert.same({ 0.5 }, L:get "w13_input_scale":totable())
    assert.equal(0, L:get("w2_input_scale").ndim)
    assert.same({ { level = "info", text = "layer mlp.experts: the experts' input scales differ; the largest serves all" } }, method.messages)
    assert.error_matches(function() method:process(L) end, "processed already")
    assert.error_matches(function() method:process(support.layer {}) end, "not there")
    local over, O = loaded { strategy = "tensor", static = 0.25, options = { reduce_max = function(x) return x * 4 end } }
    assert(over:process(O))
    assert.same({ 1 }, O:get "w2_input_scale":totable())
    assert.equal(0, #over.messages)
  end)

  it("CTM-FP8-09, C-24: e4m3fnuz keeps every value; NaN bytes are counted and warned of, or not by the switch", function()
    local o = { strategy = "channel", options = { fnuz = true } }
    assert.is_true(error_of(o) < 1e-5)
    assert.is_true(error_of { strategy = "tensor", static = 1 / 64, options = { fnuz = true } } < 1e-3)
    local method, L = loaded(o)
    L:get("w2_weight"):as("u8", { E, H, I }):set(1, 0x7f)
    L:get("w2_weight"):as("u8", { E, H, I }):set(2, 0xff)
    assert(method:process(L))
    assert.equal("f8_e4m3fnuz", L:get("w2_weight"):type())
    assert.equal(240, L:get("w2_weight"):get(1))
    assert.matches("^layer mlp.experts: 2 NaN bytes of w2 become %+%-240 in e4m3fnuz", method.messages[1].text)
    assert.equal("warning", method.messages[1].level)
    local silent, S = loaded { strategy = "channel", options = { fnuz = true }, compat = { silent_fnuz_nan = true } }
    S:get("w2_weight"):as("u8", { E, H, I }):set(1, 0x7f)
    assert(silent:process(S))
    assert.equal(0, #silent.messages)
    assert.equal(240, S:get("w2_weight"):get(1))
    local marlin, M = loaded { strategy = "channel", backend = "MARLIN", options = { fnuz = true } }
    assert.matches("Marlin reads e4m3fn, not e4m3fnuz", select(2, marlin:process(M)))
  end)

  it("CTM-FP8-11: one scale for gate and up, the largest; that half stays bit for bit; ungated weights stay", function()
    local o = { strategy = "tensor", static = 0.25 }
    local experts = experts_of(o)
    local method, L = loaded(o, {}, experts)
    assert(method:process(L))
    assert.same({ 1 / 256, 1 / 256, 1 / 256 }, L:get "w13_weight_scale":totable())
    for e = 1, E do
      assert.is_true(L:get "w13_weight"[e]:rows(I + 1, 2 * I):equal(experts[e].file.w3.weight))
      assert.is_false(L:get "w13_weight"[e]:rows(1, I):equal(experts[e].file.w1.weight))
    end
    local ungated = { strategy = "tensor", static = 0.25, gated = false, activation = "relu2" }
    experts = experts_of(ungated)
    method, L = loaded(ungated, {}, experts)
    assert(method:process(L))
    assert.same({ E }, L:get "w13_weight_scale":size())
    assert.is_true(L:get "w13_weight"[2]:equal(experts[2].file.w1.weight))
  end)

  it("CTM-FP8-14: the quant description of each kind of backend", function()
    local function quant(o)
      local method, L = loaded(o)
      assert(method:process(L))
      return L.quant, L
    end
    local q, L = quant { strategy = "channel" }
    assert.same({ true, true }, { q.per_token, q.per_channel })
    assert.is_true(q.w1_scale:equal(L:get "w13_weight_scale"))
    q = quant { strategy = "tensor", static = 0.25 }
    assert.same({ false, false, 0.25 }, { q.per_token, q.per_channel, q.a1_scale:get(1) })
    assert.is_nil(q.g1_alphas)
    q = quant { strategy = "block" }
    assert.same({ 128, 128 }, q.block_shape)
    q = quant { strategy = "tensor", static = 0.25, backend = "FLASHINFER_CUTLASS" }
    assert.same({ 0.25 / 256, 0.25 / 512, 4, 4 }, { q.g1_alphas:get(1), q.g2_alphas:get(2), q.a1_gscale:get(1), q.a2_gscale:get(1) })
    for _, backend in ipairs { "MARLIN", "CPU" } do
      q = quant { strategy = "tensor", static = 0.25, backend = backend }
      assert.is_nil(q.a1_scale)
      assert.is_nil(q.per_token)
      assert.is_truthy(q.w1_scale)
    end
    assert.is_nil((quant { strategy = "channel", backend = "NONE" }))
  end)

  it("CTM-FP8-15: every form equals the dequantized weights, on all ranks together", function()
    for _, o in ipairs {
      { strategy = "channel" }, { strategy = "channel", backend = "vllm_cutlass", x = "f32" },
      { strategy = "channel", backend = "CPU" }, { strategy = "channel", backend = "MARLIN" },
      { strategy = "channel", backend = "MARLIN", dtype = "f16" },
      { strategy = "channel", gated = false, activation = "relu2" },
      { strategy = "block" }, { strategy = "block", backend = "MARLIN", i = 256 },
      { strategy = "block", h = 256, i = 256, backend = "FLASHINFER_CUTLASS" },
      { strategy = "block", h = 256, backend = "FLASHINFER_TRTLLM" },
      { strategy = "block", block = { 32, 64 }, group = 64 }, { strategy = "block", block = { 32, 64 }, backend = "NIBBLE" },
      { strategy = "channel", a16 = true, backend = "NIBBLE" }, { strategy = "block", a16 = true, backend = "MARLIN", i = 256 },
    } do
      assert.is_true(error_of(o) < 1e-5)
    end
    for _, backend in ipairs { "TRITON", "FLASHINFER_CUTLASS", "FLASHINFER_TRTLLM", "MARLIN" } do
      for _, gated in ipairs { true, false } do
        local o = { strategy = "tensor", static = 1 / 64, backend = backend, gated = gated, activation = not gated and "relu2" or nil,
          i = backend == "FLASHINFER_CUTLASS" and 72 or nil } -- 72 is filled up to 80, ungated to 128
        assert.is_true(error_of(o) < 2e-3)
      end
    end
    for _, o in ipairs { { strategy = "channel", e = 4 }, { strategy = "channel", backend = "MARLIN", e = 4 },
      { strategy = "block", backend = "MARLIN", i = 256, e = 4 }, { strategy = "block", backend = "FLASHINFER_CUTLASS", i = 256, e = 4 } } do
      o.quantized_by_rank = true
      assert.is_true(error_of(o, 2, 2) < 0.03) -- a token's scale of the middle is each rank's own
    end
    assert.is_true(error_of({ strategy = "channel", backend = "MARLIN", e = 4 }, 2, 2) < 1e-5)
    assert.matches("takes FP8 scales by tensor or block, found channel", select(2, new { strategy = "channel", backend = "FLASHINFER_CUTLASS" }))
    assert.matches("needs static activation scales, found dynamic", select(2, new { strategy = "tensor", dynamic = true, backend = "FLASHINFER_CUTLASS" }))
  end)

  it("CTM-FP8-15, C-16: dynamic activations by tensor, and in groups of 128 by the switch", function()
    local o = { strategy = "tensor", dynamic = true }
    local experts = experts_of(o)
    local x = support.floats(1, H, 3)
    local weights, ids = support.routed(1, 1, E)
    local function run(compat)
      local method, L = loaded({ strategy = "tensor", dynamic = true, compat = compat }, {}, experts)
      assert(method:process(L))
      return (method:apply(L, x, weights, ids))
    end
    local function want(a)
      return support.reference(x, weights, ids, support.weights(experts), { quantize = function(row) return act.quantize_dequantize(row, a) end })
    end
    assert.is_true(support.error(want(scheme("tensor", o).activations), run()) < 2e-3)
    assert.is_true(support.error(want(scheme "block".activations), run { dynamic_tensor_as_group = true }) < 2e-3)
  end)

  it("CTM-FP8-16, CTM-SEL-05: guards of modular and monolithic kernels, of setup and of what isn't given", function()
    local o = { strategy = "block" }
    local method, L = loaded(o)
    local x = support.floats(2, H, 1)
    local weights, ids = support.routed(2, 2, E)
    local logits = support.floats(2, E, 2)
    assert.is_true(method.supports_eplb)
    assert.error_matches(function() method:apply(L, x, weights, ids) end, "apply before the weights are processed; call ct_fp8_moe's process")
    assert.error_matches(function() method:apply_monolithic(L, x, logits) end, "backend TRITON takes routed tokens; call apply")
    assert.error_matches(function() method:prepare_finalize() end, "ct_fp8_moe sets up its own kernel")
    local trtllm, T = loaded { strategy = "block", backend = "FLASHINFER_TRTLLM" }
    assert.error_matches(function() trtllm:apply(T, x, weights, ids) end, "FLASHINFER_TRTLLM routes by itself; call apply_monolithic")
    assert.error_matches(function() trtllm:apply_monolithic(T, x, logits) end, "apply_monolithic before the weights are processed")
    assert(trtllm:process(T))
    local once = trtllm:apply_monolithic(T, x, logits)
    local twice = trtllm:apply_monolithic(T, x, logits, { scale = 2 })
    assert.is_true(nb.compare(once, twice:map(function(v) return v / 2 end)).max_abs < 1e-6)
    local none, N = loaded { strategy = "block", backend = "NONE" }
    assert(none:process(N))
    assert.error_matches(function() none:apply(N, x, weights, ids) end, "no backend takes these FP8 experts, so there is no kernel")
    assert.error_matches(function() ct.new(scheme "block", { backend = "AITER" }) end, "unknown backend AITER: expected FLASHINFER_TRTLLM")
  end)

  it("CTM-FP8-12, CTM-FP8-13: without a name the oracle chooses; a form that isn't here is said", function()
    local function chosen(strategy, options)
      local m = assert(ct.new(scheme(strategy), options))
      local ok, msg = m:create(support.layer { h = 256, i = 256, e = 8 })
      return ok and m.backend or msg, m
    end
    assert.equal("TRITON", (chosen("block", { device = "sm_90" })))
    assert.equal("MARLIN", (chosen("channel", { device = "sm_80" })))
    assert.equal("VLLM_CUTLASS", (chosen("channel", { device = "sm_90", choice = "cutlass" })))
    assert.equal("NONE", (chosen("tensor", { device = "cpu" })))
    assert.matches("form of FP8 experts nibble doesn't have; name one of FLASHINFER_TRTLLM",
      (chosen("channel", { device = "rocm", packages = { aiter = true } })))
    assert.equal("NIBBLE", (chosen("channel", {})))
    local _, m = chosen("channel", { device = "sm_80" })
    assert.matches("MARLIN", m.messages[#m.messages].text)
  end)

  it("MRL-58: a processed layer is loaded again through reload, into the same storage", function()
    for _, o in ipairs { { strategy = "channel" }, { strategy = "tensor", static = 0.25 }, { strategy = "block", backend = "MARLIN", i = 256 } } do
      local experts = experts_of(o)
      local method, L = loaded(o, {}, experts)
      assert(method:process(L))
      local at, before = L:get "w13_weight".data, L:get("w13_weight"):clone()
      local scales = L:get("w2_weight_scale"):clone()
      assert.error_matches(function() method:load(L, 0, "w1", experts[1].file.w1) end, "call ct_fp8_moe's reload%(layer%) first")
      method:reload(L)
      assert.equal(1, L:get "w2_weight_scale":get(1))
      for e, x in ipairs(experts) do
        for _, w in ipairs { "w1", "w2", "w3" } do method:load(L, e - 1, w, x.file[w]) end
      end
      assert(method:process(L))
      assert.is_true(L:get "w13_weight".data == at)
      assert.is_true(L:get "w13_weight":equal(before) and L:get "w2_weight_scale":equal(scales))
    end
  end)

  it("CTM-FP8-17: Marlin: warns once, refuses 8-bit activations and sizes it can't fill up; scales in the layer's dtype", function()
    local o = { strategy = "channel", backend = "MARLIN", i = 96 }
    local method, L = loaded(o)
    assert(method:process(L))
    assert.equal(1, #method.messages)
    assert.equal("warning", method.messages[1].level)
    assert.matches("16%-bit activations", method.messages[1].text)
    assert.same({ E, H / 16, 2 * 128 * 4 }, L:get "w13_weight":size())
    assert.same({ "bf16", E, 1, 2 * 128 }, { L:get "w13_weight_scale":type(), unpack(L:get "w13_weight_scale":size()) })
    assert.is_true(error_of(o) < 1e-5)
    local wide, W = loaded { strategy = "channel", backend = "MARLIN", options = { activations = "int8" } }
    assert.matches("no 8%-bit activations with fp8 weights, found int8", select(2, wide:process(W)))
    local odd, O = loaded { strategy = "channel", backend = "MARLIN", h = 96 }
    assert.matches("hidden size 96 is not a multiple of 64", select(2, odd:process(O)))
    local blocks, B = loaded { strategy = "block", backend = "MARLIN", i = 256 }
    assert(blocks:process(B))
    assert.same({ E, 2, H }, B:get "w2_weight_scale":size())
    assert.is_true(layout.marlin.unpermute_scales(B:get "w2_weight_scale", 256, 128):get { 1, 1, 1 } > 0)
  end)
end)

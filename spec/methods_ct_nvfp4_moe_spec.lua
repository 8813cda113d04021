-- NVFP4 experts of compressed-tensors (CTM-NVFP4-01 to CTM-NVFP4-19, CTM-SEL-05; C-17, C-18, C-27).
local nb = require "nibble"
local nffi = require "nibble.ffi"
local act = require "nibble.act"
local ct = require "nibble.methods.ct_nvfp4_moe"
local kernels = require "nibble.methods.nvfp4_kernels"
local support = require "spec.support.experts"
local layout = nb.layout

local H, I, E = support.size, support.size, support.count
local INPUT = 256 -- input_global_scale

local function scheme(o)
  local function nvfp4(dynamic)
    return { type = "float", bits = 4, symmetric = true, strategy = "tensor_group", group = 16, dynamic = dynamic }
  end
  local s = nvfp4()
  if not (o and o.a16) then s.activations = nvfp4 "local" end
  return s
end

-- One projection as its file has it, and the float weight.
local function projection(n, k, o, seed, global)
  local codes = support.codes(n, k, 4, seed)
  local scales = support.floats(n, k / 16, seed + 1, 1):map(function(v) return 1 + v * 0.75 end):cast "f8_e4m3"
  local divisor = nb.tensor("f32", { 1 }, { global or 64 })
  local w = nb.tensor("f32", { n, k })
  nffi.must(nffi.C.nb_dequantize_float(w, codes, scales, divisor, 1, 16))
  return { weight_packed = layout.ct.pack(codes, 4):as("u8", { n, k / 2 }), weight_scale = scales, weight_global_scale = divisor,
    input_global_scale = nb.tensor("f32", { 1 }, { o.input and o.input(seed) or INPUT }) }, w
end

local function experts_of(o)
  return support.experts(o, function(n, k, seed, w, e)
    return projection(n, k, o, seed, w == "w3" and o.up_global or w == "w2" and 32 * e or nil)
  end)
end

local function new(o)
  local options = { backend = o.backend or "VLLM_CUTLASS", compat = o.compat }
  for key, value in pairs(o.options or {}) do options[key] = value end
  return ct.new(scheme(o), options)
end

local function loaded(o, ranks, experts)
  local method, L = assert(new(o)), support.layer(o, ranks)
  assert(method:create(L))
  support.load(method, L, experts or experts_of(o))
  return method, L
end

local function processed(o, ranks, experts)
  local method, L = loaded(o, ranks, experts)
  assert(method:process(L))
  return method, L
end

local function quantizer(o)
  if o.backend == "MARLIN" or o.a16 then return nil end
  local a = scheme {}.activations
  return function(row, w, e) return act.quantize_dequantize(row, a, { global = o.factor and o.factor(w, e) or INPUT }) end
end

local function error_of(o, tp, ep)
  local experts = experts_of(o)
  local x = support.floats(4, o.h or H, 3)
  local weights, ids = support.routed(4, 2, o.e or E)
  local logits
  if o.backend == "FLASHINFER_TRTLLM" then
    logits = support.floats(4, o.e or E, 8, 3)
    weights, ids = require("nibble.moe").route(logits, { top = 2, scoring = "softmax" })
  end
  local want = support.reference(x, weights, ids, support.weights(experts), { quantize = quantizer(o),
    act = o.activation == "relu2" and function(g) return math.max(g, 0) ^ 2 end or nil })
  local got = support.over_ranks(tp or 1, ep or 1, function(ranks)
    local method, L = processed(o, ranks, experts)
    if logits then return (method:apply_monolithic(L, x, logits)) end
    return (method:apply(L, x, weights, ids))
  end)
  return support.error(want, got)
end

describe("ct_nvfp4_moe", function()
  it("CTM-NVFP4-01: groups of 16, keys, the backend at construction, and which share one input factor", function()
    local m = new {}
    assert.same({ 16, "nvfp4 static", "nvfp4 dynamic", "VLLM_CUTLASS", false },
      { m.group, m.weight_key, m.activation_key, m.backend, m.global_scale_factor })
    assert.equal("none", new({ a16 = true, backend = "MARLIN" }).activation_key)
    for _, name in ipairs(kernels.names) do
      assert.equal(name:match "^FLASHINFER" ~= nil, new({ backend = name }).global_scale_factor)
    end
    assert.matches("VLLM_CUTLASS takes NVFP4 activations.*MARLIN does that", select(2, new { a16 = true }))
    assert.error_matches(function() new { backend = "TRITON" } end, "ct_nvfp4_moe: unknown backend TRITON: expected FLASHINFER_TRTLLM")
  end)

  it("CTM-NVFP4-02: recognizes NVFP4 weights with NVFP4 activations or none, and names others", function()
    assert.is_true(ct.recognizes(scheme {}))
    assert.is_true(ct.recognizes(scheme { a16 = true }))
    for _, change in ipairs { { "bits", 8 }, { "type", "int" }, { "strategy", "group" }, { "group", 32 }, { "symmetric", false } } do
      local s = scheme {}
      s[change[1]] = change[2]
      assert.is_false(ct.recognizes(s))
      assert.equal("eunsupported", select(3, ct.new(s)))
    end
    local s = scheme {}
    s.activations.bits = 8
    assert.matches("NVFP4 activations or none, found float 8 bits by tensor_group, group 16", select(2, ct.new(s)))
  end)

  it("CTM-NVFP4-03 to CTM-NVFP4-05: parameters, with halves in place, globals in columns", function()
    local o = { up_global = 128 }
    local experts = experts_of(o)
    local _, L = loaded(o, {}, experts)
    local function form(name) return { L:get(name):type(), unpack(L:get(name):size()) } end
    assert.same({ "u8", E, 2 * I, H / 2 }, form "w13_weight_packed")
    assert.same({ "u8", E, H, I / 2 }, form "w2_weight_packed")
    assert.same({ "f8_e4m3", E, 2 * I, H / 16 }, form "w13_weight_scale")
    assert.same({ "f8_e4m3", E, H, I / 16 }, form "w2_weight_scale")
    assert.same({ "f32", E, 2 }, form "w13_weight_global_scale")
    assert.same({ "f32", E }, form "w2_input_global_scale")
    assert.same({ 64, 128 }, L:get "w13_weight_global_scale"[2]:totable())
    assert.equal("group", L:param("w2_weight_scale").scale_method)
    assert.equal("tensor", L:param("w13_input_global_scale").scale_method)
    assert.same({ E, "bf16" }, { L.num_experts, L.params_dtype })
    assert.is_true(L:get "w13_weight_packed"[2]:rows(I + 1, 2 * I):equal(experts[2].file.w3.weight_packed))
    -- The low nibble is the even input.
    local first = experts[1].float.w1:get(1) * 64 / experts[1].file.w1.weight_scale:get(1)
    local magnitudes = { [0] = 0, 0.5, 1, 1.5, 2, 3, 4, 6 }
    local low = L:get "w13_weight_packed":get(1) % 16
    assert.equal((low >= 8 and -1 or 1) * magnitudes[low % 8], first)
    local ungated = support.layer { gated = false }
    assert(new({}):create(ungated))
    assert.same({ E, 1 }, ungated:get "w13_weight_global_scale":size())
    assert.same({ E, I, H / 2 }, ungated:get "w13_weight_packed":size())
    assert.same({ E, I, H / 16 }, ungated:get "w13_weight_scale":size())
  end)

  it("CTM-NVFP4-06: ranks cut I in rows of w13's halves and columns of w2; sizes must hold whole groups", function()
    local o = {}
    local experts = experts_of(o)
    local _, L = loaded(o, { tp = 2, rank = 1 }, experts)
    assert.is_true(L:get "w13_weight_packed"[3]:rows(1, I / 2):equal(experts[3].file.w1.weight_packed:rows(I / 2 + 1, I)))
    assert.equal(experts[3].file.w2.weight_packed:get { 5, I / 4 + 1 }, L:get "w2_weight_packed"[3]:get { 5, 1 })
    assert.equal(experts[3].file.w2.weight_scale:get { 5, I / 32 + 2 }, L:get "w2_weight_scale"[3]:get { 5, 2 })
    local ok, msg, code = new({}):create(support.layer { i = 40 })
    assert.is_nil(ok)
    assert.equal("eunsupported", code)
    assert.matches("intermediate size 40 is not a multiple of the group of 16", msg)
    assert.matches("hidden size 72 is not", select(2, new({}):create(support.layer { h = 72 })))
  end)

  it("CTM-NVFP4-07: the file's global scale divides; zero, missing or infinite ones are refused, nothing changed", function()
    local _, done = processed {}
    assert.equal(1 / 64, done:get "w13_weight_scale_2":get(1))
    assert.is_true(math.abs(done:get "w2_weight_scale_2":get(3) * 96 - 1) < 1e-7)
    for name, value in pairs { w13_weight_global_scale = 0, w2_weight_global_scale = math.huge, w13_input_global_scale = 0 / 0 } do
      local method, L = loaded {}
      L:get(name):set(L:get(name):numel(), value)
      local ok, msg, code = method:process(L)
      assert.is_nil(ok)
      assert.equal("eformat", code)
      assert.matches("^layer mlp%.experts: " .. name .. " of expert 2 is %-?[0inaf]+, expected a finite number other than 0", msg)
      assert.is_truthy(L:get "w13_weight_packed")
    end
    local a16, A = loaded { a16 = true, backend = "MARLIN" }
    A:get("w13_input_global_scale"):fill(0) -- not needed there
    assert.is_true(a16:process(A))
  end)

  it("CTM-NVFP4-08: rename, compare, invert, convert, publish; then the description", function()
    local seen = {}
    local method, L = loaded { up_global = 128, options = { say = function(s) seen[#seen + 1] = s end } }
    assert.is_true(method:process(L))
    assert.equal("check rename compare invert inputs bias convert publish", table.concat(seen, " "))
    assert.is_nil(L:get "w13_weight_packed")
    assert.same({ E, 2 * I, H / 2 }, L:get "w13_weight":size())
    assert.same({ E }, L:get "w13_weight_scale_2":size())
    assert.is_truthy(L:get "w2_input_scale")
    assert.is_truthy(L.quant)
    assert.equal(1, #method.messages)
    assert.matches("global scales of w1 and w3 differ, and w1's serves both: accuracy may suffer", method.messages[1].text)
    local near, N = loaded { up_global = 64.0001 } -- within 1e-5
    assert(near:process(N))
    assert.equal(0, #near.messages)
  end)

  it("CTM-NVFP4-09, C-18: the gate's global serves both, or the up half's block scales are rescaled", function()
    local o = { up_global = 128, backend = "EMULATION" }
    local experts = experts_of(o)
    assert.is_true(error_of(o) > 0.1)
    o.options = { mismatch = "rescale" }
    assert.is_true(error_of(o) < 1e-5) -- a power of two: exact
    local method, L = processed(o, {}, experts)
    assert.equal(0, #method.messages)
    assert.equal(experts[1].file.w3.weight_scale:get(1) / 2, L:get "w13_weight_scale"[1]:get { I + 1, 1 })
    assert.equal(experts[1].file.w1.weight_scale:get(1), L:get "w13_weight_scale"[1]:get { 1, 1 })
    local cut = { up_global = 0.01, backend = "EMULATION", options = { mismatch = "rescale" } }
    method = processed(cut, {}, experts_of(cut))
    assert.matches("layer mlp.experts: block scales of expert 0's up projection pass 448 when rescaled, and are cut there", method.messages[1].text)
    assert.error_matches(function() new { options = { mismatch = "up" } } end, "mismatch must be gate or rescale, found up")
  end)

  it("CTM-NVFP4-10, CTM-NVFP4-11: without a name the oracle chooses; a form that isn't here is said", function()
    local function chosen(o, L)
      local m = assert(ct.new(scheme(o), o))
      local ok, msg = m:create(L or support.layer {})
      return ok and m.backend or msg, m
    end
    assert.equal("VLLM_CUTLASS", (chosen { device = "sm_100", packages = { flashinfer = false } }))
    local name, m = chosen { device = "sm_80", a16 = true }
    assert.equal("MARLIN", name)
    assert.matches("MARLIN", m.messages[#m.messages].text)
    assert.equal("FLASHINFER_TRTLLM", (chosen { device = "sm_100", packages = { flashinfer = true } }))
    assert.equal("MARLIN", (chosen { device = "sm_100", choice = "marlin" }))
    assert.equal("NIBBLE", (chosen {}))
    assert.matches("whose form of NVFP4 experts nibble doesn't have; name one of FLASHINFER_TRTLLM",
      (chosen { device = "sm_100", choice = "flashinfer_cutedsl", packages = { flashinfer = true } }))
    assert.matches("MARLIN: needs SM 75 or above, found SM 70", (chosen { device = "sm_70", a16 = true }))
  end)

  it("CTM-NVFP4-12, C-17: one input factor for all experts, or each expert's own; emulation's reciprocal", function()
    local globals = nb.tensor("f32", { 2, 2 }, { 1 / 2, 1 / 8, 1 / 4, 1 / 16 })
    local function reduced(backend, reduction)
      return kernels.input_scale(backend, globals, reduction):totable()
    end
    assert.same({ 1 / 2, 1 / 2 }, reduced "FLASHINFER_CUTLASS")
    assert.same({ 1 / 2, 1 / 4 }, reduced("FLASHINFER_CUTLASS", "per_expert"))
    assert.same({ 1 / 2, 1 / 4 }, reduced "VLLM_CUTLASS")
    assert.same({ 2, 2 }, reduced "EMULATION")
    assert.same({ 2, 4 }, reduced("EMULATION", "per_expert"))
    local o = { backend = "EMULATION", input = function(seed) return 64 * math.floor(seed / 10) end }
    local method, L = processed(o)
    assert.matches("layer mlp.experts: the experts' input global scales differ, and emulation takes the largest factor for all", method.messages[1].text)
    assert.same({ 64, 64, 64 }, L:get "w13_input_scale":totable())
    o.factor = function() return 64 end
    assert.is_true(error_of(o) < 1e-5)
    o.options, o.factor = { input_reduction = "per_expert" }, function(_, e) return 64 * e end
    assert.is_true(error_of(o) < 1e-5)
    assert.equal(0, #processed(o).messages)
    assert.error_matches(function() new { options = { input_reduction = "min" } } end, "must be max or per_expert, found min")
  end)

  it("CTM-NVFP4-13, CTM-NVFP4-17: factors of the kernels, and what each description carries", function()
    local each = select(2, processed { input = function(seed) return 64 * (seed % 10) end }).quant -- w2's is 128
    assert.same({ 1 / 64 / 64, 64 }, { each.g1_alphas:get(1), each.a1_gscale:get(1) })
    assert.same({ 1 / 32 / 128, 128 }, { each.g2_alphas:get(1), each.a2_gscale:get(1) })
    local q = select(2, processed {}).quant
    assert.equal(1 / 64 / INPUT, q.g1_alphas:get(1))
    assert.equal(INPUT, q.a1_gscale:get(2))
    assert.is_true(q.scale_swizzled)
    assert.is_false(select(2, processed { backend = "FLASHINFER_TRTLLM" }).quant.scale_swizzled)
    local marlin, L = processed { backend = "MARLIN" }
    assert.is_truthy(marlin)
    assert.is_true(L.quant.g1_alphas:equal(L:get "w13_weight_scale_2"))
    assert.is_nil(L.quant.a1_gscale)
    assert.is_nil(L:get "w13_input_scale")
    local emulation = select(2, processed { backend = "EMULATION" }).quant
    assert.equal(1 / 64, emulation.g1_alphas:get(1))
    assert.equal(INPUT, emulation.a1_gscale:get(1))
  end)

  it("CTM-NVFP4-14: swapped halves, swizzled scales, shuffled rows; rows that would need filling up are refused", function()
    local experts = experts_of {}
    local _, raw = loaded({}, {}, experts)
    local weight, scales = raw:get "w13_weight_packed", raw:get "w13_weight_scale"
    local _, L = processed({}, {}, experts)
    assert.is_true(L:get "w13_weight":equal(weight))
    assert.is_true(L:get "w13_weight_scale":equal(layout.marlin.swizzle_blockscale(scales)))
    _, L = processed({ backend = "FLASHINFER_CUTLASS" }, {}, experts)
    assert.is_true(L:get "w13_weight"[1]:rows(1, I):equal(weight[1]:rows(I + 1, 2 * I)))
    assert.is_true(L:get "w13_weight_scale":equal(layout.marlin.swizzle_blockscale(layout.experts.swap_halves(scales))))
    _, L = processed({ backend = "FLASHINFER_TRTLLM" }, {}, experts)
    assert.is_true(L:get "w13_weight"[1]:rows(1, 1):equal(weight[1]:rows(I + 1, I + 1))) -- row 0 is up's
    assert.is_true(L:get "w13_weight"[1]:rows(9, 9):equal(weight[1]:rows(1, 1)))          -- row 8 is gate's
    _, L = processed({ backend = "EMULATION" }, {}, experts)
    assert.is_true(L:get "w13_weight_scale":equal(scales))
    local small, S = loaded { i = 96 }
    local ok, msg, code = small:process(S)
    assert.is_nil(ok)
    assert.equal("eunsupported", code)
    assert.matches("layer mlp.experts: VLLM_CUTLASS: gate and up of 192 rows together would have to be filled up to 256", msg)
    assert.is_truthy(S:get "w13_weight_packed")
    local tiles, T = loaded { backend = "FLASHINFER_TRTLLM", h = 64 }
    assert.matches("FLASHINFER_TRTLLM: the hidden size 64 is not a multiple of 128", select(2, tiles:process(T)))
  end)

  it("CTM-NVFP4-15, CTM-NVFP4-16: Marlin: warns once, refuses 8-bit activations and negative scales, fills up I", function()
    local o = { backend = "MARLIN", i = 96, dtype = "f16" }
    local method, L = processed(o)
    assert.equal(1, #method.messages)
    assert.matches("16%-bit activations", method.messages[1].text)
    assert.same({ E, H / 16, 2 * 128 * 2 }, L:get "w13_weight":size())
    assert.same({ E, 128 / 16, H }, L:get "w2_weight_scale":size())
    assert.is_true(error_of(o) < 1e-5)
    local wide, W = loaded { backend = "MARLIN", options = { activations = "int8" } }
    assert.matches("no 8%-bit activations with nvfp4 weights, found int8", select(2, wide:process(W)))
    local negative, N = loaded { backend = "MARLIN" }
    N:get("w2_weight_scale"):set(1, -1)
    negative:process(N)
    assert.matches("layer mlp.experts: w2 has negative block scales, which Marlin's form can't hold", negative.messages[2].text)
    local odd, O = loaded { backend = "MARLIN", h = 96 }
    assert.matches("hidden size 96 is not a multiple of 64", select(2, odd:process(O)))
  end)

  it("CTM-NVFP4-13, CTM-NVFP4-14, CTM-NVFP4-18, CTM-SEL-05: modular and monolithic; each form equals the dequantized weights, on all ranks", function()
    for _, backend in ipairs(kernels.names) do
      assert.is_true(error_of { backend = backend } < 1e-5)
      assert.is_true(error_of({ backend = backend, e = 4 }, 2, 2) < 1e-5)
      assert.is_true(error_of { backend = backend, gated = false, activation = "relu2", i = 96 } < 1e-5)
    end
    assert.is_true(error_of { backend = "MARLIN", a16 = true, dtype = "f16" } < 1e-5)
    assert.is_true(error_of { backend = "NIBBLE", a16 = true } < 1e-5)
    local method, L = loaded {}
    local x = support.floats(2, H, 1)
    local weights, ids = support.routed(2, 2, E)
    assert.error_matches(function() method:apply(L, x, weights, ids) end, "layer mlp.experts: apply before the weights are processed")
    assert.error_matches(function() method:apply_monolithic(L, x, x) end,
      "layer mlp.experts: ct_nvfp4_moe with the backend VLLM_CUTLASS takes routed tokens; call apply")
    assert.error_matches(function() method:prepare_finalize() end, "ct_nvfp4_moe sets up its own kernel")
    local trtllm, T = loaded { backend = "FLASHINFER_TRTLLM" }
    assert.error_matches(function() trtllm:apply(T, x, weights, ids) end,
      "layer mlp.experts: ct_nvfp4_moe with the backend FLASHINFER_TRTLLM routes by itself; call apply_monolithic")
    assert.error_matches(function() trtllm:apply_monolithic(T, x, support.floats(2, E, 1)) end, "before the weights are processed")
    assert(method:process(L))
    L.options.shared_experts = function(t) return t end
    local y, shared = method:apply(L, x, weights, ids, { shared_input = weights })
    assert.is_true(shared:equal(weights))
    assert.equal(H, y:size(2))
  end)

  it("CTM-NVFP4-19: loading again fails with a message, or goes through reload into the same storage", function()
    local o = { backend = "FLASHINFER_CUTLASS" }
    local experts = experts_of(o)
    local method, L = processed(o, {}, experts)
    local weight, scale = L:get "w13_weight", L:get "w13_weight_scale"
    local before, at = weight:clone(), { weight.data, scale.data }
    assert.error_matches(function() method:load(L, 0, "w1", experts[1].file.w1) end,
      "processed already; to load them once more call ct_nvfp4_moe's reload%(layer%) first")
    assert.error_matches(function() L:load_expert("w13_weight_packed", experts[1].file.w1.weight_packed, "w1", 0) end,
      'no parameter "w13_weight_packed"')
    local fresh = loaded(o, {}, experts)
    assert.error_matches(function() fresh:reload(support.layer(o)) end, "reload before the weights are processed")
    method:reload(L)
    assert.error_matches(function() method:apply(L, support.floats(1, H, 1), support.routed(1, 1, E)) end, "before the weights")
    support.load(method, L, { experts[2], experts[1], experts[3] })
    assert(method:process(L))
    assert.is_true(L:get "w13_weight".data == at[1] and L:get "w13_weight_scale".data == at[2])
    assert.is_true(L:get "w13_weight"[1]:equal(before[2]) and L:get "w13_weight"[3]:equal(before[3]))
    assert.is_nil(L:get "w13_weight_packed")
  end)

  it("C-27: a bias is not multiplied by the global scale; by the switch it is", function()
    for _, backend in ipairs { "MARLIN", "VLLM_CUTLASS", "FLASHINFER_CUTLASS" } do
      local o = { bias = true, backend = backend }
      local experts = experts_of(o)
      local x = support.floats(2, H, 3)
      local weights, ids = support.routed(2, 2, E)
      local biases = { w1 = support.floats(E, I, 1), w3 = support.floats(E, I, 2), w2 = support.floats(E, H, 3) }
      for name, b in pairs(biases) do biases[name] = b:cast("bf16"):cast "f32" end
      local function run(compat)
        local method, L = loaded({ bias = true, backend = backend, compat = compat }, {}, experts)
        for e = 1, E do
          for _, w in ipairs { "w1", "w2", "w3" } do method:load(L, e - 1, w, { bias = biases[w][e]:cast "bf16" }) end
        end
        assert(method:process(L))
        return (method:apply(L, x, weights, ids))
      end
      local function want(scaled)
        return support.reference(x, weights, ids, support.weights(experts), { quantize = quantizer(o), bias = function(e, w)
          local b = biases[w][e]
          return scaled and w == "w2" and layout.marlin.multiply_scales(b, 1 / (32 * e)) or b
        end })
      end
      assert.is_true(support.error(want(false), run()) < 1e-6)
      assert.is_true(support.error(want(true), run { global_scales_bias = true }) < 1e-6)
      assert.is_true(support.error(want(true), run()) > 0.05)
    end
  end)
end)

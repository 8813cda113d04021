-- Dense AWQ layers: on Marlin, in the standard packing, and without Marlin
-- (AWQ-15, AWQ-20 to AWQ-27, AWQ-39; SYSTEMS C-04, C-09, C-11, C-23).
local nb = require "nibble"
local layer = require "nibble.methods.layer"
local awq = require "nibble.methods.awq"
local awq_marlin = require "nibble.methods.awq_marlin"
local prepare = require "nibble.methods.marlin".prepare
local ck = require "spec.support.awq"
local layout = nb.layout

local function load(L, m, bias)
  for _, name in ipairs { "qweight", "qzeros", "scales" } do L:load(name, m[name]) end
  if bias then L:load("bias", bias) end
end

-- A layer with its parameters loaded from the whole matrix m.
local function made(method, m, o)
  local L = layer.new(setmetatable({ name = "proj", dtype = "bf16", k = m.q.k, n = m.q.n }, { __index = o or {} }))
  for key, v in pairs(o or {}) do L[key] = L[key] or v end
  assert(method:create(L))
  load(L, m, o and o.values)
  return L
end

local function new(group, options) return assert(awq_marlin.new({ bits = 4, group = group, zero_point = true }, options)) end

describe("a dense AWQ layer on Marlin", function()
  before_each(function() math.randomseed(11) end)

  it("AWQ-22: has the parameters of the checkpoint with their attributes", function()
    local method = new(64)
    local L = layer.new { name = "qkv", dtype = "f16", k = 256, outputs = { 128, 64, 64 }, shards = { "q", "k", "v" },
                          parallel = "column", tp = 2, rank = 1 }
    assert(method:create(L))
    assert.same({ 256, 16 }, L:get("qweight"):size())
    assert.same({ 4, 16 }, L:get("qzeros"):size())
    assert.same({ 4, 128 }, L:get("scales"):size())
    assert.same({ "i32", "i32", "f16" }, { L:get("qweight"):type(), L:get("qzeros"):type(), L:get("scales"):type() })
    local p = L:param "qweight"
    assert.same({ 0, 1, 1, 8 }, { p.input_dim, p.output_dim, p.packed_dim, p.pack_factor })
    local s = L:param "scales"
    assert.same({ 0, 1 }, { s.input_dim, s.output_dim })
    assert.is_nil(s.packed_dim)
    local odd = layer.new { name = "o", k = 128, n = 68 }
    local ok, msg, code = method:create(odd)
    assert.is_nil(ok)
    assert.equal("layer o: output 1 has 68 columns on this rank, words of 4 bits hold 8", msg)
    assert.equal("eunsupported", code)
  end)

  it("AWQ-22, MRL-59: g = -1 has one group on every rank (SYSTEMS C-09)", function()
    for rank = 0, 1 do
      local method = new(-1)
      local L = layer.new { name = "down", dtype = "bf16", k = 256, n = 64, parallel = "row", tp = 2, rank = rank }
      assert(method:create(L))
      assert.same({ 1, 64 }, L:get("scales"):size())
      assert.same({ 1, 8 }, L:get("qzeros"):size())
    end
  end)

  it("AWQ-23: the standard packing: along K, and zero-points transposed along N; loaders do nothing from then on", function()
    local m = ck.matrix { n = 64, k = 128, group = 32 }
    local method = new(32)
    local L = made(method, m)
    method:to_standard(L)
    local w, z = L:get "qweight", L:get "qzeros"
    assert.same({ 16, 64 }, w:size())
    assert.same({ 8, 4 }, z:size())
    for r = 0, 15, 5 do
      for u = 0, 7 do
        assert.equal(m.q.codes:get { 34, 8 * r + u + 1 }, math.floor(w:get { r + 1, 34 } % 2 ^ 32 / 16 ^ u) % 16)
      end
    end
    for p = 0, 7 do
      for u = 0, 7 do
        assert.equal(m.q.zeros:get { 8 * p + u + 1, 3 }, math.floor(z:get { p + 1, 3 } % 2 ^ 32 / 16 ^ u) % 16)
      end
    end
    assert.same({ 0, 1, 0 }, { L:param("qzeros").output_dim, L:param("qzeros").input_dim, L:param("qzeros").packed_dim })
    assert.equal(0, L:param("qweight").packed_dim)
    local before = w:clone()
    L:load("qweight", nb.tensor("i32", { 128, 8 }))
    assert.is_true(before:equal(L:get "qweight"))
  end)

  it("AWQ-24: processing ends in the same words, whether the standard packing was made in between or not", function()
    local m = ck.matrix { n = 128, k = 256, group = 64 }
    local bias = ck.whole({ 128 }, "bf16")
    local method = new(64)
    local straight, stepped = made(method, m, { bias = true, values = bias }), made(method, m, { bias = true, values = bias })
    assert(method:process(straight))
    method:to_standard(stepped)
    assert(method:process(stepped))
    for _, name in ipairs { "qweight", "qzeros", "scales", "bias" } do
      assert.is_true(straight:get(name):equal(stepped:get(name)), name)
    end
    assert.is_true(straight:get("qweight"):equal(layout.marlin.awq_repack(m.qweight, 4)))
    assert.is_true(straight:get("qzeros"):equal(layout.marlin.awq_zero_points(m.qzeros, 4)))
    assert.is_true(straight:get("scales"):equal(layout.marlin.permute_scales(m.scales, 256, 64)))
    assert.is_true(straight:get("bias"):equal(layout.marlin.permute_bias(bias)))
    assert.is_true(straight:param("bias").permuted)
  end)

  it("AWQ-25: nothing is lost: Marlin's words give the codes back; only 4 bits are converted (SYSTEMS C-02)", function()
    local m = ck.matrix { n = 64, k = 128, group = 32 }
    local method = new(32)
    local L = made(method, m)
    assert(method:process(L))
    assert.is_true(m.q.codes:equal(layout.gptq.unpack(layout.marlin.unpack(L:get "qweight", 4), 4, 128)))
    assert.is_true(m.q.zeros:equal(layout.transpose(layout.marlin.unpack_zero_points(L:get "qzeros", 4))))
    local eight = ck.matrix { n = 64, k = 128, group = 32, bits = 8 }
    assert.has_error(function() awq_marlin.standard(eight.qweight, eight.qzeros, 8) end,
      "awq_marlin: words of 4 bits are converted, found 8 bits; layout.awq_to_gptq knows 8 too")
    assert.is_true(eight.q.codes:equal(layout.gptq.unpack(layout.awq_to_gptq(eight.qweight, 8), 8, 128)))
    local none, msg = awq_marlin.new { bits = 8, group = 128, zero_point = true }
    assert.is_nil(none)
    assert.equal("awq_marlin: 8 bits are not supported, only 4", msg)
  end)

  it("AWQ-26, AWQ-39: on Marlin, in the standard packing and plain: x·Ŵ + bias exactly; leading dimensions stay", function()
    for _, o in ipairs { { 64, 128, 32 }, { 128, 256, 128 }, { 192, 128, -1 }, { 72, 96, 32 } } do
      local m = ck.matrix { n = o[1], k = o[2], group = o[3] }
      local bias = ck.whole({ o[1] }, "bf16")
      local x = ck.whole { 6, o[2] }
      local want = ck.product(x, m.w, bias)
      local marlin = new(o[3])
      local standard = new(o[3], { choose = function() return { backend = "conch", rejected = {} } end })
      local plain = awq.new { bits = 4, group = o[3] }
      for _, method in ipairs { marlin, standard, plain } do
        local L = made(method, m, { bias = true, values = bias })
        assert(method:process(L))
        local y = method:apply(L, x:reshape { 2, 3, o[2] })
        assert.same({ 2, 3, o[1] }, y:size())
        assert.is_true(want:equal(y:reshape { 6, o[1] }))
        assert.is_true(ck.product(x, m.w):equal(method:apply(L, x, false)))
      end
    end
  end)

  it("AWQ-26: the output has x's dtype, rounded once from float32", function()
    local m = ck.matrix { n = 64, k = 128, group = 32, scales = ck.floats }
    local method = new(32)
    local L = made(method, m)
    assert(method:process(L))
    local x = ck.floats("bf16", { 3, 128 }, -1, 1)
    local y = method:apply(L, x)
    assert.equal("bf16", y:type())
    assert.is_true(y:equal(method:apply(L, x:cast "f32"):cast "bf16"))
    local want = ck.product(x, m.w)
    for i = 1, want:numel() do
      assert.is_true(math.abs(want:get(i) - y:get(i)) <= math.abs(want:get(i)) * 2 ^ -8 + 1e-4)
    end
    assert.error_matches(function() method:apply(L, nb.tensor("f32", { 3, 64 })) end,
      "layer proj takes activations of 128 features on this rank, found 64")
    assert.error_matches(function() method:apply(made(method, m), x) end, "layer proj is not processed yet")
  end)

  it("AWQ-22, AWQ-26: two ranks by columns give the halves, two by rows sum to the whole", function()
    for _, group in ipairs { 32, -1 } do
      local m = ck.matrix { n = 128, k = 256, group = group }
      local bias = ck.whole({ 128 }, "bf16")
      local x = ck.whole { 3, 256 }
      local want = ck.product(x, m.w, bias)
      for _, class in ipairs { "marlin", "plain" } do
        local method = class == "marlin" and new(group) or awq.new { bits = 4, group = group }
        local sum = nb.tensor("f32", { 3, 128 })
        for rank = 0, 1 do
          local L = made(method, m, { parallel = "column", tp = 2, rank = rank, bias = true, values = bias })
          assert(method:process(L))
          assert.is_true(ck.columns(want, 64 * rank + 1, 64 * rank + 64):equal(method:apply(L, x)))
          L = made(method, m, { parallel = "row", tp = 2, rank = rank, bias = true, values = bias })
          assert(method:process(L))
          nb.compute.add(sum, method:apply(L, ck.columns(x, 128 * rank + 1, 128 * rank + 128)))
        end
        assert.is_true(want:equal(sum))
      end
    end
  end)

  it("AWQ-26: a bias in the wrong order is an error, never reordered silently (SYSTEMS C-04)", function()
    local m = ck.matrix { n = 64, k = 128, group = 32 }
    local bias, x = ck.whole({ 64 }, "bf16"), ck.whole { 1, 128 }
    local method = new(32)
    local L = made(method, m)
    assert(method:process(L))
    assert.error_matches(function() method:apply(L, x, bias) end, "the bias is in its plain order, the method takes Marlin's")
    local permuted = { data = layout.marlin.permute_bias(bias), permuted = true }
    assert.is_true(ck.product(x, m.w, bias):equal(method:apply(L, x, permuted)))
    local plain = awq.new { bits = 4, group = 32 }
    local P = made(plain, m)
    assert.is_true(ck.product(x, m.w, bias):equal(plain:apply(P, x, bias)))
    assert.error_matches(function() plain:apply(P, x, permuted) end, "the bias is in Marlin's order, the method takes its plain")
  end)

  it("AWQ-20: the kernel is chosen by the whole and the rank's shape; the first that can; names told once", function()
    local seen, said = nil, {}
    local method = new(64, { log = function(level, text) said[#said + 1] = level .. ": " .. text end,
      activations = "none", choose = function(q)
        seen = q
        return { backend = "a kernel for AWQ-20", rejected = { { backend = "machete", reason = "needs SM 90" } } }
      end })
    for _ = 1, 2 do
      local L = layer.new { name = "o", dtype = "f16", k = 512, n = 64, parallel = "row", tp = 2 }
      assert(method:create(L))
      assert.equal("a kernel for AWQ-20", L.kernel)
      assert.equal("machete", L.rejected[1].backend)
    end
    assert.same({ 256, 64, 512, 64, "f16" }, { seen.k, seen.n, seen.k_full, seen.n_full, seen.dtype })
    assert.is_nil(seen.input) -- the params' dtype
    assert.same({ "uint4", 64, true }, { seen.weight.type, seen.weight.group, seen.weight.zero_points })
    assert.is_nil(seen.actorder)
    assert.same({ "info: Using a kernel for AWQ-20 for AWQMarlinLinearMethod" }, said)
    method = new(64, { choose = function() return nil, "no kernel takes it: marlin: N; conch: group", "eunsupported" end })
    local ok, msg = method:create(layer.new { name = "o", k = 128, n = 64 })
    assert.is_nil(ok)
    assert.equal("layer o: no kernel takes it: marlin: N; conch: group", msg)
  end)

  it("AWQ-20, AWQ-21: a group over the edge of a rank is refused with the numbers", function()
    local ok, msg, code = new(128):create(layer.new { name = "down", k = 384, n = 64, parallel = "row", tp = 2 })
    assert.is_nil(ok)
    assert.matches("layer down: no kernel takes it: marlin: K = 192 is not a multiple of the group size 128", msg)
    assert.equal("eunsupported", code)
  end)

  it("AWQ-21: only the kernels of the peer's text, where asked for (SYSTEMS C-23)", function()
    local only
    local function choose(q)
      only = q.only
      return { backend = "marlin", rejected = {} }
    end
    local L = { name = "o", k = 128, n = 64 }
    assert(new(64, { choose = choose }):create(layer.new(L)))
    assert.is_nil(only)
    assert(new(64, { choose = choose, compat = { documented_kernels_only = true } }):create(layer.new(L)))
    assert.same({ conch = true, exllama = true, marlin = true }, only)
  end)

  it("AWQ-20, AWQ-21: by a consumer's table: the first kernel that can, and why not those before it", function()
    local m = ck.matrix { n = 128, k = 256, group = 128 }
    local x = ck.whole { 2, 256 }
    local function by(consumer, device, compat)
      local method = new(128, { consumer = consumer, device = device, compat = compat })
      local L = made(method, m)
      assert(method:process(L))
      assert.is_true(ck.product(x, m.w):equal(method:apply(L, x)))
      return L
    end
    local L = by("vllm-0.33", "sm_80")
    assert.equal("marlin", L.kernel)
    assert.same({ "cutlass_w4a8", "needs SM 90, found SM 80", "machete", "needs SM 90, found SM 80" },
      { L.rejected[1].backend, L.rejected[1].reason, L.rejected[2].backend, L.rejected[2].reason })
    L = by("vllm-0.33", "sm_90")
    assert.equal("machete", L.kernel)
    assert.same({ 32, 128 }, L:get("qweight"):size()) -- the standard packing
    L = by("document-era", "sm_80")
    assert.same({ "awq_marlin", 16, 256 }, { L.kernel, L:get("qweight"):size(1), L:get("qweight"):size(2) }) -- Marlin's words
    -- the kernels of the peer's text alone (SYSTEMS C-23)
    assert.equal("marlin", by("vllm-0.33", "sm_90", { documented_kernels_only = true }).kernel)
    local ok, msg = new(128, { consumer = "document-era", device = "rocm" }):create(layer.new { name = "o", k = 128, n = 64 })
    assert.is_nil(ok)
    assert.matches("layer o: falling back to the unoptimized AWQ kernels for layer o: awq_marlin: needs CUDA or the CPU, found ROCm", msg)
  end)

  it("AWQ-24: a layer is processed once", function()
    local m = ck.matrix { n = 64, k = 128, group = 32 }
    local method = new(32)
    local L = made(method, m)
    assert(method:process(L))
    assert.error_matches(function() method:process(L) end, "layer proj was processed, or interrupted while it was: load it again")
  end)

  it("AWQ-27: 8-bit activations are refused for dense layers (SYSTEMS C-11)", function()
    for _, activations in ipairs { "int8", "fp8" } do
      local none, msg, code = awq_marlin.new({ bits = 4, group = 64, zero_point = true }, { activations = activations })
      assert.is_nil(none)
      assert.matches("a dense AWQ layer takes no " .. activations .. " activations: Marlin's dense kernel has them for "
        .. "symmetric uint4b8", msg)
      assert.equal("eunsupported", code)
      local m = ck.matrix { n = 64, k = 128, group = 32 }
      local method = new(32, { activations = activations, compat = { dense_activations = true } })
      local L = made(method, m)
      assert(method:process(L))
      assert.error_matches(function() method:apply(L, ck.whole { 1, 128 }) end, activations .. " activations need uint4b8")
    end
  end)

  it("AWQ-24: the 8-bit parts are for symmetric weights: fp8 codes and scales, int8 globals with several groups", function()
    local m = ck.matrix { n = 64, k = 128, group = 64, symmetric = true }
    for _, activations in ipairs { "int8", "fp8" } do
      for _, group in ipairs { 64, 128 } do
        local scales = group == 64 and m.scales or m.scales:rows(1, 1)
        local out = assert(prepare { words = layout.awq_to_gptq(m.qweight, 4), order = "gptq", bits = 4, group = group,
                                     scales = scales, activations = activations })
        assert.equal(activations == "int8" and group == 64, out.global ~= nil)
        local codes = layout.awq_to_gptq(m.qweight, 4)
        if activations == "fp8" then codes = layout.marlin.fp8_preprocess(codes) end
        assert.is_true(out.words:equal(layout.marlin.repack(codes, 4, true)))
      end
    end
  end)

  it("AWQ-03: symmetric AWQ fails Marlin's check, visibly; other groups too", function()
    local none, msg = awq_marlin.new { bits = 4, group = 128, zero_point = false }
    assert.is_nil(none)
    assert.matches("does not take uint4 weights.*zero%-points no", msg)
    none, msg = awq_marlin.new { bits = 4, group = 48, zero_point = true }
    assert.is_nil(none)
    assert.matches("group size 48", msg)
    none, msg = awq_marlin.new({ bits = 4, group = 128, zero_point = true }, { capability = 70 })
    assert.is_nil(none)
    assert.matches("capability 70", msg)
    assert.error_matches(function()
      awq_marlin.new({ bits = 4, group = 128, zero_point = true }, { compat = { dense_activation = true } })
    end, 'no switch "dense_activation"; did you mean "dense_activations"')
  end)
end)

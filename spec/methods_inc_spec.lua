-- AutoRound (INC) linear layers: the XPU's 4-bit path, the probe for ARK and its method
-- (INC-01, INC-07 to INC-18, INC-20; SYSTEMS C-02, C-09, C-25).
local nb = require "nibble"
local gemm = require "nibble.gemm"
local layer = require "nibble.methods.layer"
local inc = require "nibble.methods.inc"
local inc_ark = require "nibble.methods.inc_ark"
local ck = require "spec.support.awq"
local layout = nb.layout

-- A symmetric weight, in both packings.
local function matrix(o)
  local m = ck.matrix(setmetatable(o or {}, { __index = { n = 64, k = 128, group = 32, symmetric = true } }))
  return m, { qweight = layout.gptq.pack(m.q.codes, m.q.scheme.bits), qzeros = m.qzeros, scales = m.scales, q = m.q, w = m.w }
end

local function new(o, options)
  return inc.new(setmetatable(o or {}, { __index = { bits = 4, group = 32, sym = true, is_awq = false } }), options)
end

local function loaded(method, m, o)
  local L = layer.new(setmetatable(o or {}, { __index = { name = "q_proj", dtype = "bf16", k = m.q.k, n = m.q.n } }))
  assert(method:create(L))
  for _, name in ipairs { "qweight", "qzeros", "scales", "g_idx", "bias" } do
    if m[name] then L:load(name, m[name]) end
  end
  return L
end

local function ready(method, m, o)
  local L = loaded(method, m, o)
  assert(method:process(L))
  return L
end

describe("an INC layer on the XPU", function()
  before_each(function() math.randomseed(31) end)

  it("INC-01: the method has bits, group, sym, pack factor and packing; any device", function()
    local method = new { bits = 4, group = 64, is_awq = true }
    assert.same({ 4, 64, true, 8, true, 0 }, { method.bits, method.group, method.sym, method.pack_factor,
      method.is_awq_packed, method.min_capability })
    assert.equal(10, new({ bits = 3 }).pack_factor)
    assert.is_false(new().is_awq_packed)
  end)

  it("INC-07, INC-08, INC-09: the parameters of both packings", function()
    for _, awq in ipairs { true, false } do
      local L = layer.new { name = "qkv", dtype = "f16", k = 128, outputs = { 64, 32, 32 } }
      assert(new({ is_awq = awq }):create(L))
      assert.same(awq and { 128, 16 } or { 16, 128 }, L:get("qweight"):size())
      local p = L:param "qweight"
      assert.same({ 0, 1, awq and 1 or 0, 8 }, { p.input_dim, p.output_dim, p.packed_dim, p.pack_factor })
      assert.same({ 4, 128 }, L:get("scales"):size())
      assert.equal("f16", L:get("scales"):type())
      assert.same({ 4, 16 }, L:get("qzeros"):size())
      assert.equal(1, L:param("qzeros").packed_dim)
      assert.same({ 128 }, L:get("g_idx"):size())
      for _, i in ipairs { 0, 31, 32, 127 } do assert.equal(math.floor(i / 32), L:get("g_idx"):get(i + 1)) end
      assert.equal(0, L:param("g_idx").input_dim)
    end
  end)

  it("INC-10: g = -1 is one group; a group that doesn't divide K is refused with both (SYSTEMS C-09)", function()
    local L = layer.new { name = "down", dtype = "f16", k = 256, n = 64, parallel = "row", tp = 2, rank = 1 }
    assert(new({ group = -1 }):create(L))
    assert.same({ 1, 64 }, L:get("scales"):size())
    assert.same({ 0, 0, 128 }, { L:get("g_idx"):get(1), L:get("g_idx"):get(128), L:get("g_idx"):numel() })
    local ok, msg, code = new({ group = 48 }):create(layer.new { name = "o", k = 128, n = 64 })
    assert.is_nil(ok)
    assert.equal("layer o (backend auto, 4 bits, symmetric, group 48): layer o: K = 128 of this rank is not a multiple "
      .. "of the group size 48", msg)
    assert.equal("eunsupported", code)
  end)

  it("INC-11: AWQ's packing becomes GPTQ's: all slots, 8 bits too; other widths are refused (SYSTEMS C-02)", function()
    for _, bits in ipairs { 4, 8 } do
      local m, gptq = matrix { bits = bits }
      local method = new { bits = bits, is_awq = true }
      local L = layer.new { name = "o", k = 128, n = 64, dtype = "bf16" }
      assert(inc.parameters(method, L))
      L:load("qweight", m.qweight)
      assert.is_true(gptq.qweight:equal(inc.gptq_words(method, L)))
    end
    local method = new { bits = 2, is_awq = true }
    local L = layer.new { name = "o", k = 128, n = 64, dtype = "bf16" }
    assert(inc.parameters(method, L))
    local none, msg = inc.gptq_words(method, L)
    assert.is_nil(none)
    assert.matches("AWQ's packing has an order for 4 and 8 bits only", msg)
  end)

  it("INC-12: converted, column-major, scales kept, zero-points one int8 8", function()
    local m, gptq = matrix()
    local L = ready(new { is_awq = true }, m)
    assert.same({ "qweight", "column-major", "scales", "qzeros" }, L.steps)
    assert.is_true(L:get("qweight"):equal(gptq.qweight:transpose()))
    assert.same({ 16, 64 }, L:param("qweight").logical)
    assert.same({ 1, 16 }, L:param("qweight").strides)
    assert.is_true(L:get("scales"):equal(m.scales))
    assert.same({ "i8", 1, 8 }, { L:get("qzeros"):type(), L:get("qzeros"):numel(), L:get("qzeros"):get(1) })
  end)

  it("INC-13, INC-20: symmetric 4 bits only; a refusal names layer, backend, bits, sym and group", function()
    local function why(config, options)
      local ok, msg, code = new(config, options):create(layer.new { name = "mlp.up", k = 128, n = 64 })
      assert.is_nil(ok)
      assert.equal("eunsupported", code)
      return msg
    end
    assert.equal("layer mlp.up (backend auto, 4 bits, asymmetric, group 32): this path computes symmetric 4-bit weights only",
      why { sym = false })
    assert.equal("layer mlp.up (backend w4a16, 8 bits, symmetric, group 32): this path computes symmetric 4-bit weights only",
      why({ bits = 8 }, { backend = "w4a16" }))
    assert.matches("backend w4a8, 4 bits, symmetric, group %-1%): w4a8 needs a group size above 0", why({ group = -1 },
      { backend = "w4a8" }))
    assert.matches("group 16%): w4a8 needs", why({ group = 16 }, { backend = "w4a8" }))
  end)

  it("INC-14: x·((q-8)*s) + bias; leading dimensions stay", function()
    for _, group in ipairs { 32, 128, -1 } do
      local _, m = matrix { group = group }
      m.bias = ck.whole({ 64 }, "bf16")
      local method = new { group = group }
      local L = ready(method, m, { bias = true })
      local x = ck.whole { 6, 128 }
      local y = method:apply(L, x:reshape { 2, 3, 128 })
      assert.same({ 2, 3, 64 }, y:size())
      assert.is_true(ck.product(x, m.w, m.bias):equal(y:reshape { 6, 64 }))
      assert.equal("f16", method:apply(L, x:cast "f16"):type())
      assert.error_matches(function() method:apply(loaded(method, m, { bias = true }), x) end, "is not processed yet")
    end
  end)

  it("INC-14: two ranks, by columns and by rows, give the whole", function()
    for _, group in ipairs { 32, -1 } do
      local awq, gptq = matrix { n = 64, k = 256, group = group }
      local bias, x = ck.whole({ 64 }, "bf16"), ck.whole { 3, 256 }
      awq.bias, gptq.bias = bias, bias
      local want = ck.product(x, awq.w, bias)
      for is_awq, m in pairs { [true] = awq, [false] = gptq } do
        local method, sum = new { is_awq = is_awq, group = group }, nb.tensor("f32", { 3, 64 })
        for rank = 0, 1 do
          local L = ready(method, m, { parallel = "column", tp = 2, rank = rank, bias = true })
          assert.is_true(ck.columns(want, 32 * rank + 1, 32 * rank + 32):equal(method:apply(L, x)))
          L = ready(method, m, { parallel = "row", tp = 2, rank = rank, bias = true })
          nb.compute.add(sum, method:apply(L, ck.columns(x, 128 * rank + 1, 128 * rank + 128)))
        end
        assert.is_true(want:equal(sum))
      end
    end
  end)

  it("INC-15: both packings of the same codes end in the same words and outputs", function()
    local awq, gptq = matrix { scales = ck.floats }
    local A, G = new { is_awq = true }, new()
    local LA, LG = ready(A, awq), ready(G, gptq)
    for _, name in ipairs(LA:names()) do assert.is_true(LA:get(name):equal(LG:get(name)), name) end
    local x = ck.floats("bf16", { 3, 128 }, -1, 1)
    assert.is_true(A:apply(LA, x):equal(G:apply(LG, x)))
  end)

  it("INC-09: group indices are loaded and kept, and warned of where the product ignores them (SYSTEMS C-25)", function()
    local _, m = matrix()
    local x = ck.whole { 2, 128 }
    m.g_idx = ck.each(nb.tensor("i32", { 128 }), function(i) return i == 34 and 3 or math.floor((i - 1) / 32) end)
    local said = {}
    local method = new(nil, { log = function(level, text) said[#said + 1] = level .. ": " .. text end })
    local L = ready(method, m)
    assert.is_true(L:get("g_idx"):equal(m.g_idx))
    assert.same({ "warning: layer q_proj: g_idx puts input 33 into group 3, the product takes k // 32 = 1: a checkpoint "
      .. "with activation order gives wrong results here" }, said)
    assert.is_true(ck.product(x, m.w):equal(method:apply(L, x)))
    said = {}
    ready(new(nil, { compat = { silent_g_idx = true }, log = function(_, text) said[#said + 1] = text end }), m)
    m.g_idx = ck.each(nb.tensor("i32", { 128 }), function(i) return math.floor((i - 1) / 32) end)
    local trivial = new(nil, { log = function(_, text) said[#said + 1] = text end })
    ready(trivial, m)
    for rank = 0, 1 do ready(trivial, m, { parallel = "row", tp = 2, rank = rank }) end
    assert.same({}, said)
  end)

  it("INC-18: w4a8 quantizes activations from 512 tokens on, sizes must be multiples of 8", function()
    local _, m = matrix { n = 16, k = 32, group = 32 }
    local method = new(nil, { backend = "w4a8" })
    local L = ready(method, m)
    local x = ck.floats("f32", { 512, 32 }, -1, 1)
    local exact, rounded = method:apply(L, x:rows(1, 511)), method:apply(L, x)
    assert.is_true(ck.product(x:rows(1, 511), m.w):equal(exact))
    assert.is_false(exact:equal(rounded:rows(1, 511)))
    local q, s = layout.marlin.quantize_activations(x, "int8")
    local seen = q:cast "f32"
    for i = 1, 512 do
      for j = 1, 32 do seen:set({ i, j }, q:get { i, j } * s:get(i)) end
    end
    local r = nb.compare(ck.product(seen, m.w), rounded)
    assert.is_true(r.max_abs < 1e-4)
  end)
end)

describe("the probe for ARK", function()
  local function fake(modules, asked)
    return function(name)
      if asked then asked[#asked + 1] = name end
      if modules[name] then return modules[name] end
      return nil, ("No module named '%s'"):format(name)
    end
  end

  it("INC-16: nothing to import: its text, and nothing else", function()
    local probe = inc.prober(fake {})
    assert.same({ false, "No module named 'auto_round_kernel'" }, { probe() })
    probe = inc.prober(fake { auto_round_kernel = { cpu_lib = true } })
    assert.same({ false, "No module named 'auto_round_kernel.qlinear'" }, { probe() })
  end)

  it("INC-16: a module without libraries", function()
    local said = {}
    local probe = inc.prober(fake { auto_round_kernel = {}, ["auto_round_kernel.qlinear"] = { QuantLinear = {} } },
      function(level, text) said[#said + 1] = level .. ": " .. text end)
    assert.same({ false, "No ARK backend library is available." }, { probe() })
    assert.same({ "info: Successfully imported auto_round_kernel." }, said)
  end)

  it("INC-16: success: the module, the class and two lines; looked for once", function()
    for _, lib in ipairs { "cpu_lib", "xpu_lib" } do
      local said, asked, module, class = {}, {}, { [lib] = true }, {}
      local probe = inc.prober(fake({ auto_round_kernel = module, ["auto_round_kernel.qlinear"] = { QuantLinear = class } },
        asked), function(_, text) said[#said + 1] = text end)
      for _ = 1, 2 do
        local ok, why, found, linear = probe()
        assert.is_true(ok)
        assert.is_nil(why)
        assert.equal(module, found)
        assert.equal(class, linear)
      end
      assert.equal(2, #asked)
      assert.same({ "Successfully imported auto_round_kernel.", "Successfully loaded auto_round_kernel backend library." }, said)
    end
  end)

  it("INC-16: this machine has none", function()
    assert.same({ false, 'No module named "auto_round_kernel"' }, { inc.probe() })
  end)
end)

describe("an INC layer on ARK", function()
  before_each(function() math.randomseed(32) end)

  -- A class as the package has it: it computes from GPTQ's packing with zero-points.
  local function class(made)
    return { new = function(o)
      local object = { o = o }
      function object.post_init(self) self.ready = true end
      function object.forward(self, x)
        return gemm.packed(x, { n = o.out_features, k = o.in_features, bits = o.bits, scales = self.scales, zeros = self.qzeros,
          bias = self.bias, read = function(codes, row) layout.gptq.unpack(self.qweight, o.bits, codes, row) end }):cast(x:type())
      end
      made[#made + 1] = object
      return object
    end }
  end

  it("INC-17: without ARK: the probe's text", function()
    local none, msg, code = inc_ark.new({ bits = 4, group = 32, sym = true }, { probe = function() return false, "No module named x" end })
    assert.is_nil(none)
    assert.equal("inc_ark: No module named x", msg)
    assert.equal("eunsupported", code)
    assert.is_nil((inc_ark.new { bits = 4, group = 32, sym = true }))
  end)

  it("INC-17: with ARK: the tensors go into its linear object, tags stay, zero-points and scales are freed", function()
    for _, o in ipairs { { true, true, 4 }, { false, true, 4 }, { true, false, 4 }, { true, true, 8 } } do
      local sym, is_awq, bits = unpack(o)
      local m, gptq = matrix { symmetric = sym, bits = bits }
      local bias, made = ck.whole({ 64 }, "bf16"), {}
      m.bias = bias
      if not is_awq then m = setmetatable({ bias = bias }, { __index = gptq }) end
      local method = assert(inc_ark.new({ bits = bits, group = 32, sym = sym, is_awq = is_awq },
        { probe = function() return true, nil, {}, class(made) end }))
      local L = ready(method, m, { bias = true })
      local object = made[1]
      assert.is_true(object.ready)
      assert.same({ bits, 32, sym, 128, 64, true }, { object.o.bits, object.o.group, object.o.sym, object.o.in_features,
        object.o.out_features, object.o.bias })
      assert.is_true(object.qweight:equal(gptq.qweight))
      assert.is_true(object.scales:equal(m.scales))
      assert.is_true(object.bias:equal(bias))
      assert.is_false(object.bias.data == L:get("bias").data)
      assert.same({ "bf16", (sym and "s" or "u") .. bits, "bf16" },
        { L.ark.compute_type, L.ark.weight_type, L.ark.scale_type })
      assert.is_nil(L:get "qzeros")
      assert.is_nil(L:get "scales")
      local x = ck.whole { 4, 128 }
      local y = method:apply(L, x:reshape { 2, 2, 128 })
      assert.same({ 2, 2, 64 }, y:size())
      assert.is_true(ck.product(x, m.w, bias):equal(y:reshape { 4, 64 }))
    end
  end)

  it("INC-17: not before it is processed", function()
    local method = assert(inc_ark.new({ bits = 4, group = 32, sym = true }, { probe = function() return true, nil, {}, class {} end }))
    local _, m = matrix()
    assert.error_matches(function() method:apply(loaded(method, m), ck.whole { 1, 128 }) end, "is not processed yet")
  end)
end)

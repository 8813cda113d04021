-- Experts of 4-bit integers with int8 activations: what is accepted, the parameters, the
-- packing after loading, and the forward pass against plain Lua doubles.
local nb = require "nibble"
local w4a8 = require "nibble.methods.w4a8_moe"
local layer = require "nibble.methods.layer"
local random = require("spec.support.numbers").random
local moe = nb.moe

local function scheme(group, more)
  local s = { type = "int", bits = 4, symmetric = true, strategy = group == -1 and "channel" or "group",
    group = group ~= -1 and group or nil, activations = { type = "int", bits = 8, symmetric = true, strategy = "token", dynamic = true } }
  for k, v in pairs(more or {}) do s[k] = v end
  return s
end

-- A layer with its method, created and filled but not processed. o: the layer's options; group.
local function made(o, options)
  local all = { name = "model.layers.0.mlp.experts", kind = "moe", dtype = "f32", experts = 3, hidden = 16, intermediate = 12,
    top = 2 }
  for k, v in pairs(o) do all[k] = v end
  local group = all.group or -1
  local method = assert(w4a8.new(scheme(group), options))
  local L = layer.new(all)
  assert(method:create(L))
  math.randomseed(5)
  for i, w in ipairs { "w13", "w2" } do
    local q, s = L:get(w .. "_weight"), L:get(w .. "_weight_scale")
    for j = 0, q:numel() - 1 do q:ptr()[j] = math.random(-8, 7) end
    L:replace(w .. "_weight_scale", random(s:size(), 10 + i, 0.4):cast(s:type()))
    local b = L:get(w .. "_bias")
    if b then L:replace(w .. "_bias", random(b:size(), 20 + i):cast(b:type())) end
  end
  return L, method
end

-- The raw parameters, kept before process empties them.
local function raw(L)
  local out = {}
  for _, name in ipairs(L:names()) do out[name] = L:get(name):clone() end
  return out
end

local function sigmoid(x) return 1 / (1 + math.exp(-x)) end
local function clamp(x, l) return math.max(-l, math.min(x, l)) end
local function silu(g, u) return g * sigmoid(g) * u end
local formulas = {
  silu = silu,
  swigluoai = function(g, u)
    local gc = math.min(g, 7)
    return gc * sigmoid(1.702 * gc) * (clamp(u, 7) + 1)
  end,
  swiglustep = function(g, u) return math.min(silu(g, 1), 7) * clamp(u, 7) end,
}

local function quantized(x)
  local max, q = 1e-10, {}
  for _, v in ipairs(x) do max = math.max(max, math.abs(v)) end
  for i, v in ipairs(x) do
    local y = v * 127 / max
    q[i] = y >= 0 and math.floor(y + 0.5) or math.ceil(y - 0.5)
  end
  return q, max / 127
end

-- Matrix `w` of expert e times x, x quantized first, in doubles.
local function times(t, w, e, x, group)
  local weight, scales, bias = t[w .. "_weight"], t[w .. "_weight_scale"], t[w .. "_bias"]
  local n, k, y = weight:size(2), weight:size(3), {}
  local q, scale = quantized(x)
  local g = group == -1 and k or group
  for o = 0, n - 1 do
    local sum = 0
    for i = 0, k - 1 do
      sum = sum + weight:get((e * n + o) * k + i + 1) * q[i + 1] * scales:get((e * n + o) * (k / g) + math.floor(i / g) + 1)
    end
    y[o + 1] = sum * scale + (bias and bias:get(e * n + o + 1) or 0)
  end
  return y
end

local function reference(L, t, group, x, weights, ids, formula, on_input)
  local y, top = {}, ids:size(2)
  for token = 0, x:size(1) - 1 do
    for h = 1, L.h do y[token * L.h + h] = 0 end
    for j = 1, top do
      local e, w, row, a = ids:get(token * top + j), weights:get(token * top + j), {}, {}
      for h = 1, L.h do row[h] = x:get(token * L.h + h) * (on_input and w or 1) end
      local g = times(t, "w13", e, row, group)
      for i = 1, L.i do a[i] = formula(g[i], g[L.i + i]) end
      for h, v in ipairs(times(t, "w2", e, a, group)) do
        y[token * L.h + h] = y[token * L.h + h] + v * (on_input and 1 or w)
      end
    end
  end
  return y
end

-- Half a step of an activation's code may fall to the other side in float32: a relative bound on the whole.
local function near_all(want, found, bound)
  assert.equal(#want, found:numel())
  local error2, total2 = 0, 0
  for i, v in ipairs(want) do
    error2, total2 = error2 + (v - found:get(i)) ^ 2, total2 + v * v
  end
  local off = math.sqrt(error2 / total2)
  if not (off <= bound) then error(("relative error %.3g, expected at most %g"):format(off, bound), 2) end
end

describe("w4a8_moe: what it takes", function()
  local function refused(msg, s, options)
    local method, text, code = w4a8.new(s, options)
    assert.is_nil(method)
    assert.matches(msg, text, 1, true)
    assert.equal("eunsupported", code)
  end

  it("CTM-W4A8-01: token-wise dynamic int8 activations, 4-bit weights, the CPU", function()
    local a = scheme(-1).activations
    local function with(key, value)
      local b = {}
      for k, v in pairs(a) do b[k] = v end
      b[key] = value
      return b
    end
    refused("needs activations quantized dynamically, a token at a time; found none", scheme(-1, { activations = false }))
    refused("found tensor, dynamic", scheme(-1, { activations = with("strategy", "tensor") }))
    refused("found token, static", scheme(-1, { activations = with("dynamic", false) }))
    refused("takes int8 activations, found float of 8 bits", scheme(-1, { activations = with("type", "float") }))
    refused("takes 4-bit integer weights only, found int of 8 bits", scheme(-1, { bits = 8 }))
    refused("takes 4-bit integer weights only, found float of 4 bits", scheme(-1, { type = "float" }))
    refused("symmetric weights only", scheme(-1, { symmetric = false }))
    refused('strategy = "channel" or "group", found "tensor"', scheme(-1, { strategy = "tensor" }))
    refused("runs on the CPU only, found the device sm_90", scheme(-1), { device = "sm_90" })
    assert.equal(-1, w4a8.new(scheme(-1)).group)
    assert.equal(128, w4a8.new(scheme(128), { device = "cpu" }).group)
    assert.equal(128, w4a8.new(nb.scheme.parse "W4A8").group)
  end)

  it("CTM-W4A8-02: on Arm the peer's two primitives are looked for, and nibble does without", function()
    assert.is_true(w4a8.probe { arch = "arm", pack = true, matmul = true })
    local ok, reason = w4a8.probe { arch = "arm", library = "PyTorch 2.4.0", pack = true }
    assert.same({ false, "PyTorch 2.4.0 has no dynamic 4-bit matmul; install a newer build" }, { ok, reason })
    assert.matches("no dynamic 4%-bit pack and matmul", select(2, w4a8.probe { arch = "arm" }))
    assert.matches("found x86_64", select(2, w4a8.probe { arch = "x86_64" }))
    local probe = { arch = "arm", library = "PyTorch 2.4.0", matmul = true }
    local method = assert(w4a8.new(scheme(-1), { probe = probe }))
    assert.is_false(method.accelerated)
    assert.equal("PyTorch 2.4.0 has no dynamic 4-bit pack; install a newer build", method.acceleration)
    refused("w4a8_moe: PyTorch 2.4.0 has no dynamic 4-bit pack", scheme(-1), { probe = probe, acceleration = "required" })
    probe.pack = true
    assert.is_true(w4a8.new(scheme(-1), { probe = probe, acceleration = "required" }).accelerated)
  end)

  it("CTM-W4A8-05, CTM-W4A8-09: of the layer, each refusal with its own text", function()
    local function no(msg, o)
      local all = { name = "experts", kind = "moe", experts = 4, hidden = 16, intermediate = 12 }
      for k, v in pairs(o) do all[k] = v end
      local ok, text, code = w4a8.new(scheme(o.group or -1)):create(layer.new(all))
      assert.is_nil(ok)
      assert.matches(msg, text, 1, true)
      assert.equal("eunsupported", code)
    end
    no("layer experts: w4a8_moe does not balance experts between ranks (EPLB)", { eplb = true })
    no("layer experts: w4a8_moe takes the activations silu, swigluoai and swiglustep, found gelu", { activation = "gelu" })
    no("layer experts: w4a8_moe has no expert parallelism, found 2 ranks", { ep = 2 })
    no("layer experts: w4a8_moe takes gated experts only (w1 and w3)", { gated = false })
    no("layer experts: w13: w4a8: 15 inputs; two go into a byte", { hidden = 15 })
    no("layer experts: w2: w4a8: 13 inputs; two go into a byte", { intermediate = 13 })
    no("layer experts: w2: w4a8: groups of 8 do not divide 12 inputs", { group = 8 })
  end)

  it("CTM-W4A8-10: kinds 0, 1 and 2, and nothing else", function()
    assert.same({ 0, 1, 2 }, { w4a8.kind "swiglustep", w4a8.kind "swigluoai", w4a8.kind "silu" })
    assert.error_matches(function() w4a8.kind "gelu" end, "takes the activations silu, swigluoai and swiglustep, found gelu")
  end)
end)

describe("w4a8_moe: parameters", function()
  it("CTM-W4A8-03, CTM-W4A8-04, CTM-W4A8-05: names, shapes, dtypes, scales of 1", function()
    for _, group in ipairs { -1, 4 } do
      local L = layer.new { name = "e", kind = "moe", dtype = "bf16", experts = 3, hidden = 16, intermediate = 24, tp = 2, bias = true }
      assert(w4a8.new(scheme(group)):create(L))
      assert.same({ "w13_weight", "w13_weight_scale", "w13_bias", "w13_weight_packed", "w2_weight", "w2_weight_scale", "w2_bias",
        "w2_weight_packed" }, L:names())
      local function is(name, dtype, ...)
        assert.equal(dtype, L:get(name):type())
        assert.same({ ... }, L:get(name):size())
      end
      local dtype = group == -1 and "f32" or "bf16"
      is("w13_weight", "i8", 3, 24, 16)
      is("w2_weight", "i8", 3, 16, 12)
      is("w13_weight_scale", dtype, 3, 24, group == -1 and 1 or 4)
      is("w2_weight_scale", dtype, 3, 16, group == -1 and 1 or 3)
      is("w13_bias", "bf16", 3, 24)
      is("w2_bias", "bf16", 3, 16)
      is("w13_weight_packed", "u8", 0)
      for i = 1, 6 do assert.equal(1, L:get("w2_weight_scale"):get(i)) end
      assert.equal(0, L:get("w13_bias"):get(1))
      assert.equal(group == -1 and "channel" or "group", L:param("w13_weight_scale").scale_method)
      assert.same({ 16, 24, 12, 16, group }, { L.w13_in, L.w13_out, L.w2_in, L.w2_out, L.group })
    end
    local plain = layer.new { name = "e", kind = "moe", experts = 2, hidden = 16, intermediate = 12 }
    assert(w4a8.new(scheme(-1)):create(plain))
    assert.is_nil(plain:get "w13_bias")
  end)

  it("CTM-W4A8-07, CTM-W4A8-08: process packs every expert, empties the rest, and unpack gives it back", function()
    for _, group in ipairs { -1, 4 } do
      local L, method = made { group = group, bias = true, dtype = "bf16" }
      local t = raw(L)
      assert.is_true(method:process(L))
      for _, w in ipairs { "w13", "w2" } do
        local packed = L:get(w .. "_weight_packed")
        assert.equal(3, packed:size(1))
        assert.equal(2, packed.ndim)
        for _, part in ipairs { "_weight", "_weight_scale", "_bias" } do
          assert.same({ 0 }, L:get(w .. part):size())
          assert.equal(t[w .. part]:type(), L:get(w .. part):type())
        end
        for e = 0, 2 do
          local codes, scales, bias = method:unpack(L, w, e)
          local shape = t[w .. "_weight"]:size()
          assert.is_true(codes:equal(t[w .. "_weight"]:rows(e + 1, e + 1):reshape { shape[2], shape[3] }))
          assert.is_true(scales:equal(t[w .. "_weight_scale"]:rows(e + 1, e + 1):reshape(scales:size())))
          assert.is_true(bias:equal(t[w .. "_bias"]:rows(e + 1, e + 1):reshape(bias:size()):cast "f32"))
        end
      end
      assert.error_matches(function() method:process(L) end, "its weights are packed already")
    end
  end)

  it("CTM-W4A8-03, CTM-W4A8-07: a wrong code or scale is named, and leaves the layer as it was", function()
    local L, method = made {}
    L:get("w2_weight"):set(16 * 12 * 2 + 5, 9)
    local before = raw(L)
    local ok, msg, code = method:process(L)
    assert.same({ nil, "layer model.layers.0.mlp.experts: w2 of expert 2: w4a8: the code 9 at row 0, column 4 (from 0) is outside -8 to 7",
      "eformat" }, { ok, msg, code })
    for name, t in pairs(before) do assert.is_true(L:get(name):equal(t), name) end
    L, method = made {}
    L:get("w13_weight_scale"):set(1, 0 / 0)
    assert.matches("w13 of expert 0: w4a8: 1 scales are infinite or NaN", select(2, method:process(L)))
  end)
end)

describe("w4a8_moe: the forward pass", function()
  for _, activation in ipairs { "silu", "swigluoai", "swiglustep" } do
    for _, group in ipairs { -1, 4 } do
      it(("CTM-W4A8-11, CTM-W4A8-12, CTM-W4A8-13: %s, %s"):format(activation, group == -1 and "one scale a row" or "groups of 4"), function()
        for _, top in ipairs { 1, 2, 3 } do
          local L, method = made { group = group, bias = top == 2, activation = activation, top = top }
          local t = raw(L)
          assert(method:process(L))
          local x, logits = random({ 7, 16 }, 30, 3), random({ 7, 3 }, 31, 4)
          local o = { normalize = top == 3 }
          local y = method:apply_monolithic(L, x, logits, o)
          local weights, ids = moe.route(logits, { top = top, normalize = top == 3 })
          near_all(reference(L, t, group, x, weights, ids, formulas[activation]), y, 4e-3)
        end
      end)
    end
  end

  it("CTM-W4A8-11, C-14: with compat swiglustep loses its clamp as in the peer's kernel, and the others stay", function()
    local x, weights, ids = random({ 6, 16 }, 30, 40), random({ 6, 1 }, 31), nb.tensor("i32", { 6, 1 }, { 0, 1, 2, 0, 1, 2 })
    for _, activation in ipairs { "silu", "swigluoai", "swiglustep" } do
      local results = {}
      for i, kernel in ipairs { false, true } do
        local L, method = made({ activation = activation, top = 1 }, { compat = { w4a8_kernel_activations = kernel } })
        local t = raw(L)
        assert(method:process(L))
        local formula = kernel and activation == "swiglustep" and formulas.silu or formulas[activation]
        results[i] = method:experts(L, x, weights, ids)
        near_all(reference(L, t, -1, x, weights, ids, formula), results[i], 4e-3)
      end
      assert.equal(activation ~= "swiglustep", results[1]:equal(results[2]))
    end
    local switch
    for _, s in ipairs(require("nibble.compat").switches) do
      if s.conflict == "C-14" then switch = s end
    end
    assert.is_false(switch.default)
    assert.matches("swiglustep", switch.says)
  end)

  it("CTM-W4A8-13: the router weight on the input, for any k", function()
    for _, top in ipairs { 1, 3 } do
      local L, method = made { top = top, bias = true, router_weight_on_input = true }
      local t = raw(L)
      assert(method:process(L))
      local x, logits = random({ 5, 16 }, 30, 3), random({ 5, 3 }, 31, 4)
      local weights, ids = moe.route(logits, { top = top })
      local y = method:apply_monolithic(L, x, logits)
      near_all(reference(L, t, -1, x, weights, ids, silu, true), y, 4e-3)
      local other = method:apply_monolithic(L, x, logits, { router_weight_on_input = false })
      near_all(reference(L, t, -1, x, weights, ids, silu, false), other, 4e-3)
    end
  end)

  it("CTM-W4A8-12: renormalized and grouped choices, from the layer or the call", function()
    local L, method = made { experts = 4, top = 2, router = { normalize = true, groups = 2, top_groups = 1 } }
    assert(method:process(L))
    local x, logits = random({ 5, 16 }, 30, 3), random({ 5, 4 }, 31, 4)
    local weights, ids = moe.route(logits, { top = 2, normalize = true, groups = 2, top_groups = 1 })
    local y = method:apply_monolithic(L, x, logits)
    assert.is_true(y:equal(method:experts(L, x, weights, ids)))
    assert.is_false(y:equal(method:apply_monolithic(L, x, logits, { groups = 0 })))
  end)

  it("CTM-W4A8-12: ids are 64-bit or 32-bit, and one outside the experts is an error", function()
    local L, method = made {}
    assert(method:process(L))
    local x, weights, ids = random({ 2, 16 }, 1), random({ 2, 2 }, 2), nb.tensor("i32", { 2, 2 }, { 0, 2, 1, 0 })
    local y = method:experts(L, x, weights, ids)
    assert.is_true(y:equal(method:experts(L, x, weights, ids:cast "i64")))
    for _, bad in ipairs { 3, -1, 2 ^ 40 } do
      local wide = ids:cast "i64"
      wide:set(3, bad)
      assert.error_matches(function() method:experts(L, x, weights, wide) end, "expert %-?%d+ at place 2 is outside the 3 experts")
    end
  end)

  it("CTM-W4A8-14: f32, bf16 and f16 inputs, output in the input's dtype; the same bits on every path", function()
    local L, method = made { bias = true }
    assert(method:process(L))
    local x, logits = random({ 9, 16 }, 30, 3), random({ 9, 3 }, 31, 4)
    local C = require("nibble.ffi").C
    local wide = method:apply_monolithic(L, x, logits)
    for _, dtype in ipairs { "f32", "bf16", "f16" } do
      local narrow, before = x:cast(dtype), x:cast(dtype)
      local y = method:apply_monolithic(L, narrow, logits)
      assert.equal(dtype, y:type())
      assert.is_true(narrow:equal(before))
      near_all(wide:totable(), y:cast "f32", ({ f32 = 0, bf16 = 3e-2, f16 = 5e-3 })[dtype])
      C.nb_cpu_limit(0)
      local portable = method:apply_monolithic(L, narrow, logits)
      C.nb_cpu_limit(-1)
      assert.is_true(portable:equal(y))
    end
  end)

  it("CTM-W4A8-09: monolithic, without a description, and only after packing", function()
    local L, method = made {}
    local x, logits = random({ 2, 16 }, 1), random({ 2, 3 }, 2)
    assert.equal("monolithic", moe.kind(method))
    assert.is_nil(method:quant(L))
    assert.error_matches(function() method:apply_monolithic(L, x, logits) end, "its weights are not packed yet; call process after loading")
    assert(method:process(L))
    assert.error_matches(function() method:apply(L, x) end, "w4a8_moe routes by itself; call apply_monolithic")
    L.options.eplb = true
    assert.error_matches(function() method:apply_monolithic(L, x, logits) end, "does not balance experts between ranks")
    L.options.eplb = nil
    L.expert_map, L.ep = nb.tensor("i32", { 3 }), 2
    assert.error_matches(function() method:apply_monolithic(L, x, logits) end, "has no expert parallelism")
    L.expert_map, L.activation = nil, "gelu"
    assert.error_matches(function() method:apply_monolithic(L, x, logits) end, "swigluoai and swiglustep, found gelu")
  end)
end)

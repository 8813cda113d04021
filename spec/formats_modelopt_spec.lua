-- ModelOpt's exports: every quant_algo written and read back, both places of the config, the two ways of keeping a
-- global scale, and what is said of those that contradict their tensors.
local nb = require "nibble"
local support = require "spec.support.formats"
local floats = require "nibble.formats.floats"
local files = require "spec.support.files"
local formats, scheme = nb.formats, nb.scheme

local f = assert(formats.get "modelopt")

local function f32(v) return nb.tensor("f32", { 1 }, { v }) end

-- Random content; factors as a file would hold them.
local function quantized(words, n, k)
  local q = support.quantized(scheme.parse(words), n, k, "f32")
  if q.global then
    q.factor = f32(0.00037)
    q.global = floats.reciprocal(q.factor)
  end
  local a = q.scheme.activations
  if a and a.dynamic == "local" then
    q.input_factor = f32(0.0123)
    q.input_global = floats.reciprocal(q.input_factor)
  elseif a and a.dynamic == false then q.input_scale = f32(0.25) end
  return q
end

local function round_trip(words, n, k)
  local q = quantized(words, n, k)
  assert.same({ true }, { f.can(q.scheme, n, k) })
  local whole, rec = assert(support.store("modelopt", "m.proj", q))
  local config = assert(f.config { rec })
  local step = f.row_step(rec)
  for rows = step, n + step - 1, step do
    local tensors = assert(support.store("modelopt", "m.proj", q, { rows = math.min(rows, n) }))
    for name, t in pairs(whole) do assert.is_true(t:equal(tensors[name]), name .. " in tiles of " .. rows) end
  end
  local ck = support.checkpoint(whole, config)
  local back = assert(formats.quantized(ck, "m.proj"))
  local equal, which = q:equal(back)
  assert.is_true(equal, which)
  assert.is_true(scheme.same(q.scheme, assert(formats.record(ck, "m.proj")).scheme))
  assert.equal(q:hash(), back:hash())
  return whole, config, ck
end

-- An NVFP4 checkpoint's tensors and config.
local function nvfp4(words)
  local whole, rec = assert(support.store("modelopt", "m.proj", quantized(words or "NVFP4", 8, 64)))
  return whole, f.config { rec }
end

local function refused(change, pattern, words)
  local tensors, config = nvfp4(words)
  change(tensors, config)
  local ck = support.checkpoint(tensors, config)
  local q, msg, code = formats.modules(ck)
  if q then
    q, msg, code = formats.quantized(ck, "m.proj")
  end
  assert.is_nil(q)
  assert.matches(pattern, msg)
  return code
end

describe("format modelopt", function()
  it("CTM-NVFP4-13: NVFP4 with and without activations, the factors as they are", function()
    local t, config, ck = round_trip("NVFP4", 12, 64)
    assert.same({ "u8", { 12, 32 }, "f8_e4m3", { 12, 4 }, {}, {} }, { t["m.proj.weight"]:type(), t["m.proj.weight"]:size(),
      t["m.proj.weight_scale"]:type(), t["m.proj.weight_scale"]:size(), t["m.proj.weight_scale_2"]:size(),
      t["m.proj.input_scale"]:size() })
    assert.same({ "NVFP4", 16 }, { config.quant_algo, config.group_size })
    assert.equal(f32(0.00037):get(1), t["m.proj.weight_scale_2"]:get(1))
    assert.equal(f32(1 / f32(0.0123):get(1)):get(1), assert(formats.input(ck, "m.proj")).global)
    t, config = round_trip("NVFP4A16", 12, 64)
    assert.is_nil(t["m.proj.input_scale"])
    assert.equal("W4A16_NVFP4", config.quant_algo)
  end)

  it("FP8 by tensor, channel and block, and MXFP8", function()
    local t, config = round_trip("FP8", 6, 40)
    assert.same({ "FP8", {}, 0.25 }, { config.quant_algo, t["m.proj.weight_scale"]:size(), t["m.proj.input_scale"]:get(1) })
    t, config = round_trip("FP8_DYNAMIC", 6, 40)
    assert.same({ "FP8_PER_CHANNEL_PER_TOKEN", { 6 } }, { config.quant_algo, t["m.proj.weight_scale"]:size() })
    t, config = round_trip("FP8_BLOCK", 130, 200)
    assert.same({ "FP8_PB_WO", { 2, 1, 2, 1 } }, { config.quant_algo, t["m.proj.weight_scale"]:size() })
    t, config = round_trip("MXFP8", 6, 64)
    assert.same({ "MXFP8", "u8", { 6, 2 } }, { config.quant_algo, t["m.proj.weight_scale"]:type(), t["m.proj.weight_scale"]:size() })
  end)

  it("NVFP4's weight is code * weight_scale * weight_scale_2, rounded once", function()
    local t, config = nvfp4 "NVFP4A16"
    local ck = support.checkpoint(t, config)
    local q, w = assert(formats.quantized(ck, "m.proj")), assert(formats.weight(ck, "m.proj", "f32"))
    local values = { [0] = 0, 0.5, 1, 1.5, 2, 3, 4, 6, -0, -0.5, -1, -1.5, -2, -3, -4, -6 }
    for r = 0, 7 do
      for c = 0, 63 do
        local exact = values[q.codes:get(r * 64 + c + 1)] * q.scales:get(r * 4 + math.floor(c / 16) + 1) * q.factor:get(1)
        assert.equal(f32(exact):get(1), w:get(r * 64 + c + 1))
      end
    end
    local bf16 = assert(formats.weight(ck, "m.proj", "bf16"))
    assert.is_true(w:cast("bf16"):equal(bf16))
  end)

  it("FORMATS 6: reads hf_quant_config.json, newer exports, 2-D block scales and [n,1] channels", function()
    local t, config = nvfp4()
    local side = { producer = { name = "modelopt", version = "0.29" }, quantization = { quant_algo = "NVFP4", group_size = 16,
      kv_cache_quant_algo = "FP8", exclude_modules = nb.json.array { "lm_head", "model.layers.3.mlp.gate*" } } }
    local want = assert(formats.quantized(support.checkpoint(t, config), "m.proj"))
    assert.is_true((assert(formats.quantized(support.checkpoint(t, side), "m.proj")):equal(want)))
    -- All config groups without input_activations: activations stay floats.
    local newer = { quant_method = "modelopt", quant_algo = "NVFP4", ignore = nb.json.array {}, config_groups = { group_0 = {
      input_activations = nb.json.null, weights = { num_bits = 4 } } } }
    assert.equal("NVFP4A16", scheme.describe(assert(formats.record(support.checkpoint(t, newer), "m.proj")).scheme))
    local block = quantized("FP8_BLOCK", 130, 200)
    local tensors, rec = assert(support.store("modelopt", "m.proj", block))
    tensors["m.proj.weight_scale"] = tensors["m.proj.weight_scale"]:reshape { 2, 2 }
    assert.is_true((block:equal(assert(formats.quantized(support.checkpoint(tensors, f.config { rec }), "m.proj")))))
    local channel = quantized("FP8_DYNAMIC", 6, 40)
    tensors, rec = assert(support.store("modelopt", "m.proj", channel))
    tensors["m.proj.weight_scale"] = tensors["m.proj.weight_scale"]:reshape { 6, 1 }
    assert.is_true((channel:equal(assert(formats.quantized(support.checkpoint(tensors, f.config { rec }), "m.proj")))))
  end)

  it("MIXED_PRECISION: each module its own algorithm", function()
    local a, ra = assert(support.store("modelopt", "m.a", quantized("NVFP4", 8, 64)))
    local b, rb = assert(support.store("modelopt", "m.b", quantized("FP8", 8, 64)))
    for name, t in pairs(b) do a[name] = t end
    local config = f.config { ra, rb, { name = "lm_head", kind = "linear" } }
    assert.equal("MIXED_PRECISION", config.quant_algo)
    assert.same({ "lm_head" }, { unpack(config.ignore) })
    local ck = support.checkpoint(a, config)
    assert.equal("NVFP4", scheme.describe(assert(formats.record(ck, "m.a")).scheme))
    assert.equal("FP8", scheme.describe(assert(formats.record(ck, "m.b")).scheme))
    config.quantized_layers = { ["m.a"] = { quant_algo = "NVFP4" } }
    local list, msg = formats.modules(support.checkpoint(a, config))
    assert.is_nil(list)
    assert.matches("m.b: the config says nothing of it in quantized_layers, but it holds codes and scales", msg)
    config.quantized_layers = nb.json.array {}
    list, msg = formats.modules(support.checkpoint(a, config))
    assert.is_nil(list)
    assert.matches("quant_algo is MIXED_PRECISION, but quantized_layers names no module", msg)
  end)

  it("recognizes what it doesn't read, by name", function()
    local t, config = nvfp4()
    config.quant_algo = "W4A8_AWQ"
    local rec = assert(formats.record(support.checkpoint(t, config), "m.proj"))
    assert.matches("not readable yet: format modelopt W4A8_AWQ", rec.unreadable)
  end)

  it("says which schemes it cannot hold", function()
    local can, reason = f.can(scheme.parse "W4A16", 8, 128)
    assert.is_false(can)
    assert.matches("modelopt has no quant_algo for W4A16 g128 sym; it has NVFP4", reason)
    can, reason = f.can(scheme.parse "NVFP4", 8, 40)
    assert.is_false(can)
    assert.matches("k = 40 is not a multiple of the group size 16", reason)
    assert.is_false((f.can(scheme.parse "MXFP4", 8, 64)))
    local q = quantized("NVFP4", 8, 64)
    q.input_factor, q.input_global = nil, nil
    local tensors, msg, code = support.store("modelopt", "m.proj", q)
    assert.is_nil(tensors)
    assert.matches("m.proj: activations with a calibrated scale, but none is known", msg)
    assert.equal("einexact", code)
  end)

  it("CTM-NVFP4-12: says what contradicts what, and what is missing", function()
    refused(function(t) t["m.proj.weight_scale_2"] = nil end, "m.proj: the tensor weight_scale_2 is missing")
    refused(function(t) t["m.proj.input_scale"] = nil end, "m.proj: the tensor input_scale is missing")
    refused(function(t) t["m.proj.weight_scale"] = nil end, "m.proj: the tensor weight_scale is missing")
    refused(function(t) t["m.proj.weight_scale"] = nb.tensor("f8_e4m3", { 8, 5 }) end,
      "the config says NVFP4 and the weight is %[8x64%], so weight_scale must be %[8x4%], but it is %[8x5%]")
    refused(function(t) t["m.proj.weight_scale"] = nb.tensor("f32", { 8, 4 }) end, "weight_scale is f32, expected f8_e4m3")
    refused(function(t) t["m.proj.weight"] = nb.tensor("f8_e4m3", { 8, 64 }) end, "weight is f8_e4m3, expected u8")
    refused(function(t) t["m.proj.weight"] = nb.tensor("u8", { 8 }) end, "weight is %[8%], expected two dimensions above 0")
    refused(function(t) t["m.proj.weight"] = nb.tensor("u8", { 8, 4 }) end, "NVFP4, but k = 8 is not a multiple of 16")
    refused(function(_, c) c.ignore = nb.json.array { "m.*" } end, 'the config says not to quantize it %("m.%*"%), but it holds codes')
    refused(function(_, c) c.group_size = 32 end, "group_size is 32, but NVFP4 has groups of 16")
    refused(function(_, c) c.quant_algo = nil end, "quant_algo is missing, expected a name")
    assert.equal("eformat", refused(function(t) t["m.proj.weight_scale_2"]:fill(0) end,
      "m.proj: weight_scale_2 is 0, expected a finite number above 0"))
    refused(function(t) t["m.proj.weight_scale_2"]:fill(0 / 0) end, "weight_scale_2 is .*nan, expected a finite number above 0")
    refused(function(t) t["m.proj.input_scale"]:fill(1e-42) end, "input_scale is 1.00053e%-42, whose reciprocal is no finite number")
    refused(function(t) t["m.proj.weight_scale"]:as("u8", { 8, 4 }):set(6, 0x7f) end, "m.proj: the scale of row 1, group 1 is NaN")
    refused(function(t) t["m.proj.weight"]:as("u8", { 8, 64 }):set(3, 0xff) end, "the code of row 0, column 2 is 0xff", "FP8")
  end)
end)

describe("global scales between divisors and factors", function()
  local ct = { name = "compressed-tensors" }
  local good, odd = 0.25, nil
  for i = 1, 1000 do -- a float32 that two reciprocals don't lead back to
    local v = f32(1 + i / 1024):get(1)
    if not odd and f32(1 / f32(1 / v):get(1)):get(1) ~= v then odd = v end
  end

  local function settled(fields, format, lossy)
    local q = {}
    for k, v in pairs(fields) do q[k] = f32(v) end
    local ok, msg, code = floats.settle(q, { name = "m.proj" }, format, lossy)
    if not ok then return nil, msg, code end
    local out = {}
    for k, t in pairs(q) do out[k] = t:get(1) end
    return out
  end

  it("FORMATS 10: exact where the reciprocal leads back", function()
    assert.is_number(odd)
    assert.same({ global = 4, input_global = 2 }, settled({ global = 4, factor = good, input_global = 2, input_factor = 0.5 }, ct))
    assert.same({ global = 4, factor = good }, settled({ global = 4 }, f))
    assert.same({ global = 4 }, settled({ global = 4 }, ct))
    assert.same({ global = f32(1 / odd):get(1), factor = odd }, settled({ global = 1 / odd, factor = odd }, f)) -- stays a factor
  end)

  it("otherwise refused by name, or the nearest float32", function()
    local r, msg, code = settled({ global = odd }, f)
    assert.is_nil(r)
    assert.matches("^m.proj: the weight's global scale is 1%.%d+, and the reciprocal that modelopt keeps, 0%.%d+, does not lead "
      .. "back to it; convert lossy", msg)
    assert.equal("einexact", code)
    assert.equal("einexact", select(3, settled({ global = 4, factor = 0.25, input_global = 1 / odd, input_factor = odd }, ct)))
    local factor = f32(1 / odd):get(1)
    assert.same({ factor = factor, global = f32(1 / factor):get(1) }, settled({ global = odd }, f, true))
    assert.same({ global = f32(1 / odd):get(1) }, settled({ global = 1 / odd, factor = odd }, ct, true))
  end)
end)

describe("a recipe's modelopt output", function()
  local root
  setup(function() root = files.temporary() end)
  teardown(function() files.remove(root) end)

  it("is quantized, proven, read back, dequantized exactly and run", function()
    local plan = assert(nb.plan({ name = "nv", scheme = "NVFP4A16", output = { format = "modelopt" } },
      assert(nb.open "spec/models/tiny-llama")))
    assert(plan:run(root .. "/nv"))
    local ck = assert(nb.open(root .. "/nv"))
    local r = assert(nb.eval.run { model = ck, against = assert(nb.open "spec/models/tiny-llama"), context = 256, windows = 8,
      ids = "spec/models/eval/test_tokens.safetensors" })
    assert.is_true(r.kl > 0.003 and r.kl < 0.008, r.kl)
    assert(nb.convert.to(ck, "plain", root .. "/plain"))
    local name = "model.layers.1.mlp.up_proj"
    assert.is_true(assert(assert(nb.open(root .. "/plain")):tensor(name .. ".weight")):equal(assert(ck:weight(name, "f32"))))
  end)
end)

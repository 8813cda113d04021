-- Checkpoints of quant_method "fp8": written and read back in every tiling, what their configs mean, and what is said
-- of those that contradict their tensors.
local nb = require "nibble"
local files = require "spec.support.files"
local support = require "spec.support.formats"
local formats, scheme = nb.formats, nb.scheme

local BLOCK = { quant_method = "fp8", activation_scheme = "dynamic", weight_block_size = nb.json.array { 128, 128 } }
local TENSOR = { quant_method = "fp8", activation_scheme = "dynamic" }
local STATIC = { quant_method = "fp8", activation_scheme = "static" }
local FP8 = "FP8 act:fp8:token"

local function parsed(words, fields) return scheme.parse(words, fields) end

-- Writes q in every tiling and reads it back.
local function round_trip(q)
  local f = assert(formats.get "fp8")
  assert.same({ true }, { f.can(q.scheme, q.n, q.k) })
  local whole, rec = assert(support.store("fp8", "m.proj", q))
  local config = assert(f.config { rec })
  local ck = support.checkpoint(whole, config)
  local step = f.row_step(rec)
  for rows = step, q.n + step - 1, step do
    local tensors = assert(support.store("fp8", "m.proj", q, { rows = math.min(rows, q.n) }))
    for name, t in pairs(whole) do assert.is_true(t:equal(tensors[name]), name .. " in tiles of " .. rows) end
  end
  local back = assert(formats.quantized(ck, "m.proj"))
  local equal, which = q:equal(back)
  assert.is_true(equal, which)
  assert.is_true(scheme.same(q.scheme, assert(formats.record(ck, "m.proj")).scheme))
  assert.equal(q:hash(), back:hash())
  return whole, config
end

local function quantized(words, n, k, fields)
  local q = support.quantized(parsed(words, fields), n, k, "f32")
  if scheme.static_activations(q.scheme) then q.input_scale = nb.tensor("f32", { 1 }, { 0.125 }) end
  return q
end

-- tensors: name -> {dtype, shape}; the first fault of reading m.proj.
local function fault(config, tensors)
  local made = {}
  for name, t in pairs(tensors) do made["m.proj." .. name] = nb.tensor(t[1], t[2]) end
  local ck = support.checkpoint(made, config)
  local rec, msg, code = formats.record(ck, "m.proj")
  if rec then
    rec, msg, code = formats.quantized(ck, "m.proj")
  end
  assert.is_nil(rec)
  return msg, code
end

describe("format fp8", function()
  it("CTM-FP8-03: blocks are written and read back, ragged ones too; activations in groups of a block's width", function()
    local tensors, config = round_trip(quantized("FP8_BLOCK", 256, 384))
    assert.same({ "f32", { 2, 3 } }, { tensors["m.proj.weight_scale_inv"]:type(), tensors["m.proj.weight_scale_inv"]:size() })
    assert.equal('{"activation_scheme":"dynamic","fmt":"e4m3","quant_method":"fp8","weight_block_size":[128,128]}',
      nb.json.encode(config))
    round_trip(quantized("FP8_BLOCK", 130, 200))
    round_trip(quantized("FP8_BLOCK block16x32 act:fp8:g32", 70, 96))
    local ck = support.checkpoint(tensors, config)
    assert.same({ type = "float", bits = 8, symmetric = true, strategy = "group", group = 128, dynamic = true },
      assert(formats.record(ck, "m.proj")).scheme.activations)
  end)

  it("CTM-FP8-01: one scale a tensor, activations by token or with the stored scale", function()
    local tensors, config = round_trip(quantized(FP8, 12, 40))
    assert.is_nil(tensors["m.proj.input_scale"])
    assert.equal("dynamic", config.activation_scheme)
    tensors, config = round_trip(quantized("FP8", 12, 40))
    assert.equal(0.125, tensors["m.proj.input_scale"]:get(1))
    assert.equal("static", config.activation_scheme)
    local ck = support.checkpoint(tensors, config)
    assert.equal(0.125, assert(formats.input(ck, "m.proj")).scale)
  end)

  it("FORMATS 5: reads scales of every kind that is seen", function()
    for _, dtype in ipairs { "f32", "bf16", "f8_e8m0" } do
      local ck = support.checkpoint({ ["m.proj.weight"] = nb.tensor("f8_e4m3", { 200, 130 }),
        ["m.proj.weight_scale_inv"] = nb.tensor(dtype, { 2, 2 }) }, BLOCK)
      local w = assert(formats.weight(ck, "m.proj"))
      assert.same({ 200, 130 }, w:size())
      assert.equal(dtype == "f32" and "f32" or "bf16", w:type())
    end
    for _, shape in ipairs { {}, { 1 } } do
      local scale = nb.tensor("f32", shape)
      scale:fill(0.5)
      local weight = nb.tensor("f8_e4m3", { 3, 8 })
      weight:fill(2)
      local ck = support.checkpoint({ ["m.proj.weight"] = weight, ["m.proj.weight_scale"] = scale }, TENSOR)
      assert.equal(1, assert(formats.weight(ck, "m.proj", "f32")):get(24))
    end
  end)

  it("leaves modules without codes as they are, and lists them in the config", function()
    local whole, rec = assert(support.store("fp8", "m.proj", quantized("FP8_BLOCK", 128, 128)))
    whole["lm_head.weight"] = nb.tensor("bf16", { 4, 4 })
    local ck = support.checkpoint(whole, BLOCK)
    local head = assert(formats.record(ck, "lm_head"))
    assert.equal("plain", head.format)
    assert.same({ "lm_head" }, { unpack(assert(formats.get "fp8").config { rec, head }.modules_to_not_convert) })
  end)

  it("CTM-FP8-02: says which schemes it cannot hold", function()
    local function cannot(words, pattern, fields)
      local can, reason = assert(formats.get "fp8").can(parsed(words, fields))
      assert.is_false(can)
      assert.matches(pattern, reason)
    end
    cannot("W8A8", "fp8 holds 8%-bit floats, not W8A8")
    cannot("NVFP4", "fp8 holds 8%-bit floats, not NVFP4")
    cannot("FP8_DYNAMIC", "a scale for each block or for the tensor, not by channel")
    cannot("FP8_BLOCK act:fp8:token", "activations of blocks in groups of 128 columns, but the scheme says fp8 token dynamic")
    cannot("FP8_BLOCK", "groups of 128 columns, but the scheme says none", { activations = false })
    cannot("FP8", "by token, or by tensor with static scales, but the scheme says none", { activations = false })
    local f = assert(formats.get "fp8")
    local _, a = assert(support.store("fp8", "m.a", quantized("FP8_BLOCK", 128, 128)))
    local _, b = assert(support.store("fp8", "m.b", quantized(FP8, 128, 128)))
    local config, msg = f.config { a, b }
    assert.is_nil(config)
    assert.matches("fp8 has one scheme for a checkpoint, but the modules have FP8_BLOCK %(m.a%) and FP8.*%(m.b%)", msg)
  end)

  it("a static scale that nobody calibrated is refused when it is to be written", function()
    local q = quantized("FP8", 4, 8)
    q.input_scale = nil
    local tensors, msg, code = support.store("fp8", "m.proj", q)
    assert.is_nil(tensors)
    assert.matches("m.proj: static activations, but no input scale is known", msg)
    assert.equal("einexact", code)
  end)

  it("says what contradicts what", function()
    local w, s = { "f8_e4m3", { 200, 130 } }, { "f32", { 2, 2 } }
    assert.matches("m.proj: the config says nothing of weight_block_size, but it holds weight_scale_inv",
      (fault(TENSOR, { weight = w, weight_scale_inv = s })))
    assert.matches("m.proj: weight is f8_e4m3, but the tensor weight_scale_inv is missing", (fault(BLOCK, { weight = w })))
    assert.matches("m.proj: weight is f8_e4m3, but the tensor weight_scale is missing", (fault(TENSOR, { weight = w })))
    assert.matches("m.proj: the weight is %[200x130%] in blocks of 128x128, so weight_scale_inv must be %[2x2%], but it is %[2x3%]",
      (fault(BLOCK, { weight = w, weight_scale_inv = { "f32", { 2, 3 } } })))
    assert.matches("weight_scale_inv is i32, expected f32 or bf16", (fault(BLOCK, { weight = w, weight_scale_inv = { "i32", { 2, 2 } } })))
    assert.matches("m.proj: weight is bf16 beside its scales, expected f8_e4m3",
      (fault(BLOCK, { weight = { "bf16", { 200, 130 } }, weight_scale_inv = s })))
    assert.matches("m.proj: weight is %[8%], expected two dimensions",
      (fault(BLOCK, { weight = { "f8_e4m3", { 8 } }, weight_scale_inv = s })))
    assert.matches("m.proj: the tensor input_scale is missing",
      (fault(STATIC, { weight = w, weight_scale = { "f32", { 1 } } })))
    assert.matches("bias must be %[200%]", (fault(BLOCK, { weight = w, weight_scale_inv = s, bias = { "bf16", { 130 } } })))
    local msg, code = fault(STATIC, { weight = w, weight_scale = { "f32", { 1 } }, input_scale = { "f32", {} } })
    assert.matches("m.proj: input_scale is 0, expected a finite number above 0", msg)
    assert.equal("eformat", code)
  end)

  it("says which codes and scales are not numbers", function()
    local weight, scales = nb.tensor("f8_e4m3", { 200, 130 }), nb.tensor("f32", { 2, 2 })
    scales:fill(1)
    local function reading()
      return select(2, formats.quantized(support.checkpoint({ ["m.proj.weight"] = weight, ["m.proj.weight_scale_inv"] = scales },
        BLOCK), "m.proj"))
    end
    weight:as("u8", weight:size()):set(130 * 130 + 1, 0x7f)
    assert.matches("m.proj: the code of row 130, column 0 is 0x7f, which is NaN in f8_e4m3", (reading()))
    weight:fill(1)
    scales:set(3, math.huge)
    assert.matches("m.proj: the scale of row 128, group 0 is infinite", (reading()))
    scales:set(3, 0 / 0)
    assert.matches("m.proj: the scale of row 128, group 0 is NaN: every scale must be finite", (reading()))
    scales:set(3, 0)
    assert.matches("m.proj: the scale of row 128, group 0 is zero, but row 128, column 0 holds code", (reading()))
  end)

  it("says which config is no config", function()
    local function refused(change, pattern)
      local config = { quant_method = "fp8" }
      for k, v in pairs(change) do config[k] = v end
      local list, msg, code = formats.modules(support.checkpoint({ ["m.weight"] = nb.tensor("bf16", { 2, 2 }) }, config))
      assert.is_nil(list)
      assert.matches(pattern, msg)
      return code
    end
    assert.equal("eformat", refused({ activation_scheme = "sometimes" }, "activation_scheme is sometimes, expected dynamic or static"))
    assert.equal("eunsupported", refused({ fmt = "e5m2" }, "fmt is e5m2, expected e4m3"))
    for _, size in ipairs { 128, nb.json.array {}, nb.json.array { 128 }, nb.json.array { 0, 128 }, nb.json.array { 1.5, 2 },
      nb.json.array { 1, 2, 3 } } do
      refused({ weight_block_size = size }, "weight_block_size must be two numbers above 0")
    end
    refused({ weight_block_size = nb.json.array { 128, 128 }, activation_scheme = "static" },
      "activation_scheme is static, but weights in blocks need dynamic")
  end)
end)

describe("a recipe's fp8 output", function()
  local root
  setup(function() root = files.temporary() end)
  teardown(function() files.remove(root) end)

  it("is quantized, proven, read back and run", function()
    local dir = root .. "/fp8"
    local plan = assert(nb.plan({ name = "fp8", scheme = "FP8_BLOCK", output = { format = "fp8" } },
      assert(nb.open "spec/models/tiny-llama")))
    assert(plan:run(dir))
    local ck = assert(nb.open(dir))
    local r = assert(nb.eval.run { model = ck, against = assert(nb.open "spec/models/tiny-llama"), context = 256, windows = 8,
      ids = "spec/models/eval/test_tokens.safetensors" })
    assert.same({ "fp8 group 128 dynamic" }, r.inputs)
    assert.is_true(r.kl > 0.0005 and r.kl < 0.002, r.kl)
    assert.matches("which comes from calibration", select(2, assert(nb.plan({ name = "static", scheme = "FP8", output = { format = "fp8" } },
      assert(nb.open "spec/models/parity/llama"))):run(root .. "/static")))
  end)
end)

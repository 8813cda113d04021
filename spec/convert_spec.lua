-- Exact changes of format and their proof (FORMATS 10; issue "First light").
local nb = require "nibble"
local checkpoint = require "nibble.checkpoint"

local made = {}

local function scratch()
  local dir = os.tmpname()
  os.remove(dir)
  made[#made + 1] = dir
  return dir
end

teardown(function()
  for _, dir in ipairs(made) do os.execute(("rm -rf %q"):format(dir)) end
end)

local function convert(from, format, options)
  local dir = scratch()
  local result, msg, code = nb.convert.to(assert(nb.open(from)), format, dir, options)
  return result and dir, msg or result, code
end

-- Names and bytes of all tensors, wherever in the file they lie.
local function same_tensors(a, b)
  a, b = assert(nb.open(a)), assert(nb.open(b))
  assert.equal(a.count, b.count)
  for _, info in ipairs(a.tensors) do
    local t, u = assert(a:tensor(info.name)), assert(b:tensor(info.name))
    assert.is_true(t:equal(u), info.name)
  end
end

describe("convert", function()
  local trips = {
    { "autoawq-gemm-w4g128", "compressed-tensors", "awq" },
    { "autoawq-gemm-w4g128", "gptq", "awq" },
    { "gptq-v1-sym-w4g128", "compressed-tensors", "gptq" },
    { "gptq_v2-asym-w4g32", "compressed-tensors", "gptq_v2" },
    { "autoround-auto_gptq-w4g128", "compressed-tensors", "gptq" },
    { "ct-w4a16-g128", "gptq", "compressed-tensors" },
  }
  for _, trip in ipairs(trips) do
    it(("%s → %s → %s gives the bytes of the start"):format(unpack(trip)), function()
      local start = "spec/interop/" .. trip[1]
      local there = assert(convert(start, trip[2]))
      local back = assert(convert(there, trip[3]))
      same_tensors(start, back)
      assert.equal(assert(nb.open(there)).config.model_type, assert(nb.open(back)).config.model_type)
    end)
  end

  it("dequantizes the same weights before and after, and says so in the certificate", function()
    local start = "spec/interop/autoawq-gemm-w4g128"
    local dir = assert(convert(start, "ct"))
    local a, b = assert(nb.open(start)), assert(nb.open(dir))
    local some = 0
    for _, rec in ipairs(assert(a:modules())) do
      if rec.scheme then
        assert.is_true(assert(a:weight(rec.name, "f32")):equal(assert(b:weight(rec.name, "f32"))), rec.name)
        some = some + 1
      end
    end
    assert.is_true(some > 0)
    local certificate = assert(nb.json.decode(assert(checkpoint.read_file(dir .. "/nibble.json"))))
    assert.equal("compressed-tensors", certificate.format)
    assert.matches("^%x+$", certificate.modules[1].hash)
  end)

  it("dequantizes to float32 exactly, to bf16 only when lossy is said", function()
    local start = "spec/interop/gptq-v1-sym-w4g128"
    local dir = assert(convert(start, "plain"))
    local a, b = assert(nb.open(start)), assert(nb.open(dir))
    assert.is_nil(b.quantization)
    local name
    for _, rec in ipairs(assert(a:modules())) do name = rec.scheme and rec.name or name end
    assert.is_true(assert(a:weight(name, "f32")):equal(assert(b:tensor(name .. ".weight"))))
    local ok, msg, code = convert(start, "plain", { dtype = "bf16" })
    assert.is_nil(ok)
    assert.equal("einexact", code)
    assert.matches("say lossy to accept that, or take dtype f32", msg)
    assert.truthy(convert(start, "plain", { dtype = "bf16", lossy = true }))
  end)

  it("refuses what the target cannot hold, and leaves no folder", function()
    local eight = scratch()
    local p = assert(nb.plan(assert(nb.recipe { name = "w8", scheme = "W8A16", method = "rtn" }), assert(nb.open "spec/models/tiny-llama")))
    assert(p:run(eight))
    local dir, msg, code = convert(eight, "awq")
    assert.is_nil(dir)
    assert.equal("einexact", code)
    assert.matches("8", msg)
    assert.matches("AWQ", msg)
    assert.is_nil(checkpoint.exists(made[#made]))
    local _, none = convert("spec/models/tiny-llama", "awq")
    assert.matches("holds no quantized module", none)
  end)

  it("refuses to round scales: bf16 values that f16 lacks", function()
    -- symmetric codes with a scale far below f16's range
    local small = scratch()
    local rows, cols = 64, 128
    local words, scales, shape = nb.tensor("i32", { rows, cols / 8 }), nb.tensor("bf16", { rows, 1 }), nb.tensor("i64", { 2 }, { rows, cols })
    scales:fill(1e-12)
    assert(checkpoint.mkdir(small))
    local w = assert(checkpoint.writer { dir = small, tensors = {
      { name = "model.layers.0.mlp.up_proj.weight_packed", dtype = "i32", shape = { rows, cols / 8 } },
      { name = "model.layers.0.mlp.up_proj.weight_scale", dtype = "bf16", shape = { rows, 1 } },
      { name = "model.layers.0.mlp.up_proj.weight_shape", dtype = "i64", shape = { 2 } } } })
    assert(w:put("model.layers.0.mlp.up_proj.weight_packed", words))
    assert(w:put("model.layers.0.mlp.up_proj.weight_scale", scales))
    assert(w:put("model.layers.0.mlp.up_proj.weight_shape", shape))
    assert(w:finish())
    assert(checkpoint.write_file(small .. "/config.json", nb.json.encode { model_type = "llama", quantization_config = {
      quant_method = "compressed-tensors", format = "pack-quantized", ignore = nb.json.array {}, config_groups = { group_0 = {
        targets = { "Linear" }, weights = { num_bits = 4, type = "int", symmetric = true, strategy = "channel" } } } } }))
    local dir, msg, code = convert(small, "awq")
    assert.is_nil(dir)
    assert.equal("einexact", code)
    assert.matches("model.layers.0.mlp.up_proj", msg)
    assert.is_nil(checkpoint.exists(made[#made]))
  end)
end)

-- Whole models through the systems' methods: the loss is that of the dequantized weights, whichever
-- form the kernels read (AWQ-26, AWQ-38, AWQ-39, CTM-WNA16-15).
local nb = require "nibble"
local methods = require "nibble.methods"
local runner = require "nibble.methods.runner"

local TOKENS = "spec/models/eval/test_tokens.safetensors"
local root = os.tmpname()
os.remove(root)

local made = {}

-- tiny-moe, quantized by these keys of a recipe; once for all tests that name it.
local function quantized(name, keys)
  if not made[name] then
    local recipe = { name = name, scheme = "W4A16", group = 128, lm_head = false, output = { format = "compressed-tensors" } }
    for key, value in pairs(keys) do recipe[key] = value or nil end
    local dir = root .. "-" .. name
    local plan = assert(nb.plan(recipe, assert(nb.open "spec/models/tiny-moe")))
    assert(plan:run(dir))
    made[name] = dir
  end
  return assert(nb.open(made[name]))
end

teardown(function()
  for _, dir in pairs(made) do os.execute(("rm -rf %q"):format(dir)) end
end)

local function eval(ck, through, activations)
  return assert(nb.eval.run { model = ck, ids = TOKENS, context = 256, windows = 1, through = through, activations = activations })
end

-- Both ways give one loss, up to the order of float32 sums; and these methods ran.
local function same_loss(ck, through, ran, activations, bound)
  local reference, r = eval(ck, "reference", activations), eval(ck, through, activations)
  assert.is_true(math.abs(r.nll - reference.nll) < (bound or 2e-6), ("%.9f, reference %.9f"):format(r.nll, reference.nll))
  assert.same(ran, { unpack(r.through) })
  assert.is_nil(reference.through)
end

describe("eval through the methods", function()
  it("AWQ-26, AWQ-38: an AWQ checkpoint's layers and experts on Marlin", function()
    same_loss(quantized("awq", { scheme = "W4A16_ASYM", output = { format = "awq" } }), "auto",
      { "awq_marlin 12 linear", "awq_marlin_moe 3 moe" })
  end)

  it("AWQ-39: the fallbacks without Marlin give the same", function()
    local ck = quantized("awq", { scheme = "W4A16_ASYM", output = { format = "awq" } })
    same_loss(ck, "awq", { "awq 84 linear", "reference 3 moe" })
    same_loss(ck, "moe_wna16", { "moe_wna16 3 moe", "reference 12 linear" })
  end)

  it("AWQ-40: a GPTQ checkpoint's experts in the generic kernels' bytes, with zero-points", function()
    same_loss(quantized("gptq", { scheme = "W4A16_ASYM", output = { format = "gptq" } }), "moe_wna16",
      { "moe_wna16 3 moe", "reference 12 linear" })
  end)

  it("MRL-57, INC-14: pymllm's layers, and AutoRound's from a symmetric GPTQ checkpoint", function()
    same_loss(quantized("awq", { scheme = "W4A16_ASYM", output = { format = "awq" } }), "pymllm",
      { "pymllm 84 linear", "reference 3 moe" })
    same_loss(quantized("gptq-sym", { output = { format = "gptq" } }), "auto", { "gptq_marlin_moe 3 moe", "inc 12 linear" })
  end)

  it("CTM-WNA16-15: compressed-tensors' integers on Marlin: 4 bits by groups, 8 bits by channel", function()
    same_loss(quantized("ct4", {}), "auto", { "ct_wna16_moe 3 moe", "reference 12 linear" })
    same_loss(quantized("ct8", { scheme = "W8A16", group = -1 }), "auto", { "ct_wna16_moe 3 moe", "reference 12 linear" })
  end)

  it("CTM-FP8-15, CTM-FP8-14: FP8 experts by channel and block, with and without activations", function()
    for name, keys in pairs { dynamic = { scheme = "FP8_DYNAMIC" }, block = { scheme = "FP8_BLOCK" } } do
      keys.group = false
      local ck = quantized("fp8-" .. name, keys)
      same_loss(ck, "auto", { "ct_fp8_moe 3 moe", "reference 12 linear" }, "none")
      same_loss(ck, "auto", { "ct_fp8_moe 3 moe", "reference 12 linear" }, "stored", 1e-3)
    end
  end)

  it("CTM-NVFP4-07: NVFP4 experts, gate and up with one global scale", function()
    same_loss(quantized("nvfp4a16", { scheme = "NVFP4A16", group = false }), "auto", { "ct_nvfp4_moe 3 moe", "reference 12 linear" })
  end)

  it("CTM-W4A8-13: W4A8 experts; without activations nothing reads their bytes", function()
    local ck = quantized("w4a8", { scheme = "W4A8" })
    same_loss(ck, "auto", { "reference 12 linear", "w4a8_moe 3 moe" }, "stored", 1e-3)
    same_loss(ck, "auto", { "reference 3 moe", "reference 84 linear" }, "none")
  end)

  it("CTM-FP8-15: compressed-tensors' FP8 experts, with their inputs as they are and quantized", function()
    for _, scheme in ipairs { "FP8_DYNAMIC", "FP8_BLOCK" } do
      local ck = quantized(scheme:lower(), { scheme = scheme, group = false })
      local ran = { "ct_fp8_moe 3 moe", "reference 12 linear" }
      same_loss(ck, "auto", ran, "none")
      same_loss(ck, "auto", ran, "stored", 2e-3) -- a rounding that falls the other way is a step of 6 %
    end
  end)

  it("processes layers again and again where they don't fit", function()
    local ck = quantized("ct4", {})
    local r = assert(runner.new(ck, { through = "auto", cache_bytes = 0 }))
    local model = assert(require("nibble.models").load(ck, { runner = r }))
    local kept = assert(model:logits(nb.tensor("i32", { 4 }, { 1, 2, 3, 4 }))):clone()
    assert.is_true(kept:equal(assert(model:logits(nb.tensor("i32", { 4 }, { 1, 2, 3, 4 })))))
    assert.is_nil(next(r.ready))
  end)

  it("tells why no method takes a layer, and which methods there are", function()
    local r = assert(runner.new(quantized("ct4", {}), { through = "auto" }))
    local name = "model.layers.0.self_attn.q_proj"
    assert.is_false(r:takes(name))
    assert.same({ "awq_marlin: not an AWQ checkpoint", "awq: not an AWQ checkpoint", "inc: not a GPTQ checkpoint" },
      r:reasons()[name])
    local none, msg = runner.new(quantized("ct4", {}), { through = "marlin" })
    assert.is_nil(none)
    assert.truthy(msg:find('unknown method "marlin"', 1, true))
    assert.same({ "marlin_cuda", "marlin_a8_cuda", "fp8_cuda", "nvfp4_cuda", "marlin_float_cuda", "dequantize_cuda", "awq_marlin", "awq",
      "pymllm", "inc" },
      methods.names "linear")
  end)
end)

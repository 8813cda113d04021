-- cuda_small_floats: dense FP8 W8A8 and NVFP4 W4A4 layers on a CUDA device (methods.fp8_cuda, methods.nvfp4_cuda): whole models
-- give the processor's perplexity, and the oracle knows which layers they take.
local command = require "spec.support.command"
local standin = require "spec.support.standin"

local run = standin.with ""
local dirs = {}

local function checkpoint(recipe, more)
  local dir = os.tmpname()
  os.remove(dir)
  local r = command.run { "run", recipe, "spec/models/tiny-llama", "--out", dir, unpack(more or {}) }
  assert.equal(0, r.status, r.err)
  dirs[#dirs + 1] = dir
  return dir
end

local static = { "--set", "calibrate.text=spec/models/eval/test.txt", "--set", "calibrate.samples=1", "--set", "calibrate.length=32" }

local function eval(dir, more, environment)
  return command.run(("eval %s --ids spec/models/eval/test_tokens.safetensors --windows 1 --context 12 %s"):format(dir, more),
    { before = "NIBBLE_LUA=lua " .. environment })
end

local function nll(r) return tonumber(r.out:match "nll +([%d.]+)") or error(r.out .. r.err) end

local function both(dir, method, environment)
  local there = eval(dir, "--device cuda", (environment or "") .. " NB_CUDA_DRIVER=" .. standin.library)
  assert.matches("\nthrough +" .. method .. " 28 linear\n", there.out)
  -- Inputs of 16 bits are rounded to other codes here and there, those of 4 bits to rather other ones.
  local reference = nll(eval(dir, "", ""))
  assert.is_true(math.abs(nll(there) - reference) < (method == "nvfp4_cuda" and 0.25 or 0.06), nll(there) .. ", reference " .. reference)
  -- Of the same input, a layer's output is the processor's but for the order of the sums.
  assert.equal("3", (run(([[
    local ck, act, same = nb.open %q, require "nibble.act", 0
    local r = assert(require("nibble.methods.runner").new(ck, { through = %q, device = "cuda" }))
    for _, name in ipairs { "model.layers.0.self_attn.k_proj", "model.layers.1.mlp.down_proj", "model.layers.2.mlp.up_proj" } do
      local rec = nb.formats.record(ck, name)
      assert(r:takes(name))
      local x = nb.tensor("f32", { 18, rec.k })
      for i = 1, x:numel() do x:set(i, math.sin(i * 12.9898) * 2) end
      local y, input = assert(r:linear(name, x)), assert(ck:input(name))
      local seen = act.quantize_dequantize(x, input.activations, { scale = input.scale, global = input.global })
      local expected = nb.compute.gemm(nb.tensor("f32", { 18, rec.n }), seen, nb.formats.weight(ck, name, "f32"))
      local worst, most = 0, expected:stats().absmax
      for i = 1, y:numel() do worst = math.max(worst, math.abs(y:get(i) - expected:get(i)) / most) end
      if worst < 1e-5 then same = same + 1 else print(name, worst) end
    end
    io.write(same) ]]):format(dir, method), { NB_EMU_SM = environment and environment:match "SM=(%d+)" or nil })))
end

describe("nibble eval --device cuda, of quantized inputs too:", function()
  teardown(function() for _, dir in ipairs(dirs) do os.execute(("rm -rf %q"):format(dir)) end end)

  it("FP8 by channel and token", function() both(checkpoint "any-fp8-dynamic", "fp8_cuda") end)
  it("FP8 by block and groups of 128", function() both(checkpoint "any-fp8-block", "fp8_cuda", "NB_CUBLASLT=/none") end)
  it("FP8 by tensor, static", function() both(checkpoint("any-fp8", static), "fp8_cuda") end)

  it("NVFP4, and what a device without it says", function()
    local dir = checkpoint("any-nvfp4", static)
    both(dir, "nvfp4_cuda", "NB_EMU_SM=120")
    local name = "model.layers.0.self_attn.q_proj"
    assert.matches("nvfp4_cuda: cuda:0 is sm_90: cuBLASLt multiplies 4%-bit floats on sm_100 and later", (run(([[
      local r = assert(require("nibble.methods.runner").new(nb.open %q, { through = "nvfp4_cuda", device = "cuda" }))
      print(r:takes %q, unpack(r:reasons()[%q])) ]]):format(dir, name, name))))
  end)

  it("layers have the input where it lies, and its dtype; bias too", function()
    local dir = checkpoint "any-fp8-dynamic"
    assert.equal("true f16 cuda:0 true\ntrue bf16 cuda:0 true", run(([[
      local ck, name = nb.open %q, "model.layers.0.mlp.up_proj"
      local rec = nb.formats.record(ck, name)
      local method = assert(require("nibble.methods.fp8_cuda").new(assert(require("nibble.methods").config("fp8_cuda", rec)), {}))
      for _, dtype in ipairs { "f16", "bf16" } do
        local L = require("nibble.methods.layer").new { name = name, kind = "linear", dtype = "bf16", k = rec.k, n = rec.n, bias = true }
        assert(method:create(L))
        local bias, x = nb.tensor("bf16", { rec.n }), nb.tensor("f32", { 2, rec.k })
        for i = 1, rec.n do bias:set(i, i / 64) end
        for i = 1, x:numel() do x:set(i, math.sin(i)) end
        L:load("bias", bias)
        assert(method:read(L, ck))
        assert(method:process(L))
        local here, there = assert(method:apply(L, x:cast(dtype))), assert(method:apply(L, x:cast(dtype):to "cuda"))
        local plain = nb.compute.gemm(nb.tensor("f32", { 2, rec.n }), x, nb.formats.weight(ck, name, "f32"))
        local near = math.abs(here:get(5) - plain:get(5) - 5 / 64) < 0.05 * plain:stats().absmax
        print(there:to("cpu"):equal(here), there:type(), there:where(), near)
      end ]]):format(dir)):gsub("\t", " "))
  end)
end)

describe("the oracle, of small floats on CUDA:", function()
  local function says(sm, weight, activation, more)
    local q = { consumer = "nibble", kind = "linear", device = sm, k = 256, n = 64, weight = weight, activation = activation }
    for key, value in pairs(more or {}) do q[key] = value end
    local nb = require "nibble"
    local r, msg = nb.backends.select(q, { change = false })
    return r and r.backend or msg
  end
  local function fp8(strategy, o)
    local t = { type = "float", bits = 8, strategy = strategy }
    for key, value in pairs(o or {}) do t[key] = value end
    return t
  end
  local nvfp4 = { type = "float", bits = 4, strategy = "tensor_group", group = 16 }

  it("takes what the methods take", function()
    local token, group = fp8("token", { dynamic = true }), fp8("group", { dynamic = true, group = 128 })
    assert.equal("fp8_cuda", says("sm_80", fp8 "channel", token))
    assert.equal("fp8_cuda", says("sm_90", fp8("block", { block = { 128, 128 } }), group))
    assert.equal("fp8_cuda", says("sm_89", fp8 "tensor", fp8("tensor", { dynamic = false })))
    assert.equal("nvfp4_cuda", says("sm_120", nvfp4, nvfp4))
    assert.equal("marlin_float_cuda", says("sm_90", nvfp4, nvfp4))
    assert.matches("nvfp4_cuda does not support this deployment: it needs SM 100 or above, found SM 90",
      says("sm_90", nvfp4, nvfp4, { backend = "nvfp4_cuda" }))
    assert.matches("takes fp8 tensor .*, found fp8 block 64x64 x fp8 group 128",
      says("sm_90", fp8("block", { block = { 64, 64 } }), group, { backend = "fp8_cuda" }))
    assert.matches("needs K of a multiple of 16, found 24", says("sm_90", fp8 "channel", token, { k = 24, backend = "fp8_cuda" }))
  end)

  it("and e4m3fnuz is not for NVIDIA's", function()
    assert.equal("fp8_cuda: e4m3fnuz is the format of other makers' devices; NVIDIA's compute with e4m3fn",
      (run [[print((select(2, require("nibble.methods.fp8_cuda").new({}, { fnuz = true }))))]]))
  end)
end)

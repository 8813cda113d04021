-- cuda_methods: dense layers of AWQ, GPTQ and compressed-tensors checkpoints on a CUDA device (methods.marlin_cuda): after
-- loading they hold the bytes that the CPU makes, and their product is that of the checkpoint's own numbers.
local command = require "spec.support.command"
local standin = require "spec.support.standin"

local emulator = standin.library

local run = standin.with ""

-- made(format, bits, group, options) -> a loaded layer, its method, and what it was loaded with, in random numbers.
local layers = [[
  local layer, method, layout = require "nibble.methods.layer", require "nibble.methods.marlin_cuda", nb.layout
  local seed = 1
  local function random()
    seed = (seed * 1103515245 + 12345) % 2147483648
    return seed
  end
  local function words(shape)
    local t = nb.tensor("i32", shape)
    for i = 1, t:numel() do t:set(i, random() * 2 % 4294967296 - 2147483648 + math.floor(random() / 65536) % 2) end
    return t
  end
  local function scales(dtype, shape)
    local t = nb.tensor("f32", shape)
    for i = 1, t:numel() do t:set(i, 0.002 + random() % 1000 / 100000) end
    return t:cast(dtype)
  end
  local function values(dtype, shape)
    local t = nb.tensor("f32", shape)
    for i = 1, t:numel() do t:set(i, random() % 2001 / 1000 - 1) end
    return t:cast(dtype)
  end
  local function made(format, bits, group, o)
    local k, n, dtype, pf = o.k or 256, o.n or 128, o.dtype or "f16", 32 / bits
    local groups = group == -1 and 1 or k / group
    local stored = { bias = o.bias and values(dtype, { n }) or nil }
    if format == "compressed-tensors" then
      stored.weight_packed, stored.weight_scale = words { n, k / pf }, scales(dtype, { n, groups })
      stored.weight_zero_point = o.zeros and words { n / pf, groups } or nil
    else
      stored.qweight = words(format == "awq" and { k, n / pf } or { k / pf, n })
      stored.scales, stored.qzeros = scales(dtype, { groups, n }), (o.zeros or format == "awq") and words { groups, n / pf } or nil
    end
    if o.actorder then
      local g_idx = nb.tensor("i32", { k })
      for i = 0, k - 1 do g_idx:set(i + 1, math.floor(i * 37 % k / group)) end
      stored[format == "gptq" and "g_idx" or "weight_g_idx"] = g_idx
    end
    local L = layer.new { name = "l", kind = "linear", dtype = dtype, k = k, n = n, bias = o.bias }
    local m = assert(method.new({ format = format, bits = bits, group = group, zero_point = o.zeros or false,
      actorder = o.actorder or false }, {}))
    local ok, msg = m:create(L)
    if not ok then return nil, msg end
    for _, name in ipairs(L:names()) do L:load(name, (assert(stored[name], name))) end
    return L, m, stored
  end
  local cases = {
    { "awq", 4, 64, { zeros = true, bias = true } }, { "awq", 8, -1, { zeros = true, dtype = "bf16" } }, { "awq", 4, 32, {} },
    { "gptq", 4, 128, { zeros = true, dtype = "bf16" } }, { "gptq", 8, 32, { bias = true } }, { "gptq_v2", 4, 32, { zeros = true } },
    { "gptq", 4, 64, { actorder = true } }, { "compressed-tensors", 4, 128, { bias = true } },
    { "compressed-tensors", 8, -1, {} }, { "compressed-tensors", 4, 32, { zeros = true, actorder = true } },
  }
]]

describe("marlin_cuda: after loading", function()
  it("AWQ-23, MRL-30: a layer's parts on the device are those that the CPU makes, byte for byte", function()
    assert.equal("10 of 10", run(layers .. [[
      local prepare, same = require("nibble.methods.marlin").prepare, 0
      for _, case in ipairs(cases) do
        local format, bits, group = case[1], case[2], case[3]
        local L, m, stored = made(unpack(case))
        assert(L, m)
        assert(m:process(L))
        local ct, zeros = format == "compressed-tensors", case[4].zeros and stored.qzeros or nil
        if format:match "^gptq" and zeros or ct and stored.weight_zero_point then
          local plain = ct and layout.ct.unpack_zeros(stored.weight_zero_point, bits, 128)
            or layout.gptq.unpack_zeros(zeros, bits, format == "gptq", 128)
          zeros = layout.awq.pack_zeros(plain, bits)
        end
        local cpu = prepare { words = ct and layout.ct_to_gptq(stored.weight_packed) or stored.qweight,
          order = format == "awq" and "awq" or "gptq", bits = bits, group = group, zeros = zeros,
          scales = ct and layout.transpose(stored.weight_scale) or stored.scales, bias = stored.bias,
          g_idx = stored.g_idx or stored.weight_g_idx }
        local equal, names = true, 0
        for name, t in pairs(cpu) do
          names = names + 1
          local there = L:get(name)
          equal = equal and there ~= nil and there:where() == "cuda:0" and there:to("cpu"):equal(t)
          if not equal then print(format, bits, group, name) end
        end
        if equal and names == #L:names() then same = same + 1 end
      end
      print(same .. " of " .. #cases) ]]))
  end)
end)

-- through(method, x's dtype): the first module of each checkpoint that other tools wrote, run on the device; what is off by more
-- than rounding explains, and how far the others are off, as a share of that.
local checkpoints = [[
  local runner, compute = require "nibble.methods.runner", nb.compute
  local folders = { "autoawq-gemm-w4g128", "gptq-v1-sym-w4g128", "gptq_v2-asym-w4g32", "ct-w4a16-g128", "autoround-auto_gptq-w4g128" }
  local function absolute(t) return t:map(math.abs) end
  -- y against x times the dequantized weight: the largest error over the sums of magnitudes, in units of the dtype's rounding.
  local function off(ck, name, dtype, x, y)
    local w = nb.formats.weight(ck, name, "f32")
    local exact, most = nb.tensor("f32", y:size()), nb.tensor("f32", y:size())
    local rounded = x:cast(dtype):cast "f32"
    compute.gemm(exact, rounded, w)
    compute.gemm(most, absolute(rounded), absolute(w))
    local worst, unit = 0, dtype == "f16" and 2 ^ -11 or 2 ^ -8
    for i = 1, y:numel() do worst = math.max(worst, math.abs(y:get(i) - exact:get(i)) / (most:get(i) * unit + 1e-30)) end
    return worst
  end
  local function input(m, k)
    local x = nb.tensor("f32", { m, k })
    for i = 1, m * k do x:set(i, math.sin(i * 12.9898) * 2) end
    return x
  end
  local function through(method, rows)
    for _, folder in ipairs(folders) do
      local ck = assert(nb.open("spec/interop/" .. folder))
      local name = "model.layers.0.self_attn.q_proj"
      local rec = assert(nb.formats.record(ck, name))
      local r = assert(runner.new(ck, { through = method, device = "cuda" }))
      if not r:takes(name) then print(folder, unpack(r:reasons()[name])) end
      local x = input(rows, rec.k)
      local y = assert(r:linear(name, x))
      local error = off(ck, name, rec.dtype, x, y)
      print(folder, error <= 1 and y:type() == "f32" and "right" or error)
    end
  end
]]

describe("marlin_cuda: the product", function()
  it("AWQ-26: is that of the checkpoint's numbers, whoever wrote it", function()
    local out = run(checkpoints .. 'through("marlin_cuda", 3)')
    assert.equal(5, select(2, out:gsub("\tright", "")), out)
  end)

  it("is the CPU's within rounding, on the device from input to output too; bias in Marlin's order only", function()
    assert.equal("10 of 10\nfalse\tlayer l: the bias is in its plain order, the method takes Marlin's", (run(layers .. [[
      local same = 0
      for _, case in ipairs(cases) do
        local format, bits, group, o = unpack(case)
        local L, m = made(unpack(case))
        local dtype, n, k = o.dtype or "f16", 128, 256
        assert(m:process(L))
        local function here(name)
          local t = L:get(name)
          return t and t:to "cpu"
        end
        local x = values(dtype, { 5, k })
        local y, there = assert(m:apply(L, x)), assert(m:apply(L, x:to "cuda"))
        local cpu = nb.gemm.marlin(x, { type = (o.zeros and "uint%d" or "uint%db%d"):format(bits, 2 ^ (bits - 1)), words = here "words",
          scales = here "scales", zeros = here "zeros", bias = here "bias", perm = here "perm", sorted_g_idx = here "sorted_g_idx", k = k, n = n,
          group = group })
        local close = y:type() == dtype and there:where() == "cuda:0" and there:to("cpu"):equal(y)
        -- y is rounded once; sums come in another order
        local step, most = dtype == "f16" and 2 ^ -11 or 2 ^ -8, cpu:stats().absmax
        for i = 1, y:numel() do close = close and math.abs(y:get(i) - cpu:get(i)) <= step * math.abs(cpu:get(i)) + 1e-5 * most end
        if close then same = same + 1 else print(unpack(case)) end
      end
      print(same .. " of " .. #cases)
      local L, m = made("awq", 4, 64, { zeros = true })
      assert(m:process(L))
      print(pcall(m.apply, m, L, values("f16", { 1, 256 }), values("f16", { 128 }))) ]]):gsub(": permute it.*", "")))
  end)

  it("comes from the device for all layers that it takes when a model is evaluated; a layer is processed once", function()
    local out = run [[
      local runner = require "nibble.methods.runner"
      local r = assert(runner.new(nb.open "spec/interop/ct-w4a16-g128", { through = "auto", device = "cuda" }))
      for _, name in ipairs { "model.layers.0.self_attn.q_proj", "model.layers.3.mlp.down_proj" } do assert(r:takes(name), name) end
      print(unpack(r:summary()))
      local L = {}
      local found = r.plans["model.layers.0.self_attn.q_proj"]
      assert(r:linear("model.layers.0.self_attn.q_proj", nb.tensor("f32", { 1, 256 })))
      print(pcall(found.method.process, found.method, r.place.kept["model.layers.0.self_attn.q_proj"].thing)) ]]
    assert.matches("^marlin_cuda 2 linear\nfalse\tlayer model.layers.0.self_attn.q_proj was processed: load it again$", out)
  end)
end)

describe("marlin_cuda: beside layers of the CPU", function()
  it("layers are kept in the memory that they lie in, each while it has room", function()
    assert.equal("true true false", run [[
      local runner, name = require "nibble.methods.runner", "model.layers.0.self_attn.q_proj"
      local function kept(folder, device, bytes)
        local r = assert(runner.new(nb.open("spec/interop/" .. folder), { through = "auto", device = device, cache_bytes = bytes }))
        assert(r:takes(name))
        assert(r:linear(name, nb.tensor("f32", { 1, 256 })))
        if device then return r.place.kept[name] ~= nil and r.ready[name] == nil and r.room == (bytes or 2 ^ 30) end
        return r.ready[name] ~= nil
      end
      print(table.concat({ tostring(kept("ct-w4a16-g128", "cuda")), tostring(kept("autoawq-gemm-w4g128")),
        tostring(kept("ct-w4a16-g128", "cuda", 100)) }, " ")) ]])
  end)
end)

describe("nibble eval --device cuda", function()
  local dir = os.tmpname()
  os.remove(dir)
  setup(function() assert.equal(0, command.run({ "run", "any-w4a16", "spec/models/tiny-llama", "--out", dir }).status) end)
  teardown(function() os.execute(("rm -rf %q"):format(dir)) end)

  local function eval(more, environment)
    return command.run(("eval %s --ids spec/models/eval/test_tokens.safetensors --windows 1 --context 8 %s"):format(dir, more),
      { before = "NIBBLE_LUA=lua " .. environment })
  end

  it("runs the dense layers there, and gives the perplexity of 16-bit products", function()
    local there = eval("--device cuda", "NB_CUDA_DRIVER=" .. emulator)
    assert.matches("\nthrough +marlin_cuda 28 linear\n", there.out)
    local nll, reference = tonumber(there.out:match "nll +([%d.]+)"), tonumber(eval("", "").out:match "nll +([%d.]+)")
    assert.is_true(math.abs(nll - reference) < 1e-3 and nll ~= reference, nll .. ", reference " .. reference)
  end)

  it("says why it cannot", function()
    assert.matches("there is no CUDA driver here: /none", eval("--device cuda", "NB_CUDA_DRIVER=/none").err)
    assert.matches('unknown device "gpu"; known: "cpu", "cuda"', eval("--device gpu", "").err)
    assert.matches("cuda:0 is out of memory", eval("--device cuda", "NB_EMU_MEMORY=100000 NB_CUDA_DRIVER=" .. emulator).err)
  end)
end)

describe("dequantize_cuda", function()
  it("multiplies weights of every format, by cuBLASLt", function()
    local out = run(checkpoints .. 'through("dequantize_cuda", 3)')
    assert.equal(5, select(2, out:gsub("\tright", "")), out)
  end)

  it("is not there without cuBLASLt, which is said, and layers are dequantized", function()
    assert.equal("false\ndequantize_cuda: there is no cuBLASLt here: /none: cannot open shared object file: No such file or " ..
      "directory; install NVIDIA's CUDA libraries, or let NB_CUBLASLT name libcublasLt.so", (run([[
      local r = require("nibble.methods.runner").new(nb.open "spec/interop/ct-w4a16-g128", { through = "dequantize_cuda", device = "cuda" })
      print(r:takes "model.layers.0.self_attn.q_proj")
      print(r:reasons()["model.layers.0.self_attn.q_proj"][1]) ]], { NB_CUBLASLT = "/none" })))
  end)
end)

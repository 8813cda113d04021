-- cuda_systems: every system's layers on a CUDA device (methods.on_device): apply gives what the CPU's apply gives for the same
-- parameters, within the rounding of 16-bit activations; ranks and expert maps, one after the other, the unsharded result.
local standin = require "spec.support.standin"

local run = standin.with "local systems, methods = require 'spec.support.systems', require 'nibble.methods' "

-- Runs each case, the arguments of a function of systems; prints those that are off by more than the bound, and how many are not.
local function judged(kind, cases, before)
  return run(([[ %s
    local right, cases = 0, { %s }
    for i, case in ipairs(cases) do
      local ok, off, msg = pcall(systems.%s, unpack(case, 1, 6))
      if ok and off and off <= 1 then right = right + 1 else print(i, case[1], off, msg) end
    end
    print(right .. " of " .. #cases .. " right") ]]):format(before or "", cases, kind))
end

describe("a linear layer on the device", function()
  it("AWQ-26, AWQ-39, MRL-57, INC-14, INC-17, INC-18: gives what each system's own apply gives", function()
    assert.equal("18 of 18 right", judged("linear", [[
      { "awq", { bits = 4, group = 32, zero_point = true }, {} },
      { "awq", { bits = 8, group = -1, zero_point = true }, { dtype = "bf16" } },
      { "awq", { bits = 4, group = 48, zero_point = true }, { k = 96, n = 72, dtype = "bf16", bias = false } },
      { "awq", { bits = 8, group = 512, zero_point = true }, { k = 100, n = 68 } },
      { "awq_marlin", { bits = 4, group = 64, zero_point = true }, {} },
      { "awq_marlin", { bits = 4, group = -1, zero_point = true }, { dtype = "bf16", bias = false } },
      { "awq_marlin", { bits = 4, group = 32, zero_point = true }, { k = 96, n = 72 } },
      { "awq_marlin", { bits = 4, group = 32, zero_point = true }, {}, { choose = function() return { backend = "conch", rejected = {} } end } },
      { "pymllm", { bits = 4, group = 64, zero_point = true }, { roundings = 2 } },
      { "pymllm", { bits = 8, group = 128, zero_point = true }, { roundings = 2, dtype = "bf16" } },
      { "pymllm", { bits = 4, group = -1, zero_point = false }, { bias = false } },
      { "inc", { bits = 4, group = 32, sym = true, is_awq = true }, {} },
      { "inc", { bits = 4, group = -1, sym = true, is_awq = false }, { dtype = "bf16", k = 72, n = 200 } },
      { "inc", { bits = 4, group = 32, sym = true, is_awq = true }, { rows = 512, k = 96, n = 72 }, { backend = "w4a8" } },
      { "inc", { bits = 4, group = 64, sym = true }, { rows = 40, k = 128, n = 64, bias = false }, { backend = "w4a8" } },
      { "inc_ark", { bits = 4, group = 32, sym = true, is_awq = true }, {}, systems.ark(true) },
      { "inc_ark", { bits = 8, group = 64, sym = false, is_awq = true }, { dtype = "bf16", n = 72 }, systems.ark(true) },
      { "inc_ark", { bits = 4, group = 32, sym = false, is_awq = false }, {}, systems.ark(false) } ]]))
  end)

  it("keeps nothing in the computer's memory, is processed once, and applied only then", function()
    assert.equal(([[
false	layer l is not processed yet: call process after loading
true	bias weight_words weight_scales weight_zeros
false	layer l was processed: load it again
false	layer l takes activations of f16 on the device, found bf16
false	layer l takes activations of 256 features on this rank, found 8
false	layer l: the bias is in its plain order, the method takes Marlin's]]):gsub("%%", ""), (run([[
      local method = assert(methods.make("awq", { bits = 4, group = 64, zero_point = true }, { on = "cuda" }))
      local L = require("nibble.methods.layer").new { name = "l", dtype = "f16", k = 256, n = 128, bias = true }
      assert(method:create(L))
      local x = nb.tensor("f16", { 1, 256 })
      print(pcall(method.apply, method, L, x))
      print(method:process(L), table.concat(L:names(), " "))
      print(pcall(method.process, method, L))
      print(pcall(method.apply, method, L, x:cast("bf16"):to "cuda"))
      print(pcall(method.apply, method, L, nb.tensor("f16", { 1, 8 })))
      print(pcall(method.apply, method, L, x, nb.tensor("f16", { 128 }))) ]]):gsub(": permute it.*", "")))
  end)

  it("says what is on another device, why one is refused, and what was lost on the way", function()
    assert.equal([[
false	layer l lies on cuda:0, and its activations on cuda:1
nil	layer l: the nibble linear on CUDA backend awq does not support this deployment: it takes input of f16 or bf16, found f32 (layer l)	eunsupported
nil	layer l on cuda:0: the product of int8 inputs takes groups of 32, 64 or a multiple of 128 rows, or one, found 96	eunsupported
nil	layer l: cuda:0 is out of memory: 131072 bytes were asked for, some of its 61440 are free	enomem]], (run([[
      local layer = require "nibble.methods.layer"
      local method = assert(methods.make("awq", { bits = 4, group = 64, zero_point = true }, { on = "cuda" }))
      local L = layer.new { name = "l", dtype = "f16", k = 64, n = 64 }
      assert(method:create(L))
      assert(method:process(L))
      print(pcall(method.apply, method, L, nb.tensor("f16", { 1, 64 }):to "cuda:1"))
      print(method:create(layer.new { name = "l", dtype = "f32", k = 64, n = 64 }))
      print(assert(methods.make("inc", { bits = 4, group = 96, sym = true }, { on = "cuda", backend = "w4a8" })):create(layer.new {
        name = "l", dtype = "f16", k = 192, n = 64 }))
      L, nb = nil, nil collectgarbage() collectgarbage()
      L = layer.new { name = "l", dtype = "f16", k = 512, n = 512 }
      assert(method:create(L))
      print(method:process(L)) ]], { NB_EMU_DEVICES = 2, NB_EMU_MEMORY = 61440 }):gsub("for, %d+ of", "for, some of")))
  end)
end)

describe("ranks of a linear layer, one after the other on one device,", function()
  it("MRL-59, AWQ-22: sum to the whole layer along K, and stand side by side along N", function()
    assert.equal("11 of 11 right", judged("sharded", [[
      { "awq", { bits = 4, group = 32, zero_point = true }, { k = 256, n = 128, bits = 4, group = 32, zeros = true }, "awq", "row", 2 },
      { "awq", { bits = 4, group = 32, zero_point = true }, { k = 64, n = 96, bits = 4, group = 32, zeros = true }, "awq", "column", 2 },
      { "awq_marlin", { bits = 4, group = -1, zero_point = true },
        { k = 256, n = 128, bits = 4, group = -1, zeros = true, dtype = "bf16" }, "awq", "row", 2 },
      { "awq_marlin", { bits = 4, group = 64, zero_point = true }, { k = 128, n = 256, bits = 4, group = 64, zeros = true }, "awq", "column", 4 },
      { "pymllm", { bits = 8, group = 64, zero_point = true }, { k = 256, n = 128, bits = 8, group = 64, zeros = true }, "awq", "row", 2 },
      { "inc", { bits = 4, group = 32, sym = true }, { k = 192, n = 64, bits = 4, group = 32 }, "gptq_v2", "row", 3 },
      { "marlin_cuda", { format = "gptq_v2", bits = 4, group = 64, zero_point = true },
        { k = 256, n = 128, bits = 4, group = 64, zeros = true }, "gptq_v2", "row", 4 },
      { "marlin_cuda", { format = "compressed-tensors", bits = 8, group = 32 },
        { k = 64, n = 128, bits = 8, group = 32 }, "compressed-tensors", "column", 2 },
      { "marlin_cuda", { format = "gptq_v2", bits = 4, group = 64, zero_point = true, actorder = true },
        { k = 256, n = 128, bits = 4, group = 64, zeros = true, actorder = true }, "gptq_v2", "row", 4 },
      { "marlin_cuda", { format = "compressed-tensors", bits = 4, group = 128, actorder = true },
        { k = 256, n = 64, bits = 4, group = 128, actorder = true, dtype = "bf16" }, "compressed-tensors", "row", 2 },
      { "marlin_cuda", { format = "compressed-tensors", bits = 4, group = 64, actorder = true },
        { k = 128, n = 128, bits = 4, group = 64, actorder = true }, "compressed-tensors", "column", 2 } ]]))
  end)
end)

-- Schemes of experts, for the cases below.
local schemes = [[
    local function int(group, act) return { type = "int", bits = 4, symmetric = true, strategy = group == -1 and "channel" or "group", group = group,
      actorder = act } end
    local function w4a8(group)
      local s = int(group)
      s.activations = { type = "int", bits = 8, symmetric = true, strategy = "token", dynamic = true }
      return s
    end ]]

describe("experts on the device", function()
  it("AWQ-38, AWQ-39, ORC-14, CTM-WNA16-13, CTM-W4A8-12: give what each system's own apply gives; integers", function()
    assert.equal("14 of 14 right", judged("experts", [[
      { "awq_marlin_moe", { bits = 4, group = 64, zero_point = true }, { roundings = 2 } },
      { "awq_marlin_moe", { bits = 4, group = -1, zero_point = true }, { roundings = 2, dtype = "bf16", bias = true } },
      { "gptq_marlin_moe", { bits = 4, group = 32, sym = true, desc_act = true }, { roundings = 2, actorder = 32 } },
      { "gptq_marlin_moe", { bits = 8, group = -1, sym = true }, { roundings = 2, dtype = "bf16" } },
      { "moe_wna16", { method = "awq", bits = 4, group = 32, zero_point = true }, { roundings = 3, intermediate = 96, bias = true } },
      { "moe_wna16", { method = "gptq", bits = 8, group = 64, zero_point = false }, { roundings = 3, dtype = "bf16" } },
      { "moe_wna16", { method = "awq", bits = 4, group = -1, zero_point = true },
        { roundings = 3, intermediate = 72, gated = false, activation = "relu2_no_mul" } },
      { "moe_wna16", { method = "gptq", bits = 4, group = 128, zero_point = true }, { roundings = 3, intermediate = 96 } },
      { "ct_wna16_moe", int(32), { roundings = 2 } },
      { "ct_wna16_moe", int(64, "group"), { roundings = 2, actorder = 64, dtype = "bf16" } },
      { "ct_wna16_moe", int(32), { roundings = 2, hidden = 256, intermediate = 256, dtype = "bf16" }, { backend = "Flashinfer" } },
      { "w4a8_moe", w4a8(-1), { roundings = 2, dtype = "bf16", bias = true } },
      { "w4a8_moe", w4a8(32), { roundings = 1, dtype = "bf16", bias = true } },
      { "w4a8_moe", w4a8(16), { roundings = 32, intermediate = 96, activation = "swigluoai" } } ]], schemes))
  end)

  it("AWQ-38, MRL-45, MRL-47: Marlin's with 8-bit activations too, whose codes are multiplied", function()
    assert.equal("7 of 7 right", judged("experts", [[
      { "awq_marlin_moe", { bits = 4, group = 64, zero_point = true }, { roundings = 1 }, { activations = "int8" } },
      { "awq_marlin_moe", { bits = 4, group = 32, zero_point = true }, { roundings = 1, dtype = "bf16", bias = true }, { activations = "fp8" } },
      { "awq_marlin_moe", { bits = 4, group = -1, zero_point = true }, { roundings = 1, dtype = "bf16", bias = true }, { activations = "int8" } },
      { "gptq_marlin_moe", { bits = 4, group = 128, sym = true }, { roundings = 1, dtype = "bf16", intermediate = 256 }, { activations = "int8" } },
      { "gptq_marlin_moe", { bits = 4, group = -1, sym = true }, { roundings = 1 }, { activations = "fp8" } },
      { "ct_wna16_moe", int(32), { roundings = 1 }, { activations = "int8" } },
      { "ct_wna16_moe", int(64), { roundings = 1, dtype = "bf16" }, { activations = "fp8" } } ]], schemes))
    assert.matches("FlashInfer's experts take 16%-bit activations, found int8", run(schemes .. [[
      print(select(2, systems.made("ct_wna16_moe", int(32), { experts = 2, dtype = "bf16", hidden = 256, intermediate = 256 },
        { backend = "Flashinfer", activations = "int8" }, "cuda"))) ]]))
  end)

  it("AWQ-38, C-20: the router's weight on the input, once, and twice where the switch says so", function()
    local out = run [[
      local config, options = { bits = 4, group = 64, zero_point = true }, { experts = 3, top = 1, router_weight_on_input = true }
      local x, weights = systems.values("f16", { 5, 128 }), nb.tensor("f32", { 5, 1 }, { 0.5, 0.25, 0.75, 0.3, 0.9 })
      local ids = nb.tensor("i32", { 5, 1 }, { 0, 2, 1, 1, 0 })
      local once
      for _, twice in ipairs { false, true } do
        local made = { compat = { router_weight_twice = twice } }
        local a, A = systems.made("awq_marlin_moe", config, options, made)
        local b, B = systems.made("awq_marlin_moe", config, options, made, "cuda")
        local y, z = a:apply(A, x:clone(), weights, ids):cast "f32", b:apply(B, x:clone(), weights, ids):cast "f32"
        print(nb.compare(y, z).max_abs <= 2 ^ -9 * y:stats().absmax, once == nil or nb.compare(once, z).max_abs > 0.1 * once:stats().absmax)
        once = z
      end ]]
    assert.equal("true\ttrue\ntrue\ttrue", out)
  end)
end)

describe("experts on the device: bad input", function()
  it("experts without tokens, and ids outside, which contribute nothing", function()
    assert.equal("0\ttrue\t0", run [[
      local config, o = { bits = 4, group = 64, zero_point = true }, { experts = 3 }
      local a, A = systems.made("awq_marlin_moe", config, o)
      local b, B = systems.made("awq_marlin_moe", config, o, nil, "cuda")
      local x, weights, ids = systems.values("f16", { 3, 128 }), nb.tensor("f32", { 3, 2 }):fill(0.5), nb.tensor("i32", { 3, 2 }, { 1, 1, 1, -1, 99, 3 })
      local y, z = a:apply(A, x, weights, ids), b:apply(B, x, weights, ids)
      print(z:rows(3, 3):cast("f32"):stats().absmax, nb.compare(y:cast "f32", z:cast "f32").max_abs <= 2 ^ -10 * y:cast("f32"):stats().absmax,
        b:apply(B, nb.tensor("f16", { 0, 128 }), nb.tensor("f32", { 0, 2 }), nb.tensor("i32", { 0, 2 })):numel()) ]])
  end)

  it("another device, another size, no processing, one processing too many, the other way of calling: a sentence each", function()
    local out = run(schemes .. [[
      local o, made = { experts = 2 }, systems.made
      local b, B = made("ct_wna16_moe", int(32), o, nil, "cuda")
      local x, weights, ids = nb.tensor("f16", { 1, 128 }), nb.tensor("f32", { 1, 2 }), nb.tensor("i32", { 1, 2 })
      local function says(...) print((select(2, pcall(...)))) end
      says(b.apply, b, B, x:to "cuda:1", weights, ids)
      says(b.apply, b, B, x:cast("bf16"):to "cuda", weights, ids)
      says(b.apply, b, B, nb.tensor("f16", { 1, 64 }), weights, ids)
      says(b.apply, b, B, x, weights, nb.tensor("i32", { 2, 2 }))
      says(b.process, b, B)
      says(b.apply_monolithic, b, B, x, weights)
      says(b.load, b, B, 0, "w1", {})
      local L = require("spec.support.experts").layer { e = 2, dtype = "f16" }
      assert(b:create(L))
      says(b.apply, b, L, x, weights, ids) ]], { NB_EMU_DEVICES = 2 })
    local want = { "layer l lies on cuda:0, and its activations on cuda:1", "layer l takes activations of f16 on the device, found bf16", "128",
      "ids must be i32", "layer l was processed: load it again", "takes routed tokens; call apply", "layer l was processed: load it again",
      "layer mlp.experts is not processed yet: call process after loading" }
    standin.each_line(out, want, true)
  end)
end)

-- Schemes of float experts.
local float_schemes = [[
    local function fp8(strategy, bare, block)
      local a = { type = "float", bits = 8, symmetric = true, dynamic = true, strategy = "token" }
      if strategy == "tensor" then a.strategy, a.dynamic = "tensor", false end
      if strategy == "block" then a.strategy, a.group = "group", 128 end
      return { type = "float", bits = 8, symmetric = true, strategy = strategy, block = strategy == "block" and (block or { 128, 128 }) or nil,
        activations = not bare and a or nil }
    end
    local function nvfp4(bare)
      local function elements(dynamic)
        return { type = "float", bits = 4, symmetric = true, strategy = "tensor_group", group = 16, dynamic = dynamic }
      end
      local s = elements()
      if not bare then s.activations = elements "local" end
      return s
    end ]]

describe("float experts on the device", function()
  it("CTM-FP8-16: FP8 in every kernel's form", function()
    assert.equal("10 of 10 right", judged("experts", [[
      { "ct_fp8_moe", fp8("tensor", true), { roundings = 3 } },
      { "ct_fp8_moe", fp8("channel", true), { roundings = 3, dtype = "bf16", gated = false, activation = "relu2", intermediate = 96 } },
      { "ct_fp8_moe", fp8("block", true, { 64, 32 }), { roundings = 3, intermediate = 192 } },
      { "ct_fp8_moe", fp8("channel", true), { roundings = 2 }, { backend = "MARLIN" } },
      { "ct_fp8_moe", fp8("block", true), { roundings = 2, hidden = 256, dtype = "bf16" }, { backend = "MARLIN" } },
      { "ct_fp8_moe", fp8 "tensor", { roundings = 16 } },
      { "ct_fp8_moe", fp8 "channel", { roundings = 16 } },
      { "ct_fp8_moe", fp8 "block", { roundings = 8, dtype = "bf16" } },
      { "ct_fp8_moe", fp8 "tensor", { roundings = 16, intermediate = 104 }, { backend = "FLASHINFER_CUTLASS" } },
      { "ct_fp8_moe", fp8 "tensor", { roundings = 32, intermediate = 104 }, { backend = "FLASHINFER_TRTLLM" } } ]], float_schemes))
  end)

  it("CTM-NVFP4-18: NVFP4 in every kernel's form", function()
    assert.equal("8 of 8 right", judged("experts", [[
      { "ct_nvfp4_moe", nvfp4(true), { roundings = 3, bias = true } },
      { "ct_nvfp4_moe", nvfp4(true), { roundings = 3, dtype = "bf16", intermediate = 96 } },
      { "ct_nvfp4_moe", nvfp4(true), { roundings = 3, dtype = "bf16" }, { backend = "MARLIN" } },
      { "ct_nvfp4_moe", nvfp4(), { roundings = 40 }, { backend = "VLLM_CUTLASS" } },
      { "ct_nvfp4_moe", nvfp4(), { roundings = 40 }, { backend = "FLASHINFER_CUTLASS" } },
      { "ct_nvfp4_moe", nvfp4(), { roundings = 40 }, { backend = "FLASHINFER_TRTLLM" } },
      { "ct_nvfp4_moe", nvfp4(), { roundings = 40 }, { backend = "FLASHINFER_CUTEDSL_BATCHED" } },
      { "ct_nvfp4_moe", nvfp4(), { roundings = 40 }, { backend = "EMULATION" } } ]], float_schemes))
  end)

  it("e4m3fnuz, the form of other processors, is refused", function()
    assert.matches("layer l on cuda:0: NVIDIA's FP8 is e4m3fn: e4m3fnuz is AMD's", run(float_schemes .. [[
      print(select(2, systems.made("ct_fp8_moe", fp8 "channel", { experts = 2 }, { fnuz = true }, "cuda"))) ]]))
  end)
end)

describe("ranks of experts, one after the other on one device,", function()
  it("FWD-13, CTM-WNA16-06, AWQ-32: sum to the whole layer: the intermediate size cut, also amid groups in act-order; an expert map", function()
    assert.equal("6 of 6 right", judged("sharded_experts", [[
      { "gptq_marlin_moe", { bits = 4, group = 32, sym = true }, { group = 32, i = 128 }, 2, 1 },
      { "gptq_marlin_moe", { bits = 4, group = 64, sym = true, desc_act = true }, { group = 64, i = 128, actorder = true }, 2, 1 },
      { "gptq_marlin_moe", { bits = 4, group = 32, sym = true }, { group = 32, i = 64 }, 1, 4 },
      { "ct_wna16_moe", int(64, "group"), { group = 64, i = 128, actorder = true, ct = true }, 2, 2 },
      { "ct_wna16_moe", int(32), { group = 32, i = 128, ct = true }, 2, 2 },
      { "moe_wna16", { method = "gptq", bits = 4, group = 64, zero_point = false }, { group = 64, i = 128 }, 4, 1 } ]], schemes))
  end)
end)

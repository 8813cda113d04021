-- cuda_moe_float: experts of FP8, MX and NVFP4 weights of any format on a CUDA device (marlin_float_moe_cuda): what the processor
-- makes of the same numbers, expert by expert, in one launch a stage; ranks and expert maps sum to the whole.
local standin = require "spec.support.standin"

local prelude = [[
  local float, support = require "spec.support.float_layers", require "spec.support.experts"
  local values, number = float.values, float.number
  local fp8 = { type = "float", bits = 8, symmetric = true, strategy = "token", dynamic = true }
  local by_tensor = { type = "float", bits = 8, symmetric = true, strategy = "tensor", dynamic = true }
  local function check(name, o)
    o = float.experts(name, setmetatable(o, { __index = { e = 3, h = 128, i = 128, roundings = 4 } }))
    return float.experts_judged(o, support.routed, o.roundings)
  end
]]
local run = standin.with(prelude)

describe("experts of floats on the device", function()
  it("FWD-01, CTM-FP8-15, CTM-NVFP4-15: give what their numbers give, whatever the format: weights only", function()
    assert.equal(("right "):rep(11), (run [[
      local none = { activations = false }
      for _, case in ipairs { { "FP8A16", {} }, { "FP8A16", { dtype = "bf16", i = 72, bias = true } }, { "FP8", { changes = none } },
        { "FP8_BLOCK", { changes = none, h = 256, i = 256, dtype = "bf16" } }, { "MXFP8A16", {} }, { "MXFP4A16", { i = 96, bias = true } },
        { "MXFP4A16", { dtype = "bf16" } }, { "NVFP4A16", { i = 80 } }, { "NVFP4A16", { dtype = "bf16", apiece = true } },
        { "NVFP4A16", { apiece = true, apart = true, bias = true } }, { "FP8A16", { h = 192, i = 64 } } } do
        io.write(check(case[1], case[2]), " ")
      end ]]))
  end)

  it("of an MLP without a gate", function()
    assert.equal("right", (run [[
      local o = float.experts("NVFP4A16", { e = 3, h = 128, i = 80, bias = true })
      local m, L = float.experts_layer(o, { gated = false, activation = "relu2_no_mul" })
      assert(m, L)
      local x, moe = values("f16", { 5, 128 }, 2), require "nibble.moe"
      local weights, ids = support.routed(5, 2, 3)
      local function product(e, shard, rows)
        return (float.expected(float.modules[e .. shard], rows, float.biases[e .. shard .. ".bias"]:cast "f32"))
      end
      local want = moe.forward(x:cast "f32", { ids = ids, weights = weights, experts = 3, activation = "relu2_no_mul", gated = false,
        w13 = function(e, rows) return product(e, "w1", rows) end, w2 = function(e, rows) return product(e, "w2", rows) end })
      local y = assert(m:apply(L, x, weights, ids)):cast "f32"
      local off = nb.compare(want, y).max_abs / want:stats().absmax / 2 ^ -11
      print(off < 4 and "right" or off) ]]))
  end)

  it("CTM-NVFP4-12, CTM-NVFP4-13: with inputs quantized, each expert's with its own numbers, gate's and up's too", function()
    assert.equal(("right "):rep(10), (run [[
      for _, case in ipairs { { "NVFP4", {} }, { "NVFP4", { apiece = true } }, { "NVFP4", { apiece = true, apart = true } },
        { "MXFP4", {} }, { "MXFP8", {} }, { "MXFP4", { changes = { activations = fp8 } } }, { "FP8", { apiece = true } },
        { "FP8", { apart = true, scale = 0.001 } }, -- which cuts most of x off
        { "FP8", { changes = { activations = by_tensor } } }, { "FP8_DYNAMIC", {} } } do
        -- codes of inputs that the rounding of the step before moved are another code
        case[2].roundings = 120
        io.write(check(case[1], case[2]), " ")
      end ]]))
  end)

  it("to the bit where the step between is too: inputs of w13 are the codes' numbers of each expert", function()
    -- w2 is left out: x through w13 and the activation alone
    assert.equal("right right right", (run [[
      local function first(name, o)
        o = float.experts(name, setmetatable(o, { __index = { e = 3, h = 128, i = 64, apiece = true } }))
        local m, L = float.experts_layer(o)
        assert(m, L)
        local x, moe = values("f16", { 5, 128 }, 2), require "nibble.cuda.experts"
        local _, ids = support.routed(5, 2, o.e)
        local there, parts = ids:to "cuda", m:parts(L)
        local blocks = moe.align(there, o.e)
        local q = parts.quantize(x:to "cuda", "w13", { ids = there, experts = o.e })
        blocks.top = 1
        local y = assert(moe.gemm(q, parts.w13, blocks)):to "cpu"
        for p = 1, 10 do
          local e = ids:get(p)
          local row = x:rows(math.floor((p - 1) / 2) + 1, math.floor((p - 1) / 2) + 1)
          local gate, most = float.expected(float.modules[e .. "w1"], row)
          local mine = y:rows(p, p):reshape(y:size(2)):rows(1, 64):cast "f32"
          local said = float.judged(mine, gate:reshape(64), most:reshape(64), "f16", 2)
          if said ~= "right" then return said end
        end
        return "right"
      end
      io.write(first("NVFP4", {}), " ", first("FP8", {}), " ", first("NVFP4", { e = 4 })) ]]))
  end)

  it("in one product a stage, of all experts, three where gate and up are apart, and nothing waits for the device: a graph holds it", function()
    assert.equal("2\ttrue\n3\ttrue", (run [[
      print(float.experts_products(float.experts("NVFP4", { e = 6, h = 128, i = 64, apiece = true }), support.routed))
      print(float.experts_products(float.experts("NVFP4", { e = 3, h = 128, i = 64, apiece = true, apart = true }), support.routed)) ]]))
  end)

  it("FWD-13: ranks and expert maps, one after the other, sum to the whole", function()
    assert.equal(("right "):rep(6), (run [[
      local function sharded(name, o)
        o = float.experts(name, setmetatable(o, { __index = { e = 4, h = 128, i = 256, tp = 1, ep = 1 } }))
        return float.experts_summed(o, o.tp, o.ep, support, 2 * o.tp * o.ep)
      end
      for _, case in ipairs { { "FP8A16", { tp = 2 } }, { "MXFP4A16", { tp = 4, bias = true } }, { "NVFP4", { tp = 2, apiece = true } },
        { "FP8_BLOCK", { tp = 2 } }, { "NVFP4", { ep = 2, apiece = true } }, { "FP8", { ep = 4, apiece = true, bias = true } } } do
        io.write(sharded(case[1], case[2]), " ")
      end ]]))
  end)

  it("says what is not so in a sentence each", function()
    local out = run [[
      local function says(o, more) print(select(2, float.experts_layer(o, more))) end
      local o = float.experts("MXFP4A16", { e = 2, h = 128, i = 96 })
      says(o, { tp = 2 })
      float.modules["1w3"] = float.weight("MXFP4A16", 96, 64)
      says(o)
      o = float.experts("FP8A16", { e = 2, h = 128, i = 64 })
      float.modules["1w2"].codes:as("u8", { 128, 64 }):set({ 5, 7 }, 0xff)
      says(o)
      o = float.experts("NVFP4", { e = 2, h = 128, i = 64, apiece = true })
      float.modules["1w2"].input_global = number(0 / 0)
      says(o)
      says(float.experts("NVFP4", { e = 2, h = 96, i = 64 }))
      o = float.experts("NVFP4", { e = 2, h = 128, i = 64 })
      local m, L = float.experts_layer(o)
      print(pcall(m.process, m, L))
      print(pcall(m.apply_monolithic, m, L, nb.tensor("f16", { 1, 128 }), nb.tensor("f32", { 1, 2 }))) ]]
    standin.each_line(out, { "a group or block over the edge of a rank: the intermediate size = 48 of this rank is not a multiple of 32",
      "layer l: 1w3 is [96x64], expected [96x128]", "layer l: 1w2: 1 of its codes or scales are NaN",
      "layer l: the input scale of expert 1 in w2 is ", "needs the hidden size of a multiple of 64, found 96", "layer l was processed: load it again",
      "takes routed tokens; call apply" }, true)
  end)
end)

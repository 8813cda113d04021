-- cuda_moe_a8: experts of integers with int8 and FP8 inputs on a CUDA device (marlin_a8_moe_cuda): codes are multiplied, bit for bit
-- what a dense layer multiplies, in one launch a stage; ranks and expert maps sum to the whole.
local standin = require "spec.support.standin"

local prelude = [[
  local float, support = require "spec.support.float_layers", require "spec.support.experts"
  local experts_there = require "nibble.cuda.experts"
  local values, number = float.values, float.number
  local function inputs(type, more)
    local a = { type = type, bits = 8, symmetric = true, strategy = "token", dynamic = true }
    for key, value in pairs(more or {}) do a[key] = value end
    return a
  end
  local static = { strategy = "tensor", dynamic = false }
  local w8 = { "W8A8", {} }
  local w8_static = { "W8A8", { changes = { activations = inputs("int", static) } } }
  local w8_tensor = { "W8A8_STATIC", {} }
  local w4 = { "W4A16", { changes = { group = 32, activations = inputs "int" } } }
  local w4_wide = { "W4A16", { changes = { group = 128, activations = inputs "int" }, h = 256, i = 128 } }
  local w4a4 = { "W4A16", { changes = { group = 64, activations = inputs("int", { bits = 4 }) } } }
  local w4_fp8 = { "W4A16", { changes = { group = 64, activations = inputs "float" }, dtype = "bf16" } }
  local w4_fp8_static = { "W4A16", { changes = { group = 32, activations = inputs("float", static) } } }
  local function made(case, more)
    local o = { e = 3, h = 128, i = 128, scale = 0.01 }
    for key, value in pairs(case[2]) do o[key] = value end
    for key, value in pairs(more or {}) do o[key] = value end
    return float.experts(case[1], o)
  end
  local function check(case, more, roundings) return float.experts_judged(made(case, more), support.routed, roundings) end
]]
local run = standin.with(prelude)

describe("experts of integers with 8-bit inputs on the device", function()
  it("MRL-42, MRL-45: each expert's first product has the bits of a dense layer's with its weight", function()
    assert.equal(("right "):rep(8), (run [[
      for _, case in ipairs { w8, w8_static, w8_tensor, w4, w4a4, w4_wide, w4_fp8, w4_fp8_static } do
        local o, dtype = made(case, { e = 4 }), case[2].dtype or "f16"
        for e = 0, 3 do float.modules[e .. "w2"].input_scale = number(0.03) end -- another than the first product's
        local m, L = float.experts_layer(o, { dtype = dtype })
        assert(m, L)
        local x, _, ids = values(dtype, { 5, o.h }, 2), support.routed(5, 2, o.e)
        local there, parts, said = ids:to "cuda", m:parts(L), "right"
        assert(parts.w13.activations == (o.scheme.activations.type == "int" and "int8" or "fp8"))
        local codes, scales = parts.quantize(x:to "cuda", "w13", { ids = there, experts = o.e })
        local y = assert(experts_there.gemm(codes, parts.w13, experts_there.align(there, o.e), { row_scale = scales })):to "cpu"
        for p = 1, 10 do
          local e, t = ids:get(p), math.floor((p - 1) / 2) + 1
          for at, shard in ipairs { "w1", "w3" } do
            local a, A = float.made("marlin_a8_cuda", float.modules[e .. shard], { dtype = dtype })
            assert(a, A)
            local want = assert(a:apply(A, x:rows(t, t))):reshape(o.i)
            if not y:rows(p, p):reshape(2 * o.i):rows((at - 1) * o.i + 1, at * o.i):equal(want) then said = ("pair %d, %s"):format(p, shard) end
          end
        end
        io.write(said, " ")
      end ]]))
  end)

  it("FWD-01: give what their numbers give, intermediate sizes that no tile divides and biases too", function()
    -- codes of inputs that the rounding of the step before moved are another code
    assert.equal(("right "):rep(10), (run [[
      for _, case in ipairs { { w8 }, { w8, { dtype = "bf16", i = 72, bias = true } }, { w8_static }, { w8_tensor, { bias = true } }, { w4 },
        { w4, { i = 96, bias = true } }, { w4_wide }, { w4_fp8 }, { w4_fp8_static, { i = 160 } }, { w8, { h = 192, i = 64 } } } do
        io.write(check(case[1], case[2], 120), " ")
      end ]]))
  end)

  it("of static scales of their own the codes' numbers are multiplied, in 16 bits; of gate and up by themselves where those differ", function()
    assert.equal("right right right nil nil int8", (run [[
      io.write(check(w8_static, { apiece = true }, 120), " ", check(w8_static, { apart = true, scale = 0.02 }, 120), " ",
        check(w4_fp8_static, { apiece = true, bias = true }, 120), " ")
      local function activations(more, w)
        local m, L = float.experts_layer(made(w8_static, more))
        assert(m, L)
        return tostring(m:parts(L)[w].activations)
      end
      io.write(activations({ apiece = true }, "w13"), " ", activations({ apiece = true, apart = true }, "w3"), " ",
        activations({ apart = true }, "w3")) ]]))
  end)

  it("scales that 16 bits have no room for, and experts a thousand times as large as others", function()
    assert.equal("right right", (run [[
      for _, dtype in ipairs { "f16", "bf16" } do
        local o = made(w8, { dtype = dtype })
        for e = 0, 2 do
          for _, shard in ipairs { "w1", "w3" } do
            local scales = float.modules[e .. shard].scales
            for i = 1, scales:numel() do scales:set(i, scales:get(i) * ({ 1e-7, 1e-4, 1e-10 })[e + 1]) end
          end
          local down = float.modules[e .. "w2"].scales
          for i = 1, down:numel() do down:set(i, down:get(i) * 2 ^ 10) end
        end
        local m, L = float.experts_layer(o, { dtype = dtype })
        assert(m, L)
        local x, _, ids = values(dtype, { 4, 128 }, 2), support.routed(4, 2, 3)
        local there, parts, said = ids:to "cuda", m:parts(L), "right"
        local codes, scales = parts.quantize(x:to "cuda", "w13", {})
        local y = assert(experts_there.gemm(codes, setmetatable({ dtype = dtype }, { __index = parts.w13 }), experts_there.align(there, 3),
          { row_scale = scales })):to "cpu"
        for p = 1, 8 do
          local e, t = ids:get(p), math.floor((p - 1) / 2) + 1
          local want, most = float.expected(float.modules[e .. "w1"], x:rows(t, t))
          if dtype == "bf16" or e == 1 then -- the others are below what f16 holds
            local mine = y:rows(p, p):reshape(256):rows(1, 128):cast "f32"
            said = said == "right" and float.judged(mine, want:reshape(128), most:reshape(128), dtype, 3) or said
          end
        end
        io.write(said, dtype == "f16" and " " or "")
      end ]]))
  end)

  it("in one product a stage, of all experts, and nothing waits for the device: a graph holds it", function()
    assert.equal("2\ttrue", (run [[ print(float.experts_products(made(w8, { e = 6, i = 64 }), support.routed)) ]]))
  end)

  it("FWD-13: ranks and expert maps, one after the other, sum to the whole", function()
    assert.equal(("right "):rep(4), (run [[
      local function sharded(case, more, tp, ep, roundings)
        return float.experts_summed(made(case, { e = 4, i = 256, bias = more.bias }), tp, ep, support, roundings)
      end
      -- by token, w2's inputs are quantized by what a rank sees of them
      io.write(sharded(w8_static, {}, 2, 1, 4), " ", sharded(w4_fp8_static, { bias = true }, 2, 1, 4), " ",
        sharded(w8, { bias = true }, 1, 4, 8), " ", sharded(w4, {}, 1, 2, 4), " ") ]]))
  end)

  it("explain: experts of W8A8 and of 4 bits with FP8 inputs go through it, of int4 with int8 through w4a8_moe where that stores them", function()
    local out = run [[
      local presets = require "nibble.scheme_presets"
      local function ask(name, format)
        local weight = presets.get(name)
        weight.format = format
        print((assert(nb.backends.select({ consumer = "nibble", weight = weight, dtype = "f16", device = "sm_90", kind = "moe", hidden = 256,
          intermediate = 256, experts = 4, top = 2 }, { change = false })).backend))
      end
      ask("W8A8", "compressed-tensors") ask("W4AFP8", "compressed-tensors") ask("W4A8", "compressed-tensors") ask("W8A8_STATIC", "gptq")
      ask("W4A16", "compressed-tensors") ]]
    standin.each_line(out, { "marlin_a8_moe_cuda", "marlin_a8_moe_cuda", "w4a8_moe", "marlin_a8_moe_cuda", "ct_wna16_moe" }, true)
  end)

  it("what is refused, and why", function()
    local out = run [[
      local function says(case, more, layer) print(select(2, float.experts_layer(made(case, more), layer))) end
      says(w8, { h = 96 })
      says({ "W4A16", { changes = { group = 48, activations = inputs "int" }, h = 192, i = 96 } })
      says({ "W4A16", { changes = { group = 64, activations = inputs "int" }, i = 128 } }, {}, { tp = 4 })
      says({ "W8A8", { changes = { activations = inputs("int", { symmetric = false }) } } })
      local o = made(w8)
      float.modules["1w3"] = float.weight("W8A8", 64, 128)
      print(select(2, float.experts_layer(o)))
      o = made(w8_static)
      for name, q in pairs(float.modules) do q.input_scale = number(0) end
      local m, L = float.experts_layer(o)
      print(select(2, pcall(m.apply, m, L, values("f16", { 1, 128 }), nb.tensor("f32", { 1, 2 }), nb.tensor("i32", { 1, 2 }, { 0, 1 })))) ]]
    standin.each_line(out, { "needs the hidden size of a multiple of 64, found 96",
      "takes groups of 32, 64 or a multiple of 128 rows, or one, found 48", "needs the intermediate size of a multiple of the group size 64, found 32",
      "takes no activations with zero-points", "layer l: 1w3 is [64x128], expected [128x128]", "layer l: " }, true)
  end)
end)

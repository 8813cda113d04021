-- marlin_a8_cuda: dense layers of integers and MXFP4 whose inputs are quantized, on a CUDA device: codes are multiplied, and the
-- product is what the CPU gives for the same scheme; what the oracle says of them is true.
local standin = require "spec.support.standin"

local run = standin.with [[
  local layer, method, act = require "nibble.methods.layer", require "nibble.methods.marlin_a8_cuda", nb.act
  local function values(dtype, shape, size)
    local t, at = nb.tensor("f32", shape), 1
    for i = 1, t:numel() do
      at = (at * 16807) % 2147483647
      t:set(i, (at / 2147483647 - 0.5) * size)
    end
    return dtype == "f32" and t or t:cast(dtype)
  end
  local function activations(type, static, bits)
    return { type = type, bits = bits or 8, symmetric = true, dynamic = not static, strategy = static and "tensor" or "token" }
  end
  local function int(bits, group, a, asym)
    return { type = "int", bits = bits, symmetric = not asym, group = group > 0 and group or nil, activations = a,
      strategy = group > 0 and "group" or group == -1 and "channel" or "tensor" }
  end
  local mx = function(a) return { type = "float", bits = 4, symmetric = true, strategy = "group", group = 32, scale_dtype = "e8m0", activations = a } end
  -- A layer of random weights under a scheme, processed; its weight.
  local function made(s, o)
    local scheme = assert(require("nibble.scheme").new(s))
    local q = assert(values("f32", { o.n, o.k }, o.size or 1):quantize { scheme = scheme, scale_dtype = s.type == "int" and (o.scales or "f16") or nil })
    if not s.activations.dynamic then q.input_scale = o.input_scale or nb.tensor("f32", { 1 }, { 0.013 }) end
    local L = layer.new { name = "l", kind = "linear", dtype = o.dtype, k = o.k, n = o.n, bias = o.bias }
    local m = assert(method.new({ scheme = scheme, format = "compressed-tensors" }, { on = "cuda" }))
    local ok, msg = (o.create or m.create)(m, L)
    if not ok then return nil, msg end
    if o.bias then L:load("bias", values(o.dtype, { o.n }, 2)) end
    ok, msg = m:keep(L, q)
    if not ok then return nil, msg end
    assert(m:process(L))
    return L, m, q
  end
  -- How far y is from the product of what quantization leaves of x and the weights, in roundings of y and, of scales, of each term.
  local function off(L, q, x, y, dtype, terms)
    local w, seen = q:dequantize "f32", assert(act.quantize_dequantize(x:type() == "f32" and x or x:cast "f32", q.scheme.activations,
      { scale = q.input_scale }))
    local exact, most = nb.tensor("f32", { x:size(1), q.n }), nb.tensor("f32", { x:size(1), q.n })
    local bias = L.bias and L:get "bias":cast "f32" or nil
    nb.compute.gemm(exact, seen, w, bias)
    nb.compute.gemm(most, seen:map(math.abs), w:map(math.abs))
    local unit, worst = dtype == "f16" and 2 ^ -11 or 2 ^ -8, 0
    for i = 1, y:numel() do
      local e = math.abs(y:get(i) - exact:get(i)) / (math.max(unit * math.abs(exact:get(i)), 2 ^ -25) + (2 ^ -20 + (terms and unit or 0)) * most:get(i))
      worst = math.max(worst, e == e and e or math.huge)
    end
    return worst
  end
]]

describe("marlin_a8_cuda", function()
  it("MRL-42, MRL-45, MRL-47: gives what the CPU gives, of f32 inputs, on the device and off it, whatever sizes tiles have", function()
    assert.equal("12 of 12", run [[
      local token, static, fp8 = activations "int", activations("int", true), activations "float"
      local right, cases = 0, {
        { int(8, -1, token), { k = 256, n = 128, dtype = "f16", bias = true } },
        { int(8, 0, static), { k = 104, n = 72, dtype = "bf16", bias = true, scales = "bf16" } },
        { int(8, -1, token), { k = 1032, n = 64, dtype = "bf16", scales = "bf16" } },
        { int(8, -1, token), { k = 128, n = 64, dtype = "f16", scales = "f32" }, true },
        { int(4, 32, token), { k = 96, n = 72, dtype = "f16", bias = true } },
        { int(4, 128, token), { k = 256, n = 64, dtype = "bf16", scales = "bf16", bias = true } },
        { int(4, 64, static), { k = 192, n = 128, dtype = "f16" } },
        { int(4, 64, token, true), { k = 128, n = 72, dtype = "f16", bias = true } },
        { int(4, -1, activations("int", false, 4)), { k = 64, n = 64, dtype = "f16", scales = "bf16", size = 1e-4 } },
        { int(4, 32, fp8), { k = 96, n = 72, dtype = "f16", bias = true } },
        { int(4, 128, activations("float", true)), { k = 256, n = 64, dtype = "bf16", scales = "bf16" } },
        { mx(fp8), { k = 160, n = 72, dtype = "bf16", bias = true } } }
      for i, case in ipairs(cases) do
        local L, m, q = made(case[1], case[2])
        if not L then error(i .. ": " .. m) end
        local x = values("f32", { 3, case[2].k }, 4)
        x:set(case[2].k + 5, -7) -- the largest of its row: a tie of int8's grid
        local y, there = assert(m:apply(L, x)), assert(m:apply(L, x:to "cuda"))
        local far = off(L, q, x, y, case[2].dtype, case[3])
        local half = x:cast(case[2].dtype)
        local narrow = assert(m:apply(L, half:to "cuda"))
        local near = off(L, q, half, narrow:to "cpu", case[2].dtype, case[3])
        for _, p in ipairs { "words", "scales", "zeros" } do assert(not L:get(p) or L:get(p):where() == "cuda:0", p) end
        if far <= 1 and near <= 1 and y:type() == "f32" and there:where() == "cuda:0" and there:to("cpu"):equal(y)
          and narrow:type() == case[2].dtype then right = right + 1
        else print(i, far, near, y:type(), there:where(), narrow:type()) end
      end
      print(right .. " of " .. #cases) ]])
  end)

  it("waits for nothing: a graph holds a call", function()
    assert.equal("true", run [[
      local L, m, q = made(int(4, 64, activations "int"), { k = 128, n = 64, dtype = "f16", bias = true })
      local x = values("f16", { 5, 128 }, 2)
      local there = x:to "cuda"
      assert(m:apply(L, there)) -- the bias is put into its order once
      local g, y = assert(nb.cuda.graph(function() return assert(m:apply(L, there)) end))
      assert(g())
      print(off(L, q, x, y:to "cpu", "f16") <= 1) ]])
  end)

  it("keeps a NaN in its row", function()
    assert.equal("64 0", run [[
      local L, m = made(int(8, -1, activations("int", true)), { k = 128, n = 64, dtype = "f16" })
      local x = values("f32", { 3, 128 }, 2)
      x:set(130, 0 / 0)
      local y = assert(m:apply(L, x))
      print(nb.compute.nonfinite(y:rows(2, 2)) .. " " .. nb.compute.nonfinite(y:rows(1, 1)) + nb.compute.nonfinite(y:rows(3, 3))) ]])
  end)

  it("takes no rows, and says what it does not take", function()
    local out = run [[
      local L, m = made(int(8, -1, activations "int"), { k = 128, n = 64, dtype = "f16" })
      print(m:apply(L, nb.tensor("f32", { 0, 128 })):numel())
      print(pcall(m.apply, m, L, nb.tensor("f32", { 2, 64 })))
      print(made(int(4, 48, activations "int"), { k = 96, n = 64, dtype = "f16" }))
      print(made(int(8, -1, activations "int"), { k = 128, n = 64, dtype = "f32" }))
      print(made(int(8, -1, activations "float"), { k = 128, n = 64, dtype = "f16" }))
      print(made(int(8, -1, activations "int"), { k = 124, n = 64, dtype = "f16" }))
      local s = int(8, -1, activations "int")
      s.activations.symmetric = false
      print(made(s, { k = 128, n = 64, dtype = "f16" }))
      L, m = made(int(8, -1, activations("int", true)), { k = 128, n = 64, dtype = "f16", input_scale = nb.tensor("f32", { 1 }) })
      print(m:apply(L, nb.tensor("f32", { 2, 128 })))
      print(pcall(nb.gemm.marlin, nb.tensor("i8", { 1, 128 }):to "cuda", L.matrix))
      print(require("nibble.methods").config("marlin_a8_cuda", { scheme = s }))
      s.activations = { type = "int", bits = 8, symmetric = true, strategy = "tensor", dynamic = true }
      print(require("nibble.methods").config("marlin_a8_cuda", { scheme = s })) ]]
    for _, text in ipairs { "0\n", "takes activations of 128 features on this rank, found 64",
      "takes groups of 32, 64 or a multiple of 128 rows, or one, found 48",
      "takes output of f16 or bf16, found f32", "found int8 x fp8 token", "needs K of a multiple of 8, found 124",
      "takes no activations with zero-points", "the static scale is 0, expected a finite number above 0",
      "codes of int8 activations need their row scales", "its inputs have zero-points", "its inputs have one scale for a whole sequence" } do
      assert.truthy(out:find(text, 1, true), text .. " in " .. out)
    end
  end)

  it("takes what the oracle says, and nothing else", function()
    assert.equal("true", run [[
      local linear = require "nibble.methods.linear"
      local layers, taken, wrong = 0, 0, {}
      local function ask(s, o)
        o.dtype = o.dtype or "f16"
        layers = layers + 1
        local said, why = nb.backends.select({ consumer = "nibble", backend = "marlin_a8_cuda", kind = "linear", device = "cuda", k = o.k, n = o.n,
          dtype = o.dtype, weight = s }, { change = false })
        o.create = function(_, L) linear.register_bias(L) return true end -- the oracle isn't asked
        local ok, y, msg = pcall(function()
          local L, m = made(s, o)
          if not L then return nil, m end
          return m:apply(L, values("f32", { 1, o.k }, 1))
        end)
        local does = ok and y ~= nil
        taken = taken + (does and 1 or 0)
        if (said ~= nil) ~= does then
          wrong[#wrong + 1] = ("%s, k %d, n %d, %s: the oracle says %s, the device %s"):format(require("nibble.scheme").describe(
            assert(require("nibble.scheme").new(s))), o.k, o.n, o.dtype, said and "yes" or why, does and "yes" or tostring(ok and msg or y))
        end
      end
      for _, a in ipairs { activations "int", activations("int", true), activations "float", activations("float", true) } do
        for _, bits in ipairs { 4, 8 } do
          for _, group in ipairs { -1, 16, 32, 64, 96, 128, 384 } do
            if bits == 4 or group == -1 then ask(int(bits, group, a), { k = group > 0 and group * 2 or 128, n = 64 }) end
          end
          ask(int(bits, -1, a), { k = 128, n = 64, dtype = "bf16" })
        end
        ask(mx(a), { k = 96, n = 72 })
      end
      ask(int(4, 32, activations "int", true), { k = 96, n = 72 })
      ask(int(4, 32, activations "float", true), { k = 96, n = 64 })
      for _, size in ipairs { { 8, 8 }, { 24, 64 }, { 96, 72 }, { 40, 200 } } do ask(int(8, -1, activations "int"), { k = size[1], n = size[2] }) end
      print(#wrong == 0 and taken > 15 and layers - taken > 10 and "true" or table.concat(wrong, "\n") ..
        ("\n%d of %d layers, %d are taken"):format(#wrong, layers, taken)) ]])
  end)
end)

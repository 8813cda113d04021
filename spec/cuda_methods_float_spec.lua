-- marlin_float_cuda: dense layers of FP8, MXFP8, MXFP4 and NVFP4 weights on a CUDA device: their product is that of the
-- checkpoint's own numbers, of sizes that Marlin's tiles don't divide too; and what the oracle says of them is true.
local command = require "spec.support.command"
local standin = require "spec.support.standin"

local run = standin.with [[
  local layer, method = require "nibble.methods.layer", require "nibble.methods.marlin_float_cuda"
  local function values(dtype, shape, size)
    local t, at = nb.tensor("f32", shape), 1
    for i = 1, t:numel() do
      at = (at * 16807) % 2147483647
      t:set(i, (at / 2147483647 - 0.5) * size)
    end
    return t:cast(dtype)
  end
  local schemes = { "FP8A16", "FP8", "FP8_BLOCK", "MXFP8A16", "MXFP4A16", "NVFP4A16" }
  -- A layer of random weights under a scheme, its inputs left as they are.
  local function made(name, o)
    local q = assert(values("f32", { o.n, o.k }, 1):quantize { scheme = name, scale_dtype = name:match "^FP8" and o.dtype or nil })
    local s = {}
    for field, value in pairs(q.scheme) do s[field] = field ~= "activations" and value or nil end
    local L = layer.new { name = "l", kind = "linear", dtype = o.dtype, k = o.k, n = o.n, bias = o.bias }
    local m = assert(method.new({ scheme = s, format = "compressed-tensors" }, { on = "cuda" }))
    local ok, msg = m:create(L)
    if not ok then return nil, msg end
    if o.bias then L:load("bias", values(o.dtype, { o.n }, 2)) end
    L.weight = q
    return L, m, q
  end
]]

describe("marlin_float_cuda", function()
  it("MRL-48, CTM-NVFP4-15, CTM-FP8-17: multiplies as the checkpoint's numbers do, whatever sizes tiles have", function()
    assert.equal(("right "):rep(12), (run [[
      for _, name in ipairs(schemes) do
        for _, o in ipairs { { k = 256, n = 128, dtype = "bf16", bias = true }, { k = 160, n = 72, dtype = "f16", bias = true } } do
          local L, m, q = assert(made(name, o))
          local w, x = q:dequantize "f32", values("f32", { 3, o.k }, 4)
          local bias = o.bias and L:get "bias":cast "f32"
          assert(m:process(L))
          local y = assert(m:apply(L, x))
          local rounded = x:cast(o.dtype):cast "f32"
          local exact, most = nb.tensor("f32", { 3, o.n }), nb.tensor("f32", { 3, o.n })
          nb.compute.gemm(exact, rounded, w, bias)
          nb.compute.gemm(most, rounded:map(math.abs), w:map(math.abs), bias:map(math.abs))
          -- FP8 scales are rounded to the layer's dtype (MRL-48), and so is y
          local unit, worst = (name:match "^FP8" and 2 or 1) * (o.dtype == "f16" and 2 ^ -11 or 2 ^ -8), 0
          for i = 1, y:numel() do worst = math.max(worst, math.abs(y:get(i) - exact:get(i)) / (most:get(i) * unit)) end
          io.write(worst <= 1 and y:size(2) == o.n and L:get("words"):where() == "cuda:0" and "right " or name .. " " .. worst .. " ")
        end
      end ]]))
  end)

  it("keeps x and y on the device where they lie there", function()
    assert.equal("cuda:0 bf16 true", run [[
      local L, m = made("NVFP4A16", { k = 128, n = 64, dtype = "bf16" })
      assert(m:process(L))
      local x = values("bf16", { 5, 128 }, 2)
      local y, here = assert(m:apply(L, x:to "cuda")), assert(m:apply(L, x))
      print(y:where(), y:type(), y:to("cpu"):equal(here)) ]]:gsub("\t", " "))
  end)

  it("refuses what is not so: NaN codes, a layer processed before, sizes, dtypes, ranks", function()
    local out = run [[
      local L, m, q = made("FP8A16", { k = 128, n = 64, dtype = "f16" })
      q.codes:as("u8", { 64, 128 }):set({ 5, 7 }, 0xff)
      print(m:process(L))
      L, m = made("MXFP4A16", { k = 128, n = 64, dtype = "f16" })
      assert(m:process(L))
      print(pcall(m.process, m, L))
      print(made("FP8A16", { k = 128, n = 63, dtype = "f16" }))
      print(made("FP8A16", { k = 124, n = 64, dtype = "f16" }))
      print(made("FP8A16", { k = 128, n = 64, dtype = "f32" })) ]]
    for _, text in ipairs { "layer l: 1 of its codes or scales are NaN", "layer l was processed: load it again", "N of a multiple of 2, found 63",
      "K of a multiple of 8, found 124", "output of f16 or bf16, found f32" } do
      assert.truthy(out:find(text, 1, true), text .. " in " .. out)
    end
  end)

  it("is what the oracle names for float weights with 16-bit activations, and says of no others", function()
    assert.equal("marlin_float_cuda marlin_float_cuda marlin_float_cuda marlin_float_cuda true true", (run [[
      local function ask(name, o)
        local s = require("nibble.scheme_presets").get(name)
        local weight = { type = s.type, bits = s.bits, group = s.group, strategy = s.strategy, block = s.block, symmetric = true }
        local found, msg = nb.backends.select(setmetatable(o or {}, { __index = { consumer = "nibble", kind = "linear", device = "cuda",
          weight = weight, k = 256, n = 128, dtype = "bf16" } }), { change = false })
        return found and found.backend or msg
      end
      print(ask "FP8A16", ask "FP8_BLOCK", ask "MXFP4A16", ask "NVFP4A16", ask("NVFP4A16", { dtype = "f32" }) ~= "marlin_float_cuda",
        ask("W4A16") == "marlin_cuda") ]]:gsub("\t", " ")))
  end)

  it("runs a checkpoint's layers", function()
    local dir = os.tmpname()
    os.remove(dir)
    assert.equal(0, command.run({ "run", "any-nvfp4a16", "spec/models/tiny-llama", "--out", dir }).status)
    local out = run(([[
      local ck, name = assert(nb.open %q), "model.layers.0.self_attn.q_proj"
      local r = assert(require("nibble.methods.runner").new(ck, { through = "marlin_float_cuda", device = "cuda" }))
      if not r:takes(name) then print(unpack(r:reasons()[name])) end
      local rec = assert(nb.formats.record(ck, name))
      local x = values("f32", { 2, rec.k }, 2)
      local y, exact = assert(r:linear(name, x)), nb.tensor("f32", { 2, rec.n })
      nb.compute.gemm(exact, x, nb.formats.weight(ck, name, "f32"))
      print(nb.compare(exact, y).max_abs < 0.02 * nb.compare(exact, nb.tensor("f32", { 2, rec.n })).max_abs) ]]):format(dir))
    os.execute(("rm -rf %q"):format(dir))
    assert.equal("true", out)
  end)
end)

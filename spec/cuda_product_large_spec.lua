-- cuda_product_large: products of more than 256 rows with Marlin's weights on a device: panels of floats and cuBLASLt, or
-- without it the kernels; both give the one right answer where the numbers have one.
local standin = require "spec.support.standin"

-- case(o): marlin_product's case, its weight on the device; product(c): y from there. right(o): whether y is exact.
local prelude = [[
  local nb = require "nibble"
  local product = require "spec.support.marlin_product"
  local function case(o)
    local c = product.case(o)
    for _, name in ipairs { "words", "scales", "zeros", "bias", "perm", "sorted_g_idx" } do
      if c.p[name] then c.p[name] = assert(c.p[name]:to "cuda") end
    end
    return c
  end
  local function multiply(c) return nb.gemm.marlin(c.x:to "cuda", c.p) end
  local function right(o)
    local c = case(o)
    c.p.outputs = o.outputs
    local y, want = assert(multiply(c)):to "cpu", product.exact(c)
    if not o.outputs then return y:equal(want) end
    y, want = y:cast "f32", want:cast "f32"
    for i = 0, c.m - 1 do
      for j = 0, o.outputs - 1 do
        if y:ptr()[i * o.outputs + j] ~= want:ptr()[i * c.n + j] then return false end
      end
    end
    return true
  end
]]

local run = standin.with(prelude)

-- A product in cuBLASLt's hands fails so, and no other.
local NO_PRODUCT = { NB_EMU_FAIL = "cublasLtMatmul:1:13" }

describe("cuda: a product of many rows", function()
  it("is exact where the kernels are: bits, dtypes, groups, zero-points, bias, fewer outputs", function()
    assert.equal("true true true true true true", run [[
      for _, o in ipairs {
        { m = 257, k = 128, n = 64, group = 32 },
        { m = 257, k = 128, n = 128, group = 64, bits = 8, dtype = "bf16", bias = true },
        { m = 300, k = 128, n = 128, group = 128, zeros = true, bias = true },
        { m = 257, k = 128, n = 64, group = -1, bias = true },
        { m = 257, k = 128, n = 128, group = 32, dtype = "bf16", outputs = 72, bias = true },
        { m = 1000, k = 64, n = 64, group = 32, bits = 8 } } do
        io.write(tostring(right(o)), o.m == 1000 and "" or " ")
      end ]])
  end)

  it("is exact in an activation order, and says what is wrong with one", function()
    assert.equal("true true", run [[
      local function order(k, group)
        local g = nb.tensor("i32", { k })
        for i = 0, k - 1 do g:set(i + 1, math.floor(i * 37 % k / group)) end
        return g
      end
      io.write(tostring(right { m = 257, k = 128, n = 64, group = 32, g_idx = order(128, 32), bias = true }), " ")
      local c = case { m = 257, k = 128, n = 64, group = 32, g_idx = order(128, 32) }
      local x = c.x:to "cuda"
      local g, y = assert(nb.cuda.graph(function() return nb.gemm.marlin(x, c.p) end)) -- by the kernels
      g()
      io.write(tostring(y:to("cpu"):equal(product.exact(c)))) ]])
    assert.matches("^nil\tmarlin dequantize: perm: 5 stands there twice, the second time at position %d+\teformat$", run [[
      local g = nb.tensor("i32", { 64 })
      for i = 0, 63 do g:set(i + 1, math.floor(i * 37 % 64 / 32)) end
      local c = case { m = 257, k = 64, n = 64, group = 32, g_idx = g }
      c.p.perm = nb.tensor("i32", { 64 }):fill(5):to "cuda"
      print(multiply(c)) ]])
  end)

  it("is cuBLASLt's from 257 rows on, and the kernels' before", function()
    assert.equal("true", run("io.write(tostring(right { m = 256, k = 64, n = 64, group = 32 }))", NO_PRODUCT))
    assert.matches("cuBLASLt %(.*%) fails: beginning a product %[257x64%] %[64x64%]",
      run("print(select(2, multiply(case { m = 257, k = 64, n = 64, group = 32 })))", NO_PRODUCT))
  end)

  it("goes on with the kernels where there is no cuBLASLt, or it has no way", function()
    local code = "io.write(tostring(right { m = 257, k = 64, n = 64, group = 32, bias = true }))"
    assert.equal("true", run(code, { NB_CUBLASLT = "/none" }))
    assert.equal("true", run(code, { NB_EMU_FAIL = "cublasLtMatmulAlgoGetHeuristic:1:15" }))
  end)

  it("takes the columns in panels where memory is short, and the kernels where it is shorter", function()
    -- 576 columns of 1024 weights: 1.2 MB of floats; everything else is 1.3 MB.
    local o = "{ m = 257, k = 1024, n = 576, group = 128, bias = true }"
    local once = run(("local c = case(%s) io.write(tostring(multiply(c):to('cpu'):equal(product.exact(c))))"):format(o),
      { NB_EMU_MEMORY = 2200000 })
    assert.equal("true", once)
    assert.matches("fails: beginning a product %[257x1024%] %[256x1024%]", -- the second of two: 320 and 256 columns
      run(("print(select(2, multiply(case(%s))))"):format(o), { NB_EMU_MEMORY = 2200000, NB_EMU_FAIL = "cublasLtMatmul:2:13" }))
  end)

  it("runs on the current stream and in graphs", function()
    assert.equal("true true", run [[
      local c = case { m = 257, k = 64, n = 64, group = 32, bias = true }
      local want, x = product.exact(c), c.x:to "cuda"
      local s = nb.cuda.stream()
      io.write(tostring(s:use(function() return nb.gemm.marlin(x, c.p):to "cpu" end):equal(want)), " ")
      local g, y = assert(nb.cuda.graph(function() return nb.gemm.marlin(x, c.p) end))
      g()
      io.write(tostring(y:to("cpu"):equal(want))) ]])
  end)
end)

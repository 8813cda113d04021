-- The product of activations and Marlin's weights on a device, run by the emulator: exact where every sum is exact,
-- within a stated bound elsewhere, the same bits in every order of threads, however its tiles are shared.
local emulator = require "spec.support.emulator"
local product = require "spec.support.marlin_product"
local standin = require "spec.support.standin"

local EVERY = { 0, 1, 2, 3, 12345 }

local run = product.runs

local function exact(o) product.run_exact(product.case(o)) end

describe("a product kernel", function()
  before_each(function() math.randomseed(11) end)
  after_each(function() emulator.order(0) end)

  for _, dtype in ipairs { "f16", "bf16" } do
    for _, bits in ipairs { 4, 8 } do
      for _, zeros in ipairs { false, true } do
        it(("takes %s, %d bits%s, all groups, bias"):format(dtype, bits, zeros and " with zero-points" or ""), function()
          local kind = { dtype = dtype, bits = bits, zeros = zeros, orders = { 1, 12345 } }
          local function with(o) return setmetatable(o, { __index = kind }) end
          exact(with { m = 5, k = 256, n = 128, group = -1, bias = true })
          exact(with { m = 16, k = 384, n = 128, group = 128 })
          exact(with { m = 20, k = 256, n = 128, group = 64, bias = true })
          exact(with { m = 33, k = 128, n = 192, group = 32 })
          exact(with { m = 50, k = 512, n = 64, group = 256 })
        end)
      end
    end
  end

  it("multiplies rows by their scales, before the bias", function()
    for _, m in ipairs { 3, 30, 70 } do
      exact { m = m, k = 192, n = 128, group = m > 3 and 64 or -1, bias = true, row_scale = true, grids = { 1, 3 } }
    end
    local c = product.case { m = 20, k = 256, n = 128, group = 64, exact = false, bias = true, row_scale = true }
    run(c, { 2 }, nil, function(y) product.check(c, y) end)
  end)

  it("takes every number of rows", function()
    for _, m in ipairs { 1, 2, 3, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128 } do
      exact { m = m, k = 192, n = 64, group = 64, grids = { 2 } }
    end
  end)

  it("takes sizes that its tiles don't divide", function()
    for _, size in ipairs { { 16, 64 }, { 48, 64 }, { 144, 192 }, { 400, 320 } } do
      for _, m in ipairs { 3, 40 } do exact { m = m, k = size[1], n = size[2], group = -1, zeros = true } end
    end
    exact { m = 3, k = 160, n = 192, group = 32, zeros = true, bits = 8 }
    exact { m = 40, k = 96, n = 64, group = 32, zeros = true }
    exact { m = 7, k = 192, n = 64, group = 64, dtype = "bf16" }
  end)

  it("shares tiles between many blocks, and a block's work goes round the stages more than once", function()
    for _, m in ipairs { 7, 30, 60, 100 } do
      exact { m = m, k = 1280, n = 256, group = 128, bias = true, grids = { 1, 3, 7, 20 }, orders = EVERY }
    end
  end)

  it("is within half a unit and the roundings of its sums of the product in float64", function()
    for _, dtype in ipairs { "f16", "bf16" } do
      for _, bits in ipairs { 4, 8 } do
        for _, m in ipairs { 2, 20, 64 } do
          local c = product.case { dtype = dtype, bits = bits, m = m, k = 512, n = 128, group = 128, zeros = bits == 4,
                                   bias = true, exact = false }
          run(c, { 1, 5 }, nil, function(y) product.check(c, y) end)
        end
      end
    end
  end)

  it("keeps NaN and infinity in their rows", function()
    for _, dtype in ipairs { "f16", "bf16" } do
      for _, m in ipairs { 6, 40 } do
        local c = product.case { dtype = dtype, m = m, k = 256, n = 128, group = 128 }
        local clean = run(c, { 2 })
        c.x:set(2 * 256 + 7, 0 / 0) -- row 2 (0-based)
        c.x:set(4 * 256 + 200, 1 / 0)
        local y = run(c, { 2 })
        for row = 0, m - 1 do
          for column = 1, 128 do
            local v = y:get(row * 128 + column)
            if row == 2 then assert.is_true(v ~= v)
            elseif row == 4 then assert.is_true(v ~= v or v == 1 / 0 or v == -1 / 0)
            else assert.equal(clean:get(row * 128 + column), v) end
          end
        end
      end
    end
  end)

  it("reads each byte of the weight once", function()
    local c = product.case { m = 16, k = 512, n = 256, group = 128 }
    for _, grid in ipairs { 1, 8 } do
      local _, counts = product.run(c, grid)
      local weight = c.p.words:bytes() + c.p.scales:bytes()
      local parts = grid == 8 and 8 * 16 * 128 * 4 or 0 -- each block's, and a count for each tile
      assert.equal(weight + 2 * c.x:bytes() + parts + (grid == 8 and 8 * 4 or 0), counts.global_read)
    end
  end)

  it("leaves out columns", function()
    for _, outputs in ipairs { 2, 62, 130 } do
      local c = product.case { m = 9, k = 128, n = 192, group = -1, bias = true, outputs = outputs }
      local want = product.exact(c)
      run(c, { 1, 2 }, nil, function(y)
        for row = 0, c.m - 1 do
          for column = 1, outputs do assert.equal(want:get(row * 192 + column), y:get(row * outputs + column)) end
        end
      end)
    end
  end)
end)

-- What Lua code prints in a process whose device is the emulator's; its errors after it. there(p) is a weight on the device.
local process = standin.with [[
  package.path = "./?.lua;" .. package.path
  local gemm = require "nibble.gemm"
  local product = require "spec.support.marlin_product"
  math.randomseed(11)
  local function there(p, changes)
    local out = setmetatable(changes or {}, { __index = p })
    for _, name in ipairs { "words", "scales", "zeros", "perm", "sorted_g_idx", "bias" } do
      if p[name] and out[name] == p[name] then out[name] = assert(p[name]:to "cuda") end
    end
    return out
  end
  local function same(c, p)
    local y = assert(gemm.marlin(c.x:to "cuda", p or there(c.p), c.row_scale and c.row_scale:to "cuda"))
    return y:to("cpu"):equal(product.exact(c))
  end
]]

describe("gemm.marlin of tensors on a device", function()
  it("makes y there, of any number of rows, as the CPU does", function()
    assert.equal("true true true true 0.0 f16 cuda:0", process [[
      for _, m in ipairs { 1, 129, 300 } do
        io.write(tostring(same(product.case { m = m, k = 256, n = 192, group = 64, zeros = true, bias = true })), " ")
      end
      local c = product.case { m = 0, k = 128, n = 64, group = -1 }
      local y = assert(gemm.marlin(c.x:to "cuda", there(c.p)))
      io.write(tostring(y:size(1) == 0 and y:size(2) == 64), " ")
      c = product.case { m = 7, k = 512, n = 128, group = 128, exact = false }
      y = assert(gemm.marlin(c.x:to "cuda", there(c.p)))
      local r = nb.compare(gemm.marlin(c.x, c.p), y:to("cpu"):cast "f32")
      print(("%.1f"):format(r.max_abs), y:type(), y:where())]]:gsub("%s+$", ""):gsub("\t", " "))
  end)

  it("takes activation orders: whole groups, and a rank's part; and groups that tensor cores don't take", function()
    assert.equal(("true "):rep(20), process [[
      local function groups_of(k, groups, whole)
        local t = nb.tensor("i32", { k })
        for i = 1, k do t:set(i, whole and math.floor((i - 1) / (k / groups)) or math.random(0, groups - 1)) end
        for i = k, 2, -1 do
          local j = math.random(i)
          local a, b = t:get(i), t:get(j)
          t:set(i, b) t:set(j, a)
        end
        return t
      end
      for _, kind in ipairs { { "f16", 4 }, { "f16", 8, true }, { "bf16", 4, true }, { "bf16", 8 } } do
        for _, m in ipairs { 3, 40 } do
          local o = { dtype = kind[1], bits = kind[2], zeros = kind[3], m = m, k = 256, n = 128, group = 64, bias = true }
          local function case(changes) return product.case(setmetatable(changes, { __index = o })) end
          io.write(tostring(same(case { g_idx = groups_of(256, 4, true) })), " ")
          io.write(tostring(same(case { g_idx = groups_of(256, 4) })), " ")
        end
        io.write(tostring(same(product.case { dtype = kind[1], bits = kind[2], zeros = kind[3], m = 5, k = 144, n = 64, group = 48 })), " ")
      end]] .. "")
  end)

  it("multiplies rows by their scales, of any number of rows and in any order, as the CPU does", function()
    assert.equal("true true true true true", process [[
      for _, m in ipairs { 3, 130, 300 } do
        io.write(tostring(same(product.case { m = m, k = 128, n = 64, group = 64, bias = true, row_scale = true })), " ")
      end
      io.write(tostring(same(product.case { m = 5, k = 144, n = 64, group = 48, bias = true, row_scale = true })), " ")
      local c = product.case { m = 4, k = 128, n = 64, group = -1, bias = true, row_scale = true }
      io.write(tostring(gemm.marlin(c.x, c.p, c.row_scale):cast("f16"):equal(product.exact(c))))]])
  end)

  it("takes x without the weight's last columns, and gives as many columns as are asked for", function()
    assert.equal("true true", process [[
      local c = product.case { m = 5, k = 128, n = 128, group = 64 }
      local cut = nb.tensor("f16", { 5, 100 })
      require("nibble.ffi").C.nb_tensor_copy_block(cut, c.x, 1, 0, 0, 100)
      for row = 0, 4 do for i = 101, 128 do c.x:set(row * 128 + i, 0) end end
      local y = assert(gemm.marlin(cut:to "cuda", there(c.p))):to "cpu"
      local z = assert(gemm.marlin(c.x:to "cuda", there(c.p, { outputs = 70 }))):to "cpu"
      local first = nb.tensor("f16", { 5, 70 })
      require("nibble.ffi").C.nb_tensor_copy_block(first, y, 1, 0, 0, 70)
      io.write(tostring(y:equal(product.exact(c))), " ", tostring(z:equal(first)))]])
  end)

  it("makes NaN of rows and groups that aren't there", function()
    assert.equal("true true true", process [[
      local g_idx = nb.tensor("i32", { 128 })
      for i = 1, 128 do g_idx:set(i, i % 2) end
      local c = product.case { m = 2, k = 128, n = 64, group = 64, g_idx = g_idx }
      local function odd(name, at, value)
        local t = nb.tensor("i32", { 128 })
        for i = 1, 128 do t:set(i, c.p[name]:get(i)) end
        t:set(at, value)
        local y = assert(gemm.marlin(c.x:to "cuda", there(c.p, { [name] = t:to "cuda" }))):to "cpu"
        for i = 1, 128 do if y:get(i) == y:get(i) then return false end end
        return true
      end
      io.write(tostring(odd("perm", 100, 128)), " ", tostring(odd("perm", 5, -1)), " ", tostring(odd("sorted_g_idx", 3, 2)))]])
  end)

  it("works in streams and graphs, each with a workspace of its own", function()
    assert.equal("true true true", process [[
      local cuda = nb.cuda
      local c = product.case { m = 9, k = 640, n = 256, group = 128 }
      local x, p, want = c.x:to "cuda", there(c.p), product.exact(c)
      local s = assert(cuda.stream())
      local y = s:use(function() return assert(gemm.marlin(x, p)) end)
      local z = assert(gemm.marlin(x, p))
      cuda.wait()
      io.write(tostring(y:to("cpu"):equal(want)), " ", tostring(z:to("cpu"):equal(want)), " ")
      local g, made = assert(cuda.graph(function() return assert(gemm.marlin(x, p)) end))
      assert(g())
      assert(g())
      cuda.wait()
      io.write(tostring(made:to("cpu"):equal(want)))]])
  end)

  it("refuses what it doesn't take in one sentence each", function()
    local said = process [[
      local c = product.case { m = 2, k = 128, n = 64, group = -1, bias = true }
      local x, p = c.x:to "cuda", there(c.p)
      local function says(x, changes, row_scale)
        local ok, y, msg = pcall(gemm.marlin, x, setmetatable(changes or {}, { __index = p }), row_scale)
        print(ok and msg or y)
      end
      says(c.x:cast("f32"):to "cuda")
      says(c.x:cast("bf16"):to "cuda")
      says(nb.tensor("f16", { 2, 136 }):to "cuda")
      says(x, { words = c.p.words })
      says(x, { scales = c.p.scales })
      says(x, { outputs = 63 })
      says(x, { outputs = 66 })
      says(x, { k = 120 })
      says(x, { perm = nb.tensor("i32", { 128 }):to "cuda" })
      says(x, { bias = nb.tensor("f16", { 32 }):to "cuda" })
      says(x, {}, nb.tensor("f32", { 3, 1 }):to "cuda")
      says(x, {}, nb.tensor("f32", { 2, 1 }))
      says(x)]]
    local expected = {
      "on a device x is f16 or bf16, found f32", "scales: expected bf16", "x has 136 columns for K = 128",
      "words: .*lies in the computer's memory, expected on a device", "scales: .*lies in the computer's memory",
      "y has 63 columns for N = 64, expected an even number up to it", "y has 66 columns for N = 64",
      "K = 120 is not a multiple of 16", "perm and g_idx belong together, found only perm",
      "bias: expected",
      "row scales: expected", "row scales: .*lies in the computer's memory", "on cuda:0",
    }
    standin.each_line(said, expected)
  end)
end)

-- The product of activations and Marlin's weights on a device, run by the emulator: exact where every sum is exact,
-- within a stated bound elsewhere, the same bits in every order of threads, however its tiles are shared.
local nb = require "nibble"
local emulator = require "spec.support.emulator"
local product = require "spec.support.marlin_product"

-- Runs c in every order and on these grids, free of bank conflicts; y of the last run.
local function run(c, grids)
  local found
  for _, grid in ipairs(grids) do
    local first
    emulator.orders(function(order)
      local y, counts = product.run(c, grid)
      if not y then error(("grid %d, order %d: %s"):format(grid, order, counts), 0) end
      assert.equal(0, counts.bank_conflicts, "bank conflicts")
      first = first or y
      if not first:equal(y) then error(("grid %d: order %d gives other bits"):format(grid, order), 0) end
    end)
    found = first
  end
  return found
end

-- Grids that share c's tiles in different ways: one block, as many as there are stages, and some between.
local function grids(c)
  local all, depth = product.tiles(c)
  local out, seen = {}, {}
  for _, grid in ipairs { 1, 3, math.ceil(all / depth), all } do
    if grid <= all and not seen[grid] then out[#out + 1], seen[grid] = grid, true end
  end
  return out
end

local function exact(o)
  local c = product.case(o)
  local y, want = run(c, o.grids or grids(c)), product.exact(c)
  if not y:equal(want) then
    local r = nb.compare(want, y)
    error(("differs by up to %g, %d odd values, first in %s"):format(r.max_abs, r.odd, tostring(y)), 2)
  end
  return c
end

describe("a product kernel", function()
  before_each(function() math.randomseed(11) end)

  for _, dtype in ipairs { "f16", "bf16" } do
    for _, bits in ipairs { 4, 8 } do
      for _, zeros in ipairs { false, true } do
        it(("takes %s, %d bits%s, all groups, bias"):format(dtype, bits, zeros and " with zero-points" or ""), function()
          local kind = { dtype = dtype, bits = bits, zeros = zeros, __index = false }
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
      exact { m = m, k = 1280, n = 256, group = 128, bias = true, grids = { 1, 2, 3, 7, 10, 20 } }
    end
  end)

  it("is within half a unit and the roundings of its sums of the product in float64", function()
    for _, dtype in ipairs { "f16", "bf16" } do
      for _, bits in ipairs { 4, 8 } do
        for _, m in ipairs { 2, 20, 64 } do
          local c = product.case { dtype = dtype, bits = bits, m = m, k = 512, n = 128, group = 128, zeros = bits == 4,
                                   bias = true, exact = false }
          product.check(c, run(c, { 1, 5 }))
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
      local want, y = product.exact(c), run(c, { 1, 2 })
      for row = 0, c.m - 1 do
        for column = 1, outputs do assert.equal(want:get(row * 192 + column), y:get(row * outputs + column)) end
      end
    end
  end)
end)

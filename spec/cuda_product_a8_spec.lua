-- The product of 8-bit activations and Marlin's weights on a device, run by the emulator: exact where every sum is exact,
-- within a stated bound of the CPU elsewhere, the same bits in every order of threads, however its tiles are shared.
local nb = require "nibble"
local emulator = require "spec.support.emulator"
local product = require "spec.support.product_a8"

local EVERY = { 0, 1, 2, 3, 12345 }

-- Runs c on these grids in these orders of threads, free of bank conflicts: the same bits in every order, of which
-- check(y) sees those of each grid. Returns the last.
local function run(c, grids, orders, check)
  local found
  for _, grid in ipairs(grids) do
    local first
    for _, order in ipairs(orders or { 0, 12345 }) do
      emulator.order(order)
      local y, counts = product.run(c, grid)
      if not y then error(("grid %d, order %d: %s"):format(grid, order, counts), 0) end
      assert.equal(0, counts.bank_conflicts, "bank conflicts")
      first = first or y
      if not first:equal(y) then error(("grid %d: order %d gives other bits"):format(grid, order), 0) end
    end
    if check then check(first, grid) end
    found = first
  end
  return found
end

local function exact(o)
  local c = product.case(o)
  local want = product.reference(c):cast(c.dtype)
  local all = product.tiles(c)
  run(c, o.grids or (all > 3 and { 1, 3 } or { 1, all }), o.orders, function(y, grid)
    if y:equal(want) then return end
    local r = nb.compare(want, y)
    error(("grid %d: differs by up to %g, %d odd values"):format(grid, r.max_abs, r.odd), 0)
  end)
end

describe("a product kernel of 8-bit activations", function()
  before_each(function() math.randomseed(12) end)
  after_each(function() emulator.order(0) end)

  for _, kind in ipairs { "int4", "int8", "folded4", "e4m3", "e2m1" } do
    for _, zeros in ipairs((kind == "int4" or kind == "folded4") and { false, true } or { false }) do
      it(("takes %s%s, all groups, bias"):format(kind, zeros and " with zero-points" or ""), function()
        local function with(o) return setmetatable(o, { __index = { kind = kind, zeros = zeros } }) end
        exact(with { m = 5, k = 256, n = 128, group = -1, bias = true })
        exact(with { m = 16, k = 384, n = 128, group = 128, dtype = "bf16" })
        exact(with { m = 20, k = 256, n = 64, group = 64, bias = true })
        exact(with { m = 33, k = 128, n = 192, group = 32, dtype = "bf16", bias = true })
        exact(with { m = 50, k = 256, n = 64, group = 128 })
      end)
    end

    it("is within half a unit and its sums' roundings of the CPU: " .. kind, function()
      for i, m in ipairs { 2, 20, 64 } do
        local zeros = (kind == "int4" or kind == "folded4") and i == 2
        local c = product.case { kind = kind, dtype = i == 2 and "bf16" or "f16", m = m, k = 512, n = 128, group = 128, zeros = zeros,
                                 bias = true, exact = false }
        run(c, { 1, 5 }, nil, function(y) product.check(c, y) end)
      end
    end)
  end

  it("takes int16 scales", function()
    for _, dtype in ipairs { "f16", "bf16" } do
      exact { kind = "int4", m = 7, k = 256, n = 128, group = 64, int16 = true, dtype = dtype }
      exact { kind = "int4", m = 40, k = 256, n = 64, group = 32, int16 = true, zeros = true, dtype = dtype }
      exact { kind = "int4", m = 3, k = 96, n = 64, group = -1, int16 = true, dtype = dtype }
    end
  end)

  it("takes every number of rows, with scales or without", function()
    for _, m in ipairs { 1, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127 } do
      exact { kind = m % 2 == 0 and "int4" or "folded4", m = m, k = 192, n = 64, group = 64, grids = { 2 }, row_scale = m % 3 ~= 0 }
    end
  end)

  it("takes sizes that its tiles don't divide", function()
    for _, size in ipairs { { 32, 64 }, { 96, 64 }, { 160, 192 }, { 416, 320 } } do
      for _, m in ipairs { 3, 40 } do exact { kind = "int4", m = m, k = size[1], n = size[2], group = -1, zeros = true } end
    end
    exact { kind = "int8", m = 3, k = 160, n = 192, group = 32 }
    exact { kind = "e2m1", m = 40, k = 96, n = 64 }
    exact { kind = "folded4", m = 7, k = 192, n = 64, group = 64, dtype = "bf16", zeros = true }
  end)

  it("shares tiles between many blocks, and a block's work goes round the stages more than once", function()
    for i, m in ipairs { 7, 30, 100 } do
      exact { kind = ({ "int4", "e4m3", "folded4" })[i], m = m, k = 1280, n = 256, group = 128, bias = true, grids = { 1, 7, 20 }, orders = EVERY }
    end
  end)

  it("takes the largest codes, whose sums are exact", function()
    for _, kind in ipairs { "int4", "int8" } do
      local c = product.case { kind = kind, m = 4, k = 2048, n = 64, group = 128, row_scale = false }
      c.x:as("u8", { c.m * c.k }):fill(0x81) -- -127
      c.p.words:fill(0) -- -8, -128
      local y, want = run(c, { 3 }), product.reference(c):cast "f16"
      assert.is_true(y:equal(want))
    end
  end)

  it("keeps a row's NaN in it, and a weight's in its column", function()
    local c = product.case { kind = "e4m3", m = 20, k = 128, n = 64, group = 64 }
    local clean = run(c, { 1 })
    c.row_scale:set(4, 0 / 0)
    local words = c.p.words:ptr()
    words[5] = bit.bor(bit.band(words[5], bit.bnot(0xff)), 0x7f)
    local want, y = product.reference(c), run(c, { 1 })
    for i = 1, y:numel() do
      local a, b = want:get(i), y:get(i)
      assert.is_true((a ~= a and b ~= b) or b == clean:get(i))
    end
  end)

  it("reads each byte of the weight once", function()
    local c = product.case { kind = "int4", m = 16, k = 512, n = 256, group = 128 }
    local _, counts = product.run(c, 1)
    assert.equal(c.p.words:bytes() + c.p.scales:bytes() + 2 * c.x:bytes() + c.row_scale:bytes() * 256 / 2, counts.global_read)
  end)

  it("leaves out columns", function()
    for _, outputs in ipairs { 2, 62, 130 } do exact { kind = "int4", m = 9, k = 128, n = 192, group = -1, bias = true, outputs = outputs } end
  end)
end)

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
    exact { kind = "int4", m = 30, k = 640, n = 256, group = 128, grids = { 1, 3 } } -- a stage of less than warps exchange
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
    local c = product.case { kind = "int4", m = 16, k = 512, n = 256, group = 128, row_scale = false }
    local _, counts = product.run(c, 1)
    assert.equal(c.p.words:bytes() + c.p.scales:bytes() + 2 * c.x:bytes(), counts.global_read)
  end)

  it("leaves out columns", function()
    for _, outputs in ipairs { 2, 62, 130 } do exact { kind = "int4", m = 9, k = 128, n = 192, group = -1, bias = true, outputs = outputs } end
  end)
end)

-- What Lua code prints in a process whose device is the emulator's; its errors after it.
local standin = require "spec.support.standin"

local process = standin.with [[
  package.path = "./?.lua;" .. package.path
  local gemm, marlin = require "nibble.gemm", require("nibble.methods.marlin")
  local awq = require "spec.support.awq"
  local layout = nb.layout
  math.randomseed(12)
  -- A weight as gemm.marlin takes it, and the same on the device.
  local function weight(o)
    local codes, scales = awq.codes(o.n, o.k, 4), awq.floats(o.dtype or "f16", { o.n, o.group == -1 and 1 or o.k / o.group }, 1e-3, 1e-2)
    local p = assert(marlin.prepare { bits = 4, group = o.group, order = "gptq", words = layout.gptq.pack(codes, 4), activations = o.activations,
      scales = layout.transpose(scales), bias = o.bias and awq.floats(o.dtype or "f16", { o.n }, -1, 1) or nil })
    p.type, p.k, p.n, p.group, p.dtype, p.activations, p.outputs = "uint4b8", o.k, o.n, o.group, o.dtype, o.activations, o.outputs
    local there = setmetatable({}, { __index = p })
    for _, name in ipairs { "words", "scales", "bias" } do there[name] = p[name] and assert(p[name]:to "cuda") end
    return p, there
  end
  -- Whether y is the CPU's within two units of its last place or of its largest value's.
  local function close(y, want, dtype)
    local largest, unit = 0, dtype == "bf16" and 2 ^ -8 or 2 ^ -11
    for i = 1, want:numel() do largest = math.max(largest, math.abs(want:get(i))) end
    local off = nb.compare(want, y:to("cpu"):cast "f32").max_abs
    return off <= 2 * unit * largest, off, largest
  end
]]

describe("gemm.marlin of tensors on a device, with 8-bit activations", function()
  it("quantizes x there and multiplies, as the CPU does, without a wait", function()
    assert.equal(("true "):rep(8) .. "bf16 f16", process [[
      local last
      for _, activations in ipairs { "int8", "fp8" } do
        for i, m in ipairs { 1, 20, 70, 520 } do
          local dtype = i % 2 == 0 and "f16" or "bf16"
          local p, there = weight { n = 128, k = 256, group = ({ 128, 64, -1, 32 })[i], dtype = dtype, bias = i % 2 == 1, activations = activations }
          local x = awq.floats(dtype, { m, 256 }, -3, 3)
          local d_x = x:to "cuda"
          local g, y = assert(nb.cuda.graph(function() return assert(gemm.marlin(d_x, there)) end)) -- a graph can't wait
          assert(g())
          io.write(tostring((close(y, gemm.marlin(x, p), dtype))), " ")
          last = (last and "f16" or "bf16")
        end
      end
      local p, there = weight { n = 64, k = 128, group = -1, activations = "int8", dtype = "bf16" }
      io.write(gemm.marlin(awq.floats("bf16", { 2, 128 }, -1, 1):to "cuda", there):type(), " ")
      p, there = weight { n = 64, k = 128, group = -1, activations = "fp8" }
      io.write(gemm.marlin(awq.floats("f16", { 2, 128 }, -1, 1):to "cuda", there):type())]])
  end)

  it("takes x without the weight's last columns, and gives as many columns as are asked for", function()
    assert.equal("true true 5x70", process [[
      local p, there = weight { n = 128, k = 128, group = 64, activations = "int8", outputs = 70, bias = true }
      local x = awq.floats("f16", { 5, 100 }, -1, 1)
      local y = assert(gemm.marlin(x:to "cuda", there))
      io.write(tostring((close(y, gemm.marlin(x, p)))), " ")
      p, there = weight { n = 128, k = 1024, group = 32, activations = "fp8" }
      x = awq.floats("f16", { 40, 1022 }, -1, 1)
      io.write(tostring((close(assert(gemm.marlin(x:to "cuda", there)), gemm.marlin(x, p)))), " ", table.concat(y:size(), "x"))]])
  end)

  it("takes no rows", function()
    assert.equal("0x64", process [[
      local p, there = weight { n = 64, k = 128, group = -1, activations = "int8" }
      io.write(table.concat(assert(gemm.marlin(nb.tensor("f16", { 0, 128 }):to "cuda", there)):size(), "x"))]])
  end)

  it("refuses what it doesn't take in one sentence each", function()
    local said = process [[
      local ffi, C = require "ffi", require("nibble.ffi").C
      local p, there = weight { n = 64, k = 128, group = 64, bias = true, activations = "fp8" }
      local x, scale = nb.tensor("f8_e4m3", { 2, 128 }):to "cuda", nb.tensor("f32", { 2, 1 }):fill(1):to "cuda"
      local keep
      local function any(t) return ffi.istype("nb_device_tensor", t) and t.t or t end
      local function says(x, changes, row_scale, y)
        local w = ffi.new("nb_marlin_weight", { k = 128, n = 64, scale_factor = 1, global = 1, bits = 4, a8 = 1, code = C.NB_MARLIN_FOLDED, k_full = 1 })
        keep = setmetatable(changes or {}, { __index = there })
        for _, name in ipairs { "words", "scales", "zeros", "bias", "perm", "g_idx" } do
          local t = keep[name]
          if t then w[name] = any(t) end
        end
        for _, name in ipairs { "k", "n", "bits", "code", "scale" } do
          if changes and changes[name] then w[name] = changes[name] end
        end
        local out = y or ffi.new "nb_tensor"
        local s = row_scale or scale
        local rc = C.nb_device_marlin_gemm(out, any(x), w, any(s))
        print(rc < 0 and ffi.string(C.nb_error()) or "done")
      end
      local function on(dtype, shape) return nb.tensor(dtype, shape):to "cuda" end
      says(on("i8", { 2, 128 }))
      says(on("f16", { 2, 128 }))
      says(nb.tensor("f8_e4m3", { 2, 128 }))
      says(on("f8_e4m3", { 2, 130 }))
      says(on("f8_e4m3", { 2, 127 }))
      says(x, { code = C.NB_MARLIN_E2M1 })
      says(x, { scale = C.NB_MARLIN_INT16 })
      says(x, { code = C.NB_MARLIN_E4M3, bits = 8, zeros = on("i32", { 2, 8 }) })
      says(x, { perm = on("i32", { 128 }) })
      says(x, { k = 112 })
      says(x, { n = 96 })
      says(x, { words = p.words })
      says(x, { words = on("i32", { 4, 128 }) })
      says(x, { scales = on("f32", { 2, 64 }) })
      says(x, { scales = on("f16", { 8, 64 }) })
      says(x, { scales = on("f16", { 3, 64 }) })
      says(x, { zeros = on("i32", { 1, 8 }) })
      says(x, { bias = on("bf16", { 64 }) })
      says(x, nil, on("f32", { 3, 1 }))
      says(x, nil, nb.tensor("f32", { 2, 1 }))
      says(x, nil, nil, on("f32", { 2, 64 }).t)
      says(x, nil, nil, on("f16", { 2, 63 }).t)
      says(x)]]
    local expected = {
      "x for folded integers of 4 bits and 8%-bit activations is f8_e4m3 on a device, found i8", "is f8_e4m3 on a device, found f16",
      "x: .*lies in the computer's memory, expected on a device",
      "x has 130 columns for K = 128", "x has 127 columns for K = 128, expected as many or an even",
      "found codes of kind 3 and 4 bits with scales of kind 0", "found codes of kind 1 and 4 bits with scales of kind 1",
      "e4m3 numbers have no zero%-points", "an activation order cannot be combined", "K = 112 is not a multiple of 32",
      "N = 96 is not a multiple of 64", "words: .*lies in the computer's memory", "words: expected", "y is f16 or bf16, found f32",
      "groups on a device have 32, 64 or a multiple of 128 rows, or there is one; found 16 rows", "K = 128 is not a multiple of the 3 groups",
      "zero%-points: expected", "bias: expected f16", "row scales: expected", "row scales: .*lies in the computer's memory",
      "y is f16 or bf16, found f32", "y has 63 columns for N = 64, expected an even number", "done",
    }
    standin.each_line(said, expected)
  end)
end)

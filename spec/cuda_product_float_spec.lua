-- Products with FP8, MXFP8, MXFP4 and NVFP4 weights in Marlin's form on a device, run by the emulator: exact where every
-- sum is exact, within a stated bound elsewhere, as the CPU has them.
local nb = require "nibble"
local emulator = require "spec.support.emulator"
local floats = require "spec.support.marlin_floats"
local product = require "spec.support.marlin_product"
local standin = require "spec.support.standin"

local function exact(o) product.run_exact(floats.case(o)) end

describe("a product kernel of floats", function()
  before_each(function() math.randomseed(23) end)
  after_each(function() emulator.order(0) end)

  for _, kind in ipairs(floats.kinds) do
    for _, dtype in ipairs { "f16", "bf16" } do
      it(("takes %s weights and %s activations: all numbers of rows, odd sizes, bias, row scales"):format(kind, dtype), function()
        local function with(o) return setmetatable(o, { __index = { kind = kind, dtype = dtype, orders = { 1, 12345 } } }) end
        local group = kind == "fp8" and 64 or nil
        exact(with { m = 5, k = 256, n = 128, group = group and -1, bias = true, row_scale = true })
        exact(with { m = 16, k = 192, n = 192, group = group })
        exact(with { m = 20, k = 160, n = 64, group = group and 32, bias = true })
        exact(with { m = 33, k = 128, n = 192, group = group })
        exact(with { m = 50, k = 512, n = 64, group = group and 256, grids = { 3 } })
      end)
    end
  end

  it("shares tiles between many blocks, and a block's work goes round the stages more than once", function()
    for _, kind in ipairs { "nvfp4", "mxfp4", "fp8" } do
      for _, m in ipairs { 7, 60 } do
        exact { kind = kind, m = m, k = 1280, n = 128, group = 128, dtype = m == 7 and "bf16" or "f16", grids = { 1, 7 },
                orders = { 0, 2, 3 } }
      end
    end
  end)

  it("decodes every code, under scales of every size that a checkpoint has", function()
    for _, dtype in ipairs { "f16", "bf16" } do
      for _, kind in ipairs { "nvfp4", "fp8", "mxfp4" } do
        -- Row r of x picks row r of the weight: all codes one after the other down its columns.
        local bits = kind == "fp8" and 8 or 4
        local k, n = 64, 256
        local codes, all = nb.tensor("u8", { n, k }), 2 ^ bits
        for i = 0, n * k - 1 do
          local code = (i % k + math.floor(i / k)) % all
          codes:set(i + 1, bits == 8 and code % 128 == 127 and 0 or code)
        end
        local scales
        if kind == "nvfp4" then
          scales = nb.tensor("u8", { n, k / 16 })
          for i = 1, scales:numel() do scales:set(i, i % 127) end -- of 2^-6 and above; those below become 0 in Marlin's form
          for i = 1, scales:numel() do if scales:get(i) < 8 then scales:set(i, 0) end end
          scales = scales:as("f8_e4m3", { n, k / 16 })
        elseif kind == "mxfp4" then
          scales = nb.tensor("u8", { n, k / 32 })
          local most = dtype == "f16" and 10 or 100
          for i = 1, scales:numel() do scales:set(i, 127 + (i % (2 * most) - most)) end
        end
        local c = floats.case { kind = kind, dtype = dtype, m = 64, k = k, n = n, group = -1, codes = codes, scales = scales }
        c.x:fill(0)
        for i = 1, 64 do c.x:set({ i, i }, 1) end
        product.run_exact(setmetatable({ grids = { 1 }, orders = { 0 } }, { __index = c }))
      end
    end
  end)

  it("is within half a unit and the roundings of its sums of the product in float64", function()
    for _, kind in ipairs(floats.kinds) do
      for i, m in ipairs { 2, 20, 64 } do
        local c = floats.case { kind = kind, dtype = i % 2 == 0 and "f16" or "bf16", m = m, k = 512, n = 64, group = 128, bias = true,
                                exact = false }
        product.runs(c, { 2 }, { 0, 12345 }, function(y) product.check(c, y) end)
      end
    end
  end)

  it("keeps NaN and infinity of x in their rows, and of a scale in its column", function()
    for _, dtype in ipairs { "f16", "bf16" } do
      local c = floats.case { kind = "nvfp4", dtype = dtype, m = 6, k = 128, n = 64 }
      local clean = product.run(c, 1)
      c.x:set(2 * 128 + 7, 0 / 0) -- row 2 (0-based)
      local y = product.run(c, 1)
      for i = 0, 6 * 64 - 1 do
        if math.floor(i / 64) == 2 then assert.is_true(y:get(i + 1) ~= y:get(i + 1)) else assert.equal(clean:get(i + 1), y:get(i + 1)) end
      end
      local scales = nb.tensor("f8_e4m3", { 64, 8 })
      for i = 1, 512 do scales:set(i, 1) end
      scales:set({ 10, 3 }, 0 / 0)
      c = floats.case { kind = "nvfp4", dtype = dtype, m = 3, k = 128, n = 64, scales = scales }
      y = product.run(c, 1)
      for row = 1, 3 do
        for column = 1, 64 do assert.equal(column == 10, y:get { row, column } ~= y:get { row, column }) end
      end
    end
  end)
end)

-- What Lua code prints in a process whose device is the emulator's; its errors after it.
local process = standin.with [[
  package.path = "./?.lua;" .. package.path
  local gemm = require "nibble.gemm"
  local floats = require "spec.support.marlin_floats"
  local product = require "spec.support.marlin_product"
  math.randomseed(23)
  local function there(p, changes)
    local out = setmetatable(changes or {}, { __index = p })
    for _, name in ipairs { "words", "scales", "perm", "sorted_g_idx", "bias" } do
      if p[name] and out[name] == p[name] then out[name] = assert(p[name]:to "cuda") end
    end
    return out
  end
  local function same(c, p) return assert(gemm.marlin(c.x:to "cuda", p or there(c.p))):to("cpu"):equal(product.exact(c)) end
]]

describe("gemm.marlin of floats on a device", function()
  it("makes y there, of any number of rows, as the CPU does", function()
    assert.equal(("true true true "):rep(8), process [[
      for _, kind in ipairs(floats.kinds) do
        for _, dtype in ipairs { "f16", "bf16" } do
          for _, m in ipairs { 1, 129, 300 } do
            io.write(tostring(same(floats.case { kind = kind, dtype = dtype, m = m, k = 128, n = 64, group = 64, bias = true })), " ")
          end
        end
      end]] .. "")
  end)

  it("takes what tensor cores don't a row at a time: one group of bytes, odd groups, scales without the unit, an order", function()
    assert.equal(("true true "):rep(5), process [[
      local layout = nb.layout.marlin
      for _, dtype in ipairs { "f16", "bf16" } do
        io.write(tostring(same(floats.case { kind = "fp8", dtype = dtype, m = 2, k = 128, n = 64, group = 16 })), " ")
        local c = floats.case { kind = "mxfp8", dtype = dtype, m = 4, k = 128, n = 64 }
        for _, kind in ipairs { "mxfp4", "nvfp4" } do
          c = floats.case { kind = kind, dtype = dtype, m = 4, k = 128, n = 64 }
          local one = nb.tensor(kind == "mxfp4" and "u8" or dtype, { 1, 64 })
          for i = 1, 64 do one:set(i, kind == "mxfp4" and 120 + i % 8 or 2 ^ (i % 5 - 2)) end
          one = layout.permute_scales(one, 128, -1)
          local p = setmetatable({ scales = kind == "mxfp4" and layout.mx_scales(one) or layout.nvfp4_scales(one) }, { __index = c.p })
          io.write(tostring(assert(gemm.marlin(c.x:to "cuda", there(p))):to("cpu"):equal(gemm.marlin(c.x, p):cast(dtype))), " ")
        end
        local perm, g_idx = nb.tensor("i32", { 128 }), nb.tensor("i32", { 128 })
        for i = 0, 127 do
          perm:set(i + 1, (i * 5) % 128)
          g_idx:set(i + 1, math.floor(i / 32))
        end
        local whole = { __index = c.p }
        local p = setmetatable({ perm = perm, sorted_g_idx = g_idx }, whole)
        local want = gemm.marlin(c.x, p):cast(dtype)
        io.write(tostring(assert(gemm.marlin(c.x:to "cuda", there(p))):to("cpu"):equal(want)), " ")
        g_idx:set(1, 3)
        want = gemm.marlin(c.x, p):cast(dtype)
        io.write(tostring(assert(gemm.marlin(c.x:to "cuda", there(p))):to("cpu"):equal(want)), " ")
      end]] .. "")
  end)

  it("refuses what it doesn't take in one sentence each", function()
    local said = process [[
      local c = floats.case { kind = "mxfp4", dtype = "bf16", m = 2, k = 128, n = 64 }
      local x, p = c.x:to "cuda", there(c.p)
      local function says(changes)
        local ok, y, msg = pcall(gemm.marlin, x, setmetatable(changes or {}, { __index = p }))
        print(ok and msg or y)
      end
      says { scales = nb.tensor("u8", { 4, 32 }):to "cuda" }
      says { scales = nb.tensor("u8", { 5, 64 }):to "cuda" }
      says { type = "float8_e4m3fn" }
      says()]]
    local expected = { "scales: expected", "K = 128 is not a multiple of the 5 groups",
      "words: expected", "on cuda:0" }
    standin.each_line(said, expected)
  end)
end)

describe("cuda.marlin_dequantize of floats", function()
  it("gives what the CPU multiplies with, rounded", function()
    assert.equal(("true true "):rep(8), process [[
      for _, kind in ipairs(floats.kinds) do
        for _, dtype in ipairs { "f16", "bf16" } do
          for _, group in ipairs { -1, 64 } do
            local c = floats.case { kind = kind, dtype = dtype, m = 1, k = 128, n = 192, group = group, exact = false }
            local w = assert(nb.cuda.marlin_dequantize(there(c.p), { dtype = dtype })):to "cpu"
            -- NVFP4's without global, and in bf16 raised by what its largest scale leaves room for
            if kind == "nvfp4" then
              local most = 0
              for i = 1, c.scale:numel() do most = math.max(most, c.scale:get(i)) end
              local raised = dtype == "bf16" and 2 ^ math.floor(math.log(448 / most) / math.log(2)) or 1
              for i = 0, c.w:numel() - 1 do c.w:ptr()[i] = c.w:ptr()[i] * 8 * raised end
            end
            io.write(tostring(w:equal(nb.layout.transpose(c.w:cast(dtype)))), " ")
          end
        end
      end]] .. "")
  end)
end)

-- The product of experts on a device, run by the emulator: each pair of a token and one of its experts gets its expert's
-- weight, to the bit where every sum is exact, in every order of threads, however the blocks' tiles are shared.
local nb = require "nibble"
local emulator = require "spec.support.emulator"
local experts = require "spec.support.marlin_experts"
local standin = require "spec.support.standin"

local EVERY = { 0, 1, 2, 3, 12345 }

local function exact(o) experts.run_exact(o, { 1, 3, 11 }, { 1, 12345 }) end
local map_of = experts.map

describe("a product kernel of experts", function()
  before_each(function() math.randomseed(17) end)
  after_each(function() emulator.order(0) end)

  for _, dtype in ipairs { "f16", "bf16" } do
    for _, bits in ipairs { 4, 8 } do
      for _, zeros in ipairs { false, true } do
        it(("takes %s, %d bits%s, groups, bias, weights"):format(dtype, bits, zeros and " with zero-points" or ""), function()
          local kind = { dtype = dtype, bits = bits, zeros = zeros, experts = 3, top = 2, orders = { 12345 }, grids = { 1, 5 } }
          local function with(o) return setmetatable(o, { __index = kind }) end
          exact(with { tokens = 5, block = 16, k = 256, n = 128, group = -1, bias = true, weights = true })
          exact(with { tokens = 30, block = 32, k = 128, n = 192, group = 64 })
          exact(with { tokens = 40, block = 64, k = 64, n = 64, group = 32, bias = true })
        end)
      end
    end
  end

  it("takes blocks of every size", function()
    for _, block in ipairs { 1, 8, 16, 20, 32, 48, 64 } do
      exact { experts = 4, tokens = 21, top = 2, block = block, k = 192, n = 64, group = 64, orders = { 1 }, grids = { 2 } }
    end
  end)

  it("shares blocks' tiles between its blocks, whose stages go round more than once, and crosses experts", function()
    for _, block in ipairs { 16, 64 } do
      exact { experts = 5, tokens = 3, top = 2, block = block, k = 640, n = 256, group = 128, bias = true, weights = true,
              grids = { 1, 2, 7, 200 }, orders = EVERY }
    end
  end)

  it("leaves alone blocks and rows of strangers", function()
    for _, ignore in ipairs { true, false } do
      exact { experts = 2, tokens = 9, top = 3, block = 16, k = 256, n = 128, group = 128, weights = true, ignore = ignore,
              map = map_of { -1, 1, -1, 0, -1 }, grids = { 1, 2, 9 }, orders = EVERY }
    end
    -- A block that begins amid a stranger's tile and goes on with one that is here.
    exact { experts = 2, tokens = 6, top = 2, block = 16, k = 256, n = 128, group = 128, ignore = false, map = map_of { 1, -1, 0 },
            grids = { 2 } }
    exact { experts = 2, tokens = 4, top = 2, block = 16, k = 128, n = 64, group = 128, ignore = false, map = map_of { -1, -1, -1 } }
    exact { experts = 4, tokens = 2, top = 2, block = 16, k = 128, n = 64, group = -1,
            ids = nb.tensor("i32", { 2, 2 }, { 3, -1, 4, 0 }) }
  end)

  it("skips the experts that it is told to, and multiplies each by its global scale", function()
    local c = experts.case { experts = 3, tokens = 7, top = 2, block = 16, k = 128, n = 64, group = 32 }
    c.globals, c.skip = nb.tensor("f32", { 3 }, { 2, 0.5, 4 }), nb.tensor("i32", { 3 }, { 0, 7, 0 })
    local plain, y = experts.exact(c, experts.poisoned(c)), assert(experts.run(c, 2))
    for pair = 0, 13 do
      local e = experts.owner(c, pair)
      for i = pair * 64 + 1, pair * 64 + 64 do
        if e == 2 then assert.equal(experts.poisoned(c):get(i), y:get(i))
        else assert.equal(plain:get(i) * c.globals:get(e), y:get(i)) end
      end
    end
  end)

  it("reads the weights of experts that have tokens, each byte once for each block", function()
    local c = experts.case { experts = 6, tokens = 4, top = 1, block = 16, k = 256, n = 128, group = 128,
                             ids = nb.tensor("i32", { 4, 1 }, { 4, 4, 1, 4 }) }
    experts.reads_each_once(c)
  end)
end)

local process = standin.with [[
  package.path = "./?.lua;" .. package.path
  local ffi, C = require "ffi", require("nibble.ffi").C
  local experts = require "spec.support.marlin_experts"
  local cuda_experts = require "nibble.cuda.experts"
  math.randomseed(17)
  local function blocks_of(c)
    return { sorted = assert(c.sorted:to "cuda"), block_experts = assert(c.owners:to "cuda"), top = c.top, block = c.block,
      total = assert(nb.tensor("i32", { 1 }, { c.total }):to "cuda"), weights = c.weights and assert(c.weights:to "cuda") }
  end
  local function same(c)
    local before = experts.poisoned(c)
    local y = assert(before:to "cuda")
    assert(cuda_experts.gemm(c.x:to "cuda", experts.there(c.p), blocks_of(c), { out = y }))
    return y:to("cpu"):equal(experts.exact(c, before))
  end
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
]]

describe("cuda.experts.gemm", function()
  it("makes y on the device, in activation orders of each expert's own, regular, not, and mixed", function()
    assert.equal(("true "):rep(9), process [[
      io.write(tostring(same(experts.case { experts = 3, tokens = 5, top = 2, block = 16, k = 256, n = 128, group = 64, weights = true })), " ")
      for _, kind in ipairs { { true, true, true }, { false, false, false }, { true, false, true } } do
        for _, bits in ipairs { 4, 8 } do
          local g_idx = {}
          for e = 1, 3 do g_idx[e] = groups_of(128, 2, kind[e]) end
          io.write(tostring(same(experts.case { experts = 3, tokens = 6, top = 2, block = 16, bits = bits, zeros = bits == 4, k = 128, n = 64,
            group = 64, bias = true, weights = true, g_idx = g_idx })), " ")
        end
      end
      io.write(tostring(same(experts.case { experts = 2, tokens = 6, top = 1, block = 32, k = 144, n = 64, group = 48, weights = true })), " ")
      io.write(tostring(same(experts.case { experts = 2, tokens = 0, top = 2, block = 16, k = 128, n = 64, group = 64 })), " ")]])
  end)

  it("takes global scales of experts from the device, the computer's memory and arrays, which are copied once", function()
    assert.equal("true true true true 1 true", process [[
      local c = experts.case { experts = 3, tokens = 5, top = 2, block = 16, k = 128, n = 64, group = 64 }
      local numbers = { 0.5, 2, 4 }
      local t = nb.tensor("f32", { 3 }, numbers)
      local want = experts.exact(c, experts.poisoned(c))
      for pair = 0, 9 do
        for i = pair * 64 + 1, pair * 64 + 64 do want:set(i, want:get(i) * numbers[experts.owner(c, pair)]) end
      end
      local x, p, b = c.x:to "cuda", experts.there(c.p), blocks_of(c)
      local function right(m, y) return tostring(assert(y or cuda_experts.gemm(x, m, b)):to("cpu"):equal(want)) end
      local function with(global) return setmetatable({ global = global }, { __index = p }) end
      local kept = with(t)
      io.write(right(with(t:to "cuda")), " ", right(kept), " ", right(with(numbers)), " ")
      -- the second time nothing is copied: a graph holds it
      t:set(1, 99)
      local g, y = assert(nb.cuda.graph(function() return assert(cuda_experts.gemm(x, kept, b)) end))
      g()
      io.write(right(nil, y), " ", cuda_experts.gemm(x, with(2), b):numel() / want:numel(), " ",
        tostring(not pcall(cuda_experts.gemm, x, with(nb.tensor("f32", { 2 })), b))) ]])
  end)

  it("refuses what it doesn't take in one sentence each", function()
    local said = process [[
      local c = experts.case { experts = 2, tokens = 3, top = 2, block = 16, k = 128, n = 64, group = -1, bias = true, weights = true }
      local x, p, b = c.x:to "cuda", experts.there(c.p), blocks_of(c)
      local function says(x, changes, blocks, o)
        local ok, y, msg = pcall(cuda_experts.gemm, x, setmetatable(changes or {}, { __index = p }), setmetatable(blocks or {}, { __index = b }), o)
        print(ok and msg or y)
      end
      says(c.x:cast("f32"):to "cuda")
      says(nb.tensor("f16", { 3, 136 }):to "cuda")
      says(x, { words = p.words:reshape(16, 128) })
      says(x, { scales = p.scales:rows(1, 1) })
      says(x, { scales = c.p.scales })
      says(x, {}, { block = 65 })
      says(x, {}, { top = 0 })
      says(x, {}, { total = c.sorted:to "cuda" })
      says(x, {}, { weights = nb.tensor("f32", { 2, 2 }):to "cuda" })
      says(x, {}, { sorted = c.sorted })
      says(x, {}, { block_experts = false })
      says(x, {}, {}, { out = nb.tensor("f16", { 5, 64 }):to "cuda" })
      says(x)]]
    local expected = {
      "on a device x is f16 or bf16, found f32", "x has 136 columns for K = 128", "words of 0 experts", "scales of 2 experts: found",
      "scales: .*lies in the computer's memory", "blocks of 65 pairs, expected 1 to 64", "0 experts to a token",
      "places in use: expected", "router weights: expected", "sorted pairs: expected on cuda:0, found in the computer's memory",
      "blocks' experts are missing", "y: expected", "on cuda:0",
    }
    standin.each_line(said, expected)
  end)
end)

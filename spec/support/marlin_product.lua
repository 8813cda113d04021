-- marlin_product: weights in Marlin's form with activations, what their product is, and the product kernels run on the
-- emulator with a grid of the spec's choosing.
local ffi = require "ffi"
local nb = require "nibble"
local quantized = require "nibble.quantized"
local prepare_all = require("nibble.methods.marlin").prepare_all
local awq = require "spec.support.awq"
local emulator = require "spec.support.emulator"
local layout = nb.layout

local M = {}

-- As cuda/kernels/product.h has them.
local COLUMNS, STAGES, THREADS = 128, 4, 128

--- case{dtype = "f16", bits = 4, m =, k =, n =, group =, zeros = false, bias = false, row_scale = false, exact = true,
-- g_idx =} -> the same table with x, q (Quantized [n,k]), w (what it is worth, f32), p (the weight as gemm.marlin takes it) and bias in its own order.
-- exact: whole activations and powers of two, so that every sum is exact and there is one right answer.
function M.case(o)
  o.dtype, o.bits = o.dtype or "f16", o.bits or 4
  local n, k, g = o.n, o.k, o.group == -1 and o.k or o.group
  local exact = o.exact ~= false
  local scales = exact and awq.powers or awq.floats
  o.x = exact and awq.whole({ o.m, k }, o.dtype) or awq.floats(o.dtype, { o.m, k }, -1, 1)
  o.bias = o.bias and (exact and awq.whole({ n }, o.dtype) or awq.floats(o.dtype, { n }, -1, 1)) or nil
  o.row_scale = o.row_scale and scales("f32", { o.m, 1 }, 0.5, 2) or nil
  o.q = quantized.wrap {
    scheme = { type = "int", bits = o.bits, symmetric = not o.zeros, strategy = "group", group = o.group },
    codes = awq.codes(n, k, o.bits), scales = scales(o.dtype, { n, k / g }, 0.01, 0.1),
    zeros = o.zeros and awq.codes(n, k / g, o.bits) or nil, g_idx = o.g_idx,
  }
  o.w = o.q:dequantize "f32"
  o.p = assert(prepare_all({ {
    bits = o.bits, group = o.group, order = "gptq", words = layout.gptq.pack(o.q.codes, o.bits), bias = o.bias,
    scales = layout.transpose(o.q.scales), zeros = o.zeros and layout.awq.pack_zeros(o.q.zeros, o.bits) or nil, g_idx = o.g_idx,
  } }, { "act_order", "repack", "scales", "zeros", "bias" }))[1]
  o.p.type = o.zeros and "uint" .. o.bits or ("uint%db%d"):format(o.bits, 2 ^ (o.bits - 1))
  o.p.k, o.p.n, o.p.group, o.p.dtype = k, n, o.group, o.dtype
  return o
end

--- exact(c) -> y of an exact case, rounded once.
function M.exact(c)
  local y = nb.tensor("f32", { c.m, c.n })
  local x = c.x:cast "f32"
  for i = 0, c.row_scale and c.m * c.k - 1 or -1 do x:ptr()[i] = x:ptr()[i] * c.row_scale:get(math.floor(i / c.k) + 1) end
  return nb.compute.gemm(y, x, c.w, c.bias and c.bias:cast "f32"):cast(c.dtype)
end

--- check(c, y): y against the product in float64. Allowed: half a unit of y's last place, and as many roundings of f32 in
-- each sum as it has terms.
function M.check(c, y)
  local half = c.dtype == "f16" and 2 ^ -11 or 2 ^ -8
  local x, w, got = c.x:cast "f32", c.w, y:cast "f32"
  local px, pw, pg, pb = x:ptr(), w:ptr(), got:ptr(), c.bias and c.bias:cast "f32"
  for i = 0, c.m - 1 do
    local scale = c.row_scale and c.row_scale:get(i + 1) or 1
    for j = 0, c.n - 1 do
      local sum, size = pb and pb:get(j + 1) or 0, 0
      for l = 0, c.k - 1 do
        local t = px[i * c.k + l] * pw[j * c.k + l] * scale
        sum, size = sum + t, size + math.abs(t)
      end
      local off, allowed = math.abs(pg[i * c.n + j] - sum), half * math.abs(sum) + (c.k + 2) * 2 ^ -24 * size + 2 ^ -25
      if not (off <= allowed) then
        error(("y[%d,%d] is %.9g, expected %.9g within %.3g"):format(i, j, pg[i * c.n + j], sum, allowed), 2)
      end
    end
  end
end

local function blocks_of(m) return m <= 16 and 1 or m <= 32 and 2 or 4 end

--- tiles(c) -> how many (tile, stage) pairs there are, and stages of a tile.
function M.tiles(c)
  local depth = math.ceil(c.k / (blocks_of(c.m) <= 2 and 128 or 64))
  return math.ceil(c.n / COLUMNS) * depth, depth
end

--- run(c, grid) -> y, counts | nil, what the emulator says is wrong
-- Memory that a kernel may write holds rubbish before; its counts of blocks that arrived must be zero again.
function M.run(c, grid)
  local blocks, p = blocks_of(c.m), c.p
  local k_stage = blocks <= 2 and 128 or 64
  local one = p.scales:size(1) == 1
  local rows = one and 1 or math.max(1, k_stage / c.group)
  local scale_bytes = p.scales:bytes() / p.scales:numel() + (c.zeros and not one and c.bits / 8 or 0)
  local stage = 16 * blocks * k_stage * 2 + k_stage * COLUMNS * c.bits / 8 + rows * COLUMNS * scale_bytes
  local across = math.ceil(c.m / (16 * blocks))
  local y = nb.tensor(c.dtype, { c.m, c.outputs or c.n })
  local memory = {}
  local function there(t)
    if not t then return false end
    memory[#memory + 1] = emulator.memory(t)
    return memory[#memory]
  end
  local d_y, blocks_in_all = there(y), grid * across
  local parts, arrived = there(blocks_in_all * 2 * 16 * blocks * COLUMNS * 4), there(nb.tensor("i32", { blocks_in_all }))
  ffi.fill(d_y, y:bytes(), 0xa5)
  local wrong, counts = emulator.run(("nb_product_%s_%s_m%d"):format(c.dtype, c.kind or "w" .. c.bits, blocks * 16),
    { grid = grid, across = across, block = THREADS, shared = STAGES * stage },
    there(c.x), there(p.words), there(p.scales), there(p.zeros), there(p.bias), there(c.row_scale), d_y, parts, arrived, false, c.m, c.n, c.k,
    c.group == -1 and c.k or c.group, c.outputs or c.n, ffi.new("float", c.factor or 1))
  emulator.read(d_y, y)
  local left = emulator.read(arrived, nb.tensor("i32", { blocks_in_all }))
  for _, at in ipairs(memory) do emulator.free(at) end
  if wrong then return nil, wrong end
  assert(left:equal(nb.tensor("i32", { blocks_in_all })), "the counts of blocks that arrived are not zero again")
  return y, counts
end

--- runs(c, grids, orders, check) -> the last y: c on these grids (the number of blocks) in these orders of threads, free of
-- bank conflicts: the same bits in every order, of which check(y, grid) sees those of each grid.
function M.runs(c, grids, orders, check)
  local found
  for _, grid in ipairs(grids) do
    local first
    for _, order in ipairs(orders or { 0, 1, 12345 }) do
      emulator.order(order)
      local y, counts = M.run(c, grid)
      if not y then error(("grid %d, order %d: %s"):format(grid, order, counts), 0) end
      assert(counts.bank_conflicts == 0, "bank conflicts")
      first = first or y
      if not first:equal(y) then error(("grid %d: order %d gives other bits"):format(grid, order), 0) end
    end
    if check then check(first, grid) end
    found = first
  end
  return found
end

-- Grids: one block, some that share tiles, and a block to each stage of each tile.
local function grids(c)
  local all = M.tiles(c)
  return all > 3 and { 1, 3, all } or all > 1 and { 1, all } or { 1 }
end

--- run_exact(c): an exact case on c.grids in c.orders gives its one right answer.
function M.run_exact(c)
  local want = M.exact(c)
  M.runs(c, c.grids or grids(c), c.orders, function(y, grid)
    if y:equal(want) then return end
    local r = nb.compare(want, y)
    error(("grid %d: differs by up to %g, %d odd values"):format(grid, r.max_abs, r.odd), 0)
  end)
end

return M

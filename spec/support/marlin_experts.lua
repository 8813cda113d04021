-- marlin_experts: stacks of experts' weights in Marlin's form with routed tokens, what their products are, and the experts'
-- product kernels run on the emulator with a grid of the spec's choosing.
local ffi = require "ffi"
local nb = require "nibble"
local awq = require "spec.support.awq"
local emulator = require "spec.support.emulator"
local product = require "spec.support.marlin_product"
local a8 = require "spec.support.product_a8"
local moe = nb.moe

local M = {}

-- As cuda/kernels/product.h has them.
local COLUMNS, STAGES, THREADS = 128, 4, 128

--- stacked(tensors) -> [#tensors, ...], or nil of none
function M.stacked(tensors)
  local first = tensors[1]
  if not first then return nil end
  local shape = first:size()
  table.insert(shape, 1, #tensors)
  local out, bytes = nb.tensor(first:type(), shape), first:bytes()
  for e, t in ipairs(tensors) do ffi.copy(ffi.cast("char *", out.data) + (e - 1) * bytes, t.data, bytes) end
  return out
end

--- ids(tokens, top, experts) -> i32 [tokens, top]: different experts for each token, at random
function M.ids(tokens, top, experts)
  local t = nb.tensor("i32", { tokens, top })
  for i = 0, tokens - 1 do
    local all = {}
    for e = 1, experts do all[e] = e - 1 end
    for j = 1, top do
      local at = math.random(j, experts)
      all[j], all[at] = all[at], all[j]
      t:set(i * top + j, all[j])
    end
  end
  return t
end

--- case{experts =, tokens =, top =, block =, weights = false, map =, ignore =, ids =, and marlin_product.case's, of each
-- expert; g_idx a list of them} -> the same table with x [tokens,k], p (stacks as gemm.marlin_experts takes them), one (each
-- expert's case), ids, sorted, owners, total, weights (or nil). kind = one of product_a8's: of 8-bit activations, x codes with
-- row_scale f32 [tokens,1] (or nil), and weight(t) as product_a8.case's.
function M.case(o)
  o.dtype, o.bits, o.one = o.dtype or "f16", o.bits or 4, {}
  local parts = { words = {}, scales = {}, zeros = {}, bias = {}, perm = {}, sorted_g_idx = {} }
  for e = 1, o.experts do
    local c = (o.kind and a8 or product).case { m = o.kind and o.tokens or 1, k = o.k, n = o.n, group = o.group, dtype = o.dtype,
      bits = o.bits, zeros = o.zeros, bias = o.bias, exact = o.exact, g_idx = o.g_idx and o.g_idx[e], kind = o.kind, int16 = o.int16,
      row_scale = o.row_scale }
    o.one[e] = c
    for name, list in pairs(parts) do list[e] = c.p[name] end
  end
  o.p = setmetatable({ bias = false }, { __index = o.one[1].p })
  for name, list in pairs(parts) do o.p[name] = M.stacked(list) or nil end
  if not o.bias then o.p.bias = nil end
  local exact = o.exact ~= false
  if o.kind then
    local first = o.one[1]
    o.x, o.row_scale, o.group, o.bits, o.weight = first.x, first.row_scale or nil, first.group, first.bits, first.weight
    for _, one in ipairs(o.one) do one.x, one.row_scale = o.x, o.row_scale end
  else o.x = exact and awq.whole({ o.tokens, o.k }, o.dtype) or awq.floats(o.dtype, { o.tokens, o.k }, -1, 1) end
  o.ids = o.ids or M.ids(o.tokens, o.top, o.map and o.map:numel() or o.experts)
  o.weights = o.weights and (exact and awq.powers or awq.floats)("f32", { o.tokens, o.top }, 0.25, 1) or nil
  o.sorted, o.owners, o.total = moe.align(o.ids, o.block, o.map and o.map:numel() or o.experts, { map = o.map, ignore = o.ignore })
  return o
end

--- owner(c, pair) -> the expert (from 1) here of a pair (from 0); nil: elsewhere
function M.owner(c, pair)
  local e = c.ids:get(pair + 1)
  if c.map then e = e >= 0 and e < c.map:numel() and c.map:get(e + 1) or -1 end
  return e >= 0 and e < c.experts and e + 1 or nil
end

--- exact(c, before) -> y [pairs, n] of an exact case, rounded once; rows of pairs elsewhere as in `before`
function M.exact(c, before)
  local y, all = before:clone(), {}
  local wide = nb.tensor("f32", { 1, c.n })
  for pair = 0, c.tokens * c.top - 1 do
    local e = M.owner(c, pair)
    if e then
      local one = c.one[e]
      all[e] = all[e] or c.kind and a8.reference(one) or nb.compute.gemm(nb.tensor("f32", { c.tokens, c.n }), c.x:cast "f32",
        one.q:dequantize "f32", one.bias and one.bias:cast "f32")
      local from, w = all[e]:ptr() + math.floor(pair / c.top) * c.n, c.weights and c.weights:get(pair + 1) or 1
      for i = 0, c.n - 1 do wide:ptr()[i] = from[i] * w end
      ffi.copy(ffi.cast("char *", y.data) + pair * c.n * 2, wide:cast(c.dtype).data, c.n * 2)
    end
  end
  return y
end

--- poisoned(c) -> y [pairs, n] of bytes that no result has
function M.poisoned(c)
  local y = nb.tensor(c.dtype, { c.tokens * c.top, c.n })
  ffi.fill(y.data, y:bytes(), 0xa5)
  return y
end

--- run(c, grid) -> y, counts | nil, what the emulator says is wrong
function M.run(c, grid)
  local blocks, p, y = c.block <= 16 and 1 or c.block <= 32 and 2 or 4, c.p, M.poisoned(c)
  local k_stage, one = blocks <= 2 and 128 or 64, p.scales:size(2) == 1
  local rows = one and 1 or math.max(1, k_stage / c.group)
  local stage = c.kind and a8.stage_bytes(c, blocks)
    or 16 * blocks * k_stage * 2 + k_stage * COLUMNS * c.bits / 8 + rows * COLUMNS * (2 + (c.zeros and not one and c.bits / 8 or 0))
  local memory = {}
  local function there(t)
    if not t then return false end
    memory[#memory + 1] = emulator.memory(t)
    return memory[#memory]
  end
  local d_y, none = there(y), nb.tensor("i32", { grid })
  local parts, arrived = there(grid * 2 * 16 * blocks * COLUMNS * 4), there(none)
  local name = c.kind and ("a8_%s_%s"):format(c.dtype, c.kind) or ("%s_w%d"):format(c.dtype, c.bits)
  local whole = c.kind and { c.int16 and 1 or 0 } or {}
  local wrong, counts = emulator.run(("nb_product_experts_%s_m%d"):format(name, blocks * 16),
    { grid = grid, block = THREADS, shared = STAGES * stage + 64 * blocks },
    there(c.x), there(p.words), there(p.scales), there(p.zeros), there(p.bias), there(c.row_scale), d_y, parts, arrived, there(c.sorted),
    there(c.owners), there(nb.tensor("i32", { 1 }, { c.total })), there(c.skip), there(c.weights), there(c.globals), c.block,
    math.floor(c.sorted:numel() / c.block), c.top, c.experts, c.tokens * c.top, c.n, c.k, c.group == -1 and c.k or c.group, c.n,
    ffi.new("float", 1), unpack(whole))
  emulator.read(d_y, y)
  local left = emulator.read(arrived, nb.tensor("i32", { grid }))
  for _, at in ipairs(memory) do emulator.free(at) end
  if wrong then return nil, wrong end
  assert(left:equal(none), "the counts of blocks that arrived are not zero again")
  return y, counts
end

--- there(p) -> the stacks of p on the device
function M.there(p, changes)
  local out = setmetatable(changes or {}, { __index = p })
  for _, name in ipairs { "words", "scales", "zeros", "perm", "sorted_g_idx", "bias" } do
    if p[name] and out[name] == p[name] then out[name] = assert(p[name]:to "cuda") end
  end
  return out
end

--- map(list) -> i32 tensor: an expert map
function M.map(list) return nb.tensor("i32", { #list }, list) end

--- run_exact(o, grids, orders): runs case o on o.grids or these (numbers of blocks), in o.orders or these of threads: the right
-- rows to the bit, the others untouched, no bank conflicts
function M.run_exact(o, grids, orders)
  local c = M.case(o)
  local want = M.exact(c, M.poisoned(c))
  for _, grid in ipairs(o.grids or grids) do
    for _, order in ipairs(o.orders or orders) do
      emulator.order(order)
      local y, counts = M.run(c, grid)
      if not y then error(("grid %d, order %d: %s"):format(grid, order, counts), 0) end
      if counts.bank_conflicts > 0 then error(("grid %d, order %d: %d bank conflicts"):format(grid, order, counts.bank_conflicts), 0) end
      if not y:equal(want) then
        local r = nb.compare(want, y)
        error(("grid %d, order %d: differs by up to %g, %d odd values"):format(grid, order, r.max_abs, r.odd), 0)
      end
    end
  end
end

--- reads_each_once(c): that a product of case c, of whose experts two have tokens, reads their weights once, and x; besides those
-- places in use, each row's pair where x and y look for it, and the blocks' owners.
function M.reads_each_once(c)
  local _, counts = M.run(c, 1)
  local least = 2 * (c.p.words:bytes() + c.p.scales:bytes()) / c.p.words:size(1) + c.x:bytes()
  if counts.global_read < least or counts.global_read >= least + 8192 then
    error(("reads %d bytes, expected %d and less than 8192 more"):format(counts.global_read, least), 2)
  end
end

return M

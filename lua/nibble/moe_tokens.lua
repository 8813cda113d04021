-- moe_tokens: where the tokens of a mixture of experts go: grouped by expert, laid out in
-- batches and summed again, aligned to a kernel's blocks; and the sizes that kernels ask for
-- (SYSTEMS FWD-03, FWD-05, FWD-08, FWD-09, FWD-11). nibble.moe hands all of it on.
-- Functions of tensors also take tensors on one device, and work there (nibble.cuda.moe).
local ffi = require "ffi"
local compute = require "nibble.compute"
local dispatch = require "nibble.dispatch"
local nffi = require "nibble.ffi"
local tensor = require "nibble.tensor"
local C, must = nffi.C, nffi.must

local M = {}

--- moe.group(ids, weights, experts [, {map=, skip=false}]) -> rows i32, row_weights f32, offsets i32 [experts+1]
-- Pairs by expert: those of expert e (0-based) are offsets[e] .. offsets[e+1]-1 (0-based), rows ascending. map: global id
-- to local, -1 = elsewhere; ids outside are left out with skip, otherwise an error. (FWD-03)
function M.group(ids, weights, experts, o)
  local n = ids:numel()
  local rows, row_weights = dispatch.new(ids, "i32", { n }), dispatch.new(ids, "f32", { n })
  local offsets = dispatch.new(ids, "i32", { experts + 1 })
  must(dispatch.call("moe_group", rows, row_weights, offsets, ids, weights, o and o.map, o and o.skip and 1 or 0))
  return rows, row_weights, offsets
end

--- moe.dispatch(x, ids, experts [, {map=, rows=}]) -> f32 [experts, rows, H], counts i32 [experts], places i32 [T, k]
-- The rows of each expert, for moe.batched; rows: room per expert (default: what the fullest needs). places: flat row of
-- each pair in the batch, -1: none here. On a device the batch has x's dtype.
function M.dispatch(x, ids, experts, o)
  if dispatch.on_device(x, ids) then return require("nibble.cuda.moe").dispatch(x, ids, experts, o and o.map, o and o.rows) end
  local ones = tensor.new("f32", ids:size()):fill(1)
  local rows, _, offsets = M.group(ids, ones, experts, { map = o and o.map, skip = true })
  local most, counts = o and o.rows or 0, tensor.new("i32", { experts })
  for e = 1, experts do
    counts:set(e, offsets:get(e + 1) - offsets:get(e))
    if not (o and o.rows) then most = math.max(most, counts:get(e)) end
    if counts:get(e) > most then
      error(("moe.dispatch: expert %d gets %d rows, and there is room for %d"):format(e - 1, counts:get(e), most), 2)
    end
  end
  local batch = tensor.new("f32", { experts, most, x:size(2) })
  for e = 1, experts do
    local first, last = offsets:get(e) + 1, offsets:get(e + 1)
    if last >= first then
      local slot = batch:rows(e, e):reshape({ most, x:size(2) }):rows(1, last - first + 1)
      compute.gather(slot, x, rows:rows(first, last))
    end
  end
  local places, filled, map = tensor.new("i32", ids:size()), {}, o and o.map
  for i = 1, ids:numel() do
    local e = ids:get(i)
    if map then e = e >= 0 and e < map:numel() and map:get(e + 1) or -1 end
    if e < 0 or e >= experts then
      places:set(i, -1)
    else
      filled[e] = (filled[e] or 0) + 1
      places:set(i, e * most + filled[e] - 1)
    end
  end
  return batch, counts, places
end

--- moe.combine(y, places, weights) -> f32 [T, H]: each token's rows of a batch, weighted and summed.
function M.combine(y, places, weights)
  if dispatch.on_device(y, places, weights) then return require("nibble.cuda.moe").combine(y, places, weights) end
  local hidden, tokens, top = y:size(3), places:size(1), places:size(2)
  local flat = y:reshape { y:size(1) * y:size(2), hidden }
  local out = tensor.new("f32", { tokens, hidden })
  local from, to, w = tensor.new("i32", { tokens * top }), tensor.new("i32", { tokens * top }), tensor.new("f32", { tokens * top })
  local n = 0
  for t = 0, tokens - 1 do
    -- In order of expert, as moe.forward adds them.
    local mine = {}
    for j = 1, top do
      local i = t * top + j
      if places:get(i) >= 0 then mine[#mine + 1] = i end
    end
    table.sort(mine, function(a, b)
      local pa, pb = places:get(a), places:get(b)
      if pa ~= pb then return pa < pb end
      return a < b
    end)
    for _, i in ipairs(mine) do
      n = n + 1
      from:set(n, places:get(i))
      to:set(n, t)
      w:set(n, weights:get(i))
    end
  end
  if n == 0 then return out end
  local rows = compute.gather(tensor.new("f32", { n, hidden }), flat, from:rows(1, n))
  return compute.scatter_add(out, rows, to:rows(1, n), w:rows(1, n))
end

--- moe.align(ids, block, experts [, {map=, ignore=false}]) -> sorted i32, block_experts i32, total
-- Flat positions of ids by expert, each expert's run padded to a multiple of block with the value ids:numel();
-- block_experts: whose each block is, -1 past the end. Only the first `total` places are in use. experts: global count.
-- map i32 [experts]: blocks of experts that are elsewhere are marked -1; ignore: their pairs are left out, and the rest
-- is sorted by local id. On a device the total stays there too, i32 [1]. (FWD-08)
function M.align(ids, block, experts, o)
  if tensor.on_device(ids) then return require("nibble.cuda.moe").align(ids, block, experts, o and o.map, o and o.ignore) end
  local n = ids:numel()
  local capacity = tonumber(C.nb_moe_align_capacity(n, experts, block))
  local sorted, owners = tensor.new("i32", { math.max(capacity, 0) }), tensor.new("i32", { math.max(math.ceil(capacity / block), 0) })
  local total = ffi.new "int64_t[1]"
  must(C.nb_moe_align(sorted, owners, total, ids, block, experts, o and o.map, o and o.ignore and 1 or 0))
  return sorted, owners, tonumber(total[0])
end

-- ---- sizes -----------------------------------------------------------------------

local blocks = { 8, 16, 32, 48, 64 }

--- moe.block_size{tokens=, top=, experts=, experts_global=nil, a8=false} or {batch=Tmax, a8=false} -> 8, 16, 32, 48 or 64
-- The least block that is at most 90 % full by the mean expert's rows (batch: by the fullest's); at least 16 with
-- 8-bit activations. experts_global: tokens are shared with experts elsewhere. (FWD-05)
function M.block_size(o)
  local rows = o.batch
  if not rows then
    local tokens = o.tokens
    if o.experts_global and o.experts_global > 0 then tokens = math.ceil(tokens * o.experts / o.experts_global) end
    rows = tokens * o.top / o.experts
  end
  local size = blocks[#blocks]
  for i = #blocks, 1, -1 do
    if rows / blocks[i] < 0.9 then size = blocks[i] end
  end
  return o.a8 and math.max(size, 16) or size
end

--- moe.workspace{tokens=, top=, hidden=, intermediate=} or {experts=, batch=Tmax, dispatchers=1, hidden=, intermediate=}
-- -> first, second, output: the shapes of a modular kernel's two workspaces and its output. (FWD-11)
function M.workspace(o)
  local H, I = o.hidden, o.intermediate
  if o.batch then
    local E, rows = o.experts, o.batch * (o.dispatchers or 1)
    return { E * rows, math.max(H, 2 * I) }, { E * rows, I }, { E, rows, H }
  end
  local pairs_ = o.tokens * o.top
  return { pairs_, math.max(I, H) }, { pairs_ * math.max(2 * I, H) }, { o.tokens, H }
end

return M

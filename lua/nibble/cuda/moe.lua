-- cuda.moe: what moe's functions do with tensors on a device; what is made lies there. nibble.moe and moe_tokens call these.
-- Only group without skip, and dispatch without rows for all pairs, wait for the device.
local ffi = require "ffi"
local nffi = require "nibble.ffi"
local dispatch = require "nibble.dispatch"
local tensor = require "nibble.tensor"
local tensors = require "nibble.cuda.tensors"
local C, must = nffi.C, nffi.must

local M = {}

-- A tensor without memory: C makes it, of this shape where that says something.
local function unmade(shape)
  local out = tensors.type()
  if shape then
    local s, n = tensor.shape_of(shape, 4)
    out.t.ndim = n
    ffi.copy(out.t.shape, s, 8 * n)
  end
  return out
end

-- Calls C.nb_device_NAME, whose first arguments it makes; once more without what the collector holds where there was no room.
local function make(name, ...)
  local f = C["nb_device_" .. name]
  local rc = dispatch.there(f, ...)
  if rc == C.NB_ENOMEM then
    collectgarbage() collectgarbage()
    rc = dispatch.there(f, ...)
  end
  local ok, msg = nffi.check(rc, true)
  if not ok then error(msg, 3) end -- where the caller of moe's function stands, which is a tail call
  return ...
end

-- moe.route's work: weights, ids; router: nb_moe_router.
function M.route(logits, bias, router, top)
  local ids, weights = make("moe_route", unmade { logits:size(1), top }, unmade(), logits, bias, router)
  return weights, ids
end

-- moe.activation's: out, or a new tensor of h's dtype; act: nb_moe_act.
function M.activation(h, up, out, act)
  return (make("moe_activation", out or unmade(), h, up, act))
end

-- moe.align's, but the total too is a tensor, i32 [1].
function M.align(ids, block, experts, map, ignore)
  local sorted, owners, total = make("moe_align", unmade(), unmade(), unmade(), ids, block, experts, map, ignore and 1 or 0)
  return sorted, owners, total
end

-- The most rows that an expert gets.
local function fullest(ids, experts, map)
  local n, most = ids:numel(), 0
  local function new(dtype, shape) return dispatch.new(ids, dtype, shape) end
  local offsets = new("i32", { experts + 1 })
  must(dispatch.call("moe_group", new("i32", { n }), new("f32", { n }), offsets, ids, new("f32", ids:size()), map, 1))
  offsets = assert(offsets:to "cpu")
  for e = 1, experts do most = math.max(most, offsets:get(e + 1) - offsets:get(e)) end
  return most
end

-- moe.dispatch's, the batch in x's dtype.
function M.dispatch(x, ids, experts, map, rows)
  rows = rows or fullest(ids, experts, map)
  local batch, counts, places = make("moe_dispatch", unmade { experts, rows, x:size(2) }, unmade(), unmade(), x, ids, map)
  return batch, counts, places
end

-- moe.combine's, f32.
function M.combine(y, places, weights)
  local out = dispatch.new(y, "f32", { places:size(1), y:size(3) })
  return (make("moe_combine", out, y, places, weights))
end

--- sum(x, ids, weights, experts [, {map =, dtype =}]) -> y [T, H]: each token's weighted rows, as moe.forward adds them
-- x [T*k, H], a row for each pair; ids i32, weights f32 [T, k] or nil for 1. map: as moe.group's. dtype: of y, x's or "f32".
-- Products are rounded to x's dtype, added in f32 in the order of experts. Pairs without an expert here are left out.
function M.sum(x, ids, weights, experts, o)
  local out = unmade()
  if o and o.dtype and o.dtype ~= x:type() then out = dispatch.new(x, o.dtype, { ids:size(1), x:size(2) }) end
  return (make("moe_sum", out, x, ids, weights, o and o.map, experts))
end

return M

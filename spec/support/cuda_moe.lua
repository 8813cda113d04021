-- cuda_moe: what becomes of a mixture's tokens, on the stand-in device and in the computer's memory. For the processes that
-- spec/cuda_moe_*_spec.lua begin: each function here gives nil where both are the same, else what differs.
local nb = require "nibble"
local ffi = require "ffi"
local emulator = require "spec.support.emulator"
local nffi = require "nibble.ffi"
local same = require("spec.support.cuda_dequantize").same
local C = nffi.C

local M = {}

local function describe(o)
  local words = {}
  for k, v in pairs(o) do
    if type(v) ~= "function" and type(v) ~= "cdata" then words[#words + 1] = k .. "=" .. tostring(v) end
  end
  table.sort(words)
  return table.concat(words, " ")
end

--- tensor(dtype, shape, value) -> a tensor whose i-th element (from 0) is value(i).
function M.tensor(dtype, shape, value)
  local t = nb.tensor(dtype, shape)
  for i = 1, t:numel() do t:set(i, value(i - 1)) end
  return t
end

--- hash(i, n) -> 0 to n-1, in no order.
function M.hash(i, n) return math.floor((i + 1) * 2654435761 % 4294967296 / 65536) % n end

--- words(t) -> its elements, for a glance.
function M.words(t) return table.concat(t:totable(), " ") end

local function poisoned(t)
  local p = nb.tensor(t:type(), t:size())
  ffi.fill(p.data, p:bytes(), 0xa5)
  return assert(p:to "cuda")
end

-- In every order: call(outputs on the device, poisoned before) leaves what `expected` has; o.orders = false: in one.
local function compare(o, expected, call)
  local wrong
  local function once(order)
    if wrong then return end
    local out = {}
    for i, t in ipairs(expected) do out[i] = poisoned(t) end
    local rc = call(out)
    if rc < 0 then wrong = ffi.string(C.nb_error()) return end
    for i, t in ipairs(expected) do
      local _
      local here, why = out[i]:to "cpu"
      if here and t:type():match "f" then _, why = same(here, t)
      elseif here and not here:equal(t) then why = M.words(here) .. ", expected " .. M.words(t) end
      if why then wrong = ("%s: output %d, order %d: %s"):format(describe(o), i, order, why) end
    end
    local conflicts = emulator.counts().bank_conflicts
    if not wrong and conflicts > 0 and not o.conflicts then wrong = ("%s: %d bank conflicts"):format(describe(o), conflicts) end
  end
  if o.orders == false then once(0) else emulator.orders(once) end
  return wrong
end

local function there(t) return t and assert(t:to "cuda") end
local function at(t) return t and t.t end

--- route{rows=, experts=, top=, logits=function(i), dtype=, bias=function(i), bias_dtype=, scoring=, normalize=, groups=, top_groups=, scale=}
function M.route(o)
  local router = ffi.new("nb_moe_router", { scoring = o.scoring == "sigmoid" and 1 or 0, normalize = o.normalize and 1 or 0,
    groups = o.groups or 0, top_groups = o.top_groups or 0, scale = o.scale or 1 })
  local logits = M.tensor(o.dtype or "f32", { o.rows, o.experts }, o.logits)
  local bias = o.bias and M.tensor(o.bias_dtype or "f32", { o.experts }, o.bias)
  local ids, weights = nb.tensor("i32", { o.rows, o.top }), nb.tensor("f32", { o.rows, o.top })
  nffi.must(C.nb_moe_route(ids, weights, logits:cast "f32", bias and bias:cast "f32", router))
  local from, correction = there(logits), there(bias)
  return compare(o, { ids, weights }, function(out)
    return C.nb_device_moe_route(out[1].t, out[2].t, from.t, at(correction), router)
  end)
end

--- align{ids=tensor, block=, experts=, map=tensor, ignore=}
function M.align(o)
  local capacity = tonumber(C.nb_moe_align_capacity(o.ids:numel(), o.experts, o.block))
  local sorted, owners, total = nb.tensor("i32", { capacity }), nb.tensor("i32", { math.ceil(capacity / o.block) }), ffi.new "int64_t[1]"
  nffi.must(C.nb_moe_align(sorted, owners, total, o.ids, o.block, o.experts, o.map, o.ignore and 1 or 0))
  local ids, map = there(o.ids), there(o.map)
  return compare(o, { sorted, owners, nb.tensor("i32", { 1 }, { tonumber(total[0]) }) }, function(out)
    return C.nb_device_moe_align(out[1].t, out[2].t, out[3].t, ids.t, o.block, o.experts, at(map), o.ignore and 1 or 0)
  end)
end

--- group{ids=tensor [T,k], weights=tensor, experts=, map=tensor}: with skip, the rows in use.
function M.group(o)
  local n = o.ids:numel()
  local rows, weights, offsets = nb.tensor("i32", { n }), nb.tensor("f32", { n }), nb.tensor("i32", { o.experts + 1 })
  for _, t in ipairs { rows, weights } do ffi.fill(t.data, t:bytes(), 0xa5) end -- rows of nobody stay as they are
  nffi.must(C.nb_moe_group(rows, weights, offsets, o.ids, o.weights, o.map, 1))
  local ids, map, w = there(o.ids), there(o.map), there(o.weights)
  return compare(o, { rows, weights, offsets }, function(out)
    return C.nb_device_moe_group(out[1].t, out[2].t, out[3].t, ids.t, w.t, at(map), 1)
  end)
end

return M

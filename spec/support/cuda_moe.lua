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
      local here, why = out[i]:to "cpu"
      if here and t:type():match "f" then why = select(2, same(here, t))
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

--- activation{kind=, rows=, n=, dtype=, rounding=, up=true, over=true, limit=, alpha=, beta=, value=function(i)}
-- up: ups in a tensor of their own; over: the output is written over the gates. h begins `skip` elements into its memory.
function M.activation(o)
  local rounding, dtype = o.rounding or o.dtype, o.dtype
  local act = ffi.new("nb_moe_act", { kind = o.kind, dtype = C["NB_" .. rounding:upper()], limit = o.limit or 1 / 0, alpha = o.alpha or 1,
    beta = o.beta or 0 })
  local twice = o.kind < C.NB_MOE_SILU_NO_MUL and not o.up
  local width, skip = o.n * (twice and 2 or 1), o.skip or 0
  local function matrix(from) return M.tensor(dtype, { skip + o.rows * width }, function(i) return o.value(i + from) end) end
  local function part(t) return skip == 0 and t:reshape { o.rows, width } or t:rows(skip + 1, skip + o.rows * width):reshape { o.rows, width } end
  local h, up = matrix(0), o.up and matrix(9999)
  local wide = nb.tensor("f32", { o.rows, o.n })
  nffi.must(C.nb_moe_activation(wide, part(h):cast "f32", up and part(up):cast "f32", act))
  local ups = there(up)
  return compare(o, { dtype == "f32" and wide or wide:cast(dtype) }, function(out)
    local gates = there(h)
    local from, other = part(gates), ups and part(ups)
    if not o.over then return C.nb_device_moe_activation(out[1].t, from.t, at(other), act) end
    local rc = C.nb_device_moe_activation(from.t, from.t, at(other), act)
    out[1] = from
    return rc
  end)
end

-- What moe.forward makes of rows that its experts give: the sums, by the CPU's own functions.
local function summed(o, x, weights, dtype)
  local map, top, tokens = o.map, o.ids:size(2), o.ids:size(1)
  local pairs_of = M.tensor("f32", { tokens, top }, function(i) return i end)
  local rows, order, offsets = nb.tensor("i32", { tokens * top }), nb.tensor("f32", { tokens * top }), nb.tensor("i32", { o.experts + 1 })
  nffi.must(C.nb_moe_group(rows, order, offsets, o.ids, pairs_of, map, 1))
  local sum, columns = nb.tensor("f32", { tokens, x:size(2) }), x:size(2)
  for e = 1, o.experts do
    local first, last = offsets:get(e) + 1, offsets:get(e + 1)
    if last >= first then
      local from, w = nb.tensor("i32", { last - first + 1 }), nb.tensor("f32", { last - first + 1 })
      for i = first, last do
        from:set(i - first + 1, order:get(i))
        w:set(i - first + 1, weights and weights:get(order:get(i) + 1) or 1)
      end
      local part = nb.compute.gather(nb.tensor("f32", { last - first + 1, columns }), x, from)
      nb.compute.scatter_add(sum, part, rows:rows(first, last), w, dtype)
    end
  end
  return sum
end

--- sum{ids=tensor [T,k], experts=, columns=, dtype=, out=dtype's, weights=function(i), map=tensor, value=function(i)}
function M.sum(o)
  local x = M.tensor(o.dtype, { o.ids:numel(), o.columns }, o.value)
  local weights = o.weights and M.tensor("f32", o.ids:size(), o.weights)
  local expected = summed(o, x, weights, o.dtype)
  if o.out and o.out ~= "f32" then expected = expected:cast(o.out) end
  local from, ids, w, map = there(x), there(o.ids), there(weights), there(o.map)
  return compare(o, { expected }, function(out)
    return C.nb_device_moe_sum(out[1].t, from.t, ids.t, at(w), at(map), o.experts)
  end)
end

return M

-- systems: layers of every system beside themselves: one processed and applied in the computer's memory, one on the device, of
-- the same random parameters. For a process whose driver is the emulator (standin).
local nb = require "nibble"
local layer = require "nibble.methods.layer"
local methods = require "nibble.methods"
local awq = require "spec.support.awq"
local support = require "spec.support.experts"

local M = {}

local seed
local function random()
  seed = (seed * 1103515245 + 12345) % 2147483648
  return math.floor(seed / 65536) / 32768
end

local function filled(t, of)
  for i = 1, t:numel() do t:set(i, of(i)) end
  return t
end

local function between(dtype, shape, lo, hi)
  return filled(nb.tensor("f32", shape), function() return lo + random() * (hi - lo) end):cast(dtype)
end

-- What a parameter of that name holds in a checkpoint, more or less; nil: it stays as create made it.
local function content(name, t, o)
  local dtype, shape = t:type(), t:size()
  if name:match "g_idx$" then
    local k, group = shape[#shape], o.actorder
    return group and filled(t:clone(), function(i) return math.floor((i - 1) % k * 37 % k / group) end)
  end
  if name:match "sort_indices" or name:match "_shape" or t:numel() == 0 then return nil end
  if name:match "bias" then return between(dtype, shape, -1, 1) end
  if name:match "global_scale" then return between(dtype, shape, 60, 70) end
  if name:match "input_scale" then return between(dtype, shape, 0.005, 0.02) end
  if dtype == "f8_e4m3" then return between(dtype, shape, name:match "scale" and 0.5 or -100, name:match "scale" and 2 or 100) end
  if name:match "scale" then return between(dtype, shape, o.scale or 0.002, (o.scale or 0.002) * 5) end
  if dtype == "i8" then return filled(t:clone(), function() return math.floor(random() * 16) - 8 end) end
  local bytes = t:clone():as "u8"
  local p = bytes:ptr()
  for i = 0, bytes:numel() - 1 do p[i] = math.floor(random() * 256) end
  return bytes:as(dtype, shape)
end

-- The layer of a case, created, filled and processed; on: the device or nil.
local function made(name, config, o, options, on)
  local method, msg
  if name == "inc_ark" then
    local new = on and function(...) return require("nibble.methods.on_device").new(name, ...) end
      or require("nibble.methods.inc_ark").new
    method, msg = new(config, setmetatable({ on = on }, { __index = options }))
  else method, msg = methods.make(name, config, setmetatable({ on = on }, { __index = options })) end
  if not method then return nil, msg end
  local described = { name = "l", dtype = "f16", k = 256, n = 128, bias = true }
  if o.experts then described = { name = "l", dtype = "f16", kind = "moe", hidden = 128, intermediate = 128, top = 2, disable_inplace = true } end
  for key, value in pairs(o) do described[key] = value end
  local L = layer.new(described)
  local ok
  ok, msg = method:create(L)
  if not ok then return nil, msg end
  seed = 7
  for _, p in ipairs(L:names()) do
    local t = content(p, L:get(p), o)
    if t then L:replace(p, t) end
  end
  ok, msg = method:process(L)
  if not ok then return nil, msg end
  return method, L
end
M.made = made

--- off(cpu, device, dtype, roundings) -> the largest difference in units of the bound: so many roundings of the value itself, all
-- but the last of them before a bias below 1 came to it; and 1e-5 of the largest, for sums in another order.
function M.off(cpu, device, dtype, roundings)
  local step, most, worst = dtype == "f16" and 2 ^ -11 or 2 ^ -8, cpu:cast("f32"):stats().absmax, 0
  if cpu:type() ~= device:type() or cpu:numel() ~= device:numel() then return math.huge end
  for i = 1, cpu:numel() do
    local a, b = cpu:get(i), device:get(i)
    local off = math.abs(a - b) / (2 * step * (roundings * math.abs(a) + roundings - 1) + 1e-5 * most)
    worst = math.max(worst, off == off and off or math.huge)
  end
  return worst
end

--- values(dtype, shape) -> between -1 and 1, the same every time.
function M.values(dtype, shape)
  seed = 99
  return between(dtype, shape, -1, 1)
end

--- linear(name, config, o, options) -> how far the device's apply is from the CPU's, in units of the bound (o.roundings, 1) | nil, msg
function M.linear(name, config, o, options)
  local a, A = made(name, config, o, options)
  if not a then return nil, "on the CPU: " .. A end
  local b, B = made(name, config, o, options, "cuda")
  if not b then return nil, B end
  local x = M.values(o.dtype or "f16", { o.rows or 3, o.k or 256 })
  local far, msg = b:apply(B, x)
  if not far then return nil, msg end
  local there = assert(b:apply(B, x:to "cuda"))
  if there:where() ~= "cuda:0" or not there:to("cpu"):equal(far) then return nil, "x on the device gives another y" end
  for _, p in ipairs(B:names()) do
    if B:get(p):where() ~= "cuda:0" then return nil, p .. " is left in the computer's memory" end
  end
  return M.off(a:apply(A, x), far, o.dtype or "f16", o.roundings or 1)
end

-- What a layer of experts gives for 5 tokens.
local function forward(method, L, x)
  local count = L.e_global
  if method.monolithic then return method:apply_monolithic(L, x, M.values("f32", { 5, count })) end
  local weights, ids = support.routed(5, 2, count)
  return method:apply(L, x, weights, ids)
end

--- experts(name, config, o, options) -> how far the device's apply is from the CPU's: the largest difference, in roundings of the
-- largest value, over o.roundings (1) | nil, msg
function M.experts(name, config, o, options)
  o.experts = o.experts or 3
  local a, A = made(name, config, o, options)
  if not a then return nil, "on the CPU: " .. A end
  local b, B = made(name, config, o, options, "cuda")
  if not b then return nil, B end
  for _, p in ipairs(B:names()) do
    if B:get(p):where() ~= "cuda:0" then return nil, p .. " is left in the computer's memory" end
  end
  local x = M.values(o.dtype or "f16", { 5, A.h })
  local cpu, far = forward(a, A, x), forward(b, B, x)
  if far:type() ~= cpu:type() then return nil, "another dtype" end
  local step = o.dtype == "bf16" and 2 ^ -8 or 2 ^ -11
  local off = nb.compare(cpu:cast "f32", far:cast "f32").max_abs / cpu:cast("f32"):stats().absmax / step / (o.roundings or 1)
  return off == off and off or math.huge
end

-- A class as ARK has it, for inc_ark: it computes from GPTQ's packing.
local function ark_class(is_awq)
  return { new = function(o)
    local zeros = nb.tensor("u8", { o.out_features, math.ceil(o.in_features / o.group) }):fill(2 ^ (o.bits - 1))
    return { post_init = function() end, forward = function(self, x)
      if not o.sym then
        zeros = is_awq and nb.layout.awq.unpack_zeros(self.qzeros, o.bits, self.qzeros:size(1))
          or nb.layout.gptq.unpack_zeros(self.qzeros, o.bits, true, o.out_features)
      end
      return nb.gemm.packed(x, { n = o.out_features, k = o.in_features, bits = o.bits, scales = self.scales, zeros_nk = zeros, bias = self.bias,
        read = function(codes, row) nb.layout.gptq.unpack(self.qweight, o.bits, codes, row) end }):cast(x:type())
    end }
  end }
end

--- ark(is_awq) -> options of inc_ark, whose probe finds such a class.
function M.ark(is_awq) return { probe = function() return true, nil, {}, ark_class(is_awq) end } end

-- The tensors of one random matrix [n,k] as AWQ's, GPTQ's (2: zero-points as they are) and compressed-tensors' files have
-- them; groups in an activation order where o.actorder.
local function files(o)
  math.randomseed(3)
  local m = awq.matrix { n = o.n, k = o.k, group = o.group, bits = o.bits, dtype = o.dtype or "f16", scales = awq.floats, symmetric = not o.zeros }
  local codes, layout = m.q.codes, nb.layout
  local g_idx = nb.tensor("i32", { o.k })
  for i = 0, o.k - 1 do g_idx:set(i + 1, math.floor((o.actorder and i * 37 % o.k or i) / (o.group > 0 and o.group or o.k))) end
  return {
    awq = { qweight = m.qweight, qzeros = m.qzeros, scales = m.scales },
    gptq_v2 = { qweight = layout.gptq.pack(codes, o.bits), scales = m.scales, g_idx = g_idx,
      qzeros = o.zeros and layout.gptq.pack_zeros(m.q.zeros, o.bits, false) or nil },
    ["compressed-tensors"] = { weight_packed = layout.ct.pack(codes, o.bits), weight_scale = m.q.scales, weight_g_idx = g_idx,
      weight_zero_point = o.zeros and layout.ct.pack_zeros(m.q.zeros, o.bits) or nil },
  }
end

--- ranks(name, config, o, format, parallel, tp) -> f32 [3,n]: the sum (parallel = "row") or the columns ("column") of what tp ranks
-- of a linear layer give on the device, one after the other.
function M.ranks(name, config, o, format, parallel, tp)
  local x, sum = M.values(o.dtype or "f16", { 3, o.k }), nb.tensor("f32", { 3, o.n })
  for rank = 0, tp - 1 do
    local method = assert(methods.make(name, config, { on = "cuda" }))
    local L = layer.new { name = "l", dtype = o.dtype or "f16", k = o.k, n = o.n, tp = tp, rank = rank, parallel = tp > 1 and parallel or nil }
    assert(method:create(L))
    for part, t in pairs(files(o)[format]) do
      if L:get(part) then L:load(part, t) end
    end
    assert(method:process(L))
    local here = parallel == "row" and awq.columns(x, rank * L.k + 1, (rank + 1) * L.k) or x
    local y = assert(method:apply(L, here)):cast "f32"
    if parallel == "row" then nb.compute.add(sum, y)
    else layer.block(sum, rank * L.n, y, 0, L.n, 1) end
  end
  return sum
end

-- One expert's projection [n,k] as a GPTQ file of 4 bits has it; gate and up of an expert share their activation order.
local function gptq_projection(n, k, o, number)
  local groups, codes = k / o.group, support.codes(n, k, 4, number)
  local scales = support.floats(n, groups, number + 1, 0.02):cast "f16"
  local g_idx = nb.tensor("i32", { k })
  for c = 0, k - 1 do g_idx:set(c + 1, o.actorder and (c * 7 + math.floor(number / 10)) % groups or math.floor(c * groups / k)) end
  if o.ct then
    return { weight_packed = nb.layout.ct.pack(codes, 4), weight_scale = scales, weight_g_idx = o.actorder and g_idx or nil,
      weight_shape = nb.tensor("i64", { 2 }, { n, k }) }
  end
  return { qweight = nb.layout.gptq.pack(codes, 4), scales = scales:transpose(), g_idx = g_idx, qzeros = nb.tensor("i32", { groups, n / 8 }):as("u8")
    :fill(0x77):as("i32", { groups, n / 8 }) }
end

-- The sum of what all ranks of experts give on the device for 5 tokens; one after the other.
local function over_ranks(name, config, o, tp, ep)
  local x = M.values("f16", { 5, 128 })
  local stored = support.experts({ e = 4, i = o.i }, function(n, k, number) return gptq_projection(n, k, o, number) end)
  local weights, ids = support.routed(5, 2, 4)
  return support.over_ranks(tp, ep, function(ranks)
    local method = assert(methods.make(name, config, { on = "cuda" }))
    local L = support.layer({ e = 4, i = o.i, dtype = "f16" },
      { tp = ranks.tp, rank = ranks.rank, ep = ranks.ep, ep_rank = ranks.ep_rank, disable_inplace = true })
    assert(method:create(L))
    support.load(method, L, stored)
    assert(method:process(L))
    return (assert(method:apply(L, x, weights, ids)):cast "f32")
  end)
end

--- sharded_experts(name, config, o, tp, ep) -> how far the sum over ranks is from the one rank's, in roundings of the largest value
-- for each rank. o: group, actorder, ct = compressed-tensors' files, i = the intermediate size.
function M.sharded_experts(name, config, o, tp, ep)
  local whole, parts = over_ranks(name, config, o, 1, 1), over_ranks(name, config, o, tp, ep)
  return nb.compare(whole, parts).max_abs / whole:stats().absmax / (2 ^ -11 * 2 * tp * ep)
end

--- sharded(name, config, o, format, parallel, tp) -> how far the ranks' result is from the whole layer's, in units of a rounding of
-- the largest value for each rank.
function M.sharded(name, config, o, format, parallel, tp)
  local whole = M.ranks(name, config, o, format, parallel, 1)
  local parts = M.ranks(name, config, o, format, parallel, tp)
  local step = o.dtype == "bf16" and 2 ^ -8 or 2 ^ -11
  return nb.compare(whole, parts).max_abs / (step * tp * whole:stats().absmax)
end

return M

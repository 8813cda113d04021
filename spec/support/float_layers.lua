-- float_layers: layers and experts of random weights in 8- and 4-bit floats on a device, and what the processor makes of the same
-- numbers. For a process whose driver is the emulator (standin).
local nb = require "nibble"
local act = require "nibble.act"
local compute = require "nibble.compute"
local layer = require "nibble.methods.layer"

local M = {}

local seed = 3
local function random()
  seed = (seed * 1103515245 + 12345) % 2147483648
  return math.floor(seed / 65536) / 32768
end
M.random = random

--- values(dtype, shape [, size = 1]) -> random numbers between -size/2 and size/2
function M.values(dtype, shape, size)
  local t = nb.tensor("f32", shape)
  for i = 1, t:numel() do t:set(i, (random() - 0.5) * (size or 1)) end
  return t:cast(dtype)
end

--- number(v) -> f32 [1]
function M.number(v) return nb.tensor("f32", { 1 }, { v }) end

--- weight(scheme's name, n, k [, changes of the scheme]) -> Quantized of random numbers, with the numbers of its input
function M.weight(name, n, k, changes)
  local q = assert(M.values("f32", { n, k }):quantize { scheme = name, group = changes and changes.group,
    scale_dtype = name:match "^FP8" and "bf16" or nil })
  local s = {}
  for field, value in pairs(q.scheme) do s[field] = value end
  for field, value in pairs(changes or {}) do s[field] = value or nil end
  q.scheme, q.input_scale, q.input_global = s, M.number(0.01), M.number(500)
  return q
end

--- modules: name -> Quantized: the checkpoint of these layers, in place of files. biases: name -> tensor
M.modules, M.biases = {}, {}
nb.formats.quantized = function(_, name) return M.modules[name] or error("no module " .. name) end
nb.formats.input = function(_, name)
  local q = M.modules[name]
  return { scale = q.input_scale:get(1), global = q.input_global:get(1) }
end
M.checkpoint = { info = function(_, name) return M.biases[name] end, tensor = function(_, name) return M.biases[name] end }

--- made(method's name, q, options of the layer) -> method, layer | nil, msg: processed; bias_values: its bias
function M.made(name, q, o)
  local method = assert(require("nibble.methods." .. name).new({ scheme = q.scheme, format = "compressed-tensors" }, { on = "cuda" }))
  local described = { name = "l", dtype = "bf16", k = q.k, n = q.n, bias = o and o.bias_values ~= nil }
  for key, value in pairs(o or {}) do described[key] = value end
  local L = layer.new(described)
  local ok, msg = method:create(L)
  if not ok then return nil, msg end
  if L.bias then L:load("bias", o.bias_values) end
  if not (o and o.modules) then M.modules.l = q end
  ok, msg = method:read(L, M.checkpoint)
  if ok then ok, msg = method:process(L) end
  if not ok then return nil, msg end
  return method, L
end

--- input(q, x) -> x f32 as q's layer sees it
function M.input(q, x)
  local a = q.scheme.activations
  if not a then return x:cast "f32" end
  return assert(act.quantize_dequantize(x:cast "f32", a, { scale = q.input_scale, global = q.input_global }))
end

--- expected(q, x [, bias f32]) -> y f32 as the processor has it, and the same of all magnitudes
function M.expected(q, x, bias)
  local w, xf = q:dequantize "f32", M.input(q, x)
  local y, most = nb.tensor("f32", { x:size(1), q.n }), nb.tensor("f32", { x:size(1), q.n })
  compute.gemm(y, xf, w, bias)
  compute.gemm(most, xf:map(math.abs), w:map(math.abs), bias and bias:map(math.abs))
  return y, most
end

local units = { f16 = 2 ^ -11, bf16 = 2 ^ -8, f32 = 2 ^ -18 }

--- judged(y, want, most, dtype, roundings) -> "right", or by how many roundings of dtype, of the magnitudes, y is off
function M.judged(y, want, most, dtype, roundings)
  local worst = 0
  for i = 1, y:numel() do
    local a, b = y:get(i), want:get(i)
    local off = a ~= a and b ~= b and 0 or math.abs(a - b) / (most:get(i) * units[dtype] + 1e-30)
    if not (off <= roundings) then worst = math.max(worst, off == off and off or math.huge) end
  end
  return worst == 0 and "right" or ("off by %g of %s"):format(worst, dtype)
end

-- ---- experts ---------------------------------------------------------------------------------

local shards = { "w1", "w3", "w2" }

--- experts(scheme's name, {e =, h =, i =, changes =, apiece =, apart =, bias =}) -> o, with the modules e.w1 … of random experts
-- apiece: each has numbers of its own for its input, and for the whole of its weight; apart: so do gate and up.
function M.experts(name, o)
  for e = 0, o.e - 1 do
    for at, shard in ipairs(shards) do
      local n, k = shard == "w2" and o.h or o.i, shard == "w2" and o.i or o.h
      local q = M.weight(name, n, k, o.changes)
      local own = 1 + (o.apiece and 0.3 * e or 0) + (o.apart and 0.2 * at or 0)
      q.input_scale, q.input_global = M.number((o.scale or 0.01) * own), M.number((o.global or 300) * own)
      if q.global then q.global = M.number(q.global:get(1) * own) end
      if q.global and shard == "w3" and not o.apart then q.global = M.modules[e .. "w1"].global end
      M.modules[e .. shard], o.scheme = q, q.scheme
      M.biases[e .. shard .. ".bias"] = o.bias and M.values("f16", { n }) or nil
    end
  end
  return o
end

--- experts_layer(o, options of the layer) -> method, layer | nil, msg: of marlin_float_moe_cuda or marlin_a8_moe_cuda, processed
function M.experts_layer(o, more)
  local name = o.scheme.type == "int" and "marlin_a8_moe_cuda" or "marlin_float_moe_cuda"
  local method = assert(require("nibble.methods." .. name).new({ scheme = o.scheme, format = "any" }, { on = "cuda" }))
  local described = { name = "l", kind = "moe", dtype = "f16", experts = o.e, hidden = o.h, intermediate = o.i, top = 2, disable_inplace = true }
  for key, value in pairs(more or {}) do described[key] = value end
  local L = layer.new(described)
  local ok, msg = method:create(L)
  if ok then ok, msg = method:read(L, M.checkpoint, function(e, shard) return e .. shard end) end
  if ok then ok, msg = method:process(L) end
  if not ok then return nil, msg end
  return method, L
end

--- experts_expected(o, x, weights, ids) -> y f32: the processor's, an expert at a time
function M.experts_expected(o, x, weights, ids)
  local function product(e, shard, rows)
    local bias = M.biases[e .. shard .. ".bias"]
    return (M.expected(M.modules[e .. shard], rows, bias and bias:cast "f32"))
  end
  return require("nibble.moe").forward(x:cast "f32", { ids = ids, weights = weights, experts = o.e,
    w13 = function(e, rows) return product(e, "w1", rows), product(e, "w3", rows) end, w2 = function(e, rows) return product(e, "w2", rows) end })
end

--- experts_judged(o, routed [, roundings]) -> "right", or by how many roundings of the largest value the device's y is off the
-- processor's, over `roundings`: of experts o (experts(), dtype), given here and on the device. routed: of spec.support.experts.
function M.experts_judged(o, routed, roundings)
  local m, L = M.experts_layer(o, { dtype = o.dtype })
  if not m then return L end
  local x = M.values(o.dtype or "f16", { 5, o.h }, 2)
  local weights, ids = routed(5, 2, o.e)
  local y, want = assert(m:apply(L, x, weights, ids)), M.experts_expected(o, x, weights, ids)
  local there = assert(m:apply(L, x:to "cuda", weights:to "cuda", ids:to "cuda"))
  if not there:to("cpu"):equal(y) or there:where() ~= "cuda:0" or y:type() ~= x:type() then return "another y where x lies there" end
  local off = nb.compare(want, y:cast "f32").max_abs / want:stats().absmax / units[o.dtype or "f16"] / roundings
  return off <= 1 and "right" or ("off by %g"):format(off)
end

--- experts_summed(o, tp, ep, support, roundings) -> "right", or how far the sum of ranks and expert maps (tp by ep of them) is off
-- the whole's y, over so many roundings of f16
function M.experts_summed(o, tp, ep, support, roundings)
  local x = M.values("f16", { 5, o.h }, 2)
  local weights, ids = support.routed(5, 2, o.e)
  local function all(by_tp, by_ep)
    return support.over_ranks(by_tp, by_ep, function(ranks)
      local m, L = M.experts_layer(o, { tp = ranks.tp, rank = ranks.rank, ep = ranks.ep, ep_rank = ranks.ep_rank })
      assert(m, L)
      return (assert(m:apply(L, x, weights, ids)):cast "f32")
    end)
  end
  local whole, parts = all(1, 1), all(tp, ep)
  local off = nb.compare(whole, parts).max_abs / whole:stats().absmax / (units.f16 * roundings)
  return off <= 1 and "right" or tostring(off)
end

--- experts_products(o, routed) -> how many products apply takes; whether a CUDA graph of it gives the same y, having waited for
-- nothing
function M.experts_products(o, routed)
  local m, L = M.experts_layer(o)
  assert(m, L)
  local weights, ids = routed(5, 2, o.e)
  local x, w, i = M.values("f16", { 5, o.h }, 2):to "cuda", weights:to "cuda", ids:to "cuda"
  local plain, moe = assert(m:apply(L, x, w, i)):to "cpu", require "nibble.cuda.experts"
  local g, y = assert(nb.cuda.graph(function() return assert(m:apply(L, x, w, i)) end))
  g()
  local products, gemm = 0, moe.gemm
  moe.gemm = function(...)
    products = products + 1
    return gemm(...)
  end
  assert(m:apply(L, x, w, i))
  moe.gemm = gemm
  return products, y:to("cpu"):equal(plain)
end

return M

-- AWQ checkpoints in memory: random layers with their tensors as files hold them, and
-- their weights in float32.
local nb = require "nibble"
local quantized = require "nibble.quantized"

local M = {}

function M.each(t, f)
  for i = 1, t:numel() do t:set(i, f(i)) end
  return t
end

function M.codes(n, k, bits)
  return M.each(nb.tensor("u8", { n, k }), function() return math.random(0, 2 ^ bits - 1) end)
end

--- powers(dtype, shape): powers of two, products with which are exact.
function M.powers(dtype, shape)
  return M.each(nb.tensor(dtype, shape), function() return 2 ^ -math.random(0, 4) end)
end

function M.floats(dtype, shape, from, to)
  return M.each(nb.tensor(dtype, shape), function() return from + math.random() * (to - from) end)
end

--- whole(shape, dtype): whole numbers from -4 to 4.
function M.whole(shape, dtype)
  return M.each(nb.tensor(dtype or "f32", shape), function() return math.random(-4, 4) end)
end

--- matrix{n=, k=, group=, bits=4, dtype="bf16", symmetric=false, scales=powers} -> {q = Quantized, w = f32 [n,k],
-- qweight, qzeros, scales} as an AutoAWQ file has them.
function M.matrix(o)
  local bits, g = o.bits or 4, o.group == -1 and o.k or o.group
  local q = quantized.wrap {
    scheme = { type = "int", bits = bits, symmetric = o.symmetric == true, strategy = "group", group = o.group },
    codes = M.codes(o.n, o.k, bits), scales = (o.scales or M.powers)(o.dtype or "bf16", { o.n, o.k / g }, 0.01, 0.1),
    zeros = not o.symmetric and M.codes(o.n, o.k / g, bits) or nil,
  }
  local zeros = q.zeros or nb.tensor("u8", { o.n, o.k / g }):fill(2 ^ (bits - 1))
  return { q = q, w = q:dequantize "f32", scales = nb.layout.transpose(q.scales),
           qweight = nb.layout.awq.pack(q.codes, bits), qzeros = nb.layout.awq.pack_zeros(zeros, bits) }
end

--- product(x, w [, bias]) -> f32 [m,n]: the float reference.
function M.product(x, w, bias)
  return nb.compute.gemm(nb.tensor("f32", { x:size(1), w:size(1) }), x:cast "f32", w, bias and bias:cast "f32")
end

--- columns(t, from, to) -> those columns of a matrix (1-based).
function M.columns(t, from, to)
  local out = nb.tensor(t:type(), { t:size(1), to - from + 1 })
  require("nibble.ffi").C.nb_tensor_copy_block(out, t, 1, 0, from - 1, to - from + 1)
  return out
end

return M

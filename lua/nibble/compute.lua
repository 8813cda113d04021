-- compute: the forward pass's operations as Lua calls. Each mirrors its C function:
-- outputs first, activations float32 [m, features], weights f32, bf16 or f16 [n, k],
-- m = sequences × length rows. Wrong shapes are errors at the caller.
-- All of it also takes tensors on one device and works there, where activations may be bf16 or f16 too (cuda/nibble_cuda.h);
-- what is made lies there as well. What fails there is an error.
local ffi = require "ffi"
local nffi = require "nibble.ffi"
local tensor = require "nibble.tensor"
local dispatch = require "nibble.dispatch"
local C, must, call = nffi.C, nffi.must, dispatch.call

local M = {}

--- gemm(y, x, w [, bias]) -> y: y[m,n] = x[m,k] w[n,k]ᵀ + bias[n], float32 accumulation.
function M.gemm(y, x, w, bias)
  must(call("gemm", y, x, w, bias))
  return y
end

--- rmsnorm(y, x, weight, eps) -> y: weight·x/sqrt(mean x² + eps) over each run of #weight values; y may be x.
function M.rmsnorm(y, x, weight, eps)
  must(call("rmsnorm", y, x, weight, eps))
  return y
end

--- rope(x, cosines, sines, head_dim, length) -> x: turns the heads of each row in place;
-- row r (0-based) stands at position r % length. Tables: f32 [positions, head_dim/2].
function M.rope(x, cosines, sines, head_dim, length)
  must(call("rope", x, cosines, sines, head_dim, length))
  return x
end

--- attention(out, q, k, v, {heads=, kv_heads=, length=, sliding=nil, scale=nil}) -> out
-- Causal, over m/length separate sequences. sliding: keys a query sees, itself
-- included (nil or 0: all). scale: default 1/sqrt(head size).
function M.attention(out, q, k, v, o)
  local scale = o.scale or 1 / math.sqrt(q:size(2) / o.heads)
  must(call("attention", out, q, k, v, o.heads, o.kv_heads, o.length, o.sliding or 0, scale))
  return out
end

--- add(y, x) -> y: y += x.
function M.add(y, x)
  must(call("add", y, x))
  return y
end

--- copy(y, x) -> y: the bytes of x.
function M.copy(y, x)
  must(dispatch.on_device(y, x) and dispatch.there(C.nb_device_copy, y, x) or C.nb_tensor_copy(y, x))
  return y
end

--- zero(y) -> y: all zeros.
function M.zero(y)
  if tensor.on_device(y) then must(C.nb_device_zero(y.t)) else ffi.fill(y.data, y:bytes()) end
  return y
end

--- swiglu(gate, up) -> gate: gate = silu(gate)·up.
function M.swiglu(gate, up)
  must(call("swiglu", gate, up))
  return gate
end

--- gather(out, table, ids) -> out: out[i] = table[ids[i]], widened to f32; ids i32, 0-based.
function M.gather(out, rows, ids)
  must(call("gather", out, rows, ids))
  return out
end

local function rounding(dtype) return tensor.dtype_id(dtype or "f32") end

--- scatter_add(y, x, ids [, weights [, dtype]]) -> y: y[ids[i]] += weights[i]·x[i], each product rounded to
-- dtype ("f32"); ids don't descend, equal ones are added in order. weights nil: 1.
function M.scatter_add(y, x, ids, weights, dtype)
  must(call("scatter_add", y, x, ids, weights, rounding(dtype)))
  return y
end

--- scale_rows(x, weights [, dtype]) -> x: x[i] *= weights[i], rounded to dtype ("f32").
function M.scale_rows(x, weights, dtype)
  must(call("scale_rows", x, weights, rounding(dtype)))
  return x
end

--- widen(t) -> f32 tensor of t's shape, from f32, bf16 or f16; exact.
function M.widen(t)
  if tensor.on_device(t) then return assert(t:cast "f32") end
  local out = tensor.new("f32", { 1, t:numel() })
  must(call("gather", out, t:reshape { 1, t:numel() }, tensor.new("i32", { 1 })))
  return out:reshape(t:size())
end

-- A tensor for each dtype, of as many elements as there are targets, where x lies.
local function outputs(x, targets, ...)
  local out = { ... }
  for i, dtype in ipairs(out) do out[i] = dispatch.new(x, dtype, { targets:numel() }) end
  return unpack(out)
end

--- score(x, head, targets) -> nll f64 [m], top i32 [m]
-- x: last hidden states; head [vocab, k]; targets i32 [m], negative = not scored (0).
-- Logits exist block by block only; sums are in double.
function M.score(x, head, targets)
  local nll, top = outputs(x, targets, "f64", "i32")
  must(call("logits_score", nll, top, x, head, targets))
  return nll, top
end

--- compare(x_p, head_p, x_q, head_q, targets) -> kl, nll_p, nll_q f64 [m], top_p, top_q i32 [m]
-- kl = KL(p ‖ q) over the vocabulary, in nats, in double.
function M.compare(x_p, head_p, x_q, head_q, targets)
  local kl, nll_p, nll_q, top_p, top_q = outputs(x_p, targets, "f64", "f64", "f64", "i32", "i32")
  must(call("logits_compare", kl, nll_p, nll_q, top_p, top_q, x_p, head_p, x_q, head_q, targets))
  return kl, nll_p, nll_q, top_p, top_q
end

--- nonfinite(t) -> how many values of t are infinite or NaN.
function M.nonfinite(t) return must(call("count_nonfinite", t)) end

--- blas() -> the name of the matrix library in use, or why there is none.
function M.blas() return ffi.string(C.nb_blas_name()) end

--- peak_flops([threads]) -> multiply-adds a second here, times two: measured in about 50 ms.
function M.peak_flops(threads) return C.nb_peak_flops(threads or C.nb_threads()) end

return M

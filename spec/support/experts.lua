-- What the specs of quantized experts share: codes, the weights they stand for, checkpoints of experts and their
-- loading, inputs, and the sum over experts in float32 that every method's result is compared with.
local nb = require "nibble"
local layer = require "nibble.methods.layer"
local nffi = require "nibble.ffi"

local M = {}

-- u8 [n,k], every value of `bits` bits.
function M.codes(n, k, bits, seed)
  local t = nb.tensor("u8", { n, k })
  local p, x, most = t:ptr(), seed * 7919 + 1, 2 ^ bits
  for i = 0, n * k - 1 do
    x = (x * 69069 + 12345) % 4294967296
    p[i] = math.floor(x / 65536) % most
  end
  return t
end

-- f32 [n,k] = (code - 2^(bits-1)) * scale; scales [n,G], g_idx i32 [k] or nil.
function M.weight(codes, scales, bits, g_idx)
  local out = nb.tensor("f32", codes:size())
  nffi.must(nffi.C.nb_dequantize(out, codes, scales, nil, g_idx, bits))
  return out
end

-- f32 [rows, columns], -span .. span.
function M.floats(rows, columns, seed, span)
  local t = nb.tensor("f32", { rows, columns })
  local p, x = t:ptr(), seed * 104729 + 7
  for i = 0, rows * columns - 1 do
    x = (x * 69069 + 12345) % 4294967296
    p[i] = (x / 2147483648 - 1) * (span or 1)
  end
  return t
end

M.size = 128 -- hidden and intermediate, where o has none
M.count = 3 -- experts

--- experts(o, projection) -> array of {file = {w1 = …}, float = {w1 = …}}: a checkpoint's experts and what they stand for
-- o: h, i, e: sizes; gated = false: without w3. projection(n, k, seed, w, e) -> the file's tensors, f32 [n,k].
function M.experts(o, projection)
  local h, i, out = o.h or M.size, o.i or M.size, {}
  for e = 1, o.e or M.count do
    local x = { file = {}, float = {} }
    for j, w in ipairs(o.gated == false and { "w1", "w2" } or { "w1", "w2", "w3" }) do
      x.file[w], x.float[w] = projection(w == "w2" and h or i, w == "w2" and i or h, e * 10 + j, w, e)
    end
    out[e] = x
  end
  return out
end

--- layer(o [, more]) -> a MoE layer of those sizes; o: also dtype, gated, activation, bias; more: its other options.
function M.layer(o, more)
  local options = { name = "mlp.experts", kind = "moe", dtype = o.dtype or "bf16", experts = o.e or M.count,
    hidden = o.h or M.size, intermediate = o.i or M.size, top = 2, gated = o.gated, activation = o.activation, bias = o.bias }
  for key, value in pairs(more or {}) do options[key] = value end
  return layer.new(options)
end

--- load(method, L, experts): every projection of M.experts.
function M.load(method, L, experts)
  for e, x in ipairs(experts) do
    for _, w in ipairs { "w1", "w2", "w3" } do
      if x.file[w] then method:load(L, e - 1, w, x.file[w]) end
    end
  end
end

-- The float weights of M.experts, as M.reference takes them.
function M.weights(experts)
  local out = {}
  for i, x in ipairs(experts) do out[i] = x.float end
  return out
end

local function silu(g) return g / (1 + math.exp(-g)) end

-- One row x [1,k] through w [n,k] in doubles, from the definition.
local function through(w, x)
  local n, k = w:size(1), w:size(2)
  local out, p, q = nb.tensor("f32", { 1, n }), w:ptr(), x:ptr()
  for r = 0, n - 1 do
    local sum = 0
    for c = 0, k - 1 do sum = sum + p[r * k + c] * q[c] end
    out:ptr()[r] = sum
  end
  return out
end

-- f32 [T,H]: every token through its experts, y[t] = Σ weight · W2 act(W1 x, W3 x) (FWD-01); experts: {{w1=, w3=, w2=} of
-- f32}, by global id. o: act(g, u); quantize(row, "w13" or "w2", e): what the kernel sees of a row; bias(e, w) -> f32 or nil.
function M.reference(x, weights, ids, experts, o)
  o = o or {}
  local y, h, top = nb.tensor("f32", x:size()), x:size(2), ids:size(2)
  local function product(e, w, row, which)
    local out = through(experts[e][w], o.quantize and o.quantize(row, which, e) or row)
    local bias = o.bias and o.bias(e, w)
    return bias and nb.compute.add(out, bias:reshape(out:size())) or out
  end
  local act = o.act or function(g, u) return silu(g) * u end
  for t = 1, x:size(1) do
    for j = 1, top do
      local e, weight = ids:get { t, j } + 1, weights:get { t, j }
      local row = x:rows(t, t)
      local mid, up = product(e, "w1", row, "w13"), experts[e].w3 and product(e, "w3", row, "w13")
      for i = 1, mid:numel() do mid:set(i, act(mid:get(i), up and up:get(i))) end
      local out = product(e, "w2", mid, "w2")
      for c = 1, h do y:set({ t, c }, y:get { t, c } + weight * out:get(c)) end
    end
  end
  return y
end

-- weights f32 and ids i32 [tokens, top]: every expert is used.
function M.routed(tokens, top, experts)
  local weights, ids = nb.tensor("f32", { tokens, top }), nb.tensor("i32", { tokens, top })
  for t = 0, tokens - 1 do
    for j = 0, top - 1 do
      ids:set(t * top + j + 1, (t * 3 + j) % experts)
      weights:set(t * top + j + 1, (1 + (t + j) % 3) / 4)
    end
  end
  return weights, ids
end

-- The largest difference, as a share of the reference's largest value.
function M.error(want, got)
  return nb.compare(want, got:type() == "f32" and got or got:cast "f32").max_abs / want:stats().absmax
end

-- Sum of what every rank gives: run(o) for each tensor- and expert-parallel rank.
function M.over_ranks(tp, ep, run)
  local sum
  for rank = 0, tp - 1 do
    for ep_rank = 0, ep - 1 do
      local y = run { tp = tp, rank = rank, ep = ep, ep_rank = ep_rank }
      sum = sum and nb.compute.add(sum, y) or y
    end
  end
  return sum
end

return M

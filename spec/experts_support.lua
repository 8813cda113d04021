-- What the specs of quantized experts share: codes, the weights they stand for, inputs, and the sum over experts
-- in float32 that every method's result is compared with.
local nb = require "nibble"
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

local function silu(g) return g / (1 + math.exp(-g)) end

-- y[t,:] += weight * W2 act(W1 x, W3 x) in doubles, straight from the definition (FWD-01). One token, one expert.
local function add_expert(y, x, w1, w3, w2, weight, act)
  local h, i = w1:size(2), w1:size(1)
  local p1, p3, p2, mid = w1:ptr(), w3 and w3:ptr(), w2:ptr(), {}
  for r = 0, i - 1 do
    local g, u = 0, 0
    for c = 0, h - 1 do
      g = g + p1[r * h + c] * x[c]
      if p3 then u = u + p3[r * h + c] * x[c] end
    end
    mid[r] = act(g, u)
  end
  for r = 0, h - 1 do
    local sum = 0
    for c = 0, i - 1 do sum = sum + p2[r * i + c] * mid[c] end
    y[r] = y[r] + weight * sum
  end
end

-- f32 [T,H]: every token through its experts; experts: {{w1=, w3=, w2=} of f32}, by global id.
function M.reference(x, weights, ids, experts, act)
  local y = nb.tensor("f32", x:size())
  local h, top = x:size(2), ids:size(2)
  for t = 0, x:size(1) - 1 do
    for j = 0, top - 1 do
      local e = experts[ids:get(t * top + j + 1) + 1]
      add_expert(y:ptr() + t * h, x:ptr() + t * h, e.w1, e.w3, e.w2, weights:get(t * top + j + 1),
        act or function(g, u) return silu(g) * u end)
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

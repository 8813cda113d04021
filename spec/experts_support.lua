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

return M

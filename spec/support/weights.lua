-- weights: what quantizers trip over, as f32 tensors to be cast: values of many sizes, ties, groups of zeros of both
-- signs, subnormal and huge numbers.
local nb = require "nibble"

local M = {}

-- From 0 to below 1, the same for the same seed.
local function random(seed)
  local state = seed
  return function()
    state = (state * 1103515245 + 12345) % 2147483648
    return state / 2147483648
  end
end

local fill = {}

function fill.sizes(next) return (next() - 0.5) * 2 ^ math.floor(next() * 12 - 6) end
-- Quotients halfway between two codes, in every format: the largest is a power of two times 448, 6, 7.5, 127 …
function fill.ties(next, at)
  local largest = ({ 448, 6, 7.5, 7, 127, 127.5, 1 })[math.floor(at / 8) % 7 + 1]
  local sign = next() < 0.5 and -1 or 1
  return at % 8 == 3 and largest * sign or math.floor(next() * largest * 16) / 16 * sign
end
function fill.zeros(next, at)
  if math.floor(at / 16) % 2 == 0 then return next() < 0.5 and 0 or -1 / math.huge end
  return next() < 0.3 and -1 / math.huge or next() - 0.5
end
function fill.tiny(next, _, least) return math.floor(next() * 40 - 20) * least end
function fill.huge(next, _, _, largest) return (next() * 2 - 1) * largest * (next() < 0.2 and 1 or 1e-30) end
function fill.positive(next) return next() * 3 end
function fill.negative(next, at) return at % 8 < 6 and -next() or -1e-6 * next() end
-- So small that f16 scales are subnormal numbers.
function fill.faint(next) return (next() - 0.9) * 2e-6 end
function fill.mixed(next) return (next() - 0.5) * 2 ^ math.floor(next() * 60 - 30) end

M.kinds = { "sizes", "ties", "zeros", "tiny", "huge", "positive", "negative", "mixed", "faint" }
local least = { f32 = 2 ^ -149, bf16 = 2 ^ -133, f16 = 2 ^ -24 }
local largest = { f32 = 3.4e38, bf16 = 3.38e38, f16 = 65504 }

--- make(kind, dtype, n, k, seed) -> tensor of dtype
function M.make(kind, dtype, n, k, seed)
  local t, next = nb.tensor("f32", { n, k }), random(seed)
  local p = t:ptr()
  for i = 0, n * k - 1 do
    local x = fill[kind](next, i, least[dtype], largest[dtype])
    p[i] = math.max(-largest[dtype], math.min(largest[dtype], x))
  end
  return dtype == "f32" and t or t:cast(dtype)
end

--- set(t, r, c, x): element of row r and column c, counted from 0; x may be NaN.
function M.set(t, r, c, x) t:set(r * t:size(2) + c + 1, x) end


return M

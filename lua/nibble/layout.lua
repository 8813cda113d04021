-- layout: how codes, scales and zero-points lie in words, on disk and for the
-- kernels. Canonical codes are u8 [n,k], one code a byte, unsigned; the functions
-- below turn them into a format's words and back, bit for bit.
--
-- Whole tensors by default; with `words` and `row` a tile of rows of a whole
-- tensor, so that a conversion can stream.
local ffi = require "ffi"
local nffi = require "nibble.ffi"
local tensor = require "nibble.tensor"
local C = nffi.C

local M = {}

local check = nffi.check

local function codes_shape(codes, what)
  if not ffi.istype(tensor.type, codes) or codes.ndim ~= 2 or codes:type() ~= "u8" then
    error(("%s: expected codes as a u8 matrix, found %s"):format(what, ffi.istype(tensor.type, codes)
      and codes:type() .. " of " .. codes.ndim .. " dimensions" or type(codes)), 3)
  end
  return codes:size(1), codes:size(2)
end

-- A matrix of any dtype; C looks closer.
local function expect_matrix(t, what)
  if not ffi.istype(tensor.type, t) or t.ndim ~= 2 then
    error(("%s: expected a matrix, found %s"):format(what, ffi.istype(tensor.type, t)
      and ("a tensor of %d dimensions"):format(t.ndim) or type(t)), 3)
  end
end

local function check_bits(bits, what)
  if type(bits) ~= "number" or bits < 1 or bits > 8 or bits % 1 ~= 0 then
    error(("%s: bits must be a whole number from 1 to 8, found %s"):format(what, tostring(bits)), 3)
  end
end

local function width(count, bits) return math.ceil(count * bits / 32) end

-- pack / unpack of one packing. shape(n, k, bits) is its words' shape; rows(words,
-- bits) the weight's n by the words' shape.
local function packing(name, dtype, shape, rows)
  local c_pack, c_unpack = C["nb_" .. name .. "_pack"], C["nb_" .. name .. "_unpack"]
  local P = {}
  --- layout.P.pack(codes, bits [, words, row]) -> words, for each packing P = ct, gptq, awq, awq_gemv, awq_gemv_fast
  -- codes: u8 [n,k], unsigned, at most 2^bits-1 (the first one above is named). Without `words` a new tensor:
  --   ct             i32 [n, ceil(k*bits/32)]  dense along k, 1 to 8 bits (FORMATS 4)
  --   gptq           i32 [ceil(k*bits/32), n]  dense along k; 2, 3, 4, 8 bits (FORMATS 3, MRL-10)
  --   awq            i32 [k, n*bits/32]        interleaved columns; 4 or 8 bits (FORMATS 2, MRL-12)
  --   awq_gemv       i32 [n, k/8]              plain nibbles along k
  --   awq_gemv_fast  i16 [n/4, k]              four rows x 64 k interleaved
  -- With `words`, the whole tensor of a file: codes are its rows from `row` on (1-based), the rest stays.
  function P.pack(codes, bits, words, row)
    local n, k = codes_shape(codes, name .. " pack")
    check_bits(bits, name .. " pack")
    words = words or tensor.new(dtype, shape(n, k, bits))
    return check(c_pack(words, codes, bits, (row or 1) - 1), words)
  end
  --- layout.P.unpack(words, bits, k | codes [, row]) -> codes u8 [n,k]: the inverse of layout.P.pack
  -- All rows when k is a number, else the tile `codes` from `row` on.
  function P.unpack(words, bits, codes, row)
    check_bits(bits, name .. " unpack")
    expect_matrix(words, name .. " unpack")
    if type(codes) == "number" then codes = tensor.new("u8", { rows(words, bits), codes }) end
    codes_shape(codes, name .. " unpack")
    return check(c_unpack(codes, words, bits, (row or 1) - 1), codes)
  end
  return P
end

-- Legacy words, floor(32/bits) codes in each, are told by their width.
M.ct = packing("ct", "i32", function(n, k, bits) return { n, width(k, bits) } end,
  function(words) return words:size(1) end)

M.gptq = packing("gptq", "i32", function(n, k, bits) return { width(k, bits), n } end,
  function(words) return words:size(2) end)

M.awq = packing("awq", "i32", function(n, k, bits)
  if bits ~= 4 and bits ~= 8 then error(("awq pack: AWQ packs 4 or 8 bits, found %d"):format(bits), 3) end
  local pf = 32 / bits
  if n % pf ~= 0 then error(("awq pack: n must be a multiple of %d, found %d"):format(pf, n), 3) end
  return { k, n / pf }
end, function(words, bits) return words:size(2) * 32 / bits end)

M.awq_gemv = packing("awq_gemv", "i32", function(n, k) return { n, math.ceil(k / 8) } end,
  function(words) return words:size(1) end)

M.awq_gemv_fast = packing("awq_gemv_fast", "i16", function(n, k) return { n / 4, k } end,
  function(words) return words:size(1) * 4 end)

--- layout.ct.pack_zeros(zeros, bits [, words, row, n]) -> words i32 [ceil(n*bits/32), G]
-- zeros: u8 [n,G]. A tile of a whole `words` needs n, all rows of the weight, because the words' height
-- doesn't tell it; it begins and ends on a multiple of 8.
function M.ct.pack_zeros(zeros, bits, words, row, n)
  local r, groups = codes_shape(zeros, "ct pack_zeros")
  check_bits(bits, "ct pack_zeros")
  n = n or r
  words = words or tensor.new("i32", { width(n, bits), groups })
  return check(C.nb_ct_pack_zeros(words, zeros, bits, (row or 1) - 1, n), words)
end

--- layout.ct.unpack_zeros(words, bits, n | zeros [, row, n]) -> zeros u8 [n,G]
function M.ct.unpack_zeros(words, bits, zeros, row, n)
  check_bits(bits, "ct unpack_zeros")
  expect_matrix(words, "ct unpack_zeros")
  if type(zeros) == "number" then n, zeros = zeros, tensor.new("u8", { zeros, words:size(2) }) end
  return check(C.nb_ct_unpack_zeros(zeros, words, bits, (row or 1) - 1, n or zeros:size(1)), zeros)
end

--- layout.gptq.pack_zeros(zeros, bits, minus_one [, words, row, n]) -> words i32 [G, ceil(n*bits/32)]
-- zeros: u8 [n,G], true zero-points. minus_one: true for v1 files, which hold zero-1 mod 2^bits, field by
-- field; false for v2. (FORMATS 3)
function M.gptq.pack_zeros(zeros, bits, minus_one, words, row, n)
  local r, groups = codes_shape(zeros, "gptq pack_zeros")
  check_bits(bits, "gptq pack_zeros")
  n = n or r
  words = words or tensor.new("i32", { groups, width(n, bits) })
  return check(C.nb_gptq_pack_zeros(words, zeros, bits, (row or 1) - 1, n, minus_one and 1 or 0), words)
end

--- layout.gptq.unpack_zeros(words, bits, minus_one, n | zeros [, row, n]) -> zeros u8 [n,G]
function M.gptq.unpack_zeros(words, bits, minus_one, zeros, row, n)
  check_bits(bits, "gptq unpack_zeros")
  expect_matrix(words, "gptq unpack_zeros")
  if type(zeros) == "number" then n, zeros = zeros, tensor.new("u8", { zeros, words:size(1) }) end
  return check(C.nb_gptq_unpack_zeros(zeros, words, bits, (row or 1) - 1, n or zeros:size(1),
    minus_one and 1 or 0), zeros)
end

-- AWQ's zero-points lie as its codes do, with G in k's place: words i32 [G, n/pf], zeros u8 [n,G].
M.awq.pack_zeros, M.awq.unpack_zeros = M.awq.pack, M.awq.unpack

--- layout.awq_gemv.width(k, group) -> words a row of zero-points has in AutoAWQ's files: ceil(k/group/8) up to
-- a multiple of 1, 2 or 4 for groups of 128, 64 or 32, as its kernels read. Scales have 8 times as many columns.
function M.awq_gemv.width(k, group)
  local unit = group >= 128 and 1 or group == 64 and 2 or group == 32 and 4
  if not unit then error(("awq_gemv: groups of 32, 64, 128 or more, found %d"):format(group), 2) end
  return math.ceil(math.ceil(math.floor(k / group) / 8) / unit) * unit
end

--- layout.awq_gemv.pack_zeros(zeros, 4, words [, row]) -> words i32 [n, w]
-- w: the file's padded width (8*w >= G); the padding becomes 0.
function M.awq_gemv.pack_zeros(zeros, bits, words, row)
  return check(C.nb_awq_gemv_pack_zeros(words, zeros, bits, (row or 1) - 1), words)
end

-- Columns 1..cols of t [r,c], or t with zeros behind them.
local function columns(t, cols)
  expect_matrix(t, "awq_gemv scales")
  local out = tensor.new(t:type(), { t:size(1), cols })
  local element = tonumber(C.nb_dtype_bits(t.dtype)) / 8
  local from, to, have = ffi.cast("uint8_t *", t.data), ffi.cast("uint8_t *", out.data), t:size(2)
  for r = 0, t:size(1) - 1 do
    ffi.copy(to + r * cols * element, from + r * have * element, math.min(cols, have) * element)
  end
  return out
end

--- layout.awq_gemv.pad_scales(scales, w) -> [n, 8*w]: scales [n,G] with zeros behind them.
function M.awq_gemv.pad_scales(scales, w) return columns(scales, 8 * w) end

--- layout.awq_gemv.unpad_scales(scales, G) -> [n,G]: the inverse.
function M.awq_gemv.unpad_scales(scales, groups) return columns(scales, groups) end

--- layout.awq_gemv.unpack_zeros(words, bits, G | zeros [, row]) -> zeros u8 [n,G]
function M.awq_gemv.unpack_zeros(words, bits, zeros, row)
  expect_matrix(words, "awq_gemv unpack_zeros")
  if type(zeros) == "number" then zeros = tensor.new("u8", { words:size(1), zeros }) end
  return check(C.nb_awq_gemv_unpack_zeros(zeros, words, bits, (row or 1) - 1), zeros)
end

--- layout.awq_gemv_fast.pack_zeros(zeros, scales, qzeros [, row]) -> qzeros f16 [G',n] = -(scale*zero)
-- scales: the file's f16 [G',n]; zeros: u8 [r,G]; rows of padding are left as they are.
function M.awq_gemv_fast.pack_zeros(zeros, scales, qzeros, row)
  return check(C.nb_awq_gemv_fast_pack_zeros(qzeros, scales, zeros, (row or 1) - 1), qzeros)
end

--- layout.awq_gemv_fast.unpack_zeros(qzeros, scales, G | zeros [, row]) -> zeros u8 [n,G] | nil, msg, "einexact"
function M.awq_gemv_fast.unpack_zeros(qzeros, scales, zeros, row)
  expect_matrix(qzeros, "awq_gemv_fast unpack_zeros")
  if type(zeros) == "number" then zeros = tensor.new("u8", { qzeros:size(2), zeros }) end
  return check(C.nb_awq_gemv_fast_unpack_zeros(zeros, qzeros, scales, (row or 1) - 1), zeros)
end

M.pack = {}

local function even(count, bits, what)
  check_bits(bits, what)
  local pf = math.floor(32 / bits)
  if 32 % bits ~= 0 then error(("%s: bits must divide 32, found %d"):format(what, bits), 3) end
  if count % pf ~= 0 then error(("%s: %d is not a multiple of pf = %d codes a word"):format(what, count, pf), 3) end
  return pf
end

local function expect_words(words, rows, cols, what, k, n, pf)
  if words.ndim ~= 2 or words:size(1) ~= rows or words:size(2) ~= cols then
    error(("%s: expected words [%dx%d] for K=%d, N=%d, pf=%d, found [%s]"):format(what, rows, cols, k, n, pf,
      table.concat(words:size(), "x")), 3)
  end
end

--- layout.pack.rows(codes_kn, bits) -> words i32 [K/pf, N]
-- Word (r,n), slot u (from the least significant bits) = code (pf*r+u, n). codes_kn: u8 [K,N]. (MRL-10)
function M.pack.rows(codes, bits)
  local k, n = codes_shape(codes, "pack.rows")
  local pf = even(k, bits, "pack.rows")
  local words = tensor.new("i32", { k / pf, n })
  return check(C.nb_bits_pack(words, codes, bits, 0), words)
end

--- layout.pack.unpack_rows(words, bits, K, N) -> codes u8 [K,N]: the inverse of rows.
function M.pack.unpack_rows(words, bits, k, n)
  local pf = even(k, bits, "pack.unpack_rows")
  expect_words(words, k / pf, n, "pack.unpack_rows", k, n, pf)
  local codes = tensor.new("u8", { k, n })
  return check(C.nb_bits_unpack(codes, words, bits, 0), codes)
end

--- layout.pack.cols(codes_kn, bits) -> words i32 [K, N/pf]
-- Word (k,c), slot u = code (k, pf*c+u). codes_kn: u8 [K,N]. (MRL-11)
function M.pack.cols(codes, bits)
  local k, n = codes_shape(codes, "pack.cols")
  local pf = even(n, bits, "pack.cols")
  local words = tensor.new("i32", { k, n / pf })
  return check(C.nb_bits_pack(words, codes, bits, 1), words)
end

--- layout.pack.unpack_cols(words, bits, K, N) -> codes u8 [K,N]: the inverse of cols. (MRL-11)
function M.pack.unpack_cols(words, bits, k, n)
  local pf = even(n, bits, "pack.unpack_cols")
  expect_words(words, k, n / pf, "pack.unpack_cols", k, n, pf)
  local codes = tensor.new("u8", { k, n })
  return check(C.nb_bits_unpack(codes, words, bits, 1), codes)
end

--- layout.pack.dense(codes, bits, axis) -> words
-- Dense streams of any 1 to 8 bits down the columns (axis 1) or along the rows (axis 2) of codes u8 [a,b].
function M.pack.dense(codes, bits, axis)
  local a, b = codes_shape(codes, "pack.dense")
  check_bits(bits, "pack.dense")
  local words = tensor.new("i32", axis == 1 and { width(a, bits), b } or { a, width(b, bits) })
  return check(C.nb_bits_pack(words, codes, bits, axis - 1), words)
end

--- layout.transpose(t) -> t transposed: [a,b] -> [b,a], or each expert of [e,a,b]; elements of 8 to 64 bits.
function M.transpose(t)
  local experts = ffi.istype(tensor.type, t) and t.ndim == 3
  if not experts then expect_matrix(t, "transpose") end
  local out = tensor.new(t:type(), experts and { t:size(1), t:size(3), t:size(2) } or { t:size(2), t:size(1) })
  return check(C.nb_transpose(out, t), out)
end

--- layout.awq_to_gptq(words, bits) -> words i32 [K/pf, N] from AWQ words [K, N/pf]
-- Lossless and bijective: the same codes in GPTQ's order; 4 or 8 bits. (INC-11)
function M.awq_to_gptq(words, bits)
  if bits == 4 and ffi.istype(tensor.type, words) and words.ndim == 2 then
    local out = tensor.new("i32", { math.ceil(words:size(1) / 8), 8 * words:size(2) })
    return check(C.nb_awq_to_gptq(out, words), out)
  end
  local codes = M.awq.unpack(words, bits, words:size(1))
  return M.gptq.pack(codes, bits)
end

--- layout.gptq_to_awq(words, bits, K) -> words i32 [K, N/pf] from GPTQ words [K/pf, N]
function M.gptq_to_awq(words, bits, k)
  if bits == 4 and ffi.istype(tensor.type, words) and words.ndim == 2 then
    local out = tensor.new("i32", { k, math.floor(words:size(2) / 8) })
    return check(C.nb_gptq_to_awq(out, words), out)
  end
  local codes = M.gptq.unpack(words, bits, k)
  return M.awq.pack(codes, bits)
end

-- A direct repack into new words of this shape.
local function direct(fn, words, what, rows, cols)
  if not ffi.istype(tensor.type, words) or words.ndim ~= 2 then
    error(what .. ": expected words as a matrix of i32", 3)
  end
  local out = tensor.new(words:type(), { rows(words), cols(words) })
  return check(fn(out, words), out)
end

--- layout.awq_to_ct(words) -> words i32 [N, ceil(K/8)] from AWQ 4-bit words [K, N/8]
-- Straight, at the speed of a copy; the same words as unpacking and packing. (FORMATS 10)
function M.awq_to_ct(words)
  return direct(C.nb_awq_to_ct, words, "awq_to_ct", function(w) return 8 * w:size(2) end,
    function(w) return math.ceil(w:size(1) / 8) end)
end

--- layout.ct_to_awq(words [, K]) -> words i32 [K, N/8]: the inverse. K: 8 for each word if not given.
function M.ct_to_awq(words, k)
  return direct(C.nb_ct_to_awq, words, "ct_to_awq", function(w) return k or 8 * w:size(2) end,
    function(w) return math.floor(w:size(1) / 8) end)
end

--- layout.gptq_to_ct(words) -> words i32 [N, ceil(K*bits/32)] from GPTQ words [ceil(K*bits/32), N]
-- Any bits: the words are the same ones, transposed. Only for a trivial g_idx. (FORMATS 10)
function M.gptq_to_ct(words)
  return direct(C.nb_gptq_to_ct, words, "gptq_to_ct", function(w) return w:size(2) end,
    function(w) return w:size(1) end)
end

--- layout.ct_to_gptq(words) -> words i32 [ceil(K*bits/32), N]: the inverse.
function M.ct_to_gptq(words)
  return direct(C.nb_ct_to_gptq, words, "ct_to_gptq", function(w) return w:size(2) end,
    function(w) return w:size(1) end)
end

-- layout.marlin, layout.experts: loaded when first used.
return setmetatable(M, {
  __index = function(t, key)
    if key == "marlin" or key == "experts" then
      t[key] = require("nibble.layout." .. key)
      return t[key]
    end
  end,
})

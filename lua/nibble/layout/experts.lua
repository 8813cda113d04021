-- layout.experts: stacks of expert weights [E,r,c] (or one matrix [r,c]) moved as a whole:
-- rows in another order, zeros around a matrix, columns repeated. One C call for all experts.
local ffi = require "ffi"
local nffi = require "nibble.ffi"
local tensor = require "nibble.tensor"
local C, check = nffi.C, nffi.check

local M = {}

-- The shape of t with its last two dimensions replaced.
local function shaped(t, rows, cols, what)
  if not ffi.istype(tensor.type, t) or (t.ndim ~= 2 and t.ndim ~= 3) then
    error(("%s: expected [r,c] or [e,r,c], found %s"):format(what,
      ffi.istype(tensor.type, t) and t.ndim .. " dimensions" or type(t)), 3)
  end
  local s = t:size()
  s[#s - 1], s[#s] = rows or s[#s - 1], cols or s[#s]
  return s
end

--- layout.experts.take_rows(t, index) -> [E,#index,c]: row i of every expert is its row index[i]; index: i32, from 0.
function M.take_rows(t, index)
  local out = tensor.new(t:type(), shaped(t, index:numel(), nil, "take_rows"))
  return check(C.nb_rows_take(out, t, index), out)
end

--- layout.experts.row_order(n, fn) -> i32 [n] of fn(i), both from 0: an index for take_rows.
function M.row_order(n, fn)
  local index = tensor.new("i32", { n })
  local p = index:ptr()
  for i = 0, n - 1 do p[i] = fn(i) end
  return index
end

--- layout.experts.inverse_order(index) -> i32 [n]: take_rows with it undoes take_rows with index, a permutation.
function M.inverse_order(index)
  local out = tensor.new("i32", index:size())
  local p, q = index:ptr(), out:ptr()
  for i = 0, index:numel() - 1 do q[p[i]] = i end
  return out
end

--- layout.experts.swap_halves(t) -> [w1; w3] along the rows becomes [w3; w1]; an odd number of rows is an error.
function M.swap_halves(t)
  local n = t:size(t.ndim - 1)
  if n % 2 ~= 0 then error(("swap_halves: expected an even number of rows, found %d"):format(n), 2) end
  return M.take_rows(t, M.row_order(n, function(i) return (i + n / 2) % n end))
end

--- layout.experts.shuffled_rows(n, gated) -> i32 [n]: FlashInfer's TensorRT-LLM kernels' order of an expert's rows
-- Row r of theirs is row index[r] of [w1; w3] (gated) or of w2; n is a multiple of 32.
--   shuffled for transposed products: in each 32, row 8*(i%4) + i/4 comes from row i of the next line's
--   gated: rows 2i and 2i+1 are row i of w3 and of w1
function M.shuffled_rows(n, gated)
  if n % 32 ~= 0 then error(("shuffled_rows: %d rows are not a multiple of 32"):format(n), 2) end
  local half = n / 2
  return M.row_order(n, function(r)
    local j = r % 32
    local at = r - j + j % 8 * 4 + math.floor(j / 8)
    if not gated then return at end
    return at % 2 == 0 and half + at / 2 or (at - 1) / 2
  end)
end

--- layout.experts.pad_rows(t, halves, rows) -> [E,halves*rows,c]: each of `halves` equal parts of the rows filled up to
-- `rows` with zeros.
function M.pad_rows(t, halves, rows)
  local e, n, c = t:size(1), t:size(2), t:size(3)
  return M.pad(t:reshape { e * halves, n / halves, c }, rows, c):reshape { e, halves * rows, c }
end

--- layout.experts.pad(t, rows, cols [, parts]) -> [E,rows,cols] with zeros below and on the right; t itself when
-- nothing is missing. parts: that many equal parts of the columns (gate and up) are padded each for itself. (MRL-08)
function M.pad(t, rows, cols, parts)
  local shape = shaped(t, rows, cols, "pad")
  if t:size(t.ndim - 1) == rows and t:size(t.ndim) == cols then return t end
  local out = tensor.new(t:type(), shape)
  return check(C.nb_matrix_pad(out, t, parts or 1), out)
end

--- layout.experts.flip_int4(words) -> words i32, changed in place: codes of 4 bits that are biased by 8 become two's
-- complement, and the other way: (q - 8) & 15 flips the top bit.
function M.flip_int4(words) return check(C.nb_int4_flip(words), words) end

--- layout.experts.repeat_columns(t, widths, cols) -> [E,r,cols]: column i of t widths[i] times, cut at cols.
function M.repeat_columns(t, widths, cols)
  local out = tensor.new(t:type(), shaped(t, nil, cols, "repeat_columns"))
  if #widths ~= t:size(t.ndim) then
    error(("repeat_columns: %d widths for %d columns"):format(#widths, t:size(t.ndim)), 2)
  end
  return check(C.nb_columns_repeat(out, t, ffi.new("int64_t[?]", #widths, widths)), out)
end

return M

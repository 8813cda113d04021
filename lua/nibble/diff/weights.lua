-- diff.weights: one module's weight against another's, whatever form each is in, and plain tensors against each other.
--
-- Floats, float codes, and integer codes in compressed-tensors', GPTQ's and AWQ's words, go to C as they lie in the
-- files, with scales and zero-points read by their format (C.nb_weight_compare). Everything else is read in row tiles by its
-- format. A dequantized module is never in memory.
local ffi = require "ffi"
local nffi = require "nibble.ffi"
local formats = require "nibble.formats"
local quantized = require "nibble.quantized"
local schemes = require "nibble.scheme"
local tensor = require "nibble.tensor"
local C = nffi.C

local M = {}

local plain = { f32 = true, f16 = true, bf16 = true }

-- ---- a weight as C takes it: nb_weight, and the tensors that it borrows -------------

local function of_floats(t)
  local w = ffi.new "nb_weight"
  w.n, w.k, w.rows, w.columns, w.values = t:size(1), t:size(2), 1, 1, t
  return { w = w, held = t }
end

-- q: a Quantized, of all rows or a tile; words and packing: where its codes lie instead.
local function of_quantized(q, words, packing)
  local w, values = ffi.new "nb_weight", words or q.codes
  w.n, w.k, w.values, w.scales, w.packing = q.n, q.k, values, q.scales, packing or C.NB_PACKING_NONE
  w.rows, w.columns = schemes.block(q.scheme, q.n, q.k)
  if q.scheme.type == "int" then
    w.bits = q.scheme.bits
    if q.zeros then w.zeros = q.zeros end
    if q.g_idx then w.g_idx = q.g_idx end
  elseif q.factor then w.factor = q.factor:get(1)
  elseif q.global then w.global = q.global end
  return { w = w, held = { q, values, q.scales, q.zeros, q.g_idx, q.global } }
end

-- ---- reading ---------------------------------------------------------------------------

-- The tensor whose words C unpacks itself, and how they are packed; nil of every other form.
local function packed_words(rec)
  local s, tensors = rec.scheme, rec.tensors
  if rec.first then return nil end -- rows of a fused tensor
  if s.type == "float" then
    if s.bits == 8 then return tensors.weight and tensors.weight.dtype == "f8_e4m3" and "weight", C.NB_PACKING_NONE end
    local suffix = rec.format == "modelopt" and "weight" or "weight_packed"
    return tensors[suffix] and tensors[suffix].dtype == "u8" and suffix, C.NB_PACKING_FP4
  end
  local dense = math.ceil(rec.k * s.bits / 32)
  if rec.format == "compressed-tensors" and tensors.weight_packed and tensors.weight_packed.shape[2] == dense then
    return "weight_packed", C.NB_PACKING_CT
  elseif rec.format:find "^gptq" then return "qweight", C.NB_PACKING_GPTQ
  elseif rec.format == "awq" and (rec.version or "gemm") == "gemm" then return "qweight", C.NB_PACKING_AWQ
  end
end

local function drop_all(src)
  for _, t in pairs(src) do
    if t:bytes() >= 2 ^ 20 then t:drop() end
  end
end
nffi.interpreted(drop_all)

-- side: {rec, whole = nb_weight and what it borrows | nil, tile = function(a, b), step, done = function()}

local function float_side(rec, t)
  local matrix = t:reshape { rec.n, rec.k }
  return { rec = rec, whole = of_floats(matrix), step = 1, done = function() drop_all { t } end,
    tile = function(a, b) return of_floats(matrix:rows(a, b)) end }
end

local function quantized_side(ck, rec, pool)
  local f, msg, code = formats.get(rec.format)
  if not f then return nil, msg, code end
  local src
  src, msg, code = formats.source(ck, rec)
  if not src then return nil, msg, code end
  local taken = {}
  local side = { rec = rec, step = f.row_step(rec), done = function()
    drop_all(src)
    for _, t in ipairs(taken) do pool.give(t) end
  end }
  local suffix, packing = packed_words(rec)
  if suffix then
    local q = quantized.params(rec.scheme, rec.n, rec.k, rec.dtype, function(...)
      taken[#taken + 1] = pool.take(...)
      return taken[#taken]
    end)
    local ok, why, kind = f.read(src, rec, 1, rec.n, q)
    if not ok then return nil, why, kind end
    side.whole = of_quantized(q, src[suffix], packing)
  end
  local storage
  function side.tile(a, b)
    if not storage or storage.n < b - a + 1 then storage = schemes.quantized(rec.scheme, b - a + 1, rec.k, rec.dtype) end
    local q = storage.n == b - a + 1 and storage or storage:top(b - a + 1)
    local ok, why, kind = f.read(src, rec, a, b, q)
    if not ok then return nil, why, kind end
    return of_quantized(q)
  end
  return side
end

local function side_of(ck, rec, pool)
  if rec.unreadable then return nil, rec.unreadable, "eunsupported" end
  if rec.scheme then return quantized_side(ck, rec, pool) end
  local t, msg, code = ck:tensor(rec.tensors.weight.name)
  if not t then return nil, msg, code end
  return float_side(rec, t)
end

-- ---- comparing ----------------------------------------------------------------------------

local fields = { "error2", "a2", "b2", "dot", "odd", "numel" }

local function new_sums()
  local sums = { max_abs = 0, worst_error2 = 0 }
  for _, field in ipairs(fields) do sums[field] = 0 end
  return sums
end

-- Rows from `row` on (1-based) into the sums.
local function add(sums, c, row, k)
  for _, field in ipairs(fields) do sums[field] = sums[field] + tonumber(c[field]) end
  if c.max_abs > sums.max_abs then
    local at = tonumber(c.max_at)
    sums.max_abs, sums.max_row, sums.max_column = c.max_abs, row + math.floor(at / k), at % k + 1
  end
  if c.worst_error2 > sums.worst_error2 then
    sums.worst_error2, sums.worst_row = c.worst_error2, row + tonumber(c.worst_row)
  end
end

local TILE = 2 ^ 20 -- elements

local function by_tiles(sums, a, b)
  local n, k, step = a.rec.n, a.rec.k, a.step
  while step % b.step ~= 0 do step = step + a.step end
  local rows = math.min(n, math.max(step, math.floor(TILE / k / step) * step))
  local c = ffi.new "nb_comparison"
  for first = 1, n, rows do
    nffi.stop_check()
    local last = math.min(n, first + rows - 1)
    local x, msg, code = a.tile(first, last)
    if not x then return nil, msg, code end
    local y
    y, msg, code = b.tile(first, last)
    if not y then return nil, msg, code end
    nffi.must(C.nb_weight_compare(c, x.w, y.w))
    add(sums, c, first, k)
  end
  return sums
end

--- compare(ck_a, rec_a, ck_b, rec_b [, pool]) -> sums | nil, msg, code
-- The weights of two modules of one shape: sums of squares {error2, a2, b2, dot}, numel, odd (pairs that differ by a
-- NaN or an infinity: in no sum), max_abs with max_row and max_column, worst_row with worst_error2; 1-based. pool: of
-- tensors (tensor.pool), which keeps memory from one module to the next.
function M.compare(ck_a, rec_a, ck_b, rec_b, pool)
  pool = pool or tensor.pool()
  local a, msg, code = side_of(ck_a, rec_a, pool)
  if not a then return nil, msg, code end
  local b
  b, msg, code = side_of(ck_b, rec_b, pool)
  if not b then return nil, msg, code end
  local sums = new_sums()
  if a.whole and b.whole then
    local c = ffi.new "nb_comparison"
    nffi.must(C.nb_weight_compare(c, a.whole.w, b.whole.w))
    add(sums, c, 1, rec_a.k)
  else
    sums, msg, code = by_tiles(sums, a, b)
  end
  a.done()
  b.done()
  return sums, msg, code
end

--- tensors(a, b) -> sums: two stored tensors of one shape, any real dtype; as compare(), rows of the last dimension.
function M.tensors(a, b)
  local k = a.ndim > 0 and a:size(a.ndim) or 1
  local sums, c, rows = new_sums(), ffi.new "nb_comparison", k > 0 and a:numel() / k or 0
  if plain[a:type()] and plain[b:type()] then
    local x, y = of_floats(a:reshape { rows, k }), of_floats(b:reshape { rows, k })
    nffi.must(C.nb_weight_compare(c, x.w, y.w))
  else
    nffi.must(C.nb_tensor_compare(c, nil, 0, a, b))
  end
  add(sums, c, 1, math.max(k, 1))
  drop_all { a, b }
  return sums
end

--- same_bytes(ck_a, rec_a, ck_b, rec_b) -> true when both modules have the same tensors, byte for byte, in one format.
function M.same_bytes(ck_a, rec_a, ck_b, rec_b)
  if rec_a.format ~= rec_b.format or (rec_a.scheme and not schemes.same(rec_a.scheme, rec_b.scheme)) then return false end
  if rec_a.first ~= rec_b.first or rec_a.step ~= rec_b.step then return false end -- another part of a fused tensor
  for suffix in pairs(rec_b.tensors) do
    if not rec_a.tensors[suffix] then return false end
  end
  for suffix, info in pairs(rec_a.tensors) do
    local other = rec_b.tensors[suffix]
    if not other or other.dtype ~= info.dtype then return false end
  end
  for suffix, info in pairs(rec_a.tensors) do
    local a, b = ck_a:tensor(info.name), ck_b:tensor(rec_b.tensors[suffix].name)
    if not (a and b and a:equal(b)) then return false end
  end
  return true
end
nffi.interpreted(M.same_bytes)

--- is_number(info) -> whether a stored tensor can be compared as numbers.
function M.is_number(info) return info.dtype ~= "c64" and tonumber(C.nb_dtype_bits(tensor.dtype_id(info.dtype))) >= 8 end

return M

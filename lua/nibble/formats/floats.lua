-- formats.floats: what the formats of float codes share: moving 8-bit codes and scales of any strategy in row
-- tiles, numbers that belong to a whole tensor, and checking what was read.
local nffi = require "nibble.ffi"
local scheme = require "nibble.scheme"
local tensor = require "nibble.tensor"
local text = require "nibble.text"
local common = require "nibble.formats.common"
local C, must = nffi.C, nffi.must
local fail = common.fail

local M = {}

--- matrix(module, info) -> true | nil, msg, code: the stored weight has two dimensions and something in them.
function M.matrix(module, info)
  if #info.shape == 2 and info.shape[1] > 0 and info.shape[2] > 0 then return true end
  return fail("eformat", "%s: weight is %s, expected two dimensions above 0", module, text.shape(info.shape))
end

--- row_step(rec) -> tiles begin at row 1 + a multiple of this: blocks are not cut.
function M.row_step(rec) return (scheme.block(rec.scheme, rec.n, rec.k)) end

--- same_rows(a, b) -> a, b: a layout's `rows` of tensors with a row for each of the weight's.
function M.same_rows(a, b) return a, b end

--- scale_rows(scheme) -> a layout's `rows` of the scales: nil where one serves all.
function M.scale_rows(s)
  if s.strategy == "tensor" then return nil end
  local height = scheme.block(s, 1, 1)
  return function(a, b) return (a - 1) / height + 1, math.ceil(b / height) end
end

--- scale_shapes(scheme, n, k) -> the shapes that the scales of a weight may have, the one to write first.
function M.scale_shapes(s, n, k)
  if s.strategy == "tensor" then return { { 1 }, {}, { 1, 1 } } end
  if s.strategy == "channel" then return { { n, 1 }, { n } } end
  return { { scheme.scale_rows(s, n), scheme.groups(s, k) } }
end

--- as_e8m0(t) -> t, whose bytes a file may call u8, as exponents.
function M.as_e8m0(t) return t:type() == "u8" and t:as("f8_e8m0", t:size()) or t end

--- number(rec, src, suffix) -> f32 [1] | nil (there is none) | nil, msg, code
-- A number that belongs to a whole tensor: finite and above 0.
function M.number(rec, src, suffix)
  local t = src[suffix]
  if not t then return nil end
  if t:numel() ~= 1 then
    return fail("eformat", "%s: %s is %s, expected one number", rec.name, suffix, text.shape(t:size()))
  end
  local v = tonumber(t:get(1))
  if not (v > 0 and v < math.huge) then
    return fail("eformat", "%s: %s is %s, expected a finite number above 0", rec.name, suffix, tostring(v))
  end
  return tensor.new("f32", { 1 }, { v })
end

--- input_numbers(rec, src, names) -> {scale=, global=, …} | nil, msg, code: a format's input(); names: field -> suffix.
function M.input_numbers(rec, src, names)
  local out = {}
  for _, field in ipairs { "scale", "global", "zero_point" } do
    if names[field] then
      local t, msg, code = M.number(rec, src, names[field])
      if msg then return nil, msg, code end
      out[field] = t and t:get(1) or nil
    end
  end
  return out
end

--- read_scales(scales, rec, a, b, q): rows a..b of a weight's scales into the tile.
function M.read_scales(scales, rec, a, b, q)
  if rec.scheme.strategy == "tensor" then
    local one = scales:reshape { 1, 1 }
    for r = 1, q.n do must(C.nb_tensor_copy(q.scales:rows(r, r), one)) end
    return
  end
  local first, last = M.scale_rows(rec.scheme)(a, b)
  local whole = scales:reshape { scheme.scale_rows(rec.scheme, rec.n), q.groups }
  must(C.nb_tensor_copy(q.scales, whole:rows(first, last)))
end

--- reciprocal(t) -> f32 [1]: 1 / t in float32.
function M.reciprocal(t) return tensor.new("f32", { 1 }, { 1 / t:get(1) }) end

-- Whether t's reciprocal's reciprocal is t again.
local function comes_back(t)
  local r = M.reciprocal(t)
  return r:get(1) < math.huge and M.reciprocal(r):get(1) == t:get(1)
end

local whole = { { "global", "factor", "the weight's global scale" }, { "input_global", "input_factor", "the input's global scale" } }

--- settle(q, rec, format, lossy) -> true | nil, msg, "einexact"
-- The global scales of a tile, as `format` keeps them: a divisor (compressed-tensors), or a factor, its reciprocal
-- (format.factors: ModelOpt). Going from one to the other is exact where the reciprocal leads back; where it doesn't,
-- lossy takes the nearest float32. What the tile holds afterwards is what the written tensors decode to.
function M.settle(q, rec, format, lossy)
  for _, names in ipairs(whole) do
    local global, factor = q[names[1]], q[names[2]]
    local given = format.factors and not factor and global or not format.factors and factor or nil
    if given and not comes_back(given) and not lossy then
      return fail("einexact", "%s: %s is %.9g, and the reciprocal that %s keeps, %.9g, does not lead back to it; "
        .. "convert lossy to take it as it is (one unit in the last place)", rec.name, names[3], given:get(1), format.name,
        1 / given:get(1))
    end
    if format.factors and global then
      q[names[2]] = factor or M.reciprocal(global)
      q[names[1]] = M.reciprocal(q[names[2]])
    else
      q[names[2]] = nil
    end
  end
  return true
end

local plain = { f16 = true, bf16 = true, f32 = true }

-- Scales into a tensor of the file, whose dtype may be another one: every value must survive.
local function put(dst, scales, row0, what)
  if dst.dtype == scales.dtype then
    must(C.nb_tensor_copy(dst, scales))
    return true
  end
  if not plain[dst:type()] or not plain[scales:type()] then
    return fail("einexact", "%s are %s and cannot be stored as %s", what, scales:type(), dst:type())
  end
  local rc, msg, code = nffi.check(C.nb_scales_cast(dst, scales, row0, what))
  if not rc then return nil, msg, code end
  return true
end

-- One scale for the whole weight: every row of the tile must have it.
local function write_single(dst, rec, a, q, what)
  if a == 1 then
    local ok, msg, code = put(dst:reshape { 1, 1 }, q.scales:rows(1, 1), 0, what)
    if not ok then return nil, msg, code end
  end
  local first = q.scales:rows(1, 1)
  for r = 2, q.n do
    if not q.scales:rows(r, r):equal(first) then
      return fail("einval", '%s: strategy = "tensor", but row %d has another scale than row %d', rec.name, a + r - 2, a - 1)
    end
  end
  return true
end

--- write_scales(dst, rec, a, b, q, base) -> true | nil, msg, code
-- Rows a..b from the tile into dst, which begins at weight row `base`.
function M.write_scales(dst, rec, a, b, q, base)
  local what = rec.name .. ": scales"
  if rec.scheme.strategy == "tensor" then return write_single(dst, rec, a, q, what) end
  local rows = M.scale_rows(rec.scheme)
  local first, last = rows(a, b)
  local offset = rows(base, base) - 1
  local flat = dst.ndim == 1 and dst:reshape { dst:size(1), 1 } or dst
  return put(flat:rows(first - offset, last - offset), q.scales, q.row0 - 1, what)
end

--- read_codes(weight, q, a, b): rows a..b of codes stored one a byte.
function M.read_codes(weight, q, a, b)
  if q.codes then must(C.nb_tensor_copy(q.codes, weight:rows(a, b))) end
end

--- write_codes(dst, q, a, b, base): the same into a tensor that begins at weight row `base`.
function M.write_codes(dst, q, a, b, base)
  if q.codes then must(C.nb_tensor_copy(dst:rows(a - base + 1, b - base + 1), q.codes)) end
end

--- finish(rec, src, a, b, q) -> true | nil, msg, code: the end of a read: bias, and a look at codes and scales.
M.finish = common.finish

return M

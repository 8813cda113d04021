-- formats.common: what the formats share: sentences about tensors that are missing or have the wrong
-- shape, moving scales and biases in row tiles, checking what was read.
local ffi = require "ffi"
local nffi = require "nibble.ffi"
local tensor = require "nibble.tensor"
local scheme = require "nibble.scheme"
local text = require "nibble.text"
local C = nffi.C

local M = {}

--- fail(code, fmt, ...) -> nil, msg, code
function M.fail(code, fmt, ...) return nil, fmt:format(...), code end

local function same_shape(a, b)
  if #a ~= #b then return false end
  for i = 1, #a do
    if a[i] ~= b[i] then return false end
  end
  return true
end

--- expect(module, tensors, suffix, dtypes, shapes, why) -> true | nil, msg, code
-- The tensor must be there, with one of the dtypes ("i32 f16 bf16") and one of the shapes (nil: any);
-- why: where the expected shape comes from.
function M.expect(module, tensors, suffix, dtypes, shapes, why)
  local info = tensors[suffix]
  if not info then return M.fail("eformat", "%s: the tensor %s is missing", module, suffix) end
  if not (" " .. dtypes .. " "):find(" " .. info.dtype .. " ", 1, true) then
    return M.fail("eformat", "%s: %s is %s, expected %s", module, suffix, info.dtype, (dtypes:gsub(" ", " or ")))
  end
  if not shapes then return true end
  for _, shape in ipairs(shapes) do
    if same_shape(shape, info.shape) then return true end
  end
  return M.fail("eformat", "%s: %s, so %s must be %s, but it is %s", module, why, suffix, text.shape(shapes[1]),
    text.shape(info.shape))
end

--- contradiction(module, config_says, tensors_say) -> nil, msg, "eformat"
function M.contradiction(module, config_says, tensors_say)
  return M.fail("eformat", "%s: the config says %s, but %s", module, config_says, tensors_say)
end

--- source_name(ck) -> how a sentence names the config.
function M.source_name(ck) return ck.quantization and ck.quantization.source or "the config" end

--- null_free(table) -> a shallow copy without JSON nulls: an absent key and null mean the same.
function M.null_free(t)
  local null, out = require "nibble.json".null, {}
  for k, v in pairs(t) do
    if v ~= null then out[k] = v end
  end
  return out
end
nffi.interpreted(M.null_free)

--- bias_ok(module, tensors, n) -> true | nil, msg, code: the bias, where there is one.
function M.bias_ok(module, tensors, n)
  if not tensors.bias then return true end
  return M.expect(module, tensors, "bias", "f16 bf16 f32", { { n } }, ("it has %d output features"):format(n))
end

--- rows_ok(rec, a, b, q): rows a..b (1-based, inclusive) of the module into or out of q's rows.
function M.rows_ok(rec, a, b, q)
  if a < 1 or b > rec.n or b < a then
    error(("%s: rows %d..%d are outside 1..%d"):format(rec.name, a, b, rec.n), 3)
  end
  if q.n ~= b - a + 1 or q.k ~= rec.k then
    error(("%s: rows %d..%d of %d columns don't fit a tile [%dx%d]"):format(rec.name, a, b, rec.k, q.n, q.k), 3)
  end
end

local function cast(dst, src, row0, what)
  local rc, msg, code = nffi.check(C.nb_scales_cast(dst, src, row0, what))
  if not rc then return nil, msg, code end
  return true
end

--- put_scales(dst, rec, q, at, transposed) -> true | nil, msg, code
-- Scales [r,G] (of blocks: a row a block) into rows at..at+r-1 of dst [n,G], or into these columns of dst [G,n] when transposed.
-- Another dtype is fine where every value survives; "einexact" names the first that doesn't.
function M.put_scales(dst, rec, q, at, transposed)
  local what = rec.name .. ": scales"
  if not transposed then return cast(dst:rows(at, at + q.scales:size(1) - 1), q.scales, q.row0 - 1, what) end
  local scales = q.scales
  if scales.dtype ~= dst.dtype then
    scales = tensor.new(dst:type(), q.scales:size())
    local ok, msg, code = cast(scales, q.scales, q.row0 - 1, what)
    if not ok then return nil, msg, code end
  end
  nffi.must(C.nb_transpose_put(dst, scales, at - 1))
  return true
end

--- put_bias(dst, rec, q, at) -> true | nil, msg, code: the bias rows of a tile, where both sides have one.
function M.put_bias(dst, rec, q, at)
  if not (dst.bias and q.bias) then return true end
  return cast(dst.bias:rows(at, at + q.n - 1):reshape { q.n, 1 }, q.bias:reshape { q.n, 1 }, q.row0 - 1,
    rec.name .. ": bias")
end

--- symmetric_zeros(rec, zeros, a, config_says) -> true | nil, msg, code
-- Stored zero-points of a weight that the config calls symmetric must all be 2^(bits-1).
function M.symmetric_zeros(rec, zeros, a, config_says)
  local z, p, groups = scheme.zero_code(rec.scheme), zeros:ptr(), zeros:size(2)
  for i = 0, zeros:numel() - 1 do
    if p[i] ~= z then
      return M.contradiction(rec.name, config_says, ("the zero-point of row %d, group %d is %d and not %d")
        :format(a - 1 + math.floor(i / groups), i % groups, p[i], z))
    end
  end
  return true
end

--- zeros_of(q) -> u8 [r,G]: the zero-points of a tile, spelled out when it is symmetric.
function M.zeros_of(q)
  if q.zeros then return q.zeros end
  local zeros = tensor.new("u8", { q.n, q.groups })
  ffi.fill(zeros.data, zeros:bytes(), scheme.zero_code(q.scheme))
  return zeros
end

--- finish(rec, src, a, b, q) -> true | nil, msg, code: the end of every format's read: bias, scale check.
function M.finish(rec, src, a, b, q)
  q.row0 = a
  q.bias = src.bias and src.bias:rows(a, b) or nil
  if not q.codes then return true end
  local rc, msg, code
  if rec.scheme.type == "int" then
    rc, msg, code = nffi.check(C.nb_scales_check(q.scales, q.codes, q.zeros, q.g_idx, rec.scheme.bits, a - 1, rec.name))
  else
    local rows, columns = scheme.block(rec.scheme, rec.n, rec.k)
    rc, msg, code = nffi.check(C.nb_float_check(q.scales, q.codes, rows, columns, a - 1, rec.name))
  end
  if not rc then return nil, msg, code end
  return true
end

--- acts(module, g_idx, group, groups) -> true when the columns' groups are not simply c // group,
-- false when they are, or nil, msg, code.
function M.acts(module, g_idx, group, groups)
  local rc, msg, code = nffi.check(C.nb_g_idx_check(g_idx, group, groups, module))
  if not rc then return nil, msg, code end
  return rc == 0
end

--- group_fault(scheme, k) -> nil | reason
function M.group_fault(s, k)
  if (s.strategy == "group" or s.strategy == "tensor_group") and k % s.group ~= 0 then
    return ("k = %d is not a multiple of the group size %d"):format(k, s.group)
  end
end

--- weight_only_fault(scheme, title) -> nil | reason: of a format that holds integer codes and knows nothing
-- of activations.
function M.weight_only_fault(s, title)
  if s.type ~= "int" then return ("%s holds integer codes, not %d-bit floats"):format(title, s.bits) end
  if s.activations then return title .. " cannot say how activations are quantized; set activations = false to leave that out" end
end

--- unreadable(module, tensors, what) -> rec of a module that is recognized and can't be read yet.
function M.unreadable(module, tensors, what)
  return { name = module, kind = "other", tensors = tensors, bias = tensors.bias ~= nil,
    unreadable = ("%s: not readable yet: format %s"):format(module, what) }
end

--- with(scheme, fields) -> copy with these fields replaced (false: removed).
function M.with(s, fields)
  local out = {}
  for k, v in pairs(s) do out[k] = v end
  for k, v in pairs(fields) do out[k] = v or nil end
  return out
end
nffi.interpreted(M.with)

--- by_scheme(records [, also]) -> array of {scheme=, records=}, most modules first (ties: first seen).
-- also: function(rec) -> string that modules of one entry must have in common, too.
function M.by_scheme(records, also)
  local order, by = {}, {}
  for _, rec in ipairs(records) do
    if rec.scheme then
      local key = scheme.describe(rec.scheme) .. (also and "|" .. also(rec) or "")
      if not by[key] then
        by[key] = { scheme = rec.scheme, records = {}, at = #order + 1 }
        order[#order + 1] = by[key]
      end
      table.insert(by[key].records, rec)
    end
  end
  table.sort(order, function(x, y)
    if #x.records ~= #y.records then return #x.records > #y.records end
    return x.at < y.at
  end)
  return order
end

--- linear(records) -> those of the linear modules, quantized or not.
function M.linear(records)
  local out = {}
  for _, rec in ipairs(records) do
    if rec.kind == "linear" then out[#out + 1] = rec end
  end
  return out
end

--- unquantized(records) -> names of the linear modules that stay as they are.
function M.unquantized(records)
  local names = {}
  for _, rec in ipairs(records) do
    if rec.kind == "linear" and not rec.scheme then names[#names + 1] = rec.name end
  end
  return names
end

return M

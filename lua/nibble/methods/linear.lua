-- methods.linear: what the linear methods share: rows in, outputs out, the bias with
-- its tag, sizes of groups on a rank.
local backends = require "nibble.backends"
local formats = require "nibble.formats"
local quantized = require "nibble.quantized"
local schemes = require "nibble.scheme"
local tensor = require "nibble.tensor"

local M = {}

--- rows(L, x) -> x [m, k] as a matrix, its leading dimensions
-- x: [.., k] of the layer on this rank; anything else is an error naming both.
function M.rows(L, x)
  local shape = tensor.is_any(x) and x:size() or {}
  local k = table.remove(shape)
  if k ~= L.k then
    error(("layer %s takes activations of %d features on this rank, found %s"):format(L.name, L.k,
      k and tostring(k) or type(x)), 3)
  end
  return x:reshape { x:numel() / k, k }, shape
end

--- rounded(x, dtype) -> x of that dtype
function M.rounded(x, dtype) return x:type() == dtype and x or x:cast(dtype) end

--- shaped(y, x, shape, n) -> y [.., n] in x's dtype
function M.shaped(y, x, shape, n)
  shape[#shape + 1] = n
  return M.rounded(y, x:type()):reshape(shape)
end

--- register_bias(L): the parameter "bias" [n], where the layer has one.
function M.register_bias(L)
  if L.bias then L:register("bias", { dtype = L.dtype, shape = { L.n }, output_dim = 0 }) end
end

--- create_on_device(method, L) -> true | nil, msg, code: create of methods that read a whole layer's weight from any format
-- method: its name, sm (90) and config {scheme =, format =}. What nibble's table of the oracle refuses is refused here.
function M.create_on_device(method, L)
  local fault = M.torn(L, method.config.scheme)
  if fault then return nil, ("layer %s: %s"):format(L.name, fault), "eunsupported" end
  local weight = setmetatable({ format = method.config.format }, { __index = method.config.scheme })
  local ok, msg, code = backends.select({ consumer = "nibble", kind = "linear", device = "sm_" .. method.sm, backend = method.name,
    name = L.name, weight = weight, dtype = L.dtype, k = L.k, n = L.n, k_full = L.k_full, n_full = L.n_full, parallel = L.parallel,
    tp = L.tp, bias = L.bias }, { change = false })
  if not ok then return nil, ("layer %s: %s"):format(L.name, msg), code end
  M.register_bias(L)
  return true
end

--- torn(L, scheme) -> nil, or why a rank's part of the layer can't be cut out: what shares a scale would be torn apart.
function M.torn(L, s)
  local rows, columns = schemes.block(s, L.n_full, L.k_full)
  if L.k < L.k_full and columns < L.k_full and s.actorder ~= "group" and L.k % columns ~= 0 then
    return ("%d columns share a scale, and K = %d of this rank is no multiple of them"):format(columns, L.k)
  end
  for i, n in ipairs(L.parts) do
    if n % rows ~= 0 and (n < L.outputs[i] or i < #L.parts) then
      return ("%d rows share scales, and the %d outputs of this rank's part %d are no multiple of them"):format(rows, n, i)
    end
  end
end

--- weight(L, ck) -> Quantized | nil, msg, code: this rank's part of the layer's weight, whatever format stores it
-- L.options.modules: the checkpoint's modules that have L.outputs, in their order; default: L.name alone, which has all of them.
function M.weight(L, ck)
  local modules, parts = L.options.modules or { L.name }, {}
  for i, name in ipairs(modules) do
    local q, msg, code = formats.quantized(ck, name)
    if not q then return nil, msg, code end
    local first, last = i, #modules == 1 and #L.outputs or i
    local n = 0
    for part = first, last do n = n + (L.outputs[part] or 0) end
    if q.n ~= n or q.k ~= L.k_full then
      return nil, ("layer %s: %s is [%dx%d], expected [%dx%d]"):format(L.name, name, q.n, q.k, n, L.k_full), "eformat"
    end
    n = 0
    for part = first, last do
      local from = n + (L.parallel == "column" and L.rank * L.parts[part] or 0)
      parts[#parts + 1] = q:rows(from + 1, from + L.parts[part])
      n = n + L.outputs[part]
    end
  end
  local q, msg, code = quantized.joined(parts)
  if not q then return nil, ("layer %s: %s"):format(L.name, msg), code end
  return L.parallel == "row" and q:columns(L.rank * L.k + 1, (L.rank + 1) * L.k) or q
end

--- bias(L, given, permuted) -> tensor | nil
-- given: nil (the layer's own), false (none), a tensor in its plain order or {data =, permuted = bool}. A bias in
-- another order than the method wants is an error, never reordered behind the caller's back. Row-parallel ranks sum
-- their outputs, so that only rank 0 has the bias. (SYSTEMS C-04)
function M.bias(L, given, permuted)
  if given == nil then given = L:param "bias" end
  if given and tensor.is_any(given) then given = { data = given, permuted = false } end
  if not given or not given.data then return nil end
  if (given.permuted == true) ~= permuted then
    error(("layer %s: the bias is in %s order, the method takes %s: %s"):format(L.name,
      given.permuted and "Marlin's" or "its plain", permuted and "Marlin's" or "its plain",
      permuted and "permute it with layout.marlin.permute_bias and pass {data =, permuted = true}"
      or "pass it as it was loaded"), 3)
  end
  if L.parallel == "row" and L.rank > 0 then return nil end
  return given.data
end

--- groups(L, group) -> groups of scales on this rank | nil, msg, code
-- group -1, or at least the whole K: one, which every rank has (MRL-59, SYSTEMS C-09).
function M.groups(L, group)
  if group == -1 or group >= L.k_full then return 1 end
  if L.k % group ~= 0 then
    return nil, ("layer %s: K = %d of this rank is not a multiple of the group size %d"):format(L.name, L.k, group),
      "eunsupported"
  end
  return L.k / group
end

--- add_bias(y, bias) -> y f32 [m,n] with bias [n], rounded as y's dtype is: y's values are first rounded to dtype.
function M.add_bias(y, bias, dtype)
  if dtype ~= "f32" then y = y:cast(dtype):cast "f32" end
  local b, p, n = bias:cast("f32"), y:ptr(), y:size(2)
  local from = b:ptr()
  for i = 0, y:size(1) - 1 do
    for c = 0, n - 1 do p[i * n + c] = p[i * n + c] + from[c] end
  end
  return y
end

return M

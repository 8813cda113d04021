-- actorder: columns quantized in the order of their importance: the columns whose inputs are
-- largest share groups with one another, so that no small one sets their scale.
--
--   order  i32 [k]   order[i] = the column that comes i-th (0-based), the most important first
--   g_idx  i32 [k]   group of each column where it stands: g_idx[order[i]] = i // group
local nffi = require "nibble.ffi"
local tensor = require "nibble.tensor"
local C, must = nffi.C, nffi.must

local M = {}

--- order(importance) -> i32 [k]
-- importance: [k] of a real dtype, one number a column: the sum of the squares of its inputs. Ties keep the columns'
-- order. NaN is an error.
function M.order(importance)
  local k, at = importance:numel(), {}
  local v = importance:totable()
  for i = 1, k do
    if v[i] ~= v[i] then error(("actorder: the importance of column %d is NaN"):format(i - 1), 2) end
    at[i] = i
  end
  table.sort(at, function(a, b)
    if v[a] ~= v[b] then return v[a] > v[b] end
    return a < b
  end)
  local out = tensor.new("i32", { k })
  local p = out:ptr()
  for i = 1, k do p[i - 1] = at[i] - 1 end
  return out
end

--- g_idx(order, group) -> i32 [k]: the group of each column where it stands.
function M.g_idx(order, group)
  local k = order:numel()
  local out = tensor.new("i32", { k })
  local from, to = order:ptr(), out:ptr()
  for i = 0, k - 1 do to[from[i]] = math.floor(i / group) end
  return out
end

local function inverse(order)
  local out = tensor.new("i32", { order:numel() })
  local from, to = order:ptr(), out:ptr()
  for i = 0, order:numel() - 1 do to[from[i]] = i end
  return out
end

local function columns(t, order)
  local out = tensor.new(t:type(), t:size())
  must(C.nb_columns_gather(out, t, order))
  return out
end

--- tile(method, out, w, scheme, options, order [, whole]) -> true | nil, msg, code
-- method.tile on w's columns in that order; out (a Quantized or a tile of one) gets codes where the columns stand, and
-- g_idx. scheme: actorder = "group", strategy = "group".
function M.tile(method, out, w, scheme, options, order, whole)
  if order:numel() ~= w:size(2) then
    return nil, ("%d columns, and an order of %d"):format(w:size(2), order:numel()), "einval"
  end
  local plain = {}
  for key, value in pairs(scheme) do plain[key] = value end
  plain.actorder = nil
  local sorted = setmetatable({ codes = tensor.new("u8", out.codes:size()) }, { __index = out })
  local ok, msg, code = method.tile(sorted, columns(w, order), plain, options, whole)
  if not ok then return nil, msg, code end
  must(C.nb_columns_gather(out.codes, sorted.codes, inverse(order)))
  out.g_idx = out.g_idx or M.g_idx(order, scheme.group)
  return true
end

nffi.interpreted(M.tile)

return M

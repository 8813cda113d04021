-- check.alike: findings that say the same of many modules as one, and the order in which findings are shown.
local text = require "nibble.text"

local M = {}

--- alike.severities: in the order in which they are shown.
M.severities = { error = 1, warning = 2, note = 3 }

local function plain_text(s) return (s:gsub("[%^%$%(%)%%%.%[%]%*%+%-%?]", "%%%0")) end

-- What findings of many modules have in common: the sentence without names and numbers.
local function key_of(f)
  local says = f.key
  if not says then
    says = f.says
    for _, name in ipairs { f.module or false, f.tensor or false } do
      if name then says = says:gsub(plain_text(name), "") end
    end
    says = says:gsub("%d+", "#")
  end
  return table.concat({ f.rule, f.severity, f.source or "", says, f.repair and f.repair.kind or "" }, "\1")
end

--- alike.collapse(findings) -> a new array in which those of one kind are one: its count, modules and tensors are all of theirs.
function M.collapse(list)
  local out, by = {}, {}
  for _, f in ipairs(list) do
    local key = key_of(f)
    local first = by[key]
    if not first then
      f.count, f.modules = f.count or 1, f.modules or (f.module and { f.module } or nil)
      by[key], out[#out + 1] = f, f
    else
      first.count = first.count + (f.count or 1)
      for _, name in ipairs(f.modules or { f.module }) do
        first.modules = first.modules or {}
        first.modules[#first.modules + 1] = name
      end
      if f.tensor then
        first.tensors = first.tensors or { first.tensor }
        first.tensors[#first.tensors + 1] = f.tensor
      end
    end
    f.key = nil
  end
  return out
end

--- alike.sorted(findings) -> the same array: errors first, then by the module's name in natural order, then as found.
function M.sorted(list)
  local names, seen = {}, {}
  for _, f in ipairs(list) do
    local name = f.module or f.tensor or f.file or ""
    if not seen[name] then
      seen[name], names[#names + 1] = true, name
    end
  end
  local place, at = {}, {}
  for i, name in ipairs(text.natural_sort(names)) do place[name] = i end
  for i, f in ipairs(list) do at[f] = i end
  table.sort(list, function(a, b)
    if a.severity ~= b.severity then return M.severities[a.severity] < M.severities[b.severity] end
    local x, y = place[a.module or a.tensor or a.file or ""], place[b.module or b.tensor or b.file or ""]
    if x ~= y then return x < y end
    return at[a] < at[b]
  end)
  return list
end

return M

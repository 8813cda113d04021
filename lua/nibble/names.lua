-- names: many modules' names as few: "model.layers.{0..31}.mlp.up_proj".
local text = require "nibble.text"

local M = {}

-- {3,0,1,2,7} -> "{0..3,7}"
local function ranges(set)
  local sorted = {}
  for n in pairs(set) do sorted[#sorted + 1] = n end
  table.sort(sorted)
  if #sorted == 1 then return tostring(sorted[1]) end
  local out, from = {}, 1
  for i = 1, #sorted do
    if sorted[i + 1] ~= sorted[i] + 1 then
      out[#out + 1] = from == i and tostring(sorted[i]) or ("%d..%d"):format(sorted[from], sorted[i])
      from = i + 1
    end
  end
  if #out > 6 then out = { out[1], out[2], out[3], "…", out[#out] } end
  return "{" .. table.concat(out, ",") .. "}"
end

--- numbered(name) -> {stem =, numbers =}: "a.3.b.7" -> "a.\0.b.\0", {3, 7}
local function numbered(name)
  local numbers = {}
  local stem = ("." .. name .. "."):gsub("%.(%d+)%f[.]", function(n)
    numbers[#numbers + 1] = tonumber(n)
    return ".\0"
  end)
  return { stem = stem:sub(2, -2), numbers = numbers }
end

M.numbered = numbered

-- numbered(), whose work on what stands before the last dot is done once.
local function splitter()
  local parents = {}
  return function(name)
    local parent, leaf = text.split_name(name)
    if leaf == "" or leaf:find "^%d+$" then
      local whole = numbered(name)
      return whole.stem, whole.numbers
    end
    local p = parents[parent]
    if not p then
      p = numbered(parent)
      parents[parent] = p
    end
    return p.stem .. "." .. leaf, p.numbers
  end
end

--- collapse(items, name_of, key_of) -> array of {name =, items = {…}, count =}, in order of appearance
-- Items whose names differ in numbers only and that have the same key (a string) are one group; its name has the
-- numbers as ranges.
function M.collapse(items, name_of, key_of)
  local groups, by, split = {}, {}, splitter()
  for _, item in ipairs(items) do
    local stem, numbers = split(name_of(item))
    local key = stem .. "\1" .. key_of(item)
    local g = by[key]
    if not g then
      g = { stem = stem, sets = {}, items = {}, count = 0 }
      for i = 1, #numbers do g.sets[i] = {} end
      groups[#groups + 1], by[key] = g, g
    end
    for i = 1, #numbers do g.sets[i][numbers[i]] = true end
    g.count = g.count + 1
    g.items[g.count] = item
  end
  for _, g in ipairs(groups) do
    local i = 0
    g.name = g.stem:gsub("%z", function()
      i = i + 1
      return ranges(g.sets[i])
    end)
  end
  return groups
end

return M

-- names: many modules' names as few: "model.layers.{0..31}.mlp.up_proj".
local ffi = require "ffi"
local nffi = require "nibble.ffi"
local tensor = require "nibble.tensor"
local C = nffi.C

local M = {}

-- {3,0,1,2,7} -> "{0..3,7}"
local function ranges(set)
  local sorted = {}
  for n in pairs(set) do sorted[#sorted + 1] = n end
  table.sort(sorted)
  if #sorted == 1 then return ("%.0f"):format(sorted[1]) end
  local out, from = {}, 1
  for i = 1, #sorted do
    if sorted[i + 1] ~= sorted[i] + 1 then
      out[#out + 1] = from == i and ("%.0f"):format(sorted[i]) or ("%.0f..%.0f"):format(sorted[from], sorted[i])
      from = i + 1
    end
  end
  if #out > 6 then out = { out[1], out[2], out[3], "…", out[#out] } end
  return "{" .. table.concat(out, ",") .. "}"
end

--- numbered(name) -> {stem =, numbers =}: "a.3.b.7" -> "a.\0.b.\0", {3, 7}. As nb_name_groups reads numbers.
function M.numbered(name)
  local numbers = {}
  local stem = ("." .. name .. "."):gsub("%.(%d+)%f[.]", function(n)
    if #n > 15 then return nil end
    numbers[#numbers + 1] = tonumber(n)
    return ".\0"
  end)
  return { stem = stem:sub(2, -2), numbers = numbers }
end

-- Whatever key_of gives, as a small whole number each.
local function numbering()
  local ids, count = {}, 0
  return function(key)
    local id = ids[key]
    if not id then
      count = count + 1
      ids[key], id = count, count
    end
    return id
  end
end

--- collapse(items, name_of, key_of) -> array of {name =, items = {…}, count =}, in order of appearance
-- Items whose names differ in numbers only and that have the same key (a string, or one table) are one group; its
-- name has the numbers as ranges.
function M.collapse(items, name_of, key_of)
  local count, id_of = #items, numbering()
  local texts, kinds = ffi.new("nb_text[?]", count + 1), ffi.new("int32_t[?]", count + 1)
  local group, starts, numbers = ffi.new("int32_t[?]", count + 1), ffi.new("int64_t[?]", count + 1), tensor.type()
  for i = 1, count do
    local name = name_of(items[i]) -- the items keep the strings alive
    texts[i - 1].data, texts[i - 1].bytes, kinds[i - 1] = name, #name, id_of(key_of(items[i]))
  end
  nffi.must(C.nb_name_groups(group, starts, numbers, texts, kinds, count))
  local groups, number = {}, numbers:ptr()
  for i = 1, count do
    local id = group[i - 1] + 1
    local g = groups[id]
    if not g then
      g = { items = {}, count = 0, sets = {} }
      groups[id] = g
    end
    g.count = g.count + 1
    g.items[g.count] = items[i]
    local from = starts[i - 1]
    for j = 1, tonumber(starts[i] - from) do
      local set = g.sets[j]
      if not set then
        set = {}
        g.sets[j] = set
      end
      set[tonumber(number[from + j - 1])] = true
    end
  end
  for _, g in ipairs(groups) do
    local i = 0
    g.name = M.numbered(name_of(g.items[1])).stem:gsub("%z", function()
      i = i + 1
      return ranges(g.sets[i])
    end)
  end
  return groups
end

return M

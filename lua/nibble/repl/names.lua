-- names: the names of a checkpoint's modules and tensors that a beginning may become, a level at a time as paths
-- are completed: "model.la" -> "model.layers.". Read straight from the open headers: nothing is built or sorted
-- first, so that the first Tab in a checkpoint of 100,000 tensors is as quick as the others.
local ffi = require "ffi"
local nffi = require "nibble.ffi"
local C, must = nffi.C, nffi.must

local M = {}

-- How many levels, and how many names with a text inside, are looked at: more than anyone reads.
local MOST_LEVELS, MOST_INSIDE = 5000, 300

-- The next levels after partial, or the names with it inside: array of {text =, below = tensors lie below, deep =
-- levels do}, in the files' order.
local function levels(ck, partial, inside)
  local t, out = require("nibble.tensor").type(), {}
  must(C.nb_safetensors_levels(t, ck.handle, partial, #partial, inside and 1 or 0,
    inside and MOST_INSIDE or MOST_LEVELS))
  for flags, text in ffi.string(t.data, t:bytes()):gmatch "(.)(%Z*)%z" do
    local kind = flags:byte() - 48
    out[#out + 1] = { text = text, below = bit.band(kind, C.NB_LEVEL_BELOW) ~= 0, deep = bit.band(kind, C.NB_LEVEL_DEEP) ~= 0 }
  end
  t:free()
  return out
end

--- complete(ck, partial) -> array of what partial may become, in natural order; and whether it begins them.
-- A level at a time, on through levels that leave no choice: a module to its name, what holds modules to the dot
-- behind it. Where nothing begins with partial, the modules that have it inside of their names.
function M.complete(ck, partial)
  local list = levels(ck, partial, false)
  while #list == 1 do
    local only = list[1]
    local further = only.deep and only.text .. "." or (only.text == partial and only.below and partial .. ".")
    if not further then break end
    list = levels(ck, further, false)
  end
  local out, begins = {}, #list > 0 or partial == ""
  if not begins then list = levels(ck, partial, true) end
  for i, level in ipairs(list) do out[i] = level.text .. (begins and level.deep and "." or "") end
  return require("nibble.text").natural_sort(out), begins
end

return M

-- show: how a session prints any Lua value.
local show = require "nibble.show"
local tensor = require "nibble.tensor"
local terminal = require "nibble.terminal"

local M = {}

local function key_text(k)
  if type(k) == "string" and k:match "^[%a_][%w_]*$" then return k end
  return ("[%s]"):format(type(k) == "string" and ("%q"):format(k) or tostring(k))
end

local function sorted_keys(t)
  local keys = {}
  for k in pairs(t) do keys[#keys + 1] = k end
  table.sort(keys, function(a, b)
    if type(a) == type(b) and (type(a) == "number" or type(a) == "string") then return a < b end
    return type(a) == "number" and type(b) ~= "number"
  end)
  return keys
end

local function has_tostring(v)
  local mt = getmetatable(v)
  return type(mt) == "table" and rawget(mt, "__tostring") ~= nil
end

-- Text of a nested value; deep and long tables are cut, and say so.
local function brief(v, depth)
  if type(v) == "string" then return ("%q"):format(v):gsub("\\\n", "\\n") end
  if type(v) == "function" then return "function" end
  if type(v) ~= "table" or has_tostring(v) then return tostring(v) end
  if depth <= 0 then return next(v) == nil and "{}" or "{…}" end
  local out, listed = {}, #v
  for i = 1, math.min(listed, 16) do out[i] = brief(v[i], depth - 1) end
  if listed > 16 then out[#out + 1] = ("… %d in all"):format(listed) end
  for _, k in ipairs(sorted_keys(v)) do
    if not (type(k) == "number" and k >= 1 and k <= listed) then
      if #out >= 32 then
        out[#out + 1] = "…"
        break
      end
      out[#out + 1] = key_text(k) .. " = " .. brief(v[k], depth - 1)
    end
  end
  return "{" .. table.concat(out, ", ") .. "}"
end

-- On a terminal a tensor's line has a corner of its values below; elsewhere one line is one value.
local ROWS, COLUMNS = 4, 6

local function tensor_text(t)
  local width = terminal.draws(1) and terminal.width(1)
  if not width then return tostring(t) end
  return (show.corner(t, ROWS, COLUMNS, width))
end

-- A table as lines: on one where it fits, else an entry a line, each cut to the width.
local LINE, LINES = 100, 40

local function table_text(t)
  local whole = brief(t, 3)
  local width = terminal.width(1) or LINE
  if show.width(whole) <= width then return whole end
  local out, listed, left = {}, #t, 0
  local function add(text)
    if #out < LINES then out[#out + 1] = show.cut(" " .. text .. ",", width) else left = left + 1 end
  end
  for i = 1, listed do add(brief(t[i], 2)) end
  for _, k in ipairs(sorted_keys(t)) do
    if not (type(k) == "number" and k >= 1 and k <= listed) then add(key_text(k) .. " = " .. brief(t[k], 2)) end
  end
  if left > 0 then out[#out + 1] = (" … %d more"):format(left) end
  return "{" .. table.concat(out, "\n"):sub(2):gsub(",$", "") .. "}"
end

--- value(v) -> text: what the session prints for v. Things with their own text (tensors, plans, checkpoints) use it; a
-- table is written out, an entry a line where it is long.
function M.value(v)
  if type(v) == "table" and not has_tostring(v) then return table_text(v) end
  if tensor.is_any(v) then return tensor_text(v) end
  return tostring(v)
end

return M

-- show: how a session and the commands print things: tables of
-- text, and any Lua value.
local M = {}

--- width(text) -> columns that UTF-8 text takes on a terminal: one for each
-- character (what nibble prints has no wide ones).
function M.width(text)
  local _, continuation = text:gsub("[\128-\191]", "")
  return #text - continuation
end

--- columns(rows, align) -> text: rows of cells, two blanks between columns.
-- align: one letter per column, "l" or "r"; the last left column isn't padded.
function M.columns(rows, align)
  local widths = {}
  for _, row in ipairs(rows) do
    for i, cell in ipairs(row) do widths[i] = math.max(widths[i] or 0, M.width(cell)) end
  end
  local out = {}
  for _, row in ipairs(rows) do
    local line = {}
    for i, cell in ipairs(row) do
      local blanks = (" "):rep(widths[i] - M.width(cell))
      line[i] = align:sub(i, i) == "r" and blanks .. cell or cell .. blanks
    end
    out[#out + 1] = (table.concat(line, "  "):gsub("%s+$", ""))
  end
  return table.concat(out, "\n") .. "\n"
end

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

--- value(v) -> text: what the session prints for v. Things with their own
-- text (tensors, plans, checkpoints) use it; tables are written out, two deep.
function M.value(v)
  if type(v) == "table" and not has_tostring(v) then return brief(v, 3) end
  return tostring(v)
end

return M

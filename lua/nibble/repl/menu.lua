-- menu: candidates below the line, in columns that fit the terminal.
local show = require "nibble.show"
local terminal = require "nibble.terminal"

local M = {}

-- Words without what the token says already: up to its last dot, colon or slash.
local function labels_of(words, token)
  local known = token:match "^(.*[.:/])[^.:/]*$" or ""
  local out = {}
  for i, w in ipairs(words) do
    if w:sub(1, #known) ~= known then return words end
    out[i] = w:sub(#known + 1)
  end
  return out
end

local function in_columns(labels, columns)
  local widest = 0
  for _, l in ipairs(labels) do widest = math.max(widest, show.width(l)) end
  local across = math.max(1, math.floor((columns + 2) / (widest + 2)))
  local down, rows = math.ceil(#labels / across), {}
  for r = 1, down do
    local line = {}
    for c = 0, across - 1 do
      local l = labels[c * down + r]
      if l then line[#line + 1] = l .. (" "):rep(widest - show.width(l)) end
    end
    rows[r] = show.cut((table.concat(line, "  "):gsub("%s+$", "")), columns)
  end
  return rows
end

local function described(words, about, columns)
  local rows = {}
  for i, w in ipairs(words) do rows[i] = { "  " .. w:gsub(" = $", ""), about[w] or "" } end
  local out = {}
  for line in show.columns(rows, "ll", columns):gmatch "[^\n]+" do out[#out + 1] = line end
  return out
end

--- text(words, token [, about]) -> lines for below the line, at most as many as the terminal has room for.
-- about: {word -> what it is}: one word a line then.
function M.text(words, token, about)
  local columns, height = terminal.size(1)
  columns, height = columns or 80, height or 24
  local told = false
  for _, said in pairs(about or {}) do told = told or said ~= "" end
  local lines = told and described(words, about, columns) or in_columns(labels_of(words, token), columns)
  local room = math.max(3, height - 4)
  if #lines > room then
    local hidden = #lines - (room - 1)
    for i = #lines, room, -1 do lines[i] = nil end
    lines[room] = ("… %d more lines; type a little more"):format(hidden)
  end
  return table.concat(lines, "\n")
end

return M

-- sources: the text of nibble's own files, of files that the person loaded and of pieces typed in the session, and
-- the descriptions (---) in them.
local M = {}

--- text(path) -> text of a source file: embedded in the executable, or on the disk | nil
function M.text(path)
  local embedded = rawget(_G, "NIBBLE_SOURCE")
  local text = embedded and embedded(path)
  if text then return text end
  local f = io.open(path, "r")
  if not f then return nil end
  text = f:read "*a"
  f:close()
  return text
end

--- pieces: what was typed in the session, by number; repl.lua fills it.
M.pieces = {}

--- of(f) -> text of the source that function f came from, its path | nil
function M.of(f)
  local source = debug.getinfo(f, "S").source
  local number = source:match "^=session%[(%d+)%]$"
  if number then return M.pieces[tonumber(number)], "session" end
  local path = source:match "^@(.*)$"
  return path and M.text(path), path
end

--- lines(text) -> array of its lines.
function M.lines(text)
  local out = {}
  for line in (text .. "\n"):gmatch "([^\n]*)\n" do out[#out + 1] = line end
  return out
end

--- comment_above(lines, last) -> the comment that ends on line `last`, as text | nil. It must begin with ---.
function M.comment_above(lines, last)
  local out = {}
  for i = last, 1, -1 do
    local dashes, text = lines[i]:match "^%s*(%-%-%-?) ?(.*)$"
    if not dashes then return nil end
    table.insert(out, 1, text)
    if dashes == "---" then return table.concat(out, "\n") end
  end
end

--- head(text) -> the comment that a file begins with, as text; "" without one.
function M.head(text)
  local out = {}
  for line in (text .. "\n"):gmatch "([^\n]*)\n" do
    local said = line:match "^%-%-%-? ?(.*)$"
    if not said then break end
    out[#out + 1] = said
  end
  return table.concat(out, "\n")
end

local function add_folder(dir, prefix, out)
  for _, name in ipairs(require("nibble.checkpoint").list(dir) or {}) do
    if name:sub(-1) == "/" then
      add_folder(dir .. name, prefix .. name:sub(1, -2) .. ".", out)
    elseif name:match "%.lua$" then
      out[#out + 1] = { module = (prefix .. name:gsub("%.lua$", "")):gsub("%.init$", ""), path = dir .. name }
    end
  end
end

--- modules() -> array of {module =, path =}: all of nibble's own files, by name.
function M.modules()
  local out = {}
  if rawget(_G, "NIBBLE_SOURCE") then
    for name in pairs(package.preload) do
      if name:match "^nibble" then
        local path = "lua/" .. name:gsub("%.", "/")
        out[#out + 1] = { module = name, path = M.text(path .. ".lua") and path .. ".lua" or path .. "/init.lua" }
      end
    end
  else
    local here = debug.getinfo(1, "S").source:match "^@(.*)repl/sources%.lua$"
    if here then add_folder(here, "nibble.", out) end
  end
  table.sort(out, function(a, b) return a.module < b.module end)
  return out
end

return M

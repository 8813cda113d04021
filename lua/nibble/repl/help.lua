-- help: the docstrings of functions, found in the sources that lie above them.
local complete = require "nibble.repl.complete"

local M = {}

-- The text of a source file: embedded in the executable, or in the tree.
local function source(path)
  local embedded = rawget(_G, "NIBBLE_SOURCE")
  local text = embedded and embedded(path)
  if text then return text end
  local f = io.open(path, "r")
  if not f then return nil end
  text = f:read "*a"
  f:close()
  return text
end

local function lines_of(text)
  local out = {}
  for line in (text .. "\n"):gmatch "([^\n]*)\n" do out[#out + 1] = line end
  return out
end

-- The comment that ends on line `last`, as text, or nil. It must begin with ---.
local function comment_above(lines, last)
  local out = {}
  for i = last, 1, -1 do
    local dashes, text = lines[i]:match "^%s*(%-%-%-?) ?(.*)$"
    if not dashes then return nil end
    table.insert(out, 1, text)
    if dashes == "---" then return table.concat(out, "\n") end
  end
end

--- doc(f) -> docstring of a Lua function, or nil.
function M.doc(f)
  if type(f) ~= "function" then return nil end
  local info = debug.getinfo(f, "S")
  local path = info.source:match "^@(.*)$"
  local text = path and source(path)
  return text and comment_above(lines_of(text), info.linedefined - 1)
end

--- signature(f) -> first line of its docstring, or nil.
function M.signature(f)
  local doc = M.doc(f)
  return doc and doc:match "^[^\n]*"
end

-- What a file says of itself: the first sentence of its first comment.
local function first_sentence(text)
  local comment = {}
  for line in text:gmatch "([^\n]*)\n" do
    local said = line:match "^%-%- ?(.*)$"
    if not said then break end
    comment[#comment + 1] = said
  end
  local all = table.concat(comment, " ")
  return all:match "^(.-)%.%s" or all:match "^(.-)%.?$"
end

local function about_module(value)
  for name, loaded in pairs(package.loaded) do
    if loaded == value and name:match "^nibble" then
      local at = "lua/" .. name:gsub("%.", "/")
      local text = source(at .. ".lua") or source(at .. "/init.lua")
      return text and first_sentence(text)
    end
  end
end

-- A table of functions: its own line, and a line for each function.
local function about_table(value)
  local rows, names = {}, {}
  for name in pairs(complete.keys_of(value)) do names[#names + 1] = name end
  table.sort(names)
  for _, name in ipairs(names) do
    local ok, v = pcall(function() return value[name] end)
    local signature = ok and (M.signature(v) or (type(v) == "table" and about_module(v)))
    if signature then rows[#rows + 1] = "  " .. (type(v) == "table" and name .. ": " or "") .. signature end
  end
  local first = about_module(value)
  if first then table.insert(rows, 1, first) end
  return #rows > 0 and table.concat(rows, "\n") or nil
end

-- Places where a bare name may be a method.
local method_tables = {
  function() return require("nibble.tensor").methods end,
  function() return require("nibble.checkpoint").methods end,
}

local general = [[
?NAME        what NAME is: ?open, ?plan, ?cast (a tensor's method), ?json
Tab          completes names, fields, and modules inside m["
:trace       where the last error came from
_            the last value
exit         leaves (Ctrl-D too); Ctrl-C stops what runs and keeps the session
the parts of nibble:]]

local function find(name, env)
  local keys = complete.chain(name)
  local value = keys and complete.value_of(keys, env)
  if value ~= nil then return value end
  for _, place in ipairs(method_tables) do
    local ok, methods = pcall(place)
    local found = ok and type(methods) == "table" and methods[name:match "[%w_]+$" or ""]
    if found then return found end
  end
end

--- about(name, env) -> text for `?name`; name "" is the general help.
function M.about(name, env)
  name = name:match "^%s*(.-)%s*$"
  if name == "" then
    return general .. "\n" .. (about_table(require "nibble") or "")
  end
  local value = find(name, env)
  if value == nil then return ("nothing here is called %s; ? alone lists what there is"):format(name) end
  if type(value) == "function" then
    return M.doc(value) or ("%s is a function without a description"):format(name)
  end
  local listed = (type(value) == "table" or type(value) == "cdata") and about_table(value)
  local text = type(value) ~= "table" and require("nibble.repl.show").value(value)
  return listed or text or ("%s is a %s"):format(name, type(value))
end

return M

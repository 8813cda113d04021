-- help: ?name: the descriptions of functions (--- above them, in nibble's files, the person's and the session's
-- pieces), of nibble's parts, recipes, options, schemes and commands.
local complete = require "nibble.repl.complete"
local sources = require "nibble.repl.sources"

local M = {}

--- doc(f) -> docstring of a Lua function, or nil.
function M.doc(f)
  if type(f) ~= "function" then return nil end
  local text = sources.of(f)
  return text and sources.comment_above(sources.lines(text), debug.getinfo(f, "S").linedefined - 1)
end

-- "name(a, b, ...)" of a Lua function without a description.
local function parameters(f, name)
  local info = debug.getinfo(f, "S")
  if info.what == "C" then return nil end
  local out, i = {}, 1
  while debug.getlocal(f, i) do
    out[i] = debug.getlocal(f, i)
    i = i + 1
  end
  local ok, u = pcall(debug.getinfo, f, "u")
  if ok and u.isvararg then out[#out + 1] = "..." end
  return ("%s(%s)"):format(name or "function", table.concat(out, ", "))
end

--- signature(f [, name]) -> what its description begins with, up to the end of its parameters; of a function without
-- one its name and parameters; nil for anything else.
function M.signature(f, name)
  if type(f) ~= "function" then return nil end
  local doc = M.doc(f)
  if not doc then return parameters(f, name) end
  local out = {}
  for line in (doc .. "\n"):gmatch "([^\n]*)\n" do
    out[#out + 1] = line
    local text = table.concat(out, "\n")
    local _, opened = text:gsub("[({]", "")
    local _, closed = text:gsub("[)}]", "")
    if closed >= opened then break end
  end
  return table.concat(out, "\n")
end

-- What a file says of itself: the first sentence of its first comment.
local function first_sentence(text)
  local all = sources.head(text):gsub("\n", " ")
  return all:match "^(.-)%.%s" or all:match "^(.-)%.?$"
end

local function about_module(value)
  for name, loaded in pairs(package.loaded) do
    if loaded == value and name:match "^nibble" then
      local at = "lua/" .. name:gsub("%.", "/")
      local text = sources.text(at .. ".lua") or sources.text(at .. "/init.lua")
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
    local signature = ok and (M.doc(v) and M.doc(v):match "^[^\n]*" or (type(v) == "table" and about_module(v)))
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
  function() return require("nibble.quantized").methods end,
}

local general = [[
?NAME        what NAME is: ?open, ?plan, ?cast (a tensor's method), ?json, ?any-w4a16 (a recipe), ?group (an option)
??WORD       every description that has WORD in it
Tab          completes names, fields, options, paths, and modules inside m["
:help        the commands that begin with a colon
_ __ ___     the last values
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

-- ---- what is no value: commands, options of recipes, recipes, schemes ---------------------------------------

local function about_command(name)
  local c = require("nibble.repl.commands").find(name:match "^:(%a+)$" or "")
  return c and ("%s   %s"):format(c.usage, c.about)
end

local function about_option(name)
  local recipe, out = require "nibble.recipe", {}
  local function look(schema, prefix)
    for key, entry in pairs(schema) do
      if prefix .. tostring(key) == name or key == name then out[#out + 1] = ("%s%s: %s"):format(prefix, key, entry[2]) end
      if entry.schema then look(entry.schema, prefix .. tostring(key) .. ".") end
    end
  end
  look(recipe.schema, "")
  if #out == 0 and recipe.rule_schema[name] then out[1] = ("%s: %s"):format(name, recipe.rule_schema[name][2]) end
  table.sort(out)
  return #out > 0 and "an option of recipes\n" .. table.concat(out, "\n") or nil
end

local function about_recipe(name)
  local text, path = require("nibble.recipe").source(name)
  if not text then return nil end
  local head = sources.head(text)
  return ("recipe %s%s"):format(path, head ~= "" and "\n" .. head or "\n" .. text:gsub("%s+$", ""))
end

local function about_scheme(name)
  local fields = require("nibble.scheme_presets").get(name)
  if not fields then return nil end
  return ("scheme %s: %s"):format(name:upper(), require("nibble.repl.show").value(fields))
end

--- about(name, env) -> text for `?name`; name "" is the general help.
function M.about(name, env)
  name = name:match "^%s*(.-)%s*$"
  if name == "" then
    return general .. "\n" .. (about_table(require "nibble") or "")
  end
  local value = find(name, env)
  if value == nil then
    return about_command(name) or about_option(name) or about_scheme(name) or about_recipe(name)
      or ("nothing here is called %s; ??%s looks for it in every description, ? alone lists what there is"):format(name, name)
  end
  if type(value) == "function" then
    local signature = not M.doc(value) and parameters(value, name)
    return M.doc(value) or (signature and signature .. "   has no description")
      or ("%s is a function without a description"):format(name)
  end
  local listed = (type(value) == "table" or type(value) == "cdata") and about_table(value)
  local text = type(value) ~= "table" and require("nibble.repl.show").value(value)
  return listed or text or ("%s is a %s"):format(name, type(value))
end

return M

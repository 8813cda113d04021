-- search: ??word: every description that has the word in it, of functions, recipes and the options of recipes.
local nffi = require "nibble.ffi"
local sources = require "nibble.repl.sources"

local M = {}

-- The line of text that has the word (lower case), or nil.
local function line_with(text, word)
  for line in (text .. "\n"):gmatch "([^\n]*)\n" do
    if line:lower():find(word, 1, true) then return line:match "^%s*(.-)%s*$" end
  end
end

-- The first line, and the one that matches where that is another.
local function entry(out, title, text, word)
  local line = line_with(text, word)
  if not line then return false end
  out[#out + 1] = title
  if not title:find(line, 1, true) then out[#out + 1] = "    " .. line end
  return true
end

-- What a docstring's function is called from outside: module.name, or t:method as it says itself.
local function title_of(module, first)
  local name = first:match "^[%w_.:]+"
  if not name or name:find "[.:]" then return first end
  return (module:gsub("^nibble%.?", "")) .. "." .. first
end

local function in_file(out, file, word)
  local lines, count = sources.lines(sources.text(file.path) or ""), 0
  local i = 1
  while i <= #lines do
    local first = lines[i]:match "^%s*%-%-%- ?(.*)$"
    if first then
      local last = i
      while lines[last + 1] and lines[last + 1]:match "^%s*%-%-[^-]" or lines[last + 1] == "--" do last = last + 1 end
      local text = sources.comment_above(lines, last)
      if text and entry(out, title_of(file.module, first), text, word) then count = count + 1 end
      i = last
    end
    i = i + 1
  end
  return count
end

-- Recipes here (the folder, and its recipes/) and those that ship.
local function recipes()
  local out = {}
  for _, dir in ipairs { "", "recipes/" } do
    for _, path in ipairs(require("nibble.repl.files").complete(dir, "%.lua$")) do
      if path:match "%.lua$" then out[#out + 1] = { path, sources.text(path) } end
    end
  end
  local recipe = require "nibble.recipe"
  for _, name in ipairs(recipe.names()) do out[#out + 1] = { name, (recipe.source(name)) } end
  return out
end

--- find(word) -> text: what has the word in its description, upper or lower case; a title and the line that matches.
function M.find(word)
  word = word:match("^%s*(.-)%s*$"):lower()
  if word == "" then return "??WORD lists every description that has WORD in it" end
  local out, count, seen = {}, 0, {}
  for _, file in ipairs(sources.modules()) do
    nffi.stop_check()
    count = count + in_file(out, file, word)
  end
  for _, r in ipairs(recipes()) do
    local text = r[2] and not seen[r[2]] and sources.head(r[2])
    if r[2] then seen[r[2]] = true end
    local said = text and (text:match "%S" and text or r[1])
    if said and (r[1]:lower():find(word, 1, true) or said:lower():find(word, 1, true)) then
      count = count + 1
      out[#out + 1] = "recipe " .. r[1]
      out[#out + 1] = "    " .. (line_with(said, word) or said:match "^[^\n]*")
    end
  end
  for name, e in pairs(require("nibble.recipe").schema) do
    if type(name) == "string" and (name .. " " .. e[2]):lower():find(word, 1, true) then
      count = count + 1
      out[#out + 1] = ("option of recipes: %s\n    %s"):format(name, e[2])
    end
  end
  if count == 0 then return ("no description has %q in it"):format(word) end
  return table.concat(out, "\n")
end

return M

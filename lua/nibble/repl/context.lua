-- context: where in a piece of Lua the cursor stands: inside of which string, of which call's parentheses and
-- tables. A small scanner over the text before the cursor; what is wrong Lua gives a context too.
local M = {}

local NAME = "[%a_][%w_]*"

-- The last link of an expression that ends at the end of text: its kind, what it
-- names, and the text before it.
local function last_link(text)
  local before, inner = text:match '^(.*)%[%s*"([^"%]]*)"%s*%]$'
  if not before then before, inner = text:match "^(.*)%[%s*'([^'%]]*)'%s*%]$" end
  if before then return "index", inner, before end
  before, inner = text:match "^(.*)%[%s*(%d+)%s*%]$"
  if before then return "index", tonumber(inner), before end
  before, inner = text:match("^(.-)(" .. NAME .. ")$")
  if before then return "name", inner, before end
end

local LONGEST = 600 -- bytes of an expression that is followed: a name inside of brackets may be long

--- chain(text) -> array of keys: the expression at the end of text ("m.files[1]"
-- after "print(m.files[1]" is {"m", "files", 1}), or nil. Calls are never made, so
-- an expression with a call in it has no chain.
function M.chain(text)
  local keys = {}
  text = text:sub(-LONGEST)
  while true do
    local kind, key, before = last_link(text)
    if not kind then return nil end
    table.insert(keys, 1, key)
    if kind == "name" then
      local separator = before:sub(-1)
      if separator ~= "." and separator ~= ":" then return keys end
      before = before:sub(1, -2)
    end
    text = before
  end
end

local closing = { [")"] = "(", ["]"] = "[", ["}"] = "{" }

-- The end of a quoted string that begins at `at`, or nil when it is open.
local function close_quote(text, at, quote)
  local i = at + 1
  while i <= #text do
    local c = text:sub(i, i)
    if c == "\\" then i = i + 1 elseif c == quote then return i elseif c == "\n" then return i end
    i = i + 1
  end
end

--- at(text) -> context of the end of text:
--   string   {quote =, from =}: the open string's quote and the position after it; nil outside of strings
--   comment  true inside of a comment
--   stack    array of {open = "(" | "[" | "{", at = its position, index = which entry or argument (1-based),
--            entry = where that begins}, the outermost first
function M.at(text)
  local context, i = { stack = {} }, 1
  local stack = context.stack
  while i <= #text do
    local c = text:sub(i, i)
    local long = text:match("^%[(=*)%[", i)
    local dashes = text:match("^%-%-", i)
    if dashes and text:match("^%-%-%[(=*)%[", i) then
      local level = text:match("^%-%-%[(=*)%[", i)
      local _, to = text:find("]" .. level .. "]", i, true)
      if not to then context.comment = true return context end
      i = to
    elseif dashes then
      local to = text:find("\n", i, true)
      if not to then context.comment = true return context end
      i = to
    elseif long then
      local _, to = text:find("]" .. long .. "]", i, true)
      if not to then
        context.string = { quote = "[[", from = i + 2 + #long }
        return context
      end
      i = to
    elseif c == '"' or c == "'" then
      local to = close_quote(text, i, c)
      if not to then
        context.string = { quote = c, from = i + 1 }
        return context
      end
      i = to
    elseif c == "(" or c == "[" or c == "{" then
      stack[#stack + 1] = { open = c, at = i, index = 1, entry = i + 1 }
    elseif closing[c] then
      if stack[#stack] and stack[#stack].open == closing[c] then stack[#stack] = nil end
    elseif (c == "," or c == ";") and stack[#stack] then
      local top = stack[#stack]
      top.index, top.entry = top.index + 1, i + 1
    end
    i = i + 1
  end
  return context
end

--- call(text, context) -> the call that the cursor is inside of, or nil:
-- {keys = the callee's chain, method = called with a colon, argument = which (1-based), path = keys of nested tables
-- inside of that argument (numbers for entries without a name), table = whether it is a table, bare = no parentheses}
function M.call(text, context)
  local stack, path = context.stack, {}
  for level = #stack, 1, -1 do
    local frame = stack[level]
    local before = text:sub(1, frame.at - 1):gsub("%s+$", "")
    if frame.open == "[" then return nil end
    local keys = M.chain(before)
    local last = keys and keys[#keys]
    local named = last and not (last == "return" or last == "and" or last == "or" or last == "not" or last == "in")
    if named then
      local method = before:match("([.:])%s*" .. NAME .. "$") == ":"
      return { keys = keys, method = method, argument = frame.open == "(" and frame.index or 1, path = path,
        table = frame.open == "{" or #path > 0 or stack[level + 1] ~= nil, bare = frame.open == "{" }
    end
    local outer = stack[level - 1]
    if frame.open ~= "{" or not outer then return nil end
    if outer.open == "{" then
      local key = text:sub(outer.entry, frame.at - 1):match("^%s*(" .. NAME .. ")%s*=%s*$")
      table.insert(path, 1, key or outer.index)
    end
  end
end

return M

-- complete: what Tab offers: globals, fields and methods after . and :, and the
-- modules and tensors of a checkpoint inside m["...
--
-- Types take part by their metatable: __methods, a table whose keys are method
-- names; __fields, an array of tables whose keys are fields; and __names(value),
-- the names that value["..."] takes.
local ffi = require "ffi"

local M = {}

local NAME = "[%a_][%w_]*"

local keywords = {
  "and", "break", "do", "else", "elseif", "end", "false", "for", "function", "if", "in", "local", "nil", "not", "or",
  "repeat", "return", "then", "true", "until", "while",
}

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

--- chain(text) -> array of keys: the expression at the end of text ("m.files[1]"
-- after "print(m.files[1]" is {"m", "files", 1}), or nil. Calls are never made, so
-- an expression with a call in it has no chain.
function M.chain(text)
  local keys = {}
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

-- The value of a chain in env, without raising anything; nil when there is none.
local function value_of(keys, env)
  local value = env
  for _, key in ipairs(keys) do
    local ok, found = pcall(function() return value[key] end)
    if not ok or found == nil then return nil end
    value = found
  end
  return value
end

M.value_of = value_of

local function metatable_of(value)
  if type(value) == "cdata" then
    local ok, tensor = pcall(require, "nibble.tensor")
    return ok and ffi.istype(tensor.type, value) and { __methods = tensor.methods } or nil
  end
  local mt = getmetatable(value)
  return type(mt) == "table" and mt or nil
end

--- keys_of(value) -> set of the names that value.NAME may take -> whether each is a method.
function M.keys_of(value)
  local out = {}
  local function add(t)
    if type(t) ~= "table" then return end
    for k, v in pairs(t) do
      if type(k) == "string" and k:match("^" .. NAME .. "$") and not k:match "^__" and out[k] == nil then out[k] = type(v) == "function" end
    end
  end
  if type(value) == "table" then add(value) end
  local mt = type(value) == "string" and { __methods = string } or metatable_of(value)
  if mt then
    for _, fields in ipairs(rawget(mt, "__fields") or {}) do
      for k in pairs(fields) do out[k] = false end
    end
    add(rawget(mt, "__methods"))
    add(rawget(mt, "__index"))
  end
  return out
end

local function matching(candidates, partial, prefix, out)
  for _, name in ipairs(candidates) do
    if name:sub(1, #partial) == partial then out[#out + 1] = prefix .. name end
  end
  table.sort(out)
  return out
end

local function listed(set, wanted)
  local out = {}
  for name, is_method in pairs(set) do
    if not wanted or is_method then out[#out + 1] = name end
  end
  return out
end

-- Names inside m[" ... : those of the value before the bracket, and tensors.
local function inside_brackets(before, word, env)
  local keys = M.chain(before)
  local value = keys and value_of(keys, env)
  local mt = value ~= nil and metatable_of(value)
  local names = {}
  if mt and rawget(mt, "__names") then names = mt.__names(value) end
  if type(value) == "table" and not (mt and rawget(mt, "__names")) then names = listed(M.keys_of(value)) end
  return matching(names, word, "", {})
end

--- candidates(line, word, env) -> array of what word, at the end of line, may
-- become | nil when word is inside of another string (file names fit there).
function M.candidates(line, word, env)
  local before = line:sub(1, #line - #word)
  local indexed = before:match '^(.*)%[%s*["\']$'
  if indexed then return inside_brackets(indexed, word, env) end
  local _, doubles = line:gsub('[^"]', "")
  local _, all = line:gsub(".", "")
  if (all - doubles) % 2 == 1 then return nil end
  local base, separator, partial = line:match("^(.*)([.:])(" .. NAME .. ")$")
  if not base then base, separator, partial = line:match "^(.*)([.:])()$" end
  if base then
    if type(partial) == "number" then partial = "" end
    local keys = M.chain(base)
    local value = keys and value_of(keys, env)
    if value == nil then return {} end
    return matching(listed(M.keys_of(value), separator == ":"), partial, word:sub(1, #word - #partial), {})
  end
  partial = line:match("(" .. NAME .. ")$") or ""
  local names, seen = {}, {}
  for _, set in ipairs { M.keys_of(env), M.keys_of(_G) } do
    for name in pairs(set) do
      if not seen[name] then names[#names + 1], seen[name] = name, true end
    end
  end
  for _, k in ipairs(keywords) do names[#names + 1] = k end
  return matching(names, partial, word:sub(1, #word - #partial), {})
end

return M

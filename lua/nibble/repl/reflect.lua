-- reflect: which names a value takes after a dot, a colon or in brackets, without computing anything.
--
-- Types take part by their metatable: __methods, a table whose keys are method
-- names; __fields, an array of tables whose keys are fields; and __names(value),
-- the names that value["..."] takes.
local ffi = require "ffi"

local M = {}

local NAME = "[%a_][%w_]*"

--- metatable_of(value) -> what its type tells of itself: its metatable, or of a tensor its methods | nil
function M.metatable_of(value)
  if type(value) == "cdata" then
    local ok, tensor = pcall(require, "nibble.tensor")
    if ok and ffi.istype(tensor.device_type, value) then return { __methods = require("nibble.cuda").methods } end
    return ok and ffi.istype(tensor.type, value) and { __methods = tensor.methods } or nil
  end
  local mt = getmetatable(value)
  return type(mt) == "table" and mt or nil
end

-- What stands for a field that would have to be computed: a quantized module's dequantized weight.
local function stand_in(value, key)
  local mt = type(value) == "table" and M.metatable_of(value)
  local fields = mt and rawget(mt, "__fields")
  if not fields or rawget(value, key) ~= nil or not fields[2] or not fields[2][key] or not fields[1].scheme then return nil end
  if key == "weight" then return require("nibble.tensor").type() end
  return setmetatable({}, { __methods = require("nibble.quantized").methods })
end

-- Stand-ins by the word that a description's "-> …" has.
local kinds = {
  { "tensor", function() return require("nibble.tensor").type() end },
  { "view", function() return require("nibble.tensor").type() end },
  { "checkpoint", function() return setmetatable({}, { __methods = require("nibble.checkpoint").methods }) end },
  { "Quantized", function() return setmetatable({}, { __methods = require("nibble.quantized").methods }) end },
}

--- result_of(f) -> something with the names of what function f gives, by its description | nil: f is not called.
function M.result_of(f)
  local doc = require("nibble.repl.help").doc(f)
  local said = doc and doc:match "%->%s*([^|\n]*)"
  if not said or said:find "^array" or said:find "^[{\"]" then return nil end
  for _, kind in ipairs(kinds) do
    if said:find("%f[%w]" .. kind[1] .. "%f[%W]") then return kind[2]() end
  end
end

--- value_of(keys, env) -> the value of a chain in env, without raising anything or computing a weight; nil when
-- there is none.
function M.value_of(keys, env)
  local value = env
  for _, key in ipairs(keys) do
    local ok, found = pcall(function()
      local instead = stand_in(value, key)
      if instead ~= nil then return instead end
      return value[key]
    end)
    if not ok or found == nil then return nil end
    value = found
  end
  return value
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
  local mt = type(value) == "string" and { __methods = string } or M.metatable_of(value)
  if mt then
    for _, fields in ipairs(rawget(mt, "__fields") or {}) do
      for k in pairs(fields) do out[k] = false end
    end
    add(rawget(mt, "__methods"))
    add(rawget(mt, "__index"))
  end
  return out
end
jit.off(M.keys_of, true) -- ffi.lua says why: interpreted

return M

-- json: text to Lua values and back. Reading is strict and in C; writing is
-- deterministic, so that the same value always gives the same bytes.
local ffi = require "ffi"
local nffi = require "nibble.ffi"
local C, check = nffi.C, nffi.check

local M = {}

--- null: JSON's null, where nil would make a hole. Not equal to anything else.
M.null = setmetatable({}, { __tostring = function() return "null" end, __metatable = "json.null" })

local array_mt = { __name = "json.array" }

--- array(t) -> t, marked as an array, so that an empty one is written as [].
function M.array(t) return setmetatable(t or {}, array_mt) end

--- is_array(t) -> true when t was marked by array() or decoded from one.
function M.is_array(t) return getmetatable(t) == array_mt end

-- Keys of decoded objects in the text's order: GPTQ's `dynamic` rules need it.
local key_order = setmetatable({}, { __mode = "k" })

local MAX_DEPTH = 512

-- ---- reading ---------------------------------------------------------------

local null, number, string_, array, object = 0, 3, 4, 5, 6
local value_t = ffi.typeof "nb_json_value"
local has_nul -- the text has an escaped U+0000: C spells it C0 80

local function text_of(p)
  local s = ffi.string(p)
  return has_nul and s:gsub("\192\128", "\0") or s
end

-- cell: the node's fields; children get cells of their own, one per depth.
local cells = {}

local walk
local function walk_members(child, depth)
  local cell = cells[depth] or value_t()
  cells[depth] = cell
  local out, keys = {}, {}
  while child ~= nil do
    C.nb_json_get(cell, child)
    local key, following = text_of(cell.key), cell.next
    if out[key] == nil then keys[#keys + 1] = key end
    out[key] = walk(cell, depth)
    child = following
  end
  key_order[out] = keys
  return out
end

local function walk_elements(child, depth)
  local cell = cells[depth] or value_t()
  cells[depth] = cell
  local out, n = setmetatable({}, array_mt), 0
  while child ~= nil do
    C.nb_json_get(cell, child)
    local following = cell.next
    n = n + 1
    out[n] = walk(cell, depth)
    child = following
  end
  return out
end

function walk(cell, depth)
  local kind = cell.type
  if kind == string_ then return text_of(cell.string) end
  if kind == number then return cell.number end
  if kind == object then return walk_members(cell.child, depth + 1) end
  if kind == array then return walk_elements(cell.child, depth + 1) end
  if kind == null then return M.null end
  return kind == 2
end

--- decode(text [, what]) -> value | nil, msg, code
-- Strict JSON (RFC 8259) in at most 512 levels; a byte order mark is skipped.
-- Objects become tables, arrays marked tables, null `json.null`, numbers
-- doubles (integers beyond 2^53 are rounded). Of a repeated key the last value
-- counts. what: the text's name in sentences (default "JSON"), which tell line
-- and column; code "eformat".
function M.decode(text, what)
  if type(text) ~= "string" then error("json.decode: expected a string, found " .. type(text), 2) end
  local root = ffi.new "nb_json *[1]"
  local ok, msg, code = check(C.nb_json_parse(root, text, #text, what or "JSON"))
  if not ok then return nil, msg, code end
  has_nul = text:find("\\u0000", 1, true) ~= nil
  local cell = value_t()
  C.nb_json_get(cell, root[0])
  local done, value = pcall(walk, cell, 0)
  C.nb_json_free(root[0])
  if not done then error(value, 0) end
  return value
end

--- keys(object) -> array of its keys: those read from text in the text's order,
-- then those added since, sorted.
function M.keys(t)
  local out, seen, added = {}, {}, {}
  for _, k in ipairs(key_order[t] or {}) do
    if t[k] ~= nil then out[#out + 1], seen[k] = k, true end
  end
  for k in pairs(t) do
    if not seen[k] and k ~= "__order" then added[#added + 1] = k end
  end
  table.sort(added, function(a, b) return tostring(a) < tostring(b) end)
  for _, k in ipairs(added) do out[#out + 1] = k end
  return out
end

-- ---- writing ---------------------------------------------------------------

local escapes = {
  ['"'] = '\\"', ["\\"] = "\\\\", ["\b"] = "\\b", ["\f"] = "\\f", ["\n"] = "\\n", ["\r"] = "\\r", ["\t"] = "\\t",
}
local function escape(c) return escapes[c] or ("\\u%04x"):format(c:byte()) end
local function quote(s) return '"' .. s:gsub('[%z\1-\31\127"\\]', escape) .. '"' end

-- The shortest decimal that reads back as the same double.
local function number_text(v)
  if v ~= v or v == math.huge or v == -math.huge then
    error("json.encode: " .. tostring(v) .. " has no JSON form; expected a finite number", 0)
  end
  if v == math.floor(v) and math.abs(v) < 2 ^ 53 then return ("%.0f"):format(v) end
  for digits = 15, 17 do
    local s = ("%." .. digits .. "g"):format(v)
    if tonumber(s) == v then return s end
  end
end

-- Is t an array? Marked ones, and tables with elements 1..#t and nothing else.
local function is_list(t)
  if getmetatable(t) == array_mt then return true end
  if #t == 0 then return false end
  local n = 0
  for _ in pairs(t) do n = n + 1 end
  return n == #t
end

local function ordered_keys(t)
  local keys, seen = {}, { __order = true }
  for _, k in ipairs(t.__order or {}) do
    if t[k] ~= nil and not seen[k] then keys[#keys + 1], seen[k] = k, true end
  end
  local first = #keys + 1
  local rest = {}
  for k in pairs(t) do
    if type(k) ~= "string" then
      local text = "json.encode: the key %s is a %s; expected strings only, or the array 1..n"
      error(text:format(tostring(k), type(k)), 0)
    end
    if not seen[k] then rest[#rest + 1] = k end
  end
  table.sort(rest)
  for i, k in ipairs(rest) do keys[first + i - 1] = k end
  return keys
end

-- LuaJIT 2.1.0-beta3 (Debian 12) sometimes compiles a pairs loop inside this
-- recursion so that it finds no key at all: these stay interpreted.
jit.off(is_list)
jit.off(ordered_keys)

local write
local function write_table(out, t, indent, depth)
  if depth > MAX_DEPTH then error("json.encode: nested more than 512 deep (does a table hold itself?)", 0) end
  local list = is_list(t)
  local keys = list and t or ordered_keys(t)
  local open, close = list and "[" or "{", list and "]" or "}"
  if #keys == 0 then
    out[#out + 1] = open .. close
    return
  end
  local line = indent and "\n" .. (" "):rep(indent * (depth + 1)) or ""
  out[#out + 1] = open
  for i = 1, #keys do
    out[#out + 1] = (i > 1 and "," or "") .. line
    if not list then out[#out + 1] = quote(keys[i]) .. (indent and ": " or ":") end
    if list then write(out, t[i], indent, depth + 1) else write(out, t[keys[i]], indent, depth + 1) end
  end
  out[#out + 1] = (indent and "\n" .. (" "):rep(indent * depth) or "") .. close
end

function write(out, v, indent, depth)
  local kind = type(v)
  if v == M.null then out[#out + 1] = "null"
  elseif kind == "string" then out[#out + 1] = quote(v)
  elseif kind == "number" then out[#out + 1] = number_text(v)
  elseif kind == "boolean" then out[#out + 1] = tostring(v)
  elseif kind == "table" then write_table(out, v, indent, depth)
  elseif kind == "cdata" and (ffi.istype("int64_t", v) or ffi.istype("uint64_t", v)) then
    out[#out + 1] = tostring(v):match "^-?%d+"
  else
    error("json.encode: a " .. kind .. " has no JSON form", 0)
  end
end

--- encode(value [, {indent = 2}]) -> text
-- Keys sorted, or in the order of the table's `__order` (an array of keys; the
-- rest sorted after them). Numbers as the shortest text that reads back the
-- same; int64 cdata exactly. Without indent: one line. A value without a JSON
-- form (function, NaN, mixed keys) is an error.
function M.encode(value, options)
  local out = {}
  local ok, msg = pcall(write, out, value, options and options.indent, 0)
  if not ok then error(msg, 2) end
  return table.concat(out)
end

-- Where the members of a valid object text lie: calls fn(key, first, value_first, last)
-- with positions of the key's quote, the value's first and last byte. true | nil, msg, code.
local function each_member(text, fn)
  local at = text:find("{", 1, true) + 1
  while true do
    local first = text:match('^%s*,?%s*()"', at)
    if not first then return true end
    local last = first
    repeat last = text:find('"', last + 1, true) until #text:sub(first, last - 1):match "\\*$" % 2 == 0
    local key, value = text:sub(first, last), text:match("^%s*:%s*()", last + 1)
    local depth, stop = 0, value
    while true do -- strings whole, brackets by depth, anything else byte by byte
      local c = text:sub(stop, stop)
      if c == '"' then
        local from = stop
        repeat stop = text:find('"', stop + 1, true) until #text:sub(from, stop - 1):match "\\*$" % 2 == 0
      elseif c == "{" or c == "[" then depth = depth + 1
      elseif c == "}" or c == "]" then depth = depth - 1 end
      local following = text:match("^%s*([,}%]])", stop + 1)
      if depth == 0 and following then break end
      stop = stop + 1
    end
    local name, msg, code = M.decode(key)
    if name == nil then return nil, msg, code end
    fn(name, first, value, stop)
    at = stop + 1
  end
end

--- replace(text, key, value) -> text | nil, msg, code
-- A JSON object's text with one top-level member replaced, added at the end, or (value nil) taken out;
-- every other byte stays as it was, so that numbers keep their spelling.
function M.replace(text, key, value)
  local object_, msg, code = M.decode(text)
  if object_ == nil then return nil, msg, code end
  if type(object_) ~= "table" or M.is_array(object_) or object_ == M.null then
    return nil, "json.replace: expected a JSON object", "eformat"
  end
  local first, value_first, last, previous_last, count = nil, nil, nil, nil, 0
  local ok
  ok, msg, code = each_member(text, function(k, a, v, z)
    if k == key then first, value_first, last = a, v, z
    elseif not first then previous_last = z end
    count = count + 1
  end)
  if not ok then return nil, msg, code end
  local written = value ~= nil and M.encode(value, { indent = 2 }):gsub("\n", "\n  ")
  if first and written then return text:sub(1, value_first - 1) .. written .. text:sub(last + 1) end
  if first then -- out with it, and one comma
    if previous_last then return text:sub(1, previous_last) .. text:sub(last + 1) end
    return text:sub(1, first - 1) .. text:sub(last + 1):gsub("^%s*,%s*", "")
  end
  if not written then return text end
  local close = text:match "()%s*}%s*$"
  return text:sub(1, close - 1) .. (count > 0 and "," or "") .. ('\n  "%s": '):format(key) .. written .. "\n}" .. "\n"
end

return M

-- methods.config: what the config classes of all systems share: finding a required key under its names,
-- the printable form, rewriting names, and the skip list that a checkpoint's headers imply.
local json = require "nibble.json"
local text = require "nibble.text"

local M = {}

--- config.present(table, ...) -> value, key of the first of the keys that is there and not null | nil
function M.present(t, ...)
  for _, key in ipairs { ... } do
    local v = t[key]
    if v ~= nil and v ~= json.null then return v, key end
  end
end

--- config.decision(action, method, requirement, format, ...) -> {action, method, requirement, reason}: of a layer.
function M.decision(action, method, requirement, fmt, ...)
  return { action = action, method = method, requirement = requirement,
    reason = select("#", ...) > 0 and fmt:format(...) or fmt }
end

--- config.required(table, where, type, ...) -> value | nil, msg, "eformat"
-- The value under the first of the keys that is there; the sentence lists the keys tried. (AWQ-01)
function M.required(t, where, want, ...)
  local v, key = M.present(t, ...)
  if v == nil then
    return nil, ("%s: none of the keys %s is there"):format(where, table.concat({ ... }, ", ")), "eformat"
  end
  if type(v) ~= want then
    return nil, ("%s: %s is %s, expected a %s"):format(where, key, tostring(v), want), "eformat"
  end
  return v
end

--- config.optional(table, where, type, default, ...) -> value | nil, msg, "eformat": the default where no key is there.
function M.optional(t, where, want, default, ...)
  if M.present(t, ...) == nil then return default end
  return M.required(t, where, want, ...)
end

--- config.names(list, where, key) -> array of strings | nil, msg, "eformat": none and null are an empty list.
function M.names(t, where, key)
  local list = M.present(t, key)
  if list == nil then return {} end
  if type(list) ~= "table" then
    return nil, ("%s: %s is %s, expected a list of module names"):format(where, key, tostring(list)), "eformat"
  end
  local out = {}
  for i, v in ipairs(list) do
    if type(v) ~= "string" then
      return nil, ("%s: entry %d of %s is %s, expected a module name"):format(where, i, key, tostring(v)), "eformat"
    end
    out[i] = v
  end
  return out
end

-- A value as the peers print it: True, False, None, 'text', [a, b].
local function printed(v)
  if v == nil then return "None" end
  if type(v) == "boolean" then return v and "True" or "False" end
  if type(v) ~= "table" then return tostring(v) end
  local out = {}
  for i, x in ipairs(v) do out[i] = type(x) == "string" and "'" .. x .. "'" or printed(x) end
  return "[" .. table.concat(out, ", ") .. "]"
end

--- config.printable(class, {{name, value}, …}) -> "Class(name=value, …)": one line for logs and sessions. (AWQ-04)
function M.printable(class, fields)
  local out = {}
  for i, f in ipairs(fields) do out[i] = f[1] .. "=" .. (f.raw or printed(f[2])) end
  return class .. "(" .. table.concat(out, ", ") .. ")"
end

-- ---- names in the file and in the running model ------------------------------------

local function replaced(name, from, to)
  local a, b = name:find(from, 1, true)
  if not a then return name end
  return name:sub(1, a - 1) .. to .. name:sub(b + 1)
end

-- Applies one pair; nil: the name is dropped.
local rewrite = {
  substr = function(name, from, to)
    if not name:find(from, 1, true) then return name end
    return to and replaced(name, from, to) or nil
  end,
  prefix = function(name, from, to)
    if name:sub(1, #from) ~= from then return name end
    return to and to .. name:sub(#from + 1) or nil
  end,
  suffix = function(name, from, to)
    if name:sub(-#from) ~= from then return name end
    return to and name:sub(1, -#from - 1) .. to or nil
  end,
}

--- config.mapped(names, mapper) -> a new array of names
-- mapper: {substr = {{from, to}, …}, prefix = …, suffix = …}, tried in this order and every pair in turn;
-- to = false drops the name; or a function(name) -> name | nil. (AWQ-07)
function M.mapped(names, mapper)
  local out = {}
  for _, name in ipairs(names) do
    local new = name
    if type(mapper) == "function" then new = mapper(name)
    else
      for _, part in ipairs { "substr", "prefix", "suffix" } do
        for _, pair in ipairs(mapper[part] or {}) do
          if new then new = rewrite[part](new, pair[1], pair[2]) end
        end
      end
    end
    out[#out + 1] = new
  end
  return out
end

-- ---- the skip list that headers imply ------------------------------------------------

local floats = { f16 = true, bf16 = true, f32 = true, F16 = true, BF16 = true, F32 = true }

--- config.unquantized_layers({{name =, dtype = | nil}, …}) -> array of module names, sorted
-- Modules none of whose tensors has a dtype other than F16, BF16 and F32. A tensor without a dtype
-- marks nothing. (AWQ-08, AWQ-09)
function M.unquantized_layers(tensors)
  local seen, quantized, out = {}, {}, {}
  for _, t in ipairs(tensors) do
    local module = text.split_name(t.name)
    if not seen[module] then
      seen[module] = true
      out[#out + 1] = module
    end
    if t.dtype and not floats[t.dtype] then quantized[module] = true end
  end
  local list = {}
  for _, module in ipairs(out) do
    if not quantized[module] then list[#list + 1] = module end
  end
  table.sort(list)
  return list
end

-- ---- where a model lies -------------------------------------------------------------

-- The folder of a model's snapshot in a Hugging Face cache | nil, msg, code.
local function snapshot(name, revision, cache)
  local checkpoint = require "nibble.checkpoint"
  local dir = cache .. "/models--" .. name:gsub("/", "--")
  if checkpoint.exists(dir) ~= "dir" then
    return nil, ("%s is neither a folder nor in the cache %s (no %s)"):format(name, cache, dir:match "[^/]+$"), "eio"
  end
  local ref_file = dir .. "/refs/" .. revision
  local ref = checkpoint.exists(ref_file) == "file" and checkpoint.read_file(ref_file)
  local commit = ref and ref:match "^%s*(%S+)" or revision
  local folder = dir .. "/snapshots/" .. commit
  if checkpoint.exists(folder) ~= "dir" then
    local names = checkpoint.list(dir .. "/snapshots") or {}
    for i, n in ipairs(names) do names[i] = n:gsub("/$", "") end
    return nil, ("%s: the cache has no revision %s; it has %s"):format(name, revision,
      #names > 0 and table.concat(names, ", ") or "no snapshot"), "eio"
  end
  return folder
end

local function default_cache()
  return os.getenv "HF_HUB_CACHE" or os.getenv "HF_HOME" and os.getenv "HF_HOME" .. "/hub"
    or (os.getenv "HOME" or "") .. "/.cache/huggingface/hub"
end

--- config.headers(source [, {revision = "main", cache = dir}]) -> {{name =, dtype =}, …} | nil, msg, code
-- The tensors' names and dtypes from safetensors headers alone; no tensor data is read. source: a folder,
-- a file, an array of files, an open checkpoint, or a model's name in a local Hugging Face cache. (AWQ-09)
function M.headers(source, options)
  local o = options or {}
  local checkpoint = require "nibble.checkpoint"
  local places
  if type(source) == "table" and source.tensors then
    return source.tensors
  elseif type(source) == "table" then
    places = source
  elseif checkpoint.exists(source) then
    places = { source }
  else
    local folder, msg, code = snapshot(source, o.revision or "main", o.cache or default_cache())
    if not folder then return nil, msg, code end
    places = { folder }
  end
  local out = {}
  for _, place in ipairs(places) do
    local ck, msg, code = checkpoint.open(place)
    if not ck then return nil, msg, code end
    for _, info in ipairs(ck.tensors) do out[#out + 1] = { name = info.name, dtype = info.dtype } end
  end
  return out
end

return M

-- options: the names that a call's tables take and the values that are known for them: from the recipe's schema,
-- the quantization methods, and from the tables that docstrings show ("{scheme="W4A16", group=128, …}").
local M = {}

-- ---- values by an option's name, whoever takes it ---------------------------------------------------

local function keys_of(t)
  local out = {}
  for k in pairs(t) do out[#out + 1] = k end
  table.sort(out)
  return out
end

local function dtypes()
  local names, out = require("nibble.tensor").names, {}
  for i = 0, #names do out[i + 1] = names[i] end
  return out
end

local function formats() return require("nibble.formats").names() end
local function booleans() return nil, { "true", "false" } end

local devices = { "cpu", "cuda", "rocm", "xpu", "sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120" }

local function constant(...)
  local list = { ... }
  return function() return list end
end

-- name -> function() -> array of strings, array of other values as Lua text
local values = {
  scheme = function() return require("nibble.scheme_presets").names() end,
  method = function() return keys_of(require("nibble.quant").methods) end,
  format = formats, to = formats,
  consumer = function() return require("nibble.backends").consumers() end,
  device = function() return devices end,
  dtype = dtypes, scale_dtype = dtypes,
  actorder = constant("group", "weight"),
  strategy = constant("tensor", "channel", "group", "block", "tensor_group"),
  stage = constant("skip", "plain", "generic", "marlin"), skip_mode = constant("substring", "exact", "suffix"),
  range = constant("full", "narrow", "tight"), arithmetic = constant("float32", "dtype"),
  activations = constant("stored", "none"),
  kind = constant("linear", "embedding", "norm", "other"), quantized = booleans,
  through = constant("reference", "auto"),
  symmetric = booleans, requantize = booleans, measure = booleans, lossy = booleans, saturate = booleans, lm_head = booleans,
}

--- values(name) -> array of strings | nil, array of values as Lua text | nil: what option `name` may be.
function M.values(name)
  if not values[name] then return nil end
  return values[name]()
end

-- Options that name files.
local files = { text = true, ids = true, model = true, out = true, path = true, against = true }

--- names_file(name) -> whether the option's value is a path.
function M.names_file(name) return files[name] == true end

-- ---- names by function --------------------------------------------------------------------------------

local function of_schema(schema)
  local out, doc = {}, {}
  for key, entry in pairs(schema) do
    if type(key) == "string" then out[#out + 1], doc[key] = key, entry[2] end
  end
  table.sort(out)
  return out, doc
end

-- The schema below a path of keys: {"output"}, {"rules", 1}.
local function schema_at(path)
  local recipe = require "nibble.recipe"
  if path[1] == "rules" then
    if not path[2] then return nil end
    local entry = path[3] and recipe.rule_schema[path[3]]
    return path[3] == nil and recipe.rule_schema or entry and entry.schema
  end
  local schema = recipe.schema
  for _, key in ipairs(path) do
    schema = schema and schema[key] and schema[key].schema
  end
  return schema
end

local function recipe_options(path)
  local schema = schema_at(path)
  if schema then return of_schema(schema) end
  return {}, {}
end

-- The scheme's parts, the method, and every method's options.
local function quantize_options(path)
  if path[1] then return {}, {} end
  local schema, docs, names = require("nibble.recipe").schema, {}, {}
  for _, key in ipairs { "scheme", "group", "method", "symmetric", "strategy", "block", "scale_dtype", "actorder", "activations" } do
    names[#names + 1], docs[key] = key, schema[key][2]
  end
  for _, method in pairs(require("nibble.quant").methods) do
    for _, o in ipairs(method.options or {}) do
      if not docs[o.name] then names[#names + 1], docs[o.name] = o.name, o.doc or "" end
    end
  end
  table.sort(names)
  return names, docs
end

-- The tables written in a docstring's signature: keys of the outermost level of the last {…} that has any.
local function from_doc(doc)
  local signature = doc:match "^(.-)%s%->" or doc:match "^[^\n]*"
  local names, docs, best = {}, {}, nil
  for inner in signature:gmatch "%b{}" do
    if inner:find "=" then best = inner:sub(2, -2) end
  end
  if not best then return {}, {} end
  best = best:gsub("%b{}", ""):gsub("%b()", "")
  for name in best:gmatch "([%a_][%w_]*)%s*=" do
    if not docs[name] then names[#names + 1], docs[name] = name, "" end
  end
  return names, docs
end

-- Whether f is the function `key` of a module: by where it is written, so that one loaded twice counts too.
local function is(f, module, key)
  local loaded = package.loaded[module]
  local other = loaded and loaded[key]
  if type(f) ~= "function" or type(other) ~= "function" then return false end
  local a, b = debug.getinfo(f, "S"), debug.getinfo(other, "S")
  return a.source == b.source and a.linedefined == b.linedefined
end

--- of(f, path) -> array of option names, {name -> what it means}: those of function f's table, below a path of keys.
function M.of(f, path)
  if is(f, "nibble.recipe", "load") or is(f, "nibble.plan", "new") then return recipe_options(path) end
  local doc = not path[1] and require("nibble.repl.help").doc(f)
  if doc and doc:match "^%a+:select{" then return require("nibble.modules").keys(), {} end
  if doc and doc:match "^t:quantize{" or is(f, "nibble.quant", "of_tensor") then return quantize_options(path) end
  if doc then return from_doc(doc) end
  return {}, {}
end

return M

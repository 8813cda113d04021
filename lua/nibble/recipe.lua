-- recipe: a quantization policy as data: reading it in a small sandbox, checking
-- every key and type, and matching module names. DESIGN 5 shows the form.
local nffi = require "nibble.ffi"
local interpreted = nffi.interpreted
local words = require "nibble.text"

local M = {}

-- ---- what a recipe may say ----------------------------------------------------
-- One table is the reader's check, the error messages' vocabulary and the
-- reference (M.reference): key = { type, what it means, other types }.

local scheme_keys = {
  scheme = { "string", "number format: W4A16, W4A16_ASYM, W8A8, W4A8, FP8, FP8_DYNAMIC, FP8_BLOCK, NVFP4, MXFP4, MXFP8, …; "
    .. "false: leave as it is", "boolean" },
  group = { "number", "group size along the input; -1: one scale per output channel" },
  symmetric = { "boolean", "true: no zero-points" },
  strategy = { "string", "tensor, channel, group, block or tensor_group; follows from group and block when not given" },
  block = { "string", "rows and columns that share a scale: \"128x128\" or { 128, 128 }", "table" },
  activations = { "table", "how layers' inputs are quantized: { type, bits, strategy, group, dynamic, symmetric }, or words "
    .. "as \"int8:token\"; false: not at all", "string", "boolean" },
  scale_dtype = { "string", "dtype of the stored scales; default: what the format and the model ask for" },
  actorder = { "string", "activation order of the groups: group or weight" },
  method = { "string", "how codes are found: rtn, mse, or a function(w, scheme, options)", "function" },
  options = { "table", "the method's options by name" },
  kernels = { "table", "kernels wanted, in order: { prefer = {…}, fallback = {…} }", schema = {
    prefer = { "table", "names, the most wanted first" },
    fallback = { "table", "names to take when none of those can" },
    stage = { "string", "forces how a consumer's choice ends: skip, plain, generic or marlin" },
    skip_mode = { "string", "how a consumer compares a skip list's entries: substring, exact or suffix" },
  } },
}

local function with(base, extra)
  local out = {}
  for k, v in pairs(base) do out[k] = v end
  for k, v in pairs(extra) do out[k] = v end
  return out
end

local rule_schema = with(scheme_keys, {
  [1] = { "string", "glob over module names, or re: and a Lua pattern" },
  when = { "function", "function(w) -> boolean: w.name, w.n, w.k, w.dtype and the weight's statistics (w.kurtosis, w.absmax, …)" },
})

M.schema = with(scheme_keys, {
  name = { "string", "the recipe's name" },
  model = { "table", "keys and values that config.json must have, else plan refuses" },
  skip = { "table", "patterns of modules that stay as they are" },
  lm_head = { "boolean", "whether the output head is quantized; a string names its scheme", "string" },
  rules = { "table", "{ pattern, key = value, … }: the first that matches wins" },
  output = { "table", "what is written", schema = {
    format = { "string", "compressed-tensors, awq, gptq, gptq_v2, fp8, modelopt, plain" },
    shard = { "string", "largest file, as \"5GB\" or bytes", "number" },
  } },
  calibrate = { "table", "text for methods that look at activations", schema = {
    text = { "string", "path of a text file" },
    ids = { "string", "path of token ids instead: a .safetensors file with ids or input_ids" },
    samples = { "number", "windows (128)" },
    length = { "number", "tokens of a window, BOS included (512)" },
    seed = { "number", "which windows of the text (0)" },
  } },
  accept = { "table", "bounds; `run` and `eval` exit 1 when one is missed", schema = {
    sqnr_db = { "number", "least signal to quantization noise of any quantized module, dB" },
    ppl_ratio = { "number", "greatest perplexity against the original's" },
    kl = { "number", "greatest mean KL divergence from the original" },
  } },
  requantize = { "boolean", "true: modules that are quantized already may be quantized again (lossy)" },
})
M.rule_schema = rule_schema

-- The order in which people read about the keys: of a recipe, and of the tables in it.
local order = {
  "name", "model", "scheme", "group", "symmetric", "strategy", "block", "scale_dtype", "actorder", "activations", "method",
  "options", "skip", "lm_head", "rules", "when", "kernels", "prefer", "fallback", "stage", "skip_mode", "calibrate", "text", "ids",
  "samples", "length", "seed", "output", "format", "shard", "accept", "sqnr_db", "ppl_ratio", "kl", "requantize",
}
local rank = {}
for i, key in ipairs(order) do rank[key] = i end

local function add_reference(rows, prefix, schema)
  local keys = {}
  for key in pairs(schema) do keys[#keys + 1] = key end
  table.sort(keys, function(a, b) return (rank[a] or 0) < (rank[b] or 0) end)
  for _, key in ipairs(keys) do
    local entry = schema[key]
    rows[#rows + 1] = { key = prefix .. tostring(key), types = { entry[1], entry[3], entry[4] }, doc = entry[2],
      in_rules = prefix == "" and scheme_keys[key] ~= nil }
    if entry.schema then add_reference(rows, prefix .. key .. ".", entry.schema) end
    if key == "rules" then rows[#rows + 1] = { key = "rules[].when", types = { "function" }, doc = rule_schema.when[2] } end
  end
end

interpreted(add_reference)

--- reference() -> array of {key, types = array, doc, in_rules = whether a rule may say it too}: every key that a
-- recipe may have, as the reader checks it; keys of tables are dotted ("output.shard").
function M.reference()
  local rows = {}
  add_reference(rows, "", M.schema)
  return rows
end

-- ---- checking -----------------------------------------------------------------

local function type_ok(entry, value)
  local t = type(value)
  return t == entry[1] or t == entry[3] or t == entry[4]
end

local function check_table(where, t, schema)
  for key, value in pairs(t) do
    local entry = schema[key]
    if not entry then
      local known = {}
      for k in pairs(schema) do if type(k) == "string" then known[#known + 1] = k end end
      table.sort(known)
      if type(key) ~= "string" then
        return nil, ("%s: entry [%s] has no name; expected key = value with one of: %s"):format(where, tostring(key),
          table.concat(known, ", "))
      end
      return nil, ("%s: unknown key %q%s"):format(where, key, words.did_you_mean(key, known))
    end
    if not type_ok(entry, value) then
      return nil, ("%s: %s must be a %s%s, found a %s (%s)"):format(where, tostring(key), entry[1],
        (entry[3] and " or a " .. entry[3] or "") .. (entry[4] and " or a " .. entry[4] or ""), type(value), tostring(value))
    end
    if entry.schema then
      local ok, msg = check_table(where .. ": " .. key, value, entry.schema)
      if not ok then return nil, msg end
    end
  end
  return true
end

interpreted(check_table)

local function check_list_of_strings(where, list)
  for i, v in pairs(list) do
    if type(i) ~= "number" or type(v) ~= "string" then
      return nil, ("%s must be a list of strings, found %s = %s"):format(where, tostring(i), tostring(v))
    end
    if v == "" or v == "re:" then return nil, ("%s: entry %d is empty; it would match everything"):format(where, i) end
    local ok, msg = M.matcher(v)
    if not ok then return nil, where .. ": " .. msg end
  end
  return true
end

local calibrate_least = { samples = 1, length = 2, seed = 0 }

local function calibrate_fault(c)
  if c.text ~= nil and c.ids ~= nil then return "text and ids are both there; it takes one of them" end
  for _, key in ipairs { "samples", "length", "seed" } do
    local v, least = c[key], calibrate_least[key]
    if v and not (v >= least and v == math.floor(v) and v < 2 ^ 31) then
      return ("%s must be a whole number of at least %d, found %s"):format(key, least, tostring(v))
    end
  end
end

local words_of = { stage = { "skip", "plain", "generic", "marlin" }, skip_mode = { "substring", "exact", "suffix" } }

local function check_kernels(where, k)
  for _, key in ipairs { "stage", "skip_mode" } do
    local known = k[key] == nil
    for _, word in ipairs(words_of[key]) do known = known or word == k[key] end
    if not known then return nil, ("%s: %s = %q%s"):format(where, key, k[key], words.did_you_mean(k[key], words_of[key])) end
  end
  for _, key in ipairs { "prefer", "fallback" } do
    for i, name in pairs(k[key] or {}) do
      if type(i) ~= "number" or type(name) ~= "string" then
        return nil, ("%s: %s must be a list of names, found %s = %s"):format(where, key, tostring(i), tostring(name))
      end
    end
  end
  return true
end

interpreted(check_kernels)

local function check(where, r)
  if type(r) ~= "table" then
    return nil, ("%s: a recipe returns a table, found a %s"):format(where, type(r))
  end
  local ok, msg = check_table(where, r, M.schema)
  if not ok then return nil, msg end
  ok, msg = check_list_of_strings(where .. ": skip", r.skip or {})
  if not ok then return nil, msg end
  for i, rule in ipairs(r.rules or {}) do
    local at = ("%s: rule %d"):format(where, i)
    if type(rule) ~= "table" then return nil, ("%s must be a table, found a %s"):format(at, type(rule)) end
    if type(rule[1]) ~= "string" then
      return nil, at .. ': the pattern is missing; expected { "glob", key = value, … }'
    end
    ok, msg = check_table(("%s (%q)"):format(at, rule[1]), rule, rule_schema)
    if not ok then return nil, msg end
    ok, msg = check_list_of_strings(at, { rule[1] })
    if not ok then return nil, msg end
  end
  local places = { { where .. ": kernels", r.kernels } }
  for i, rule in ipairs(r.rules or {}) do
    places[#places + 1] = { ("%s: rule %d (%q): kernels"):format(where, i, rule[1]), rule.kernels }
  end
  for _, place in ipairs(places) do
    ok, msg = check_kernels(place[1], place[2] or {})
    if not ok then return nil, msg end
  end
  for k in pairs(r.rules or {}) do
    if type(k) ~= "number" or k < 1 or k > #r.rules then
      return nil, ("%s: rules is a list, found key %q; write each rule as { \"glob\", … }"):format(where, tostring(k))
    end
  end
  local fault = r.calibrate and calibrate_fault(r.calibrate)
  if fault then return nil, ("%s: calibrate: %s"):format(where, fault) end
  if r.output and r.output.shard then
    local bytes, why = M.parse_bytes(r.output.shard)
    if not bytes then return nil, ("%s: output.shard: %s"):format(where, why) end
  end
  return true
end

local units = { B = 1, KB = 1e3, MB = 1e6, GB = 1e9, TB = 1e12, KIB = 1024, MIB = 1024 ^ 2, GIB = 1024 ^ 3, TIB = 1024 ^ 4 }

--- parse_bytes("5GB"|"500 MiB"|number) -> bytes | nil, msg. GB is decimal, GiB binary.
function M.parse_bytes(text)
  if type(text) == "number" then
    if text >= 1 then return math.floor(text) end
    return nil, ("a size of %s bytes; expected 1 or more"):format(text)
  end
  local number, unit = tostring(text):match "^%s*([%d.]+)%s*(%a*)%s*$"
  local factor = unit and units[unit == "" and "B" or unit:upper()]
  if not tonumber(number) or not factor or tonumber(number) * factor < 1 then
    return nil, ("%q is not a size; expected a number and B, KB, MB, GB or KiB, MiB, GiB"):format(tostring(text))
  end
  return math.floor(tonumber(number) * factor)
end

-- ---- patterns -----------------------------------------------------------------

--- matcher(pattern) -> function(name) -> boolean | nil, msg
-- "re:" and a Lua pattern (searched, anchor it with ^ and $), else a glob over the
-- whole name: * is any run of characters (dots too), ? one, [abc] one of these.
function M.matcher(pattern)
  if pattern:sub(1, 3) == "re:" then
    local lua = pattern:sub(4)
    local ok, why = pcall(string.find, "", lua)
    if not ok then return nil, ("%q is not a Lua pattern: %s"):format(pattern, tostring(why):gsub("^.-:%d+: ", "")) end
    return function(name) return name:find(lua) ~= nil end
  end
  local lua = pattern:gsub("[%^%$%(%)%%%.%+%-]", "%%%0"):gsub("%*", ".*"):gsub("%?", ".")
  local ok = pcall(string.find, "", "^" .. lua .. "$")
  if not ok then return nil, ("%q is not a glob: a [ has no ]"):format(pattern) end
  return function(name) return name:find("^" .. lua .. "$") ~= nil end
end

-- ---- reading ------------------------------------------------------------------

local function deep_copy(v, path, above)
  if type(v) ~= "table" then return v end
  if above[v] then error({ cycle = path }, 0) end
  above[v] = true
  local out = {}
  for k, x in pairs(v) do out[k] = deep_copy(x, path .. "." .. tostring(k), above) end
  above[v] = nil
  return out
end
interpreted(deep_copy)

-- A copy that the caller may change: an inherited recipe must not change its base.
local function copy_of(r, path)
  local ok, result = pcall(deep_copy, r, "", {})
  if ok then return result end
  if type(result) ~= "table" then error(result, 0) end
  return nil, ("%s: the table %s holds itself; a recipe is plain data"):format(path, result.cycle:sub(2))
end

local function slurp(path)
  local f = io.open(path, "rb")
  if not f then return nil end
  local text = f:read "*a"
  f:close()
  return text
end

-- The folder of the recipes that ship with nibble: this file lies in the tree's lua/nibble/, or in
-- share/lua/5.1/nibble/ of an installation; the executable has them in itself.
local function shipped_folder()
  local source = debug.getinfo(1, "S").source
  local tree, installed = source:match "^@(.*)lua/nibble/recipe%.lua$", source:match "^@(.*)lua/5%.1/nibble/recipe%.lua$"
  return tree and tree .. "recipes/" or installed and installed .. "nibble/recipes/"
end

-- A recipe is found as a path, beside the recipe that names it, or by name among
-- those that ship with nibble (in the executable, or in the tree's recipes/).
local function find(name, beside)
  local candidates = { name, name .. ".lua" }
  if beside then
    table.insert(candidates, 1, beside .. name .. ".lua")
    table.insert(candidates, 1, beside .. name)
  end
  for _, path in ipairs(candidates) do
    local text = slurp(path)
    if text then return text, path end
  end
  local short = name:gsub("^.*/", ""):gsub("%.lua$", "")
  local shipped = rawget(_G, "NIBBLE_RECIPES")
  if shipped and shipped[short] then return shipped[short], "recipes/" .. short .. ".lua" end
  local dir = shipped_folder()
  local text = dir and slurp(dir .. short .. ".lua")
  if text then return text, dir .. short .. ".lua" end
  local known = M.names()
  return nil, known[1] and words.did_you_mean(short, known) or ""
end

--- names() -> sorted array: the recipes that ship with nibble.
function M.names()
  local out, shipped, dir = {}, rawget(_G, "NIBBLE_RECIPES"), shipped_folder()
  for name in pairs(shipped or {}) do out[#out + 1] = name end
  for _, file in ipairs(not shipped and dir and require("nibble.checkpoint").list(dir) or {}) do
    out[#out + 1] = file:match "^(.*)%.lua$"
  end
  table.sort(out)
  return out
end

--- source(path | name) -> text, path of a recipe's file | nil, hint
function M.source(name) return find(name) end

local instruction_limit = 5e7

--- bounded(f, ...) -> true, result | false, error: calls a recipe's function, but not for ever.
-- f must be interpreted (evaluate sees to that): compiled loops ignore hooks.
function M.bounded(f, ...)
  local co = coroutine.create(f)
  local hook, mask, count = debug.gethook() -- LuaJIT has one hook for all coroutines: give it back
  debug.sethook(co, function()
    error(("ran for %d million instructions without an end"):format(instruction_limit / 1e6), 0)
  end, "", instruction_limit)
  local ok, result = coroutine.resume(co, ...)
  if type(hook) == "string" then -- the executable's own, which Ctrl-C has set: "external hook" can't be set again
    debug.sethook()
    nffi.stop_check()
  else
    debug.sethook(hook, mask, count)
  end
  return ok, result
end

-- The text and path of a recipe that `from` (a path, or "" for the caller) asks for by name. sources.given, an earlier
-- recipe's list, goes before the files; sources.list keeps what was found.
local function source(sources, name, from)
  local text, path
  for _, s in ipairs(sources.given or {}) do
    if s.name == name and s.from == from then text, path = s.text, s.path end
  end
  if not text then text, path = find(name, from ~= "" and (from:match "^(.*/)" or "") or nil) end
  if text then table.insert(sources.list, { name = name, from = from, path = path, text = text }) end
  return text, path
end

-- Runs a recipe's text with only math, string and recipe in reach, and not for ever.
local function evaluate(text, path, open_files, sources)
  local chunk, syntax = loadstring(text, "@" .. path)
  if not chunk then return nil, "recipe " .. syntax end
  local env = { math = with(math, {}), string = with(string, {}) } -- copies: ours must stay whole
  env.recipe = function(name)
    if type(name) ~= "string" then error("recipe expects a name, found a " .. type(name), 2) end
    local base_text, base_path = source(sources, name, path)
    if not base_text then error(("recipe %q was not found%s"):format(name, base_path), 2) end
    if open_files[base_path] then error(("recipe %q inherits from itself"):format(name), 2) end
    local base, msg = evaluate(base_text, base_path, with(open_files, { [base_path] = true }), sources)
    if not base then error(msg, 0) end
    local copy, why = copy_of(base, base_path)
    if copy == nil then error(why, 0) end
    return copy
  end
  setfenv(chunk, env)
  jit.off(chunk, true) -- compiled loops ignore hooks
  local ok, result = M.bounded(chunk)
  if ok then return result end
  local why = tostring(result)
  if why:match "^recipe " then return nil, why end
  return nil, why:find(path, 1, true) and "recipe " .. why or ("recipe %s: %s"):format(path, why)
end

local function parse_value(text)
  if text == "true" then return true elseif text == "false" then return false end
  return tonumber(text) or text
end

-- "output.shard=1GB" into the table; intermediate tables are made.
local function assign(r, key, value)
  local parts = {}
  for part in (key .. "."):gmatch "([^.]*)%." do
    if part == "" then return nil, ("--set %s: a part of the name is empty; expected key=value or table.key=value"):format(key) end
    parts[#parts + 1] = part
  end
  local t = r
  for i = 1, #parts - 1 do
    if t[parts[i]] == nil then t[parts[i]] = {} end
    t = t[parts[i]]
    if type(t) ~= "table" then return nil, ("--set %s: %s is not a table"):format(key, parts[i]) end
  end
  t[parts[#parts]] = type(value) == "string" and parse_value(value) or value
  return true
end

--- recipe(path | name | table [, {set = {["output.shard"] = "1GB"}, sources =}]) -> recipe | nil, msg, "einval"
-- Reads and checks a recipe. Unknown keys, wrong types and broken patterns are
-- refused with the place and a suggestion. A name without a path is looked for
-- among the recipes that ship with nibble. set: values that override the file's.
-- r.sources: the texts it was made of, its own first, as {name, from, path, text}; given as an option they are taken
-- instead of the files, so that a recipe can be kept as data.
function M.load(what, options)
  local r, path, text = what, "recipe", nil
  local sources = { list = {}, given = options and options.sources }
  if type(what) == "string" then
    text, path = source(sources, what, "")
    if not text then
      return nil, ("recipe %s was not found%s; give a path, or a name from recipes/"):format(what, path), "einval"
    end
    local msg
    r, msg = evaluate(text, path, { [path] = true }, sources)
    if r == nil then return nil, msg or ("recipe %s returns nothing; end it with return { … }"):format(path), "einval" end
  end
  local why
  r, why = copy_of(r, path)
  if why then return nil, why, "einval" end
  for key, value in pairs(options and options.set or {}) do
    local ok, msg = assign(r, key, value)
    if not ok then return nil, msg, "einval" end
  end
  local ok, msg = check(path, r)
  if not ok then return nil, msg, "einval" end
  r.name = r.name or path:gsub("^.*/", ""):gsub("%.lua$", "")
  return setmetatable(r, { __index = { path = path, text = text, sources = sources.list }, __tostring = M.describe })
end

-- A stable text of a value: what a plan's identity is hashed from. Functions
-- count by their bytecode without debug information.
local function canonical(v, out)
  local t = type(v)
  if t == "table" then
    local keys = {}
    for k in pairs(v) do keys[#keys + 1] = k end
    table.sort(keys, function(a, b)
      if type(a) ~= type(b) then return type(a) < type(b) end
      return a < b
    end)
    out[#out + 1] = "{"
    for _, k in ipairs(keys) do
      out[#out + 1] = tostring(k) .. "="
      canonical(v[k], out)
      out[#out + 1] = ","
    end
    out[#out + 1] = "}"
  elseif t == "function" then
    out[#out + 1] = "function " .. string.dump(v, true)
  else
    out[#out + 1] = t .. ":" .. tostring(v)
  end
end

interpreted(canonical) -- a plan's identity hangs on it

--- canonical(recipe) -> string that is equal for equal recipes.
function M.canonical(r)
  local out = {}
  canonical(r, out)
  return table.concat(out)
end

--- describe(recipe) -> one line: name, scheme, method, output.
function M.describe(r)
  return ("recipe %s: %s%s, method %s → %s"):format(r.name, r.scheme or "no default scheme",
    r.group and (" g" .. r.group) or "", type(r.method) == "function" and "function" or r.method or "rtn",
    r.output and r.output.format or "compressed-tensors")
end

return M

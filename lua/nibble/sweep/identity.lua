-- identity: what a sweep's recipes, models and texts are, by their contents: the same bytes at another path are the same.
--
-- A model's weights are read once, at the rate of memory; the sweep's folder remembers the hash by path, sizes and
-- times of change.
local ffi = require "ffi"
local checkpoint = require "nibble.checkpoint"
local nffi = require "nibble.ffi"
local recipes = require "nibble.recipe"
local C = nffi.C

local M = {}

--- hash(parts) -> 32 hex digits of an array of strings; where one ends counts.
function M.hash(parts)
  local h = C.nb_hash_new()
  if h == nil then error("out of memory for a hash", 0) end
  h = ffi.gc(h, C.nb_hash_free)
  for _, part in ipairs(parts) do
    local size = ("%d:"):format(#part)
    C.nb_hash_update(h, size, #size)
    C.nb_hash_update(h, part, #part)
  end
  local out = ffi.new "char[33]"
  C.nb_hash_hex(h, out)
  return ffi.string(out)
end

-- ---- models ------------------------------------------------------------------------------

-- Files beside the weights that a model's figures hang on.
local beside = { "config.json", "tokenizer.json", "quantize_config.json", "quant_config.json", "hf_quant_config.json",
                 "quantization_config.json" }

local function hash_of_weights(ck, progress)
  local parts, digits, names, done, told = {}, ffi.new "char[33]", {}, 0, C.nb_now()
  for _, t in ipairs(ck.tensors) do names[#names + 1] = t.name end
  table.sort(names) -- in which file a tensor lies says nothing
  for _, name in ipairs(names) do
    nffi.stop_check()
    local info, hash = ck:info(name), ""
    if info.bytes > 0 then
      local t, msg, code = ck:tensor(name)
      if not t then return nil, msg, code end
      nffi.must(C.nb_tensor_hash(digits, t))
      hash = ffi.string(digits)
      t:drop()
    end
    parts[#parts + 1] = ("%s %s %s %s"):format(name, info.dtype, table.concat(info.shape, "x"), hash)
    done = done + info.bytes
    if progress and C.nb_now() - told > 1 then -- small models say nothing
      told = C.nb_now()
      progress { bytes = done, total_bytes = ck.bytes, done = #parts, total = #names, name = ck.name }
    end
  end
  return M.hash(parts)
end

--- model(path [, {cache = {}, progress = fn}]) -> {path, name, hash} | nil, msg, code
-- path: made absolute; hash: of the tensors (names, dtypes, shapes, bytes), config.json and the tokenizer.
-- cache: path and stamp of the files -> hash of the tensors; what is new is added, and cache.changed set.
-- progress{done, total: tensors, bytes, total_bytes, name}: now and then.
function M.model(path, o)
  local cache = o and o.cache or {}
  local ck, msg, code = checkpoint.open(path)
  if not ck then return nil, msg, code end
  local real = checkpoint.real(path) or path
  local key = real .. "; " .. ck:stamp()
  local weights = cache[key]
  if type(weights) ~= "string" then
    weights, msg, code = hash_of_weights(ck, o and o.progress)
    if not weights then return nil, msg, code end
    cache[key], cache.changed = weights, true
  end
  local parts = { weights }
  for _, name in ipairs(beside) do
    local file = (ck.dir == "" and "" or ck.dir:gsub("/*$", "") .. "/") .. name
    parts[#parts + 1] = checkpoint.exists(file) == "file" and checkpoint.read_file(file) or ""
  end
  return { path = real, name = real:match "[^/]+$", hash = M.hash(parts) }
end

--- text(path) -> {path, name, hash} | nil, msg, code: a text file, or a .safetensors file of token ids.
function M.text(path)
  local kind = checkpoint.exists(path)
  if kind ~= "file" then
    return nil, ("%s %s; expected a text file"):format(path, kind and "is not a file" or "doesn't exist"), "eio"
  end
  local text, msg, code = checkpoint.read_file(path)
  if not text then return nil, msg, code end
  local real = checkpoint.real(path)
  return { path = real, name = real:match "[^/]+$", hash = M.hash { text } }
end

-- ---- recipes -----------------------------------------------------------------------------

-- The text that a recipe calibrates with, if it names one: {key = "text" | "ids", path, hash}.
local function calibration(r)
  for _, key in ipairs { "text", "ids" } do
    local path = r.calibrate and r.calibrate[key]
    if path then
      local file, msg, code = M.text(path)
      if not file then return nil, ("recipe %s: calibrate.%s: %s"):format(r.name, key, msg), code end
      return { key = key, path = file.path, hash = file.hash }
    end
  end
end

--- recipe(path | name, set) -> {name, path, set, hash, text, sources, calibrate} | nil, msg, code
-- hash: of what the recipe means after set, of its own text and those it inherits from, and of the text that it
-- calibrates with.
function M.recipe(what, set)
  local r, msg, code = recipes.load(what, { set = set })
  if not r then return nil, msg, code end
  if not r.sources[1] then error("a sweep's recipes are paths or names of files, found a " .. type(what), 2) end
  local parts, texts = { recipes.canonical(r) }, {}
  for i, s in ipairs(r.sources) do
    parts[#parts + 1] = s.text
    texts[i] = (i > 1 and ("-- it inherits from %s:\n"):format(s.name) or "") .. s.text
  end
  local keys = {}
  for k in pairs(set) do keys[#keys + 1] = k end
  table.sort(keys)
  for _, k in ipairs(keys) do parts[#parts + 1] = k .. "=" .. tostring(set[k]) end
  local calibrate
  calibrate, msg, code = calibration(r)
  if msg then return nil, msg, code end
  if calibrate then parts[#parts + 1] = calibrate.hash end
  return { name = r.name, path = r.path, set = set, hash = M.hash(parts), text = table.concat(texts, "\n"),
           sources = r.sources, calibrate = calibrate }
end

--- load_recipe(kept) -> recipe | nil, msg, code: a recipe as this module kept it, its files no longer needed.
function M.load_recipe(kept)
  local r, msg, code = recipes.load(kept.sources[1].name, { set = kept.set, sources = kept.sources })
  if r and kept.calibrate then r.calibrate[kept.calibrate.key] = kept.calibrate.path end
  return r, msg, code
end

nffi.interpreted(M.recipe)

return M

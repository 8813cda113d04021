-- checkpoint: a folder of safetensors files (or one file) as something to look
-- into. Opening reads headers and config.json; tensors are mapped views.
-- Writing lives in checkpoint_write.lua, reached through this module.
local ffi = require "ffi"
local nffi = require "nibble.ffi"
local json = require "nibble.json"
local tensor = require "nibble.tensor"
local C, check, must = nffi.C, nffi.check, nffi.must

local M = {}

-- ---- files and folders -------------------------------------------------------

local kinds = { [0] = nil, "file", "dir", "other" }

--- exists(path) -> "file" | "dir" | "other" | nil
function M.exists(path) return kinds[C.nb_path_kind(path)] end

ffi.cdef "char *realpath(const char *path, char *resolved); void free(void *p);"

--- real(path) -> the absolute path without links and dots | nil where nothing is.
function M.real(path)
  local resolved = ffi.C.realpath(path, nil)
  if resolved == nil then return nil end
  local text = ffi.string(resolved)
  ffi.C.free(resolved)
  return text
end

--- list(dir) -> sorted array of names (folders end in "/") | nil, msg, code
function M.list(dir)
  local t = tensor.type()
  local ok, msg, code = check(C.nb_dir_list(t, dir))
  if not ok then return nil, msg, code end
  local names = {}
  for name in ffi.string(t.data, t:bytes()):gmatch "%Z+" do names[#names + 1] = name end
  t:free()
  return names
end

--- mkdir(path) -> true | nil, msg, code: makes the folder and its parents.
function M.mkdir(path) return check(C.nb_dir_make(path), true) end

--- read_file(path) -> text | nil, msg, code
function M.read_file(path)
  local f, msg = io.open(path, "rb")
  local text = f and f:read "*a"
  if f then f:close() end
  if not text then return nil, "cannot read " .. (msg or path), "eio" end
  return text
end

--- write_file(path, text) -> true | nil, msg, code: all of it or nothing
-- (temporary file, fsync, rename).
function M.write_file(path, text) return check(C.nb_file_write(path, text, #text), true) end

--- copy_file(src, dst) -> true | nil, msg, code: byte for byte, atomically.
function M.copy_file(src, dst) return check(C.nb_file_copy(dst, src), true) end

--- remove_file(path) -> true | nil, msg, code; a missing file is fine.
function M.remove_file(path) return check(C.nb_file_remove(path), true) end

-- writer, journal: loaded when first used.
setmetatable(M, { __index = function(_, key)
  if key == "writer" or key == "journal" then
    local parts = require "nibble.checkpoint_write"
    M.writer, M.journal = parts.writer, parts.journal
    return parts[key]
  end
end })

local function join(dir, name) return dir == "" and name or dir:gsub("/*$", "") .. "/" .. name end

-- ---- which files make up a checkpoint ----------------------------------------

local INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"

-- Weights in any packaging: never copied along as "other files".
local weight_patterns = {
  "%.safetensors$", "%.index%.json$", "%.partial$", "%.gguf$", "%.pt$", "%.pth$", "%.ckpt$",
  "%.h5$", "%.msgpack$", "%.onnx$",
  "^pytorch_model.*%.bin$", "%.bin%.index%.json$",
}
--- quant_files: where a quantization config may lie beside config.json (FORMATS 1).
M.quant_files = { "quantize_config.json", "quant_config.json", "hf_quant_config.json", "quantization_config.json" }

local function is_weight(name)
  for _, pattern in ipairs(weight_patterns) do
    if name:match(pattern) then return true end
  end
end

-- Numbered shards without an index: all of them, or the sentence that one is missing.
local function shards_of(dir, names)
  local found, total, stem = {}, nil, nil
  for _, name in ipairs(names) do
    local s, i, n = name:match "^(.*)%-(%d+)%-of%-(%d+)%.safetensors$"
    if i and (not stem or (s == stem and n == total)) then
      found[tonumber(i)], stem, total = name, s, n
    end
  end
  if not stem then return nil end
  local files = {}
  for i = 1, tonumber(total) do
    if not found[i] then
      local text = "%s: shard %d of %d is missing (%s-%05d-of-%s.safetensors); get that file too"
      return nil, text:format(dir, i, tonumber(total), stem, i, total), "eio"
    end
    files[i] = found[i]
  end
  return files
end

-- The name(s) to open in dir, in the order in which consumers look.
local function choose(dir, names)
  local has, indices, singles = {}, {}, {}
  for _, name in ipairs(names) do
    has[name] = true
    if name:match "%.safetensors%.index%.json$" then indices[#indices + 1] = name end
    if name:match "%.safetensors$" then singles[#singles + 1] = name end
  end
  if has[INDEX] then return { INDEX } end
  if has[SINGLE] then return { SINGLE } end
  if #indices == 1 then return indices end
  local files, msg, code = shards_of(dir, singles)
  if files or msg then return files, msg, code end
  if #singles == 1 then return singles end
  if #singles > 1 then
    local text = "%s holds %d .safetensors files and neither %s nor an index; open one of them by name: %s"
    return nil, text:format(dir, #singles, SINGLE, table.concat(singles, ", ")), "eformat"
  end
  local other = {}
  for _, name in ipairs(names) do
    if is_weight(name) then other[#other + 1] = name end
  end
  if #other > 0 then
    return nil, ("%s holds no .safetensors file, but %s: nibble doesn't read that yet"):format(dir,
      table.concat(other, ", ")), "eunsupported"
  end
  return nil, ("%s holds no checkpoint; expected %s, or %s with its shards"):format(dir, SINGLE, INDEX), "eformat"
end

-- ---- opening --------------------------------------------------------------------

local function open_weights(dir, files)
  local out = ffi.new "nb_safetensors *[1]"
  local ok, msg, code = check(C.nb_safetensors_open(out, join(dir, files[1])))
  if not ok then return nil, msg, code end
  local handle = ffi.gc(out[0], C.nb_safetensors_close)
  for i = 2, #files do
    ok, msg, code = check(C.nb_safetensors_add(handle, join(dir, files[i]), files[i]))
    if not ok then return nil, msg, code end
  end
  return handle
end

--- read_object(path) -> table | nil | nil, msg, code: a JSON object from a file that may be missing.
function M.read_object(path)
  if M.exists(path) ~= "file" then return nil end
  local text, msg, code = M.read_file(path)
  if not text then return nil, msg, code end
  local value
  value, msg, code = json.decode(text, path)
  if value == nil then return nil, msg, code end
  if type(value) ~= "table" or value == json.null or json.is_array(value) then
    return nil, path .. ": expected a JSON object, '{'", "eformat"
  end
  return value
end

local function is_object(v) return type(v) == "table" and v ~= json.null end

--- quantization_of(dir, config) -> {config, source} | nil | nil, msg, code
-- FORMATS 1, "Where the quantization config lives".
function M.quantization_of(dir, config)
  config = config or {}
  local text_config = is_object(config.text_config) and config.text_config or {}
  for _, place in ipairs {
    { config.quantization_config, "quantization_config" },
    { text_config.quantization_config, "text_config.quantization_config" },
    { config.compression_config, "compression_config" },
  } do
    if is_object(place[1]) then return { config = place[1], source = "config.json:" .. place[2] } end
  end
  for _, name in ipairs(M.quant_files) do
    local found, msg, code = M.read_object(join(dir, name))
    if found then return { config = found, source = name } end
    if msg then return nil, msg, code end
  end
end

-- What a conversion copies: files, and those in subfolders, without weights,
-- configs that describe the weights, and dot files.
local function other_files(dir, names, prefix, out)
  local here = M.real(dir) .. "/"
  for _, name in ipairs(names) do
    if name:sub(1, 1) ~= "." then
      if name:sub(-1) == "/" then
        local below = M.real(join(dir, name))
        local loops = below and here:sub(1, #below + 1) == below .. "/" -- a link to a folder that holds it
        if below and not loops then other_files(join(dir, name:sub(1, -2)), M.list(join(dir, name)) or {}, prefix .. name, out) end
      elseif not is_weight(name) then
        out[#out + 1] = prefix .. name
      end
    end
  end
  return out
end

local not_copied = { ["config.json"] = true }
for _, name in ipairs(M.quant_files) do not_copied[name] = true end

--- other_files(dir) -> array of names relative to dir that a conversion copies: no weights, index, dot files, config.json or
-- quantization configs.
function M.other_files(dir)
  local out = {}
  for _, name in ipairs(other_files(dir, M.list(dir) or {}, "", {})) do
    if not not_copied[name] then out[#out + 1] = name end
  end
  return out
end

local function warn_of_stray_weights(ck, names)
  local known = {}
  for _, name in ipairs(ck.files) do known[name] = true end
  for _, name in ipairs(names) do
    if name == SINGLE and not known[name] then
      local text = "%s: %s lies beside %s, which doesn't list it: nibble follows the index, but transformers "
        .. "would load that file instead; remove the one that is stale"
      ck.warnings[#ck.warnings + 1] = text:format(ck.path, SINGLE, ck.index)
    end
  end
end

local Checkpoint = {}

-- Everything about ck that its handle knows at once.
local function describe(ck)
  ck.files, ck.warnings = {}, {}
  local bytes = ffi.new "int64_t[1]"
  ck.bytes = 0
  for i = 0, tonumber(C.nb_safetensors_files(ck.handle)) - 1 do
    local name = C.nb_safetensors_file(ck.handle, i, bytes)
    ck.files[i + 1] = ffi.string(name.data, name.bytes)
    ck.bytes = ck.bytes + tonumber(bytes[0])
  end
  for i = 0, tonumber(C.nb_safetensors_warnings(ck.handle)) - 1 do
    ck.warnings[i + 1] = ffi.string(C.nb_safetensors_warning(ck.handle, i))
  end
  ck.metadata = {}
  local value = ffi.new "nb_text[1]"
  for i = 0, tonumber(C.nb_safetensors_metadata_count(ck.handle)) - 1 do
    local key = C.nb_safetensors_metadata(ck.handle, i, value)
    ck.metadata[ffi.string(key.data, key.bytes)] = ffi.string(value[0].data, value[0].bytes)
  end
  ck.count = tonumber(C.nb_safetensors_count(ck.handle))
end

local function open_dir(path)
  local names, msg, code = M.list(path)
  if not names then return nil, msg, code end
  local files
  files, msg, code = choose(path, names)
  if not files then return nil, msg, code end
  local ck = { path = path, dir = path, name = path:gsub("/+$", ""):match "[^/]+$" or path }
  ck.handle, msg, code = open_weights(path, files)
  if not ck.handle then return nil, msg, code end
  describe(ck)
  if files[1]:match "%.json$" then
    ck.index = files[1]
    warn_of_stray_weights(ck, names)
  elseif #files > 1 then
    ck.warnings[1] = ("%s: %d numbered shards, but no %s; consumers need one"):format(path, #files, INDEX)
  end
  ck.other_files = M.other_files(path)
  return ck
end

--- open_file(path) -> checkpoint | nil, msg, code: of one .safetensors file, without a look at its config.json.
function M.open_file(path)
  local dir, file = path:match "^(.*/)([^/]*)$"
  dir, file = dir or "", file or path
  local ck = { path = path, dir = dir, name = file:match "^(.+)%.safetensors$" or file }
  local msg, code
  ck.handle, msg, code = open_weights("", { path })
  if not ck.handle then return nil, msg, code end
  ck.other_files = {}
  describe(ck)
  return setmetatable(ck, Checkpoint)
end

--- open(path) -> checkpoint | nil, msg, code
-- path: a folder (model.safetensors, or an index with its shards) or one
-- .safetensors or .safetensors.index.json file. Reads headers and config.json
-- only; every rule of the format is checked, and what breaks one is named.
--
-- Fields: path, dir, name; config (config.json as a table, or nil); files
-- (weight files), bytes (their sizes' sum), count (of tensors), other_files
-- (names relative to dir that a conversion copies: no weights, index, config.json
-- or quantize_config.json); metadata; tensors (array of {name, dtype, shape,
-- bytes, params, file, begin}); quantization ({config, source} or nil); warnings
-- (sentences about what is odd but readable).
-- A weight file that another program truncates later kills the process with
-- SIGBUS where the lost bytes are read: sizes are checked here, once.
function M.open(path)
  if type(path) ~= "string" then error("open: expected a path, found " .. type(path), 2) end
  local kind = M.exists(path)
  if not kind then
    return nil, path .. " doesn't exist; expected a checkpoint's folder or a .safetensors file", "eio"
  end
  local ck, msg, code
  if kind == "dir" then ck, msg, code = open_dir(path) else ck, msg, code = M.open_file(path) end
  if not ck then return nil, msg, code end
  ck.config, msg, code = M.read_object(join(ck.dir, "config.json"))
  if msg then return nil, msg, code end
  ck.quantization, msg, code = M.quantization_of(ck.dir, ck.config)
  if msg then return nil, msg, code end
  return setmetatable(ck, Checkpoint)
end

-- ---- the checkpoint's methods --------------------------------------------------

local methods = {}
local c = ffi.new "nb_tensor_info" -- of the tensor that info_at looks at

-- Large models have few different shapes: one table each, read-only, kept in a tree by the
-- dimensions. The table of a path lies under the key 0, which stands for its end.
local function shape_of(shapes)
  local at = shapes
  for d = 0, c.ndim - 1 do
    local n = tonumber(c.shape[d]) + 1 -- a dimension may be 0
    local below = at[n]
    if not below then
      below = {}
      at[n] = below
    end
    at = below
  end
  local shape = at[0]
  if not shape then
    shape = {}
    for d = 1, c.ndim do shape[d] = tonumber(c.shape[d - 1]) end
    at[0] = shape
  end
  return shape
end

local function info_at(ck, i, shapes)
  must(C.nb_safetensors_info(c, ck.handle, i))
  local shape = shape_of(shapes)
  return {
    name = ffi.string(c.name.data, c.name.bytes), dtype = tensor.names[c.dtype], shape = shape,
    bytes = tonumber(c.bytes), params = tonumber(c.params), file = ck.files[tonumber(c.file) + 1],
    begin = tonumber(c.begin),
  }
end

local function find(ck, name)
  local i = tonumber(C.nb_safetensors_find(ck.handle, name, #name))
  if i >= 0 then return i end
end

--- ck:info(name) -> {name, dtype, shape, bytes, params, file, begin} | nil
function methods.info(ck, name)
  local i = find(ck, name)
  return i and info_at(ck, i, {})
end

--- ck:tensor(name) -> tensor: a mapped, read-only view | nil, msg, code
function methods.tensor(ck, name)
  local i = find(ck, name)
  if not i then return nil, ("%s has no tensor %s"):format(ck.path, tostring(name)), "eformat" end
  local t = tensor.type()
  return check(C.nb_safetensors_tensor(t, ck.handle, i), t)
end

--- ck:stamp() -> text that changes when a weight file is replaced: names, sizes, times of change.
function methods.stamp(ck)
  local out, bytes, changed = {}, ffi.new "int64_t[1]", ffi.new "int64_t[1]"
  for i, name in ipairs(ck.files) do
    must(C.nb_file_stamp(bytes, changed, join(ck.dir, name)))
    out[i] = ("%s %s %s"):format(name, tostring(bytes[0]), tostring(changed[0]))
  end
  return table.concat(out, "; ")
end

-- What the tensors mean is the formats' knowledge.
local function formats() return require "nibble.formats" end

--- ck:modules() -> array of the modules' records, in natural order | nil, msg, code; from headers alone.
-- A record: name, kind, format, scheme, dtype, n, k, params, bytes, bits_per_weight, tensors.
function methods.modules(ck) return formats().modules(ck) end

--- ck:module(name) -> module | nil, msg, code; ck["model.layers.0.mlp.down_proj"] is this.
-- Its record's fields, and .weight (tensor; dequantized) and .quantized, read when first asked for.
function methods.module(ck, name) return formats().module(ck, name) end

--- ck:weight(name [, dtype]) -> tensor | nil, msg, code: a module's weight, dequantized, or any tensor by
-- its full name; a mapped view where nothing has to be computed.
function methods.weight(ck, name, dtype) return formats().weight(ck, name, dtype) end

--- ck:quantized(name) -> Quantized | nil, msg, code: codes, scales and zero-points of a module.
function methods.quantized(ck, name) return formats().quantized(ck, name) end

--- ck:input(name) -> {activations=, scale=, zero_point=, global=} | false | nil, msg, code
-- How a module's input is quantized and the numbers that calibration fixed (each nil where none is stored); false
-- where it stays as it is.
function methods.input(ck, name) return formats().input(ck, name) end

-- The modules as a list, or the error of a caller's mistake.
local function listed(ck, how, wanted)
  local modules = require "nibble.modules"
  local recs, msg, code = methods.modules(ck)
  if not recs then return nil, msg, code end
  recs, msg = modules[how](recs, wanted)
  if not recs then error(msg, 3) end
  return modules.list(ck, recs)
end

--- ck:grep(pattern) -> list of the modules whose names match | nil, msg, code
-- pattern: a glob ("*.mlp.*"), "re:" and a regular expression, or a piece of the name. The list is an array of modules
-- that prints as a table and can be narrowed: list:grep, list:select, list:stats, list:totals, list:names, list:show.
function methods.grep(ck, pattern) return listed(ck, "grep", pattern) end

--- ck:select{kind =, scheme =, bits =, dtype =, name =, min_bytes =, …} -> list of the modules that have it all | nil,
-- msg, code
-- kind: "linear", "embedding", "norm" or "other"; scheme: words of what the table shows ("W4A16", "W4A16 g128");
-- quantized, symmetric: true or false; dtype, format; bits, group, n, k, params, bytes, bits_per_weight: numbers,
-- each also with min_ and max_; name: a pattern as grep takes it; where: a function of a module. An array means any
-- of its values, a function one that says yes: m:select{kind = "linear", bits = {2, 3, 4}, min_bytes = 2^20}.
function methods.select(ck, wanted) return listed(ck, "choose", wanted) end

local lazy = {}

function lazy.tensors(ck)
  local out, shapes = {}, {}
  for i = 1, ck.count do
    nffi.stop_check()
    out[i] = info_at(ck, i - 1, shapes)
  end
  return out
end

function Checkpoint.__index(ck, key)
  if methods[key] then return methods[key] end
  if lazy[key] then
    local value = lazy[key](ck)
    rawset(ck, key, value)
    return value
  end
  -- ck["model.layers.0.mlp.up_proj"]: a module's name. Fields that are absent are not.
  local named = type(key) == "string" and key:sub(1, 1) ~= "_" and not Checkpoint.absent[key]
  if named then return methods.module(ck, key) end
end

Checkpoint.absent = { config = true, quantization = true, index = true }

function Checkpoint.__tostring(ck) return require("nibble.summary").line(ck) end

-- For completion: the methods, and what ck["…"] may name.
M.methods, Checkpoint.__methods = methods, methods
function Checkpoint.__names(ck)
  local out = {}
  for i, rec in ipairs(ck:modules() or {}) do out[i] = rec.name end
  return out
end

return M

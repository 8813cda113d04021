-- repair.view: a checkpoint as it lies there, also one that opening refuses, with repairs laid over it: tensors that are
-- made from others, left out or added, and texts of config files. It is what a repair reads, and what is copied out.
local checkpoint = require "nibble.checkpoint"
local formats = require "nibble.formats"
local json = require "nibble.json"
local models = require "nibble.models"
local survey = require "nibble.check.survey"
local text = require "nibble.text"

local M = {}

local View = {}
View.__index = View

-- Findings of the survey that no copy can mend.
local lost = { ["missing-file"] = true, ["damaged-file"] = true, ["truncated-file"] = true, ["header-overlap"] = true,
  ["header-gap"] = true, ["header-entry"] = true, ["config-damaged"] = true }

-- Shards of the same numbering that the index forgot.
local function add_numbered(s)
  local stem, total
  local known = {}
  for _, file in ipairs(s.files) do
    known[file] = true
    local a, n = file:match "^(.*)%-%d+%-of%-(%d+)%.safetensors$"
    stem, total = stem or a, total or n
  end
  for _, name in ipairs(stem and s.index and checkpoint.list(s.dir) or {}) do
    local a, n = name:match "^(.*)%-%d+%-of%-(%d+)%.safetensors$"
    if a == stem and n == total and not known[name] then
      local part, msg, code = checkpoint.open_file(s.dir .. "/" .. name)
      if not part then return nil, msg, code end
      for _, t in ipairs(part.tensors) do
        if s.by_name[t.name] then
          return nil, ("%s is in both %s and %s, which the index doesn't name; remove the file that is stale"):format(t.name,
            s.by_name[t.name].file, name), "eformat"
        end
        t.file, t.unlisted = name, true
        s.by_name[t.name], s.tensors[#s.tensors + 1] = t, t
      end
      s.parts[name], s.files[#s.files + 1] = part, name
    end
  end
  return true
end

-- Of a tensor that two files hold: the one that the index names, else either, where their bytes are the same.
local function settle_doubled(s, map)
  for _, f in ipairs(s.findings) do
    local first, second = s.by_name[f.tensor], f.file
    if f.rule == "duplicate-tensor" then
      local a, b = s.parts[first.file]:tensor(f.tensor), s.parts[second]:tensor(f.tensor)
      if a and b and a:type() == b:type() and text.shape(a:size()) == text.shape(b:size()) and a:equal(b) then
        s.doubled[#s.doubled + 1] = { name = f.tensor, file = map and map[f.tensor] == second and first.file or second }
      else
        return nil, ("%s is in both %s and %s with different values, and nothing says which is stale; remove one of the files"):format(
          f.tensor, first.file, second), "eformat"
      end
    end
  end
  return true
end

--- view.open(path) -> view | nil, msg, code
-- Fields: as a checkpoint's (path, dir, name, config, quantization, files, tensors, other_files), findings (the survey's),
-- config_text (of config.json | nil), texts (name -> text of each config file that is written). Refused: files that are
-- missing or damaged, which nothing here can mend.
function M.open(path)
  if checkpoint.exists(path) ~= "dir" then
    return nil, ("%s %s; repair takes a checkpoint's folder"):format(path, checkpoint.exists(path) and "is a file"
      or "doesn't exist"), "eio"
  end
  local s, msg, code = survey.open(path)
  if not s then return nil, msg, code end
  for _, f in ipairs(s.findings) do
    if lost[f.rule] then return nil, ("%s: %s; %s"):format(path, f.says, f.fix), "eformat" end
  end
  if #s.tensors == 0 then
    return nil, ("%s: %s names none of the weight files that are here; remove it, and they are taken as they are"):format(path,
      s.index or "the index"), "eformat"
  end
  local index = s.index and checkpoint.read_object(s.dir .. "/" .. s.index)
  s.map = index and type(index.weight_map) == "table" and index.weight_map or nil
  s.doubled = {}
  local ok
  ok, msg, code = settle_doubled(s, s.map)
  if ok then ok, msg, code = add_numbered(s) end
  if not ok then return nil, msg, code end
  local v = setmetatable({ survey = s, path = s.path, dir = s.dir, name = s.name, config = s.config, quantization = s.quantization,
    files = s.files, findings = s.findings, tensors = s.tensors, by_name = s.by_name, warnings = {}, texts = {}, metadata = {},
    other_files = checkpoint.other_files(path) }, View)
  for _, file in ipairs(s.files) do
    for key, value in pairs(s.parts[file].metadata) do v.metadata[key] = value end
  end
  for _, name in ipairs { "config.json", unpack(checkpoint.quant_files) } do
    if checkpoint.exists(s.dir .. "/" .. name) == "file" then
      v.texts[name], msg, code = checkpoint.read_file(s.dir .. "/" .. name)
      if not v.texts[name] then return nil, msg, code end
    end
  end
  return v
end

-- ---- what the formats use of a checkpoint ------------------------------------------------

--- view:info(name) -> the tensor's record | nil
function View.info(v, name) return v.by_name[name] end

-- Mapped bytes that may stay resident: a copy reads the whole model.
local resident_bytes = 64 * 2 ^ 20

-- A mapped tensor is handed out; the pages of those before it need not stay.
local function hand_out(v, t, bytes)
  v.handed, v.first_handed, v.handed_bytes = v.handed or {}, v.first_handed or 1, (v.handed_bytes or 0) + bytes
  v.handed[#v.handed + 1] = { t = t, bytes = bytes }
  while v.handed_bytes > resident_bytes and v.first_handed < #v.handed do
    local old = v.handed[v.first_handed]
    old.t:drop()
    v.handed_bytes, v.handed[v.first_handed], v.first_handed = v.handed_bytes - old.bytes, false, v.first_handed + 1
  end
  return t
end

--- view:read(info) -> tensor | nil, msg, code: of a record that the view has or had: mapped, or made from older ones.
function View.read(v, info)
  local edit = info.edit
  if not edit then
    local t, msg, code = v.survey.parts[info.file]:tensor(info.name)
    if not t then return nil, msg, code end
    return hand_out(v, t, info.bytes)
  end
  if v.last ~= edit then
    local made, msg, code = edit.make()
    if not made then return nil, msg, code end
    v.last, v.made = edit, made -- of one module at a time
  end
  return v.made[info.suffix]
end

--- view:tensor(name) -> tensor | nil, msg, code
function View.tensor(v, name)
  local info = v.by_name[name]
  if not info then return nil, ("%s has no tensor %s"):format(v.path, tostring(name)), "eformat" end
  return v:read(info)
end

--- view:as_now() -> the view as it is now, for what remembers an object as long as it lives: a changed view is another.
function View.as_now(v) return setmetatable({}, { __index = v }) end

--- view:modules() -> array of records, faults: formats.survey of the view as it is now.
function View.modules(v)
  if not v.found then v.found = { formats.survey(v:as_now()) } end
  return v.found[1], v.found[2]
end

--- view:source(rec) -> suffix -> tensor | nil, msg, code: what a format's read() takes, as the record's tensors were then.
function View.source(v, rec)
  local out = {}
  for suffix, info in pairs(rec.tensors) do
    local t, msg, code = v:read(info)
    if not t then return nil, msg, code end
    out[suffix] = t
  end
  return out
end

--- view:expected() -> module name -> {n, k, …}: what config.json means, where the architecture is known.
function View.expected(v)
  local arch = v.config and models.of(v.config)
  local e = arch and require("nibble.check.model").expected(arch, v:as_now())
  return e and e.by or {}
end

--- view:stamp() -> text that changes when a weight file is replaced.
function View.stamp(v) return checkpoint.methods.stamp(v) end

-- ---- repairs --------------------------------------------------------------------------------

local function changed(v) v.found, v.last, v.made = nil, nil, nil end

local function bytes_of(dtype, shape)
  local t = require "nibble.tensor"
  local params = 1
  for _, n in ipairs(shape) do params = params * n end
  return params, params * tonumber(require("nibble.ffi").C.nb_dtype_bits(t.dtype_id(dtype))) / 8
end

-- Where in the array each record is.
local function places(v)
  if not v.at then
    v.at = {}
    for i, t in ipairs(v.tensors) do v.at[t] = i end
  end
  return v.at
end

--- view:rewrite(module, parts, make): the module's tensors `parts` (suffix -> {dtype, shape}) are what make() returns:
-- suffix -> tensor | nil, msg, code. Tensors that aren't there yet are added.
function View.rewrite(v, module, parts, make)
  local edit = { make = make }
  for _, suffix in ipairs(json.keys(parts)) do
    local name = suffix == "" and module or module .. "." .. suffix
    local dtype, shape = parts[suffix][1], parts[suffix][2]
    local params, bytes = bytes_of(dtype, shape)
    local info = { name = name, suffix = suffix, dtype = dtype, shape = shape, params = params, bytes = bytes, edit = edit }
    local old = v.by_name[name]
    v.by_name[name] = info
    local at = old and places(v)[old] or #v.tensors + 1
    v.tensors[at], places(v)[info] = info, at
  end
  changed(v)
end

--- view:drop(name): the tensor is left out.
function View.drop(v, name)
  for i, t in ipairs(v.tensors) do
    if t.name == name then
      table.remove(v.tensors, i)
      break
    end
  end
  v.by_name[name], v.at = nil, nil
  changed(v)
end

--- view:set_config(key, value) -> true | nil, msg, code: a member of config.json, the rest of its bytes as they were.
function View.set_config(v, key, value)
  local made, msg, code = json.replace(v.texts["config.json"] or "{}", key, value)
  if not made then return nil, msg, code end
  v.texts["config.json"] = made
  v.config, msg, code = json.decode(made, "config.json")
  if not v.config then return nil, msg, code end
  if key == "quantization_config" then v.quantization = { config = v.config[key], source = "config.json:" .. key } end
  changed(v)
  return true
end

-- A copy of decoded JSON whose objects keep the order that they were read in: rules that come first count.
local function in_order(value)
  if type(value) ~= "table" or value == json.null then return value end
  local out = json.is_array(value) and json.array {} or { __order = value.__order or json.keys(value) }
  if json.is_array(value) then
    for i, x in ipairs(value) do out[i] = in_order(x) end
  else
    for _, key in ipairs(json.keys(value)) do out[key] = in_order(value[key]) end
  end
  return out
end

--- view:quantization_copy() -> the quantization config, to be changed and given to set_quantization.
function View.quantization_copy(v) return json.decode(json.encode(in_order(v.quantization.config))) end

--- view:set_quantization(config) -> true | nil, msg, code: where the quantization config lies, config.json or a side file.
function View.set_quantization(v, config)
  local source = v.quantization.source
  if source == "config.json:quantization_config" then return v:set_config("quantization_config", in_order(config)) end
  if not v.texts[source] then
    return nil, ("the quantization config lies in %s, where nibble changes nothing; move it to quantization_config"):format(source),
      "eunsupported"
  end
  v.texts[source] = json.encode(in_order(config), { indent = 2 }) .. "\n"
  v.quantization = { config = json.decode(v.texts[source]), source = source }
  changed(v)
  return true
end

--- view:forget(): what was set of config.json is read again from its text.
function View.forget(v)
  v.config = v.texts["config.json"] and json.decode(v.texts["config.json"]) or nil
  changed(v)
end

--- view:set_text(name, text | nil): a config file beside config.json; nil: it is left out.
function View.set_text(v, name, value) v.texts[name] = value end

return M

-- check.survey: a checkpoint as it lies there, with everything that opening it would refuse told at once: files that are
-- missing or damaged, tensors that are there twice, an index that says other things than the headers.
local checkpoint = require "nibble.checkpoint"
local formats = require "nibble.formats"
local header = require "nibble.check.header"
local json = require "nibble.json"
local nffi = require "nibble.ffi"

local M = {}

local INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"

-- ---- what the formats and checks use of a checkpoint --------------------------------

local methods = {}
local surveyed = { __index = methods }

--- survey:info(name) -> {name, dtype, shape, bytes, params, file, begin} | nil
function methods.info(s, name) return s.by_name[name] end

--- survey:tensor(name) -> tensor: a mapped view | nil, msg, code: of a damaged file nothing is mapped
function methods.tensor(s, name)
  local part = s.by_name[name] and s.parts[s.by_name[name].file]
  if not part then return nil, ("%s: the tensor %s can't be read"):format(s.path, name), "eformat" end
  return part:tensor(name)
end

--- survey:modules() -> array of records; what is wrong is the second result of formats.survey.
function methods.modules(s) return (formats.survey(s)) end
function methods.weight(s, ...) return formats.weight(s, ...) end
function methods.quantized(s, ...) return formats.quantized(s, ...) end
function methods.input(s, ...) return formats.input(s, ...) end

-- ---- which files there are ------------------------------------------------------------

local function add(s, finding) s.findings[#s.findings + 1] = finding end

-- The index as a table | nil; what is wrong with it is a finding.
local function read_index(s, name)
  local index, msg = checkpoint.read_object(s.dir .. "/" .. name)
  if not index then
    add(s, { rule = "index-damaged", file = name, says = msg, fix = "write the index again from the files' headers",
      repair = { kind = "index" } })
  elseif type(index.weight_map) ~= "table" or json.is_array(index.weight_map) then
    add(s, { rule = "index-damaged", file = name, says = name .. " has no weight_map; expected an object from tensors to files",
      fix = "write the index again from the files' headers", repair = { kind = "index" } })
    index = nil
  end
  return index
end

local function inside(file)
  return type(file) == "string" and file ~= "" and not file:find "^/" and not file:find "%z" and not file:find "\\"
    and not ("/" .. file .. "/"):find("/../", 1, true)
end

-- File names by the index, each with the number of tensors that it should hold.
local function files_of_map(s, map)
  local count, files = {}, {}
  for _, tensor in ipairs(json.keys(map)) do
    local file = map[tensor]
    if not inside(file) then
      add(s, { rule = "index-damaged", file = s.index, tensor = tensor, says = ("weight_map puts %s into %s, which is no file of "
        .. "this folder"):format(tensor, tostring(file)), fix = "write the index again from the files' headers",
        repair = { kind = "index" } })
    else
      if not count[file] then files[#files + 1] = file end
      count[file] = (count[file] or 0) + 1
    end
  end
  table.sort(files)
  return files, count
end

-- Shards by their numbers, with those that the numbering lacks.
local function numbered(names)
  local found, total, stem = {}, nil, nil
  for _, name in ipairs(names) do
    local s, i, n = name:match "^(.*)%-(%d+)%-of%-(%d+)%.safetensors$"
    if i and (not stem or (s == stem and n == total)) then found[tonumber(i)], stem, total = name, s, n end
  end
  if not stem then return nil end
  local files, missing = {}, {}
  for i = 1, math.min(tonumber(total), 100000) do
    if found[i] then files[#files + 1] = found[i]
    else missing[#missing + 1] = ("%s-%s-of-%s.safetensors"):format(stem, ("%0" .. #total .. "d"):format(i), total) end
  end
  return files, missing
end

-- -> files to read, the index's map | nil
local function choose(s, names)
  local has = {}
  for _, name in ipairs(names) do
    has[name] = true
    if name:match "%.safetensors%.index%.json$" and (not s.index or name == INDEX) then s.index = name end
  end
  if s.index then
    local index = read_index(s, s.index)
    if index then
      s.total = type(index.metadata) == "table" and index.metadata.total_size or nil
      local files, count = files_of_map(s, index.weight_map)
      for _, file in ipairs(files) do
        if checkpoint.exists(s.dir .. "/" .. file) ~= "file" then
          add(s, { rule = "missing-file", file = file, says = ("%s puts %d tensors into %s, which doesn't exist"):format(s.index,
            count[file], file), fix = "get that file too" })
        end
      end
      return files, index.weight_map
    end
  end
  if has[SINGLE] then return { SINGLE } end
  local files, missing = numbered(names)
  for _, name in ipairs(missing or {}) do
    add(s, { rule = "missing-file", file = name, says = ("the other shards' numbers say that %s is missing"):format(name),
      fix = "get that file too" })
  end
  if files then return files end
  files = {}
  for _, name in ipairs(names) do
    if name:match "%.safetensors$" then files[#files + 1] = name end
  end
  return files
end

-- ---- what they hold --------------------------------------------------------------------

local by_kind = {
  ends = { rule = "truncated-file", fix = "get the file again" },
  overlaps = { rule = "header-overlap" }, gaps = { rule = "header-gap" }, trails = { rule = "header-gap" },
  entry = { rule = "header-entry" },
}
local AGAIN = "the file was damaged or written by a faulty program: get it again, or write it anew"

-- The records of one file, damaged or not.
local function read_file(s, file)
  local path = s.dir .. "/" .. file
  if checkpoint.exists(path) ~= "file" then return {} end
  local part, msg = checkpoint.open_file(path)
  if part then
    s.parts[file], s.bytes = part, s.bytes + part.bytes
    s.files[#s.files + 1] = file
    return part.tensors
  end
  s.files[#s.files + 1] = file
  local list, faults = header.read(path)
  if not list or #faults == 0 then -- nothing to go by, or what only the strict reader knows
    add(s, { rule = "damaged-file", file = file, says = (msg:gsub("^%S+/", "")), fix = AGAIN })
    s.unreadable = s.unreadable or not list
    return list or {}
  end
  for _, fault in ipairs(faults) do
    local kind = by_kind[fault.kind]
    add(s, { rule = kind.rule, file = file, tensor = fault.tensor, says = file .. ": " .. fault.says, fix = kind.fix or AGAIN,
      key = file })
  end
  return list
end

local function collect(s, files)
  for _, file in ipairs(files) do
    nffi.stop_check()
    for _, t in ipairs(read_file(s, file)) do
      local other = s.by_name[t.name]
      if other and other.file ~= file then
        add(s, { rule = "duplicate-tensor", tensor = t.name, file = file, key = other.file .. " " .. file,
          says = ("%s is in both %s and %s, and loaders keep whichever comes last"):format(t.name, other.file, file),
          fix = "remove it from the file that is stale", repair = { kind = "index" } })
      elseif not other then
        t.file = file
        s.by_name[t.name], s.tensors[#s.tensors + 1] = t, t
      end
    end
  end
  s.count = #s.tensors
end

-- Index and headers, both ways.
local function compare(s, map)
  local read = {}
  for _, file in ipairs(s.files) do read[file] = true end
  local function stale(rule, name, file, says, ...)
    add(s, { rule = rule, tensor = name, file = file, says = says:format(...), key = file,
      fix = "write the index again from the files' headers", repair = { kind = "index" } })
  end
  for _, name in ipairs(json.keys(map)) do
    local file, t = map[name], s.by_name[name]
    if not t and read[file] and (s.parts[file] or not s.unreadable) then
      stale("index-stale", name, file, "%s puts %s into %s, whose header doesn't have it", s.index, name, file)
    elseif t and t.file ~= file and inside(file) and not (read[file] and s.parts[file] and s.parts[file]:info(name)) then
      stale("index-wrong-file", name, file, "%s puts %s into %s, but it lies in %s", s.index, name, file, t.file)
    end
  end
  local total = 0
  for _, t in ipairs(s.tensors) do
    total = total + t.bytes
    if map[t.name] == nil then
      stale("index-unlisted", t.name, t.file, "%s lies in %s, but %s doesn't list it, so that it is never loaded", t.name, t.file, s.index)
    end
  end
  if #s.findings == 0 and type(s.total) == "number" and s.total ~= total then
    add(s, { rule = "index-total", severity = "warning", file = s.index, says = ("metadata.total_size is %.0f, but the tensors have "
      .. "%.0f bytes"):format(s.total, total), fix = "write the index again from the files' headers", repair = { kind = "index" } })
  end
end

local function configs(s)
  local msg
  s.config, msg = checkpoint.read_object(s.dir .. "/config.json")
  if not s.config and msg then
    add(s, { rule = "config-damaged", file = "config.json", says = msg, fix = "get config.json again" })
    s.config_unknown = true
    return
  end
  s.quantization, msg = checkpoint.quantization_of(s.dir, s.config)
  if msg then
    add(s, { rule = "config-damaged", says = msg, fix = "get the file again, or remove it" })
    s.config_unknown = true
  end
end

--- survey.open(path) -> checkpoint-like object | nil, msg, code: there are no .safetensors files at all
-- Fields as an open checkpoint's (path, dir, name, config, quantization, files, bytes, count, tensors), and findings: what
-- opening refuses; tensors of damaged files are listed and can't be read. parts: file -> it, opened alone.
function M.open(path)
  local dir, name = path:gsub("/+$", ""), nil
  local kind = checkpoint.exists(path)
  if kind ~= "dir" then dir, name = path:match "^(.*)/([^/]*)$" end
  local names = kind and checkpoint.list(kind == "dir" and path or dir or ".")
  local s = setmetatable({ path = path, dir = kind == "dir" and dir or dir or ".", name = (path:gsub("/+$", ""):match "[^/]+$"),
    findings = {}, files = {}, tensors = {}, by_name = {}, parts = {}, bytes = 0, warnings = {}, other_files = {}, metadata = {} },
    surveyed)
  local files, map
  if kind == "dir" then files, map = choose(s, names)
  elseif kind and name and name:match "%.index%.json$" then files, map = choose(s, { name })
  elseif kind then files = { name or path } end
  collect(s, files or {})
  if #s.tensors == 0 and #s.findings == 0 then return nil, select(2, checkpoint.open(path)) end
  if map then compare(s, map) end
  configs(s)
  return s
end

return M

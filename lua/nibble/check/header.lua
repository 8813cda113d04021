-- check.header: one damaged .safetensors file: every tensor that its header still tells of, and all that is wrong with
-- it at once, where opening names only the first (FORMATS 1).
local json = require "nibble.json"
local nffi = require "nibble.ffi"
local tensor = require "nibble.tensor"
local text = require "nibble.text"

local M = {}

local HEADER_MAX = 100000000

local function little_endian(bytes)
  local n = 0
  for i = 8, 1, -1 do n = n * 256 + bytes:byte(i) end
  return n
end

-- The header as text, where data begins, and how many bytes of it there are | nil
local function read(path)
  local f = io.open(path, "rb")
  if not f then return nil end
  local size = f:seek "end"
  f:seek("set", 0)
  local head = f:read(8)
  local n = head and #head == 8 and little_endian(head)
  local words = n and n <= math.min(HEADER_MAX, size - 8) and f:read(n)
  f:close()
  if words and #words == n then return words, 8 + n, size - 8 - n end
end

local function is_size(v) return type(v) == "number" and v >= 0 and v < 2 ^ 53 and v == math.floor(v) end

local function sizes(v, least, most)
  if type(v) ~= "table" or #v < least or #v > most then return nil end
  for _, n in ipairs(v) do
    if not is_size(n) then return nil end
  end
  return v
end

-- One entry of the header as a tensor's record | nil, what is wrong with it
local function record(name, entry, base)
  if type(entry) ~= "table" then return nil, "expected an object with dtype, shape and data_offsets" end
  local known = type(entry.dtype) == "string" and entry.dtype:upper() == entry.dtype and nffi.C.nb_dtype_parse(entry.dtype) or -1
  local dtype = tensor.names[tonumber(known)]
  if not dtype or known > nffi.C.NB_U64 then return nil, ("unknown dtype %s"):format(tostring(entry.dtype)) end
  local shape, offsets = sizes(entry.shape, 0, 6), sizes(entry.data_offsets, 2, 2)
  if not shape then return nil, "shape must be at most 6 whole numbers" end
  if not offsets or offsets[2] < offsets[1] then return nil, "data_offsets must be [begin, end]" end
  local params, held = 1, offsets[2] - offsets[1]
  for _, n in ipairs(shape) do params = params * n end
  local bytes = params * tonumber(nffi.C.nb_dtype_bits(tensor.dtype_id(dtype))) / 8
  if bytes ~= held then
    return nil, ("its dtype %s and shape %s need %.0f bytes, its data_offsets give %.0f"):format(entry.dtype, text.shape(shape),
      bytes, held)
  end
  return { name = name, dtype = dtype, shape = shape, bytes = bytes, params = params, begin = base + offsets[1], from = offsets[1] }
end

-- Gaps, overlaps and bytes beyond the end of the data: each as add(sentence, tensor).
local function chain(list, data_bytes, add)
  table.sort(list, function(a, b)
    if a.from ~= b.from then return a.from < b.from end
    return a.bytes < b.bytes
  end)
  local reached, last = 0, nil
  for _, t in ipairs(list) do
    local to = t.from + t.bytes
    if to > data_bytes then
      t.cut = true
      add(("%s ends at byte %.0f of the data, but the file holds %.0f"):format(t.name, to, data_bytes), t.name, "ends")
    elseif t.from < reached then
      add(("%s begins at byte %.0f of the data, an overlap of %.0f bytes with %s"):format(t.name, t.from, reached - t.from, last),
        t.name, "overlaps")
    elseif t.from > reached then
      add(("%s begins at byte %.0f of the data, a gap of %.0f bytes after %s"):format(t.name, t.from, t.from - reached,
        last or "its begin"), t.name, "gaps")
    end
    if to > reached then reached, last = to, t.name end
  end
  if reached < data_bytes then
    add(("%.0f bytes follow the last tensor's end at byte %.0f of the data"):format(data_bytes - reached, reached), nil, "trails")
  end
end

--- header.read(path) -> array of tensors' records, array of {says, tensor = name | nil, kind} | nil: no header at all
-- The records are as a checkpoint's, with cut = true where the file ends before they do.
function M.read(path)
  local words, base, data_bytes = read(path)
  local entries = words and json.decode(words, path)
  if type(entries) ~= "table" or json.is_array(entries) then return nil end
  local list, faults = {}, {}
  local function add(says, name, kind) faults[#faults + 1] = { says = says, tensor = name, kind = kind } end
  for _, name in ipairs(json.keys(entries)) do
    if name ~= "__metadata__" then
      local t, why = record(name, entries[name], base)
      if t then list[#list + 1] = t else add(("%s: %s"):format(name, why), name, "entry") end
    end
  end
  local sound = #faults == 0 -- an entry that says nothing leaves a gap, which is no fault of its own
  chain(list, data_bytes, function(says, name, kind)
    if sound or kind == "ends" or kind == "overlaps" then add(says, name, kind) end
  end)
  return list, faults
end

return M

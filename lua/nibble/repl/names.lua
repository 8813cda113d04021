-- names: the names of a checkpoint's modules and tensors that a beginning may become, a level at a time as paths
-- are completed: "model.la" -> "model.layers.". Read straight from the open headers: nothing is built or sorted
-- first, so that the first Tab in a checkpoint of 100,000 tensors is as quick as the others.
local ffi = require "ffi"
local C = require("nibble.ffi").C

local M = {}

ffi.cdef [[
  int memcmp(const void *a, const void *b, size_t bytes);
  void *memchr(const void *in, int byte, size_t bytes);
  void *memmem(const void *in, size_t in_bytes, const void *what, size_t bytes);
]]

local DOT = 46
local info, bytes_t = ffi.new "nb_tensor_info", ffi.typeof "const char *"

-- Where the next dot is in the bytes from `from` to `to`, or nil.
local function dot_in(data, from, to)
  local found = ffi.C.memchr(data + from, DOT, to - from)
  if found ~= nil then return tonumber(ffi.cast(bytes_t, found) - data) end
end

-- The names that begin with partial as an array of their next levels, in the files' order:
-- {text = up to the next dot, leaf = a tensor is called so, below = has more after a dot, deep = has levels below that}
local function levels(ck, partial)
  local size, out, by_text, last = #partial, {}, {}, nil
  local last_data, last_bytes
  for i = 0, ck.count - 1 do
    C.nb_safetensors_info(info, ck.handle, i)
    local data, bytes = ffi.cast(bytes_t, info.name.data), tonumber(info.name.bytes)
    if bytes >= size and ffi.C.memcmp(data, partial, size) == 0 then
      local same = last and bytes > last_bytes and data[last_bytes] == DOT and ffi.C.memcmp(data, last_data, last_bytes) == 0
      if not same then
        local dot = dot_in(data, size, bytes)
        local text = ffi.string(data, dot or bytes)
        last = by_text[text]
        if not last then
          last = { text = text }
          by_text[text], out[#out + 1] = last, last
        end
        if not dot then last.leaf = true end
        last_data, last_bytes = data, dot or bytes
      end
      if bytes > last_bytes and not last.deep then
        last.below = true
        if dot_in(data, last_bytes + 1, bytes) then last.deep = true end
      end
    end
  end
  return out
end

-- What a level is completed to: a module to its name, a folder of modules to the dot behind it.
local function word(level) return level.text .. (level.deep and "." or "") end

-- Modules whose names have partial somewhere inside, at most so many.
local function containing(ck, partial, most)
  local out, seen = {}, {}
  for i = 0, ck.count - 1 do
    C.nb_safetensors_info(info, ck.handle, i)
    if ffi.C.memmem(info.name.data, info.name.bytes, partial, #partial) ~= nil then
      local name = ffi.string(info.name.data, info.name.bytes)
      local module = name:match "^(.*)%.[^.]*$" or name
      local found = module:find(partial, 1, true) and module or name
      if not seen[found] then
        seen[found], out[#out + 1] = true, found
        if #out >= most then break end
      end
    end
  end
  return out
end

M.most = 500

--- complete(ck, partial) -> array of what partial may become, in natural order; and whether it begins them.
-- A level at a time, on through levels that leave no choice. Where nothing begins with partial, names that have it
-- inside (M.most at most).
function M.complete(ck, partial)
  local list = levels(ck, partial)
  while #list == 1 do
    local only = list[1]
    local further = only.deep and only.text .. "." or (only.text == partial and only.below and partial .. ".")
    if not further then break end
    list = levels(ck, further)
  end
  local out = {}
  for i, level in ipairs(list) do out[i] = word(level) end
  local begins = #out > 0 or partial == ""
  if not begins then out = containing(ck, partial, M.most) end
  return require("nibble.text").natural_sort(out), begins
end

return M

-- Checkpoints to be damaged: a safetensors file as a list of tensors that a spec changes and writes again.
local json = require "nibble.json"
local files = require "spec.support.files"

local M = {}

--- load(path) -> array of {name, dtype, shape, data} in the file's order, also by name.
function M.load(path)
  local text = files.read(path)
  local size = 0
  for i = 8, 1, -1 do size = size * 256 + text:byte(i) end
  local header, list = assert(json.decode(text:sub(9, 8 + size))), {}
  for name, t in pairs(header) do
    if name ~= "__metadata__" and type(t) == "table" then
      local from, to = t.data_offsets[1], t.data_offsets[2]
      list[#list + 1] = { name = name, dtype = t.dtype, shape = t.shape, data = text:sub(9 + size + from, 8 + size + to) }
    end
  end
  table.sort(list, function(a, b) return a.name < b.name end)
  for _, t in ipairs(list) do list[t.name] = t end
  return list
end

--- bytes(list) -> the file's bytes.
function M.bytes(list)
  local parts, data, at = {}, {}, 0
  for i, t in ipairs(list) do
    parts[i] = ('%s:{"dtype":"%s","shape":[%s],"data_offsets":[%d,%d]}'):format(json.encode(t.name), t.dtype,
      table.concat(t.shape, ","), at, at + #t.data)
    data[i], at = t.data, at + #t.data
  end
  local header = "{" .. table.concat(parts, ",") .. "}"
  return files.safetensors(header .. (" "):rep(-#header % 8), table.concat(data))
end

function M.remove(list, name)
  for i, t in ipairs(list) do
    if t.name == name then return table.remove(list, i) end
  end
  error("no tensor " .. name)
end

--- poke(t, at, bytes): bytes over t's data from byte `at` (0-based) on.
function M.poke(t, at, bytes) t.data = t.data:sub(1, at) .. bytes .. t.data:sub(at + #bytes + 1) end

--- copy(from, to, {weights = function(list), config = function(table), index =}): a checkpoint's folder with
-- changes; config = false: none.
function M.copy(from, to, change)
  os.execute(("mkdir -p %s && cp -r %s/. %s && chmod -R u+w %s"):format(to, from, to, to))
  if change.weights then
    local list = M.load(to .. "/model.safetensors")
    change.weights(list)
    files.write(to .. "/model.safetensors", M.bytes(list))
  end
  if change.config then
    local config = assert(json.decode(files.read(to .. "/config.json")))
    change.config(config)
    files.write(to .. "/config.json", json.encode(config, { indent = 2 }))
  elseif change.config == false then
    os.remove(to .. "/config.json")
  end
  return to
end

return M

-- Temporary folders and hand-made safetensors files for specs.
local ffi = require "ffi"
local checkpoint = require "nibble.checkpoint"

local M = {}

--- temporary() -> the path of a new folder.
function M.temporary()
  local path = os.tmpname()
  os.remove(path)
  assert(checkpoint.mkdir(path))
  return path
end

--- remove(dir): the folder and all in it.
function M.remove(dir)
  for _, name in ipairs(assert(checkpoint.list(dir))) do
    if name:sub(-1) == "/" then M.remove(dir .. "/" .. name:sub(1, -2)) else assert(os.remove(dir .. "/" .. name)) end
  end
  assert(os.remove(dir))
end

--- write(path, text): as a new file (ext4 puts one that was cut to nothing on the
-- disk when it is closed, which is slow a thousand times over).
function M.write(path, text)
  os.remove(path)
  local f = assert(io.open(path, "wb"))
  assert(f:write(text))
  f:close()
end

function M.read(path)
  local f = assert(io.open(path, "rb"))
  local text = f:read "*a"
  f:close()
  return text
end

--- digest(dir) -> text: every file below dir with its SHA-256.
function M.digest(dir)
  local p = io.popen(("cd %q && find . -type f | sort | xargs sha256sum"):format(dir))
  local text = p:read "*a"
  p:close()
  return text
end

--- u64(n) -> its 8 bytes, little-endian.
function M.u64(n) return ffi.string(ffi.new("uint64_t[1]", n), 8) end

--- safetensors(header, data) -> a file's bytes; data: a string, or a number of zero bytes.
function M.safetensors(header, data)
  return M.u64(#header) .. header .. (type(data) == "string" and data or ("\0"):rep(data))
end

return M

-- cuda.devices: the GPUs of this machine by name, their memory, and this build's kernels for them.
local ffi = require "ffi"
local nffi = require "nibble.ffi"
local C, check = nffi.C, nffi.check

local M = {}

--- cuda.number_of(name [, level]) -> C's number of a device's name, 0 for "cpu"; level: whose mistake another name is.
function M.number_of(name, level)
  if name == "cpu" then return 0 end
  local number = type(name) == "string" and (name == "cuda" and 0 or tonumber(name:match "^cuda:(%d%d?)$"))
  if number then return number + 1 end
  error(('unknown device %q; known: "cpu", "cuda", "cuda:0", …'):format(tostring(name)), (level or 1) + 1)
end

--- cuda.name_of(number) -> "cuda:0" of C's number 1, "cpu" of 0.
function M.name_of(number) return number == 0 and "cpu" or "cuda:" .. tonumber(number) - 1 end

--- cuda.devices() -> {{name = "cuda:0", model =, sm =, bytes =, multiprocessors =, shared_bytes =, driver =, emulated =,
-- usable =, why =}, …} | nil, msg, code
-- What the driver lists. sm: 90 for sm_90; driver: the CUDA version it is for; usable: tensors can live there, else why not.
function M.devices()
  local count, msg, code = check(C.nb_device_count())
  if not count then return nil, msg, code end
  local out, info = {}, ffi.new "nb_device_info"
  for i = 1, count do
    local d = { name = M.name_of(i), usable = C.nb_device_usable(i) == 0 }
    if not d.usable then d.why = ffi.string(C.nb_error()) end
    if C.nb_device_get(info, i) == 0 then
      d.model, d.sm, d.bytes = ffi.string(info.name), info.sm, tonumber(info.bytes)
      d.multiprocessors, d.shared_bytes, d.emulated = info.multiprocessors, info.shared_bytes, info.emulated == 1
      d.driver = ("%d.%d"):format(math.floor(info.driver / 1000), math.floor(info.driver % 1000 / 10))
    end
    out[i] = d
  end
  return out
end

--- cuda.device(name) -> its entry of cuda.devices(), usable | nil, msg, code: no tensor can live there
function M.device(name)
  local number = M.number_of(name, 2)
  local devices, msg, code = M.devices()
  if not devices then return nil, msg, code end
  local d = devices[number]
  if not d then return nil, ("there is no %s; devices here: %d, from cuda:0 on"):format(name, #devices), "eunsupported" end
  if not d.usable then return nil, d.why, "eunsupported" end
  return d
end

--- cuda.why() -> nil where a device can be used; else the sentence why none can.
function M.why()
  local devices, msg = M.devices()
  if not devices then return msg end
  for _, d in ipairs(devices) do
    if d.usable then return nil end
  end
  return devices[1].why
end

--- cuda.available() -> true where tensors can live on a device; false, why
function M.available()
  local why = M.why()
  if why then return false, why end
  return true
end

--- cuda.memory([device = "cuda"]) -> free bytes, all bytes | nil, msg, code
function M.memory(device)
  local free, total = ffi.new "int64_t[1]", ffi.new "int64_t[1]"
  local rc, msg, code = check(C.nb_device_memory(free, total, M.number_of(device or "cuda", 2)))
  if not rc then return nil, msg, code end
  return tonumber(free[0]), tonumber(total[0])
end

--- cuda.wait([device = "cuda"]) -> true when all that was begun there is done | nil, msg, code
function M.wait(device) return check(C.nb_device_wait(M.number_of(device or "cuda", 2)), true) end

--- cuda.kernels() -> "sm_80 sm_90a … and PTX, by nvcc 13.0": what this build's kernels are for | nil, msg, code
function M.kernels()
  local text = C.nb_kernels()
  if text == nil then return nil, ffi.string(C.nb_error()), "eunsupported" end
  return ffi.string(text)
end

return M

-- dispatch: compute happens where the tensors lie. A function for the computer's memory that has its like on a device calls
-- it through here, with the same arguments.
local ffi = require "ffi"
local nffi = require "nibble.ffi"
local tensor = require "nibble.tensor"
local C, device_type = nffi.C, tensor.device_type

local M = {}

--- on_device(...) -> true where one of the arguments is a tensor on a device
local function on_device(n, first, ...)
  if n == 0 then return false end
  return ffi.istype(device_type, first) or on_device(n - 1, ...)
end
function M.on_device(...) return on_device(select("#", ...), ...) end

--- there(f, ...) -> what C's function gives, called with the tensors of the arguments, wherever each lies
-- Never compiled: what d.t refers to lives as long as d, which this frame holds until the call is over.
function M.there(f, ...)
  nffi.stop_check()
  local n, seen = select("#", ...), { ... }
  for i = 1, n do
    if ffi.istype(device_type, seen[i]) then seen[i] = seen[i].t end
  end
  return f(unpack(seen, 1, n))
end
jit.off(M.there)

--- call(name, ...) -> what C.nb_NAME(...) gives; C.nb_device_NAME where one of the arguments lies on a device
-- C's code: nffi.must and nffi.check take it. Tensors in different places: C's sentence.
function M.call(name, ...)
  if not on_device(select("#", ...), ...) then return C["nb_" .. name](...) end
  return M.there(C["nb_device_" .. name], ...)
end

--- new(like, dtype, shape) -> a zero-filled tensor where `like` lies; no room is an error
function M.new(like, dtype, shape)
  if not ffi.istype(device_type, like) then return tensor.new(dtype, shape) end
  return assert(require("nibble.cuda").new(like:where(), dtype, shape))
end

return M

-- cuda.launch: a kernel of nibble's by its name, for those who write or measure one.
local ffi = require "ffi"
local nffi = require "nibble.ffi"
local devices = require "nibble.cuda.devices"
local tensor = require "nibble.tensor"
local C, check, device_tensor = nffi.C, nffi.check, tensor.device_type

local M = {}

local function triple(x, what, level)
  if type(x) == "number" then x = { x } end
  if type(x) ~= "table" then error(("launch: expected %s as a number or {x, y, z}, found a %s"):format(what, type(x)), level + 1) end
  return { x[1] or 1, x[2] or 1, x[3] or 1 }
end

--- cuda.launch(kernel, {grid =, block =, shared_bytes = 0, device = "cuda", …}) -> true | nil, msg, code
-- Begins a kernel by its name; grid and block: a number or {x, y, z}; the array's elements are its arguments: tensors
-- on the device, false for a null pointer, numbers as int32, other numbers as cdata. What the kernel touches is not checked.
-- It may still run when this returns: cuda.wait, or a copy to "cpu", waits, and tells what failed.
function M.launch(kernel, o)
  if type(kernel) ~= "string" then error("launch: expected a kernel's name, found a " .. type(kernel), 2) end
  local at = ffi.new("nb_launch", triple(o.grid, "grid", 2), triple(o.block, "block", 2), o.shared_bytes or 0)
  local arguments, kept = ffi.new("void *[?]", math.max(#o, 1)), {}
  for i, v in ipairs(o) do
    if ffi.istype(device_tensor, v) then v = ffi.new("void *[1]", v.t.data)
    elseif v == false then v = ffi.new "void *[1]"
    elseif type(v) == "number" then v = ffi.new("int32_t[1]", v)
    elseif type(v) ~= "cdata" or ffi.istype(tensor.type, v) then
      error(("launch: argument %d of %s: expected a tensor on a device or a number, found %s"):format(i, kernel,
        type(v) == "cdata" and 'one in the computer\'s memory (t:to "cuda")' or "a " .. type(v)), 2)
    else
      v = ffi.new(ffi.typeof("$[1]", ffi.typeof(v)), v)
    end
    kept[i], arguments[i - 1] = v, v
  end
  local rc = C.nb_device_launch(devices.number_of(o.device or "cuda", 2), kernel, at, arguments)
  return check(rc, #kept == #o) -- the arguments' memory lives until here
end

return M

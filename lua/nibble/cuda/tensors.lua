-- cuda.tensors: tensors in a device's memory: making them, and what they have of a tensor's methods.
local ffi = require "ffi"
local nffi = require "nibble.ffi"
local devices = require "nibble.cuda.devices"
local tensor = require "nibble.tensor"
local C, check, must = nffi.C, nffi.check, nffi.must

local M = {}

local device_tensor = tensor.device_type
M.type = device_tensor

--- cuda.make(number, fill) -> a tensor on a device, by C's number, that fill(nb_tensor *) makes | nil, msg, code
-- The collector sees neither device memory nor how little there is:
-- what it holds back is given up when there is no room.
function M.make(number, fill)
  nffi.stop_check()
  if number == 0 then tensor.collect_if_full() end
  local out = number == 0 and tensor.type() or device_tensor()
  local t = number == 0 and out or out.t
  local rc = fill(t)
  if rc == C.NB_ENOMEM then
    C.nb_tensor_release(t) -- what a part of fill made
    ffi.fill(t, ffi.sizeof "nb_tensor")
    collectgarbage() collectgarbage()
    rc = fill(t)
  end
  return check(rc, out)
end

--- cuda.new(device, dtype, shape) -> a zero-filled tensor there | nil, msg, code
function M.new(device, dtype, shape)
  local s, ndim = tensor.shape_of(shape, 2)
  local number, id = devices.number_of(device, 2), tensor.dtype_id(dtype)
  return M.make(number, function(out) return C.nb_tensor_new_on(out, number, id, ndim, s) end)
end

-- A reference to what is in a cdata (d.t) doesn't keep it from the collector: it is taken at the call, not before.
local function copy(t, number)
  return M.make(number, function(out) return C.nb_tensor_to(out, ffi.istype(device_tensor, t) and t.t or t, number) end)
end

--- cuda.to(t, device) -> t there: t:to(device), of tensors in the computer's memory.
function M.to(t, device)
  local number = devices.number_of(device, 3)
  if number == 0 then return t end
  return copy(t, number)
end

-- What a tensor on a device has, as tensor.lua describes it.
local methods, of = {}, tensor.methods

--- t:type() -> "bf16", "i32", …: the dtype's name.
function methods.type(d) return of.type(d.t) end

--- t:numel() -> how many elements it has.
function methods.numel(d) return of.numel(d.t) end

--- t:bytes() -> bytes of its elements, on the device.
function methods.bytes(d) return of.bytes(d.t) end

--- t:size([i]) -> dimensions as a table, or dimension i (1-based).
function methods.size(d, i) return of.size(d.t, i) end

-- A view of d that fill(out, d, …) makes.
local function view(fill, d, ...)
  local out = device_tensor()
  must(fill(out.t, d.t, ...))
  return out
end

--- t:rows(a, b) -> view of rows a..b (1-based, along the first dimension), on the device.
function methods.rows(d, a, b) return view(C.nb_tensor_rows, d, a - 1, b) end

--- t:reshape(n, …) or t:reshape{n, …} -> view of the same elements in another shape.
function methods.reshape(d, ...)
  local s, ndim = tensor.shape_of(type((...)) == "table" and (...) or { ... }, 2)
  local v = view(C.nb_tensor_view, d, d.t.dtype, ndim, s, 0)
  if v:numel() ~= d:numel() then
    error(("reshape: %d elements don't fit a shape of %d"):format(d:numel(), v:numel()), 2)
  end
  return v
end

--- t:as(dtype [, shape]) -> view of the same bytes as another dtype.
function methods.as(d, dtype, shape)
  local id = tensor.dtype_id(dtype)
  local s, ndim = tensor.shape_of(shape or { d:bytes() * 8 / tonumber(C.nb_dtype_bits(id)) }, 2)
  return view(C.nb_tensor_view, d, id, ndim, s, 0)
end

--- t:cast(dtype [, {saturate = true}]) -> a new tensor there with the same values in another of f32, bf16 and f16 | nil, msg, code
function methods.cast(d, dtype, options)
  local id = tensor.dtype_id(dtype)
  return M.make(d.t.device, function(out)
    local rc = C.nb_tensor_new_on(out, d.t.device, id, d.t.ndim, d.t.shape)
    return rc < 0 and rc or C.nb_device_cast(out, d.t, options and options.saturate and 1 or 0)
  end)
end

--- t:where() -> "cuda:0", …: whose memory it lies in.
function methods.where(d) return devices.name_of(d.t.device) end

--- t:to(device) -> the tensor in the memory of "cpu", "cuda", "cuda:1", … | nil, msg, code
-- A copy, unless it is there already. To "cpu" waits for the kernels begun before, and tells what failed in one.
function methods.to(d, device)
  local number = devices.number_of(device, 2)
  if number == d.t.device then return d end
  return copy(d, number)
end

--- t:free(): gives the memory back now, unless a view holds it; the tensor is empty afterwards.
function methods.free(d)
  C.nb_tensor_release(d.t)
  d.t.ndim, d.t.shape[0] = 1, 0
end

--- t:show() -> text: the one line and a corner of the values, which alone is copied.
function methods.show(d) return require("nibble.show").corner(d) end

M.methods = methods

local fields = { ndim = true, shape = true, dtype = true, device = true }

ffi.metatype(device_tensor, {
  __index = function(d, key)
    local method = methods[key]
    if method then return method end
    if fields[key] then return d.t[key] end
    if type(key) == "string" and not of[key] then error(("a tensor has no method %q"):format(key), 2) end
    local what = type(key) == "string" and "t:" .. key or "an element"
    error(('%s: the tensor lies on %s; t:to "cpu" gives a copy in the computer\'s memory'):format(what, devices.name_of(d.t.device)), 2)
  end,
  __newindex = function(d)
    error(('the tensor lies on %s; t:to "cpu" gives a copy in the computer\'s memory'):format(devices.name_of(d.t.device)), 2)
  end,
  __tostring = function(d)
    return ("%s [%s]  %s  on %s"):format(d:type(), table.concat(d:size(), "×"),
      require("nibble.units").bytes(d:bytes()), devices.name_of(d.t.device))
  end,
  __len = function(d) return tonumber(d.t.shape[0]) end,
  __gc = function(d) C.nb_tensor_release(d.t) end,
})

return M

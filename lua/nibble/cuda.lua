-- cuda: the GPUs of this machine, and tensors in their memory.
--
-- A device is called as the driver and PyTorch call it: "cuda:0" is the first, "cuda" alone means it. A tensor there
-- is a type of its own, which no function for the computer's memory takes.
local ffi = require "ffi"
local nffi = require "nibble.ffi"
local tensor = require "nibble.tensor"
local C, check, must = nffi.C, nffi.check, nffi.must

local M = {}

local device_tensor = tensor.device_type
M.type = device_tensor

-- C's number of a device's name, 0 for the computer's memory.
local function number_of(name, level)
  if name == "cpu" then return 0 end
  local number = type(name) == "string" and (name == "cuda" and 0 or tonumber(name:match "^cuda:(%d%d?)$"))
  if number then return number + 1 end
  error(('unknown device %q; known: "cpu", "cuda", "cuda:0", …'):format(tostring(name)), level + 1)
end

local function name_of(number) return number == 0 and "cpu" or "cuda:" .. tonumber(number) - 1 end

--- cuda.devices() -> {{name = "cuda:0", model =, sm =, bytes =, multiprocessors =, shared_bytes =, driver =, emulated =,
-- usable =, why =}, …} | nil, msg, code
-- What the driver lists. sm: 90 for sm_90; driver: the CUDA version it is for; usable: tensors can live there, else why not.
function M.devices()
  local count, msg, code = check(C.nb_device_count())
  if not count then return nil, msg, code end
  local out, info = {}, ffi.new "nb_device_info"
  for i = 1, count do
    local d = { name = name_of(i), usable = C.nb_device_usable(i) == 0 }
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
  local rc, msg, code = check(C.nb_device_memory(free, total, number_of(device or "cuda", 2)))
  if not rc then return nil, msg, code end
  return tonumber(free[0]), tonumber(total[0])
end

--- cuda.wait([device = "cuda"]) -> true when all that was begun there is done | nil, msg, code
function M.wait(device) return check(C.nb_device_wait(number_of(device or "cuda", 2)), true) end

--- cuda.kernels() -> "sm_80 sm_90a … and PTX, by nvcc 13.0": what this build's kernels are for | nil, msg, code
function M.kernels()
  local text = C.nb_kernels()
  if text == nil then return nil, ffi.string(C.nb_error()), "eunsupported" end
  return ffi.string(text)
end

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
  local rc = C.nb_device_launch(number_of(o.device or "cuda", 2), kernel, at, arguments)
  return check(rc, #kept == #o) -- the arguments' memory lives until here
end

-- A tensor on device `number` that fill(out) makes. The collector sees neither device memory nor how little there is:
-- what it holds back is given up when there is no room.
local function make(number, fill)
  nffi.stop_check()
  if number == 0 then tensor.collect_if_full() end
  local out = number == 0 and tensor.type() or device_tensor()
  local t = number == 0 and out or out.t
  local rc = fill(t)
  if rc == C.NB_ENOMEM then
    collectgarbage() collectgarbage()
    rc = fill(t)
  end
  return check(rc, out)
end

--- cuda.new(device, dtype, shape) -> a zero-filled tensor there | nil, msg, code
function M.new(device, dtype, shape)
  local s, ndim = tensor.shape_of(shape, 2)
  local number, id = number_of(device, 2), tensor.dtype_id(dtype)
  return make(number, function(out) return C.nb_tensor_new_on(out, number, id, ndim, s) end)
end

local function copy(t, number)
  return make(number, function(out) return C.nb_tensor_to(out, t, number) end)
end

--- cuda.to(t, device) -> t there: t:to(device), of tensors in the computer's memory.
function M.to(t, device)
  local number = number_of(device, 3)
  if number == 0 then return t end
  return copy(t, number)
end

--- cuda.marlin_repack(words, bits [, {order = "gptq" | "awq", perm =}]) -> Marlin's words, on the device | nil, msg, code
-- words: on a device, [K/pf, N] in GPTQ order or AWQ's [K, N/pf], or experts [E, …], all in one launch. perm: i32 [K] or
-- [E,K] in the computer's memory. As layout.marlin.repack and awq_repack, bit for bit. (MRL-30, MRL-33, MRL-34)
function M.marlin_repack(words, bits, o)
  local order, perm = o and o.order or "gptq", o and o.perm
  if order ~= "gptq" and order ~= "awq" then
    error(('marlin_repack: order must be "gptq" or "awq", found %q'):format(tostring(order)), 2)
  end
  if not ffi.istype(device_tensor, words) then
    error('marlin_repack: expected words on a device (words:to "cuda")', 2)
  end
  return make(words.t.device, function(out)
    return C.nb_device_marlin_repack(out, words.t, perm, bits, order == "awq" and 1 or 0)
  end)
end

-- What a tensor on a device has, as tensor.lua describes it.
local methods, of = {}, tensor.methods

for _, name in ipairs { "type", "numel", "bytes", "size" } do
  methods[name] = function(d, ...) return of[name](d.t, ...) end
end

-- A view that fill(out, …) makes.
local function view(fill, ...)
  local out = device_tensor()
  must(fill(out.t, ...))
  return out
end

function methods.rows(d, a, b) return view(C.nb_tensor_rows, d.t, a - 1, b) end

function methods.reshape(d, ...)
  local s, ndim = tensor.shape_of(type((...)) == "table" and (...) or { ... }, 2)
  local v = view(C.nb_tensor_view, d.t, d.t.dtype, ndim, s, 0)
  if v:numel() ~= d:numel() then
    error(("reshape: %d elements don't fit a shape of %d"):format(d:numel(), v:numel()), 2)
  end
  return v
end

function methods.as(d, dtype, shape)
  local id = tensor.dtype_id(dtype)
  local s, ndim = tensor.shape_of(shape or { d:bytes() * 8 / tonumber(C.nb_dtype_bits(id)) }, 2)
  return view(C.nb_tensor_view, d.t, id, ndim, s, 0)
end

function methods.where(d) return name_of(d.t.device) end

function methods.to(d, device)
  local number = number_of(device, 2)
  if number == d.t.device then return d end
  return copy(d.t, number)
end

function methods.free(d)
  C.nb_tensor_release(d.t)
  d.t.ndim, d.t.shape[0] = 1, 0
end

M.methods = methods

ffi.metatype(device_tensor, {
  __index = function(d, key)
    local method = methods[key]
    if method then return method end
    local what = type(key) == "string" and "t:" .. key or "an element"
    error(('%s: the tensor lies on %s; t:to "cpu" gives a copy in the computer\'s memory'):format(what, name_of(d.t.device)), 2)
  end,
  __newindex = function(d)
    error(('the tensor lies on %s; t:to "cpu" gives a copy in the computer\'s memory'):format(name_of(d.t.device)), 2)
  end,
  __tostring = function(d)
    return ("%s [%s]  %s  on %s"):format(d:type(), table.concat(d:size(), "×"),
      require("nibble.units").bytes(d:bytes()), name_of(d.t.device))
  end,
  __len = function(d) return tonumber(d.t.shape[0]) end,
  __gc = function(d) C.nb_tensor_release(d.t) end,
})

return M

-- place: where a model's tensors lie and its products are done: in the computer's memory, or on a device.
--
-- A device's memory, as much of it as is free when the model is opened, is shared out: weights stay up to WEIGHTS of
-- it, and a batch's activations get ACTIVATIONS; the rest is for what kernels keep and for weights on their way. Weights
-- beyond their share are streamed: made again at each pass, each while the products of the one before it go on, and given
-- up after its own. Then two weights (modules, or all experts of a layer) lie there at a time beside those that stay.
local nffi = require "nibble.ffi"
local tensor = require "nibble.tensor"
local C = nffi.C

local M = {}
local Place = {}
Place.__index = Place

local WEIGHTS, ACTIVATIONS = 0.7, 0.15
-- Rows of a batch. Streamed weights cross once for all rows: at 10 GB/s against 300 TFLOP/s 4-bit weights are worth
-- 7,500 rows, floats of 16 bits 30,000.
local ROWS, STREAMED_ROWS = 8192, 32768

local function fail(msg, code) error({ msg = msg, code = code }, 0) end

local function got(value, msg, code)
  if value == nil then fail(msg, code) end
  return value
end

--- new([{device =, dtype =, cache_bytes =, share = 1}]) -> place | nil, msg, code
-- device: "cuda", …; nil or "cpu": the computer's memory, where activations are f32. dtype: of activations and weights
-- on a device. cache_bytes: of weights that stay (default: WEIGHTS of the free memory). share: of the free memory, where
-- several models lie on one device.
function M.new(o)
  if not o or not o.device or o.device == "cpu" then return setmetatable({ dtype = "f32", pool = {} }, Place) end
  local cuda = require "nibble.cuda"
  local device, msg, code = cuda.device(o.device)
  if not device then return nil, msg, code end
  local free, work, way
  free, msg, code = cuda.memory(device.name)
  if not free then return nil, msg, code end
  work, msg, code = cuda.stream(device.name)
  if not work then return nil, msg, code end
  way, msg, code = cuda.stream(device.name)
  if not way then return nil, msg, code end
  free = free * (o.share or 1)
  return setmetatable({ device = device.name, dtype = o.dtype, pool = {}, work = work, way = way, kept = {}, held = {},
    following = {}, room = o.cache_bytes or WEIGHTS * free, activation_bytes = ACTIVATIONS * free,
    most = C.nb_device_live_bytes(cuda.number_of(device.name)) + 0.95 * free }, Place)
end

--- place:run(f, …) -> f(…)'s results: what f begins on the device goes side by side with weights on their way.
function Place:run(f, ...)
  if not self.device then return f(...) end
  return self.work:use(f, ...)
end

--- place:after(other): what is begun here from now on comes after what was begun in the other place of the device.
function Place:after(other)
  if self.device then got(self.work:after(other.work)) end
end

-- ---- tensors ---------------------------------------------------------------------------

--- place:new(dtype, shape) -> a zero-filled tensor here.
function Place:new(dtype, shape)
  if not self.device then return tensor.new(dtype, shape) end
  return got(require("nibble.cuda").new(self.device, dtype, shape))
end

--- place:buffer(name, rows, columns [, dtype]) -> a tensor to write into, from storage that is kept between passes.
function Place:buffer(name, rows, columns, dtype)
  dtype = dtype or self.dtype
  local t = self.pool[name]
  if not t or t:type() ~= dtype or t:numel() < rows * columns then
    self.pool[name] = nil
    if t then t:free() end
    t = self:new(dtype, { rows * columns })
    self.pool[name] = t
  end
  return t:as(dtype, { rows, columns })
end

--- place:cast(t, dtype) -> a new tensor where t lies.
function Place.cast(_, t, dtype) return got(t:cast(dtype)) end

--- place:put(t [, dtype]) -> t, which lies in the computer's memory, here; as dtype: f32, bf16 or f16.
function Place:put(t, dtype)
  if not self.device then return t end
  local there = got(t:to(self.device))
  if not dtype or there:type() == dtype then return there end
  local cast = self:cast(there, dtype)
  there:free()
  return cast
end

--- place:release(): gives the buffers back.
function Place:release()
  for name, t in pairs(self.pool) do
    self.pool[name] = nil
    t:free()
  end
end
nffi.interpreted(Place.release)

--- problem(err) -> msg, code of a failure: one of weights.fail, or what a device said that it can't do (any more) | nil
function M.problem(err)
  if type(err) == "table" then return err.msg, err.code end
  if type(err) ~= "string" then return nil end
  local full = err:match "cuda:%d+ is out of memory.*" or err:match "out of memory.*"
  if full then return full, "enomem" end
  local said = err:match "cuda:%d+ is lost.*" or err:match "cuda:%d+: .*"
  return said, said and (said:find("OUT_OF_MEMORY", 1, true) and "enomem" or "eio")
end

-- ---- weights ----------------------------------------------------------------------------

local function is_full(err) return select(2, M.problem(err)) == "enomem" end

-- What make() makes, on the stream beside that of the products.
local function fetch(self, name, make)
  local e = { name = name }
  e.thing, e.bytes, e.free = self.way:use(make)
  -- The collector sees no device memory: what conversions left there goes once it is much.
  if C.nb_device_live_bytes(self.way.number) > self.most then collectgarbage() collectgarbage() end
  return e
end

-- Gives all up that stays, and lets nothing stay any more.
local function drop_kept(self)
  for name, e in pairs(self.kept) do
    self.kept[name] = nil
    e.free()
  end
  self.room = 0
end
nffi.interpreted(drop_kept)

--- place:get(name, make) -> thing: a weight on the device, to be given back with place:done.
-- make() -> thing, bytes, free(): brings it there, on the current stream; calls fail.
function Place:get(name, make)
  local e = self.kept[name] or self.held[name]
  if e then return e.thing end
  e, self.coming = self.coming, nil
  if e and e.name ~= name then -- other experts than in the last pass
    e.free()
    e = nil
  end
  if not e then
    local ok, result = pcall(fetch, self, name, make)
    if not ok and is_full(result) and next(self.kept) then
      drop_kept(self)
      ok, result = pcall(fetch, self, name, make)
    end
    if not ok then error(result, 0) end
    e = result
  end
  got(self.work:after(self.way))
  if e.bytes <= self.room then
    self.room, self.kept[name] = self.room - e.bytes, e
    return e.thing
  end
  if self.last then self.following[self.last] = { name = name, make = make } end
  self.last, self.held[name] = name, e
  return e.thing
end

--- place:done(name): all products with it are begun.
function Place:done(name)
  local e = self.held[name]
  if not e then return end
  self.held[name] = nil
  local after = self.following[name]
  if after and not self.coming and not self.kept[after.name] and not self.held[after.name] then
    local ok, result = pcall(fetch, self, after.name, after.make)
    if ok then self.coming = result elseif not is_full(result) then error(result, 0) end
  end
  e.free() -- for which the driver waits until its products are done
end

--- place:stream() -> whether weights stayed: they are given up, and from now on all are streamed.
function Place:stream()
  local some = next(self.kept) ~= nil
  drop_kept(self)
  return some
end

--- place:forget(dtype): gives everything up; from now on activations and weights have this dtype.
function Place:forget(dtype)
  local room = self.room
  for _, e in pairs(self.kept) do room = room + e.bytes end
  drop_kept(self)
  for name, e in pairs(self.held) do
    self.held[name] = nil
    e.free()
  end
  if self.coming then self.coming.free() end
  self:release()
  self.coming, self.last, self.following, self.room, self.dtype = nil, nil, {}, room, dtype
end
nffi.interpreted(Place.forget)

--- place:rows(bytes) -> how many rows a batch may have, of whose activations each takes so many bytes.
function Place:rows(bytes)
  return math.min(next(self.following) and STREAMED_ROWS or ROWS, self.activation_bytes / bytes)
end

--- element_bytes(place) -> bytes of one activation.
function Place:element_bytes() return self.dtype == "f32" and 4 or 2 end

return M

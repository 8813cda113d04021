-- weights: a checkpoint's tensors as the forward pass wants them, within a bound.
--
-- Float weights are mapped views (no memory of ours); quantized ones are
-- dequantized to float32 when a layer asks, kept while all of them fit into
-- cache_bytes, and otherwise freed as soon as their product is done: then one
-- weight matrix lives at a time. On a device all of them are floats of the activations' dtype, dequantized there
-- (nibble.place keeps or streams them).
local ffi = require "ffi"
local act = require "nibble.act"
local compute = require "nibble.compute"
local nffi = require "nibble.ffi"

local M = {}
local Weights = {}
Weights.__index = Weights

local float = { f32 = 4, bf16 = 2, f16 = 2 }

--- fail(msg [, code]): leaves the forward pass; decoder.lua turns it into nil, msg, code.
function M.fail(msg, code) error({ msg = msg, code = code or "eformat" }, 0) end

local function got(value, msg, code)
  if value == nil then M.fail(msg, code) end
  return value
end

--- new(ck, cache_bytes, activations, place) -> weights; activations "none": no layer's input is quantized.
function M.new(ck, cache_bytes, activations, place)
  return setmetatable({ ck = ck, left = cache_bytes, streamed = ck.bytes and ck.bytes > cache_bytes, kept = {}, place = place,
    activations = activations or "stored", inputs = {} }, Weights)
end

-- A view of a float tensor that C may read: files don't promise alignment.
local function aligned(t)
  local at = tonumber(ffi.cast("uintptr_t", t.data) % float[t:type()])
  return at == 0 and t or t:clone()
end

-- The float tensor of that name as it is, or nil.
function Weights:float(name)
  local info = self.ck:info(name)
  if not info or not float[info.dtype:lower()] then return nil end
  return aligned(got(self.ck:tensor(name)))
end

local function check_shape(t, name, n, k)
  local s = t:size()
  if #s ~= 2 or (n and s[1] ~= n) or (k and s[2] ~= k) then
    M.fail(("%s.weight is [%s], expected [%s×%s] by config.json"):format(name, table.concat(s, "×"), n or "?", k or "?"))
  end
  return t
end

-- The 1-D tensor `name` (norms, biases) as f32, on a device as dtype: small, so kept.
function Weights:vector(name, size, dtype)
  local t = self.kept[name]
  if not t then
    t = self:float(name)
    if not t then
      got(self.ck:tensor(name))
      M.fail(name .. ": expected a float tensor")
    end
    t = self.place:put(compute.widen(t), dtype)
    self.kept[name] = t
  end
  if t.ndim ~= 1 or t:size(1) ~= size then
    M.fail(("%s is [%s], expected [%d] by config.json"):format(name, table.concat(t:size(), "×"), size))
  end
  return t
end

-- The bias of module `name`, or nil; required: its absence is a failure.
function Weights:bias(name, n, required)
  if self.ck:info(name .. ".bias") then return self:vector(name .. ".bias", n, self.place.dtype) end
  if required then M.fail(("%s has no tensor %s.bias, which its config.json asks for"):format(self.ck.path, name)) end
end

-- What is no float tensor must at least be quantized.
local function check_quantized(self, name)
  local info = self.ck:info(name .. ".weight")
  if info and not got(self.ck:module(name)).scheme then
    M.fail(("%s.weight is %s, expected a float tensor"):format(name, info.dtype))
  end
end

-- A quantized weight on the device, dequantized there; where that is not for its kind, here.
local function dequantized(self, name)
  local place = self.place
  check_quantized(self, name)
  local q = got(self.ck:quantized(name))
  local moved = got(q:to(place.device))
  local t, msg, code = moved:dequantize(place.dtype)
  for _, part in ipairs { "codes", "scales", "zeros" } do
    if moved[part] then moved[part]:free() end
  end
  if t or code ~= "eunsupported" then return got(t, msg, code) end
  return place:put(got(self.ck:weight(name, "f32")), place.dtype)
end

-- The weight of module `name` on the device, its bytes, and how to give it up: as place:get takes it.
local function brought(self, name)
  local t = self:float(name .. ".weight")
  local there = t and self.place:put(t, self.place.dtype) or dequantized(self, name)
  if t then t:drop() end
  return there, there:bytes(), function() there:free() end
end

--- w:matrix(name, n, k) -> tensor [n, k]: module `name`'s weight; n, k nil = any.
-- Give it back with w:done.
function Weights:matrix(name, n, k)
  if self.place.device then
    return check_shape(self.place:get(name, function() return brought(self, name) end), name, n, k)
  end
  local t = self.kept[name] or self:float(name .. ".weight")
  if not t then
    t = got(self.ck:weight(name, "f32"))
    check_quantized(self, name)
    if t:bytes() <= self.left then
      self.left = self.left - t:bytes()
      self.kept[name] = t
    end
  end
  return check_shape(t, name, n, k)
end

--- w:done(name, t): the product with t is over.
function Weights:done(name, t)
  if self.place.device then return self.place:done(name) end
  if self.kept[name] then return end
  if self.streamed then t:drop() end
  t:free()
end

--- w:forget(): gives up the vectors on a device.
function Weights:forget() self.kept = {} end

local needed = { scale = "input_scale", global = "input_global_scale" }

local function input_of(ck, name)
  local info = ck:info(name .. ".weight")
  if not ck.input or (info and float[info.dtype:lower()]) then return false end
  local input, msg, code = ck:input(name)
  if input == nil then M.fail(msg, code) elseif not input then return false end
  local fault = act.fault(input.activations)
  if fault then M.fail(("%s: %s"):format(name, fault), "eunsupported") end
  local kind, missing = act.describe(input.activations), act.needs(input.activations)
  if missing and not input[missing] then
    M.fail(("%s: its activations are %s, but the tensor %s is missing; to leave activations as they are, evaluate with "
      .. "activations none"):format(name, kind, needed[missing]))
  end
  input.key = table.concat({ kind, tostring(input.scale), tostring(input.zero_point), tostring(input.global) }, " ")
  return input
end

--- w:input(name) -> {activations=, scale=, zero_point=, global=, key=} | nil: what module `name` does to its input;
-- modules with the same key do the same.
function Weights:input(name)
  if self.activations == "none" then return nil end
  if self.inputs[name] == nil then self.inputs[name] = input_of(self.ck, name) end
  return self.inputs[name] or nil
end

--- w:input_kinds() -> sorted array of what was done to inputs so far: "fp8 token dynamic", …
function Weights:input_kinds()
  local list, seen = {}, {}
  for _, input in pairs(self.inputs) do
    local kind = input and act.describe(input.activations)
    if kind and not seen[kind] then
      seen[kind], list[#list + 1] = true, kind
    end
  end
  table.sort(list)
  return list
end
nffi.interpreted(Weights.input_kinds)

--- w:has(name) -> whether module `name` has a weight, packed or not.
function Weights:has(name)
  if self.ck:info(name .. ".weight") then return true end
  return self.ck:module(name) ~= nil
end

return M

-- weights: a checkpoint's tensors as the forward pass wants them, within a bound.
--
-- Float weights are mapped views (no memory of ours); quantized ones are
-- dequantized to float32 when a layer asks, kept while all of them fit into
-- cache_bytes, and otherwise freed as soon as their product is done: then one
-- weight matrix lives at a time.
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

--- new(ck, cache_bytes [, activations]) -> weights; activations "none": no layer's input is quantized.
function M.new(ck, cache_bytes, activations)
  return setmetatable({ ck = ck, left = cache_bytes, streamed = ck.bytes and ck.bytes > cache_bytes, kept = {},
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

-- The 1-D tensor `name` as f32 (norms, biases): small, so kept.
function Weights:vector(name, size)
  local t = self.kept[name]
  if not t then
    t = self:float(name)
    if not t then
      got(self.ck:tensor(name))
      M.fail(name .. ": expected a float tensor")
    end
    t = compute.widen(t)
    self.kept[name] = t
  end
  if t.ndim ~= 1 or t:size(1) ~= size then
    M.fail(("%s is [%s], expected [%d] by config.json"):format(name, table.concat(t:size(), "×"), size))
  end
  return t
end

-- The bias of module `name`, or nil; required: its absence is a failure.
function Weights:bias(name, n, required)
  if self.ck:info(name .. ".bias") then return self:vector(name .. ".bias", n) end
  if required then M.fail(("%s has no tensor %s.bias, which its config.json asks for"):format(self.ck.path, name)) end
end

--- w:matrix(name, n, k) -> tensor [n, k]: module `name`'s weight; n, k nil = any.
-- Give it back with w:done.
function Weights:matrix(name, n, k)
  local t = self.kept[name] or self:float(name .. ".weight")
  if not t then
    local info = self.ck:info(name .. ".weight")
    t = got(self.ck:weight(name, "f32"))
    if info and not got(self.ck:module(name)).scheme then
      M.fail(("%s.weight is %s, expected a float tensor"):format(name, info.dtype))
    end
    if t:bytes() <= self.left then
      self.left = self.left - t:bytes()
      self.kept[name] = t
    end
  end
  return check_shape(t, name, n, k)
end

--- w:done(name, t): the product with t is over.
function Weights:done(name, t)
  if self.kept[name] then return end
  if self.streamed then t:drop() end
  t:free()
end

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

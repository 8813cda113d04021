-- What the specs of computations share: random tensors, both paths of a computation, and closeness.
local ffi = require "ffi"
local nb = require "nibble"
local C = require("nibble.ffi").C

local M = {}

--- random(shape, seed [, span = 2]) -> f32 tensor of values from -span/2 to span/2, the same for the same seed.
function M.random(shape, seed, span)
  math.randomseed(seed)
  local t = nb.tensor("f32", shape)
  for i = 1, t:numel() do t:set(i, (math.random() - 0.5) * (span or 2)) end
  return t
end

--- bytes(dtype, shape, seed) -> tensor of random bytes, the same for the same seed.
function M.bytes(dtype, shape, seed)
  local t, x = nb.tensor(dtype, shape), seed
  local p = ffi.cast("uint8_t *", t:ptr())
  for i = 0, t:bytes() - 1 do
    x = (x * 1103515245 + 12345) % 2147483648
    p[i] = math.floor(x / 65536) % 256
  end
  return t
end

--- on_each_path(make, …) -> make(…), which must give the same bytes on the portable and on the widest path.
-- Tensors are handed over and not captured: a compiled trace keeps a closure's.
function M.on_each_path(make, ...)
  C.nb_cpu_limit(0)
  local portable = make(...)
  C.nb_cpu_limit(-1)
  local here = make(...)
  assert(portable:equal(here), "the paths differ")
  return here
end

--- near(want, found, bound): two numbers; the bound is relative above 1.
function M.near(want, found, bound)
  local off = math.abs(want - found)
  if off > bound * math.max(1, math.abs(want)) or off ~= off then error(("%.9g, expected %.9g"):format(found, want), 2) end
end

--- all_near(want, found, bound): each element of a tensor against an array's, as near.
function M.all_near(want, found, bound)
  if #want ~= found:numel() then error(("%d elements, expected %d"):format(found:numel(), #want), 2) end
  for i, v in ipairs(want) do
    local off = math.abs(v - found:get(i))
    if off > bound * math.max(1, math.abs(v)) or off ~= off then
      error(("element %d is %.9g, expected %.9g"):format(i, found:get(i), v), 2)
    end
  end
end

return M

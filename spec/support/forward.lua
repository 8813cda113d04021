-- forward: the forward pass's functions in the computer's memory and on a device, in a process whose driver is the emulator
-- (M.run): the same call, in every order of threads, with the same result.
local standin = require "spec.support.standin"

local M = {}

--- run(code [, environment]) -> what Lua code prints in a process of its own, where nb, forward (this) and compute are there.
M.run = standin.with "local forward, compute = require 'spec.support.forward', nb.compute "

--- random(dtype, shape, seed [, edges]) -> tensor of numbers between -2 and 2; edges: every 13th is one of these instead
function M.random(dtype, shape, seed, edges)
  local t, x = require("nibble").tensor("f32", shape), seed * 7919 + 12345
  local p, n = t:ptr(), t:numel()
  for i = 0, n - 1 do
    x = (x * 1103515245 + 12345) % 2147483648
    p[i] = x / 2 ^ 29 - 2
    if edges and i % 13 == 5 then p[i] = edges[math.floor(i / 13) % #edges + 1] end
  end
  return dtype == "f32" and t or t:cast(dtype)
end

--- EDGES: zeros of both signs, subnormal and large numbers, ties of f16 and bf16; ODD: infinities and NaN too.
M.EDGES = { 0, -0.0, 1e-40, -1e-7, 1 + 2 ^ -9, 1 + 3 * 2 ^ -12, 6e4, -88.5, 90 }
M.ODD = { 1 / 0, 0, -1 / 0, 0 / 0, 1 }

local function wide(t) return (t:type() == "f16" or t:type() == "bf16") and t:cast "f32" or t end

-- Where a tensor differs from what was expected; of NaN only that it is one.
local function difference(found, expected)
  if found:equal(expected) then return nil end
  local a, b = wide(found), wide(expected)
  for i = 1, a:numel() do
    local x, y = a:get(i), b:get(i)
    if not (x == y and 1 / x == 1 / y or x ~= x and y ~= y) then return ("element %d is %.9g, expected %.9g"):format(i, x, y) end
  end
end
M.difference = difference

--- same(t, results, f [, differ]) -> nil, or where f(t) leaves something else on the device
-- t: tensors by name, of which results are names. In the computer's memory f gets them as f32, and its results are rounded to
-- their own dtypes. differ(found, expected): nil where they may pass for the same; default: the same bytes.
function M.same(t, results, f, differ)
  local nb, emulator = require "nibble", require "spec.support.emulator"
  local here, wrong = {}, nil
  for name, x in pairs(t) do
    here[name] = x:type() == "i32" and x or wide(x)
    if here[name] == x then here[name] = x:clone() end
  end
  f(here)
  emulator.orders(function(order)
    local there = {}
    for name, x in pairs(t) do there[name] = assert(x:to "cuda") end
    f(there)
    assert(nb.cuda.wait())
    local conflicts = emulator.counts().bank_conflicts
    if conflicts > 0 then wrong = wrong or ("order %d: %d bank conflicts"):format(order, conflicts) end
    for _, name in ipairs(results) do
      local found = assert(there[name]:to "cpu")
      local expected = found:type() == here[name]:type() and here[name] or here[name]:cast(found:type())
      local why = (differ or difference)(found, expected)
      if why then wrong = wrong or ("order %d: %s: %s"):format(order, name, why) end
    end
  end)
  return wrong
end

--- fails(f, …) -> the sentence with which f(…) fails
function M.fails(f, ...)
  local ok, msg = pcall(f, ...)
  return ok and "did not fail" or (tostring(msg):gsub("^[^ ]*:%d+: ", ""))
end

return M

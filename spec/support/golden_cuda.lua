-- golden_cuda: the golden cases with layout.marlin's functions done on a device, the stand-in's: run by nibble in a process
-- of its own (spec/cuda_golden_spec.lua). Prints a line for each operation that reached the device, "OPERATION|cases|calls",
-- and for each case that failed "!OPERATION: what". Needs NB_CUDA_DRIVER.
package.path = "./?.lua;" .. package.path
local nb = require "nibble"
local ffi = require "ffi"
local tensor = require "nibble.tensor"
local golden = require "spec.support.golden"

local calls = 0

local function there(x) return ffi.istype(tensor.type, x) and assert(x:to "cuda") or x end

local function here(x) return ffi.istype(tensor.device_type, x) and assert(x:to "cpu") or x end

-- The arguments of a call, and the fields of its options, lie on the device meanwhile.
local function on_device(f)
  return function(t, ...)
    local given, n = { ... }, select("#", ...)
    for i = 1, n do
      given[i] = there(given[i])
      if type(given[i]) == "table" then
        local options = {}
        for key, value in pairs(given[i]) do options[key] = there(value) end
        given[i] = options
      end
    end
    calls = calls + 1
    local results = { f(there(t), unpack(given, 1, n)) }
    for i, x in ipairs(results) do results[i] = here(x) end
    return unpack(results)
  end
end

for name in pairs(require "nibble.cuda.repack") do nb.layout.marlin[name] = on_device(nb.layout.marlin[name]) end

-- e4m3fnuz is not for NVIDIA's.
local fp8 = require "nibble.methods.fp8"
for _, name in ipairs { "requantize", "requantize_experts" } do
  local near, far = fp8[name], on_device(fp8[name])
  fp8[name] = function(weight, ...) return (weight:type() == "f8_e4m3" and far or near)(weight, ...) end
end

local ops, by_op, order = golden.operations(), golden.cases()
for _, op in ipairs(order) do
  local before, cases = calls, 0
  for _, entry in ipairs(ops[op] and by_op[op] or {}) do
    local failure = golden.run(ops[op], entry)
    cases = cases + 1
    if failure then print(("!%s: %s: %s"):format(op, entry.id, failure)) end
  end
  if calls > before then print(("%s|%d|%d"):format(op, cases, calls - before)) end
end

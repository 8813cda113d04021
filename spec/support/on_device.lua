-- on_device: functions of the C library beside their likes on a device, in a process whose driver is the emulator
-- (run): the same arguments, the same answer, the same bytes.
local standin = require "spec.support.standin"

local M = {}

--- run(code [, environment]) -> what Lua code prints in a process of its own, where nb and on_device are there; its errors.
M.run = standin.with "local on_device = require 'spec.support.on_device' "

--- same(name, outputs, input, …) -> nil where C.nb_NAME(outputs, input, …) in the computer's memory and
-- C.nb_device_NAME on the device answer alike, in the same bytes, without bank conflicts; else what differs.
-- outputs: tensors, whose bytes come in on both sides, or false for NULL.
function M.same(name, outputs, input, ...)
  local nb, ffi = require "nibble", require "ffi"
  local C = require("nibble.ffi").C
  local n, more = #outputs, select("#", ...)
  local far, from, args = {}, assert(input:to "cuda"), { [n + 1] = input }
  for i, t in ipairs(outputs) do
    args[i], far[i] = t or nil, t and assert(t:to "cuda") or nil
  end
  for i = 1, more do args[n + 1 + i] = (select(i, ...)) end
  local function answer(f) return f(unpack(args, 1, n + 1 + more)) < 0 and ffi.string(C.nb_error()) or "done" end
  local expected = answer(C["nb_" .. name])
  for i = 1, n do args[i] = far[i] and far[i].t end
  args[n + 1] = from.t
  local found = answer(C["nb_device_" .. name])
  assert(nb.cuda.wait())
  local conflicts = require("spec.support.emulator").counts().bank_conflicts
  if conflicts > 0 then return conflicts .. " bank conflicts" end
  if found ~= expected then return ("%s: %s, expected %s"):format(name, found, expected) end
  for i, t in ipairs(outputs) do
    local here = t and expected == "done" and assert(far[i]:to "cpu")
    local a, b = t and ffi.cast("uint8_t *", t.data), here and ffi.cast("uint8_t *", here.data)
    for at = 0, here and t:bytes() - 1 or -1 do
      if a[at] ~= b[at] then
        return ("%s: output %d: byte %d is %02x, expected %02x"):format(name, i, at, b[at], a[at])
      end
    end
  end
end

--- poisoned(dtype, shape) -> a tensor whose bytes are a5.
function M.poisoned(dtype, shape)
  local t = require("nibble").tensor(dtype, shape)
  require("ffi").fill(t.data, t:bytes(), 0xa5)
  return t
end

return M

-- cuda.repack: weights into Marlin's order on a device, as layout.marlin does it in the computer's memory.
local ffi = require "ffi"
local C = require("nibble.ffi").C
local tensors = require "nibble.cuda.tensors"
local device_tensor = tensors.type

local M = {}

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
  return tensors.make(words.t.device, function(out)
    return C.nb_device_marlin_repack(out, words.t, perm, bits, order == "awq" and 1 or 0)
  end)
end

return M

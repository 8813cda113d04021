-- cuda.repack: layout.marlin's functions for tensors on a device, under the same names: layout.marlin calls them
-- where its first operand lies on one. The results are made there, with the same bytes, all experts in one launch.
local ffi = require "ffi"
local C = require("nibble.ffi").C
local tensors = require "nibble.cuda.tensors"

local M = {}

local function flag(x) return x and 1 or 0 end

-- C's pointer to a tensor, wherever it lies; nil of nil.
local function any(t) return ffi.istype(tensors.type, t) and t.t or t end

-- perm: on the device or in the computer's memory.
function M.repack(words, bits, a8, perm)
  return tensors.make(words.t.device, function(out)
    return C.nb_device_marlin_repack(out, words.t, any(perm), bits, flag(a8))
  end)
end

function M.awq_repack(words, bits, a8)
  return tensors.make(words.t.device, function(out)
    return C.nb_device_marlin_awq_repack(out, words.t, bits, flag(a8))
  end)
end

return M

-- cuda.repack: layout.marlin's functions for tensors on a device, under the same names: layout.marlin calls them
-- where its first operand lies on one. The results are made there, with the same bytes, all experts in one launch.
local ffi = require "ffi"
local C = require("nibble.ffi").C
local tensors = require "nibble.cuda.tensors"

local M = {}

local function flag(x) return x and 1 or 0 end

-- C's pointer to a tensor, wherever it lies; nil of nil.
local function any(t) return ffi.istype(tensors.type, t) and t.t or t end

-- C's function of this name on a tensor of the device; further arguments as C takes them.
local function done(name, t, ...)
  local f, n, given = C["nb_device_marlin_" .. name], select("#", ...), { ... }
  return tensors.make(t.t.device, function(out) return f(out, t.t, unpack(given, 1, n)) end)
end

-- perm: on the device or in the computer's memory.
function M.repack(words, bits, a8, perm) return done("repack", words, any(perm), bits, flag(a8)) end
function M.permute_scales(scales, k, group, a8) return done("permute_scales", scales, k, group, flag(a8), 0) end
function M.unpermute_scales(scales, k, group, a8) return done("permute_scales", scales, k, group, flag(a8), 1) end
function M.permute_bias(bias) return done("permute_bias", bias, 0) end
function M.unpermute_bias(bias) return done("permute_bias", bias, 1) end

for _, name in ipairs { "awq_repack", "zero_points", "awq_zero_points", "packed_zero_points" } do
  M[name] = function(t, bits, a8) return done(name, t, bits, flag(a8)) end
end

return M

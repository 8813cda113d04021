-- cuda.repack: layout.marlin's functions for tensors on a device, under the same names: layout.marlin calls them
-- where its first operand lies on one. The results are made there, with the same bytes, all experts in one launch.
local ffi = require "ffi"
local nffi = require "nibble.ffi"
local C = nffi.C
local tensors = require "nibble.cuda.tensors"

local M = {}

local function flag(x) return x and 1 or 0 end

-- C's pointer to a tensor, wherever it lies; nil of nil.
local function any(t) return ffi.istype(tensors.type, t) and t.t or t end

-- C's function of this name on a tensor of the device; further arguments as C takes them, of which the first may be
-- a tensor. It stays what it is until the call: a reference to what is in it would not keep it from the collector.
local function done(name, t, first, ...)
  local f, n, rest = C["nb_device_" .. name], select("#", ...), { ... }
  return tensors.make(t.t.device, function(out) return f(out, t.t, any(first), unpack(rest, 1, n)) end)
end

local function checked(bits, what)
  if bits == 4 or bits == 8 then return bits end
  error(("marlin %s: bits must be 4 or 8, found %s"):format(what, tostring(bits)), 3)
end

-- perm: on the device or in the computer's memory.
function M.repack(words, bits, a8, perm) return done("marlin_repack", words, perm, checked(bits, "repack"), flag(a8)) end
function M.permute_scales(scales, k, group, a8) return done("marlin_permute_scales", scales, k, group, flag(a8), 0) end
function M.unpermute_scales(scales, k, group, a8) return done("marlin_permute_scales", scales, k, group, flag(a8), 1) end
function M.permute_bias(bias) return done("marlin_permute_bias", bias, 0) end
function M.unpermute_bias(bias) return done("marlin_permute_bias", bias, 1) end

for _, name in ipairs { "awq_repack", "zero_points", "awq_zero_points", "packed_zero_points" } do
  M[name] = function(t, bits, a8) return done("marlin_" .. name, t, checked(bits, name), flag(a8)) end
end

-- zeros: on the device.
function M.fp8_preprocess(words, zeros, options)
  options = options or {}
  if not options.in_place then
    return done("marlin_fp8_preprocess", words, zeros, options.bits or 4, flag(options.inverse))
  end
  return nffi.check(C.nb_device_marlin_fp8_preprocess(words.t, words.t, any(zeros), options.bits or 4,
    flag(options.inverse)), words)
end

function M.int8_scales(scales)
  local global = ffi.new "float[1]"
  local out, msg, code = tensors.make(scales.t.device, function(out)
    return C.nb_device_marlin_int8_scales(out, global, scales.t)
  end)
  if not out then return nil, msg, code end
  return out, tonumber(global[0])
end

function M.nvfp4_scales(scales, factor)
  if not factor then
    local f = ffi.new "double[1]"
    local ok, msg, code = nffi.check(C.nb_device_marlin_nvfp4_factor(f, scales.t))
    if not ok then return nil, msg, code end
    factor = f[0]
  end
  local out, msg, code = done("marlin_nvfp4_scales", scales, factor)
  if not out then return nil, msg, code end
  return out, tonumber(factor)
end

function M.swizzle_blockscale(scales)
  return tensors.make(scales.t.device, function(out) return C.nb_device_swizzle_blockscale(out, scales.t) end)
end

function M.mx_scales(scales, a8) return done("marlin_mx_scales", scales, flag(a8)) end

-- Made anew: the given words stay what they are.
function M.repack_here(words, bits, o)
  if o.fold then words = M.fp8_preprocess(words, o.zeros, { bits = bits }) end
  if o.order == "awq" then return M.awq_repack(words, bits, o.a8) end
  return M.repack(words, bits, o.a8)
end

return M

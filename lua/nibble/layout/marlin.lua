-- layout.marlin: the Marlin kernels' run-time layouts of weights, scales, bias and
-- zero-points, their inverses, and what 8-bit activations need done to the numbers
-- (SYSTEMS MRL-20 to MRL-48). One matrix, or experts [E,...], in the same functions.
--
-- Most take a tensor on a device too (t:to "cuda"), of which the result is made there: nibble.cuda.repack lists them.
--
-- bits is 4 or 8; a8 (default false) says that activations have one byte. Words are
-- i32; k and n are the matrix's K (in) and N (out).
local ffi = require "ffi"
local nffi = require "nibble.ffi"
local tensor = require "nibble.tensor"
local C, check = nffi.C, nffi.check

local M = {}

local function flag(x) return x and 1 or 0 end

local function like(t, dtype) return tensor.new(dtype or t:type(), t:size()) end

local function check_bits(bits, what)
  if bits ~= 4 and bits ~= 8 then error(("%s: bits must be 4 or 8, found %s"):format(what, tostring(bits)), 3) end
end

-- The shape of t with its last two dimensions replaced.
local function shaped(t, rows, cols)
  local s = t:size()
  s[#s - 1], s[#s] = math.floor(rows), math.floor(cols)
  return s
end

local function sizes(t, what)
  if not ffi.istype(tensor.type, t) or (t.ndim ~= 2 and t.ndim ~= 3) then
    error(("%s: expected words of 2 or 3 dimensions, found %s"):format(what,
      ffi.istype(tensor.type, t) and t.ndim .. " dimensions" or type(t)), 3)
  end
  return t:size(t.ndim - 1), t:size(t.ndim)
end

--- layout.marlin.repack(words, bits [, a8 [, perm]]) -> words [K/16, N*bits/2]
-- words: [K/pf, N] in GPTQ order (pf = 32/bits). perm: i32 [K] or [E,K] (empty: none), row i of the result
-- takes source row perm[i], counted from 0; refused with a8. K must be a multiple of 16 and N of 64 (a8: of
-- 32 and 32). (MRL-30, MRL-32, MRL-34)
function M.repack(words, bits, a8, perm)
  check_bits(bits, "marlin repack")
  local rows, n = sizes(words, "marlin repack")
  local out = tensor.new("i32", shaped(words, rows * 32 / bits / 16, n * bits / 2))
  return check(C.nb_marlin_repack(out, words, perm, bits, flag(a8)), out)
end

--- layout.marlin.awq_repack(words, bits [, a8]) -> words [K/16, N*bits/2]
-- From AWQ gemm words [K, N/pf]; equals repack of the same codes. (MRL-33)
function M.awq_repack(words, bits, a8)
  check_bits(bits, "marlin awq_repack")
  local k, cols = sizes(words, "marlin awq_repack")
  local out = tensor.new("i32", shaped(words, k / 16, cols * 32 / bits * bits / 2))
  return check(C.nb_marlin_awq_repack(out, words, bits, flag(a8)), out)
end

--- layout.marlin.repack_here(words, bits, {order = "gptq" | "awq", a8 =, fold =, zeros =}) -> words [K/16, N*bits/2]
-- The words of repack or awq_repack in the memory of the given ones, which are no longer what they were; a file's memory
-- is left alone and new words are made. fold: codes are changed first as fp8_preprocess(words, zeros) does: once
-- past the memory instead of twice. (MRL-30, MRL-33, MRL-42)
function M.repack_here(words, bits, o)
  check_bits(bits, "marlin repack_here")
  local awq = o.order == "awq"
  local rows, cols = sizes(words, "marlin repack_here")
  if C.nb_tensor_is_mapped(words) == 1 then
    if o.fold then words = M.fp8_preprocess(words, o.zeros, { bits = bits }) end
    if awq then return M.awq_repack(words, bits, o.a8) end
    return M.repack(words, bits, o.a8)
  end
  local ok, msg, code = check(C.nb_marlin_repack_here(words, o.zeros, flag(awq), bits, flag(o.a8), flag(o.fold)), true)
  if not ok then return nil, msg, code end
  local pf = awq and 1 or 32 / bits
  return words:as("i32", shaped(words, rows * pf / 16, cols * 16 / pf))
end

--- layout.marlin.unpack(marlin, bits [, a8 [, perm]]) -> words [K/pf, N] in GPTQ order
-- The inverse of repack.
function M.unpack(marlin, bits, a8, perm)
  check_bits(bits, "marlin unpack")
  local k, n = M.weight_size(marlin, bits)
  local out = tensor.new("i32", shaped(marlin, k * bits / 32, n))
  return check(C.nb_marlin_unpack(out, marlin, perm, bits, flag(a8)), out)
end

--- layout.marlin.weight_size(marlin, bits) -> K, N of a repacked weight. (MRL-35)
function M.weight_size(marlin, bits)
  check_bits(bits, "marlin weight_size")
  local rows, cols = sizes(marlin, "marlin weight_size")
  return 16 * rows, cols * 2 / bits
end

--- layout.marlin.weight_perm(bits [, a8]) -> i32 [1024]: the permutation of a tile's codes, counted in
-- slices of 16 columns one after the other.
function M.weight_perm(bits, a8)
  local out = tensor.new("i32", { 1024 })
  return check(C.nb_marlin_weight_perm(out, bits, flag(a8)), out)
end

--- layout.marlin.scale_perm(single) -> i32 [64] grouped or [32] single; out[p] = in[perm[p]]. (MRL-20)
function M.scale_perm(single)
  local out = tensor.new("i32", { single and 32 or 64 })
  return check(C.nb_marlin_scale_perm(out, flag(single)), out)
end

--- layout.marlin.permute_scales(scales, k, group [, a8]) -> scales, same shape and dtype
-- scales: [G,N] or [E,G,N] of any 8-, 16- or 32-bit dtype. k: the K of that matrix. Grouped permutation where
-- group ~= -1, group < k and not a8, else the single one. (MRL-21, MRL-22, MRL-24)
function M.permute_scales(scales, k, group, a8)
  local out = like(scales)
  return check(C.nb_marlin_permute_scales(out, scales, k, group, flag(a8), 0), out)
end

--- layout.marlin.unpermute_scales(scales, k, group [, a8]): the inverse.
function M.unpermute_scales(scales, k, group, a8)
  local out = like(scales)
  return check(C.nb_marlin_permute_scales(out, scales, k, group, flag(a8), 1), out)
end

--- layout.marlin.permute_bias(bias) -> bias, same shape: the single permutation of the last axis. (MRL-23)
function M.permute_bias(bias)
  local out = like(bias)
  return check(C.nb_marlin_permute_bias(out, bias, 0), out)
end

--- layout.marlin.unpermute_bias(bias): the inverse.
function M.unpermute_bias(bias)
  local out = like(bias)
  return check(C.nb_marlin_permute_bias(out, bias, 1), out)
end

--- layout.marlin.zero_points(zeros, bits [, a8]) -> words [G, N/pf]
-- zeros: u8 [G,N] or [E,G,N]. (MRL-25, MRL-26)
function M.zero_points(zeros, bits, a8)
  check_bits(bits, "marlin zero_points")
  local g, n = sizes(zeros, "marlin zero_points")
  local out = tensor.new("i32", shaped(zeros, g, n * bits / 32))
  return check(C.nb_marlin_zero_points(out, zeros, bits, flag(a8)), out)
end

--- layout.marlin.unpack_zero_points(words, bits [, a8]) -> zeros u8 [G,N]: the inverse.
function M.unpack_zero_points(words, bits, a8)
  check_bits(bits, "marlin unpack_zero_points")
  local g, cols = sizes(words, "marlin unpack_zero_points")
  local out = tensor.new("u8", shaped(words, g, cols * 32 / bits))
  return check(C.nb_marlin_unpack_zero_points(out, words, bits, flag(a8)), out)
end

--- layout.marlin.awq_zero_points(words, bits [, a8]) -> words [G, N/pf], from AWQ words of that shape. (MRL-27)
function M.awq_zero_points(words, bits, a8)
  local out = like(words, "i32")
  return check(C.nb_marlin_awq_zero_points(out, words, bits, flag(a8)), out)
end

--- layout.marlin.packed_zero_points(words, bits [, a8]) -> words [G, N/pf], from plain packing along N. (MRL-28)
function M.packed_zero_points(words, bits, a8)
  local out = like(words, "i32")
  return check(C.nb_marlin_packed_zero_points(out, words, bits, flag(a8)), out)
end

--- layout.marlin.int8_scales(scales) -> scales, global
-- For int8 activations and more than one group: scales f16 or bf16 become the int16 bits of
-- round(s/max*4096) in the same dtype; global (a number) = max/4096. (MRL-40, MRL-41)
function M.int8_scales(scales)
  local out, global = like(scales), ffi.new "float[1]"
  local ok, msg, code = check(C.nb_marlin_int8_scales(out, global, scales), out)
  if not ok then return nil, msg, code end
  return out, tonumber(global[0])
end

--- layout.marlin.fp8_preprocess(words [, zeros [, options]]) -> words
-- 4-bit codes for fp8 activations: q-z, or 15-q where q < z; z is 8, or the zero-point in the same slot
-- (AWQ words [K,N/8] with zeros [G,N/8]). options: bits (default 4; anything else is refused), inverse,
-- in_place. Multiply the scales by 512 too. (MRL-42 to MRL-44)
function M.fp8_preprocess(words, zeros, options)
  options = options or {}
  local out = options.in_place and words or like(words)
  return check(C.nb_marlin_fp8_preprocess(out, words, zeros, options.bits or 4, flag(options.inverse)), out)
end

--- layout.marlin.multiply_scales(scales, factor [, dtype]) -> scales * factor in float32, rounded once to dtype
-- (f16, bf16 or f32; default: the scales' own).
function M.multiply_scales(scales, factor, dtype)
  local out = like(scales, dtype)
  return check(C.nb_scales_multiply(out, scales, factor), out)
end

--- layout.marlin.fold_fp8_exponent(scales) -> scales * 2^8 (f16) or 2^120 (bf16), for fp8 weights. (MRL-48)
function M.fold_fp8_exponent(scales)
  local exponent = ({ f16 = 8, bf16 = 120 })[scales:type()]
  if not exponent then
    error(("marlin fold_fp8_exponent: expected f16 or bf16, found %s"):format(scales:type()), 2)
  end
  return M.multiply_scales(scales, 2 ^ exponent)
end

--- layout.marlin.nvfp4_scales(scales [, factor]) -> scales f8_e4m3, factor
-- NVFP4 block scales, f16 or bf16 and already permuted, to the kernel's bytes. factor: a power of two;
-- by default what bf16 scales can be raised by (1 for f16). (CTM-NVFP4-15)
function M.nvfp4_scales(scales, factor)
  if not factor then
    local f = ffi.new "double[1]"
    nffi.must(C.nb_marlin_nvfp4_factor(f, scales))
    factor = f[0]
  end
  local out = like(scales, "f8_e4m3")
  local ok, msg, code = check(C.nb_marlin_nvfp4_scales(out, scales, factor), out)
  if not ok then return nil, msg, code end
  return out, tonumber(factor)
end

--- layout.marlin.mx_scales(scales [, a8]) -> scales, same shape and dtype
-- MX block scales (E8M0 bytes, already permuted): columns 0 2 1 3 of each 4; with a8 left in place and raised
-- by 6, fp4's exponent in fp8, at most to 254: 255 is NaN.
function M.mx_scales(scales, a8)
  local out = like(scales)
  return check(C.nb_marlin_mx_scales(out, scales, flag(a8)), out)
end

--- layout.marlin.nvfp4_global(global, dtype [, factor]) -> f32 tensor: global * 2^(e-7) / factor, e = 14 for
-- f16 and 126 for bf16 activations. (MRL-48)
function M.nvfp4_global(global, dtype, factor)
  local exponent = ({ f16 = 14, bf16 = 126 })[dtype]
  if not exponent then error(("marlin nvfp4_global: expected f16 or bf16, found %s"):format(tostring(dtype)), 2) end
  local out = M.multiply_scales(global, 2 ^ (exponent - 7))
  return (factor or 1) == 1 and out or M.multiply_scales(out, 1 / factor)
end

--- layout.marlin.scales_of_activations(x, options) -> "STATIC", "TENSOR", "TOKEN" or "GROUP", the shape of FP8 scales
-- What quantize_activations' options say of x [m,k]; a group that is not of 128 columns is an error.
function M.scales_of_activations(x, options)
  if options.scale then return "STATIC" end
  if options.per_tensor then return "TENSOR", { 1 } end
  if not options.group then return "TOKEN", { x:size(1), 1 } end
  if options.group ~= 128 then
    error(("quantize_activations: 128 columns share a scale, found groups of %s"):format(tostring(options.group)), 3)
  end
  return "GROUP", { x:size(1), math.ceil(x:size(2) / 128) }
end

--- layout.marlin.quantize_activations(x, dtype [, options]) -> q, scales
-- x: [m,k] f16, bf16 or f32. dtype "int8": q i8, scales f32 [m,1] = max(|x|,1e-10)/127, times options.global
-- (MRL-40) when given. "fp8": q f8_e4m3, one scale a token; options.scale (f32 of one element) makes it
-- static; options.per_tensor one dynamic scale; options.group = 128 one for each 128 columns,
-- f32 [m,⌈k/128⌉]. Any other dtype is an error. (MRL-45, CTM-FP8-03)
function M.quantize_activations(x, dtype, options)
  options = options or {}
  if tensor.on_device(x) then return require("nibble.cuda.quantize").activations(x, dtype, options) end
  if dtype == "int8" then
    local q, s = like(x, "i8"), tensor.new("f32", { x:size(1), 1 })
    local ok, msg, code = check(C.nb_act_quant_int8(q, s, x, options.global or 1), q)
    if not ok then return nil, msg, code end
    return q, s
  elseif dtype == "fp8" then
    local mode, shape = M.scales_of_activations(x, options)
    local q = like(x, "f8_e4m3")
    local s = options.scale or tensor.new("f32", shape)
    local ok, msg, code = check(C.nb_act_quant_fp8(q, s, x, C["NB_ACT_" .. mode]), q)
    if not ok then return nil, msg, code end
    return q, s
  end
  error(("quantize_activations: activations become int8 or fp8, found %q"):format(tostring(dtype)), 2)
end

--- layout.marlin.sort_g_idx(g_idx) -> sorted i32 [K], perm i32 [K]
-- perm: the stable order that sorts the groups, counted from 0; [E,K] row by row. (MRL-32)
function M.sort_g_idx(g_idx)
  local sorted, perm = like(g_idx, "i32"), like(g_idx, "i32")
  local ok, msg, code = check(C.nb_groups_sort(sorted, perm, g_idx), sorted)
  if not ok then return nil, msg, code end
  return sorted, perm
end

--- layout.marlin.swizzle_blockscale(scales) -> scales in tensor-core order, padded to 128 x 4 with 0
-- scales: [m,k] or [e,m,k] of 8 or 16 bits. (CTM-NVFP4-14)
function M.swizzle_blockscale(scales)
  local m, k = sizes(scales, "swizzle_blockscale")
  local out = tensor.new(scales:type(), shaped(scales, math.ceil(m / 128) * 128, math.ceil(k / 4) * 4))
  return check(C.nb_swizzle_blockscale(out, scales), out)
end

--- layout.marlin.unswizzle_blockscale(swizzled, m, k) -> scales [m,k] or [e,m,k]: the inverse, without the padding.
function M.unswizzle_blockscale(swizzled, m, k)
  sizes(swizzled, "unswizzle_blockscale")
  local out = tensor.new(swizzled:type(), shaped(swizzled, m, k))
  return check(C.nb_unswizzle_blockscale(out, swizzled), out)
end

-- On a device.
for name, there in pairs(require "nibble.cuda.repack") do
  local here = M[name]
  M[name] = function(t, ...)
    if ffi.istype(tensor.device_type, t) then return there(t, ...) end
    return here(t, ...)
  end
end

return M

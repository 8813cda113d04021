-- gemm: products with weights in a kernel's own form. Marlin's: words, permuted
-- scales and zero-points are read as the GPU kernel reads them, strip by strip, and
-- multiplied in float32 (SYSTEMS MRL-45, MRL-51, MRL-52).
local ffi = require "ffi"
local nffi = require "nibble.ffi"
local tensor = require "nibble.tensor"
local layout = require "nibble.layout"
local compute = require "nibble.compute"
local scalars = require "nibble.marlin"
local C = nffi.C

local M = {}

local zero_point_types = { uint4 = true, uint8 = true }
local kinds = { uint4 = C.NB_MARLIN_INT, uint8 = C.NB_MARLIN_INT, uint4b8 = C.NB_MARLIN_INT, uint8b128 = C.NB_MARLIN_INT,
                float8_e4m3fn = C.NB_MARLIN_E4M3, float4_e2m1f = C.NB_MARLIN_E2M1 }
-- What the exponents folded into FP8 and NVFP4 scales take out again, by activation dtype. (MRL-48)
local fp8_exponent, fp4_exponent = { f16 = 8, bf16 = 120 }, { f16 = 14, bf16 = 126 }

local function refuse(text, ...) error("marlin gemm: " .. text:format(...), 4) end

local function number(x)
  if ffi.istype(tensor.type, x) then return x:get(1) end
  return x
end

local function exponent(m, table, what)
  return table[m.dtype] or refuse("%s weights need dtype f16 or bf16, found %s", what, tostring(m.dtype))
end

-- codes: x is codes already, which no check of MRL-47 is about: nibble's kernels take more pairs than Marlin's.
local function describe(m, codes)
  local kind, type = kinds[m.type], scalars.types[m.type]
  if not kind then
    refuse("weights are uint4, uint8, uint4b8, uint8b128, float8_e4m3fn or float4_e2m1f, found %s", tostring(m.type))
  end
  if m.zeros and not zero_point_types[m.type] then
    refuse("zero-points go with uint4 and uint8 weights, found them with %s", m.type)
  elseif not m.zeros and zero_point_types[m.type] then
    refuse("%s weights need zero-points, found none", m.type)
  end
  if (m.stride or m.k) % 8 ~= 0 then
    refuse("the activations' row stride %d is not a multiple of 8", m.stride or m.k)
  end
  local a8 = m.activations and m.activations ~= "none"
  local ok, msg = scalars.check_pair(m.type, m.activations, m.moe)
  local mx = m.scales:type() == "u8" or m.scales:type() == "f8_e8m0"
  if not ok and not codes and not (mx and m.type == "float4_e2m1f" and m.activations == "fp8") then refuse("%s", msg) end
  local scale, factor, global = C.NB_MARLIN_FLOAT, 1, number(m.global) or 1
  if mx then
    scale = C.NB_MARLIN_E8M0
    if a8 then factor = 2 ^ -6 end
  elseif m.type == "float8_e4m3fn" then
    factor = 2 ^ -exponent(m, fp8_exponent, "FP8")
  elseif m.type == "float4_e2m1f" then
    scale, factor = C.NB_MARLIN_S0E5M3, 1
    global = global * 2 ^ -exponent(m, fp4_exponent, "NVFP4")
  elseif m.activations == "fp8" then
    kind, factor = C.NB_MARLIN_FOLDED, 2 ^ -9
  elseif m.activations == "int8" and m.global then
    scale, global = C.NB_MARLIN_INT16, 1 -- the token's scale has it
  end
  factor = factor * (number(m.scale_factor) or 1)
  return { bits = type.bits, a8 = a8 and 1 or 0, code = kind, scale = scale, scale_factor = factor, global = global,
           k_full = m.k_full == false and 0 or 1 }
end

-- C's pointer to a tensor, wherever it lies.
local function any(t) return ffi.istype(tensor.device_type, t) and t.t or t end

-- Holds addresses of m's tensors: nothing may be allocated between this and the call of C.
local function struct(m, d)
  local w = ffi.new("nb_marlin_weight")
  w.k, w.n, w.scale_factor, w.global, w.bits, w.a8 = m.k, m.n, d.scale_factor, d.global, d.bits, d.a8
  w.code, w.scale, w.k_full = d.code, d.scale, d.k_full
  w.words, w.scales = any(m.words), any(m.scales)
  if m.zeros then w.zeros = any(m.zeros) end
  if m.perm then w.perm = any(m.perm) end
  if m.sorted_g_idx then w.g_idx = any(m.sorted_g_idx) end
  if m.bias then w.bias = any(m.bias) end
  return w
end

--- marlin_weight(m) -> nb_marlin_weight of m (gemm.marlin's), for C: it has addresses of m's tensors, which m keeps
function M.marlin_weight(m) return struct(m, describe(m)) end

--- codes(x, m) -> codes [rows,k], scales f32 [rows,1]: activations as the kernel of m takes them where m.activations says 8 bits
-- x f32, f16 or bf16, where it lies. | nil, msg, code
function M.codes(x, m)
  local global = m.activations == "int8" and number(m.global) or nil
  return layout.marlin.quantize_activations(x, m.activations, { global = global })
end

local codes_of = { int8 = "i8", fp8 = "f8_e4m3" }

--- marlin(x, m [, row_scale]) -> y f32 [rows, n] = x times the weight m, plus its bias (MRL-51)
-- x: [rows,k] f32, f16 or bf16; fewer columns count as zeros. m, one matrix after its processing (methods.marlin's):
--   type   "uint4" | "uint8" (with zeros), "uint4b8" | "uint8b128", "float8_e4m3fn", "float4_e2m1f"
--   words  i32 [k/16, n*bits/2]; scales [G,n], permuted: f16, bf16 or f32; of MX weights E8M0 bytes, of NVFP4 its bytes
--   zeros  i32 [G, n/pf]; bias [n], permuted; perm, sorted_g_idx i32 [k] (activation order, both; [0] means none)
--   k, n   of the words; outputs: how many of the n columns y has (default n: MRL-08 pads)
--   global number or f32 tensor: of int8 scales (MRL-40) or NVFP4 (MRL-48)
--   activations nil | "int8" | "fp8": x is quantized, a scale a token (MRL-45); words in the 8-bit tile layout. Or x is their
--          codes already, i8 or f8_e4m3, and row_scale their scales (act.quantize)
--   scale_factor number or f32 tensor: the scales are so many times those stored (default 1)
--   dtype  "f16" | "bf16" of the activations, for FP8 and NVFP4 weights; k_full = false: K is cut (row-parallel)
--   moe    true for an expert's: uint4 weights take 8-bit activations there only (MRL-47)
--   stride elements from one row of x to the next, where the kernel's differs from k
-- row_scale: f32 [rows,1], multiplies the rows of x times the weight; without 8-bit activations, which have their own.
-- A wrong form is an error that names the values. Memory: 3 MiB a thread, and x once more in float32.
-- x on a device (cuda.product): the weight lies there too; 8-bit activations are made there. Scales of floats and bias have
-- x's dtype, as y does, which is m.out where that is given; nil, msg, code where that is not so. Of codes y has m.dtype.
function M.marlin(x, m, row_scale)
  local codes = codes_of[m.activations] == x:type()
  local d = describe(m, codes)
  if codes ~= (row_scale ~= nil) and d.a8 == 1 then
    refuse(codes and "codes of %s activations need their row scales" or "%s activations make their own row scales", m.activations)
  end
  local values, scales = x, row_scale
  if d.a8 == 1 and not codes then
    local code
    values, scales, code = M.codes(x, m)
    if not values then return nil, scales, code end
  end
  if ffi.istype(tensor.device_type, x) then
    return require("nibble.cuda.product").marlin(values, function() return struct(m, d) end, m.n, m.outputs, scales, m.out,
      codes and m.dtype or x:type())
  end
  local y = tensor.new("f32", { x:size(1), m.outputs or m.n })
  nffi.must(C.nb_marlin_gemm(y, d.a8 == 1 and values:cast "f32" or values, struct(m, d), scales))
  return y
end

--- marlin_form(m [, codes]) -> function() -> nb_marlin_weight of m, wherever its tensors lie, for C; m outlives what it gives.
-- codes: true where x is codes of 8 bits already.
function M.marlin_form(m, codes)
  local d = describe(m, codes)
  return function() return struct(m, d) end
end

-- Expert e (0-based) of a stack [E, ...], or what isn't one.
local function slice(t, e)
  if not tensor.is_any(t) then return t end
  local experts, shape = t:size(1), t:size()
  if e < 0 or e >= experts then refuse("expert %d is outside 0..%d", e, experts - 1) end
  table.remove(shape, 1)
  return t:rows(e + 1, e + 1):reshape(shape)
end

--- marlin_expert(m, e) -> the description of expert e (0-based), views into the stacks [E, ...] of m
-- global and scale_factor: one number for all experts, or a tensor [E].
function M.marlin_expert(m, e)
  local out = setmetatable({ moe = true }, { __index = m })
  for _, name in ipairs { "words", "scales", "zeros", "perm", "sorted_g_idx", "bias" } do
    if m[name] then out[name] = slice(m[name], e) end
  end
  for _, name in ipairs { "global", "scale_factor" } do
    if ffi.istype(tensor.type, m[name]) and m[name]:numel() > 1 then out[name] = m[name]:get(e + 1) end
  end
  return out
end

--- marlin_experts(m) -> function(e, rows): rows times expert e of the stacks of m, as moe.forward takes its products.
function M.marlin_experts(m)
  return function(e, rows) return M.marlin(rows, M.marlin_expert(m, e)) end
end

-- Columns of y that one block of rows of the weight gives: how much of it is in float32 at a time.
local BLOCK = 512

-- Scales [r,G] and zero-points u8 [r,G] of rows a..b of a packed weight.
local function scales_of(w, a, b)
  local scales, zeros = w.scales_nk and w.scales_nk:rows(a, b), w.zeros_nk and w.zeros_nk:rows(a, b)
  if not scales then
    scales = tensor.new(w.scales:type(), { b - a + 1, w.scales:size(1) })
    nffi.must(C.nb_transpose_get(scales, w.scales, a - 1))
  end
  if w.zeros then
    zeros = tensor.new("u8", { b - a + 1, scales:size(2) })
    layout.awq.unpack_zeros(w.zeros, w.bits, zeros, a)
  end
  return scales, zeros or nil
end

--- packed(x, w) -> y f32 [rows, n] = x · Ŵ + bias of a weight in a checkpoint's own packing
-- Ŵ[n,k] = (code - zero) * scale. w: n, k, bits; read(codes, row): fills u8 [r,k] with the codes of rows row.. (1-based);
-- scales [G,n] or scales_nk [n,G]; zeros: AWQ words [G, n/pf], or zeros_nk u8 [n,G], or nil: 2^(bits-1) everywhere;
-- g_idx i32 [k] or nil; bias [n] or nil.
-- 512 rows of the weight are dequantized at a time.
function M.packed(x, w)
  local y = tensor.new("f32", { x:size(1), w.n })
  local values, bias = x:cast "f32", w.bias and w.bias:cast "f32" or nil
  for row = 1, w.n, BLOCK do
    nffi.stop_check()
    local last = math.min(row + BLOCK - 1, w.n)
    local rows = last - row + 1
    local codes = tensor.new("u8", { rows, w.k })
    w.read(codes, row)
    local scales, zeros = scales_of(w, row, last)
    local block, part = tensor.new("f32", { rows, w.k }), tensor.new("f32", { x:size(1), rows })
    nffi.must(C.nb_dequantize(block, codes, scales, zeros, w.g_idx, w.bits))
    compute.gemm(part, values, block, bias and bias:rows(row, last) or nil)
    nffi.must(C.nb_tensor_copy_block(y, part, 1, row - 1, 0, rows))
  end
  return y
end

local hinted

--- reduction{atomic=, device="cuda", n=, k=, dtype=, capability=} -> "atomic" | "fp32", hint | nil
-- How partial sums of one output meet: atomic adds only when asked for, on CUDA, n < 2048, k >= 2048 and not bf16
-- below SM 90; otherwise in FP32. hint: a sentence, once a process, where atomic adds would apply but weren't
-- asked for. (MRL-52)
function M.reduction(o)
  local fits = (o.device or "cuda") == "cuda" and o.n < 2048 and o.k >= 2048
    and not (o.dtype == "bf16" and (o.capability or 0) < 90)
  if fits and o.atomic then return "atomic" end
  if not fits or hinted then return "fp32" end
  hinted = true
  return "fp32", ("atomic adds would suit N = %d < 2048 and K = %d >= 2048; set atomic = true to use them"):format(o.n,
    o.k)
end

return M

-- methods.marlin_float: FP8 and FP4 weights made ready for Marlin after loading, which
-- then computes with 16-bit activations: fp8 by tensor, channel, shard or block,
-- mxfp8, nvfp4, mxfp4 (SYSTEMS MRL-48, CTM-NVFP4-15, CTM-NVFP4-16, CTM-FP8-17).
-- A matrix is a stack of one expert: every step is one call for all of them.
local layout = require "nibble.layout"
local marlin = require "nibble.marlin"
local nffi = require "nibble.ffi"
local schemes = require "nibble.scheme"
local tensor = require "nibble.tensor"

local M = {}

-- kind -> bits of a code, group along K (nil: by the scales)
local kinds = { fp8 = { 8 }, mxfp8 = { 8, 32 }, nvfp4 = { 4, 16 }, mxfp4 = { 4, 32 } }

-- Weight [E,N,K] (fp4: [E,N,K/2] bytes, low nibble first; k_first: [E,K,N]) as words [E,K/pf,N].
local function words_of(m)
  local w = m.weight
  if m.k_first then w = layout.transpose(w) end
  local experts, n, bytes = w:size(1), w:size(2), w:size(3)
  if bytes % 4 ~= 0 then
    error(("marlin_float: a row of %d bytes does not end on a word of 4"):format(bytes), 4)
  end
  return layout.transpose(w:as("i32", { experts, n, bytes / 4 }))
end

-- n split among count shards of equal size.
local function equal_widths(n, count)
  if count == 0 or n % count ~= 0 then
    error(("fp8 scales: N = %d does not divide into %d equal parts"):format(n, count), 5)
  end
  local widths = {}
  for i = 1, count do widths[i] = n / count end
  return widths
end

-- FP8 scales f32 in whatever form, as rows [E, 1 or K/bk, N] of dtype.
local function fp8_scale_rows(m, n)
  local s, experts = m.scale:cast(m.dtype), m.weight:size(1)
  if m.block then
    local rows = m.k_first and s or layout.transpose(s)
    local widths = {}
    for i = 1, rows:size(3) do widths[i] = m.block[1] end
    return layout.experts.repeat_columns(rows, widths, n)
  end
  local count = s:numel() / experts
  return layout.experts.repeat_columns(s:reshape { experts, 1, count }, m.widths or equal_widths(n, count), n)
end

-- Words, scale rows and bias, padded to Marlin's tiles.
local function load(m)
  local bits, group = unpack(kinds[m.kind])
  local words, pad = words_of(m), layout.experts.pad
  local n, k = words:size(3), words:size(2) * 32 / bits
  local scales
  if m.kind == "fp8" then
    scales, group = fp8_scale_rows(m, n), m.block and m.block[2] or -1
  else
    scales = layout.transpose(m.scale)
  end
  local pn, pk = marlin.padded_size(n, k, group)
  if m.size then pn, pk = m.size[1], m.size[2] end
  local experts = words:size(1)
  return {
    bits = bits, group = group, k = pk, words = pad(words, pk * bits / 32, pn, m.halves),
    scales = pad(scales, group == -1 and 1 or math.ceil(pk / group), pn, m.halves),
    bias = m.bias and pad(m.bias:reshape { experts, 1, n }, 1, pn, m.halves):reshape { experts, pn },
  }
end

-- The smallest factor that every matrix of the layer allows, their largest scale's, is one factor for all.
local function finish(m, x)
  local a8, out = m.activations ~= nil, {}
  local words, msg, code = x.words, nil, nil
  if m.on then words, msg, code = words:to(m.on) end
  if words then out.words, msg, code = layout.marlin.repack_here(words, x.bits, { order = "gptq", a8 = a8 }) end -- load made them
  if not out.words then return nil, msg, code end
  local scales = m.kind == "nvfp4" and x.scales:cast(m.dtype) or x.scales
  scales = layout.marlin.permute_scales(scales, x.k, x.group, a8)
  if m.kind == "fp8" then
    out.scales = layout.marlin.fold_fp8_exponent(scales)
  elseif m.kind == "nvfp4" then
    local factor
    out.scales, factor = layout.marlin.nvfp4_scales(scales)
    out.global = layout.marlin.nvfp4_global(m.global, m.dtype, factor)
  else
    out.scales = layout.marlin.mx_scales(scales, a8)
  end
  if x.bias then out.bias = layout.marlin.permute_bias(x.bias) end
  return out
end

local function refuse(m)
  if not kinds[m.kind] then
    error(("marlin_float: kind must be fp8, mxfp8, nvfp4 or mxfp4, found %s"):format(tostring(m.kind)), 3)
  end
  if m.activations and m.kind ~= "mxfp4" then
    return ("Marlin takes no 8-bit activations with %s weights, found %s"):format(m.kind, m.activations)
  end
end

-- t with a leading dimension of 1.
local function stacked(t)
  if not t then return nil end
  local shape = t:size()
  table.insert(shape, 1, 1)
  return t:reshape(shape)
end

--- prepare(m) -> {words=, scales=, global=, bias=} | nil, msg, code
-- m: kind "fp8" | "mxfp8" | "nvfp4" | "mxfp4"; weight [N,K] f8_e4m3 or [N,K/2] bytes of two fp4; scale: fp8 f32 of
-- one element, [N,1], one a shard, or [N/bn, K/bk] with block = {bn, bk}; else [N, K/g] f8_e4m3 or E8M0 bytes;
-- widths: how many rows each fp8 scale serves (default: equal parts); global: f32 (nvfp4); bias; k_first: the
-- fp8 weight is [K,N]; dtype: "f16" | "bf16", the activations'; activations = "fp8" with mxfp4 only. on: a device, where the words are
-- repacked and stay.
function M.prepare(m)
  local why = refuse(m)
  if why then return nil, why, "eunsupported" end
  local one = setmetatable({ weight = stacked(m.weight), scale = stacked(m.scale), bias = stacked(m.bias) },
    { __index = m })
  local out, msg, code = finish(one, load(one))
  if not out then return nil, msg, code end
  for _, name in ipairs { "words", "scales", "bias" } do
    if out[name] then out[name] = out[name][1] end
  end
  return out
end

--- prepare_moe(m) -> the same with a leading [E] | nil, msg, code
-- weight, scale, global, bias with a leading [E]. halves = 2: gate and up lie one after the other along N and are
-- padded each for itself; size = {N, K} of the padded matrix. nvfp4: one factor for all experts, as the largest
-- scale allows.
function M.prepare_moe(m)
  local why = refuse(m)
  if why then return nil, why, "eunsupported" end
  return finish(m, load(m))
end

-- How many of the bytes are NaN, which the product on a device takes for numbers: of FP8 codes (cut = 128) or E8M0 scales (256).
local function nans_of(t, cut)
  local p, nans = t:as("u8", t:size()):ptr(), 0
  for i = 0, t:numel() - 1 do
    if p[i] % cut == cut - 1 then nans = nans + 1 end
  end
  return nans
end

--- of_quantized(q) -> {kind =, weight =, scale =, global = nil, block = nil, group =} as prepare takes them, the type of its
-- codes | nil, msg, code
-- q: a Quantized of 8- or 4-bit floats. NaN among its codes or scales is an error.
function M.of_quantized(q)
  local s, m = q.scheme, { weight = q.codes, scale = q.scales, group = -1 }
  local nans = (s.bits == 8 and nans_of(q.codes, 128) or 0) + (s.scale_dtype == "e8m0" and nans_of(q.scales, 256) or 0)
  if nans > 0 then return nil, ("%d of its codes or scales are NaN"):format(nans), "eformat" end
  if s.bits == 4 then
    m.weight = tensor.new("u8", { q.n, q.k / 2 })
    nffi.must(nffi.C.nb_fp4_pack(m.weight, q.codes, 0))
  end
  if s.strategy == "tensor_group" then
    m.kind, m.group, m.global = "nvfp4", 16, q.factor or tensor.new("f32", { 1 }, { 1 / q.global:get(1) })
  elseif s.scale_dtype == "e8m0" then m.kind, m.group = s.bits == 4 and "mxfp4" or "mxfp8", 32
  else
    local rows, columns = schemes.block(s, q.n, q.k)
    m.kind, m.scale = "fp8", q.scales:cast "f32"
    if rows > 1 or q.scales:size(2) > 1 then m.block, m.group = { rows, columns }, columns end
  end
  return m, s.bits == 4 and "float4_e2m1f" or "float8_e4m3fn"
end

--- stack(m, n, k, group) -> experts as gemm.marlin_experts takes them | nil, msg, code
-- m: as prepare_moe takes it, size apart; [n,k]: of a padded matrix; group: along K, -1: none.
function M.stack(m, n, k, group)
  local made, msg, code = M.prepare_moe(setmetatable({ size = { n, k } }, { __index = m }))
  if not made then return nil, msg, code end
  return { type = kinds[m.kind][1] == 8 and "float8_e4m3fn" or "float4_e2m1f", words = made.words, scales = made.scales,
    global = made.global, bias = made.bias, group = group, k = k, n = n, dtype = m.dtype }
end

local function up(x, unit) return math.ceil(x / unit) * unit end

--- filled(size, group) -> the size filled up to whole tiles, of 64, and whole groups
function M.filled(size, group)
  if group < 1 then return up(size, 64) end
  local x, y = 64, group
  while y > 0 do x, y = y, x % y end
  return up(size, 64 / x * group)
end

--- padded_moe(hidden, intermediate) -> intermediate size padded for Marlin | nil, msg, code (CTM-NVFP4-16)
function M.padded_moe(hidden, intermediate)
  local unit = hidden % 128 == 0 and 64 or hidden % 64 == 0 and 128
  if not unit then
    return nil, ("the hidden size %d is not a multiple of 64, so Marlin's tiles don't fit"):format(hidden),
      "eunsupported"
  end
  return math.ceil(intermediate / unit) * unit
end

return M

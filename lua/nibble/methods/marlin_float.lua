-- methods.marlin_float: FP8 and FP4 weights made ready for Marlin after loading, which
-- then computes with 16-bit activations: fp8 by tensor, channel, shard or block,
-- mxfp8, nvfp4, mxfp4 (SYSTEMS MRL-48, CTM-NVFP4-15, CTM-NVFP4-16, CTM-FP8-17).
-- A matrix is a stack of one expert: every step is one call for all of them.
local layout = require "nibble.layout"
local marlin = require "nibble.marlin"

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

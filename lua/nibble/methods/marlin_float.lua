-- methods.marlin_float: FP8 and FP4 weights made ready for Marlin after loading, which
-- then computes with 16-bit activations: fp8 by tensor, channel, shard or block,
-- mxfp8, nvfp4, mxfp4 (SYSTEMS MRL-48, CTM-NVFP4-15, CTM-NVFP4-16, CTM-FP8-17).
local nffi = require "nibble.ffi"
local tensor = require "nibble.tensor"
local layout = require "nibble.layout"
local marlin = require "nibble.marlin"
local padded = require "nibble.methods.marlin".padded

local M = {}

-- kind -> bits of a code, group along K (nil: by the scales)
local kinds = { fp8 = { 8 }, mxfp8 = { 8, 32 }, nvfp4 = { 4, 16 }, mxfp4 = { 4, 32 } }

-- Weight [N, K] (fp4: [N, K/2] bytes, low nibble first; k_first: [K, N]) as words [K/pf, N].
local function words_of(m, bits)
  local w = m.weight
  local bytes = w:as("u8", w:size())
  if m.k_first then return layout.pack.rows(bytes, 8) end
  if bits == 8 then return layout.gptq.pack(bytes, 8) end
  return layout.transpose(bytes:as("i32", { w:size(1), w:size(2) / 4 }))
end

-- FP8 scales f32 in whatever form, as rows [1 or K/bk, N] of dtype.
local function fp8_scale_rows(m, n)
  local s = m.scale:cast(m.dtype)
  if m.block then
    local rows = m.k_first and s or layout.transpose(s)
    local out = tensor.new(m.dtype, { rows:size(1), n })
    local from, to = rows:as("u16"):ptr(), out:as("u16"):ptr()
    for r = 0, rows:size(1) - 1 do
      for c = 0, n - 1 do to[r * n + c] = from[r * rows:size(2) + math.floor(c / m.block[1])] end
    end
    return out
  end
  local widths, count = m.widths, s:numel()
  if not widths then
    if count == 0 or n % count ~= 0 then
      error(("fp8 scales: N = %d does not divide into %d equal parts"):format(n, count), 3)
    end
    widths = {}
    for i = 1, count do widths[i] = n / count end
  end
  local out = tensor.new(m.dtype, { 1, n })
  local from, to, at = s:as("u16"):ptr(), out:as("u16"):ptr(), 0
  for i = 1, count do
    for _ = 1, widths[i] do to[at], at = from[i - 1], at + 1 end
  end
  return out
end

-- One matrix as words, scale rows and bias, padded to Marlin's tiles.
local function load(m)
  if not kinds[m.kind] then
    error(("marlin_float: kind must be fp8, mxfp8, nvfp4 or mxfp4, found %s"):format(tostring(m.kind)), 3)
  end
  local bits, group = unpack(kinds[m.kind])
  local words = words_of(m, bits)
  local n, k = words:size(2), words:size(1) * 32 / bits
  local scales
  if m.kind == "fp8" then
    scales, group = fp8_scale_rows(m, n), m.block and m.block[2] or -1
  else
    scales = layout.transpose(m.scale)
  end
  local pn, pk = marlin.padded_size(n, k, group)
  if m.size then pn, pk = m.size[1], m.size[2] end
  return {
    bits = bits, group = group, k = pk, words = padded(words, pk * bits / 32, pn, m.halves),
    scales = padded(scales, group == -1 and 1 or math.ceil(pk / group), pn, m.halves),
    bias = m.bias and padded(m.bias:reshape { 1, n }, 1, pn, m.halves):reshape { pn },
  }
end

-- factor: what the block scales of all experts may be raised by (nvfp4).
local function finish(m, x, factor)
  local a8 = m.activations ~= nil
  local out = { words = layout.marlin.repack(x.words, x.bits, a8) }
  local scales = m.kind == "nvfp4" and x.scales:cast(m.dtype) or x.scales
  scales = layout.marlin.permute_scales(scales, x.k, x.group, a8)
  if m.kind == "fp8" then
    out.scales = layout.marlin.fold_fp8_exponent(scales)
  elseif m.kind == "nvfp4" then
    out.scales = layout.marlin.nvfp4_scales(scales, factor)
    out.global = layout.marlin.nvfp4_global(m.global, m.dtype, factor)
  else
    out.scales = layout.marlin.mx_scales(scales, a8)
  end
  if x.bias then out.bias = layout.marlin.permute_bias(x.bias) end
  return out
end

-- The smallest factor that every matrix of the layer allows: the largest scale decides.
local function common_factor(m, loaded)
  if m.kind ~= "nvfp4" then return nil end
  local factor
  for _, x in ipairs(loaded) do
    local _, f = layout.marlin.nvfp4_scales(x.scales:cast(m.dtype))
    factor = math.min(factor or f, f)
  end
  return factor
end

local function refuse(m)
  if m.activations and m.kind ~= "mxfp4" then
    return ("Marlin takes no 8-bit activations with %s weights, found %s"):format(m.kind, m.activations)
  end
end

--- prepare(m) -> {words=, scales=, global=, bias=} | nil, msg, code
-- m: kind "fp8" | "mxfp8" | "nvfp4" | "mxfp4"; weight [N,K] f8_e4m3 or [N,K/2] bytes of two fp4; scale: fp8 f32 of
-- one element, [N,1], one a shard, or [N/bn, K/bk] with block = {bn, bk}; else [N, K/g] f8_e4m3 or E8M0 bytes;
-- widths: how many rows each fp8 scale serves (default: equal parts); global: f32 (nvfp4); bias; k_first: the
-- fp8 weight is [K,N]; dtype: "f16" | "bf16", the activations'; activations = "fp8" with mxfp4 only.
function M.prepare(m)
  local why = refuse(m)
  if why then return nil, why, "eunsupported" end
  local x = load(m)
  return finish(m, x, common_factor(m, { x }))
end

--- prepare_moe(m) -> the same with a leading [E] | nil, msg, code
-- weight, scale, global, bias with a leading [E]. halves = 2: gate and up lie one after the other along N and are
-- padded each for itself; size = {N, K} of the padded matrix.
function M.prepare_moe(m)
  local why = refuse(m)
  if why then return nil, why, "eunsupported" end
  local loaded, results, experts = {}, {}, m.weight:size(1)
  local function expert(t, e)
    local shape = t:size()
    table.remove(shape, 1)
    return t:rows(e, e):reshape(shape)
  end
  local parts = {}
  for e = 1, experts do
    parts[e] = setmetatable({ weight = expert(m.weight, e), scale = expert(m.scale, e),
                              global = m.global and expert(m.global, e), bias = m.bias and expert(m.bias, e) },
                            { __index = m })
    loaded[e] = load(parts[e])
  end
  local factor = common_factor(m, loaded)
  for e = 1, experts do
    for name, t in pairs(finish(parts[e], loaded[e], factor)) do
      local shape = t:size()
      table.insert(shape, 1, experts)
      results[name] = results[name] or tensor.new(t:type(), shape)
      nffi.must(nffi.C.nb_tensor_copy(results[name]:rows(e, e), t))
    end
  end
  return results
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

-- marlin_floats: weights of 8- and 4-bit floats in Marlin's form with activations, as spec.support.marlin_product has
-- those of integers.
local nb = require "nibble"
local prepare = require("nibble.methods.marlin_float").prepare
local awq = require "spec.support.awq"

local M = {}

local E2M1 = { [0] = 0, 0.5, 1, 1.5, 2, 3, 4, 6 }
local BITS = { fp8 = 8, mxfp8 = 8, mxfp4 = 4, nvfp4 = 4 }
local GROUP = { mxfp8 = 32, mxfp4 = 32, nvfp4 = 16 }
local TYPE = { [8] = "float8_e4m3fn", [4] = "float4_e2m1f" }
M.kinds = { "fp8", "mxfp8", "mxfp4", "nvfp4" }

-- Codes u8 [n,k]. E4M3: no NaN; exact ones are whole numbers up to 15, negative ones too; others below 16.
local function codes_of(o, n, k)
  if o.bits == 4 then return awq.codes(n, k, 4) end
  if o.exact then return awq.each(nb.tensor("f8_e4m3", { n, k }), function() return math.random(-15, 15) end):as("u8", { n, k }) end
  return awq.each(nb.tensor("u8", { n, k }), function() return math.random(0, 1) * 128 + math.random(0, 0x57) end)
end

-- Scales as checkpoints have them, f32 (fp8), f8_e4m3 (nvfp4) or E8M0 bytes: [rows, columns].
local function scales_of(o, rows, columns)
  local function any(from, to) return o.exact and 2 ^ math.random(from, to) or from + math.random() * (to - from) end
  if o.kind == "fp8" then return awq.each(nb.tensor("f32", { rows, columns }), function() return any(-2, 2) end):cast(o.dtype):cast "f32" end
  if o.kind == "nvfp4" then
    return awq.each(nb.tensor("f8_e4m3", { rows, columns }), function()
      return o.exact and 2 ^ math.random(-2, 3) or math.random(1, 440) / 8
    end)
  end
  return awq.each(nb.tensor("u8", { rows, columns }), function() return 127 + math.random(-3, 3) end)
end

--- case{kind = "fp8" | "mxfp8" | "mxfp4" | "nvfp4", dtype = "f16", m =, k =, n =, group = of fp8: -1, 64 or a multiple of 128,
-- bias =, row_scale =, exact = true, codes =, scales =} -> the same table with x, w (f32 [n,k]), p, bias, row_scale
-- exact: as marlin_product.case's. codes u8 [n,k], scales: instead of random ones; weight, scale: what a checkpoint has.
function M.case(o)
  local n, k = o.n, o.k
  o.dtype, o.bits, o.exact = o.dtype or "f16", BITS[o.kind], o.exact ~= false
  o.group = GROUP[o.kind] or o.group
  o.x = o.exact and awq.whole({ o.m, k }, o.dtype) or awq.floats(o.dtype, { o.m, k }, -1, 1)
  o.bias = o.bias and (o.exact and awq.whole({ n }, o.dtype) or awq.floats(o.dtype, { n }, -1, 1)) or nil
  o.row_scale = o.row_scale and awq.powers("f32", { o.m, 1 }) or nil
  o.codes = o.codes or codes_of(o, n, k)
  local groups = o.group == -1 and 1 or k / o.group
  local scale = o.scales or scales_of(o, n, groups)
  local c = o.codes:ptr()
  if o.bits == 8 then
    o.weight = o.codes:as("f8_e4m3", { n, k })
    o.w = o.weight:cast "f32"
  else
    o.weight, o.w = nb.tensor("u8", { n, k / 2 }), nb.tensor("f32", { n, k })
    local bytes, to = o.weight:ptr(), o.w:ptr()
    for i = 0, n * k / 2 - 1 do bytes[i] = c[2 * i] + 16 * c[2 * i + 1] end
    for i = 0, n * k - 1 do to[i] = (c[i] < 8 and 1 or -1) * E2M1[c[i] % 8] end
  end
  local global = o.kind == "nvfp4" and 0.125 or 1
  local real, to = scale:type() == "u8" and nb.tensor("f32", { n, groups }) or scale:cast "f32", o.w:ptr()
  if scale:type() == "u8" then awq.each(real, function(i) return 2 ^ (scale:get(i) - 127) end) end
  local factor = real:ptr()
  for i = 0, n * k - 1 do
    to[i] = to[i] * factor[math.floor(i / k) * groups + math.floor(i % k * groups / k)] * global
  end
  o.scale, o.real = scale, real
  o.p = assert(prepare { kind = o.kind, weight = o.weight, scale = scale, dtype = o.dtype, bias = o.bias,
    global = o.kind == "nvfp4" and nb.tensor("f32", { 1 }, { global }) or nil,
    block = o.kind == "fp8" and o.group ~= -1 and { 1, o.group } or nil })
  o.p.type, o.p.k, o.p.n, o.p.dtype = TYPE[o.bits], k, n, o.dtype
  o.factor = o.p.global and o.p.global:get(1) * 2 ^ -(o.dtype == "f16" and 14 or 126) or 1
  return o
end

return M

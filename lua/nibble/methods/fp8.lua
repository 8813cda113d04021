-- methods.fp8: what happens to FP8 weights of fused layers and experts after loading,
-- whatever the kernel: one scale for shards that had their own, one input scale for
-- experts, e4m3fnuz where the platform wants it (SYSTEMS CTM-FP8-08 to CTM-FP8-11).
local ffi = require "ffi"
local nffi = require "nibble.ffi"
local tensor = require "nibble.tensor"
local layout = require "nibble.layout"
local dispatch = require "nibble.dispatch"
local C, must = nffi.C, nffi.must

local M = {}

local function max_of(t)
  local max = -math.huge
  for i = 1, t:numel() do max = math.max(max, t:get(i)) end
  return max
end

-- Where the weight lies. weight [E,N,K], scales [E,shards], widths: rows of each shard or nil.
local function requantize(weight, scales, widths)
  local out, max = dispatch.new(weight, weight:type(), weight:size()), dispatch.new(weight, "f32", { weight:size(1) })
  must(dispatch.call("fp8_requantize", out, max, weight, scales, widths and ffi.new("int64_t[?]", #widths, widths)))
  return out, max
end

--- requantize(weight, scales [, widths]) -> weight, scale (a number)
-- weight: f8_e4m3 or f8_e4m3fnuz [N,K]; scales: f32, one a shard; widths: each shard's rows (default: equal parts).
-- Shards get the largest scale: v = fp16(w)*s in fp16, then e4m3(v/max); the shard that has it stays bit for bit.
-- A fused checkpoint, whose last scale was never set, stays as it is. (CTM-FP8-11)
function M.requantize(weight, scales, widths)
  local n, k = weight:size(1), weight:size(2)
  local out, max = requantize(weight:reshape { 1, n, k }, scales:reshape { 1, scales:numel() }, widths)
  return out:reshape { n, k }, max:to("cpu"):get(1)
end

--- requantize_experts(weight, scales) -> weight, scales f32 [E]
-- weight: [E, s*I, K], scales [E, s]: every expert's shards by the largest of its own scales. (CTM-FP8-11)
function M.requantize_experts(weight, scales) return requantize(weight, scales) end

--- input_scale(scales) -> f32 []: the largest of the experts' scales. (CTM-FP8-10)
function M.input_scale(scales) return tensor.new("f32", {}, { max_of(scales) }) end

--- to_fnuz(weight, scale [, input_scale]) -> weight f8_e4m3fnuz, scale, input_scale, nans
-- The same finite values in e4m3fnuz: byte 0x80 (minus zero) becomes 0, scales double. nans counts the bytes
-- 0x7f and 0xff, NaN before and +-240 after: warn when it isn't 0. (CTM-FP8-09)
function M.to_fnuz(weight, scale, input_scale)
  local out, nans = tensor.new("f8_e4m3fnuz", weight:size()), ffi.new "int64_t[1]"
  must(C.nb_fp8_to_fnuz(out, nans, weight))
  local function double(s) return s and layout.marlin.multiply_scales(s, 2) end
  return out, double(scale), double(input_scale), tonumber(nans[0])
end

return M

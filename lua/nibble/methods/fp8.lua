-- methods.fp8: what happens to FP8 weights of fused layers and experts after loading,
-- whatever the kernel: one scale for shards that had their own, one input scale for
-- experts, e4m3fnuz where the platform wants it (SYSTEMS CTM-FP8-08 to CTM-FP8-11).
local ffi = require "ffi"
local tensor = require "nibble.tensor"
local layout = require "nibble.layout"

local M = {}

-- What a shard's scale holds until a checkpoint fills it.
local UNSET = -3.4028234663852886e38

-- The largest code's value that a dtype is quantized to.
local limits = { f8_e4m3 = 448, f8_e4m3fnuz = 224 }

-- q = round(clamp(x / scale)) of x f16 [n,k], as x * (1/scale) in float32.
local function quantize(x, scale, dtype)
  if dtype == "f8_e4m3" then
    return layout.marlin.quantize_activations(x, "fp8", { scale = tensor.new("f32", { 1 }, { scale }) })
  end
  local inverse = ffi.new("float[1]", 1 / scale)[0]
  local y = layout.marlin.multiply_scales(x, inverse, "f32")
  local p, limit = y:ptr(), limits[dtype]
  for i = 0, y:numel() - 1 do p[i] = math.max(-limit, math.min(limit, p[i])) end
  return y:cast(dtype)
end

local function max_of(t)
  local max = -math.huge
  for i = 1, t:numel() do max = math.max(max, t:get(i)) end
  return max
end

--- requantize(weight, scales [, widths]) -> weight, scale (a number)
-- weight: f8_e4m3 or f8_e4m3fnuz [N,K]; scales: f32, one a shard; widths: each shard's rows (default: equal parts).
-- Shards get the largest scale: v = fp16(w)*s in fp16, then e4m3(v/max). A fused checkpoint, whose last scale was
-- never set, stays as it is. (CTM-FP8-11)
function M.requantize(weight, scales, widths)
  local max, count = max_of(scales), scales:numel()
  if count < 2 or scales:get(count) == UNSET then return weight, max end
  local out, at = weight:clone(), 1
  for i = 1, count do
    local rows = widths and widths[i] or weight:size(1) / count
    if rows > 0 then
      local shard = weight:rows(at, at + rows - 1)
      local v = layout.marlin.multiply_scales(shard:cast("f16"), scales:get(i))
      local q = quantize(v, max, weight:type())
      ffi.copy(out:rows(at, at + rows - 1).data, q.data, q:bytes())
    end
    at = at + rows
  end
  return out, max
end

--- requantize_experts(weight, scales) -> weight, scales f32 [E]
-- weight: [E, s*I, K], scales [E, s]: every expert's shards by the largest of its own scales. (CTM-FP8-11)
function M.requantize_experts(weight, scales)
  local experts, n, k = weight:size(1), weight:size(2), weight:size(3)
  local out, max = weight:clone(), tensor.new("f32", { experts })
  for e = 1, experts do
    local w, s = M.requantize(weight:rows(e, e):reshape { n, k }, scales:rows(e, e):reshape { scales:size(2) })
    ffi.copy(out:rows(e, e).data, w.data, w:bytes())
    max:set(e, s)
  end
  return out, max
end

--- input_scale(scales) -> f32 []: the largest of the experts' scales. (CTM-FP8-10)
function M.input_scale(scales) return tensor.new("f32", {}, { max_of(scales) }) end

--- to_fnuz(weight, scale [, input_scale]) -> weight f8_e4m3fnuz, scale, input_scale, nans
-- The same finite values in e4m3fnuz: byte 0x80 (minus zero) becomes 0, scales double. nans counts the bytes
-- 0x7f and 0xff, NaN before and +-240 after: warn when it isn't 0. (CTM-FP8-09)
function M.to_fnuz(weight, scale, input_scale)
  local out = tensor.new("f8_e4m3fnuz", weight:size())
  local from, to, nans = ffi.cast("uint8_t *", weight.data), ffi.cast("uint8_t *", out.data), 0
  for i = 0, weight:numel() - 1 do
    local b = from[i]
    if b == 0x7f or b == 0xff then nans = nans + 1 end
    to[i] = b == 0x80 and 0 or b
  end
  local function double(s) return s and layout.marlin.multiply_scales(s, 2) end
  return out, double(scale), double(input_scale), nans
end

return M

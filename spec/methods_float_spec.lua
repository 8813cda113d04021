-- FP8 and FP4 weights after loading: Marlin's words and scales, shards with one scale, e4m3fnuz
-- (MRL-48, CTM-FP8-09 to CTM-FP8-11, CTM-FP8-17, CTM-NVFP4-15, CTM-NVFP4-16).
local nb = require "nibble"
local marlin_float = require "nibble.methods.marlin_float"
local fp8 = require "nibble.methods.fp8"
local layout = nb.layout

local function bytes(dtype, shape, seed)
  local t = nb.tensor("u8", shape)
  for i = 1, t:numel() do t:set(i, (i * 37 + (seed or 0)) % 120) end -- no NaN bytes, positive as scales
  return t:as(dtype, shape)
end

local function ones(dtype, shape)
  local t = nb.tensor("f32", shape)
  for i = 1, t:numel() do t:set(i, 1) end
  return t:cast(dtype)
end

describe("marlin_float", function()
  it("CTM-FP8-17: words unpack to the weight's bytes, scales are folded, channel and tensor agree", function()
    local w = bytes("f8_e4m3", { 64, 128 })
    local one = assert(marlin_float.prepare { kind = "fp8", weight = w, scale = ones("f32", { 1 }), dtype = "f16" })
    assert.is_true(layout.gptq.unpack(layout.marlin.unpack(one.words, 8), 8, 128):equal(w:as("u8", { 64, 128 })))
    assert.same({ "f16", 1, 64 }, { one.scales:type(), one.scales:size(1), one.scales:size(2) })
    for i = 1, 64 do assert.equal(256, one.scales:cast("f32"):get(i)) end
    local channel = marlin_float.prepare { kind = "fp8", weight = w, scale = ones("f32", { 64, 1 }), dtype = "f16" }
    assert.is_true(channel.scales:equal(one.scales))
    -- By block {32, 64}: rows of 2 groups along K, each scale for 32 columns.
    local scales = nb.tensor("f32", { 2, 2 }, { 1, 2, 4, 8 })
    local block = marlin_float.prepare { kind = "fp8", weight = w, scale = scales, dtype = "f16", block = { 32, 64 } }
    local rows = layout.marlin.unpermute_scales(block.scales, 128, 64):cast "f32"
    assert.same({ 2, 64 }, rows:size())
    for i = 1, 64 do
      local s = i <= 32 and 1 or 4
      assert.same({ 256 * s, 512 * s }, { rows:get { 1, i }, rows:get { 2, i } })
    end
    local turned = layout.transpose(w:as("u8", { 64, 128 })):as("f8_e4m3", { 128, 64 })
    local k_first = marlin_float.prepare { kind = "fp8", weight = turned, scale = ones("f32", { 1 }),
                                           dtype = "f16", k_first = true }
    assert.is_true(k_first.words:equal(one.words))
    assert.error_matches(function()
      marlin_float.prepare { kind = "fp8", weight = w, scale = ones("f32", { 3 }), dtype = "f16" }
    end, "N = 64 does not divide into 3 equal parts")
  end)

  it("CTM-NVFP4-15: nibbles come back from the words; experts share one factor", function()
    local w, s = bytes("u8", { 64, 64 }), bytes("f8_e4m3", { 64, 8 })
    local m = { kind = "nvfp4", weight = w, scale = s, global = nb.tensor("f32", {}, { 0.5 }), dtype = "bf16" }
    local out = assert(marlin_float.prepare(m))
    local codes = layout.gptq.unpack(layout.marlin.unpack(out.words, 4), 4, 128)
    assert.is_true(layout.ct.pack(codes, 4):as("u8", { 64, 64 }):equal(w))
    local moe = assert(marlin_float.prepare_moe { kind = "nvfp4", dtype = "bf16",
      global = nb.tensor("f32", { 2 }, { 0.5, 0.5 }), weight = bytes("u8", { 2, 64, 64 }),
      scale = bytes("f8_e4m3", { 2, 64, 8 }), size = { 64, 128 } })
    assert.same({ 2, 8, 128 }, moe.words:size())
    assert.same({ 2, 8, 64 }, moe.scales:size())
    assert.equal(moe.global:get(1), moe.global:get(2))
  end)

  it("MX scales: reordered, or raised by 6 for fp8 activations, never to 255, which is NaN", function()
    local s = nb.tensor("u8", { 1, 4 }, { 10, 20, 30, 40 })
    assert.same({ 10, 30, 20, 40 }, layout.marlin.mx_scales(s):totable())
    assert.same({ 16, 26, 36, 46 }, layout.marlin.mx_scales(s, true):totable())
    s:set(3, 248)
    assert.equal(2 ^ 127, layout.marlin.mx_scales(s, true):as("f8_e8m0", { 4 }):cast("f32"):get(3))
    s:set(3, 249)
    assert.error_matches(function() layout.marlin.mx_scales(s, true) end,
      "scale 2^122 at position 3 is too large for fp8 activations: at most 2^121 is possible")
    assert.error_matches(function() layout.marlin.mx_scales(nb.tensor("u8", { 1, 6 })) end,
      "N = 6 is not a multiple of 4")
  end)

  it("MRL-47, CTM-NVFP4-16: refuses 8-bit activations and sizes that no tile fits", function()
    local ok, msg, code = marlin_float.prepare { kind = "nvfp4", activations = "int8" }
    assert.is_nil(ok)
    assert.equal("eunsupported", code)
    assert.matches("no 8%-bit activations with nvfp4 weights, found int8", msg)
    assert.equal(128, marlin_float.padded_moe(128, 96))
    assert.same({ 192, 256 }, { marlin_float.padded_moe(128, 192), (marlin_float.padded_moe(192, 192)) })
    assert.matches("hidden size 100", select(2, marlin_float.padded_moe(100, 96)))
    assert.error_matches(function() marlin_float.prepare { kind = "fp9" } end,
      "kind must be fp8, mxfp8, nvfp4 or mxfp4, found fp9")
  end)
end)

describe("fp8", function()
  it("CTM-FP8-11: the shard that has the largest scale stays bit for bit; the other shrinks", function()
    local w = bytes("f8_e4m3", { 4, 32 })
    local out, max = fp8.requantize(w, nb.tensor("f32", { 2 }, { 1, 2 }), { 1, 3 })
    assert.equal(2, max)
    assert.is_true(out:rows(2, 4):equal(w:rows(2, 4)))
    local before, after = w:cast("f32"), out:cast("f32")
    for i = 1, 32 do -- halves are exact but for subnormals
      local half = before:get(i) / 2
      if half >= 2 ^ -6 then assert.equal(half, after:get(i)) end
    end
    local same = fp8.requantize(w, nb.tensor("f32", { 2 }, { 1, -3.4028234663852886e38 }))
    assert.is_true(same:equal(w))
  end)

  it("CTM-FP8-09, CTM-FP8-10: e4m3fnuz keeps finite values, NaN bytes are counted; one input scale", function()
    local w = nb.tensor("u8", { 1, 4 }, { 0x38, 0x80, 0x7f, 0xff }):as("f8_e4m3", { 1, 4 })
    local out, scale, input, nans = fp8.to_fnuz(w, nb.tensor("f32", { 1 }, { 3 }), nb.tensor("f32", { 1 }, { 5 }))
    assert.same({ 0x38, 0, 0x7f, 0xff }, out:as("u8"):totable())
    assert.same({ 6, 10, 2 }, { scale:get(1), input:get(1), nans })
    assert.equal(7, fp8.input_scale(nb.tensor("f32", { 3 }, { 1, 7, 2 })):get(1))
  end)
end)

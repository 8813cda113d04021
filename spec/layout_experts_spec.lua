-- Stacks of expert weights moved as a whole: rows taken, matrices padded, columns repeated, groups sorted, block
-- scales swizzled and back, shards with one scale (MRL-08, MRL-32, CTM-NVFP4-14, CTM-FP8-09, CTM-FP8-11).
local nb = require "nibble"
local ffi = require "ffi"
local fp8 = require "nibble.methods.fp8"
local layout = nb.layout
local experts = layout.experts

local function counted(dtype, shape, step)
  local t = nb.tensor(dtype, shape)
  for i = 1, t:numel() do t:set(i, (i * (step or 1)) % 251) end
  return t
end

describe("layout.experts", function()
  it("CTM-NVFP4-14: takes rows of every expert, swaps halves, and the inverse order undoes it", function()
    local t = counted("u8", { 2, 4, 3 })
    assert.same({ 7, 8, 9, 10, 11, 12, 1, 2, 3, 4, 5, 6 }, experts.swap_halves(t):rows(1, 1):totable())
    assert.is_true(experts.swap_halves(experts.swap_halves(t)):equal(t))
    local index = experts.row_order(4, function(i) return (3 * i + 1) % 4 end)
    assert.is_true(experts.take_rows(experts.take_rows(t, index), experts.inverse_order(index)):equal(t))
    assert.same({ 10, 11, 12 }, experts.take_rows(t:rows(1, 1):reshape { 4, 3 },
      nb.tensor("i32", { 1 }, { 3 })):totable())
    assert.error_matches(function() experts.take_rows(t, nb.tensor("i32", { 1 }, { 4 })) end,
      "index 0 is 4, outside the 4 rows")
    assert.error_matches(function() experts.swap_halves(counted("u8", { 3, 2 })) end, "even number of rows, found 3")
    assert.error_matches(function() experts.take_rows(nb.tensor("u8", { 3 }), index) end, "found 1 dimensions")
  end)

  it("MRL-08: pads rows below and each part of the columns for itself", function()
    local t = nb.tensor("i16", { 1, 1, 4 }, { 1, 2, 3, 4 })
    assert.same({ 1, 2, 0, 3, 4, 0, 0, 0, 0, 0, 0, 0 }, experts.pad(t, 2, 6, 2):totable())
    assert.same({ 1, 2, 3, 4, 0, 0 }, experts.pad(t, 1, 6):totable())
    assert.is_true(rawequal(t, experts.pad(t, 1, 4)))
    assert.error_matches(function() experts.pad(t, 1, 7, 2) end, "%[1x4%] in 2 parts does not fit into %[1x7%]")
    assert.error_matches(function() experts.pad(t, 1, 2) end, "does not fit")
  end)

  it("CTM-FP8-17: repeats columns, cut at the width", function()
    local t = nb.tensor("f32", { 2, 1, 2 }, { 1, 2, 3, 4 })
    assert.same({ 1, 1, 2, 3, 3, 4 }, experts.repeat_columns(t, { 2, 2 }, 3):totable())
    assert.error_matches(function() experts.repeat_columns(t, { 1, 1 }, 3) end, "2 columns when repeated")
    assert.error_matches(function() experts.repeat_columns(t, { 1 }, 1) end, "1 widths for 2 columns")
  end)

  it("MRL-32, ORC-17: sorts groups stably, every expert for itself", function()
    local g = nb.tensor("i32", { 2, 5 }, { 1, 0, 1, 0, 1, 2, -1, 2, 2, 0 })
    local sorted, perm = layout.marlin.sort_g_idx(g)
    assert.same({ 0, 0, 1, 1, 1, -1, 0, 2, 2, 2 }, sorted:totable())
    assert.same({ 1, 3, 0, 2, 4, 1, 4, 0, 2, 3 }, perm:totable())
    assert.equal(0, (layout.marlin.sort_g_idx(nb.tensor("i32", { 2, 0 }))):numel())
    assert.error_matches(function() layout.marlin.sort_g_idx(nb.tensor("u8", { 2 })) end, "expected i32")
  end)

  it("CTM-NVFP4-14: unswizzling is the inverse for 8 and 16 bits, with padding", function()
    for _, dtype in ipairs { "u8", "i16" } do
      local s = counted(dtype, { 2, 200, 10 }, 7)
      local swizzled = layout.marlin.swizzle_blockscale(s)
      assert.same({ 2, 256, 12 }, swizzled:size())
      assert.is_true(layout.marlin.unswizzle_blockscale(swizzled, 200, 10):equal(s))
      -- (m,k) = (33, 5): tile 1 of 3 along k, row 33 % 32 = 1 of 32, 16 a row, 4 a step of 32 rows
      local at = ((1 * 32 + 1) * 4 + 1) * 4 + 1
      assert.equal(s:get { 1, 34, 6 }, swizzled:get(at + 1))
    end
    assert.error_matches(function()
      layout.marlin.unswizzle_blockscale(nb.tensor("u8", { 128, 4 }), 200, 4)
    end, "expected u8 %[256x4%]")
    assert.error_matches(function() layout.marlin.swizzle_blockscale(nb.tensor("f32", { 2, 4 })) end, "8 or 16 bits")
  end)

  it("transposes every expert", function()
    local t = counted("u8", { 2, 3, 5 })
    local turned = layout.transpose(t)
    assert.same({ 2, 5, 3 }, turned:size())
    assert.is_true(turned[2]:equal(layout.transpose(t[2])))
  end)
end)

describe("fp8 shards", function()
  it("CTM-FP8-11: all experts in one call equal each for itself; a tiny largest scale still keeps its bytes", function()
    local w = counted("u8", { 3, 4, 8 }, 5):map(function(v) return v % 120 end):as("f8_e4m3", { 3, 4, 8 })
    local s = nb.tensor("f32", { 3, 2 }, { 0.5, 0.25, 1e-9, 2e-9, 3, 3 })
    local out, max = fp8.requantize_experts(w, s)
    assert.same({ 0.5, 3 }, { max:get(1), max:get(3) })
    for e = 1, 3 do
      local one, most = fp8.requantize(w[e], s[e])
      assert.is_true(one:equal(out[e]))
      assert.equal(max:get(e), most)
    end
    assert.is_true(out[2]:rows(3, 4):equal(w[2]:rows(3, 4)))
    assert.is_false(out[1]:rows(3, 4):equal(w[1]:rows(3, 4)))
    assert.is_true(out[3]:equal(w[3]))
  end)

  it("CTM-FP8-11: the product with the shard's scale is rounded to f16 before the division", function()
    -- 1 times 1.0625 + 2^-13 is 1.0625 in f16, by 2 a tie that goes to 0.5; unrounded it would be 0.5625.
    local w = nb.tensor("u8", { 1, 2, 8 }):fill(0x38):as("f8_e4m3", { 1, 2, 8 })
    local out = fp8.requantize_experts(w, nb.tensor("f32", { 1, 2 }, { 1.0625 + 2 ^ -13, 2 })):as "u8"
    assert.same({ 0x30, 0x38 }, { out:get(1), out:get(9) })
  end)

  it("CTM-FP8-11: refuses shards that don't make up the weight", function()
    local w = nb.tensor("f8_e4m3", { 4, 8 })
    assert.error_matches(function() fp8.requantize(w, nb.tensor("f32", { 3 })) end,
      "N = 4 does not divide into 3 equal parts")
    assert.error_matches(function() fp8.requantize(w, nb.tensor("f32", { 2 }), { 1, 2 }) end,
      "3 rows together, the weight has 4")
    assert.error_matches(function() fp8.requantize(nb.tensor("u8", { 4, 8 }), nb.tensor("f32", { 2 })) end,
      "expected f8_e4m3 or f8_e4m3fnuz, found u8")
  end)

  it("CTM-FP8-09: every finite e4m3 value is kept by e4m3fnuz with twice the scale", function()
    local bytes = nb.tensor("u8", { 1, 256 })
    for i = 0, 255 do bytes:set(i + 1, i) end
    local w = bytes:as("f8_e4m3", { 1, 256 })
    local out, scale, _, nans = fp8.to_fnuz(w, nb.tensor("f32", { 1 }, { 1 }))
    local before, after = w:cast("f32"), out:cast("f32")
    for i = 0, 255 do
      if i % 128 ~= 127 then assert.equal(before:get(i + 1), after:get(i + 1) * scale:get(1)) end
    end
    assert.equal(2, nans)
    assert.equal(240, after:get(128))
    assert.is_true(ffi.istype("nb_tensor", out))
  end)
end)

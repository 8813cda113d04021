-- Codes on a given grid: what a packer needs that gets floats, scales and zero-points.
local nb = require "nibble"
local nffi = require "nibble.ffi"
local C = nffi.C

local function codes(w, scales, zeros, g_idx, bits)
  local out = nb.tensor("u8", w:size())
  nffi.must(C.nb_grid_codes(out, w, scales, zeros, g_idx, bits))
  return out:totable()
end

describe("grid_codes", function()
  local scales = nb.tensor("f32", { 1, 2 }, { 0.5, 2 })

  it("rounds half to even and clamps; symmetric without zero-points", function()
    local w = nb.tensor("f32", { 1, 4 }, { 0.75, -100, 3, 1000 })
    assert.same({ 10, 0, 10, 15 }, codes(w, scales, nil, nil, 4)) -- 1.5 -> 2, 1.5 -> 2
  end)

  it("takes zero-points as codes or floats, and groups from g_idx", function()
    local w = nb.tensor("f32", { 1, 4 }, { 0.5, 2, 0.5, 2 })
    local g_idx = nb.tensor("i32", { 4 }, { 0, 1, 0, 1 })
    assert.same({ 4, 2, 4, 2 }, codes(w, scales, nb.tensor("u8", { 1, 2 }, { 3, 1 }), g_idx, 4))
    assert.same({ 4, 2, 4, 2 }, codes(w, scales, nb.tensor("f32", { 1, 2 }, { 3, 1 }), g_idx, 4))
  end)

  it("says where there is no code, and which sizes don't fit", function()
    local bad = nb.tensor("f32", { 1, 2 }, { 1, 0 })
    assert.error_matches(function() codes(nb.tensor("f32", { 1, 4 }), bad, nil, nil, 4) end,
      "row 0, column 3 %(from 0%) has no code")
    assert.error_matches(function() codes(nb.tensor("f32", { 1, 3 }), scales, nil, nil, 4) end,
      "K = 3 does not divide into the 2 groups")
    assert.error_matches(function() codes(nb.tensor("i32", { 1, 4 }), scales, nil, nil, 4) end,
      "weight: expected f32, bf16 or f16, found i32")
    assert.error_matches(function() codes(nb.tensor("f32", { 1, 4 }), scales, nil, nb.tensor("i32", { 4 }, { 0, 2, 0, 0 }), 4) end,
      "g_idx%[1%] is 2, expected 0 to 1")
  end)
end)

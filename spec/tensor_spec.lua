-- Tensors: making, viewing, bounds, accounting (DESIGN 3).
local nb = require "nibble"
local nffi = require "nibble.ffi"

describe("tensor", function()
  it("holds values row-major and 1-based", function()
    local t = nb.tensor("f32", { 2, 3 }, { 1, 2, 3, 4, 5, 6 })
    assert.equal("f32", t:type())
    assert.same({ 2, 3 }, t:size())
    assert.equal(4, t:get(4))
    assert.equal(24, t:bytes())
    assert.same({ 4, 5, 6 }, t:rows(2, 2):totable())
  end)

  it("refuses what lies outside, with the numbers", function()
    local t = nb.tensor("i32", { 4 })
    assert.error_matches(function() t:get(5) end, "index 5 is outside 1..4")
    assert.error_matches(function() t:rows(2, 6) end, "lies outside the 4 rows")
    assert.error_matches(function() nb.tensor("f33", { 1 }) end, 'unknown dtype "f33"')
    assert.error_matches(function() nb.tensor("i4", { 3 }) end, "don't end on a byte")
    assert.error_matches(function() t:reshape { 3 } end, "reshape")
  end)

  it("reads a NaN of any bits as a number (LuaJIT would take some for other types)", function()
    local t = nb.tensor("u32", { 2 }, { 0xfffff123, 0x7fc00001 }):as "f32"
    for i = 1, 2 do
      assert.equal("number", type(t:get(i)))
      assert.is_true(t:get(i) ~= t:get(i))
    end
  end)

  it("counts live bytes and gives them back", function()
    collectgarbage() collectgarbage()
    local before = tonumber(nffi.C.nb_live_bytes())
    local t = nb.tensor("u8", { 1000 })
    local v = t:rows(1, 10)
    assert.equal(before + 1000, tonumber(nffi.C.nb_live_bytes()))
    t:free()
    assert.equal(before + 1000, tonumber(nffi.C.nb_live_bytes()), "the view retains the buffer")
    v:free()
    assert.equal(before, tonumber(nffi.C.nb_live_bytes()))
  end)

  it("turns a failed allocation into an error, not an abort", function()
    nffi.C.nb_debug_fail_alloc(1)
    assert.error_matches(function() nb.tensor("u8", { 64 }) end, "out of memory")
    nffi.C.nb_debug_fail_alloc(0)
    assert.equal(64, nb.tensor("u8", { 64 }):bytes())
  end)
end)

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

  it("is made from nested tables", function()
    local t = nb.tensor { { 1, 2, 3 }, { 4, 5, 6 } }
    assert.equal("f32", t:type())
    assert.same({ 2, 3 }, t:size())
    assert.equal(6, t[{ 2, 3 }])
    assert.same({ 3 }, nb.tensor({ 1, 2, 3 }):size())
    assert.same({ 2, 1, 2 }, nb.tensor("i8", { { { 1, 2 } }, { { 3, 4 } } }):size())
    assert.error_matches(function() nb.tensor { { 1, 2 }, { 3 } } end, "expected 2 elements in dimension 2, found 1")
    assert.error_matches(function() nb.tensor { { 1, 2 }, { 3, "x" } } end, "expected a number, found a string")
    assert.error_matches(function() nb.tensor("f32", { 2 }, { 1, 2, 3 }) end, "3 values for 2 elements")
  end)

  it("refuses indices that are no positions", function()
    local t, m = nb.tensor("f32", { 4 }), nb.tensor("bf16", { 2, 2 })
    assert.error_matches(function() return t[0 / 0] end, "is outside 1..4")
    assert.error_matches(function() t[0] = 1 end, "index 0 is outside 1..4")
    assert.error_matches(function() t:get(true) end, "expected an index, found a boolean")
    assert.error_matches(function() return m[{ 1, 0 / 0 }] end, "is outside 1..2")
    assert.error_matches(function() m[1] = 3 end, "needs one dimension, found 2")
    assert.error_matches(function() t.weight = 3 end, 'no field "weight"')
  end)

  it("never hands LuaJIT a NaN that it would take for another type", function()
    -- Every NaN pattern of these is hostile on some build: payload bits up to the sign.
    local bits = nb.tensor("u32", { 3 }, { 0xffffffff, 0xffff8000, 0x7fffffff })
    for _, dtype in ipairs { "f32", "bf16", "f16", "f8_e4m3", "f8_e5m2" } do
      local t = bits:as(dtype)
      for i = 1, t:numel() do
        local v = t:get(i)
        assert.equal("number", type(v))
        assert.is_true(v ~= v or math.abs(v) <= 1, dtype)
      end
      assert.equal("number", type(t:totable()[1]))
      t:clone():map(function(v)
        assert(type(v) == "number")
        return v
      end)
    end
    assert.equal("number", type(nb.tensor("u32", { 2 }, { 0xffffffff, 0xffffffff }):as("f64"):get(1)))
  end)

  it("writes one packed element and leaves its neighbours' bits", function()
    local t = nb.tensor("u8", { 3 }, { 0x88, 0xff, 0x80 }) -- f4: -0 -0 -6 -6 0 -0
    t:as("f4"):set(2, 1)
    assert.same({ 0x28, 0xff, 0x80 }, t:totable())
    for _, dtype in ipairs { "f4", "i4", "u4", "f6_e2m3", "f6_e3m2" } do
      local x = nb.tensor(dtype, { 8 }):fill(3)
      for i = 1, 8 do x:set(i, i % 4) end
      assert.same({ 1, 2, 3, 0, 1, 2, 3, 0 }, x:totable(), dtype)
    end
  end)

  it("fills with a rounded value in every dtype", function()
    for _, dtype in ipairs { "f32", "bf16", "i8", "i64", "f4", "f6_e3m2", "u4", "f8_e4m3" } do
      local t = nb.tensor(dtype, { 12 }):fill(2.2)
      local want = nb.tensor("f32", { 4 }, { 2.2, 2.2, 2.2, 2.2 }):cast(dtype)
      for _, i in ipairs { 1, 7, 12 } do assert.equal(want:get(1), t:get(i), dtype) end
      assert.is_true(math.abs(t:get(7) - 2.2) < 0.3, dtype)
    end
    assert.equal(1, nb.tensor("bf16", { 1 }):fill(1):get(1))
    assert.equal(0, nb.tensor("f32", { 0 }):fill(1):numel())
  end)

  it("maps any dtype, rounding as a cast does, and stops between blocks", function()
    local codes = nb.tensor("f4", { 70000 }):fill(1.5)
    local out = codes:map(function(v) return v * 100.5 end, nb.tensor("u8", { 70000 }))
    assert.equal(151, out:get(70000)) -- 150.75
    nffi.C.nb_stop_request()
    local calls = 0
    assert.error_matches(function()
      codes:map(function(v)
        calls = calls + 1
        return v
      end)
    end, "interrupted")
    nffi.C.nb_stop_clear()
    assert.equal(0, calls)
    assert.error_matches(function() codes:map(math.abs, nb.tensor("f32", { 3 })) end, "70000 elements into 3")
  end)

  it("lets a user write a quantizer as a plain loop over pointers", function()
    -- Symmetric 4 bits, groups of 32, round half to even: what C's rtn does, in twenty lines of Lua.
    local n, k, group = 8, 64, 32
    local w, codes, scales = nb.tensor("f32", { n, k }), nb.tensor("u8", { n, k }), nb.tensor("f32", { n, k / group })
    local p, u, s = w:ptr(), codes:ptr(), scales:ptr()
    for i = 0, n * k - 1 do p[i] = math.sin(i * 1.7) * (1 + i % 5) end
    for g = 0, n * k / group - 1 do
      local absmax = 0
      for i = g * group, g * group + group - 1 do absmax = math.max(absmax, math.abs(p[i])) end
      local scale = absmax > 0 and absmax / 7 or 1
      s[g] = scale
      for i = g * group, g * group + group - 1 do
        local q = p[i] / scale + 6755399441055744 - 6755399441055744 -- half to even
        u[i] = math.max(-8, math.min(7, q)) + 8
      end
    end
    local back = nb.tensor("f32", { n, k })
    local b = back:ptr()
    for i = 0, n * k - 1 do b[i] = (u[i] - 8) * s[math.floor(i / group)] end
    local c = nb.compare(w, back)
    assert.is_true(c.sqnr_db > 18, c.sqnr_db)
    for g = 0, n * k / group - 1 do
      for i = g * group, g * group + group - 1 do assert(math.abs(b[i] - p[i]) <= s[g] * 0.5000001) end
    end
  end)
end)

describe("a pool of tensors", function()
  it("gives what came back, of the dtype and shape, and keeps four of a kind", function()
    local pool = require("nibble.tensor").pool()
    local a = pool.take("f32", { 2, 3 })
    a:fill(7)
    pool.give(a)
    assert.equal(0, pool.take("f32", { 3, 2 }):stats().absmax)
    assert.equal(0, pool.take("u8", { 2, 3 }):get(1))
    assert.equal(7, pool.take("f32", { 2, 3 }):get(1))
    assert.equal(0, pool.take("f32", { 2, 3 }):get(1))
    local many = {}
    for i = 1, 5 do many[i] = pool.take("i32", { 1024 }) end
    for i = 1, 5 do pool.give(many[i]) end
    assert.equal(1024, many[4]:numel())
    assert.equal(0, many[5]:numel()) -- given up at once
  end)
end)

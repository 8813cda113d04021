-- Norms, SwiGLU, gathering: each against its formula in Lua, with the
-- portable and the vector path giving the same bits.
local nb = require "nibble"
local C = require("nibble.ffi").C
local numbers = require "spec.support.numbers"
local compute = nb.compute
local random, on_each_path, near = numbers.random, numbers.on_each_path, numbers.near

describe("compute.rmsnorm", function()
  for _, s in ipairs { { 1, 1 }, { 3, 7 }, { 130, 16 }, { 2, 133 } } do
    it(("%d rows of %d"):format(s[1], s[2]), function()
      local x, w = random(s, 1, 6), random({ s[2] }, 2)
      local y = on_each_path(function(a, b) return compute.rmsnorm(nb.tensor("f32", s), a, b, 1e-5) end, x, w)
      for r = 0, s[1] - 1 do
        local square, at = 0, r * s[2]
        for i = 1, s[2] do square = square + x:get(at + i) ^ 2 end
        local root = math.sqrt(square / s[2] + 1e-5)
        for i = 1, s[2] do near(w:get(i) * x:get(at + i) / root, y:get(at + i), 5e-7) end
      end
      assert.is_true(compute.rmsnorm(x, x, w, 1e-5):equal(y), "in place")
    end)
  end

  it("norms heads when the weight is a head long, and says what doesn't fit", function()
    local x, y = random({ 2, 12 }, 3), nb.tensor("f32", { 2, 12 })
    local rows = compute.rmsnorm(nb.tensor("f32", { 6, 4 }), x:reshape { 6, 4 }, random({ 4 }, 4), 1e-6)
    assert.is_true(compute.rmsnorm(y, x, random({ 4 }, 4), 1e-6):reshape({ 6, 4 }):equal(rows))
    assert.error_matches(function() compute.rmsnorm(y, x, random({ 5 }, 4), 1e-6) end, "rmsnorm: expected f32 x and y of rows of 5")
  end)
end)

describe("compute.swiglu", function()
  it("is silu(gate)·up, far out too", function()
    for _, n in ipairs { 1, 8, 21, 40000 } do
      local gate, up = random({ n }, n, 40), random({ n }, n + 1)
      gate:set(1, n % 2 == 0 and 200 or -200)
      local y = on_each_path(function(g, u) return compute.swiglu(g:clone(), u) end, gate, up)
      for i = 1, n, n > 100 and 97 or 1 do near(gate:get(i) / (1 + math.exp(-gate:get(i))) * up:get(i), y:get(i), 1e-6) end
    end
  end)

  it("keeps NaN", function()
    for _, features in ipairs { 0, -1 } do
      C.nb_cpu_limit(features)
      local y = compute.swiglu(nb.tensor("f32", { 9 }, { 0 / 0, 1, 1, 1, 1, 1, 1, 1, 0 / 0 }), random({ 9 }, 1))
      assert.equal(2, compute.nonfinite(y))
      assert.is_true(y:get(1) ~= y:get(1) and y:get(9) ~= y:get(9))
    end
    assert.error_matches(function() compute.swiglu(nb.tensor("f32", { 9 }), nb.tensor("f32", { 8 })) end,
      "swiglu: expected two f32 tensors of one size")
  end)
end)

describe("compute.gather and friends", function()
  it("widen f32, bf16 and f16 exactly, every value of them", function()
    local all = nb.tensor("u16", { 256, 256 })
    for i = 0, 65535 do all:ptr()[i] = i end
    local ids = nb.tensor("i32", { 256 })
    for i = 0, 255 do ids:ptr()[i] = i end
    local bf16 = on_each_path(function(a, i)
      return compute.gather(nb.tensor("f32", { 256, 256 }), a:as("bf16", { 256, 256 }), i)
    end, all, ids)
    local bits = bf16:as "u32"
    for i = 0, 65535 do assert(bits:ptr()[i] == i * 65536) end
    local f16 = on_each_path(function(a, i)
      local y = compute.gather(nb.tensor("f32", { 256, 256 }), a:as("f16", { 256, 256 }), i)
      -- A signalling NaN may come out quiet: both are NaN. (Looked at as bits: LuaJIT can't hold every NaN.)
      local u = y:as("u32"):ptr()
      for k = 0, 65535 do if u[k] % 2 ^ 31 > 0x7f800000 then u[k] = 0x7fc00000 end end
      return y
    end, all, ids)
    assert.equal(1.5, f16:get(0x3e00 + 1))
    assert.equal(-2 ^ -24, f16:get(0x8001 + 1))
    assert.equal(65504, f16:get(0x7bff + 1))
    assert.equal(math.huge, f16:get(0x7c00 + 1))
  end)

  it("gather rows and add them back with weights", function()
    local rows = random({ 5, 3 }, 1)
    local ids = nb.tensor("i32", { 3 }, { 0, 2, 4 })
    local x = compute.gather(nb.tensor("f32", { 3, 3 }), rows, ids)
    assert.equal(rows:get(7), x:get(4))
    local y = random({ 5, 3 }, 2)
    local before = y:clone()
    compute.scatter_add(y, x, ids, nb.tensor("f32", { 3 }, { 1, 2, 0.5 }))
    near(before:get(7) + 2 * x:get(4), y:get(7), 1e-7)
    assert.equal(before:get(4), y:get(4))
    -- A row that comes twice is added twice, in order; without weights by 1; each product rounded where a dtype is named.
    local once = compute.scatter_add(before:clone(), x:rows(1, 2), nb.tensor("i32", { 2 }, { 3, 3 }))
    near(before:get(10) + x:get(1) + x:get(4), once:get(10), 1e-6)
    local third = nb.tensor("f32", { 1 }, { 1 / 3 })
    local rounded = compute.scatter_add(nb.tensor("f32", { 1, 1 }), nb.tensor("f32", { 1, 1 }, { 1 }), ids:rows(1, 1), third, "bf16")
    assert.equal(third:cast("bf16"):get(1), rounded:get(1))
    assert.equal(third:cast("f16"):get(1), compute.scale_rows(nb.tensor("f32", { 1, 1 }, { 1 }), third, "f16"):get(1))
    assert.is_true(compute.add(before:clone(), rows):get(1) == nb.tensor("f32", { 1 }, { before:get(1) + rows:get(1) }):get(1))
  end)

  it("say what doesn't fit", function()
    local rows, out = random({ 5, 3 }, 1), nb.tensor("f32", { 2, 3 })
    local w = nb.tensor("f32", { 2 })
    local function ids(a, b) return nb.tensor("i32", { 2 }, { a, b }) end
    assert.error_matches(function() compute.gather(out, rows, ids(0, 5)) end, "id 5 at place 1 is outside the table's 5 rows")
    assert.error_matches(function() compute.gather(out, rows, ids(-1, 0)) end, "id %-1 at place 0")
    assert.error_matches(function() compute.scatter_add(rows, out, ids(1, 0), w) end,
      "id 0 at place 1 must not descend, within the 5 rows")
    assert.error_matches(function() compute.add(rows, out) end,
      "add: expected two f32 tensors of one size, found f32 %[5x3%] and f32 %[2x3%]")
  end)

  it("count what is not finite", function()
    local t = nb.tensor("f32", { 4 }, { 1, 1 / 0, 0 / 0, -1 / 0 })
    assert.equal(3, compute.nonfinite(t))
    assert.equal(0, compute.nonfinite(random({ 33 }, 1)))
    assert.equal(1, compute.nonfinite(nb.tensor("u16", { 3 }, { 0x7c00, 0x7bff, 0x0001 }):as("f16")))
    assert.equal(2, compute.nonfinite(nb.tensor("u16", { 3 }, { 0x7f80, 0xffc0, 0x7c00 }):as("bf16")))
  end)
end)

-- The forward pass's small operations on a device: rows and elements, each run by the emulator in every order of threads
-- against the processor's, bit for bit.
local run = require("spec.support.forward").run

describe("on a device, in the processor's bytes:", function()
  it("RMSNorm of rows and heads, of every dtype, in place", function()
    assert.equal("", run [[
      for _, d in ipairs { 1, 7, 8, 128, 1000, 1032, 2304 } do
        for i, dtypes in ipairs { { "f32", "f32" }, { "f32", "f16" }, { "bf16", "bf16" }, { "f16", "f32" } } do
          for _, rows in ipairs(d < 100 and i < 3 and { 1, 19 } or { 2 }) do
            local x = forward.random(dtypes[1], { rows, d }, d + i, forward.EDGES)
            local t = { x = x, y = forward.random(dtypes[2], { rows, d }, 1), w = forward.random("f32", { d }, 3) }
            local wrong = forward.same(t, { "y" }, function(o) compute.rmsnorm(o.y, o.x, o.w, 1e-6) end)
            if wrong then print(d, rows, dtypes[1], dtypes[2], wrong) end
          end
        end
        local t = { x = forward.random("f16", { 5, 3 * d }, d), w = forward.random("f32", { d }, 3) } -- heads
        local wrong = d % 8 == 0 and forward.same(t, { "x" }, function(o) compute.rmsnorm(o.x, o.x, o.w, 1e-5) end)
        if wrong then print("heads", d, wrong) end
      end ]])
  end)

  it("rotary embedding", function()
    assert.equal("", run [[
      for _, o in ipairs { { 2, 3 }, { 6, 2 }, { 64, 5 }, { 80, 2 }, { 128, 4 }, { 256, 20 } } do
        local d, heads = o[1], o[2]
        for _, dtype in ipairs { "f32", "bf16", "f16" } do
          local t = { x = forward.random(dtype, { 6, heads * d }, d, forward.EDGES), c = forward.random("f32", { 4, d / 2 }, 1),
            s = forward.random("f32", { 4, d / 2 }, 2) }
          local wrong = forward.same(t, { "x" }, function(r) compute.rope(r.x, r.c, r.s, d, 3) end)
          if wrong then print(d, heads, dtype, wrong) end
        end
      end ]])
  end)

  it("sums, SwiGLU, counts of what is not finite", function()
    assert.equal("", run [[
      for _, n in ipairs { 1, 9, 2049, 4096 } do
        for _, dtype in ipairs { "f32", "bf16", "f16" } do
          local x = forward.random(dtype, { n }, n, n == 9 and forward.ODD or forward.EDGES)
          local t = { x = x, y = forward.random("f32", { n }, 2, forward.EDGES) }
          local wrong = forward.same(t, { "y" }, function(r) compute.add(r.y, r.x) end)
          t = { g = forward.random(dtype, { n }, 5, forward.EDGES), u = x }
          wrong = wrong or forward.same(t, { "g" }, function(r) compute.swiglu(r.g, r.u) end)
          local odd = forward.random(dtype, { n }, n, forward.ODD)
          wrong = wrong or compute.nonfinite(odd) ~= compute.nonfinite(odd:to "cuda") and "counts differ"
          if wrong then print(n, dtype, wrong) end
        end
      end ]])
  end)

  it("rows gathered, scaled, added up", function()
    assert.equal("", run [[
      local ids = nb.tensor("i32", { 7 }, { 0, 2, 2, 2, 5, 5, 8 })
      for _, d in ipairs { 1, 12, 264 } do
        for i, dtypes in ipairs { { "f32", "f32" }, { "bf16", "f32" }, { "f16", "f16" }, { "f16", "bf16" }, { "f32", "bf16" } } do
          local t = { out = forward.random(dtypes[2], { 7, d }, 1), ids = ids, w = forward.random("f32", { 7 }, 3),
            table = forward.random(dtypes[1], { 9, d }, d, forward.ODD) }
          local wrong = forward.same(t, { "out" }, function(r) compute.gather(r.out, r.table, r.ids) end)
          for _, rounding in ipairs { "f32", "f16", "bf16" } do
            t = { x = forward.random(dtypes[1], { 7, d }, d, forward.EDGES), ids = ids, w = t.w, y = forward.random("f32", { 9, d }, 4) }
            wrong = wrong or forward.same(t, { "x" }, function(r) compute.scale_rows(r.x, r.w, rounding) end)
            wrong = wrong or forward.same(t, { "y" }, function(r) compute.scatter_add(r.y, r.x, r.ids, r.w, rounding) end)
          end
          wrong = wrong or forward.same(t, { "y" }, function(r) compute.scatter_add(r.y, r.x, r.ids) end)
          if wrong then print(d, dtypes[1], dtypes[2], wrong) end
        end
      end ]])
  end)

  it("casts, with the bytes of NaN", function()
    assert.equal("done", run [[
      local bits = nb.tensor("i32", { 4099 })
      for i = 1, 4099 do bits:set(i, (i * 1640531 * 1301) % 4294967296 - 2147483648) end
      bits:set(3, 0x7f800001) bits:set(4, -1) bits:set(5, 0x7fc12345) bits:set(6, 0x477fefff) bits:set(7, 0x477ff000)
      local function same(a, b) return a:as("u8"):equal(b:as "u8") end
      for _, from in ipairs { "f32", "bf16", "f16" } do
        local x = from == "f32" and bits:as("f32", { 4099 }) or bits:as("u8"):as(from, { 2 * 4099 }):rows(1, from == "f16" and 8198 or 8195)
        for _, to in ipairs { "f32", "bf16", "f16" } do
          for _, saturate in ipairs { false, true } do
            local found = x:to("cuda"):cast(to, { saturate = saturate })
            if found:type() ~= to or not same(found:to "cpu", x:cast(to, { saturate = saturate })) then print(from, to, saturate) end
          end
        end
      end
      print "done" ]])
  end)

  it("copies and zeros, to, from and on the device", function()
    assert.equal("1 2 2 0", run [[
      local a, b = nb.tensor("f32", { 3 }):fill(1):to "cuda", nb.tensor("f32", { 3 }):fill(2)
      local here, there = nb.tensor("f32", { 3 }), nb.tensor("f32", { 3 }):to "cuda"
      compute.copy(here, a)
      local first = here:get(3)
      compute.copy(a, b)
      compute.copy(there, a)
      local last = there:to("cpu"):get(1)
      print(first .. " " .. a:to("cpu"):get(3) .. " " .. last .. " " .. compute.zero(a):to("cpu"):get(2)) ]])
  end)

  it("products of plain floats, by the library for them", function()
    assert.equal("", run [[
      local x, w, y = forward.random("f32", { 3, 32 }, 1), forward.random("f32", { 16, 32 }, 2), nb.tensor("f32", { 3, 16 })
      local found = compute.gemm(y:to "cuda", x:to "cuda", w:to "cuda"):to "cpu"
      compute.gemm(y, x, w)
      for i = 1, 48 do if math.abs(found:get(i) - y:get(i)) > 1e-5 then print(i, found:get(i), y:get(i)) end end ]])
  end)
end)

describe("the forward pass on a device", function()
  it("takes views that begin anywhere, and nothing", function()
    assert.equal("", run [[
      local x = forward.random("bf16", { 1003 }, 1)
      local t = { x = x, y = forward.random("f32", { 1000 }, 2) }
      local function views(f) return function(r) f(r.y, r.x:rows(2, 1001)) end end
      print((forward.same(t, { "y" }, views(compute.add)) or "")
        .. (forward.same({ x = x:cast "f32", y = t.y }, { "y" }, views(compute.swiglu)) or "")
        .. (forward.same({ x = x, y = t.y, w = forward.random("f32", { 8 }, 1) }, { "y" }, function(r)
          compute.rmsnorm(r.y, r.x:rows(4, 1003), r.w, 1e-5) end) or ""))
      local none, ids = nb.tensor("f16", { 0, 64 }):to "cuda", nb.tensor("i32", { 0 })
      local table, sums = nb.tensor("f16", { 4, 64 }):to "cuda", nb.tensor("f32", { 2, 64 }):to "cuda"
      compute.gather(none, table, ids)
      compute.scatter_add(sums, none, ids:to "cuda")
      compute.swiglu(none, none)
      assert(compute.nonfinite(none) == 0 and none:cast("f32"):numel() == 0) ]])
  end)

  it("can be a graph: nothing waits", function()
    assert.equal("true 3", run [[
      local x, y, w = nb.tensor("f16", { 2, 64 }):fill(1):to "cuda", nb.tensor("f16", { 2, 64 }):to "cuda", nb.tensor("f32", { 64 }):fill(1)
      local ids, sum, wd = nb.tensor("i32", { 2 }, { 0, 1 }):to "cuda", nb.tensor("f32", { 2, 64 }):to "cuda", w:to "cuda"
      local count = nb.tensor("i32", { 1 }):to "cuda"
      local C = require("nibble.ffi").C
      local g = nb.cuda.graph(function()
        compute.rmsnorm(y, x, wd, 0)
        compute.gather(y, y, ids)
        compute.add(sum, y)
        compute.copy(x, y)
        assert(C.nb_device_add_nonfinite(count.t, sum.t) == 0)
      end)
      g() g()
      print(tostring(math.abs(sum:to("cpu"):get(1) - 3) < 1e-6) .. " " .. sum:to("cpu"):get(128)) ]])
  end)

  it("marks ids on the device that are outside: NaN rows, or left out", function()
    assert.equal("nan 1 0 5", run [[
      local table, out = nb.tensor("f32", { 2, 8 }):fill(1):to "cuda", nb.tensor("f32", { 3, 8 }):to "cuda"
      local ids = nb.tensor("i32", { 3 }, { 2, 0, -1 })
      local r = compute.gather(out, table, ids:to "cuda"):to "cpu"
      local y = nb.tensor("f32", { 2, 8 }):fill(0):to "cuda"
      compute.scatter_add(y, nb.tensor("f32", { 3, 8 }):fill(5):to "cuda", nb.tensor("i32", { 3 }, { -1, 1, 2 }):to "cuda")
      local s = y:to "cpu"
      print((r:get(1) ~= r:get(1) and r:get(24) ~= r:get(24) and "nan" or "?") .. " " .. r:get(9) .. " " .. s:get(8) .. " " .. s:get(9)) ]])
  end)

  it("says in one sentence what is wrong", function()
    assert.equal(table.concat({
      "add: f32 [4] lies in the computer's memory, expected on a device",
      "add: sums are f32, found f16",
      "add: expected two tensors of one size, found f32 [4] and f32 [8]",
      "swiglu: expected gate and up of one dtype, found f16 and f32",
      "swiglu: expected f32, bf16 or f16, found i32 [4]",
      "rmsnorm: expected x and y of rows of 3, found x f32 [8] and y f32 [8]",
      "rope: rows of 4 are not heads of 3 (an even number)",
      "rope: sequences of 9, but the table has 2 positions",
      "gather: id 7 at place 1 is outside the table's 2 rows",
      "scatter_add: id 0 at place 1 must not descend, within the 2 rows",
      "scale_rows: rounds to f32, f16 or bf16, found i8",
      "copy: expected as many elements of one dtype, found f32 [4] from f32 [8]",
      "cast: expected f32, bf16 or f16, found i32 [4]",
      "fine",
    }, "\n"), (run [[
      local fails = forward.fails
      local function there(dtype, ...) return nb.tensor(dtype, { ... }):to "cuda" end
      local four, eight, half, ints = there("f32", 4), there("f32", 8), there("f16", 4), there("i32", 4)
      local angles = there("f32", 2, 2)
      print(fails(compute.add, four, nb.tensor("f32", { 4 })))
      print(fails(compute.add, half, four))
      print(fails(compute.add, four, eight))
      print(fails(compute.swiglu, half, four))
      print(fails(compute.swiglu, ints, ints))
      print(fails(compute.rmsnorm, eight, eight, there("f32", 3), 0))
      print(fails(compute.rope, there("f32", 1, 4), angles, angles, 3, 1))
      print(fails(compute.rope, there("f32", 1, 4), angles, angles, 4, 9))
      print(fails(compute.gather, there("f32", 2, 4), there("f32", 2, 4), nb.tensor("i32", { 2 }, { 1, 7 })))
      print(fails(compute.scatter_add, there("f32", 2, 4), there("f32", 2, 4), nb.tensor("i32", { 2 }, { 1, 0 })))
      print(fails(compute.scale_rows, there("f32", 2, 4), there("f32", 2), "i8"))
      print(fails(compute.copy, four, eight))
      print(fails(four.cast, four, "i32"))
      print(compute.add(four, four):to("cpu"):get(1) == 0 and "fine") ]]))
  end)
end)

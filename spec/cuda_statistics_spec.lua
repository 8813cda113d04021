-- What calibration asks of activations on a device, by the emulator in every order of threads: the processor's bytes.
local run = require("spec.support.forward").run

local PRELUDE = [[
  local dispatch, ffi, nffi = require "nibble.dispatch", require "ffi", require "nibble.ffi"
  local C = nffi.C
  local function options(o)
    local all = { bits = 8, symmetric = 1, dynamic = 1, scale_dtype = C.NB_F32, dtype = C.NB_F32, group = -1, scale = 1, global = 1 }
    for name, value in pairs(o) do all[name] = value end
    return ffi.new("nb_act_options", all)
  end
  local function check(name, x, o, out)
    local t = { x = x, out = forward.random(out or x:type(), x:size(), 9) }
    local wrong = forward.same(t, { "out" }, function(r) nffi.must(dispatch.call("act_fake_quant", r.out, r.x, options(o))) end)
    if wrong then print(name, wrong) end
  end
]]

local function statistics(code) return run(PRELUDE .. code) end

describe("on a device, in the processor's bytes:", function()
  it("sums of squares of columns, over rows in any batches", function()
    assert.equal("", statistics [[
      for _, shape in ipairs { { 1, 1 }, { 3, 31 }, { 33, 70 }, { 70, 33 } } do
        for _, dtype in ipairs { "f32", "bf16", "f16" } do
          local t = { x = forward.random(dtype, shape, 1, forward.EDGES), s = nb.tensor("f64", { shape[2] }):fill(0.125) }
          local wrong = forward.same(t, { "s" }, function(r)
            local m = shape[1]
            nffi.must(dispatch.call("column_squares", r.s, r.x:rows(1, math.ceil(m / 2))))
            if m > 1 then nffi.must(dispatch.call("column_squares", r.s, r.x:rows(math.ceil(m / 2) + 1, m))) end
          end)
          if wrong then print(shape[1], shape[2], dtype, wrong) end
        end
      end ]])
  end)

  it("the smallest and the largest value", function()
    assert.equal("-2.5 3 | -9 3 | 0.5 3 | activations: they hold NaN or infinite values", statistics [[
      local act, x = nb.act, nb.tensor("f16", { 3, 40 }):fill(0.5)
      x:set(17, -2.5) x:set(120, 3)
      local function told(lohi) return ("%g %g"):format(lohi[0], lohi[1]) end
      local first = told(act.extent(x:to "cuda"))
      local second = told(act.extent(x:to "cuda", ffi.new("float[2]", -9, 1)))
      x:set(17, 0.5)
      local third = told(act.extent(x:to "cuda", ffi.new("float[2]", 8, -8)))
      x:set(40, 0 / 0)
      print(first .. " | " .. second .. " | " .. third .. " | " .. select(2, act.extent(x:to "cuda"))) ]])
  end)

  it("integers, with and without zero-points, a scale a token, a group, a tensor or given", function()
    assert.equal("", statistics [[
      local x = forward.random("f32", { 6, 48 }, 1, forward.EDGES)
      for _, bits in ipairs { 8, 4, 2 } do
        for symmetric = 0, 1 do
          for name, o in pairs { token = {}, group = { group = 16 }, odd = { group = 12 }, one = { group = 1 }, tensor = { group = 0 },
            sequences = { group = 0, span = 4 }, static = { dynamic = 0, scale = 0.037, zero_point = symmetric == 0 and 1 or 0 } } do
            o.bits, o.symmetric = bits, symmetric
            check(name .. bits .. symmetric, x, o)
          end
        end
      end
      check("rows of a block", forward.random("f16", { 2, 1100 }, 2), { symmetric = 0 })
      check("tensor of rows of a block", forward.random("bf16", { 3, 2056 }, 2), { group = 0 }) ]])
  end)

  it("small floats: FP8, NVFP4, MX", function()
    assert.equal("", statistics [[
      local E4M3, E8M0 = C.NB_F8_E4M3, C.NB_F8_E8M0
      for _, dtype in ipairs { "f32", "bf16", "f16" } do
        local x = forward.random(dtype, { 5, 96 }, 4, forward.EDGES)
        for i = 1, 96 do x:set({ 5, i }, i % 32 / 20) end -- up to 1.55
        for name, o in pairs { token = {}, tensor = { group = 0 }, static = { dynamic = 0, scale = 0.01 },
          nvfp4 = { bits = 4, scale_dtype = E4M3, group = 16, global = 300 }, mxfp4 = { bits = 4, scale_dtype = E8M0, group = 32 },
          mxfp8 = { scale_dtype = E8M0, group = 32 }, blocks = { group = 48 } } do
          o.is_float = 1
          check(dtype .. " " .. name, x, o, "f32")
          if name ~= "token" then check(dtype .. " " .. name .. " to its own", x, o) end
        end
      end ]])
  end)

  it("inputs rounded first, in place, and NaN for all that shares a scale", function()
    assert.equal("", statistics [[
      local x = forward.random("f32", { 4, 64 }, 5, forward.EDGES)
      for _, dtype in ipairs { "NB_BF16", "NB_F16" } do
        check(dtype, x, { dtype = C[dtype] })
        check(dtype .. " static", x, { dtype = C[dtype], dynamic = 0, scale = 0.3, is_float = 1 })
        check(dtype .. " tensor", x, { dtype = C[dtype], group = 0, span = 3, symmetric = 0 })
      end
      local wrong = forward.same({ x = x }, { "x" }, function(r) nffi.must(dispatch.call("act_fake_quant", r.x, r.x, options { group = 16 })) end)
      if wrong then print("in place", wrong) end
      x:set({ 2, 7 }, 0 / 0) x:set({ 3, 64 }, 1 / 0)
      for symmetric = 0, 1 do
        check("odd", x, { group = 32, symmetric = symmetric })
        check("odd tensor", x, { group = 0, span = 2, symmetric = symmetric })
        check("odd static", x, { dynamic = 0, scale = 0.1, symmetric = symmetric })
      end
      check("odd floats", x, { group = 32, is_float = 1 })
      check("odd static floats", x, { dynamic = 0, scale = 0.1, is_float = 1 }) ]])
  end)
end)

describe("codes of activations on a device", function()
  it("are the processor's, and their scales: by token, tensor, sequences, given; of rows in any size; NaN in its row's scale", function()
    assert.equal("", statistics [[
      local function codes(name, x, o)
        local t = { x = x, q = nb.tensor(o.is_float == 1 and "f8_e4m3" or "i8", x:size()), s = nb.tensor("f32", { x:size(1), 1 }) }
        local wrong = forward.same(t, { "q", "s" }, function(r) nffi.must(dispatch.call("act_quantize", r.q, r.s, r.x, options(o))) end)
        if wrong then print(name, wrong) end
      end
      local forms = { token = {}, tensor = { group = 0 }, sequences = { group = 0, span = 2 }, static = { dynamic = 0, scale = 0.037 },
        four = { bits = 4 }, rounded = { dtype = C.NB_F16 } }
      for name, o in pairs(forms) do
        for is_float = 0, name == "four" and 0 or 1 do
          o.is_float = is_float
          for _, shape in ipairs { { 5, 48 }, { 3, 35 }, { 2, 1100 } } do
            local x = forward.random("f32", shape, 3, forward.EDGES)
            codes(name .. shape[2], x, o)
            x:set({ 2, 7 }, 0 / 0)
            codes(name .. " NaN", x, o)
          end
        end
      end
      for _, dtype in ipairs { "bf16", "f16" } do codes(dtype, forward.random(dtype, { 4, 64 }, 4, forward.EDGES), { is_float = 0 }) end ]])
  end)

  it("go where the tensors lie; others than a product of codes takes are refused", function()
    assert.equal("i8 cuda:0 f32 true\nactivations: codes are integers or f8_e4m3 without zero-points, and a scale a row or a tensor; found integers "
      .. "of 8 bits, symmetric, groups of 8", statistics [[
      local x, a = forward.random("f16", { 4, 32 }, 1), { type = "int", bits = 8, strategy = "token", dynamic = true }
      local q, s = nb.act.quantize(x:to "cuda", a)
      print(q:type() .. " " .. q:where() .. " " .. s:type() .. " " .. tostring(q:to("cpu"):equal((nb.act.quantize(x:cast "f32", a)))))
      a.strategy, a.group = "group", 8
      print((select(2, nb.act.quantize(x:to "cuda", a)))) ]])
  end)
end)

describe("activations on a device", function()
  it("go where the tensors lie: act's functions", function()
    assert.equal("cuda:0 f16 true", statistics [[
      local x, a = forward.random("f16", { 4, 32 }, 1), { type = "int", bits = 8, strategy = "token", dynamic = true }
      local there = assert(nb.act.quantize_dequantize(x:to "cuda", a))
      local here = assert(nb.act.quantize_dequantize(x:cast "f32", a))
      print(there:where() .. " " .. there:type() .. " " .. tostring(there:to("cpu"):equal(here:cast "f16"))) ]])
  end)

  it("say in one sentence what is wrong", function()
    assert.equal(table.concat({
      "activations: f32 [2x8] lies in the computer's memory, expected on a device",
      "activations: 8 columns are not a multiple of the group size 3",
      "activations: expected f32, bf16 or f16, found i32 [2x8]",
      "column squares: sums: expected f64 [8], found f64 [4]",
      "activations: the static scale is 0, expected a finite number above 0",
    }, "\n"), (statistics [[
      local function there(dtype, ...) return nb.tensor(dtype, { ... }):to "cuda" end
      local function try(name, ...) print(forward.fails(function(...) nffi.must(dispatch.call(...)) end, name, ...)) end
      local x = there("f32", 2, 8)
      try("act_fake_quant", nb.tensor("f32", { 2, 8 }), x, options {})
      try("act_fake_quant", x, x, options { group = 3 })
      try("act_fake_quant", x, there("i32", 2, 8), options {})
      try("column_squares", there("f64", 4), x)
      print((select(2, nb.act.quantize_dequantize(x, { type = "int", bits = 8, strategy = "tensor", dynamic = false }, { scale = 0 })))) ]]))
  end)
end)

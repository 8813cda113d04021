-- cuda_quantize: quantization on a device, run by the emulator in every order of threads: the CPU's bytes and sentences
-- for every scheme, dtype, range and arithmetic, without bank conflicts, and the same calls from Lua.
local on_device = require "spec.support.on_device"

-- One of quantize_cases' lists, in a process of its own.
local function cases(call)
  return on_device.run(("print(require('spec.support.quantize_cases').%s)"):format(call))
end

describe("cuda: quantization", function()
  it("to integers gives the CPU's bytes: dtypes, symmetry, ranges, arithmetics, groups, bits", function()
    assert.equal("288 tried, 0 wrong\n", cases "rtn(4)")
  end)

  it("to integers, where a block of threads shares a group, holds less than one, and takes many", function()
    assert.equal("10 tried, 0 wrong\n", cases "rtn_large()")
  end)

  it("to integers names the first NaN, Inf or scale too large, as the CPU does", function()
    assert.equal("45 tried, 0 wrong\n", cases "rtn_failures()")
  end)

  it("to small floats gives the CPU's bytes: FP8, NVFP4, MXFP4, MXFP8, blocks, both rules", function()
    assert.equal("216 tried, 0 wrong\n", cases "floats(4)")
  end)

  it("to small floats on given scales, odd ones too, and with NaN and Inf", function()
    assert.equal("66 tried, 0 wrong\n", cases "floats_given()")
    assert.equal("57 tried, 0 wrong\n", cases "float_failures()")
  end)

  it("of activations gives the CPU's bytes: int8, fp8 by token, tensor and a given scale, NaN and Inf too", function()
    assert.equal("651 tried, 0 wrong\n", cases "activations()")
  end)

  it("reads weights once and writes codes once where a block is held, in 16 and 8 bytes", function()
    assert.equal("4096 2048 64", on_device.run [[
      local w = require("spec.support.weights").make("sizes", "bf16", 16, 128, 1)
      local C, ffi = require("nibble.ffi").C, require "ffi"
      local codes, scales = nb.cuda.new("cuda", "u8", { 16, 128 }), nb.cuda.new("cuda", "bf16", { 16, 1 })
      local o = ffi.new("nb_rtn_options", { bits = 4, symmetric = 1, group = -1 })
      assert(C.nb_device_rtn_quantize(codes.t, scales.t, nil, w:to("cuda").t, o) == 0)
      local c = require("spec.support.emulator").counts()
      print(c.global_read, c.global_written - 16 * 2, c.bank_conflicts == 0 and 64) ]]:gsub("\t", " "))
  end)
end)

describe("cuda: t:quantize", function()
  it("is the CPU's t:quantize, its tensors on the device", function()
    assert.equal("72 of 72 equal", on_device.run [[
      local weights, same, of = require "spec.support.weights", 0, 0
      for _, dtype in ipairs { "f32", "bf16", "f16" } do
        local w = weights.make("sizes", dtype, 6, 96, 2)
        local d = w:to "cuda"
        for _, o in ipairs { { scheme = "W4A16", group = 32 }, { scheme = "W4A16", group = 32, symmetric = false },
          { scheme = "W8A16", strategy = "channel" }, { scheme = "W8A16", strategy = "tensor" }, { scheme = "FP8" },
          { scheme = "FP8_DYNAMIC" }, { scheme = "FP8A16 block24x40" }, { scheme = "NVFP4A16" }, { scheme = "NVFP4A16 g32" },
          { scheme = "MXFP4A16" }, { scheme = "MXFP8A16" }, { scheme = "W4A16", group = 16, range = "tight" } } do
          for _, arithmetic in ipairs { "float32", "dtype" } do
            o.arithmetic = arithmetic
            local a, b = w:quantize(o), d:quantize(o)
            of = of + 1
            local fine = b.codes:where() == "cuda:0" and b:to("cpu"):equal(a) and b:to("cpu").scales:equal(a.scales)
            if fine and b:dequantize():to("cpu"):equal(a:dequantize()) then same = same + 1 end
          end
        end
      end
      print(same .. " of " .. of .. " equal") ]])
  end)

  it("tells what it can't: other methods, importance, NaN, shapes", function()
    local out = on_device.run [[
      local w = require("spec.support.weights").make("sizes", "bf16", 4, 32, 2)
      local d = w:to "cuda"
      print(select(2, pcall(d.quantize, d, { scheme = "W4A16", group = 32, method = "mse" })))
      print(select(2, pcall(d.quantize, d, { scheme = "W4A16", group = 32, actorder = "group", importance = { 1 } })))
      print(select(2, pcall(d.quantize, d, { scheme = "W4A16", group = 24 })))
      w:set(40, 0 / 0)
      print(w:to("cuda"):quantize { scheme = "W4A16", group = 32 })
      print(w:to("cuda"):quantize "FP8")
      print(nb.cuda.new("cuda", "bf16", { 3, 4, 5 }):quantize "FP8")
    ]]
    assert.matches('method mse runs in the computer\'s memory only; on a device there is method = "rtn"', out)
    assert.matches("order by importance runs in the computer's memory only", out)
    assert.matches("K = 32 is not a multiple of the group size 24", out)
    assert.matches("\nnil\tround to nearest: the weight has NaN in row 1, column 7 [^\n]*\teformat\n", out)
    assert.matches("\nnil\tfloat quantization: the weight has NaN in row 1, column 7 [^\n]*\teformat", out)
    assert.matches("expected f32, bf16 or f16 %[n×k%], found bf16 %[3×4×5%]", out)
  end)

  it("takes views that begin anywhere, element by element", function()
    assert.equal("true true true", on_device.run [[
      local w = require("spec.support.weights").make("sizes", "bf16", 9, 24, 2)
      local whole = w:reshape(216):to "cuda"
      local function same(from, n, k)
        local here = w:reshape(216):rows(from, from + n * k - 1):reshape(n, k):quantize { scheme = "W4A16", strategy = "channel" }
        local there = whole:rows(from, from + n * k - 1):reshape(n, k):quantize { scheme = "W4A16", strategy = "channel" }
        return there.codes:to("cpu"):equal(here.codes) and there.scales:to("cpu"):equal(here.scales)
      end
      print(tostring(same(2, 5, 24)) .. " " .. tostring(same(9, 5, 24)) .. " " .. tostring(same(6, 3, 7))) ]])
  end)

  it("has no room, and the session goes on", function()
    assert.equal("nil enomem true", on_device.run([[
      local d = nb.tensor("bf16", { 100, 1000 }):to "cuda"
      local q, _, code = d:quantize "FP8"
      print(tostring(q) .. " " .. code .. " " .. tostring(nb.tensor("bf16", { 10, 100 }):to("cuda"):quantize "FP8" ~= nil)) ]],
      { NB_EMU_MEMORY = 250000 }))
  end)
end)

describe("cuda: quantization in C", function()
  it("says where an operand lies, and what doesn't fit", function()
    local out = on_device.run([[
      local C, ffi = require("nibble.ffi").C, require "ffi"
      local w, codes, scales = nb.tensor("bf16", { 2, 8 }), nb.tensor("u8", { 2, 8 }), nb.tensor("bf16", { 2, 1 })
      local function on(t, device) return t:to(device or "cuda:0").t end
      local o = ffi.new("nb_rtn_options", { bits = 4, symmetric = 1, group = -1 })
      local f = ffi.new("nb_float_options", { rows = 1, columns = 8 })
      local function says(rc) print(rc < 0 and ffi.string(C.nb_error()) or "fine") end
      says(C.nb_device_rtn_quantize(on(codes), on(scales), nil, w, o))
      says(C.nb_device_rtn_quantize(codes, on(scales), nil, on(w), o))
      says(C.nb_device_rtn_quantize(on(codes), on(scales, "cuda:1"), nil, on(w), o))
      says(C.nb_device_rtn_quantize(on(scales), on(scales), nil, on(w), o))
      says(C.nb_device_float_quantize(on(codes), on(scales), on(w), f))
      says(C.nb_device_absmax(ffi.new "float[1]", on(codes)))
      says(C.nb_device_act_quant_int8(on(codes), on(scales), on(w), 1))
      says(C.nb_device_act_quant_fp8(on(codes:as("f8_e4m3", { 2, 8 })), on(scales), on(w), 7))
      local bytes = nb.tensor("u8", { 33 }):to "cuda"
      says(C.nb_device_rtn_quantize(on(codes), on(scales), nil, bytes:rows(2, 33):as("bf16", { 2, 8 }).t, o)) ]], { NB_EMU_DEVICES = 2 })
    local lines = {}
    for line in out:gmatch "[^\n]+" do lines[#lines + 1] = line end
    assert.same({
      "round to nearest: bf16 [2x8] lies in the computer's memory, expected on a device",
      "round to nearest: u8 [2x8] lies in the computer's memory, expected on a device",
      "round to nearest: bf16 [2x1] lies on cuda:1, the other operand on cuda:0",
      "round to nearest: codes: expected u8 [2x8], found bf16 [2x1]",
      "float quantization: e2m1 codes under scales of bf16; expected f8_e4m3 or f8_e8m0",
      "absmax: expected f32, bf16 or f16, found u8",
      "act_quant int8: expected i8 [2x8], found u8 [2x8]",
      "act_quant fp8: unknown mode 7",
      "round to nearest: bf16 [2x8] begins 1 bytes past a multiple of 2",
    }, lines)
  end)
end)

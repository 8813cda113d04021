-- Numbers for Marlin's kernels with 8-bit activations and 4-bit floats, made on a device: bit for bit what layout.marlin
-- makes in the computer's memory, for every value that there is, in several orders of threads; what they refuse.
local ffi = require "ffi"
local emulator = require "spec.support.emulator"
local standin = require "spec.support.standin"

-- What Lua code prints in a process whose driver is the stand-in; its errors after it.
local run = standin.with [[
  local ffi, marlin, C = require "ffi", nb.layout.marlin, require("nibble.ffi").C
  local same, of = 0, 0
  local function compare(name, t, ...)
    local given, n = { ... }, select("#", ...)
    local cpu, number = marlin[name](t, ...)
    for i = 1, n do if ffi.istype("nb_tensor", given[i]) then given[i] = given[i]:to "cuda" end end
    local device, there = marlin[name](t:to "cuda", unpack(given, 1, n))
    of = of + 1
    if device and device:where() == "cuda:0" and device:type() == cpu:type() and device:to("cpu"):equal(cpu) and number == there
    then same = same + 1 else print(name, cpu, device, number, there, ...) end
  end
  -- The bits of every 16-bit number from a to b, in rows of n.
  local function all(dtype, a, b, n)
    local t = nb.tensor("u16", { (b - a + 1) / n, n })
    for i = a, b do t:ptr()[i - a] = i end
    return t:as(dtype, t:size())
  end ]]

describe("layout.marlin's numbers on a device", function()
  it("fp8 codes: every pair of nibbles, there and back, with and without zero-points, experts, in place", function()
    for _, order in ipairs { 0, 1, 7 } do
      assert.equal("13 of 13", run([[
        local function words(shape, step)
          local t = nb.tensor("i32", shape)
          for i = 1, t:numel() do t:set(i, (i * step) % 4294967296 - 2147483648) end
          return t
        end
        for _, inverse in ipairs { false, true } do
          local o = { inverse = inverse }
          compare("fp8_preprocess", words({ 64, 8 }, 2654435761), nil, o)
          compare("fp8_preprocess", words({ 1, 32 }, 0x11111111), nil, o)
          compare("fp8_preprocess", words({ 96, 12 }, 2654435761), words({ 3, 12 }, 40503 * 65537), o)
          compare("fp8_preprocess", words({ 3, 64, 4 }, 2654435761), words({ 3, 8, 4 }, 40503 * 65537), o)
          compare("fp8_preprocess", words({ 2, 32, 260 }, 2654435761), words({ 2, 1, 260 }, 40503 * 65537), o)
          -- q 0..15 over all of z
          local q, z = nb.tensor("i32", { 32, 16 }), nb.tensor("i32", { 4, 16 })
          for i = 0, 511 do q:ptr()[i] = 0x76543210 + (i % 2) * bit.tobit(0x88888888) end
          for i = 0, 63 do z:ptr()[i] = bit.tobit(0x11111111 * (i % 16)) end
          compare("fp8_preprocess", q, z, o)
        end
        local t = words({ 32, 4 }, 2654435761)
        local d = t:to "cuda"
        assert(marlin.fp8_preprocess(d, nil, { in_place = true }) == d)
        of, same = of + 1, same + (d:to("cpu"):equal(marlin.fp8_preprocess(t)) and 1 or 0)
        print(same .. " of " .. of) ]], { NB_EMU_ORDER = order }))
    end
  end)

  it("NVFP4 scales: all numbers of 16 bits, NaNs too, and the factor", function()
    assert.equal("13 of 13", run [[
      for _, dtype in ipairs { "f16", "bf16" } do
        for _, factor in ipairs { 1, 4, 2 ^ 20, 0.25, 3.3 } do compare("nvfp4_scales", all(dtype, 0, 65535, 64), factor) end
        compare("nvfp4_scales", all(dtype, 0x2000, 0x3fff, 4))
      end
      compare("nvfp4_scales", nb.tensor("u16", { 1, 4 }, { 0x3f80, 0xffc0, 0x4000, 0x3f00 }):as("bf16", { 1, 4 })) -- a NaN below all: factor 1
      print(same .. " of " .. of) ]])
  end)

  it("MX scales: all bytes, any number of fours", function()
    assert.equal("14 of 14", run [[
      local t = nb.tensor("u8", { 3, 252 })
      for i = 0, 755 do t:ptr()[i] = i % 249 end
      for _, n in ipairs { 4, 12, 28, 36, 84, 252 } do
        compare("mx_scales", t:reshape(756 / n, n))
        compare("mx_scales", t:rows(1, 1):reshape(252 / n, n), true)
      end
      local e = nb.tensor("u8", { 2, 1, 256 })
      for i = 0, 511 do e:ptr()[i] = i % 256 end
      compare("mx_scales", e)
      compare("mx_scales", nb.tensor("u8", { 2, 3, 32 }):fill(248), true)
      print(same .. " of " .. of) ]])
  end)

  it("block scales in the tensor cores' order: any shape, experts", function()
    assert.equal("16 of 16", run [[
      for _, dtype in ipairs { "u8", "bf16" } do
        for _, shape in ipairs { { 128, 4 }, { 1, 1 }, { 130, 68 }, { 3, 33, 7 }, { 2, 257, 12 }, { 256, 132 }, { 0, 8 }, { 2, 5, 0 } } do
          local t = nb.tensor(dtype, shape)
          local p = ffi.cast("uint8_t *", t:ptr())
          for i = 0, t:bytes() - 1 do p[i] = 1 + (i * 167 + math.floor(i / 251)) % 255 end
          compare("swizzle_blockscale", t)
        end
      end
      print(same .. " of " .. of) ]])
  end)

  it("int8 scales: all positive numbers below the largest, negative ones, subnormal ones, odd counts", function()
    for _, order in ipairs { 0, 1, 7 } do
      assert.equal("11 of 11", run([[
        compare("int8_scales", all("f16", 0, 0x7bff, 64))
        compare("int8_scales", all("bf16", 0, 0x7f7f, 128))
        compare("int8_scales", all("f16", 0, 0x3ff, 4)) -- subnormal
        compare("int8_scales", all("f16", 0, 0x4247, 8)) -- the largest is no power of two
        compare("int8_scales", all("bf16", 0, 0x4047, 8))
        compare("int8_scales", all("f16", 0x3c00, 0x3c06, 7))
        compare("int8_scales", all("bf16", 0x3f80, 0x3f80, 1))
        local mixed = nb.tensor("f16", { 5, 9 })
        for i = 1, 45 do mixed:set(i, (i * 7 % 45 - 22) / 16) end
        compare("int8_scales", mixed)
        compare("int8_scales", mixed:reshape(5, 3, 3))
        compare("int8_scales", nb.tensor("bf16", { 1, 3 }, { -4, 1, 0 }))
        compare("int8_scales", nb.tensor("f16", { 1, 2 }, { -8, 1.5 }))
        print(same .. " of " .. of) ]], { NB_EMU_ORDER = order }))
    end
  end)

  it("refuse what is refused in the computer's memory, in the same words", function()
    assert.equal("same", run [[
      local function both(name, t, ...)
        local here = { pcall(marlin[name], t, ...) }
        local given, n = { ... }, select("#", ...)
        for i = 1, n do if ffi.istype("nb_tensor", given[i]) then given[i] = given[i]:to "cuda" end end
        local there = { pcall(marlin[name], t:to "cuda", unpack(given, 1, n)) }
        local a, b = tostring(here[2]):gsub("^[^:]*:%d+: ", ""), tostring(there[2]):gsub("^[^:]*:%d+: ", "")
        if a ~= b or here[1] or not a:match "^[a-z]+[ _][a-z]" then print(name, a, b) end
      end
      both("int8_scales", nb.tensor("f16", { 2, 2 }))
      both("int8_scales", nb.tensor("f32", { 2, 2 }))
      both("int8_scales", nb.tensor("f16", { 1, 3 }, { 1, 0 / 0, 2 }))
      both("int8_scales", nb.tensor("bf16", { 1, 3 }, { 1, 1 / 0, 2 }))
      both("int8_scales", nb.tensor("bf16", { 1, 3 }, { 1, -1 / 0, 2 }))
      both("int8_scales", nb.tensor("f16", { 1, 3 }, { 1, 2, -17 }))
      both("int8_scales", nb.tensor("f16", { 0, 3 }))
      both("int8_scales", nb.tensor("f16", { 1, 2 }, { -1, -2 }))
      both("mx_scales", nb.tensor("u8", { 2, 3 }))
      both("mx_scales", nb.tensor("u16", { 2, 4 }))
      for _, at in ipairs { 6, 127 } do
        for _, byte in ipairs { 249, 250, 255 } do
          local scales = nb.tensor("u8", { 2, 64 })
          scales:set(at, byte)
          both("mx_scales", scales, true)
        end
      end
      both("swizzle_blockscale", nb.tensor("f32", { 2, 6 }))
      both("nvfp4_scales", nb.tensor("f16", { 2, 6 }), 1)
      both("nvfp4_scales", nb.tensor("f32", { 2, 8 }), 1)
      both("fp8_preprocess", nb.tensor("i32", { 3, 8 }))
      both("fp8_preprocess", nb.tensor("u8", { 32, 8 }))
      both("fp8_preprocess", nb.tensor("i32", { 32, 8 }), nil, { bits = 8 })
      both("fp8_preprocess", nb.tensor("i32", { 32, 8 }), nb.tensor("i32", { 5, 8 }))
      both("fp8_preprocess", nb.tensor("i32", { 32, 8 }), nb.tensor("i32", { 2, 4 }))
      print "same" ]])
    assert.matches("^nil\tmarlin fp8_preprocess: on a device N must be a multiple of 32, found 16\teunsupported$",
      run [[print(marlin.fp8_preprocess(nb.tensor("i32", { 32, 2 }):to "cuda", nb.tensor("i32", { 1, 2 }):to "cuda"))]])
  end)

  it("give back what they took, whichever call of the driver fails", function()
    for _, name in ipairs { "cuMemAlloc_v2", "cuMemsetD8Async", "cuLaunchKernel", "cuMemcpyDtoHAsync_v2" } do
      for _, nth in ipairs { 7, 8, 9 } do
        assert.equal("nil eio 0", run([[
          local d, live = nb.tensor("f16", { 2, 64 }):fill(2):to "cuda"
          local out, code
          for _ = 1, 20 do -- until the plan's call has come
            collectgarbage() collectgarbage()
            live = C.nb_live_bytes()
            out, _, code = marlin.int8_scales(d)
            if not out then break end
            out = nil
          end
          print(tostring(out) .. " " .. tostring(code) .. " " .. tonumber(C.nb_live_bytes() - live)) ]],
          { NB_EMU_FAIL = ("%s:%d:1"):format(name, nth) }), name)
      end
    end
  end)

  it("read and write each byte once, in whole sectors", function()
    local function counts(kernel, from_bytes, to_bytes, sectors, ...)
      local from = emulator.memory(from_bytes)
      ffi.fill(from, from_bytes)
      local wrong, c = emulator.run(kernel, { grid = 2, block = 256 }, from, ...)
      assert.is_nil(wrong)
      assert.same({ from_bytes, to_bytes, sectors or (from_bytes + to_bytes) / 32 }, { c.global_read, c.global_written, c.global_sectors })
      emulator.free(from)
    end
    local function int64(x) return ffi.new("int64_t", x) end
    local to, wrong = emulator.memory(65536), emulator.memory(4)
    counts("nb_marlin_fold", 65536, 65536, nil, false, to, 128, int64(128), 0, 0)
    counts("nb_marlin_mx", 65536, 65536, nil, to, int64(16384), 1, wrong)
    counts("nb_swizzle", 65536, 65536, nil, to, int64(1), 128, 512, 1)
    -- of 16 bits a thread writes 32 bytes in two halves
    counts("nb_swizzle", 65536, 65536, 3 * 2048, to, int64(2), 128, 128, 2)
    counts("nb_marlin_nvfp4", 65536, 32768, nil, to, int64(8192), 1, ffi.new("float", 1))
    counts("nb_marlin_int8", 65536, 65536, nil, to, int64(32768), 2, ffi.new("float", 1), wrong)
  end)
end)

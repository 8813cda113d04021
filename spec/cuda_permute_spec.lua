-- Marlin's order of scales, bias and zero-points on a device: the kernels, run by the emulator in every order of threads,
-- and the functions of layout.marlin through the stand-in driver, bit for bit what they give in the computer's memory.
local nb = require "nibble"
local ffi = require "ffi"
local numbers = require "spec.support.numbers"
local emulator = require "spec.support.emulator"
local standin = require "spec.support.standin"
local marlin = nb.layout.marlin

ffi.cdef "typedef struct { unsigned char from[64]; } nb_permutation_of_spec;"

-- The order that f gives: of a row of 64 bytes 0..63 it makes what each place takes.
local function order_of(f)
  local order, row = ffi.new "nb_permutation_of_spec", nb.tensor("u8", { 1, 64 })
  for i = 0, 63 do row:ptr()[i] = i end
  ffi.copy(order.from, f(row):ptr(), 64)
  return order
end

-- What place p of a block of zero-points takes: what the word has there when one source code alone is set.
local function zero_order(f, bits)
  local order, pf, words = ffi.new "nb_permutation_of_spec", 32 / bits, 64 * bits / 32
  for source = 0, 63 do
    local one = nb.tensor("i32", { 1, words })
    one:ptr()[math.floor(source / pf)] = bit.lshift(1, source % pf * bits)
    local out = f(one):ptr()
    for place = 0, 63 do
      if bit.band(bit.rshift(out[math.floor(place / pf)], place % pf * bits), 1) == 1 then order.from[place] = source end
    end
  end
  return order
end

local function grouped(t) return marlin.permute_scales(t, 640, 128) end
local function single(t) return marlin.permute_scales(t, 640, -1) end

local KINDS = { { "codes", "u8", function(t) return marlin.zero_points(t, 4) end, name = "zero-points, one to a byte" } }
for bits, dtype in pairs { [8] = "f8_e4m3", [16] = "bf16", [32] = "f32" } do
  KINDS[#KINDS + 1] = { bits, dtype, grouped, order_of(grouped), name = dtype .. ", grouped" }
  KINDS[#KINDS + 1] = { bits, dtype, single, order_of(single), name = dtype .. ", single" }
end
for _, bits in ipairs { 4, 8 } do
  for _, a8 in ipairs { false, true } do
    for _, from in ipairs { "awq", "packed" } do
      local function f(t) return marlin[from .. "_zero_points"](t, bits, a8) end
      KINDS[#KINDS + 1] = { bits, "i32", f, zero_order(f, bits),
        name = ("%s zero-points of %d bits%s"):format(from, bits, a8 and ", 8-bit activations" or "") }
    end
  end
end
-- u8 codes of 4 bits: the same order as packed ones.
KINDS[1][4] = zero_order(function(t) return marlin.packed_zero_points(t, 4) end, 4)

-- Runs it in every order on rows x 64 elements; counts of the last run.
local function check(kind, rows, launch)
  local input = numbers.bytes(kind[2], { rows, kind[2] == "i32" and 64 * kind[1] / 32 or 64 }, rows)
  if kind[2] == "u8" then
    for i = 0, input:numel() - 1 do input:ptr()[i] = input:ptr()[i] % 16 end
  end
  local expected = assert(kind[3](input))
  local from, to, wrong = emulator.memory(input), emulator.memory(expected:bytes()), emulator.memory(4)
  local counts
  launch.shared = launch.block / 32 * 512
  emulator.orders(function(order)
    ffi.fill(to, expected:bytes(), 0xa5)
    ffi.fill(wrong, 4)
    local says
    says, counts = emulator.run("nb_permute_" .. kind[1], launch, from, to, ffi.new("int64_t", input:bytes() / 16), kind[4], wrong)
    assert.is_nil(says)
    assert.is_true(emulator.read(to, nb.tensor(expected:type(), expected:size())):equal(expected), kind.name .. ", order " .. order)
    assert.equal(0, ffi.cast("int *", wrong)[0])
  end)
  for _, p in ipairs { from, to, wrong } do emulator.free(p) end
  return counts, input:bytes(), expected:bytes()
end

describe("a permutation kernel", function()
  for _, kind in ipairs(KINDS) do
    it("moves blocks of any number, many to a warp or none: " .. kind.name, function()
      for _, rows in ipairs { 1, 3, 8, 61 } do check(kind, rows, { grid = 1, block = 128 }) end
      check(kind, 5, { grid = 3, block = 128 })
    end)

    it("reads and writes each byte once, in whole sectors, free of bank conflicts: " .. kind.name, function()
      local c, read, written = check(kind, 64, { grid = 1, block = 128 })
      assert.equal(0, c.bank_conflicts)
      assert.equal(read, c.global_read)
      assert.equal(written, c.global_written)
      assert.equal((read + written) / 32, c.global_sectors)
    end)
  end

  it("tells of codes that don't fit", function()
    local codes = nb.tensor("u8", { 9, 64 })
    codes:ptr()[9 * 64 - 1] = 16
    local from, to, wrong = emulator.memory(codes), emulator.memory(9 * 32), emulator.memory(4)
    ffi.fill(wrong, 4)
    assert.is_nil((emulator.run("nb_permute_codes", { grid = 1, block = 128, shared = 2048 }, from, to, ffi.new("int64_t", 36),
      KINDS[1][4], wrong)))
    assert.equal(1, ffi.cast("int *", wrong)[0])
  end)
end)

-- What Lua code prints in a process whose driver is the stand-in; its errors after it.
local run = standin.with "local marlin, C = nb.layout.marlin, require('nibble.ffi').C "

describe("layout.marlin on a device", function()
  it("gives the same bytes: one matrix and experts, every dtype, group and direction", function()
    assert.equal("132 of 132", run [[
      local same, of = 0, 0
      local function fill(dtype, shape, most)
        local t = nb.tensor("u8", { nb.tensor(dtype, shape):bytes() })
        for i = 1, t:numel() do t:set(i, (i * 167 + math.floor(i / 256) * 31) % (most or 256)) end
        return t:as(dtype, shape)
      end
      local function compare(name, t, ...)
        local cpu, device = assert(marlin[name](t, ...)), assert(marlin[name](t:to "cuda", ...))
        of = of + 1
        if device:where() == "cuda:0" and device:type() == cpu:type() and device:to("cpu"):equal(cpu) then same = same + 1
        else print(name, cpu, device, ...) end
      end
      for _, lead in ipairs { {}, { 3 } } do
        local function shape(g, n) return lead[1] and { lead[1], g, n } or { g, n } end
        for _, dtype in ipairs { "f16", "f8_e4m3", "f32", "i32" } do
          for _, a8 in ipairs { false, true } do
            for _, k in ipairs { 128, 256 } do
              compare("permute_scales", fill(dtype, shape(5, 192)), k, 128, a8)
              compare("unpermute_scales", fill(dtype, shape(1, 64)), k, 128, a8)
            end
            compare("permute_scales", fill(dtype, shape(1, 96)), 4096, -1, a8)
            compare("unpermute_scales", fill(dtype, shape(3, 32)), 4096, -1, a8)
          end
        end
        for _, dtype in ipairs { "bf16", "f32" } do
          compare("permute_bias", fill(dtype, lead[1] and { 3, 96 } or { 96 }))
          compare("unpermute_bias", fill(dtype, lead[1] and { 3, 96 } or { 96 }))
        end
        for _, bits in ipairs { 4, 8 } do
          for _, a8 in ipairs { false, true } do
            compare("zero_points", fill("u8", shape(3, 192), 2 ^ bits), bits, a8)
            compare("awq_zero_points", fill("i32", shape(3, 192 * bits / 32)), bits, a8)
            compare("packed_zero_points", fill("i32", shape(1, 64 * bits / 32)), bits, a8)
          end
        end
      end
      -- a warp goes on to further bytes, and the last ones are not 512
      compare("permute_scales", fill("f16", { 900, 192 }), 4096, 128)
      compare("awq_zero_points", fill("i32", { 4500, 24 }), 4)
      -- nothing
      compare("permute_scales", nb.tensor("f16", { 0, 64 }), 64, -1)
      compare("zero_points", nb.tensor("u8", { 2, 0 }), 4)
      print(same .. " of " .. of) ]])
  end)

  it("prepares a whole weight there, act-order and 8-bit activations too: methods.marlin.prepare", function()
    assert.equal("words scales bias | words scales bias perm | words scales zeros | words scales global 0", run [[
      local prepare, told = require("nibble.methods.marlin").prepare, {}
      local function fill(dtype, shape)
        local t = nb.tensor("u8", { nb.tensor(dtype, shape):bytes() })
        for i = 1, t:numel() do t:set(i, (i * 167) % 60) end
        return t:as(dtype, shape)
      end
      local function both(m)
        local d, same = {}, {}
        for k, v in pairs(m) do d[k] = k ~= "g_idx" and type(v) == "cdata" and v:to "cuda" or v end
        local here, there = assert(prepare(m)), assert(prepare(d))
        for _, name in ipairs { "words", "scales", "zeros", "bias", "perm", "global" } do
          local a, b = here[name], there[name]
          if type(a) == "cdata" and b:to("cpu"):equal(a) then same[#same + 1] = name end
          if type(a) == "number" then same[#same + 1] = name .. " " .. a - b end
        end
        told[#told + 1] = table.concat(same, " ")
      end
      local scales, bias, g_idx = fill("f16", { 4, 128 }), fill("f16", { 128 }), nb.tensor("i32", { 128 })
      for i = 0, 127 do g_idx:ptr()[i] = i * 5 % 4 end
      both { words = fill("i32", { 16, 128 }), order = "gptq", bits = 4, group = 32, scales = scales, bias = bias }
      both { words = fill("i32", { 32, 128 }), order = "gptq", bits = 8, group = 32, scales = scales, bias = bias, g_idx = g_idx }
      both { words = fill("i32", { 128, 16 }), order = "awq", bits = 4, group = 32, scales = scales, zeros = fill("i32", { 4, 16 }) }
      both { words = fill("i32", { 16, 128 }), order = "gptq", bits = 4, group = 32, scales = scales, activations = "int8" }
      print(table.concat(told, " | ")) ]])
  end)

  it("can be part of a graph where nothing needs to be told, else says so", function()
    local out = run [[
      local scales, words = nb.tensor("f16", { 2, 64 }), nb.tensor("i32", { 2, 64 })
      for i = 1, 128 do scales:set(i, i) words:set(i, i * 7919) end
      local d, w = scales:to "cuda", words:to "cuda"
      local graph, a, b = nb.cuda.graph(function() return marlin.permute_scales(d, 128, 64), marlin.repack(w, 4) end)
      assert(graph())
      print(a:to("cpu"):equal(marlin.permute_scales(scales, 128, 64)), b:to("cpu"):equal(marlin.repack(words, 4)))
      local z, codes = nb.tensor("u8", { 1, 64 }):to "cuda", d:as("u8", { 4, 64 })
      for _, f in ipairs { function() return marlin.zero_points(codes, 8) and marlin.zero_points(z, 4) end,
        function() return marlin.int8_scales(d) end, function() return marlin.mx_scales(codes, true) end } do
        print(select(2, pcall(nb.cuda.graph, f)))
      end ]]
    assert.matches("^true\ttrue\n", out)
    local _, refused = out:gsub("while a graph is captured", "")
    assert.equal(3, refused, out)
  end)

  it("refuses what is refused in the computer's memory, in the same words", function()
    assert.equal("same", run [[
      local function both(name, t, ...)
        local _, here = pcall(marlin[name], t, ...)
        local _, there = pcall(marlin[name], t:to "cuda", ...)
        here, there = tostring(here):gsub("^[^:]*:%d+: ", ""), tostring(there):gsub("^[^:]*:%d+: ", "")
        if here ~= there or not here:match "^marlin " then print(here, there) end
      end
      both("permute_scales", nb.tensor("f16", { 2, 96 }), 256, 128)
      both("permute_scales", nb.tensor("f16", { 2, 48 }), 256, -1)
      both("permute_scales", nb.tensor("f16", { 64 }), 256, -1)
      both("permute_scales", nb.tensor("f64", { 2, 64 }), 256, -1)
      both("permute_bias", nb.tensor("f16", { 33 }))
      both("permute_bias", nb.tensor("f16", {}))
      both("zero_points", nb.tensor("i32", { 2, 64 }), 4)
      both("zero_points", nb.tensor("u8", { 2, 72 }), 4)
      both("zero_points", nb.tensor("u8", { 2, 64 }):fill(17), 4)
      both("awq_zero_points", nb.tensor("i32", { 2, 9 }), 4)
      both("awq_zero_points", nb.tensor("u8", { 2, 8 }), 4)
      both("packed_zero_points", nb.tensor("i32", { 8 }), 8)
      both("awq_zero_points", nb.tensor("i32", { 2, 8 }), 5)
      print "same" ]])
  end)

  it("gives back what it took, whichever call of the driver fails", function()
    for _, name in ipairs { "cuMemAlloc_v2", "cuMemsetD8Async", "cuLaunchKernel", "cuModuleGetFunction", "cuMemcpyDtoHAsync_v2" } do
      assert.equal("nil eio 0", run([[
        local d, live = nb.tensor("u8", { 2, 64 }):to "cuda"
        local out, code
        for _ = 1, 20 do -- until the plan's call has come
          collectgarbage() collectgarbage()
          live = C.nb_live_bytes()
          out, _, code = marlin.zero_points(d, 4)
          if not out then break end
          out = nil
        end
        print(tostring(out) .. " " .. tostring(code) .. " " .. tonumber(C.nb_live_bytes() - live)) ]],
        { NB_EMU_FAIL = name .. ":5:1" }), name)
    end
  end)
end)

-- The emulator of CUDA kernels (cuda/emu): small kernels that are right run in any order of threads; each kind of
-- mistake is caught in every order and said in a sentence; what it counts is what a GPU would.
local nb = require "nibble"
local emulator = require "spec.support.emulator"

local function words(n, f)
  local t = nb.tensor("i32", { n })
  for i = 0, n - 1 do t:ptr()[i] = f(i) end
  return t
end

-- Runs it in every order; each must be right (says = nil) or wrong in these words.
local function all_orders(says, name, launch, ...)
  local args, n = { ... }, select("#", ...)
  emulator.orders(function(order)
    local wrong = emulator.run(name, launch, unpack(args, 1, n))
    local told = ("%s, order %d: %s"):format(name, order, tostring(wrong))
    if says then assert.is_true(wrong ~= nil and wrong:find(says) ~= nil, told) else assert.is_nil(wrong, told) end
  end)
end

describe("an emulated kernel", function()
  local input, output

  before_each(function()
    input, output = emulator.memory(words(256, function(i) return 7 * i end)), emulator.memory(4 * 256)
  end)
  after_each(function()
    emulator.free(input)
    emulator.free(output)
  end)

  local function result(n) return emulator.read(output, nb.tensor("i32", { n })):ptr() end

  it("runs each thread of each block once, in every order, with more blocks than are resident", function()
    local many, out = emulator.memory(words(1024, function(i) return i * i end)), emulator.memory(4096)
    emulator.orders(function()
      assert.is_nil((emulator.run("emu_copy_shifted", { grid = 32 }, many, out, 0)))
      local t = emulator.read(out, nb.tensor("i32", { 1024 }))
      for i = 0, 1023 do assert.equal(i * i, t:ptr()[i]) end
    end)
    emulator.free(many)
    emulator.free(out)
  end)

  it("is stopped at a read or write outside of what was allocated", function()
    all_orders(nil, "emu_copy_shifted", { grid = 8 }, input, output, 0)
    all_orders("kernel emu_copy_shifted, block %(7, 0, 0%), thread %(31, 0, 0%): reads 4 bytes of global memory, up to 4 past the end of its 1024 bytes",
      "emu_copy_shifted", { grid = 8 }, input, output, 1)
    all_orders("thread %(0, 0, 0%): reads 4 bytes of global memory, 4 before the begin of its 1024 bytes",
      "emu_copy_shifted", { grid = 8 }, input, output, -1)
    local small = emulator.memory(100)
    all_orders("writes 4 bytes of global memory, up to %d+ past the end of its 100 bytes", "emu_copy_shifted", {}, input, small, 0)
    emulator.free(small)
  end)

  it("is stopped at memory that is null or given back", function()
    all_orders("reads 4 bytes at .*, which is not device memory", "emu_copy_shifted", {}, false, output, 0)
    local gone = emulator.memory(64)
    assert.equal(0, emulator.free(gone))
    all_orders("reads 4 bytes at .*, which is not device memory", "emu_copy_shifted", {}, gone, output, 0)
    assert.equal(-1, emulator.free(gone))
  end)

  it("is stopped at an access that is not aligned to its size", function()
    all_orders(nil, "emu_misaligned", {}, input, output, 0)
    all_orders("reads 8 bytes of global memory at offset %d+, which is not aligned", "emu_misaligned", {}, input, output, 1)
  end)

  it("is stopped where a barrier is missing, whatever the order", function()
    all_orders(nil, "emu_reverse", { block = 128, shared = 512 }, input, output, 0)
    for i = 0, 127 do assert.equal(7 * (127 - i), result(128)[i]) end
    -- Which of the two comes first, writer or reader, depends on the order.
    all_orders("shared memory, which", "emu_reverse", { block = 128, shared = 512 }, input, output, 1)
    all_orders("with no barrier between", "emu_reverse", { block = 128, shared = 512 }, input, output, 2)
    all_orders("reads 4 bytes of shared memory, up to 4 past the end of its 512 bytes", "emu_reverse",
      { block = 128, shared = 512 }, input, output, 3)
    all_orders("writes 4 bytes of shared memory, up to %d+ past the end of its 500 bytes", "emu_reverse",
      { block = 128, shared = 500 }, input, output, 0)
  end)

  it("is stopped where the lanes of a warp do not meet", function()
    all_orders(nil, "emu_neighbour", { block = 64, shared = 256 }, output, 0)
    for i = 0, 63 do assert.equal(2 * i + (i % 2 == 0 and 1 or -1), result(64)[i]) end
    all_orders("shared memory, which", "emu_neighbour", { block = 64, shared = 256 }, output, 1)
  end)

  it("is stopped where it uses an asynchronous copy too early or leaves one under way", function()
    local function run(says, wrong) all_orders(says, "emu_copy_async", { block = 64, shared = 1024 }, input, output, wrong) end
    run(nil, 0)
    for i = 0, 63 do assert.equal(7 * 4 * ((i + 33) % 64), result(64)[i]) end
    run("reads byte %d+ of shared memory, which an asynchronous copy has yet to bring", 1)
    run("reads byte %d+ of shared memory, which an asynchronous copy has yet to bring", 2)
    run("shared memory, which", 3)
    run("ends with 1 asynchronous copies that it did not wait for", 4)
  end)

  it("is stopped where some threads never come, or come to different meetings", function()
    local function run(says, wrong) all_orders(says, "emu_divergent", { block = 64, shared = 1024 }, output, wrong) end
    run(nil, 0)
    run("32 of 64 threads of block %(0, 0, 0%) wait at __syncthreads, 32 ended without it", 1)
    run("16 lanes wait in __syncwarp that the other lanes of their warp never reach", 2)
    run("comes to .* while other lanes of its warp wait in", 3)
  end)

  it("may wait for another block's flag, and is stopped when nobody sets it", function()
    local flag = emulator.memory(4)
    emulator.orders(function()
      require("ffi").fill(flag, 4)
      assert.is_nil((emulator.run("emu_turns", { grid = 5 }, flag, output, 0)))
      for i = 0, 4 do assert.equal(i + 1, result(5)[i]) end
    end)
    require("ffi").fill(flag, 4)
    assert.matches("waits for a flag at .* that no thread sets", (emulator.run("emu_turns", { grid = 5 }, flag, output, 1)))
    emulator.free(flag)
  end)

  it("is refused when it is no launch that a GPU takes", function()
    local function refused(says, launch) assert.matches(says, (emulator.run("emu_copy_shifted", launch, input, output, 0))) end
    refused("33 threads a block", { block = 33 })
    refused("1056 threads a block", { block = 1056 })
    refused("0 threads a block", { block = 0 })
    refused("a grid of %(0, 1, 1%) blocks", { grid = 0 })
    refused("300000 bytes of shared memory", { shared = 300000 })
    assert.equal("no such kernel", (emulator.run("nobody", {})))
    assert.is_nil((emulator.run("emu_copy_shifted", {}, input, output, 0))) -- and goes on after a failure
  end)

  it("is counted: bytes, sectors, bank conflicts, barriers", function()
    local _, c = emulator.run("emu_copy_shifted", { grid = 4 }, input, output, 0)
    assert.same({ 512, 512, 32 }, { c.global_read, c.global_written, c.global_sectors })
    _, c = emulator.run("emu_copy_shifted", { grid = 4 }, input, output, 1)
    assert.equal(16 + 4 * 5, c.global_sectors) -- 4 bytes off: a read of a warp touches five sectors
    for stride, ways in pairs { [1] = 1, [2] = 2, [3] = 1, [4] = 4, [32] = 32 } do
      _, c = emulator.run("emu_strided", { shared = 4096 }, output, stride)
      assert.same({ ways - 1, 1 }, { c.bank_conflicts, c.barriers })
    end
    _, c = emulator.run("emu_copy_async", { block = 64, shared = 1024 }, input, output, 0)
    assert.same({ 64, 1024 }, { c.copies, c.global_read })
  end)

  it("is counted the same however long it runs between barriers", function()
    local bytes = 5000 * 32 * 4
    local from, to = emulator.memory(bytes), emulator.memory(bytes)
    emulator.orders(function()
      local wrong, c = emulator.run("emu_copy_rounds", {}, from, to, 5000)
      assert.is_nil(wrong)
      assert.same({ bytes, bytes, 2 * bytes / 32 }, { c.global_read, c.global_written, c.global_sectors })
    end)
    emulator.free(from)
    emulator.free(to)
  end)
end)

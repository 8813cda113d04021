-- The repack kernels, run by the emulator: bit for bit what the CPU's functions give, in every order of threads, with
-- warps that go through more tiles than they have under way, without bank conflicts, reading no byte twice.
local nb = require "nibble"
local ffi = require "ffi"
local numbers = require "spec.support.numbers"
local emulator = require "spec.support.emulator"
local marlin = nb.layout.marlin

local WARPS, STAGES, STAGES_ORDERED = 4, 4, 2 -- as cuda/kernels/repack.h has them

-- Each expert's own permutation of 0..k-1.
local function permutations(experts, k, seed)
  local t, x = nb.tensor("i32", { experts, k }), seed
  for e = 0, experts - 1 do
    local row = t:ptr() + e * k
    for i = 0, k - 1 do row[i] = i end
    for i = k - 1, 1, -1 do
      x = (x * 1103515245 + 12345) % 2147483648
      local j = math.floor(x / 65536) % (i + 1)
      row[i], row[j] = row[j], row[i]
    end
  end
  return t
end

local function shared_bytes(c)
  local rows = c.a8 and 32 or 16
  if c.perm then return rows * 68 * STAGES_ORDERED * 4 * WARPS end
  if c.source == "gptq" then return rows * c.bits / 32 * (c.a8 and 40 or 72) * STAGES * 4 * WARPS end
  local pitch = c.a8 and { [4] = 4, [8] = 12 } or { [4] = 12, [8] = 20 }
  return (rows * pitch[c.bits] + rows / 8 * 4) * STAGES * 4 * WARPS
end

local function name_of(c)
  return ("%s %d bits%s"):format(c.source, c.bits, c.perm and " act-order" or c.a8 and " 8-bit activations" or "")
end

-- c: { source =, bits =, a8 =, perm =, experts =, k =, n =, grid = }. Runs the kernel in every order; returns the
-- counts of the last run.
local function check_repack(c)
  local pf, awq, a8 = 32 / c.bits, c.source == "awq", c.a8 and 1 or 0
  local words = numbers.bytes("i32", awq and { c.experts, c.k, c.n / pf } or { c.experts, c.k / pf, c.n }, c.k + c.bits)
  local perm = c.perm and permutations(c.experts, c.k, c.n) or nil
  local expected = awq and marlin.awq_repack(words, c.bits, c.a8) or marlin.repack(words, c.bits, c.a8, perm)
  local d_words, d_perm = emulator.memory(words), perm and emulator.memory(perm) or false
  local d_out = emulator.memory(expected:bytes())
  local counts
  emulator.orders(function(order)
    local launch = { grid = c.grid, block = 32 * WARPS, shared = shared_bytes(c) }
    local wrong
    ffi.fill(d_out, expected:bytes(), 0xa5)
    if perm then
      wrong, counts = emulator.run("nb_repack_gptq_ordered", launch, d_words, d_perm, d_out, c.experts, c.k, c.n, c.bits)
    else
      wrong, counts = emulator.run("nb_repack_" .. c.source, launch, d_words, d_out, c.experts, c.k, c.n, c.bits, a8)
    end
    assert.is_nil(wrong)
    assert.is_true(emulator.read(d_out, nb.tensor("i32", expected:size())):equal(expected), name_of(c) .. ", order " .. order)
  end)
  for _, p in ipairs { d_words, d_out, d_perm or nil } do emulator.free(p) end
  return counts, expected:bytes()
end

-- 3 experts of 15 tiles (8-bit activations: 18): with one block a warp takes 11 or more of the 45, more than stages + 2.
local KINDS = {
  { source = "gptq", bits = 4 }, { source = "gptq", bits = 8 },
  { source = "gptq", bits = 4, perm = true }, { source = "gptq", bits = 8, perm = true },
  { source = "awq", bits = 4 }, { source = "awq", bits = 8 },
  { source = "gptq", bits = 4, a8 = true }, { source = "gptq", bits = 8, a8 = true },
  { source = "awq", bits = 4, a8 = true }, { source = "awq", bits = 8, a8 = true },
}
local function with(kind, sizes) return setmetatable(sizes, { __index = kind }) end

describe("a repack kernel", function()
  for _, kind in ipairs(KINDS) do
    local name = name_of(kind)

    it("gives Marlin's words of all experts in one launch: " .. name, function()
      local k = kind.a8 and 96 or 80
      check_repack(with(kind, { experts = 3, k = k, n = 192, grid = 1 }))
      check_repack(with(kind, { experts = 3, k = k, n = 192, grid = 3 }))
    end)

    it("takes one tile, and more blocks than tiles: " .. name, function()
      check_repack(with(kind, kind.a8 and { experts = 1, k = 32, n = 32, grid = 1 } or { experts = 1, k = 16, n = 64, grid = 1 }))
      check_repack(with(kind, { experts = 1, k = 32, n = 128, grid = 3 }))
      check_repack(with(kind, { experts = 7, k = 32, n = 64, grid = 1 }))
    end)

    it("reads and writes each byte once, free of bank conflicts: " .. name, function()
      local c, bytes = check_repack(with(kind, { experts = 2, k = 64, n = 128, grid = 2 }))
      assert.equal(0, c.bank_conflicts)
      assert.equal(0, c.barriers)
      assert.equal(bytes, c.global_written)
      -- With an activation order every row brings its whole words, and the order itself is read.
      if not kind.perm then
        assert.equal(bytes, c.global_read)
        -- AWQ's 4-bit rows of such a tile are 16 bytes, half of what memory gives: the next tile's warp takes the rest.
        assert.equal((kind.source == "awq" and kind.bits == 4 and kind.a8 and 3 or 2) * bytes / 32, c.global_sectors)
      end
    end)
  end

  it("is stopped by memory too small, and by an order that leaves the matrix", function()
    local words, out = emulator.memory(numbers.bytes("i32", { 8, 64 }, 1)), emulator.memory(64 * 64 / 2 - 16)
    local launch = { grid = 1, block = 128, shared = shared_bytes { source = "gptq", bits = 4 } }
    assert.matches("writes 16 bytes of global memory, up to 16 past the end",
      (emulator.run("nb_repack_gptq", launch, words, out, 1, 64, 64, 4, 0)))
    local perm = permutations(1, 16, 1)
    perm:ptr()[3] = 64
    local d_perm = emulator.memory(perm)
    launch.shared = shared_bytes { perm = true }
    assert.matches("reads 16 bytes of global memory, up to %d+ past the end of its 2048 bytes",
      (emulator.run("nb_repack_gptq_ordered", launch, words, d_perm, out, 1, 16, 64, 4)))
    launch.shared = 1000
    assert.matches("shared memory, up to %d+ past the end of its 1000 bytes",
      (emulator.run("nb_repack_gptq_ordered", launch, words, emulator.memory(permutations(1, 16, 1)), out, 1, 16, 64, 4)))
  end)
end)

-- Words turned into Marlin's where they lie: the words of the other functions, on every path
-- (MRL-30, MRL-33, MRL-34, MRL-42; AWQ-34, AWQ-35).
local nb = require "nibble"
local ffi = require "ffi"
local C = require("nibble.ffi").C
local layout = nb.layout

local function random(shape)
  local t = nb.tensor("i32", shape)
  local bytes = ffi.cast("uint8_t *", t.data)
  for i = 0, t:bytes() - 1 do bytes[i] = math.random(0, 255) end
  return t
end

local paths = { { 0, 1 }, { -1, 1 }, { -1, 2 } } -- features, threads

describe("layout.marlin.repack_here", function()
  before_each(function() math.randomseed(9) end)
  after_each(function()
    C.nb_cpu_limit(-1)
    C.nb_threads_set(0)
  end)

  -- {experts or nil, k, n}
  local shapes = { { nil, 64, 64 }, { nil, 128, 320 }, { 3, 96, 192 }, { 2, 64, 576 } }

  for _, o in ipairs { { "gptq", 4 }, { "gptq", 8 }, { "awq", 4 }, { "awq", 8 } } do
    local order, bits = o[1], o[2]
    it(("MRL-30, MRL-33, MRL-34: %s words of %d bits, one matrix and experts"):format(order, bits), function()
      local pf = 32 / bits
      for _, s in ipairs(shapes) do
        local shape = order == "awq" and { s[2], s[3] / pf } or { s[2] / pf, s[3] }
        if s[1] then table.insert(shape, 1, s[1]) end
        local words = random(shape)
        for _, a8 in ipairs { false, true } do
          C.nb_cpu_limit(0)
          local want = (order == "awq" and layout.marlin.awq_repack or layout.marlin.repack)(words, bits, a8)
          for _, path in ipairs(paths) do
            C.nb_cpu_limit(path[1])
            C.nb_threads_set(path[2])
            local mine = words:clone()
            local got = layout.marlin.repack_here(mine, bits, { order = order, a8 = a8 })
            assert.is_true(want:equal(got))
            assert.is_true(got.data == mine.data)
          end
        end
      end
    end)
  end

  it("MRL-42, AWQ-35: codes are changed on the way as fp8_preprocess changes them, with zero-points and without", function()
    for _, s in ipairs(shapes) do
      local function shape(rows, cols) return s[1] and { s[1], rows, cols } or { rows, cols } end
      local awq, zeros, gptq = random(shape(s[2], s[3] / 8)), random(shape(s[2] / 32, s[3] / 8)), random(shape(s[2] / 8, s[3]))
      C.nb_cpu_limit(0)
      local want = layout.marlin.awq_repack(layout.marlin.fp8_preprocess(awq, zeros), 4, true)
      local symmetric = layout.marlin.repack(layout.marlin.fp8_preprocess(gptq), 4, true)
      for _, path in ipairs(paths) do
        C.nb_cpu_limit(path[1])
        C.nb_threads_set(path[2])
        assert.is_true(want:equal(layout.marlin.repack_here(awq:clone(), 4, { order = "awq", a8 = true, fold = true, zeros = zeros })))
        assert.is_true(symmetric:equal(layout.marlin.repack_here(gptq:clone(), 4, { order = "gptq", a8 = true, fold = true })))
      end
    end
  end)

  it("MRL-31, MRL-44: sizes, bits and zero-points are checked before anything is changed", function()
    local function refused(pattern, words, bits, o)
      local before = words:clone()
      assert.error_matches(function() layout.marlin.repack_here(words, bits, o) end, pattern)
      assert.is_true(before:equal(words))
    end
    refused("N = 32 is not a multiple of the tile's 64", random { 64, 4 }, 4, { order = "awq" })
    refused("K = 24 is not a multiple of the tile's 16", random { 24, 8 }, 4, { order = "awq" })
    refused("bits must be 4 or 8, found 2", random { 64, 8 }, 2, { order = "awq" })
    refused("weights must be of 4 bits, found 8", random { 64, 16 }, 8, { order = "awq", a8 = true, fold = true })
    refused("K = 64 is not a multiple of the 3 groups", random { 64, 8 }, 4,
      { order = "awq", a8 = true, fold = true, zeros = random { 3, 8 } })
    refused("expected", random { 64, 8 }, 4, { order = "awq", a8 = true, fold = true, zeros = random { 2, 4 } })
  end)

  it("a file's memory stays as it is: new words are made", function()
    local m = assert(nb.open "spec/golden/cases/awq_marlin_repack_w4_a8_k128_n64.safetensors")
    local words = m:tensor "in.qweight"
    assert.equal(1, C.nb_tensor_is_mapped(words))
    local got = layout.marlin.repack_here(words, 4, { order = "awq" })
    assert.is_false(got.data == words.data)
    assert.is_true(got:equal(layout.marlin.awq_repack(words, 4)))
    local zeros = random { 4, 8 }
    assert.is_true(layout.marlin.repack_here(words, 4, { order = "awq", a8 = true, fold = true, zeros = zeros })
      :equal(layout.marlin.awq_repack(layout.marlin.fp8_preprocess(words, zeros), 4, true)))
  end)
end)

describe("layout.marlin numbers", function()
  it("MRL-40: the largest of negative, infinite and NaN scales counts as before", function()
    local s = nb.tensor("f16", { 1, 4 }, { -3, -1, -2, -4 })
    assert.error_matches(function() layout.marlin.int8_scales(s) end, "must be positive and finite, found %-1")
    assert.error_matches(function() layout.marlin.int8_scales(nb.tensor("bf16", { 1, 2 }, { 1, 1 / 0 })) end, "found inf")
    assert.error_matches(function() layout.marlin.int8_scales(nb.tensor("bf16", { 1, 2 }, { 1, 0 / 0 })) end, "found %-?nan")
    local out, global = layout.marlin.int8_scales(nb.tensor("f16", { 1, 4 }, { 0, 0.5, 1, -1 }))
    assert.equal(1 / 4096, global)
    local bits = out:as("i16")
    assert.same({ 0, 2048, 4096, -4096 }, { bits:get(1), bits:get(2), bits:get(3), bits:get(4) })
  end)
end)

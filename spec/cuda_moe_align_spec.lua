-- Tokens by expert on a device: aligned to a kernel's blocks and grouped, as nb_moe_align and nb_moe_group do it in
-- the computer's memory: kernels/moe_align.cu in every order of threads.
local standin = require "spec.support.standin"

local run = standin.with [[
  local cuda_moe, C = require 'spec.support.cuda_moe', require('nibble.ffi').C
  local hash, tensor = cuda_moe.hash, cuda_moe.tensor
  local function ids_of(rows, top, experts, from) return tensor("i32", { rows, top }, function(i) return hash(i, experts) + (from or 0) end) end
  local function check(f, o) local wrong = cuda_moe[f](o) if wrong then print(wrong) end end
]]

describe("tokens by expert, on a device", function()
  it("fill blocks: many pairs to a warp, experts without tokens, one expert for all, odd blocks", function()
    assert.equal("", run [[
      for _, c in ipairs { { 1, 1, 1, 1 }, { 1, 2, 8, 16 }, { 3, 2, 8, 16 }, { 16, 8, 32, 48 }, { 41, 3, 5, 7 }, { 700, 2, 3, 64 } } do
        check("align", { ids = ids_of(c[1], c[2], c[3]), experts = c[3], block = c[4] })
      end
      check("align", { ids = tensor("i32", { 90, 2 }, function() return 6 end), experts = 8, block = 16 })
      check("align", { ids = ids_of(4, 2, 3, 20), experts = 31, block = 8 })
      check("align", { ids = ids_of(50, 8, 256), experts = 256, block = 8, conflicts = true })
      check("align", { ids = ids_of(30, 8, 4096), experts = 4096, block = 16, conflicts = true, orders = false }) ]])
  end)

  it("take a run of pairs each, longer ones where counts of many experts leave room for fewer warps", function()
    assert.equal("", run [[
      check("align", { ids = ids_of(1200, 2, 7), experts = 7, block = 16 })
      check("align", { ids = ids_of(2000, 4, 1500), experts = 1500, block = 8, conflicts = true, orders = false }) ]])
  end)

  it("leave out ids outside, and follow the map: strangers marked or left out", function()
    assert.equal("", run [[
      local map = tensor("i32", { 12 }, function(i) return i % 3 == 1 and -1 or (i * 5 + 2) % 12 end)
      local local_map = tensor("i32", { 12 }, function(i) return i % 3 == 1 and math.floor(i / 3) or -1 end)
      local ids = ids_of(33, 3, 15, -1) -- -1 and 12 to 13 too
      for _, m in ipairs { map, local_map } do
        for _, ignore in ipairs { false, true } do
          check("align", { ids = ids, experts = 12, block = 8, map = m, ignore = ignore })
        end
      end
      check("align", { ids = ids, experts = 12, block = 8 })
      check("align", { ids = ids, experts = 12, block = 8, ignore = true })
      check("align", { ids = tensor("i32", { 5, 1 }, function() return -2147483648 end), experts = 3, block = 16 })
      check("align", { ids = tensor("i32", { 0, 2 }, hash), experts = 3, block = 16 }) ]])
  end)

  it("write nothing for what a map has out of range, as if it were elsewhere", function()
    assert.equal("5 5 5 5 5|-1 -1 -1 -1 -1|0;0 1 2 3 5 5 4 5 5|-1 -1 1|9;", run [[
      local nb = require "nibble"
      local function align(ids, map, ignore)
        local out = { nb.cuda.type(), nb.cuda.type(), nb.cuda.type() }
        ids, map = tensor("i32", { 5 }, ids):to "cuda", tensor("i32", { 2 }, map):to "cuda"
        assert(C.nb_device_moe_align(out[1].t, out[2].t, out[3].t, ids.t, ignore == 1 and 1 or 3, 2, map.t, ignore) == 0)
        for i = 1, 3 do out[i] = cuda_moe.words(out[i]:to "cpu") end
        io.write(table.concat(out, "|"), ";")
      end
      align(function() return 0 end, function() return 2147483647 end, 1)
      align(function(i) return i < 4 and 0 or 1 end, function(i) return i == 0 and -7 or 1 end, 0) ]])
  end)

  it("go in groups: rows, weights and offsets", function()
    assert.equal("", run [[
      for _, c in ipairs { { 1, 1, 1 }, { 70, 3, 9 }, { 400, 2, 3 } } do
        local weights = tensor("f32", { c[1], c[2] }, function(i) return i / 8 end)
        check("group", { ids = ids_of(c[1], c[2], c[3]), weights = weights, experts = c[3] })
        check("group", { ids = ids_of(c[1], c[2], c[3] + 2, -1), weights = weights, experts = c[3] })
        check("group", { ids = ids_of(c[1], c[2], c[3]), weights = weights, experts = 2, map =
          tensor("i32", { c[3] }, function(i) return i % 3 - 1 end) })
      end ]])
  end)
end)

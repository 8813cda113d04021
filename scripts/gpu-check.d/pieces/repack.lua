-- Repacks into Marlin's words.
local cuda = require "nibble.cuda"
local marlin = require "nibble.layout.marlin"
local checks = require "checks"
local data = require "data"
local timing = require "timing"

local KINDS = { { "gptq", 4 }, { "gptq", 8 }, { "gptq", 4, perm = true }, { "gptq", 8, perm = true }, { "awq", 4 }, { "awq", 8 },
  { "gptq", 4, a8 = true }, { "gptq", 8, a8 = true }, { "awq", 4, a8 = true }, { "awq", 8, a8 = true } }

local function inputs_of(kind, size, seed, name)
  local order, bits, pf = kind[1], kind[2], 32 / kind[2]
  local e, k, n = size.experts, size.k, size.n
  local shape = order == "awq" and { k, n / pf } or { k / pf, n }
  if e then table.insert(shape, 1, e) end
  return { words = data.random("i32", shape, seed, name), bits = bits, order = order, a8 = kind.a8 or false,
           perm = kind.perm and data.permutations(e, k, seed, name) or nil }
end

-- words: where the repack is done.
local function repack(i, words)
  if i.order == "awq" then return marlin.awq_repack(words, i.bits, i.a8) end
  return marlin.repack(words, i.bits, i.a8, i.perm)
end

local function name_of(kind, size)
  return ("repack %s %d bits%s, %s%dx%d"):format(kind[1], kind[2], kind.perm and " act-order" or kind.a8 and " a8" or "",
    size.experts and size.experts .. " experts of " or "", size.k, size.n)
end

local function correctness(ctx)
  local sizes = ctx.small and { { k = 96, n = 192 }, { experts = 3, k = 64, n = 128 } }
    or { { k = 32, n = 64 }, { k = 224, n = 960 }, { k = 4096, n = 14336 }, { experts = 8, k = 1024, n = 3584 } }
  local cases = {}
  for _, kind in ipairs(KINDS) do
    for _, size in ipairs(sizes) do
      local name = name_of(kind, size)
      cases[#cases + 1] = checks.same {
        name = name,
        inputs = function(c)
          local i = inputs_of(kind, size, c.seed, name)
          i.on_device = assert(cuda.to(i.words, "cuda"))
          return i
        end,
        device = function(i) return repack(i, i.on_device) end,
        cpu = function(i) return repack(i, i.words) end,
      }
    end
  end
  return cases
end

local function benchmarks(ctx)
  local sizes = ctx.small and { { k = 64, n = 128 } }
    or { { k = 4096, n = 14336 }, { k = 8192, n = 28672 }, { experts = 8, k = 4096, n = 14336 } }
  local cases = {}
  for _, kind in ipairs { KINDS[1], KINDS[3], KINDS[5] } do
    for _, size in ipairs(sizes) do
      local name = name_of(kind, size)
      local bytes = (size.experts or 1) * size.k * size.n * kind[2] / 8
      cases[#cases + 1] = timing.case {
        name = name, piece = not kind.perm and "repack" or nil, bytes = 2 * bytes, weight_bytes = bytes,
        eager = kind.perm, -- the order is checked in between
        setup = function(c, copies)
          local list = {}
          local i = inputs_of(kind, size, c.seed, name)
          for copy = 1, copies do
            local words = assert(cuda.to(i.words, "cuda"))
            list[copy] = function() return assert(repack(i, words)) end
          end
          return list
        end,
      }
    end
  end
  return cases
end

return { correctness = correctness, benchmarks = benchmarks }

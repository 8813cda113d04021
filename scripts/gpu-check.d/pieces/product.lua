-- Products with Marlin's weights: against float64 on sampled rows and columns, the same bits in every run. And its words as
-- floats, to the bit, on sampled columns.
local ffi = require "ffi"
local bit = require "bit"
local cuda = require "nibble.cuda"
local marlin = require "nibble.layout.marlin"
local tensor = require "nibble.tensor"
local checks = require "checks"
local data = require "data"
local products = require "products"
local timing = require "timing"

local TYPES = { [4] = { "uint4b8", "uint4" }, [8] = { "uint8b128", "uint8" } }

local function name_of(c)
  return ("product %dx%d %s%s%s%s%s m=%d"):format(c.k, c.n, c.bits == 8 and "8 bits " or "", c.group > 0 and "g" .. c.group or "channel",
    c.zeros and " zeros" or "", c.order and " act-order" or "", (c.bias and " bias" or "") .. (c.dtype == "f16" and " f16" or ""), c.m)
end

-- The weight of a case as GPTQ has it, in the computer's memory: words [k/pf,n], scales [G,n], zeros (words [G,n/pf]), bias, g_idx.
local function weight_of(c, seed)
  local name, groups = name_of(c), c.group > 0 and c.k / c.group or 1
  local w = { words = data.random("i32", { c.k * c.bits / 32, c.n }, seed, name),
              scales = data.scales(c.dtype, { groups, c.n }, seed, name) }
  if c.zeros then w.zeros = data.random("i32", { groups, c.n * c.bits / 32 }, seed, name .. " zeros") end
  if c.bias then w.bias = data.random(c.dtype, { c.n }, seed, name .. " bias") end
  if c.order then
    local order = data.permutations(nil, c.k, seed, name)
    w.g_idx = tensor.new("i32", { c.k })
    for i = 0, c.k - 1 do w.g_idx:ptr()[order:ptr()[i]] = math.floor(i / c.group) end
  end
  return w
end

-- What gemm.marlin takes, on the device: words repacked there.
local function prepared(c, w)
  local m = { type = TYPES[c.bits][c.zeros and 2 or 1], k = c.k, n = c.n, dtype = c.dtype }
  local sorted, perm
  if w.g_idx then sorted, perm = marlin.sort_g_idx(w.g_idx) end
  m.words = assert(marlin.repack(assert(cuda.to(w.words, "cuda")), c.bits, false, perm))
  m.scales = marlin.permute_scales(w.scales, c.k, c.group)
  if w.zeros then m.zeros = marlin.packed_zero_points(w.zeros, c.bits) end
  if w.bias then m.bias = marlin.permute_bias(w.bias) end
  m.sorted_g_idx, m.perm = sorted, perm
  for _, part in ipairs { "scales", "zeros", "bias", "sorted_g_idx", "perm" } do
    if m[part] then m[part] = assert(cuda.to(m[part], "cuda")) end
  end
  return m
end

-- Column `col` of the weight, f64 [k].
local function column(c, w, col)
  local out = ffi.new("double[?]", c.k)
  local pf, mask, words, half = 32 / c.bits, 2 ^ c.bits - 1, w.words:ptr(), 2 ^ (c.bits - 1)
  local current, scale, zero = -1, 0, half
  for k = 0, c.k - 1 do
    local group = w.g_idx and w.g_idx:ptr()[k] or c.group > 0 and math.floor(k / c.group) or 0
    if group ~= current then
      current, scale = group, w.scales:get(group * c.n + col + 1)
      if w.zeros then
        local word = w.zeros:ptr()[group * (c.n / pf) + math.floor(col / pf)]
        zero = bit.band(bit.rshift(word, col % pf * c.bits), mask)
      end
    end
    local word = words[math.floor(k / pf) * c.n + col]
    out[k] = (bit.band(bit.rshift(word, k % pf * c.bits), mask) - zero) * scale
  end
  return out
end

-- The words as floats [k,n]: (code - zero) * scale is exact in f32 and rounded once.
local function floats_case(c)
  local name = name_of(c):gsub("^product", "dequantize marlin words,"):gsub(" m=%d+$", "")
  return { name = name, run = function(ctx)
    local w = weight_of(c, ctx.seed)
    local m = prepared(c, w)
    local found, runs = checks.again(ctx, name, function() return assert(cuda.marlin_dequantize(m, { dtype = c.dtype })) end)
    local expected, seen = tensor.new(c.dtype, { c.k }), tensor.new(c.dtype, { c.k })
    for _, col in ipairs(checks.sample(c.n, 24)) do
      local values = column(c, w, col)
      for k = 0, c.k - 1 do
        expected:set(k + 1, values[k])
        seen:set(k + 1, found:get(k * c.n + col + 1))
      end
      local why = data.difference(seen, expected)
      if why then error(("column %d: %s"):format(col, why), 0) end
    end
    return { elements = c.k * c.n, runs = runs }
  end }
end

local weights = { weight_of = weight_of, prepared = prepared, column = column }

local ROWS = { 1, 2, 3, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 128, 257, 1000, 4096 }

local KINDS = { { bits = 4, group = -1 }, { bits = 4, group = 32 }, { bits = 4, group = 64, zeros = true }, { bits = 8, group = 128 },
  { bits = 8, group = -1, bias = true }, { bits = 8, group = 64, zeros = true }, { bits = 4, group = 128, order = true },
  { bits = 4, group = 32, zeros = true, order = true, bias = true } }

local function correctness(ctx)
  local cases = {}
  local function add(kind, k, n, m, dtype)
    local c = setmetatable({ k = k, n = n, m = m, dtype = dtype }, { __index = kind })
    cases[#cases + 1] = products.correctness(c, name_of(c), weights)
  end
  local plain = { bits = 4, group = 128 }
  local k, n = 4096, 1088
  if ctx.small then k, n = 512, 192 end
  for i, m in ipairs(ctx.small and { 1, 17, 33, 300 } or ROWS) do add(plain, k, n, m, i % 2 == 0 and "f16" or "bf16") end
  for i, kind in ipairs(KINDS) do
    for _, m in ipairs(ctx.small and { 3 } or { 1, 17, 128 }) do add(kind, k, n, m, i % 2 == 0 and "bf16" or "f16") end
    cases[#cases + 1] = floats_case(setmetatable({ k = k, n = n, m = 0, dtype = i % 2 == 0 and "f16" or "bf16" }, { __index = kind }))
  end
  if not ctx.small then
    for _, m in ipairs { 1, 16 } do add(plain, 8192, 28672, m, "bf16") end
  end
  return cases
end

-- Copies of a weight on the device, as gemm.marlin takes them: the last ones asked for stay, for the next m.
local kept = {}
local function copies_of(c, seed, copies)
  local key = table.concat({ c.k, c.n, copies }, " ")
  if kept.key == key then return kept end
  kept = {}
  collectgarbage() collectgarbage()
  kept = products.copies(prepared(c, weight_of(c, seed)), copies)
  kept.key = key
  return kept
end

local function benchmark(k, n, m)
  local c = { k = k, n = n, m = m, bits = 4, group = 128, dtype = "bf16" }
  return products.benchmark(c, name_of(c), "product", k * n / 2 + k / 128 * n * 2, function(ctx, copies)
    return copies_of(setmetatable({ m = 0 }, { __index = c }), ctx.seed, copies)
  end)
end

local function floats_benchmark(k, n)
  local c = { k = k, n = n, m = 0, bits = 4, group = 128, dtype = "bf16" }
  local name, weight_bytes = ("dequantize marlin words, 4 bits to bf16, %dx%d"):format(k, n), k * n / 2 + k / 128 * n * 2
  return timing.case {
    name = name, piece = "dequantize", weight_bytes = weight_bytes, bytes = weight_bytes + 2 * k * n,
    setup = function(ctx, copies)
      local list, w = {}, weight_of(c, ctx.seed)
      for i = 1, copies do
        local m = prepared(c, w)
        list[i] = function() return assert(cuda.marlin_dequantize(m)) end
      end
      return list
    end,
  }
end

local function benchmarks(ctx)
  local cases = { floats_benchmark(ctx.small and 256 or 8192, ctx.small and 128 or 28672) }
  for _, size in ipairs(ctx.small and { { 256, 128 } } or { { 8192, 28672 }, { 4096, 14336 } }) do
    for _, m in ipairs(ctx.small and { 1, 17 } or { 1, 2, 4, 8, 16, 32, 64, 128, 256, 1024, 4096 }) do
      cases[#cases + 1] = benchmark(size[1], size[2], m)
    end
  end
  return cases
end

return setmetatable({ correctness = correctness, benchmarks = benchmarks }, { __index = weights })

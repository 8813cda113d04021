-- Mixtures of experts: the product of all experts against float64 on sampled pairs and columns, the same bits in every run;
-- and the whole layer, of Mixtral's shapes, with activations of 16 and of 8 bits.
local ffi = require "ffi"
local compute = require "nibble.compute"
local cuda = require "nibble.cuda"
local experts = require "nibble.cuda.experts"
local moe = require "nibble.moe"
local tensor = require "nibble.tensor"
local checks = require "checks"
local data = require "data"
local timing = require "timing"

local TYPES = { [4] = { "uint4b8", "uint4" }, [8] = { "uint8b128", "uint8" } }

local function name_of(c)
  return ("experts %d of %dx%d %s%s%s%s top %d T=%d"):format(c.experts, c.k, c.n, c.bits == 8 and "8 bits " or "",
    c.group > 0 and "g" .. c.group or "channel", c.zeros and " zeros" or "",
    (c.order and " act-order" or "") .. (c.dtype == "f16" and " f16" or ""), c.top, c.tokens)
end

-- One tensor [n, ...] of n alike, on the device.
local function stacked(list)
  local first = list[1]
  local shape = first:size()
  table.insert(shape, 1, #list)
  local out = assert(cuda.new("cuda", first:type(), shape))
  for e, t in ipairs(list) do compute.copy(out:rows(e, e), assert(cuda.to(t, "cuda")):reshape(out:rows(e, e):size())) end
  return out
end

-- Top different experts for each token, in turn, so that all of them have some.
local function ids_of(tokens, top, count)
  local ids = tensor.new("i32", { tokens, top })
  for i = 0, tokens - 1 do
    for j = 0, top - 1 do ids:ptr()[i * top + j] = (i * top + j * (1 + i % 3)) % count end
    if top == 2 and ids:ptr()[i * 2] == ids:ptr()[i * 2 + 1] then ids:ptr()[i * 2 + 1] = (ids:ptr()[i * 2] + 1) % count end
  end
  return ids
end

-- ---- correctness ---------------------------------------------------------------------------

local function product_case(product, c)
  local name = name_of(c)
  return { name = name, run = function(ctx)
    local each, m = {}, { type = TYPES[c.bits][c.zeros and 2 or 1], k = c.k, n = c.n, dtype = c.dtype }
    local parts = {}
    for e = 1, c.experts do
      each[e] = product.weight_of(c, ctx.seed + e)
      for part, t in pairs(product.prepared(c, each[e])) do
        if type(t) == "cdata" then
          parts[part] = parts[part] or {}
          parts[part][e] = t
        end
      end
    end
    for part, list in pairs(parts) do m[part] = stacked(list) end
    local ids, x = ids_of(c.tokens, c.top, c.experts), data.random(c.dtype, { c.tokens, c.k }, ctx.seed, name .. " x")
    local there, blocks = assert(cuda.to(x, "cuda")), experts.align(assert(cuda.to(ids, "cuda")), c.experts)
    local y, runs = checks.again(ctx, name, function() return assert(experts.gemm(there, m, blocks)) end)
    local worst = 0
    for e = 0, c.experts - 1 do
      local pairs_of = {}
      for p = 0, c.tokens * c.top - 1 do
        if ids:ptr()[p] == e then pairs_of[#pairs_of + 1] = p end
      end
      local rows = tensor.new(c.dtype, { math.max(#pairs_of, 1), c.n })
      for i, p in ipairs(pairs_of) do
        ffi.copy(ffi.cast("char *", rows.data) + (i - 1) * c.n * 2, ffi.cast("char *", y.data) + p * c.n * 2, c.n * 2)
      end
      local function row(r)
        local out, token = ffi.new("double[?]", c.k), math.floor(pairs_of[r + 1] / c.top)
        for k = 0, c.k - 1 do out[k] = x:get(token * c.k + k + 1) end
        return out
      end
      if #pairs_of > 0 then
        worst = math.max(worst, checks.product { m = #pairs_of, n = c.n, k = c.k, y = rows, dtype = c.dtype, bias = each[e + 1].bias,
          row = row, column = function(col) return product.column(c, each[e + 1], col) end })
      end
    end
    return { runs = runs, error_of_bound = worst }
  end }
end

local KINDS = { { bits = 4, group = 128 }, { bits = 4, group = -1, bias = true }, { bits = 4, group = 64, zeros = true },
  { bits = 8, group = 32 }, { bits = 4, group = 128, order = true } }

local function correctness(ctx)
  local product = dofile(ctx.root .. "/scripts/gpu-check.d/pieces/product.lua")
  local cases = {}
  for i, kind in ipairs(KINDS) do
    for _, tokens in ipairs(ctx.small and { 3 } or { 1, 16, 50, 300 }) do
      cases[#cases + 1] = product_case(product, setmetatable({ experts = ctx.small and 3 or 8, top = 2, tokens = tokens,
        m = tokens, k = ctx.small and 256 or 2048, n = ctx.small and 128 or 1088, dtype = i % 2 == 0 and "f16" or "bf16" },
        { __index = kind }))
    end
  end
  return cases
end

-- ---- the layer -----------------------------------------------------------------------------

-- Stacks of 4-bit words in groups of 128: one expert's random words, as often as there are experts.
local function stack(count, k, n, seed)
  local words = assert(cuda.to(data.random("i32", { k / 16, n * 2 }, seed, "words"), "cuda"))
  local scales = assert(cuda.to(data.scales("bf16", { k / 128, n }, seed, "scales"), "cuda"))
  local list, more = {}, {}
  for e = 1, count do list[e], more[e] = words, scales end
  return { type = "uint4b8", k = k, n = n, dtype = "bf16", words = stacked(list), scales = stacked(more) }
end

-- The stacks asked for last stay, for the next number of tokens.
local kept = {}
local function copies_of(count, hidden, inner, seed, copies)
  local key = table.concat({ count, hidden, inner }, " ")
  if kept.key ~= key then
    kept = { key = key }
    collectgarbage() collectgarbage()
  end
  for i = #kept + 1, copies do
    kept[i] = { w13 = stack(count, hidden, 2 * inner, seed), w2 = stack(count, inner, hidden, seed + 1) }
  end
  return kept
end

local function benchmark(count, hidden, inner, top, tokens, activations)
  local used = math.min(count, tokens * top)
  local one = (hidden * 2 * inner + inner * hidden) * (0.5 + 2 / 128)
  local pairs_ = tokens * top
  return timing.case {
    name = ("MoE layer %d experts, %d to %d, top %d%s, m=%d"):format(count, hidden, inner, top,
      activations and ", " .. activations .. " activations" or "", tokens), piece = "experts", m = tokens,
    n = inner, k = hidden, weight_bytes = used * one,
    bytes = used * one + 2 * (tokens * hidden * 2 + pairs_ * (2 * 2 * inner + 2 * inner + 2 * hidden)),
    flops = 2 * pairs_ * 3 * hidden * inner,
    setup = function(ctx, copies)
      local x = assert(cuda.to(data.random("bf16", { tokens, hidden }, ctx.seed, "x"), "cuda"))
      local ids = assert(cuda.to(ids_of(tokens, top, count), "cuda"))
      local weights = assert(cuda.to(data.scales("f32", { tokens, top }, ctx.seed, "weights"), "cuda"))
      local all, list = copies_of(count, hidden, inner, ctx.seed, copies), {}
      for i = 1, copies do
        local function stack_of(w) return setmetatable({ activations = activations }, { __index = all[i][w] }) end
        local w13, w2 = stack_of "w13", stack_of "w2"
        list[i] = function() return moe.forward(x, { ids = ids, weights = weights, experts = count, w13 = w13, w2 = w2 }) end
      end
      return list
    end,
  }
end

local function benchmarks(ctx)
  local cases = {}
  if ctx.small then return { benchmark(4, 128, 128, 2, 3), benchmark(4, 128, 128, 2, 3, "int8") } end
  for _, activations in ipairs { false, "int8" } do
    for _, tokens in ipairs { 1, 16, 64, 1024, 4096 } do cases[#cases + 1] = benchmark(8, 4096, 14336, 2, tokens, activations or nil) end
  end
  return cases
end

return { correctness = correctness, benchmarks = benchmarks }

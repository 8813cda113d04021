-- The forward pass's operations: rows and elements in the processor's bytes, attention and logits within their bounds.
local act = require "nibble.act"
local cuda = require "nibble.cuda"
local compute = require "nibble.compute"
local dispatch = require "nibble.dispatch"
local nffi = require "nibble.ffi"
local tensor = require "nibble.tensor"
local checks = require "checks"
local data = require "data"
local timing = require "timing"

local nvfp4 = { type = "float", bits = 4, symmetric = true, strategy = "tensor_group", group = 8, dynamic = "local" }
local ROUNDING = { f16 = 2 ^ -11, bf16 = 2 ^ -8, f32 = 2 ^ -24 }

local function wide(t) return (t:type() == "f16" or t:type() == "bf16") and t:cast "f32" or t:clone() end

-- f(tensors) leaves its result in tensors.out, byte for byte the processor's, which works in f32 and rounds once.
local function same_case(name, make, f)
  return checks.same {
    name = name,
    inputs = function(ctx) return make(ctx.seed, name) end,
    device = function(i)
      local there = checks.on_device(i)
      f(there)
      return there.out
    end,
    cpu = function(i)
      local here = {}
      for key, t in pairs(i) do here[key] = wide(t) end
      f(here)
      return here.out:type() == i.out:type() and here.out or here.out:cast(i.out:type())
    end,
  }
end

local function ids_of(m, rows)
  local t = tensor.new("i32", { m })
  for i = 1, m do t:set(i, math.floor((i - 1) * rows / m)) end
  return t
end

local function operations(small)
  local m, d, list = small and 3 or 257, small and 264 or 4096, {}
  for _, dtype in ipairs { "f16", "bf16" } do
    local function random(of, shape, seed, name) return data.random(of, shape, seed, name .. table.concat(shape, "x")) end
    local function add(what, make, f) list[#list + 1] = same_case(("%s of %s, %dx%d"):format(what, dtype, m, d), make, f) end
    add("rmsnorm", function(seed, name)
      return { x = random("f32", { m, d }, seed, name), w = data.scales("f32", { d }, seed, name), out = tensor.new(dtype, { m, d }) }
    end, function(t) compute.rmsnorm(t.out, t.x, t.w, 1e-5) end)
    add("rope", function(seed, name)
      return { out = random(dtype, { m, d }, seed, name), c = random("f32", { m, 4 }, seed, "c"), s = random("f32", { m, 4 }, seed, "s") }
    end, function(t) compute.rope(t.out, t.c, t.s, 8, m) end)
    add("add", function(seed, name)
      return { out = random("f32", { m, d }, seed, name), x = random(dtype, { m, d }, seed, name .. "x") }
    end, function(t) compute.add(t.out, t.x) end)
    add("swiglu", function(seed, name)
      return { out = random(dtype, { m, d }, seed, name), up = random(dtype, { m, d }, seed, name .. "up") }
    end, function(t) compute.swiglu(t.out, t.up) end)
    add("gather", function(seed, name)
      return { out = tensor.new("f32", { m, d }), rows = random(dtype, { 97, d }, seed, name), ids = ids_of(m, 97) }
    end, function(t) compute.gather(t.out, t.rows, t.ids) end)
    add("scatter_add", function(seed, name)
      return { out = random("f32", { 97, d }, seed, name), x = random(dtype, { m, d }, seed, name .. "x"), ids = ids_of(m, 97),
               w = random("f32", { m }, seed, "w") }
    end, function(t) compute.scatter_add(t.out, t.x, t.ids, t.w, dtype) end)
    add("act_fake_quant", function(seed, name)
      return { out = tensor.new(dtype, { m, d }), x = random(dtype, { m, d }, seed, name) }
    end, function(t)
      nffi.must(dispatch.call("act_fake_quant", t.out, t.x, require("ffi").new("nb_act_options", { is_float = 1, bits = 4, symmetric = 1,
        dynamic = 1, scale_dtype = nffi.C.NB_F8_E4M3, dtype = nffi.C.NB_F32, group = 8, global = 300 })))
    end)
    for _, kind in ipairs { "i8", "f8_e4m3" } do
      add("codes " .. kind, function(seed, name)
        return { out = tensor.new(kind, { m, d }), s = tensor.new("f32", { m, 1 }), x = random(dtype, { m, d }, seed, name) }
      end, function(t)
        nffi.must(dispatch.call("act_quantize", t.out, t.s, t.x, require("ffi").new("nb_act_options", { is_float = kind == "i8" and 0 or 1,
          bits = 8, symmetric = 1, dynamic = 1, scale_dtype = nffi.C.NB_F32, dtype = nffi.C.NB_F32, group = -1 })))
      end)
    end
    add("experts' inputs", function(seed, name)
      return { out = tensor.new(dtype, { m, d }), x = random(dtype, { m, d }, seed, name), ids = ids_of(m, 3):reshape { m, 1 },
               scales = tensor.new("f32", { 3 }, { 300, 20, 700 }) }
    end, function(t)
      if tensor.on_device(t.x) then
        t.out = assert(act.quantize_pairs(t.x, nvfp4, { ids = t.ids, experts = 3, scales = t.scales }))
        return
      end
      for i = 1, m do
        assert(act.quantize_dequantize(t.x:rows(i, i), nvfp4, { global = t.scales:get(t.ids:get(i) + 1), out = t.out:rows(i, i) }))
      end
    end)
    add("column squares", function(seed, name)
      return { out = tensor.new("f64", { d }), x = random(dtype, { m, d }, seed, name) }
    end, function(t) nffi.must(dispatch.call("column_squares", t.out, t.x)) end)
  end
  return list
end

-- Attention against the processor's, of the same inputs in f32.
local function attention_case(dtype, o)
  local d, h, g, n, length = o[1], o[2], o[3], o[4], o[5]
  local window = o.sliding and " window " .. o.sliding or ""
  local name = ("attention %s, heads of %d, %d over %d, %d x %d%s"):format(dtype, d, h, g, n, length, window)
  local options = { heads = h, kv_heads = g, length = length, sliding = o.sliding }
  return { name = name, run = function(ctx)
    local function make(heads, what) return data.random(dtype, { n * length, heads * d }, ctx.seed, name .. what) end
    local q, k, v = make(h, "q"), make(g, "k"), make(g, "v")
    local there = checks.on_device { q = q, k = k, v = v }
    local first, runs = checks.again(ctx, name, function()
      return compute.attention(assert(cuda.new("cuda", dtype, q:size())), there.q, there.k, there.v, options)
    end)
    local expected = compute.attention(tensor.new("f32", q:size()), q:cast "f32", k:cast "f32", v:cast "f32", options)
    local a, bound, worst = first:cast "f32", (dtype == "f32" and 4 or 1) * 2 * 2 * ROUNDING[dtype], 0 -- values are below 2
    for i = 0, a:numel() - 1 do
      local share = math.abs(a:ptr()[i] - expected:ptr()[i]) / bound
      if not (share <= 1) then error(("element %d is %.6g, expected %.6g"):format(i, a:ptr()[i], expected:ptr()[i]), 0) end
      worst = math.max(worst, share)
    end
    return { runs = runs, error_of_bound = worst }
  end }
end

local function logits_case(dtype, m, vocab, k)
  local name = ("logits %s, %dx%dx%d"):format(dtype, m, vocab, k)
  return { name = name, run = function(ctx)
    local x, head = data.random(dtype, { m, k }, ctx.seed, name), data.random(dtype, { vocab, k }, ctx.seed, name .. "head")
    local ids = ids_of(m, vocab)
    local there = checks.on_device { x = x, head = head, ids = ids }
    local first, runs = checks.again(ctx, name, function() return (compute.score(there.x, there.head, there.ids)) end)
    local expected, worst = compute.score(x:cast "f32", head, ids), 0
    for i = 1, m do
      local away = math.abs(first:get(i) - expected:get(i))
      if not (away <= 1e-5 * math.max(10, expected:get(i))) then
        error(("token %d: %.9g, expected %.9g"):format(i, first:get(i), expected:get(i)), 0)
      end
      worst = math.max(worst, away)
    end
    return { runs = runs, largest_difference = worst }
  end }
end

local function correctness(ctx)
  local cases = operations(ctx.small)
  if ctx.small then
    cases[#cases + 1] = attention_case("f16", { 64, 2, 1, 1, 70 })
    cases[#cases + 1] = attention_case("f32", { 40, 2, 1, 2, 21 })
    cases[#cases + 1] = logits_case("bf16", 3, 40, 64)
    return cases
  end
  for i, o in ipairs { { 128, 8, 2, 2, 515 }, { 64, 4, 4, 3, 128 }, { 80, 3, 1, 1, 1000 }, { 96, 2, 2, 1, 300, sliding = 64 },
    { 256, 2, 1, 2, 257 }, { 32, 4, 1, 7, 1 }, { 128, 4, 1, 1, 700, sliding = 1 }, { 192, 2, 2, 1, 200 }, { 2, 2, 1, 3, 65 } } do
    cases[#cases + 1] = attention_case(i % 2 == 0 and "f16" or "bf16", o)
  end
  for _, o in ipairs { { 128, 8, 2, 2, 515 }, { 80, 3, 1, 1, 300, sliding = 64 }, { 256, 2, 1, 1, 130 } } do
    cases[#cases + 1] = attention_case("f32", o)
  end
  for _, dtype in ipairs { "f32", "f16", "bf16" } do cases[#cases + 1] = logits_case(dtype, 33, 32000, 512) end
  cases[#cases + 1] = logits_case("bf16", 1030, 9000, 256)
  return cases
end

-- A call on tensors that were there: setup makes them for each copy.
local function benchmark(name, bytes, flops, make, f)
  return timing.case {
    name = name, piece = flops and "attention" or "forward", bytes = bytes, flops = flops,
    setup = function(ctx, copies)
      local list, inputs = {}, make(ctx.seed, name)
      for i = 1, copies do
        local there = checks.on_device(inputs)
        list[i] = function() f(there) end
      end
      return list
    end,
  }
end

local function benchmarks(ctx)
  local m, d, wide_d, cases = 4096, 4096, 11008, {}
  if ctx.small then m, d, wide_d = 4, 256, 512 end
  local function random(dtype, shape, seed, name) return data.random(dtype, shape, seed, name .. dtype .. table.concat(shape, "x")) end
  cases[1] = benchmark(("rmsnorm f32 to bf16, %dx%d"):format(m, d), 6 * m * d, nil, function(seed, name)
    return { x = random("f32", { m, d }, seed, name), w = data.scales("f32", { d }, seed, name), y = tensor.new("bf16", { m, d }) }
  end, function(t) compute.rmsnorm(t.y, t.x, t.w, 1e-5) end)
  cases[2] = benchmark(("add bf16 to f32, %dx%d"):format(m, d), 10 * m * d, nil, function(seed, name)
    return { x = random("bf16", { m, d }, seed, name), y = random("f32", { m, d }, seed, name) }
  end, function(t) compute.add(t.y, t.x) end)
  cases[3] = benchmark(("swiglu bf16, %dx%d"):format(m, wide_d), 6 * m * wide_d, nil, function(seed, name)
    return { x = random("bf16", { m, wide_d }, seed, name), y = random("bf16", { m, wide_d }, seed, name .. "y") }
  end, function(t) compute.swiglu(t.y, t.x) end)
  cases[4] = benchmark(("rope bf16, %dx%d"):format(m, d), 4 * m * d, nil, function(seed, name)
    return { x = random("bf16", { m, d }, seed, name), c = random("f32", { m, 64 }, seed, "c"), s = random("f32", { m, 64 }, seed, "s") }
  end, function(t) compute.rope(t.x, t.c, t.s, 128, m) end)
  cases[5] = benchmark(("column squares bf16, %dx%d"):format(m, d), 2 * m * d, nil, function(seed, name)
    return { x = random("bf16", { m, d }, seed, name), s = tensor.new("f64", { d }) }
  end, function(t) nffi.must(dispatch.call("column_squares", t.s, t.x)) end)
  local length, heads = ctx.small and 64 or 2048, ctx.small and 2 or 32
  for _, kv_heads in ipairs { heads, heads / (ctx.small and 2 or 4) } do
    local size = 128
    local flops = 2 * 4 * heads * size * length * (length + 1) / 2 -- two sequences, half of each square
    cases[#cases + 1] = benchmark(("attention bf16, heads of 128, %d over %d, 2 x %d"):format(heads, kv_heads, length),
      2 * 2 * length * size * 2 * (heads + kv_heads), flops, function(seed, name)
        local function make(h, what) return random("bf16", { 2 * length, h * size }, seed, name .. what) end
        return { q = make(heads, "q"), k = make(kv_heads, "k"), v = make(kv_heads, "v"), out = make(heads, "out") }
      end, function(t)
        compute.attention(t.out, t.q, t.k, t.v, { heads = heads, kv_heads = kv_heads, length = length })
      end)
  end
  return cases
end

return { correctness = correctness, benchmarks = benchmarks }

-- Products with FP8, MXFP8, MXFP4 and NVFP4 weights in Marlin's form: against float64 on sampled rows and columns, the same bits
-- in every run.
local ffi = require "ffi"
local cuda = require "nibble.cuda"
local prepare = require("nibble.methods.marlin_float").prepare
local tensor = require "nibble.tensor"
local data = require "data"
local products = require "products"

local KINDS = { fp8 = { 8, 128 }, mxfp8 = { 8, 32 }, mxfp4 = { 4, 32 }, nvfp4 = { 4, 16 } } -- bits, rows of a group
local TYPE = { [8] = "float8_e4m3fn", [4] = "float4_e2m1f" }
local E2M1 = { [0] = 0, 0.5, 1, 1.5, 2, 3, 4, 6 }
local GLOBAL = 0.25

local function name_of(c)
  return ("product %dx%d %s%s%s m=%d"):format(c.k, c.n, c.kind, c.bias and " bias" or "", c.dtype == "f16" and " f16" or "", c.m)
end

-- A case's weight as a checkpoint has it: weight [n,k] f8_e4m3 or bytes of two fp4, scale [n,G], bias.
local function weight_of(c, seed)
  local name, bits, group = name_of(c), unpack(KINDS[c.kind])
  local w, shape = { bits = bits, group = group }, { c.n, c.k / group }
  -- FP8 codes below 2, so that sums are of one size
  w.bytes = data.random("u8", { c.n, c.k * bits / 8 }, seed, name, bits == 8 and { keep = 0xbfbfbfbf, set = 0 } or nil)
  w.weight = bits == 8 and w.bytes:as("f8_e4m3", { c.n, c.k }) or w.bytes
  if c.kind == "fp8" then w.scale = data.scales(c.dtype, shape, seed, name):cast "f32"
  elseif c.kind == "nvfp4" then w.scale = data.random("u8", shape, seed, name, { keep = 0x0f0f0f0f, set = 0x30303030 }):as("f8_e4m3", shape)
  else w.scale = data.random("u8", shape, seed, name, { keep = 0x03030303, set = 0x7c7c7c7c }) end
  if c.bias then w.bias = data.random(c.dtype, { c.n }, seed, name .. " bias") end
  return w
end

-- What gemm.marlin takes, on the device.
local function prepared(c, w)
  local p = assert(prepare { kind = c.kind, weight = w.weight, scale = w.scale, bias = w.bias, dtype = c.dtype,
    block = c.kind == "fp8" and { 1, w.group } or nil, global = c.kind == "nvfp4" and tensor.new("f32", { 1 }, { GLOBAL }) or nil })
  local m = { type = TYPE[w.bits], k = p.words:size(1) * 16, n = p.words:size(2) * 2 / w.bits, outputs = c.n, dtype = c.dtype,
    global = p.global and p.global:get(1) or nil }
  for _, part in ipairs { "words", "scales", "bias" } do
    if p[part] then m[part] = assert(cuda.to(p[part], "cuda")) end
  end
  return m
end

-- Column `col` of the weight, f64 [k].
local function column(c, w, col)
  local out, bytes = ffi.new("double[?]", c.k), w.bytes:ptr()
  local codes = w.bits == 8 and w.weight:rows(col + 1, col + 1):cast("f32"):ptr()
  for k = 0, c.k - 1 do
    local scale = w.scale:get { col + 1, math.floor(k / w.group) + 1 }
    if w.scale:type() == "u8" then scale = 2 ^ (scale - 127) end
    local value
    if w.bits == 8 then value = codes[k]
    else
      local code = math.floor(bytes[col * c.k / 2 + math.floor(k / 2)] / (k % 2 == 0 and 1 or 16)) % 16
      value = (code < 8 and 1 or -1) * E2M1[code % 8]
    end
    out[k] = value * scale * (c.kind == "nvfp4" and GLOBAL or 1)
  end
  return out
end

local function correctness(ctx)
  local cases, k, n = {}, 4096, 1088
  if ctx.small then k, n = 512, 192 end
  for _, kind in ipairs { "fp8", "mxfp8", "mxfp4", "nvfp4" } do
    for i, m in ipairs(ctx.small and { 3, 17 } or { 1, 16, 17, 64, 128, 300 }) do
      local c = { kind = kind, k = k, n = n, m = m, dtype = i % 2 == 0 and "f16" or "bf16", bias = i % 3 == 0 }
      cases[#cases + 1] = products.correctness(c, name_of(c), { weight_of = weight_of, prepared = prepared, column = column })
    end
  end
  return cases
end

local function benchmark(kind, k, n, m)
  local c = { kind = kind, k = k, n = n, m = m, dtype = "bf16" }
  local bits, group = unpack(KINDS[kind])
  local weight_bytes = k * n * bits / 8 + k / group * n * (kind == "fp8" and 2 or 1)
  return products.benchmark(c, name_of(c), kind, weight_bytes, function(ctx, copies)
    return products.copies(prepared(c, weight_of(c, ctx.seed)), copies)
  end)
end

local function benchmarks(ctx)
  local cases = {}
  local k, n = unpack(ctx.small and { 256, 128 } or { 8192, 28672 })
  for _, m in ipairs(ctx.small and { 1 } or { 1, 16, 64 }) do cases[#cases + 1] = benchmark("nvfp4", k, n, m) end
  for _, kind in ipairs { "mxfp4", "fp8" } do cases[#cases + 1] = benchmark(kind, k, n, 1) end
  return cases
end

return { correctness = correctness, benchmarks = benchmarks }

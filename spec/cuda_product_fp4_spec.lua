-- cuda_product_fp4: NVFP4 activations made on a device, bit for bit, and products of 4-bit floats by the stand-in's cuBLASLt.
local standin = require "spec.support.standin"

local prelude = [[
  local cuda, compute, layout, ffi = nb.cuda, require "nibble.compute", nb.layout, require "ffi"
  local on_device, act = require "spec.support.on_device", require "nibble.act"
  local C = require("nibble.ffi").C
  local seed = 1
  local function random() seed = (seed * 1103515245 + 12345) % 2147483648 return math.floor(seed / 65536) end
  local function values(m, k)
    local t = nb.tensor("f32", { m, k })
    for i = 1, m * k do t:set(i, (random() % 2001 / 1000 - 1) * 2 ^ (random() % 8 - 4)) end
    return t
  end
  local function up(n, to) return math.ceil(n / to) * to end
  local nvfp4 = { type = "float", bits = 4, strategy = "tensor_group", group = 16, dynamic = "local", scale_dtype = "f8_e4m3" }
  -- What codes and swizzled scales stand for.
  local function floats(q, s, global)
    local m, k = q:size(1), q:size(2) * 2
    local codes, out = nb.tensor("u8", { m, k }), nb.tensor("f32", { m, k })
    assert(C.nb_fp4_unpack(codes, q, 0) == 0)
    assert(C.nb_dequantize_float(out, codes, layout.marlin.unswizzle_blockscale(s, m, k / 16), nb.tensor("f32", { 1 }, { global }), 1, 16) == 0)
    return out
  end
]]

local run = standin.with(prelude)
local blackwell = { NB_EMU_SM = 100 }

describe("cuda: fp4 activations", function()
  it("are the processor's, bit for bit, of every dtype, and those of compressed-tensors' arithmetic", function()
    assert.equal("", run [[
      for _, dtype in ipairs { "f32", "bf16", "f16" } do
        for _, size in ipairs { { 1, 16 }, { 3, 80 }, { 130, 64 }, { 5, 1040 }, { 0, 32 } } do
          local m, k = size[1], size[2]
          local x = values(m, k)
          if m > 1 then
            for i = 17, 32 do x:set(i, 0) end
            x:set(2, -0.0) x:set(k + 3, 0 / 0) x:set(2 * k + 1, math.huge) x:set(2 * k + 17, 1e-30)
          end
          local wrong = on_device.same("act_quant_fp4", { on_device.poisoned("u8", { m, k / 2 }),
            on_device.poisoned("f8_e4m3", { up(m, 128), up(k / 16, 4) }) }, x:cast(dtype), 37.5)
          if wrong then print(dtype, m, k, wrong) end
        end
      end
      local x = values(7, 96)
      local q, s = cuda.fp4_activations(x:to "cuda", 12)
      local expected = act.quantize_dequantize(x, nvfp4, { global = 12 })
      print(floats(q:to "cpu", s:to "cpu", 12):equal(expected) and "" or "other numbers")
    ]]:gsub("\n$", ""))
  end)

  it("refuse in the processor's words what they cannot take", function()
    assert.equal("", run [[
      local function try(q, s, x, global) print(on_device.same("act_quant_fp4", { q, s }, x, global)) end
      local function t(dtype, ...) return nb.tensor(dtype, { ... }) end
      local wrong = { on_device.same("act_quant_fp4", { t("u8", 2, 12), t("f8_e4m3", 128, 4) }, t("f32", 2, 24), 1),
        on_device.same("act_quant_fp4", { t("u8", 2, 8), t("f8_e4m3", 128, 4) }, t("f32", 2, 16), 0),
        on_device.same("act_quant_fp4", { t("u8", 2, 8), t("f8_e4m3", 2, 1) }, t("f32", 2, 16), 1),
        on_device.same("act_quant_fp4", { t("u8", 2, 8), t("f8_e4m3", 128, 4) }, t("i32", 2, 16), 1) }
      io.write(table.concat(wrong, "\n")) ]])
  end)
end)

describe("cuda: fp4 product", function()
  it("is that of the numbers", function()
    assert.equal("true true true", run([[
      local function both(m, n, k, dtype, with_bias)
        local x, w = values(m, k), values(n, k)
        local xq, xs = cuda.fp4_activations(x:to "cuda", 3)
        local wq, ws = cuda.fp4_activations(w:to "cuda", 5)
        local bias = with_bias and values(1, n):reshape(n):cast(dtype) or nil
        local expected = compute.gemm(nb.tensor("f32", { m, n }), floats(xq:to "cpu", xs:to "cpu", 3), floats(wq:to "cpu", ws:to "cpu", 5),
          bias and bias:cast "f32")
        local y = assert(cuda.fp4_gemm(cuda.new("cuda", dtype, { m, n }), xq, xs, wq, ws, 1 / 15, bias and bias:to "cuda"))
        local got, worst, most = y:to("cpu"):cast "f32", 0, expected:stats().absmax
        local step = dtype == "f16" and 2 ^ -11 or dtype == "bf16" and 2 ^ -8 or 0
        for i = 1, m * n do worst = math.max(worst, math.abs(got:get(i) - expected:get(i)) / (step * math.abs(expected:get(i)) + 1e-5 * most)) end
        return tostring(worst <= 1 or worst)
      end
      io.write(both(3, 16, 64, "bf16", true), " ", both(130, 136, 160, "f16"), " ", both(1, 8, 32, "f32")) ]], blackwell))
  end)

  local sentences = [[
    local function new(dtype, ...) return cuda.new("cuda", dtype, { ... }) end
    local x, xs, w, ws = new("u8", 2, 32), new("f8_e4m3", 128, 4), new("u8", 16, 32), new("f8_e4m3", 128, 4)
    local function try(...)
      local ok, a, b = pcall(cuda.fp4_gemm, ...)
      print((tostring(ok and b or a):gsub("^%S+:%d+: ", "")))
    end ]]

  it("is refused where there is none: by device and by version", function()
    local code = sentences .. [[ try(new("bf16", 2, 16), x, xs, w, ws, 1) ]]
    assert.equal("cuda:0 is sm_90: cuBLASLt multiplies 4-bit floats on sm_100 and later", (run(code)))
    assert.matches("^cuBLASLt %(.*%) is version 12.6, expected 12.8 or later for 4%-bit floats$",
      (run(code, { NB_EMU_SM = 120, NB_EMU_CUBLASLT = 120600 })))
    assert.matches("there is no cuBLASLt here", (run(code, { NB_EMU_SM = 120, NB_CUBLASLT = "/none" })))
  end)

  it("refuses shapes that cuBLASLt does not take, a sentence each", function()
    assert.equal([[
fp4 gemm: K = 16 and N = 16 of bf16: cuBLASLt takes K in multiples of 32, N of 8, and no bias of f32
fp4 gemm: K = 64 and N = 12 of bf16: cuBLASLt takes K in multiples of 32, N of 8, and no bias of f32
fp4 gemm: K = 64 and N = 16 of f32 with bias: cuBLASLt takes K in multiples of 32, N of 4, and no bias of f32
fp4 gemm: scales of w: expected f8_e4m3 [128x4], found f8_e4m3 [16x4]
fp4 gemm: w: expected u8 [*x32], found u8 [16x64]
fp4_gemm: expected y on a device (t:to "cuda"), found a cdata]], (run(sentences .. [[
      try(new("bf16", 2, 16), new("u8", 2, 8), xs, new("u8", 16, 8), ws, 1)
      try(new("bf16", 2, 12), x, xs, new("u8", 12, 32), ws, 1)
      try(new("f32", 2, 16), x, xs, w, ws, 1, new("f32", 16))
      try(new("bf16", 2, 16), x, xs, w, new("f8_e4m3", 16, 4), 1)
      try(new("bf16", 2, 16), x, xs, new("u8", 16, 64), ws, 1)
      try(nb.tensor("bf16", { 2, 16 }), x, xs, w, ws, 1) ]], blackwell)))
  end)
end)

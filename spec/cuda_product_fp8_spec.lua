-- cuda_product_fp8: products of FP8 codes on a device, against what the processor makes of the codes and their scales,
-- dequantized and multiplied: by nibble's own kernel in every order of threads, and by the stand-in's cuBLASLt.
local standin = require "spec.support.standin"

local prelude = [[
  local cuda, compute, ffi = nb.cuda, require "nibble.compute", require "ffi"
  local emulator = require "spec.support.emulator"
  local C = require("nibble.ffi").C
  local seed = 1
  local function random() seed = (seed * 1103515245 + 12345) % 2147483648 return math.floor(seed / 65536) end
  -- Codes of every kind but NaN; scales of a few octaves, of both signs.
  local function codes(rows, k)
    local t = nb.tensor("f8_e4m3", { rows, k })
    local p = ffi.cast("uint8_t *", t.data)
    for i = 0, t:numel() - 1 do
      local c = random() % 256
      p[i] = c % 128 == 127 and c - 1 or c
    end
    return t
  end
  local function scales(...)
    local t = nb.tensor("f32", { ... })
    for i = 1, t:numel() do t:set(i, (random() % 1000 + 1) * 2 ^ (random() % 5 - 20) * (random() % 4 == 0 and -1 or 1)) end
    return t
  end
  local function values(dtype, n)
    local t = nb.tensor("f32", { n })
    for i = 1, n do t:set(i, random() % 2001 / 1000 - 1) end
    return t:cast(dtype)
  end
  local function c128(n) return math.ceil(n / 128) end
  -- The shapes of scales by kind, and how many rows and columns share one.
  local kinds = {
    tensor = function(rows, k) return scales(1), rows, k end,
    row = function(rows, k) return scales(rows, 1), 1, k end,
    group = function(rows, k) return scales(rows, c128(k)), 1, 128 end,
    block = function(rows, k) return scales(c128(rows), c128(k)), 128, 128 end,
  }
  local function floats(q, s, rows, columns)
    local out = nb.tensor("f32", q:size())
    if s:numel() == 1 then s = s:reshape { 1, 1 } end
    assert(C.nb_dequantize_float(out, q, s, nil, rows, columns) == 0)
    return out
  end
  local function operand(rows, k, kind)
    local q = codes(rows, k)
    local s, r, c = kinds[kind](rows, k)
    return q, s, floats(q, s, r, c)
  end
  -- The greatest difference between device and processor, in units of its bound: k 2^-23 of the magnitudes' sum, and y's
  -- own rounding. o: dtype =, bias =.
  local function both(m, n, k, of_x, of_w, o)
    o = o or {}
    local dtype = o.dtype or "bf16"
    local x, xs, xf = operand(m, k, of_x)
    local w, ws, wf = operand(n, k, of_w)
    local bias = o.bias and values(dtype, n) or nil
    local expected = compute.gemm(nb.tensor("f32", { m, n }), xf, wf, bias and bias:cast "f32")
    for _, t in ipairs { xf, wf } do for i = 0, t:numel() - 1 do t:ptr()[i] = math.abs(t:ptr()[i]) end end
    local size = compute.gemm(nb.tensor("f32", { m, n }), xf, wf)
    local y = nb.tensor(dtype, { m, n })
    ffi.fill(y.data, y:bytes(), 0xff) -- NaN
    y = y:to "cuda"
    assert(cuda.fp8_gemm(y, x:to "cuda", xs:to "cuda", w:to "cuda", ws:to "cuda", bias and bias:to "cuda"))
    assert(cuda.wait())
    local conflicts = emulator.counts().bank_conflicts
    if conflicts > 0 then return conflicts .. " bank conflicts" end
    local got, worst, step = y:to("cpu"):cast "f32", 0, dtype == "f16" and 2 ^ -11 or dtype == "bf16" and 2 ^ -8 or 0
    for i = 0, m * n - 1 do
      local e = expected:ptr()[i]
      local d = math.abs(got:ptr()[i] - e) / (step * math.abs(e) + k * 2 ^ -23 * size:ptr()[i] + 1e-30)
      if d ~= d then return "NaN at " .. i end
      worst = math.max(worst, d)
    end
    return worst
  end
  -- Nothing, or the cases beyond their bound.
  local function all(cases)
    for _, c in ipairs(cases) do
      local worst = both(unpack(c))
      if type(worst) == "string" or worst > 1 then
        print(("%dx%dx%d %s x %s: %s"):format(c[1], c[2], c[3], c[4], c[5], tostring(worst)))
      end
    end
  end
]]

local run = standin.with(prelude)
local own = { NB_CUBLASLT = "/nowhere" } -- nibble's own kernel for all rows

describe("cuda: fp8 product", function()
  it("gives the processor's product for every pair of scales, few rows and many", function()
    assert.equal("", run([[
      all { { 1, 33, 16, "tensor", "tensor" }, { 3, 5, 80, "row", "row", { bias = true, dtype = "f32" } },
        { 8, 130, 272, "group", "block", { bias = true } }, { 9, 40, 144, "tensor", "row", { dtype = "f16", bias = true } },
        { 16, 64, 528, "row", "tensor" }, { 16, 31, 400, "row", "block", { dtype = "f32" } },
        { 2, 131, 304, "group", "row", { dtype = "f16" } }, { 5, 17, 160, "group", "tensor" }, { 11, 129, 256, "tensor", "block" },
        { 17, 40, 176, "row", "row" }, { 33, 37, 336, "group", "block", { bias = true } }, { 65, 33, 64, "row", "tensor" },
        { 31, 20, 1040, "tensor", "tensor", { dtype = "f32", bias = true } } } ]], own))
  end)

  it("does so in every order of threads, over many steps a warp", function()
    assert.equal("", run([[
      emulator.orders(function()
        all { { 2, 33, 16 * 128 * 3 + 32, "row", "row" }, { 13, 40, 8 * 128 * 3 + 80, "group", "block" },
          { 20, 36, 4 * 64 * 4 + 16, "row", "tensor" }, { 1, 4 * 12 * 32, 4 * 128 * 2 + 16, "row", "row" } }
      end) ]], own))
  end)

  it("decodes each code exactly", function()
    -- w is the codes, x picks one of them, both scales are 1: all codes come out, NaN as NaN.
    assert.equal("256", run [[
      local w, x = nb.tensor("f8_e4m3", { 256, 16 }), nb.tensor("f8_e4m3", { 1, 16 })
      local one, wf = nb.tensor("f32", { 1 }):fill(1):to "cuda", nb.tensor("f32", { 256, 16 })
      for i = 0, 255 do ffi.cast("uint8_t *", w.data)[i * 16 + 5] = i end
      ffi.cast("uint8_t *", x.data)[5] = 0x38
      local y = assert(cuda.fp8_gemm(cuda.new("cuda", "f32", { 1, 256 }), x:to "cuda", one, w:to "cuda", one)):to "cpu"
      assert(C.nb_dequantize_float(wf, w, nb.tensor("f32", { 1, 1 }):fill(1), nil, 256, 16) == 0)
      local same = 0
      for i = 1, 256 do
        local a, b = y:get(i), wf:get((i - 1) * 16 + 6)
        if a == b or a ~= a and b ~= b then same = same + 1 end
      end
      io.write(same) ]])
  end)

  it("takes scales of NaN and infinity where they belong", function()
    assert.equal("true true true false true", run [[
      local x, w = codes(2, 256), codes(130, 256)
      local xs, ws = scales(2, 2), scales(2, 2)
      ws:set(4, 0 / 0) -- the last two columns, the second half of k
      xs:set(1, math.huge)
      local y = assert(cuda.fp8_gemm(cuda.new("cuda", "f32", { 2, 130 }), x:to "cuda", xs:to "cuda", w:to "cuda", ws:to "cuda")):to "cpu"
      local function nan(i) local v = y:get(i) return tostring(v ~= v) end
      local v = y:get(1)
      io.write(nan(129), " ", nan(130), " ", nan(259), " ", nan(258), " ", tostring(v ~= v or math.abs(v) == math.huge)) ]])
  end)

  it("is cuBLASLt's for many rows, wherever it has the pair", function()
    local cases = [[
      all { { 20, 48, 272, "tensor", "tensor", { bias = true } }, { 24, 32, 64, "row", "row", { dtype = "f16", bias = true } },
        { 24, 16, 80, "tensor", "row" }, { 24, 16, 80, "row", "tensor", { dtype = "f32" } }, { 20, 136, 400, "group", "block" },
        { 20, 24, 640, "row", "block", { dtype = "f16" } }, { 20, 24, 512, "tensor", "block", { bias = true } } } ]]
    assert.equal("", run(cases))
    -- Every one of them asked the library: it fails and is told.
    for i = 1, 7 do
      assert.matches("cuBLASLt .* fails: beginning a product .* of f8_e4m3", (run(cases, { NB_EMU_FAIL = ("cublasLtMatmul:%d:14"):format(i) })))
    end
  end)

  it("is nibble's own where cuBLASLt hasn't the pair: by version, GPU and shape", function()
    -- None of these asks the library, which would fail.
    local fails = "cublasLtMatmul:1:14"
    local rows, blocks = [[all { { 20, 16, 64, "row", "row" } }]], [[all { { 20, 16, 272, "group", "block" } }]]
    assert.equal("", run(rows .. blocks, { NB_EMU_FAIL = fails, NB_EMU_CUBLASLT = 120800 }))
    assert.equal("", run(rows .. blocks, { NB_EMU_FAIL = fails, NB_EMU_SM = 89 }))
    assert.equal("", run(rows .. blocks, { NB_EMU_FAIL = fails, NB_EMU_SM = 100 }))
    assert.equal("", run([[all { { 20, 16, 64, "tensor", "tensor" } }]], { NB_EMU_FAIL = fails, NB_EMU_SM = 80 }))
    assert.equal("", run([[all { { 20, 20, 64, "tensor", "tensor" }, { 22, 16, 144, "group", "block" }, { 16, 16, 64, "row", "row" },
      { 20, 16, 64, "tensor", "tensor", { dtype = "f32", bias = true } }, { 20, 16, 272, "group", "row" } }]], { NB_EMU_FAIL = fails }))
    -- And it goes on where the library says no.
    for _, status in ipairs { 7, 8, 15 } do
      assert.equal("", run(rows, { NB_EMU_FAIL = "cublasLtMatmulAlgoGetHeuristic:1:" .. status }))
    end
  end)

  it("keeps a graph's scales for it", function()
    assert.equal("true", run [[
      local m, n, k = 20, 16, 400
      local x, w, xs, ws = codes(m, k):to "cuda", codes(n, k):to "cuda", scales(m, 4):to "cuda", scales(1, 4):to "cuda"
      local function product() return assert(cuda.fp8_gemm(cuda.new("cuda", "bf16", { m, n }), x, xs, w, ws)) end
      local plain = product():to "cpu"
      local g, y = assert(cuda.graph(product))
      g()
      io.write(tostring(y:to("cpu"):equal(plain))) ]])
  end)

  it("refuses what it cannot take, a sentence each", function()
    assert.equal([[fp8_gemm: expected w on a device (t:to "cuda"), found a cdata
fp8 gemm: w: f8_e4m3fnuz is the format of other makers' devices, NVIDIA's take f8_e4m3
fp8 gemm: K = 24 is not a multiple of 16
fp8 gemm: w: expected f8_e4m3 [*x16], found f8_e4m3 [3x32]
fp8 gemm: x: expected f8_e4m3 [*x*], found i8 [2x16]
fp8 gemm: scales of x: expected one, [2x1] or [2x1], found f32 [3]
fp8 gemm: scales of w: expected f32, found f16
fp8 gemm: y: expected f32, bf16 or f16, found i32
fp8 gemm: bias: expected bf16 [3], found f32 [3]
]], run [[
      local function new(dtype, ...) return cuda.new("cuda", dtype, { ... }) end
      local one = new("f32", 1)
      local x, w, y = new("f8_e4m3", 2, 16), new("f8_e4m3", 3, 16), new("bf16", 2, 3)
      local function try(...)
        local ok, a, b = pcall(cuda.fp8_gemm, ...)
        print((tostring(ok and b or a):gsub("^%S+:%d+: ", "")))
      end
      try(y, x, one, nb.tensor("f8_e4m3", { 3, 16 }), one)
      try(y, x, one, new("f8_e4m3fnuz", 3, 16), one)
      try(y, new("f8_e4m3", 2, 24), one, new("f8_e4m3", 3, 24), one)
      try(y, x, one, new("f8_e4m3", 3, 32), one)
      try(y, new("i8", 2, 16), one, w, one)
      try(y, x, new("f32", 3), w, one)
      try(y, x, one, w, new("f16", 1))
      try(new("i32", 2, 3), x, one, w, one)
      try(y, x, one, w, one, new("f32", 3)) ]] .. "\n")
  end)

  it("quantizes groups of 128 columns, bit for bit, on the processor as the reference has it", function()
    assert.equal("", run [[
      local on_device = require "spec.support.on_device"
      for _, dtype in ipairs { "f32", "bf16", "f16" } do
        for _, size in ipairs { { 3, 256 }, { 2, 200 }, { 1, 7 }, { 5, 1029 }, { 0, 128 }, { 2, 0 } } do
          local x = nb.tensor("f32", size)
          for i = 1, x:numel() do x:set(i, (random() % 2001 / 1000 - 1) * 2 ^ (random() % 20 - 12)) end
          if x:numel() > 20 then x:set(3, 0 / 0) x:set(7, -0.0) end
          if x:numel() > 300 then for i = 129, 256 do x:set(i, 0) end end
          for i = 1, math.min(x:numel(), 100) do x:set(i, x:get(i) * 1e-5) end -- less than a token's least scale
          local groups = c128(size[2])
          local wrong = on_device.same("act_quant_fp8", { on_device.poisoned("f8_e4m3", size), on_device.poisoned("f32", { size[1], groups }) },
            x:cast(dtype), C.NB_ACT_GROUP)
          if wrong then print(dtype, size[1], size[2], wrong) end
        end
      end
      local x = nb.tensor("f32", { 1, 256 })
      for i = 1, 128 do x:set(i, i - 3) end
      local q, s = nb.layout.marlin.quantize_activations(x, "fp8", { group = 128 })
      local f = require("nibble.act").quantize_dequantize(x, { type = "float", bits = 8, strategy = "group", group = 128, dynamic = true })
      assert(floats(q, s, 1, 128):equal(f))
      assert(s:get(2) > 0 and s:get(2) < 1e-12 and s:get(1) == ffi.new("float[1]", 125 / 448)[0])
      local d = nb.layout.marlin.quantize_activations(x:to "cuda", "fp8", { group = 128 })
      assert(d:to("cpu"):equal(q)) ]])
  end)
end)

describe("cuda: fp8 requantize", function()
  it("gives shards one scale, bit for bit", function()
    assert.equal("", run [[
      local on_device = require "spec.support.on_device"
      local unset = -3.4028234663852886e38
      for _, c in ipairs { { 1, 12, 20, { 0.5, 2, 1 }, { 4, 6, 2 } }, { 3, 8, 64, { 2, 0.5, 1e-3, 1e3, 0.25, 0.25 } }, { 1, 4, 16, { 3 } },
          { 2, 4, 8, { 1, unset, 1, 2 } }, { 1, 8, 260, { 448, 0.7 } }, { 1, 4, 4, { 0 / 0, 1 } }, { 0, 4, 4, {} } } do
        local e, n, k, values, widths = unpack(c)
        local shards = e > 0 and #values / e or 2
        local w, s = nb.tensor("f8_e4m3", { e, n, k }), nb.tensor("f32", { e, shards })
        for i = 0, w:numel() - 1 do ffi.cast("uint8_t *", w.data)[i] = (i * 7 + math.floor(i / 256)) % 256 end
        for i, v in ipairs(values) do s:set(i, v) end
        -- scales lie where the weight does
        local out, max = on_device.poisoned("f8_e4m3", { e, n, k }), on_device.poisoned("f32", { e })
        local p = widths and ffi.new("int64_t[?]", #widths, widths)
        assert(C.nb_fp8_requantize(out, max, w, s, p) == 0)
        local fp8 = require "nibble.methods.fp8"
        local there_out, there_max = on_device.poisoned("f8_e4m3", { e, n, k }):to "cuda", on_device.poisoned("f32", { e }):to "cuda"
        local w2, s2 = w:to "cuda", s:to "cuda"
        assert(C.nb_device_fp8_requantize(there_out.t, there_max.t, w2.t, s2.t, p) == 0, ffi.string(C.nb_error()))
        local same = there_max:to("cpu"):equal(max) or values[1] ~= values[1]
        if e > 0 then same = same and ffi.string(there_out:to("cpu").data, w:bytes()) == ffi.string(out.data, w:bytes()) end
        if not same then print(e, n, k) end
        if e == 1 and not (values[1] ~= values[1]) then
          local q, one = fp8.requantize(w2:reshape { n, k }, s2:reshape { shards }, widths)
          if one ~= max:get(1) or not q:to("cpu"):reshape { 1, n, k }:equal(out) then print("fp8.requantize", n, k) end
        end
      end ]])
  end)

  it("refuses what it cannot take", function()
    assert.equal([[
fp8 requantize: f8_e4m3fnuz is the format of other makers' devices, NVIDIA's take f8_e4m3
fp8 requantize: a shard of 6 bytes is no multiple of 4
fp8 requantize: 9 shards of 1 experts, a launch takes 8 of 65535
fp8 requantize: the shards have 3 rows together, the weight has 4
]], (run [[
      local function new(dtype, ...) return cuda.new("cuda", dtype, { ... }) end
      local function try(w, s, widths)
        local ok, msg = pcall(require("nibble.methods.fp8").requantize, w, s, widths)
        print((tostring(msg):gsub("^%S+:%d+: ", "")))
      end
      try(new("f8_e4m3fnuz", 4, 4), new("f32", 2))
      try(new("f8_e4m3", 4, 3), new("f32", 2))
      try(new("f8_e4m3", 9, 4), new("f32", 9))
      try(new("f8_e4m3", 4, 4), new("f32", 2), { 1, 2 }) ]]) .. "\n")
  end)
end)

-- cuda_blas: products of floats on a device by cuBLASLt, against the processor's. The stand-in driver brings a stand-in
-- cuBLASLt too, which computes, and refuses what is described wrongly.
local standin = require "spec.support.standin"

-- both(m, n, k, …): the greatest difference between device and processor, in units of the bound
-- k·2^-24·Σ|x||w| plus y's own rounding.
local prelude = [[
  local nb = require "nibble"
  local cuda, compute = nb.cuda, require "nibble.compute"
  local seed = 1
  local function random(dtype, shape)
    local t = nb.tensor("f32", shape)
    for i = 0, t:numel() - 1 do
      seed = (seed * 1103515245 + 12345) % 2147483648
      t:ptr()[i] = math.floor(seed / 65536) % 2001 / 1000 - 1
    end
    return t:cast(dtype)
  end
  -- t on the device, as a view that begins 16 bytes late.
  local function late(t)
    local n, by = t:numel(), 16 * t:numel() / t:bytes()
    local flat = nb.tensor(t:type(), { by + n })
    for i = 1, n do flat:set(by + i, t:get(i)) end
    return flat:to("cuda"):rows(by + 1, by + n):reshape(t:size())
  end
  local function both(m, n, k, dtype, out, with_bias, shift)
    local x, w, bias = random(dtype, { m, k }), random(dtype, { n, k }), with_bias and random(out, { n }) or nil
    local expected = compute.gemm(nb.tensor("f32", { m, n }), x:cast "f32", w:cast "f32", bias and bias:cast "f32")
    local y = assert(cuda.new("cuda", out, { m, n }))
    local dx, dbias = x:to "cuda", bias and bias:to "cuda"
    if shift == "x" then dx = late(x) elseif shift == "bias" then dbias = late(bias) end
    assert(cuda.gemm(y, dx, w:to "cuda", dbias))
    local got, worst, step = y:to("cpu"):cast "f32", 0, out == "f16" and 2 ^ -11 or out == "bf16" and 2 ^ -8 or 0
    for i = 0, m * n - 1 do
      local e = expected:ptr()[i]
      worst = math.max(worst, math.abs(got:ptr()[i] - e) / (step * math.abs(e) + k * k * 2 ^ -24 + 1e-9))
    end
    return worst
  end
]]

local run = standin.with(prelude)

describe("cuda: gemm", function()
  it("gives the processor's product, in every dtype, with and without bias, of any sizes", function()
    assert.equal("true", run [[
      local worst = 0
      for _, sizes in ipairs { { 1, 1, 1 }, { 3, 5, 7 }, { 17, 64, 33 }, { 65, 48, 128 } } do
        for _, types in ipairs { { "f32", "f32" }, { "f16", "f16" }, { "f16", "f32" }, { "bf16", "bf16" }, { "bf16", "f32" } } do
          for _, bias in ipairs { false, true } do
            worst = math.max(worst, both(sizes[1], sizes[2], sizes[3], types[1], types[2], bias))
          end
        end
      end
      io.write(worst <= 1 and "true" or worst) ]])
  end)

  it("asks for ways that fit where the tensors begin", function()
    assert.equal("true true true true", run [[
      io.write(tostring(both(4, 8, 16, "f16", "f16", true) <= 1), " ", tostring(both(4, 8, 16, "f16", "f16", true, "x") <= 1), " ",
        tostring(both(4, 8, 16, "f16", "f16", true, "bias") <= 1), " ", tostring(both(4, 8, 16, "f32", "f32", false, "x") <= 1)) ]])
  end)

  it("asks for a way once, and again for another shape", function()
    -- The second question would fail.
    local function asked(second)
      return (run("both(4, 8, 16, 'f16', 'f16') " .. second .. " io.write 'fine'", { NB_EMU_FAIL = "cublasLtMatmulAlgoGetHeuristic:2:15" }))
    end
    assert.equal("fine", asked "both(4, 8, 16, 'f16', 'f16')")
    for _, other in ipairs { "both(5, 8, 16, 'f16', 'f16')", "both(4, 8, 16, 'bf16', 'bf16')", "both(4, 8, 16, 'f16', 'f32')",
        "both(4, 8, 16, 'f16', 'f16', true)", "both(4, 8, 16, 'f16', 'f16', false, 'x')" } do
      assert.matches("cuBLASLt %(build/.*libcuemu.so%) fails: choosing how to make a product %[%dx16%] %[8x16%]%^T of b?f16 into b?f%d+: " ..
        "CUBLAS_STATUS_NOT_SUPPORTED %(15%)", (asked(other):gsub("/[^ )]*/build", "build")))
    end
  end)

  it("runs on the current stream, each with a workspace of its own, and in graphs", function()
    assert.equal("true true true", run [[
      local s, t = cuda.stream(), cuda.stream()
      local x, w = random("f16", { 4, 16 }):to "cuda", random("f16", { 8, 16 }):to "cuda"
      local function product(y) return assert(cuda.gemm(y, x, w)) end
      local function new() return cuda.new("cuda", "f16", { 4, 8 }) end
      local plain, a, b = product(new()), new(), new()
      cuda.wait()
      s:use(product, a)
      t:use(product, b)
      s:wait()
      t:wait()
      plain = plain:to "cpu"
      io.write(tostring(a:to("cpu"):equal(plain) and b:to("cpu"):equal(plain)), " ")
      local g, made = assert(cuda.graph(function() return product(new()) end))
      s, t = nil, nil
      collectgarbage() collectgarbage()
      g()
      io.write(tostring(made:to("cpu"):equal(plain)), " ")
      g, made = nil, nil
      collectgarbage() collectgarbage()
      io.write(tostring(product(new()):to("cpu"):equal(plain))) ]])
  end)

  it("may have nothing to add or to make", function()
    assert.equal("0 0 0.5 0.5 0 ok", run [[
      local function new(...) return cuda.new("cuda", "f16", { ... }) end
      local y, bias = random("f16", { 2, 2 }):to "cuda", nb.tensor("f16", { 2 }):fill(0.5):to "cuda"
      assert(cuda.gemm(y, new(2, 0), new(2, 0)))
      io.write(y:to("cpu"):get(1), " ", y:to("cpu"):get(4), " ")
      assert(cuda.gemm(y, new(2, 0), new(2, 0), bias))
      io.write(y:to("cpu"):get(1), " ", y:to("cpu"):get(4), " ")
      io.write(assert(cuda.gemm(new(0, 2), new(0, 3), new(2, 3))):numel(), " ok") ]])
  end)

  it("refuses in compute.gemm's words what it cannot take", function()
    local out = run([[
      local function new(dtype, ...) return cuda.new("cuda", dtype, { ... }) end
      print(select(2, pcall(cuda.gemm, new("f16", 2, 3), new("f16", 2, 4), new("f16", 3, 5))))
      print(select(2, pcall(cuda.gemm, new("f16", 2, 2), new("f16", 2, 4), new("f16", 3, 4))))
      print(select(2, pcall(cuda.gemm, new("bf16", 2, 3), new("f16", 2, 4), new("f16", 3, 4))))
      print(select(2, pcall(cuda.gemm, new("f32", 2, 3), new("f16", 2, 4), new("f16", 3, 4), new("f16", 3))))
      print(select(2, pcall(cuda.gemm, new("i32", 2, 3), new("i32", 2, 4), new("i32", 3, 4))))
      print(select(2, pcall(cuda.gemm, new("f16", 2, 3), new("f16", 2, 4), new("f32", 3, 4))))
      print(select(2, pcall(cuda.gemm, new("f16", 2, 3), new("f16", 2, 4), cuda.new("cuda:1", "f16", { 3, 4 }))))
      print(select(2, pcall(require("nibble.ffi").must, require("nibble.ffi").C.nb_device_gemm(new("f16", 2, 3).t,
        nb.tensor("f16", { 2, 4 }), new("f16", 3, 4).t, nil))))
      local bytes = new("u8", 100)
      print(select(2, pcall(cuda.gemm, new("f16", 2, 3), bytes:rows(2, 17):as("f16", { 2, 4 }), new("f16", 3, 4))))
      print(select(2, pcall(cuda.gemm, nb.tensor("f16", { 2, 3 }), new("f16", 2, 4), new("f16", 3, 4))))
      print(select(2, pcall(cuda.gemm, new("f16", 2, 3), new("f16", 2, 4), new("f16", 3, 4), 7)))
 ]], { NB_EMU_DEVICES = 2 })
    local lines = {}
    for line in out:gmatch "[^\n]+" do lines[#lines + 1] = line end
    for i, says in ipairs { "gemm: w: expected f16 %[%*x4%], found f16 %[3x5%]", "gemm: y: expected f16 %[2x3%], found f16 %[2x2%]",
      "gemm: y: expected f16 %[2x3%], found bf16 %[2x3%]", "gemm: bias: expected f32 %[3%], found f16 %[3%]",
      "gemm: x: expected f32, bf16 or f16, found i32", "gemm: w: expected f16 %[%*x4%], found f32 %[3x4%]",
      "gemm: w: f16 %[3x4%] lies on cuda:1, the other operand on cuda:0",
      "gemm: x: f16 %[2x4%] lies in the computer's memory", "gemm: x: f16 %[2x4%] begins 1 bytes past a multiple of 16",
      'gemm: expected y on a device %(t:to "cuda"%)', 'gemm: expected bias on a device %(t:to "cuda"%)' } do
      assert.matches(says, lines[i])
    end
  end)
end)

describe("cuda: cuBLASLt", function()
  local product = [[
    local function new(...) return cuda.new("cuda", "f16", { ... }) end
    print(cuda.gemm(new(2, 3), new(2, 4), new(3, 4)))
    print(cuda.cublaslt()) ]]

  it("that isn't here, or is none, is told in one sentence, and by doctor", function()
    local sentence = "there is no cuBLASLt here: /none/lib.so: [^\n]*No such file[^\n]*; install NVIDIA's CUDA libraries, or let NB_CUBLASLT " ..
      "name libcublasLt.so"
    assert.matches("^nil\t" .. sentence .. "\teunsupported\nnil\t" .. sentence .. "\teunsupported$",
      (run(product, { NB_CUBLASLT = "/none/lib.so" })))
    assert.matches("^nil\tlibm.so.6 is no cuBLASLt that nibble knows: it has no cublasLtCreate\teunsupported\n",
      (run(product, { NB_CUBLASLT = "libm.so.6" })))
    local doctor = "io.write(nb.doctor.text(nb.doctor.examine()))"
    assert.matches("\ncuBLASLt +no: " .. sentence .. "; for products of many rows", (run(doctor, { NB_CUBLASLT = "/none/lib.so" })))
    assert.matches("\ncuBLASLt +yes, [^\n]*libcuemu.so", (run(doctor)))
    assert.matches("^nil\tthere is no CUDA driver here: [^\n]*\teunsupported$", (run("print(cuda.cublaslt())", { NB_CUDA_DRIVER = "/none" })))
  end)

  it("that fails is named with what was being done, and the session goes on", function()
    local function why(call, code) return (run(product, { NB_EMU_FAIL = ("%s:1:%d"):format(call, code) })) end
    assert.matches("^nil\tcuda:0: cuBLASLt %(.*%) fails: starting it: CUBLAS_STATUS_NOT_INITIALIZED %(1%)\teio\n", why("cublasLtCreate", 1))
    assert.matches("fails: describing a product %[2x4%] %[3x4%]%^T of f16 into f16: CUBLAS_STATUS_ALLOC_FAILED %(3%)\teio\n",
      why("cublasLtMatrixLayoutCreate", 3))
    assert.matches("fails: beginning a product .*: CUBLAS_STATUS_EXECUTION_FAILED %(13%)\teio\n", why("cublasLtMatmul", 13))
    assert.matches("fails: beginning a product .*: CUBLAS_STATUS_an unknown status %(99%)\teio\n", why("cublasLtMatmul", 99))
    assert.equal("true", run("io.write(tostring(both(4, 8, 16, 'f16', 'f16') <= 1))", { NB_EMU_MEMORY = 500000 })) -- no workspace
    assert.matches("^nil\tcuda:0: asking for 33554432 bytes: an unknown error %(46%)", (run(product, { NB_EMU_FAIL = "cuMemAlloc_v2:4:46" })))
  end)

  it("in which a kernel fails loses the device", function()
    assert.matches("^nil\tcuda:0 is lost: kernel of cuBLASLt failed: CUDA_ERROR_ILLEGAL_ADDRESS %(700%), [^\n]*\teio\nfalse\n$", (run([[
      local function new(...) return cuda.new("cuda", "f16", { ... }) end
      cuda.gemm(new(2, 3), new(2, 4), new(3, 4))
      print(cuda.wait())
      print((cuda.available())) ]] .. "", { NB_EMU_FAIL = "cuCtxSynchronize:1:700" })) .. "\n")
  end)
end)

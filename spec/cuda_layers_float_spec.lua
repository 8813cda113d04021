-- cuda_layers_float: dense layers of FP8 and 4-bit floats on a CUDA device whose inputs are quantized too: what the processor makes
-- of the same numbers, NaN in the input, dtypes of y; below SM 100; and ranks of tensor parallelism.
local standin = require "spec.support.standin"

local prelude = [[
  local act, layer, linear = require "nibble.act", require "nibble.methods.layer", require "nibble.methods.linear"
  local formats, compute, presets = nb.formats, nb.compute, require "nibble.scheme_presets"
  local seed = 3
  local function random() seed = (seed * 1103515245 + 12345) % 2147483648 return math.floor(seed / 65536) / 32768 end
  local function values(dtype, shape, size)
    local t = nb.tensor("f32", shape)
    for i = 1, t:numel() do t:set(i, (random() - 0.5) * (size or 1)) end
    return t:cast(dtype)
  end
  local number = function(v) return nb.tensor("f32", { 1 }, { v }) end
  -- A random weight under a scheme, with the numbers of its input.
  local function weight(name, n, k, changes)
    local q = assert(values("f32", { n, k }):quantize { scheme = name, scale_dtype = name:match "^FP8" and "bf16" or nil })
    local s = {}
    for field, value in pairs(q.scheme) do s[field] = value end
    for field, value in pairs(changes or {}) do s[field] = value or nil end
    q.scheme = s
    q.input_scale, q.input_global = number(0.01), number(500)
    return q
  end
  -- The checkpoint of these tests: modules by name.
  local modules = {}
  formats.quantized = function(_, name) return modules[name] or error(name) end
  local function made(method_name, q, o)
    local method = assert(require("nibble.methods." .. method_name).new({ scheme = q.scheme, format = "compressed-tensors" }, { on = "cuda" }))
    local described = { name = "l", dtype = "bf16", k = q.k, n = q.n }
    for key, value in pairs(o or {}) do described[key] = value end
    local L = layer.new(described)
    local ok, msg = method:create(L)
    if not ok then return nil, msg end
    if o and o.bias then L:load("bias", o.bias_values) end
    modules.l = modules.l or q
    ok, msg = method:read(L)
    if not ok then return nil, msg end
    ok, msg = method:process(L)
    if not ok then return nil, msg end
    return method, L
  end
  local function input(q, x)
    local a = q.scheme.activations
    if not a then return x:cast "f32" end
    return assert(act.quantize_dequantize(x:cast "f32", a, { scale = q.input_scale, global = q.input_global }))
  end
  -- What the processor makes of x, f32, and the bound of its magnitudes' sums.
  local function expected(q, x, bias)
    local w, xf = q:dequantize "f32", input(q, x)
    local y, most = nb.tensor("f32", { x:size(1), q.n }), nb.tensor("f32", { x:size(1), q.n })
    compute.gemm(y, xf, w, bias)
    compute.gemm(most, xf:map(math.abs), w:map(math.abs), bias and bias:map(math.abs))
    return y, most
  end
  local units = { f16 = 2 ^ -11, bf16 = 2 ^ -8, f32 = 2 ^ -18 }
  -- "right", or how many roundings of the dtype y is off by at most, where it should be no more than `most`.
  local function judged(y, want, sums, dtype, roundings)
    local worst = 0
    for i = 1, y:numel() do
      local a, b = y:get(i), want:get(i)
      local off = a ~= a and b ~= b and 0 or math.abs(a - b) / (sums:get(i) * units[dtype] + 1e-30)
      if not (off <= roundings) then worst = math.max(worst, off == off and off or math.huge) end
    end
    return worst == 0 and "right" or ("off by %g of %s"):format(worst, dtype)
  end
]]
local run = standin.with(prelude)

describe("dense layers of floats with quantized inputs", function()
  it("CTM-FP8-01: FP8 by tensor, channel, token and block: y has x's dtype, with a bias, wherever x lies", function()
    assert.equal(("right "):rep(24), (run [[
      local token = { type = "float", bits = 8, symmetric = true, strategy = "token", dynamic = true }
      for _, case in ipairs { { "FP8" }, { "FP8_DYNAMIC" }, { "FP8_BLOCK" }, { "FP8", { activations = token } } } do
        local q, bias = weight(case[1], 128, 256, case[2]), values("bf16", { 128 }, 2)
        modules.l = q
        local m, L = made("fp8_cuda", q, { bias = true, bias_values = bias })
        assert(m, L)
        for _, dtype in ipairs { "f32", "f16", "bf16" } do
          local x = values(dtype, { 3, 256 }, 2)
          local want, sums = expected(q, x, bias:cast "f32")
          local y, there = assert(m:apply(L, x)), assert(m:apply(L, x:to "cuda"))
          io.write(y:type() == dtype and judged(y, want, sums, dtype, 1) or y:type(), " ",
            there:where() == "cuda:0" and there:type() == dtype and there:to("cpu"):equal(y) and "right" or tostring(there), " ")
        end
      end ]]))
  end)

  it("CTM-NVFP4-13: NVFP4 on tensor cores that have it: y has x's dtype, also of f32 with a bias, which is added in bf16", function()
    assert.equal(("right "):rep(12), standin.run(prelude .. [[
      for _, with in ipairs { false, true } do
        local q, bias = weight("NVFP4", 64, 128), with and values("bf16", { 64 }, 2) or nil
        modules.l = q
        local m, L = made("nvfp4_cuda", q, { bias = with, bias_values = bias })
        assert(m, L)
        for _, dtype in ipairs { "f32", "f16", "bf16" } do
          local x = values(dtype, { 5, 128 }, 2)
          local want, sums = expected(q, x, bias and bias:cast "f32")
          local y, there = assert(m:apply(L, x)), assert(m:apply(L, x:to "cuda"))
          io.write(y:type() == dtype and judged(y, want, sums, with and dtype == "f32" and "bf16" or dtype, 1) or y:type(), " ",
            there:where() == "cuda:0" and there:type() == dtype and there:to("cpu"):equal(y) and "right" or tostring(there), " ")
        end
      end ]], { NB_EMU_SM = 100 }))
  end)

  it("NaN and infinity in the input are NaN in y wherever the processor's is", function()
    local code = [[
      local function check(method, name, changes)
        local q = weight(name, 128, 256, changes)
        modules.l = q
        local m, L = made(method, q)
        assert(m, L)
        for _, odd in ipairs { 0 / 0, 1 / 0 } do
          local x = values("bf16", { 3, 256 }, 2)
          x:set({ 2, 131 }, odd)
          local want, y = expected(q, x), assert(m:apply(L, x))
          local same = true
          for i = 1, y:numel() do same = same and (y:get(i) ~= y:get(i)) == (want:get(i) ~= want:get(i)) end
          io.write(same and "right " or name .. " wrong ")
        end
      end ]]
    assert.equal(("right "):rep(14), run(code .. [[
      local token = { type = "float", bits = 8, symmetric = true, strategy = "token", dynamic = true }
      local tensor = { type = "float", bits = 8, symmetric = true, strategy = "tensor", dynamic = true }
      check("fp8_cuda", "FP8") check("fp8_cuda", "FP8_DYNAMIC") check("fp8_cuda", "FP8_BLOCK") check("fp8_cuda", "FP8", { activations = token })
      check("fp8_cuda", "FP8", { activations = tensor })
      check("marlin_float_cuda", "NVFP4") check("marlin_float_cuda", "MXFP8") ]]))
    assert.equal(("right "):rep(2), standin.run(prelude .. code .. [[ check("nvfp4_cuda", "NVFP4") ]], { NB_EMU_SM = 100 }))
  end)
end)

describe("4-bit and MX inputs where no product takes them", function()
  it("are taken for what their codes stand for, in the weight-only product", function()
    assert.equal(("right "):rep(16), (run [[
      local fp8 = { type = "float", bits = 8, symmetric = true, strategy = "token", dynamic = true }
      for _, case in ipairs { { "NVFP4" }, { "MXFP4" }, { "MXFP8" }, { "MXFP4", { activations = fp8 } } } do
        for _, dtype in ipairs { "f16", "bf16" } do
          local q, bias = weight(case[1], 72, 160, case[2]), values(dtype, { 72 }, 2)
          modules.l = q
          local m, L = made("marlin_float_cuda", q, { dtype = dtype, bias = true, bias_values = bias })
          assert(m, L)
          local x = values(dtype, { 2, 3, 160 }, 2)
          local want, sums = expected(q, x:reshape(6, 160), bias:cast "f32")
          local y, there = assert(m:apply(L, x)), assert(m:apply(L, x:to "cuda"))
          -- inputs are rounded once more, as y is
          io.write(y:size(2) == 3 and judged(y:reshape(6, 72), want, sums, dtype, 2) or "shape", " ",
            there:where() == "cuda:0" and there:to("cpu"):equal(y) and "right" or tostring(there), " ")
        end
      end ]]))
  end)

  it("is what the oracle names below SM 100, and says why", function()
    local out = run [[
      local function ask(name, o)
        local s = presets.get(name)
        local q = { consumer = "nibble", kind = "linear", device = "sm_90", weight = s, k = 256, n = 128, dtype = "bf16", packages = { cublaslt = true } }
        for key, value in pairs(o or {}) do q[key] = value end
        local found, msg = nb.backends.select(q, { change = false })
        print(found and table.concat(nb.backends.text(found), " | ") or msg)
      end
      ask "NVFP4" ask("NVFP4", { device = "sm_100" }) ask "NVFP4A16" ask "FP8" ask "MXFP8"
      ask("NVFP4", { kind = "moe", hidden = 128, intermediate = 128, experts = 4, top = 2 })
      ask("MXFP4", { kind = "moe", hidden = 128, intermediate = 128, experts = 4, top = 2 }) ]]
    local want, i = {
      "marlin_float_cuda %(inputs rounded to their codes%).*no  nvfp4_cuda +needs SM 100 or above, found SM 90.*note: no product here takes such inputs",
      ": nvfp4_cuda, ", ": marlin_float_cuda, .*note: what the tensor cores", ": fp8_cuda, ",
      ": marlin_float_cuda %(inputs rounded to their codes%)", ": ct_nvfp4_moe.*note: no product here takes such inputs",
      ": marlin_float_moe_cuda %(inputs rounded to their codes%).*note: no product here takes such inputs",
    }, 0
    for line in out:gmatch "[^\n]+" do
      i = i + 1
      assert.matches(want[i], line)
    end
    assert.equal(#want, i)
    assert.equal("cuda:0 is sm_90: cuBLASLt multiplies 4-bit floats on sm_100 and later", (run [[
      print((select(2, require("nibble.methods.nvfp4_cuda").new({ scheme = presets.get "NVFP4" }, { on = "cuda" })))) ]]))
  end)
end)

-- cuda_layers_float: dense layers of FP8 and 4-bit floats on a CUDA device whose inputs are quantized too: what the processor makes
-- of the same numbers, NaN in the input, dtypes of y; below SM 100; and ranks of tensor parallelism.
local standin = require "spec.support.standin"

local prelude = [[
  local float, presets = require "spec.support.float_layers", require "nibble.scheme_presets"
  local values, weight, made, expected, judged, modules = float.values, float.weight, float.made, float.expected, float.judged, float.modules
  local number = float.number
]]
local run = standin.with(prelude)

describe("dense layers of floats with quantized inputs", function()
  it("CTM-FP8-01: FP8 by tensor, channel, token and block: y has x's dtype, with a bias, wherever x lies", function()
    assert.equal(("right "):rep(24), (run [[
      local token = { type = "float", bits = 8, symmetric = true, strategy = "token", dynamic = true }
      for _, case in ipairs { { "FP8" }, { "FP8_DYNAMIC" }, { "FP8_BLOCK" }, { "FP8", { activations = token } } } do
        local q, bias = weight(case[1], 128, 256, case[2]), values("bf16", { 128 }, 2)
        local m, L = made("fp8_cuda", q, { bias_values = bias })
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
        local m, L = made("nvfp4_cuda", q, { bias_values = bias })
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
            local m, L = made("marlin_float_cuda", q, { dtype = dtype, bias_values = bias })
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
      ask("MXFP4", { kind = "moe", hidden = 128, intermediate = 128, experts = 4, top = 2 })
      local modelopt = presets.get "NVFP4"
      modelopt.format = "modelopt"
      ask("NVFP4", { weight = modelopt, kind = "moe", hidden = 128, intermediate = 128, experts = 4, top = 2 }) ]]
    standin.each_line(out, {
      "marlin_float_cuda %(inputs rounded to their codes%).*no  nvfp4_cuda +needs SM 100 or above, found SM 90.*note: no product here takes such inputs",
      ": nvfp4_cuda, ", ": marlin_float_cuda, .*note: what the tensor cores", ": fp8_cuda, ",
      ": marlin_float_cuda %(inputs rounded to their codes%)", ": ct_nvfp4_moe.*note: no product here takes such inputs",
      ": marlin_float_moe_cuda %(inputs rounded to their codes%).*note: no product here takes such inputs",
      ": marlin_float_moe_cuda .*ct_nvfp4_moe +takes the layout compressed%-tensors, found modelopt",
    })
    assert.equal("cuda:0 is sm_90: cuBLASLt multiplies 4-bit floats on sm_100 and later", (run [[
      print((select(2, require("nibble.methods.nvfp4_cuda").new({ scheme = presets.get "NVFP4" }, { on = "cuda" })))) ]]))
  end)
end)

describe("ranks of layers of floats, one after the other on one device,", function()
  -- sharded(method, q, {parallel, tp, modules and outputs of parts, dtype, bias}) -> the whole's y, the ranks' together
  local sharded = [[
    local layers = require "nibble.methods.layer"
    local function whole_and_ranks(method, q, o)
      local x = values("bf16", { 3, q.k }, 2)
      local function all(tp)
        local sum = nb.tensor("f32", { 3, o.n })
        for rank = 0, tp - 1 do
          local m, L = made(method, q, setmetatable({ n = o.n, tp = tp, rank = rank, parallel = tp > 1 and o.parallel or nil,
            outputs = (tp > 1 or o.modules) and o.outputs or nil, modules = o.modules, bias_values = o.bias_values }, nil))
          if not m then return nil, L end
          local here = x
          if L.k < q.k then
            here = nb.tensor("bf16", { 3, L.k })
            layers.block(here, 0, x, rank * L.k, L.k, 1)
          end
          local y = assert(m:apply(L, here)):cast "f32"
          if o.parallel == "row" then nb.compute.add(sum, y)
          else
            -- each part's columns of this rank
            local from, to = 0, 0
            for i, n in ipairs(L.parts) do
              layers.block(sum, to + rank * (tp > 1 and n or 0), y, from, n, 1)
              from, to = from + n, to + L.outputs[i]
            end
          end
        end
        return sum
      end
      return all(1), all(o.tp)
    end
    local function same(method, name, o, changes)
      o.n = o.n or 256
      local q = weight(name, o.n, o.k or 256, changes)
      if o.parts then -- in modules of their own
        o.outputs, o.modules = o.parts, {}
        for i, n in ipairs(o.parts) do
          local part = weight(name, n, o.k or 256, changes)
          if part.global then part.global = q.global end
          modules["p" .. i], o.modules[i] = part, "p" .. i
        end
      end
      local whole, ranks = whole_and_ranks(method, q, o)
      if not whole or not ranks then return "refused" end
      local off = nb.compare(whole, ranks).max_abs / (2 ^ -8 * o.tp * whole:stats().absmax)
      return off <= 1 and "right" or method .. " " .. name .. " is off by " .. off
    end ]]
  local row, column = 'parallel = "row", tp = 2', 'parallel = "column", tp = 2'

  it("MRL-59, CTM-FP8-07: sum to the whole layer along K, and stand side by side along N, parts of a merged one too", function()
    local cases = {}
    local function add(text) cases[#cases + 1] = text end
    local group = [[{ activations = { type = "float", bits = 8, symmetric = true, strategy = "group", group = 128, dynamic = true } }]]
    add([["fp8_cuda", "FP8", { %s }]])
    add([["fp8_cuda", "FP8_BLOCK", { %s }]])
    add([["marlin_float_cuda", "FP8A16", { %s }]])
    add([["marlin_float_cuda", "FP8_BLOCK", { %s }, ]] .. group)
    for _, name in ipairs { "MXFP8A16", "MXFP4A16", "MXFP4", "NVFP4A16", "NVFP4" } do add(([["marlin_float_cuda", %q]]):format(name) .. ", { %s }") end
    add([["dequantize_cuda", "FP8A16", { %s }]])
    add([["dequantize_cuda", "NVFP4A16", { %s }]])
    add([["dequantize_cuda", "W4A16", { %s }]])
    local code = {}
    for _, case in ipairs(cases) do
      for _, way in ipairs { row, column, column .. ", parts = { 128, 256 }, n = 384", column .. ", outputs = { 128, 256 }, n = 384" } do
        if not (case:match "_BLOCK" and way:match "384") then code[#code + 1] = "io.write(same(" .. case:format(way) .. "), ' ')" end
      end
    end
    assert.equal(("right "):rep(#code), (run(sharded .. table.concat(code, "\n"))))
    -- by token on each rank: along N only is it the whole's
    assert.equal("right right ", (run(sharded .. ([[
      io.write(same("fp8_cuda", "FP8_DYNAMIC", { %s }), " ", same("fp8_cuda", "FP8_DYNAMIC", { %s, parts = { 128, 256 }, n = 384 }), " ") ]]):format(
      column, column))))
    assert.equal("right right ", (standin.run(prelude .. sharded .. ([[
      io.write(same("nvfp4_cuda", "NVFP4", { %s }), " ", same("nvfp4_cuda", "NVFP4", { %s, parts = { 128, 256 }, n = 384 }), " ") ]]):format(
      row, column), { NB_EMU_SM = 100 })))
  end)

  it("by token, along K, each rank quantizes what it sees; the bias is added once", function()
    assert.equal("right", (run [[
      local q, x, bias = weight("FP8_DYNAMIC", 128, 256), values("bf16", { 3, 256 }, 2), values("bf16", { 128 }, 2)
      local sum, want, most = nb.tensor("f32", { 3, 128 }), nb.tensor("f32", { 3, 128 }), nb.tensor("f32", { 3, 128 })
      for rank = 0, 1 do
        local m, L = made("fp8_cuda", q, { tp = 2, rank = rank, parallel = "row", bias_values = bias })
        assert(m, L)
        local here = nb.tensor("bf16", { 3, 128 })
        require("nibble.methods.layer").block(here, 0, x, rank * 128, 128, 1)
        nb.compute.add(sum, assert(m:apply(L, here)):cast "f32")
        local a, b = expected(q:columns(rank * 128 + 1, rank * 128 + 128), here, rank == 0 and bias:cast "f32" or nil)
        nb.compute.add(want, a) nb.compute.add(most, b)
      end
      print(judged(sum, want, most, "bf16", 1)) ]]))
  end)

  it("what a cut would tear apart, and parts that don't go together, are refused in a sentence each", function()
    local out = run [[
      local function says(method, q, o) print(select(2, made(method, q, o))) end
      says("fp8_cuda", weight("FP8_BLOCK", 256, 192), { tp = 2, parallel = "row" })
      says("fp8_cuda", weight("FP8_BLOCK", 192, 256), { tp = 2, parallel = "column" })
      says("marlin_float_cuda", weight("MXFP4A16", 64, 96), { tp = 2, parallel = "row" })
      says("dequantize_cuda", weight("W4A16", 64, 384), { tp = 2, parallel = "row" })
      modules.a, modules.b = weight("NVFP4A16", 64, 64), weight("NVFP4A16", 64, 64)
      modules.b.global = number(3)
      says("marlin_float_cuda", modules.a, { outputs = { 64, 64 }, modules = { "a", "b" } })
      modules.b = weight("FP8A16", 64, 64)
      says("marlin_float_cuda", modules.a, { outputs = { 64, 64 }, modules = { "a", "b" } })
      says("marlin_float_cuda", modules.a, { outputs = { 64, 32 }, modules = { "a", "b" } })
      print(select(2, pcall(modules.a.columns, modules.a, 9, 64))) ]]
    standin.each_line(out, { "layer l: 128 columns share a scale, and K = 96 of this rank is no multiple of them",
      "layer l: 128 rows share scales, and the 96 outputs of this rank's part 1 are no multiple of them",
      "layer l: 32 columns share a scale, and K = 48 of this rank is no multiple of them",
      "layer l: 128 columns share a scale, and K = 192 of this rank is no multiple of them",
      "layer l: parts 1 and 2 of the weight have another global each", "layer l: part 2 of the weight is 64 columns of FP8",
      "layer l: b is [64x64], expected [32x64]", "columns 9..64: 16 of them share a scale; begin at 1 + a multiple of that and end on one" }, true)
  end)
end)

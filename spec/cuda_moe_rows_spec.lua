-- A mixture's rows on a device: activations, sums over a token's experts, batches: kernels/moe_act.cu and moe_rows.cu in every order
-- of threads, bit for bit what is made in the computer's memory.
local standin = require "spec.support.standin"

local run = standin.with [[
  local cuda_moe, C = require 'spec.support.cuda_moe', require('nibble.ffi').C
  local hash, tensor, moe = cuda_moe.hash, cuda_moe.tensor, nb.moe
  local function any(i) return hash(i, 30000) / 1500 - 10 end
  local nan, inf = 0 / 0, 1 / 0
  local function edges(i) return ({ nan, inf, -inf, 0, -0.0, 300, -300, 7, -7, 1e-42, -1e-6, 60000, 3e38 })[hash(i * 11, 17) + 1] or any(i) end
  local function ids_of(rows, top, experts, from) return tensor("i32", { rows, top }, function(i) return hash(i, experts) + (from or 0) end) end
  local function check(f, o) local wrong = cuda_moe[f](o) if wrong then print(wrong) end end
]]

describe("an activation on a device", function()
  it("is the CPU's to the bit, every kind and dtype: whole eights and odd widths", function()
    assert.equal("", run [[
      for kind = 0, C.NB_MOE_KINDS - 1 do
        for _, dtype in ipairs { "f32", "f16", "bf16" } do
          for _, c in ipairs { { 3, 64 }, { 2, 5 }, { 1, 1 } } do
            check("activation", { kind = kind, rows = c[1], n = c[2], dtype = dtype, value = any, limit = kind % 2 == 0 and 2 or nil,
              alpha = 1.702, beta = 1, orders = false })
          end
        end
      end ]])
  end)

  it("takes rows of many pieces, gates and ups apart, and writes over the gates", function()
    assert.equal("", run [[
      check("activation", { kind = 0, rows = 2, n = 2056 * 2, dtype = "bf16", value = any })
      check("activation", { kind = 3, rows = 1, n = 2056, dtype = "f16", value = any, limit = 7, alpha = 1.702, beta = 1 })
      for kind = 0, 5 do
        if kind ~= 3 then
          check("activation", { kind = kind, rows = 2, n = 40, dtype = "f16", value = any, up = true, over = true, limit = 3, orders = false })
          check("activation", { kind = kind, rows = 2, n = 40, dtype = "f32", value = any, up = true, rounding = "bf16", limit = 3, orders = false })
        end
      end
      for kind = 6, 9 do check("activation", { kind = kind, rows = 2, n = 24, dtype = "bf16", value = any, over = true }) end
      check("activation", { kind = 0, rows = 3, n = 16, dtype = "f16", value = any, skip = 1 }) ]])
  end)

  it("goes with NaN, infinities, subnormal numbers and signed zeros as the CPU does", function()
    assert.equal("", run [[
      for kind = 0, C.NB_MOE_KINDS - 1 do
        for _, dtype in ipairs { "f32", "f16", "bf16" } do
          check("activation", { kind = kind, rows = 4, n = 64, dtype = dtype, value = edges, limit = kind > 2 and 7 or nil, orders = false })
        end
        check("activation", { kind = kind, rows = 4, n = 64, dtype = "f32", rounding = "f16", value = edges, limit = 7, orders = false })
      end ]])
  end)

  it("asks for whole sectors once, and no shared memory", function()
    assert.equal("7168 3584 336", run [[
      local emulator = require "spec.support.emulator"
      local h = tensor("f16", { 7, 512 }, any):to "cuda"
      moe.activation("silu", h)
      assert(nb.cuda.wait())
      local c = emulator.counts()
      io.write(c.global_read, " ", c.global_written, " ", c.global_sectors) ]])
  end)
end)

describe("moe's functions, of tensors on a device", function()
  it("give what they give of the same tensors in the computer's memory: route, activation, group, align", function()
    assert.equal("true true true true | true true true | true true true | true bf16", run [[
      local logits, bias = tensor("bf16", { 13, 24 }, any), tensor("bf16", { 24 }, any)
      local o = { top = 3, scoring = "sigmoid", groups = 4, top_groups = 2, normalize = true, scale = 1.5, bias = bias }
      local weights, ids = moe.route(logits, o)
      o.bias = bias:to "cuda"
      local w, i = moe.route(logits:to "cuda", o)
      local function same(a, b) io.write(tostring(a:to "cpu":equal(b)), " ") end
      same(w, weights) same(i, ids)
      o.bias = nil
      local plain, plain_ids = moe.route(logits:to "cuda", o)
      same(plain, (moe.route(logits, o))) same(plain_ids, select(2, moe.route(logits, o)))
      local map = tensor("i32", { 24 }, function(e) return e % 2 == 0 and e / 2 or -1 end)
      io.write "| "
      local a, b = { moe.align(i, 8, 24, { map = map:to "cuda", ignore = true }) }, { moe.align(ids, 8, 24, { map = map, ignore = true }) }
      same(a[1], b[1]) same(a[2], b[2]) io.write(tostring(a[3]:to "cpu":get(1) == b[3]), " | ")
      a, b = { moe.group(i, w, 24) }, { moe.group(ids, weights, 24) }
      for j = 1, 3 do same(a[j], b[j]) end
      io.write "| "
      local h = tensor("bf16", { 3, 32 }, any)
      local y = moe.activation("swigluoai_uninterleave", h:to "cuda", { limit = 3 })
      same(y, moe.activation("swigluoai_uninterleave", h:cast "f32", { limit = 3, dtype = "bf16" }):cast "bf16")
      io.write(y:type()) ]])
  end)

  it("give what they give there: dispatch and combine, with a map, room given or not", function()
    assert.equal("", run [[
      local map = tensor("i32", { 9 }, function(i) return i % 3 == 0 and -1 or (i * 4 + 1) % 5 end)
      for _, c in ipairs { { 7, 3, 16 }, { 4, 1, 5 }, { 1, 8, 2056 } } do
        for _, dtype in ipairs { "f32", "bf16" } do
          for _, m in ipairs { false, map } do
            for _, rows in ipairs { false, c[1] * c[2] } do
              local ids, x = ids_of(c[1], c[2], 9, m and -1), tensor(dtype, { c[1], c[3] }, any)
              local weights = tensor("f32", { c[1], c[2] }, any)
              local here = { moe.dispatch(x, ids, m and 5 or 9, { map = m or nil, rows = rows or nil }) }
              local ids_there = ids:to "cuda"
              local there = { moe.dispatch(x:to "cuda", ids_there, m and 5 or 9, { map = m and m:to "cuda" or nil, rows = rows or nil }) }
              here[1] = here[1]:cast(dtype)
              here[4] = moe.combine(here[1]:cast "f32", here[3], weights)
              there[4] = moe.combine(there[1], there[3], weights:to "cuda")
              for i = 1, 4 do
                if not there[i]:to "cpu":equal(here[i]) then print(i, c[1], c[2], c[3], dtype, m, rows, there[i]:to "cpu", here[i]) end
              end
            end
          end
        end
      end ]])
  end)

  it("can be part of a graph", function()
    assert.equal("true true true", run [[
      local logits, x = tensor("f32", { 6, 16 }, any):to "cuda", tensor("f16", { 6, 32 }, any):to "cuda"
      local out
      local graph = assert(nb.cuda.graph(function()
        local weights, ids = moe.route(logits, { top = 2, normalize = true })
        local batch, _, places = moe.dispatch(x, ids, 16, { rows = 12 })
        out = { moe.combine(batch, places, weights), (moe.align(ids, 8, 16)), moe.activation("gelu_tanh", x) }
        return unpack(out)
      end))
      assert(graph())
      local weights, ids = moe.route(logits:to "cpu", { top = 2, normalize = true })
      local batch, _, places = moe.dispatch(x:to "cpu", ids, 16)
      io.write(tostring(out[1]:to "cpu":equal(moe.combine(batch, places, weights))), " ", tostring(out[2]:to "cpu":equal((moe.align(ids, 8, 16)))), " ",
        tostring(out[3]:to "cpu":equal(moe.activation("gelu_tanh", x:to "cpu":cast "f32", { dtype = "f16" }):cast "f16"))) ]])
  end)
end)

describe("a sum over a token's experts, on a device", function()
  it("adds in the order of experts, products rounded: every dtype, weights or none", function()
    assert.equal("", run [[
      for _, dtype in ipairs { "f32", "f16", "bf16" } do
        for _, c in ipairs { { 5, 1, 3, 64 }, { 3, 8, 20, 72 }, { 2, 5, 4, 13 }, { 1, 33, 60, 8 } } do
          for _, weighted in ipairs { false, true } do
            check("sum", { ids = ids_of(c[1], c[2], c[3]), experts = c[3], columns = c[4], dtype = dtype, value = any, weights = weighted and any or nil,
              out = c[2] == 8 and dtype or nil, conflicts = c[2] > 32 })
          end
        end
      end
      check("sum", { ids = ids_of(1, 2, 4), experts = 4, columns = 4104, dtype = "bf16", value = any, weights = any, out = "bf16" }) ]])
  end)

  it("leaves out pairs without an expert here, whose rows it does not read", function()
    assert.equal("", run [[
      local map = tensor("i32", { 9 }, function(i) return i % 3 == 0 and -1 or (i * 4 + 1) % 5 end)
      local function half(i) return math.floor(i / 16) % 2 == 0 and nan or any(i) end
      check("sum", { ids = ids_of(6, 4, 12, -2), experts = 9, columns = 16, dtype = "bf16", value = any, weights = any })
      check("sum", { ids = ids_of(6, 4, 12, -2), experts = 5, columns = 16, dtype = "bf16", value = any, weights = any, map = map })
      check("sum", { ids = tensor("i32", { 4, 2 }, function(i) return i % 2 == 0 and 7 or 0 end), experts = 2, columns = 16, dtype = "f16", value = half })
      check("sum", { ids = ids_of(2, 3, 4), experts = 0, columns = 16, dtype = "f16", value = any })
      check("sum", { ids = tensor("i32", { 2, 3 }, function() return -1 end), experts = 2, columns = 16, dtype = "f16", value = any }) ]])
  end)
end)

describe("a mixture's functions on a device", function()
  -- Each call fails with a sentence that has these words; the device goes on.
  it("say what doesn't fit, one sentence each", function()
    assert.equal("", run [[
      local ids, x, logits = ids_of(4, 2, 8):to "cuda", tensor("f16", { 4, 16 }, any):to "cuda", tensor("f32", { 4, 8 }, any):to "cuda"
      local weights = tensor("f32", { 4, 2 }, any):to "cuda"
      local cuda_functions = require "nibble.cuda.moe"
      local function says(words, f, ...)
        local ok, msg = pcall(f, ...)
        if ok or not tostring(msg):find(words) then print(words, ok, msg) end
      end
      says("the top 9 of 8 experts", moe.route, logits, { top = 9 })
      says("the top 0 of 8 experts", moe.route, logits, { top = 0 })
      says("3 groups do not divide 8 experts", moe.route, logits, { top = 1, groups = 3, top_groups = 1 })
      says("score correction bias: expected f32 %[8%]", moe.route, logits, { top = 1, bias = weights:reshape { 8 }:rows(1, 7) })
      says("lies in the computer's memory, expected on a device", moe.route, logits, { top = 1, bias = tensor("f32", { 8 }, any) })
      says("lies in the computer's memory, expected on a device", moe.route, logits:to "cpu", { top = 1, bias = logits:rows(1, 1):reshape { 8 } })
      says("f32, f16 or bf16 tensor %[tokens, experts%], found i32", moe.route, ids, { top = 1 })
      says("ids must be i32, found f32", moe.align, weights, 8, 8)
      says("blocks of 0 for 8 experts", moe.align, ids, 0, 8)
      says("5000 experts and 8 pairs, expected at most 4096", moe.align, ids, 8, 5000)
      says("the expert map has 4 entries for 8 experts", moe.align, ids, 8, 8, { map = ids:reshape { 8 }:rows(1, 4) })
      says("in the computer's memory", moe.align, ids, 8, 8, { map = ids_of(8, 1, 8):reshape { 8 } })
      says("expert 7 at place 2 is outside the 7 experts", moe.group, tensor("i32", { 4, 2 }, function(i) return i > 1 and 9 - i or 3 end):to "cuda",
        weights, 7)
      says("moe group: weights: expected f32", moe.group, ids, x, 8)
      says("rounds to f16, found bf16", moe.activation, "silu", x, { dtype = "bf16" })
      says("one dtype on a device, found f32 from f16", moe.activation, "silu_no_mul", x, { out = tensor("f32", { 4, 16 }, any):to "cuda" })
      says("twice as wide", moe.activation, "silu", x, { out = tensor("f16", { 4, 4 }, any):to "cuda" })
      says("lies over an input twice as wide", moe.activation, "silu", x:reshape { 8, 8 }, { out = x:as("f16", { 8, 4 }) })
      says("on a device", moe.activation, "gelu", x, { up = tensor("f16", { 4, 16 }, any) })
      says("expert 1 gets 4 rows, and there is room for 1", moe.dispatch, x, tensor("i32", { 4, 1 }, function() return 1 end):to "cuda", 2, { rows = 1 })
      says("while a graph is captured, an expert with more rows", nb.cuda.graph, function() return (moe.dispatch(x, ids, 8, { rows = 3 })) end)
      says("expected i32", moe.dispatch, x, ids:rows(1, 3), 8, { rows = 8 })
      says("moe combine: expected", moe.combine, x, ids, weights)
      says("moe combine: expected f32 %[4x2%]", moe.combine, x:reshape { 2, 2, 16 }, ids, weights:rows(1, 3))
      says("are more than 2", moe.dispatch, x, ids, 8, { rows = 2 ^ 30 })
      says("moe sum: expected", cuda_functions.sum, x, ids, weights, 8)
      says("begins 2 bytes past", cuda_functions.sum, x:as("i16", { 64 }):rows(2, 33):as("f32", { 8, 2 }), ids, weights, 8)
      assert(moe.route(logits, { top = 2 }):to "cpu"):equal(moe.route(logits:to "cpu", { top = 2 })) ]])
  end)

  it("give back what they took, whichever call of the driver fails", function()
    for _, call in ipairs { "cuMemAlloc_v2:5", "cuMemAlloc_v2:10", "cuLaunchKernel:9", "cuModuleGetFunction:9", "cuMemcpyDtoHAsync_v2:9" } do
      assert.equal("false 0", run([[
        local ids, x = ids_of(4, 2, 8):to "cuda", tensor("f16", { 4, 16 }, any):to "cuda"
        local weights, live, ok = tensor("f32", { 4, 2 }, any):to "cuda"
        for _ = 1, 30 do -- until the plan's call has come
          collectgarbage() collectgarbage()
          live = C.nb_live_bytes()
          ok = pcall(function()
            local batch, _, places = moe.dispatch(x, ids, 8, { rows = 4 })
            return moe.combine(batch, places, weights), moe.align(ids, 8, 8), moe.activation("silu", x)
          end)
          if not ok then break end
        end
        collectgarbage() collectgarbage()
        io.write(tostring(ok), " ", tonumber(C.nb_live_bytes() - live)) ]], { NB_EMU_FAIL = call .. ":1" }), call)
    end
  end)
end)

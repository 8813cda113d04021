-- The product of experts and 8-bit activations on a device, run by the emulator: each pair gets its expert's weight and its
-- token's scale, to the bit where every sum is exact, in every order of threads, however the blocks' tiles are shared.
local nb = require "nibble"
local emulator = require "spec.support.emulator"
local experts = require "spec.support.marlin_experts"
local standin = require "spec.support.standin"

local EVERY = { 0, 1, 2, 3, 12345 }

local function exact(o) experts.run_exact(o, { 1, 5 }, { 12345 }) end
local map_of = experts.map

describe("a product kernel of experts and 8-bit activations", function()
  before_each(function() math.randomseed(21) end)
  after_each(function() emulator.order(0) end)

  for i, kind in ipairs { "int4", "int8", "folded4", "e4m3", "e2m1" } do
    for _, zeros in ipairs((kind == "int4" or kind == "folded4") and { false, true } or { false }) do
      it(("takes %s%s, blocks of every size, groups, bias, weights"):format(kind, zeros and " with zero-points" or ""), function()
        local function with(o) return setmetatable(o, { __index = { kind = kind, zeros = zeros, experts = 3, top = 2 } }) end
        local near, far = i % 2 == 0 and "f16" or "bf16", i % 2 == 0 and "bf16" or "f16"
        exact(with { tokens = 5, block = 16, k = 256, n = 128, group = -1, bias = true, weights = true, dtype = near })
        exact(with { tokens = 9, block = 8, k = 384, n = 64, group = 128, dtype = far })
        exact(with { tokens = 30, block = 32, k = 128, n = 192, group = 64, weights = true, dtype = far })
        exact(with { tokens = 40, block = 64, k = 64, n = 64, group = 32, bias = true, dtype = near })
        exact(with { tokens = 35, block = 48, k = 160, n = 64, group = 32, row_scale = false, dtype = far })
      end)
    end
  end

  it("takes int16 scales", function()
    exact { kind = "int4", experts = 3, top = 2, tokens = 7, block = 16, k = 256, n = 128, group = 64, int16 = true, zeros = true }
    exact { kind = "int4", experts = 2, top = 1, tokens = 40, block = 64, k = 96, n = 64, group = -1, int16 = true, dtype = "bf16" }
  end)

  it("shares blocks' tiles between its blocks, whose stages go round more than once, and crosses experts", function()
    for i, block in ipairs { 16, 32, 64 } do
      exact { kind = ({ "int4", "folded4", "e4m3" })[i], experts = 5, tokens = 3, top = 2, block = block, k = 640, n = 256, group = 128,
              zeros = i == 1, bias = true, weights = true, grids = { 1, 2, 7, 200 }, orders = EVERY }
    end
  end)

  it("leaves alone blocks and rows of strangers", function()
    for _, ignore in ipairs { true, false } do
      exact { kind = "int4", experts = 2, tokens = 9, top = 3, block = 16, k = 256, n = 128, group = 128, weights = true, ignore = ignore,
              map = map_of { -1, 1, -1, 0, -1 }, grids = { 1, 2, 9 }, orders = { 0, 12345 } }
    end
    exact { kind = "e4m3", experts = 4, tokens = 2, top = 2, block = 16, k = 128, n = 64, group = -1,
            ids = nb.tensor("i32", { 2, 2 }, { 3, -1, 4, 0 }) }
  end)

  it("reads the weights of experts that have tokens, each byte once for each block", function()
    local c = experts.case { kind = "int4", experts = 6, tokens = 4, top = 1, block = 16, k = 256, n = 128, group = 128,
                             ids = nb.tensor("i32", { 4, 1 }, { 4, 4, 1, 4 }) }
    experts.reads_each_once(c)
  end)
end)

local process = standin.with [[
  package.path = "./?.lua;" .. package.path
  local ffi, C = require "ffi", require("nibble.ffi").C
  local experts, awq = require "spec.support.marlin_experts", require "spec.support.awq"
  local gemm, layout, marlin = require "nibble.gemm", nb.layout, require("nibble.methods.marlin")
  local cuda_experts = require "nibble.cuda.experts"
  math.randomseed(21)
  -- What C's function gives of case c: y, or its sentence. changes: to the weight, the blocks and the arguments.
  local function product(c, changes)
    changes = setmetatable(changes or {}, { __index = { x = c.x, row_scale = c.row_scale } })
    local keep = {}
    local function there(t)
      if not t then return nil end
      keep[#keep + 1] = ffi.istype("nb_device_tensor", t) and t or t:to "cuda"
      return keep[#keep].t
    end
    local p = {}
    for name in pairs(c.one[1].p) do p[name] = c.p[name] and { t = there(c.p[name]) } end
    local w, b = c.weight(p), ffi.new("nb_moe_blocks", { block = c.block, top = c.top })
    for name, t in pairs { sorted = c.sorted, block_experts = c.owners, total = nb.tensor("i32", { 1 }, { c.total }), weights = c.weights or false,
      globals = c.globals or false } do b[name] = there(t) end
    w.global = 1 -- globals has each expert's
    for _, name in ipairs { "bits", "code", "scale", "k", "n" } do if changes[name] then w[name] = changes[name] end end
    for _, name in ipairs { "words", "scales", "zeros", "perm" } do if changes[name] then w[name] = there(changes[name]) end end
    local y = there(changes.y or experts.poisoned(c))
    local rc = C.nb_device_marlin_moe_gemm(y, there(changes.x), w, b, there(changes.row_scale))
    if rc < 0 then return ffi.string(C.nb_error()) end
    return assert(keep[#keep - (changes.row_scale and 2 or 1)]:to "cpu")
  end
]]

describe("nb_device_marlin_moe_gemm with 8-bit activations", function()
  it("launches what each weight asks for, with a unit of its own and a global scale to each expert", function()
    assert.equal(("true "):rep(6), process [[
      for i, kind in ipairs { "int4", "int8", "folded4", "e4m3", "e2m1" } do
        local c = experts.case { kind = kind, experts = 3, tokens = ({ 3, 20, 70, 9, 40 })[i], top = 2, block = ({ 16, 32, 64, 8, 48 })[i],
          k = 256, n = 128, group = ({ 64, -1, 32, 128 })[i], zeros = i == 1, bias = true, weights = true, dtype = i % 2 == 0 and "bf16" or "f16" }
        c.globals = nb.tensor("f32", { 3 }, { 2, 0.5, 4 })
        for e, one in ipairs(c.one) do one.global = c.globals:get(e) end
        io.write(tostring(product(c):equal(experts.exact(c, experts.poisoned(c)))), " ")
      end
      local c = experts.case { kind = "int4", experts = 2, tokens = 0, top = 2, block = 16, k = 128, n = 64, group = 64 }
      io.write(tostring(product(c):numel() == 0), " ")]])
  end)

  it("fills up x's columns a token at a time, whose pairs share it and its scale", function()
    assert.equal("true true", process [[
      local c = experts.case { kind = "int8", experts = 3, tokens = 6, top = 2, block = 16, k = 160, n = 64, group = 32, weights = true }
      local short = nb.tensor("i8", { 6, 130 })
      for r = 0, 5 do ffi.copy(short:ptr() + r * 130, c.x:ptr() + r * 160, 130) ffi.fill(c.x:ptr() + r * 160 + 130, 30) end
      io.write(tostring(product(c, { x = short }):equal(experts.exact(c, experts.poisoned(c)))), " ")
      -- Of 16-bit activations with scales of rows, too.
      c = experts.case { experts = 3, tokens = 6, top = 2, block = 16, k = 128, n = 64, group = 64 }
      local want, short = experts.exact(c, experts.poisoned(c)), nb.tensor("f16", { 6, 126 })
      for r = 1, 6 do
        for i = 1, 126 do short:set((r - 1) * 126 + i, c.x:get((r - 1) * 128 + i)) end
        for i = 127, 128 do c.x:set((r - 1) * 128 + i, 0) end
      end
      want = experts.exact(c, experts.poisoned(c))
      local row_scale = nb.tensor("f32", { 6, 1 }, { 1, 2, 0.5, 4, 1, 2 })
      for pair = 0, 11 do
        for i = pair * 64 + 1, pair * 64 + 64 do want:set(i, want:get(i) * row_scale:get(math.floor(pair / 2) + 1)) end
      end
      local blocks = { sorted = c.sorted:to "cuda", block_experts = c.owners:to "cuda", total = nb.tensor("i32", { 1 }, { c.total }):to "cuda",
        block = 16, top = 2 }
      local y = assert(cuda_experts.gemm(short:to "cuda", experts.there(c.p), blocks, { row_scale = row_scale:to "cuda" }))
      io.write(tostring(y:to("cpu"):equal(want)))]])
  end)

  it("takes codes and their scales in Lua too, y then being of the weight's dtype, which MXFP4's scales don't tell", function()
    assert.equal("f16 true", process [[
      local c = experts.case { kind = "e2m1", experts = 3, tokens = 9, top = 2, block = 16, k = 128, n = 64, weights = true, dtype = "f16" }
      local blocks = { sorted = c.sorted:to "cuda", block_experts = c.owners:to "cuda", total = nb.tensor("i32", { 1 }, { c.total }):to "cuda",
        block = 16, top = 2, weights = c.weights:to "cuda" }
      local m = experts.there(c.p, { type = "float4_e2m1f", activations = "fp8", k = 128, n = 64, dtype = "f16" })
      local y = assert(cuda_experts.gemm(c.x:to "cuda", m, blocks, { row_scale = c.row_scale:to "cuda" }))
      io.write(y:type(), " ", tostring(y:to("cpu"):equal(experts.exact(c, experts.poisoned(c)))))]])
  end)

  it("is one stage of moe.forward, which quantizes a token's row once, as the CPU does, without a wait", function()
    assert.equal(("true "):rep(6), process [[
      for i, o in ipairs { { "int8", -1, "f16" }, { "int8", 32, "bf16", zeros = true }, { "fp8", 64, "f16", zeros = true },
        { "fp8", -1, "bf16" }, { "fp8", 128, "bf16" }, { "int8", 32, "f16", on_input = true } } do
        local function stack(k, n)
          local list, groups = { words = {}, scales = {}, zeros = {}, bias = {} }, o[2] == -1 and 1 or k / o[2]
          for e = 1, 3 do
            local codes = awq.codes(n, k, 4)
            list.words[e] = o.zeros and layout.awq.pack(codes, 4) or layout.gptq.pack(codes, 4)
            list.scales[e] = layout.transpose(awq.floats(o[3], { n, groups }, 1e-3, 1e-2))
            list.zeros[e] = o.zeros and layout.awq.pack_zeros(awq.codes(n, groups, 4), 4)
            list.bias[e] = awq.floats(o[3], { n }, -0.1, 0.1)
          end
          local m = { bits = 4, group = o[2], order = o.zeros and "awq" or "gptq", activations = o[1] }
          for name, all in pairs(list) do m[name] = all[1] and experts.stacked(all) end
          m.zeros = m.zeros or nil
          local parts = assert(marlin.prepare(m))
          parts.type, parts.k, parts.n, parts.group, parts.dtype, parts.activations = o.zeros and "uint4" or "uint4b8", k, n, o[2], o[3], o[1]
          return parts
        end
        local w13, w2, x = stack(128, 256), stack(128, 128), awq.floats(o[3], { 9, 128 }, -1, 1)
        local top = o.on_input and 1 or 2
        local ids, weights = experts.ids(9, top, 3), awq.floats("f32", { 9, top }, 0.2, 0.8)
        local options = { experts = 3, router_weight_on_input = o.on_input }
        local function forward(x, ids, weights, w13, w2)
          return nb.moe.forward(x, setmetatable({ ids = ids, weights = weights, w13 = w13, w2 = w2 }, { __index = options }))
        end
        local want = forward(x, ids, weights, w13, w2)
        local d_x, d_ids, d_weights, d_w13, d_w2 = x:to "cuda", ids:to "cuda", weights:to "cuda", experts.there(w13), experts.there(w2)
        local g, y = assert(nb.cuda.graph(function() return forward(d_x, d_ids, d_weights, d_w13, d_w2) end)) -- a graph can't wait
        assert(g())
        -- No rounding of the first product falls otherwise here, which would move a code of the second product's x by one.
        local most, unit = want:cast("f32"):stats().absmax, o[3] == "f16" and 2 ^ -11 or 2 ^ -8
        io.write(tostring(y:type() == o[3] and most > 0.1 and nb.compare(want:cast "f32", y:to("cpu"):cast "f32").max_abs <= 2 * unit * most), " ")
      end]])
  end)

  it("refuses what it doesn't take in one sentence each", function()
    local said = process [[
      local c = experts.case { kind = "folded4", experts = 2, tokens = 3, top = 2, block = 16, k = 128, n = 64, group = 64, zeros = true }
      local function says(changes) print((tostring(product(c, changes)):gsub("\n.*", ""))) end
      says { x = nb.tensor("i8", { 3, 128 }) }
      says { x = nb.tensor("f16", { 3, 128 }) }
      says { x = nb.tensor("f8_e4m3", { 3, 129 }) }
      says { perm = nb.tensor("i32", { 2, 128 }) }
      says { scale = C.NB_MARLIN_INT16 }
      says { scales = nb.tensor("f16", { 3, 2, 64 }) }
      says { scales = nb.tensor("f16", { 2, 8, 64 }) }
      says { zeros = nb.tensor("i32", { 2, 1, 8 }) }
      says { row_scale = nb.tensor("f32", { 6, 1 }) }
      says { y = nb.tensor("bf16", { 6, 64 }) }
      says { y = nb.tensor("f32", { 6, 64 }) }
      says { k = 112 }
      says()]]
    local expected = {
      "x for folded integers of 4 bits and 8%-bit activations is f8_e4m3 on a device, found i8", "is f8_e4m3 on a device, found f16",
      "x has 129 columns for K = 128", "an activation order cannot be combined", "scales of kind 1", "scales of 2 experts: found",
      "found 16 rows", "zero%-points: expected", "row scales: expected", "scales: expected bf16", "y is f16 or bf16, found f32",
      "K = 112 is not a multiple of 32", "6×64",
    }
    standin.each_line(said, expected)
  end)
end)

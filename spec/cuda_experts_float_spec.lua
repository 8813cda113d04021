-- cuda_experts_float: what experts' inputs become on a device where each expert has scales of its own.
local standin = require "spec.support.standin"

local run = standin.with [[
  local act, emulator = require "nibble.act", require "spec.support.emulator"
  local seed = 5
  local function random() seed = (seed * 1103515245 + 12345) % 2147483648 return math.floor(seed / 65536) / 32768 end
  local function values(dtype, ...)
    local t = nb.tensor("f32", { ... })
    for i = 1, t:numel() do t:set(i, (random() - 0.5) * 2 ^ (i % 7)) end
    return t:cast(dtype)
  end
  local fp8 = { type = "float", bits = 8, symmetric = true }
  local nvfp4 = { type = "float", bits = 4, symmetric = true, strategy = "tensor_group", group = 16, dynamic = "local" }
  local function by(strategy, dynamic)
    return setmetatable({ strategy = strategy, dynamic = dynamic }, { __index = fp8 })
  end
  -- The rows of each pair as the processor makes them, an expert at a time; pairs of none here are zeros.
  local function expected(x, a, ids, map, experts, scales)
    local top, k = ids:size(2), x:size(2)
    local out = nb.tensor(x:type(), { ids:numel(), k })
    for e = 0, experts - 1 do
      local mine = {}
      for p = 1, ids:numel() do
        local id = ids:get(p)
        if map then id = id >= 0 and id < map:numel() and map:get(id + 1) or -1 end
        if id == e then mine[#mine + 1] = p end
      end
      if #mine > 0 then
        local rows = nb.tensor("f32", { #mine, k })
        for i, p in ipairs(mine) do
          for c = 1, k do rows:set({ i, c }, x:get { math.floor((p - 1) / top) + 1, c }) end
        end
        local q = assert(act.quantize_dequantize(rows, a, { scale = scales and scales[e + 1], global = scales and scales[e + 1] })):cast(x:type())
        for i, p in ipairs(mine) do
          for c = 1, k do out:set({ p, c }, q:get { i, c }) end
        end
      end
    end
    return out
  end
  local function same(a, b)
    for i = 1, a:numel() do
      local v, w = a:get(i), b:get(i)
      if v ~= w and (v == v or w == w) then return ("%d: %g, expected %g"):format(i, w, v) end
    end
    return "same"
  end
]]

describe("cuda: inputs of experts", function()
  it("are quantized with the scale or the global scale of each pair's expert, or that of all of its rows", function()
    assert.equal(("same "):rep(24), (run [[
      local map = nb.tensor("i32", { 5 }, { 2, -1, 0, 1, 7 })
      for _, dtype in ipairs { "f32", "f16", "bf16" } do
        for _, case in ipairs { { nvfp4, { 100, 3, 700 } }, { by("tensor", false), { 0.01, 0.5, 0.003 } }, { by("tensor", true) },
          { by("token", true) } } do
          for _, order in ipairs { 0, 12345 } do
            emulator.order(order)
            local k = dtype == "f16" and 1040 or 48
            local x, ids = values(dtype, 4, k), nb.tensor("i32", { 4, 2 }, { 0, 2, 1, 4, 3, 3, -1, 9 })
            if order == 0 then ids = nb.tensor("i32", { 4, 2 }, { 0, 2, 1, 1, 2, 0, -1, 9 }) end
            local with = order > 0 and map or nil
            local scales = case[2] and nb.tensor("f32", { 3 }, case[2])
            local y = assert(act.quantize_pairs(x:to "cuda", case[1], { ids = ids:to "cuda", map = with and with:to "cuda", experts = 3,
              scales = scales and scales:to "cuda" }))
            io.write(same(expected(x, case[1], ids, with, 3, case[2]), y:to "cpu"), " ")
            assert(emulator.counts().bank_conflicts == 0)
          end
        end
      end ]]))
  end)

  it("one to a row too, and none at all; NaN stays among its expert's", function()
    assert.equal("same same same 0", run [[
      local x, ids = values("f16", 4, 32), nb.tensor("i32", { 4, 1 }, { 1, 0, 1, 0 })
      local function both(a, scales)
        local y = assert(act.quantize_pairs(x:to "cuda", a, { ids = ids:to "cuda", experts = 2, scales = scales and
          nb.tensor("f32", { 2 }, scales):to "cuda" }))
        return same(expected(x, a, ids, nil, 2, scales), y:to "cpu")
      end
      io.write(both(nvfp4, { 9, 30 }), " ")
      x:set({ 1, 3 }, 0 / 0)
      io.write(both(by("tensor", true)), " ", both(nvfp4, { 9, 30 }), " ")
      io.write(assert(act.quantize_pairs(nb.tensor("f16", { 0, 32 }):to "cuda", nvfp4, { ids = nb.tensor("i32", { 0, 2 }):to "cuda", experts = 2,
        scales = nb.tensor("f32", { 2 }):to "cuda" })):numel()) ]])
  end)

  it("says what is wrong in one sentence", function()
    local out = run [[
      local x, ids, scales = values("f16", 4, 32):to "cuda", nb.tensor("i32", { 4, 2 }):to "cuda", nb.tensor("f32", { 3 }):to "cuda"
      local function says(...)
        local ok, y, msg = pcall(act.quantize_pairs, ...)
        print(ok and msg or y)
      end
      says(x, nvfp4, { ids = ids, experts = 2, scales = scales })
      says(x, nvfp4, { ids = ids, experts = 3, scales = nb.tensor("f32", { 3 }) })
      says(x, nvfp4, { ids = nb.tensor("i32", { 7 }):to "cuda", experts = 3, scales = scales })
      says(x, nvfp4, { ids = scales, experts = 3, scales = scales })
      says(x, nvfp4, { ids = ids, experts = 3, scales = scales, map = ids })
      says(x:reshape(16, 8), nvfp4, { ids = ids, experts = 3, scales = scales }) ]]
    standin.each_line(out, { "scales: expected f32 [2], found f32 [3]", "scales: expected on cuda:0, found in the computer's memory",
      "7 ids for 4 tokens, expected as many for each", "ids: expected i32", "map: expected i32 [*], found i32 [4x2]",
      "8 columns are not a multiple of the group size 16" }, true)
  end)
end)

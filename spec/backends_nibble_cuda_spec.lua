-- What the oracle says of nibble's own CUDA kernels, and that it is true: the device function takes what it takes, and
-- refuses what it refuses. The device is the emulator's; each of its states is a process of its own.
local backends = require "nibble.backends"
local command = require "spec.support.command"
local support = require "spec.support.backends"
local standin = require "spec.support.standin"
local with, chosen, weight, linear, experts = support.with, support.chosen, support.weight, support.linear, support.experts

local run = standin.run

describe("the oracle: device cuda", function()
  local function device(name, environment)
    return (run(([[print(select(2, pcall(function()
      local d, msg = require("nibble.backends.query").device(%q)
      return d and d.text .. " " .. d.platform .. " " .. d.capability or msg
    end)))]]):format(name), environment))
  end

  it("is the one of this machine, by its capability", function()
    assert.equal("sm_90 cuda 90", device "cuda")
    assert.equal("sm_89 cuda 89", device("cuda:1", { NB_EMU_SM = 89, NB_EMU_DEVICES = 2 }))
  end)

  it("or the sentence why there is none, and what to say instead", function()
    assert.matches("^device cuda: there is no CUDA driver here: /none: .*; name the one that is meant, as sm_80 or sm_90$",
      device("cuda", { NB_CUDA_DRIVER = "/none" }))
    assert.equal("device cuda:3: devices here: 1, from cuda:0 on; name the one that is meant, as sm_80 or sm_90", device "cuda:3")
    local r = command.run({ "explain", "spec/models/tiny-llama", "--consumer", "nibble", "--device", "cuda" },
      { before = "NB_CUDA_DRIVER=/none" })
    assert.equal(2, r.status)
    assert.is_nil(r.err:match "did you mean")
  end)
end)

describe("the oracle: nibble on CUDA", function()
  it("says of what no kernel takes why, and of a device that is too old", function()
    local function why(q)
      local found, msg = chosen(q)
      assert.is_nil(found)
      return msg
    end
    local base = linear { consumer = "nibble", device = "sm_90" }
    assert.matches("ct_nvfp4_moe does not support this deployment: it takes weights of nvfp4, found int3",
      why(experts { consumer = "nibble", device = "sm_90",
      backend = "ct_nvfp4_moe", weight = weight { bits = 3 } }))
    assert.equal("reference", (chosen(experts { consumer = "nibble", device = "sm_90", weight = weight { bits = 3 } })))
    assert.matches("needs SM 80 or above, found SM 75", why(with(base, { device = "sm_75" })))
  end)

  it("leaves what the CPU computes as it was", function()
    assert.equal("reference", chosen(linear { consumer = "nibble", device = "cpu" }))
    for _, t in ipairs(backends.consumer("nibble").tables) do
      for _, b in ipairs(t.backends) do
        for _, class in ipairs(b.classes) do
          local cuda = false
          for _, check in ipairs(class.checks) do cuda = cuda or check[1] == "capability" end
          assert.equal(t.name:match "CUDA" ~= nil, cuda)
        end
      end
    end
  end)

  it("names the smallest change for what the kernel does not take, and cuBLASLt for what only it multiplies", function()
    local base = linear { consumer = "nibble", device = "sm_90" }
    local r = assert(backends.select(base))
    assert.same({ "marlin_cuda", "dequantize_cuda" }, { r.backend, r.also[1] })
    r = assert(backends.select(with(base, { n = 11000 })))
    assert.same({ "dequantize_cuda", "pad N from 11000 to 11008" }, { r.backend, r.change })
    assert.equal("needs N of a multiple of 64, found 11000", r.rejected[1].reason)
    r = assert(backends.select(with(base, { weight = weight { group = -1, actorder = "group" } })))
    assert.same({ "dequantize_cuda", "no act-order" }, { r.backend, r.change })
    assert.equal("takes act-order with more than one group only", r.rejected[1].reason)
    assert.equal("marlin_cuda", chosen(with(base, { weight = weight { group = 16, actorder = "group" } })))
    -- in act-order K may be cut anywhere, without it not amid a group
    local cut = with(base, { weight = weight { group = 128, actorder = "group" }, k = 2048 + 64, k_full = 2 * (2048 + 64), tp = 2, parallel = "row" })
    assert.equal("marlin_cuda", chosen(cut))
    local _, torn = chosen(with(cut, { weight = weight { group = 128 } }))
    assert.matches("marlin_cuda: has a group over the edge of a rank: K = 2112 of this rank is not a multiple of the group size 128", torn, 1, true)
    assert.matches("dequantize_cuda: has a group or block over the edge of a rank: K = 2112 of this rank is not a multiple of 128", torn, 1, true)
    assert.equal("dequantize_cuda", chosen(with(base, { weight = weight { bits = 3 } })))
    _, torn = chosen(with(base, { dtype = "f32", packages = { cublaslt = false } }))
    assert.matches("marlin_cuda: takes input of f16 or bf16, found f32", torn)
    assert.matches("dequantize_cuda: needs the package cublaslt, which is not installed", torn)
  end)

  it("asks this machine for cuBLASLt where its device is meant", function()
    local code = [[
      local found, msg = nb.backends.select({ consumer = "nibble", kind = "linear", device = "cuda", k = 256, n = 72,
        weight = { type = "int", bits = 4, group = 64 } }, { change = false })
      print(found and found.backend or msg) ]]
    assert.equal("dequantize_cuda", run(code))
    assert.matches("dequantize_cuda: needs the package cublaslt", (run(code, { NB_CUBLASLT = "/none" })))
  end)
end)

describe("the oracle tells the truth:", function()
  -- Layers of every form that could be asked for: the oracle's answer and the device function's, where they differ.
  local grid = [[
    local backends, gemm, cuda = nb.backends, nb.gemm, nb.cuda
    local layers, taken, wrong = 0, 0, {}
    local function accepts(q)
      local w = q.weight
      local groups, pf = w.group == -1 and 1 or math.ceil(q.k / w.group), math.floor(32 / w.bits)
      local function there(dtype, ...)
        local shape = { ... }
        for i, size in ipairs(shape) do shape[i] = math.floor(size) end
        return assert(cuda.new("cuda", dtype, shape))
      end
      local m = { type = (w.zero_points and "uint%d" or "uint%db%d"):format(w.bits, 2 ^ (w.bits - 1)), k = q.k, n = q.n,
        words = there("i32", q.k / 16, q.n * w.bits / 2), scales = there(q.dtype, groups, q.n),
        zeros = w.zero_points and there("i32", groups, q.n / pf) or nil }
      if w.actorder then
        local perm, g_idx = nb.tensor("i32", { q.k }), nb.tensor("i32", { q.k })
        for i = 0, q.k - 1 do
          perm:set(i + 1, q.k - 1 - i)
          g_idx:set(i + 1, w.group > 0 and math.floor(i / w.group) or 0)
        end
        m.perm, m.sorted_g_idx = assert(perm:to "cuda"), assert(g_idx:to "cuda")
      end
      local ok, y, msg = pcall(gemm.marlin, there(q.dtype, 1, q.k), m)
      if ok and y then assert(y:to "cpu") end
      return ok and y ~= nil, ok and msg or y
    end
    local function ask(q)
      layers = layers + 1
      local said, why = backends.select(q, { change = false })
      local does, msg = accepts(q)
      taken = taken + (does and 1 or 0)
      if (said ~= nil) ~= does then
        local w = q.weight
        wrong[#wrong + 1] = ("%d bits, group %d, zero-points %s, act-order %s, k %d, n %d, %s: the oracle says %s, the device %s"):format(w.bits,
          w.group, tostring(w.zero_points), tostring(w.actorder), q.k, q.n, q.dtype, said and "yes" or why, does and "yes" or msg)
      end
    end
    local function layer(o)
      local weight = { type = "int", bits = o.bits or 4, zero_points = o.zeros or false, group = o.group or 64, actorder = o.actorder,
        strategy = (o.group or 64) > 0 and "group" or "channel" }
      ask { consumer = "nibble", backend = "marlin_cuda", kind = "linear", device = "cuda", weight = weight, dtype = o.dtype or "f16",
        k = o.k or 256, n = o.n or 128 }
    end
    for _, bits in ipairs { 2, 3, 4, 8 } do
      for _, zeros in ipairs { false, true } do
        for _, dtype in ipairs { "f16", "bf16", "f32" } do layer { bits = bits, zeros = zeros, dtype = dtype } end
        for _, group in ipairs { -1, 16, 32, 64, 128 } do layer { bits = bits, zeros = zeros, group = group, k = 128 } end
      end
    end
    for _, k in ipairs { 8, 16, 32, 48, 64, 80, 96, 100, 128, 384, 512 } do
      for _, group in ipairs { -1, 16, 32, 48, 64, 96, 128, 256, 384, 512 } do
        if group >= k or k % group == 0 then layer { k = k, group = group } end -- there are no other layers
      end
    end
    for _, n in ipairs { 8, 32, 64, 72, 96, 128, 192, 200 } do layer { n = n } layer { n = n, zeros = true, bits = 8 } end
    for _, group in ipairs { -1, 16, 32, 64, 128, 256 } do
      for _, bits in ipairs { 4, 8 } do layer { group = group, actorder = "group", bits = bits } end
    end
    print(#wrong == 0 and layers > 150 and taken > 50 and layers - taken > 30 and "true" or table.concat(wrong, "\n") ..
      ("\n%d of %d layers, %d are taken"):format(#wrong, layers, taken)) ]]

  it("marlin_cuda takes what gemm.marlin takes on the device, and nothing else", function()
    assert.equal("true", run(grid))
  end)

  it("the systems' linear methods take on the device what it says, and nothing else", function()
    assert.equal("true", run [[
      local methods, layer = require "nibble.methods", require "nibble.methods.layer"
      local layers, taken, wrong = 0, 0, {}
      local function ask(name, format, config, o)
        layers = layers + 1
        local said, why = nb.backends.select({ consumer = "nibble", backend = name, kind = "linear", device = "cuda", k = o.k, n = o.n,
          dtype = o.dtype, weight = { type = "int", bits = config.bits, group = config.group, format = format, zero_points = not config.sym,
            strategy = config.group > 0 and "group" or "channel" } }, { change = false })
        -- What the method does where the oracle isn't asked.
        local form = require("nibble.methods.device_forms")[name]
        local query = form.query
        form.query = function() end
        local ok, y, msg = pcall(function()
          local method, new_msg = methods.make(name, config, { on = "cuda" })
          if not method then return nil, new_msg end
          local L = layer.new { name = "l", dtype = o.dtype, k = o.k, n = o.n }
          local done, create_msg = method:create(L)
          if not done then return nil, create_msg end
          if not method:process(L) then return nil, "process" end
          return method:apply(L, nb.tensor(o.dtype, { 1, o.k }))
        end)
        form.query = query
        local does = ok and y ~= nil
        taken = taken + (does and 1 or 0)
        if (said ~= nil) ~= does then
          wrong[#wrong + 1] = ("%s, %d bits, group %d, k %d, n %d, %s: the oracle says %s, the device %s"):format(name, config.bits,
            config.group, o.k, o.n, o.dtype, said and "yes" or why, does and "yes" or tostring(ok and msg or y))
        end
      end
      for _, group in ipairs { -1, 16, 32, 48, 64, 128, 512 } do
        for _, size in ipairs { { 64, 64 }, { 96, 72 }, { 100, 64 }, { 24, 8 }, { 64, 12 }, { 128, 192 }, { 12, 64 } } do
          local o = { k = size[1], n = size[2], dtype = "f16" }
          for _, bits in ipairs { 4, 8 } do
            for _, name in ipairs { "awq", "awq_marlin" } do ask(name, "awq", { bits = bits, group = group, zero_point = true }, o) end
            for _, format in ipairs { "awq", "gptq" } do
              ask("inc", format, { bits = bits, group = group, sym = true, is_awq = format == "awq" }, o)
            end
          end
        end
      end
      for _, dtype in ipairs { "bf16", "f32" } do
        ask("awq", "awq", { bits = 4, group = 32, zero_point = true }, { k = 64, n = 64, dtype = dtype })
        ask("inc", "gptq", { bits = 4, group = 32, sym = false }, { k = 64, n = 64, dtype = dtype })
      end
      print(#wrong == 0 and taken > 60 and layers - taken > 60 and "true" or table.concat(wrong, "\n") ..
        ("\n%d of %d layers, %d are taken"):format(#wrong, layers, taken)) ]])
  end)

  it("the systems' methods of experts take on the device what it says, and nothing else", function()
    assert.equal("true", run [[
      local methods, layer = require "nibble.methods", require "nibble.methods.layer"
      local forms, layers, taken, wrong = require "nibble.methods.device_forms", 0, 0, {}
      local function ask(name, config, o)
        layers = layers + 1
        local entry, said, why = forms[name], nil, nil
        local query = entry.query
        entry.query = function(method, L) -- the oracle's answer is kept, and the method goes on
          local q = query(method, L)
          q.consumer, q.backend, q.device = "nibble", name, "cuda"
          said, why = nb.backends.select(q, { change = false })
        end
        local ok, y, msg = pcall(function()
          local method, new_msg = methods.make(name, config, { on = "cuda" })
          if not method then return nil, new_msg end
          local L = layer.new { name = "l", kind = "moe", dtype = o.dtype or "f16", experts = 2, hidden = o.h or 128, intermediate = o.i or 128,
            top = 1, tp = o.tp, activation = o.activation, gated = o.gated, ep = o.ep, disable_inplace = true }
          local done, create_msg = method:create(L)
          if not done then return nil, create_msg end
          for _, g in ipairs { "w13_g_idx", "w2_g_idx", "w13_weight_g_idx", "w2_weight_g_idx" } do
            local t = o.act and L:get(g)
            for i = 1, t and t:numel() or 0 do t:set(i, math.floor((i - 1) % t:size(2) / config.group)) end
          end
          for _, g in ipairs { "w13_weight_global_scale", "w2_weight_global_scale" } do
            if L:get(g) then L:get(g):fill(1) end
          end
          done, create_msg = method:process(L)
          if not done then return nil, create_msg end
          local x = nb.tensor(o.dtype or "f16", { 1, L.h })
          if method.monolithic then return method:apply_monolithic(L, x, nb.tensor("f32", { 1, 2 })) end
          return method:apply(L, x, nb.tensor("f32", { 1, 1 }), nb.tensor("i32", { 1, 1 }))
        end)
        entry.query = query
        local does = ok and y ~= nil
        taken = taken + (does and 1 or 0)
        if why == nil and said == nil then said = false end -- refused before the oracle was asked
        if said == false and not does then return end
        if (said and true or false) ~= does then
          wrong[#wrong + 1] = ("%s, %s bits, group %s, h %d, i %d of %d ranks%s: the oracle says %s, the device %s"):format(name, config.bits,
            config.group, o.h or 128, o.i or 128, o.tp or 1, o.act and ", act-order" or "", said and "yes" or tostring(why),
            does and "yes" or tostring(ok and msg or y))
        end
      end
      local a8 = { type = "int", bits = 8, symmetric = true, strategy = "token", dynamic = true }
      for _, group in ipairs { -1, 48, 64, 128 } do
        for _, o in ipairs { { h = 192 }, { i = 96 }, { i = 128, tp = 2 }, { h = 96 }, { i = 64, activation = "relu2_no_mul", gated = false },
          { dtype = "f32" }, { h = 64, i = 64, ep = 2 } } do
          local strategy = group > 0 and "group" or "channel"
          ask("awq_marlin_moe", { bits = 4, group = group, zero_point = true }, o)
          ask("moe_wna16", { method = "awq", bits = 4, group = group, zero_point = true }, o)
          ask("moe_wna16", { method = "gptq", bits = 8, group = group, zero_point = false }, o)
          ask("w4a8_moe", { type = "int", bits = 4, symmetric = true, strategy = strategy, group = group, activations = a8 }, o)
          for _, act in ipairs { false, true } do
            local more = setmetatable({ act = act }, { __index = o })
            ask("gptq_marlin_moe", { bits = 4, group = group, sym = true, desc_act = act }, more)
            ask("ct_wna16_moe", { type = "int", bits = 8, symmetric = true, strategy = strategy, group = group, actorder = act and "group" or nil }, more)
          end
        end
      end
      local function fp8(strategy, activations, block)
        return { type = "float", bits = 8, symmetric = true, strategy = strategy, block = block, group = block and block[2], activations = activations }
      end
      local token = { type = "float", bits = 8, symmetric = true, dynamic = true, strategy = "token" }
      local nvfp4 = { type = "float", bits = 4, symmetric = true, strategy = "tensor_group", group = 16 }
      for _, o in ipairs { {}, { h = 192, i = 64 }, { h = 96 }, { i = 80 }, { i = 100 }, { i = 256, tp = 2 }, { dtype = "f32" } } do
        for _, s in ipairs { fp8 "tensor", fp8("channel", token), fp8("channel"), fp8("block", nil, { 128, 128 }), fp8("block", nil, { 64, 32 }) } do
          ask("ct_fp8_moe", s, o)
        end
        ask("ct_nvfp4_moe", nvfp4, o)
      end
      print(#wrong == 0 and taken > 30 and layers - taken > 60 and "true" or table.concat(wrong, "\n") ..
        ("\n%d of %d layers, %d are taken"):format(#wrong, layers, taken)) ]])
  end)

  it("dequantize_cuda takes every scheme without activations, and the device dequantizes it as the CPU does", function()
    local out = run [[
      local w, schemes, seen = nb.tensor("f32", { 32, 256 }), require "nibble.scheme_presets", 0
      for i = 1, w:numel() do w:set(i, math.sin(i * 78.233) / 8) end
      for _, name in ipairs(schemes.names()) do
        local q = w:quantize { scheme = name }
        local said = q and nb.backends.select({ consumer = "nibble", backend = "dequantize_cuda", kind = "linear", device = "cuda",
          weight = { type = q.scheme.type, bits = q.scheme.bits, group = q.scheme.group, symmetric = q.scheme.symmetric,
            strategy = q.scheme.strategy, block = q.scheme.block }, k = 256, n = 32 }, { change = false })
        if q and (not said or not q:to("cuda"):dequantize():to("cpu"):equal(q:dequantize())) then print(name) end
        seen = seen + (q and 1 or 0)
      end
      print(seen > 8) ]]
    assert.equal("true", out)
  end)

  it("a device that is too old takes nothing", function()
    assert.matches("needs SM 80 or above, found SM 75", (run([[
      print((select(2, nb.backends.select { consumer = "nibble", kind = "linear", device = "cuda", k = 256, n = 128,
        weight = { type = "int", bits = 4, group = 64 } })))
      print((select(2, nb.cuda.new("cuda", "f16", { 1, 256 })))) ]], { NB_EMU_SM = 75 })))
  end)
end)

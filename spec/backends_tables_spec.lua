-- What each consumer decides for linear layers, by its tables: AWQ-20, AWQ-21, MRL-05, MRL-06, INC-18 to INC-20,
-- C-01, C-05, and what llama.cpp and nibble itself take.
local nb = require "nibble"
local marlin = require "nibble.marlin"
local methods = require "nibble.methods"
local backends = require "nibble.backends"
local support = require "spec.support.backends"
local with, why, chosen = support.with, support.why, support.chosen
local weight, linear, experts = support.weight, support.linear, support.experts

describe("vllm-0.33: linear layers", function()
  it("AWQ-21: the order of the kernels on CUDA", function()
    assert.same({ "cutlass_w4a8", "machete", "marlin", "conch", "exllama", "triton_w4a16", "humming" },
      backends.priority { consumer = "vllm-0.33", table = "WNA16 linear", device = "sm_90" })
  end)

  -- A query that the kernel takes, and one thing wrong with it at a time.
  local w4afp8 = { activation = { type = "float", bits = 8, strategy = "token", dynamic = true } }
  local rows = {
    cutlass_w4a8 = { base = linear({ device = "sm_90" }, w4afp8),
      { { device = "xpu" }, "needs CUDA" }, { { device = "sm_100" }, "needs SM 90, found SM 100" },
      { { input = "bf16" }, "takes input of fp8, found bf16" }, { { weight = weight { symmetric = false } },
        "takes no zero%-points" },
      { { weight = weight { bits = 8 } }, "takes the types int4, found int8" },
      { { weight = weight { group = 64 } }, "group sizes 128, found 64" },
      { { k = 4096 + 64 }, "K of a multiple of 128, found 4160" }, { { n = 11040 },
        "N of a multiple of 128, found 11040" },
      { { dtype = "f16" }, "takes output of bf16, found f16" } },
    machete = { base = linear { device = "sm_90" },
      { { device = "sm_80" }, "needs SM 90, found SM 80" }, { { device = "sm_100" }, "needs SM 90, found SM 100" },
      { { weight = weight { bits = 3 } }, "types uint4b8 or uint8b128 without zero%-points, found uint3b4" },
      { { weight = weight { bits = 3, symmetric = false } }, "types uint4 or uint8 with zero%-points, found uint3" },
      { { weight = weight { group = 32 } }, "group sizes %-1, 64 or 128 with bf16 input, found 32" },
      { { weight = weight { group = 64 }, input = "int8" }, "group sizes %-1 or 128 with int8 input, found 64" },
      { { k = 4096 + 32 }, "K of a multiple of 64" }, { { n = 11000 }, "N of a multiple of 128, found 11000" },
      { { weight = weight { actorder = "group" }, k = 2048, k_full = 4096 },
        "act%-order only with the whole K.*2048 of 4096" } },
    marlin = { base = linear {},
      { { device = "rocm" }, "needs CUDA, found ROCm", rocm = true }, { { device = "sm_70" },
        "needs SM 75 or above, found SM 70" },
      { { weight = weight { bits = 8, symmetric = false } }, "takes the types uint4 with zero%-points, found uint8" },
      { { weight = weight { bits = 2 } }, "found uint2b2" }, { { weight = weight { group = 256 } },
        "group sizes %-1, 32, 64 or 128, found 256" },
      { { k = 4096 + 64, k_full = 16640 }, "K = 4160 of this rank is not a multiple of the group size 128" },
      { { input = "int8", weight = weight { symmetric = false } },
        "takes int8 input with uint4b8 weights only, found uint4" } },
    conch = { base = linear { packages = { ["conch-triton-kernels"] = true } },
      { { device = "sm_75" }, "needs SM 80 or above" }, { { weight = weight { bits = 3 } }, "found uint3b4" },
      { { weight = weight { group = 64 } }, "group sizes %-1 or 128, found 64" },
      { { packages = {} }, "needs the package conch%-triton%-kernels, which is not installed" } },
    exllama = { base = linear { dtype = "f16" },
      { { device = "sm_50" }, "needs SM 60 or above, found SM 50" }, { { n = 11004 },
        "N of a multiple of 8 %(32 bits / 4%), found 11004" },
      { { dtype = "bf16" }, "takes input of f16, found bf16" },
      { { weight = weight { symmetric = false } }, "types uint4b8 or uint8b128, found uint4" },
      { { weight = weight { group = -1 } }, "takes groups, not channels" },
      { { k = 4160, weight = weight { group = 128 } },
        "the whole K of a multiple of the group size 128, found 4160" } },
    triton_w4a16 = { base = linear {},
      { { weight = weight { bits = 8 } }, "types uint4 or uint4b8, found uint8b128" },
      { { dtype = "f32" }, "takes input of f16 or bf16, found f32" }, { { n = 11004 },
        "N of a multiple of 8, found 11004" },
      { { weight = weight { group = 512 } }, "or the whole K %(4096%), found 512" },
      { { k = 4160 }, "K of a multiple of the group size 128, found 4160" }, { { device = "xpu" }, "CUDA or ROCm" } },
    humming = { base = linear { packages = { humming = true }, weight = weight { bits = 3 } },
      { { packages = {} }, "needs the package humming" }, { { device = "sm_70" }, "needs SM 75" } },
  }

  for name, cases in pairs(rows) do
    it(("AWQ-21: %s takes what fits and says what does not"):format(name), function()
      assert.is_nil((why(cases.base, name)))
      for _, case in ipairs(cases) do
        local q = with(cases.base, case[1])
        -- Kernels of another platform are not asked at all; their own check is there for whoever asks by name.
        local reason
        if q.device:match "^sm_" then
          reason = why(q, name)
        else
          local _, msg = chosen(with(q, { backend = name == "cutlass_w4a8" and "cutlass" or name == "triton_w4a16"
            and "triton" or name }))
          reason = msg
        end
        assert.matches(case[2], reason)
      end
    end)
  end

  it("AWQ-20: the first capable kernel wins; if none, every kernel is listed with its reason", function()
    assert.equal("machete", chosen(linear { device = "sm_90" }))
    assert.equal("marlin", chosen(linear { device = "sm_90", n = 11000 }))
    assert.equal("triton_w4a16", chosen(linear { device = "sm_80", weight = weight { group = 256 } }))
    assert.equal("exllama", chosen(linear { dtype = "f16", device = "sm_70" }))
    local name, msg = chosen(linear { weight = weight { bits = 3 } })
    assert.is_nil(name)
    for _, kernel in ipairs { "cutlass_w4a8", "machete", "marlin", "conch", "exllama", "triton_w4a16", "humming" } do
      assert.matches(kernel .. ": %l", msg)
    end
    local r = assert(backends.select(linear { device = "sm_90", disabled = { "MacheteLinearKernel" } }))
    assert.same({ "marlin", "is disabled by name", "enable MacheteLinearKernel" },
      { r.backend, r.rejected[2].reason, r.change })
  end)

  it("AWQ-20: each kernel's name is told once", function()
    local told = {}
    local function sink(level, message) told[#told + 1] = level .. " " .. message end
    for _ = 1, 3 do assert(backends.select(linear { device = "sm_90" }, { log = sink })) end
    local count = 0
    for _, line in ipairs(told) do count = count + (line:match "^info.*machete" and 1 or 0) end
    assert.equal(1, count)
  end)

  it("AWQ-21: other platforms have their own kernels", function()
    assert.equal("triton_w4a16", chosen(linear { device = "rocm" }))
    assert.equal("cpu_wna16", chosen(linear { device = "cpu" }))
    assert.equal("xpu_wna16", chosen(linear { device = "xpu" }))
    local _, msg = chosen(linear { device = "cpu", k = 4096 + 16 })
    assert.matches("cpu_wna16: needs K of a multiple of 32, found 4112", msg)
  end)

  it("AWQ-21: marlin says what the peer's own check said, row by row", function()
    local file = assert(io.open "spec/golden/tables/marlin_linear_can_implement.json")
    local rows_of = assert(nb.json.decode(file:read "*a")).rows
    file:close()
    local compared = 0
    for _, row in ipairs(rows_of) do
      if row.weight_type:match "^u?int" then
        local q = linear { k = row.partition[1], n = row.partition[2], k_full = row.full[1], n_full = row.full[2],
          weight = { type = row.weight_type, group = row.group_size, zero_points = row.zero_points } }
        assert.equal(row.supported, why(q, "marlin") == nil)
        compared = compared + 1
      end
    end
    assert.is_true(compared > 20)
  end)

  it("CTM-FP8-01, CTM-NVFP4-02: float weights on the main kernels", function()
    local fp8 = { type = "float", bits = 8, strategy = "channel" }
    local token = { type = "float", bits = 8, strategy = "token", dynamic = true }
    assert.equal("marlin", chosen(linear { weight = fp8, activation = token }))
    assert.equal("cutlass", chosen(linear { weight = fp8, activation = token, device = "sm_90" }))
    local block = { type = "float", bits = 8, strategy = "block", block = { 128, 128 } }
    -- A scheme is a weight with its activations.
    local scheme = assert(nb.scheme.try "W4A16 g64 asym")
    assert.same({ "marlin", "uint4" }, { chosen(linear { weight = scheme }),
      assert(backends.select(linear { weight = scheme })).quant.type })
    assert.equal("cutlass", chosen(linear { weight = with(fp8, { activations = token }), device = "sm_90" }))
    assert.equal("deep_gemm", chosen(linear { weight = block, activation = { type = "float", bits = 8,
      strategy = "group", group = 128 }, device = "sm_90" }))
    local nvfp4 = { type = "float", bits = 4, strategy = "tensor_group", group = 16 }
    assert.equal("marlin", chosen(linear { weight = nvfp4, activation = with(nvfp4, { dynamic = "local" }),
      device = "sm_90" }))
    assert.equal("flashinfer_cutlass", chosen(linear { weight = nvfp4, activation = with(nvfp4, { dynamic = "local" }),
      device = "sm_100" }))
  end)
end)

describe("the other consumers", function()
  local awq = weight { symmetric = false, format = "awq" }

  it("document-era: dense AWQ runs on AWQ-Marlin, or falls back with a warning (AWQ-15, C-05)", function()
    local base = linear { consumer = "document-era", weight = awq }
    assert.equal("awq_marlin", chosen(base))
    local name, _, r = chosen(with(base, { n = 11000, name = "mlp.gate" }))
    assert.same({ "awq", true }, { name, r.fallback })
    assert.equal("falling back to the unoptimized AWQ kernels for layer mlp.gate: awq_marlin: needs N of a "
      .. "multiple of 64, found 11000", r.warning)
    local _, msg = chosen(with(base, { n = 11000, strict = true }))
    assert.matches("^no AWQ linear backend supports", msg)
    -- A pair that no kernel runs is refused, not slowed down. (AWQ-27)
    _, msg = chosen(with(base, { input = "int8" }))
    assert.matches("takes int8 input with uint4b8 weights only, found uint4", msg)
    _, msg = chosen(with(base, { weight = with(awq, { bits = 8 }) }))
    assert.matches("takes weights of bits 4, found 8", msg)
    _, _, r = chosen(with(base, { weight = weight { format = "awq" } }))
    assert.equal("needs zero-points, found symmetric weights", r.rejected[1].reason)
  end)

  it("MRL-05: the document's shapes, in their order", function()
    local function verdict(n, k, k_full, g)
      local q = linear { consumer = "document-era", n = n, k = k, k_full = k_full, weight = with(awq, { group = g }) }
      return why(q, "awq_marlin")
    end
    for _, n in ipairs { 64, 96 } do
      for _, k in ipairs { 64, 128, 192, 384 } do
        for _, g in ipairs { -1, 32, 64, 128 } do
          assert.equal(marlin.supports_shape(n, k, k * 2, g == -1 and k or g), verdict(n, k, k * 2, g) == nil)
        end
      end
    end
    assert.matches("N of a multiple of 64, found 96", verdict(96, 64, 64, 128))
    assert.matches("K of a multiple of 128, found 64", verdict(64, 64, 64, 128))
  end)

  it("MRL-06, MRL-53, C-01: pymllm needs SM 80, takes 8 bits, and raises on shapes", function()
    local base = linear { consumer = "pymllm", weight = awq }
    assert.equal("awq_marlin", chosen(base))
    assert.equal("awq_marlin", chosen(with(base, { weight = with(awq, { bits = 8 }) })))
    local _, msg = chosen(with(base, { device = "sm_75" }))
    assert.matches("needs SM 80 or above, found SM 75", msg)
    assert.equal("awq_marlin", chosen(with(base, { consumer = "document-era", device = "sm_75" })))
    local name
    name, msg = chosen(with(base, { n = 96 }))
    assert.is_nil(name)
    assert.matches("needs N of a multiple of 64, found 96: use a smaller tensor%-parallel size or the plain method",
      msg)
    _, msg = chosen(with(base, { weight = with(awq, { bits = 3 }) }))
    assert.matches("takes weights of bits 4 or 8, found 3", msg)
    _, msg = chosen(with(base, { weight = with(awq, { group = 16 }) }))
    assert.matches("group sizes %-1, 32, 64 or 128, found 16", msg)
    _, msg = chosen(experts { consumer = "pymllm" })
    assert.equal("pymllm has no table for MoE layers", msg)
  end)

  it("INC-18: XPU", function()
    local base = linear { consumer = "inc-xpu", device = "xpu", weight = weight { format = "gptq" } }
    local ark = { packages = { auto_round_kernel = true } }
    assert.equal("ark", chosen(with(base, ark)))
    local told = {}
    local r = assert(backends.select(base, { log = function(level, m) told[#told + 1] = level .. " " .. m end }))
    assert.equal("w4a16", r.backend)
    assert.matches("debug w4a16: the XPU's own path, where ARK is not", table.concat(told, "\n"))
    assert.equal("ark", chosen(with(base, ark, { weight = weight { bits = 2 } })))
    local _, msg = chosen(with(base, { weight = weight { bits = 2 } }))
    assert.matches("ark: needs the package auto_round_kernel", msg)
    _, msg = chosen(with(base, { backend = "ark" }))
    assert.matches("backend ark does not support this deployment: it needs the package auto_round_kernel", msg)
    assert.equal("w4a16", chosen(with(base, ark, { backend = "w4a16" })))
    local name
    name, _, r = chosen(with(base, { backend = "w4a8" }))
    assert.same({ "w4a8", "fewer than 512 tokens run as w4a16" }, { name, r.note })
    _, msg = chosen(with(base, { backend = "w4a8", weight = weight { group = -1 } }))
    assert.matches("takes groups, not channels", msg)
    _, msg = chosen(with(base, { backend = "w4a8", weight = weight { group = 48 } }))
    assert.matches("groups of a multiple of 32, found 48", msg)
    _, msg = chosen(with(base, { backend = "w4a8", n = 11004 }))
    assert.matches("N of a multiple of 8, found 11004", msg)
    _, msg = chosen(with(base, { backend = "w4a8", weight = weight { bits = 2 } }))
    assert.matches("takes symmetric weights of 4 bits only, found 2 bits, symmetric", msg)
    _, msg = chosen(with(base, { weight = weight { symmetric = false } }))
    assert.matches("found 4 bits, asymmetric", msg)
  end)

  it("INC-18: the CPU", function()
    local base = linear { consumer = "inc-cpu", device = "cpu", weight = weight { format = "gptq" } }
    assert.equal("generic", chosen(base))
    assert.equal("ark", chosen(with(base, { packages = { auto_round_kernel = true } })))
    for _, w in ipairs { weight { format = "gptq", bits = 8 }, weight { format = "gptq", symmetric = false },
      weight { format = "awq" } } do
      assert.is_nil((chosen(with(base, { weight = w }))))
    end
  end)

  it("INC-18, INC-19: CUDA", function()
    local base = linear { consumer = "inc-cuda", weight = weight { format = "gptq" } }
    assert.equal("marlin", chosen(base))
    assert.equal("marlin", chosen(with(base, { weight = weight { format = "gptq", bits = 8 } })))
    local _, msg = chosen(with(base, { weight = weight { format = "gptq", symmetric = false } }))
    assert.matches("takes symmetric weights of 4 or 8 bits only, found 4 bits, asymmetric", msg)
    for _, bits in ipairs { 2, 3, 5, 6, 7 } do assert.equal("humming", chosen(with(base,
      { weight = weight { bits = bits } }))) end
    assert.equal("marlin", chosen(with(base, { weight = awq })))
    assert.equal("awq", chosen(with(base, { weight = with(awq, { group = 16 }) })))
    _, msg = chosen(with(base, { weight = with(awq, { bits = 8 }) }))
    assert.matches("marlin: takes the types uint4 with zero%-points, found uint8; awq: takes weights of bits 4, "
      .. "found 8", msg)
  end)

  it("INC-20: every refusal names layer, requested backend, bits, sym and group size", function()
    for _, q in ipairs {
      linear { consumer = "inc-xpu", device = "xpu", weight = weight { symmetric = false } },
      linear { consumer = "inc-xpu", device = "xpu", weight = weight { symmetric = false }, backend = "w4a8" },
      linear { consumer = "inc-xpu", device = "xpu", weight = weight { symmetric = false }, backend = "best" },
      linear { consumer = "inc-cpu", device = "cpu", weight = weight { symmetric = false } },
      linear { consumer = "inc-cuda", weight = weight { symmetric = false, format = "gptq" } },
    } do
      q.name = "model.layers.3.mlp"
      local name, msg = chosen(q)
      assert.is_nil(name)
      assert.matches(("%%(layer model.layers.3.mlp, backend %s, 4 bits, asymmetric, group size 128%%)"):format(q.backend
        or "auto"), msg)
    end
  end)

  it("llama.cpp takes GGUF only, of whole blocks", function()
    local base = linear { consumer = "llama.cpp" }
    local _, msg = chosen(base)
    assert.matches("ggml%-cpu: takes gguf only, found another format: convert it to GGUF first", msg)
    local gguf = { weight = { type = "int", bits = 4, format = "gguf", ggml = "Q4_K" } }
    assert.equal("ggml-cuda", chosen(with(base, gguf)))
    assert.equal("ggml-cpu", chosen(with(base, gguf, { device = "cpu" })))
    _, msg = chosen(with(base, gguf, { k = 4096 + 128, device = "cpu" }))
    assert.matches("K of a multiple of 256, the block of Q4_K, found 4224", msg)
    assert.equal("ggml-cpu", chosen(with(base, { weight = { type = "int", bits = 8, format = "gguf", ggml = "Q8_0" },
      k = 4096 + 32, device = "cpu" })))
    assert.equal("ggml-cpu", chosen(with(base, { weight = { type = "int", bits = 2, format = "gguf",
      ggml = "TQ1_0" } })))
    _, msg = chosen(with(base, { weight = { type = "int", bits = 4, format = "gguf", ggml = "Q4_X" } }))
    assert.matches("found Q4_X", msg)
    assert.equal("ggml-hip", chosen(experts { consumer = "llama.cpp", device = "rocm", weight = gguf.weight }))
  end)

  it("nibble computes everything on the CPU, and says what it does not", function()
    local base = linear { consumer = "nibble", device = "cpu" }
    assert.equal("reference", chosen(base))
    assert.equal("awq_marlin", chosen(with(base, { weight = awq })))
    assert.equal("awq", chosen(with(base, { weight = with(awq, { bits = 8 }) })))
    assert.equal("awq", chosen(with(base, { weight = with(awq, { group = 256 }) })))
    for bits = 2, 8 do
      for _, symmetric in ipairs { true, false } do
        assert.is_truthy((chosen(with(base, { weight = weight { bits = bits, symmetric = symmetric, group = 32 } }))))
      end
    end
    assert.equal("reference", chosen(with(base, { weight = weight { bits = 3 } })))
    assert.equal("reference", chosen(with(base, { weight = { type = "float", bits = 8, strategy = "channel" } })))
    assert.equal("ct_nvfp4_moe", chosen(experts { consumer = "nibble", device = "cpu",
      weight = { type = "float", bits = 4, group = 16 } }))
    assert.equal("w4a8_moe", chosen(experts { consumer = "nibble", device = "cpu",
      activation = { type = "int", bits = 8, strategy = "token" } }))
    local _, msg = chosen(with(base, { device = "xpu" }))
    assert.matches("nibble linear: needs the CPU, found XPU; nibble linear on CUDA: needs CUDA", msg)
    _, msg = chosen(with(base, { weight = { type = "int", bits = 4, format = "gguf", ggml = "Q4_0" } }))
    assert.matches("takes no GGUF weights", msg)
  end)

  it("nibble's table names the methods that run layers, in the order in which they are tried", function()
    local found = { linear = {}, moe = {} }
    for _, t in ipairs(backends.consumer("nibble").tables) do
      for _, b in ipairs(t.backends) do
        if b.name ~= "reference" and not t.name:match "CUDA" then table.insert(found[t.kind], b.name) end
      end
    end
    assert.same({ linear = methods.candidates "linear", moe = methods.candidates "moe" }, found)
    local base = linear { consumer = "nibble", device = "cpu" }
    assert.equal("inc", chosen(with(base, { weight = weight { format = "gptq" } })))
    assert.equal("reference", chosen(with(base, { weight = weight { format = "gptq", actorder = "group" } })))
    assert.equal("gptq_marlin_moe", chosen(experts { consumer = "nibble", device = "cpu", weight = weight { format = "gptq" } }))
  end)

  it("lists rows in words for every consumer", function()
    for _, name in ipairs(backends.consumers()) do
      local rows = backends.rows(name)
      assert.is_true(#rows > 0)
      for _, r in ipairs(rows) do assert.is_true(type(r.checks) == "string" and #r.table > 0 and #r.backend > 0) end
    end
    local found
    for _, r in ipairs(backends.rows "vllm-0.33") do
      if r.backend == "machete" then found = r end
    end
    assert.same({ 2, "linear", "AWQ-21" }, { found.priority, found.kind, found.requirement })
    assert.matches("^on CUDA; SM 90; .*N of a multiple of 128$", found.checks)
  end)
end)

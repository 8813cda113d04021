-- What each consumer decides for experts, by its tables: ORC-01 to ORC-13, CTM-NVFP4-10 to -12, CTM-FP8-12 to -14,
-- CTM-W4A8-01, -02, -09, -10, CTM-WNA16-01, -02, -11, C-08.
local marlin = require "nibble.marlin"
local backends = require "nibble.backends"
local support = require "spec.support.backends"
local with, why, chosen, weight, experts = support.with, support.why, support.chosen, support.weight, support.experts

describe("WNA16 MoE", function()
  it("ORC-01: the documents' two backends, both always listed", function()
    assert.same({ "MARLIN", "BATCHED_MARLIN" }, backends.priority { consumer = "document-era", table = "WNA16 MoE",
      device = "cpu" })
    local list = assert(backends.reasons(experts { consumer = "document-era", device = "cpu" }))
    assert.same({ "MARLIN", "BATCHED_MARLIN" }, { list[1].backend, list[2].backend })
    assert.matches("needs CUDA, found the CPU", list[2].reason)
  end)

  it("ORC-02: the later order by platform", function()
    local function order(device) return table.concat(backends.priority { consumer = "vllm-0.33", table = "WNA16 MoE",
      device = device }, " ") end
    assert.equal("RDNA3 FLASHINFER_TRTLLM MARLIN BATCHED_MARLIN TRITON HUMMING EMULATION", order "sm_80")
    assert.equal("ZEN_CPU CPU", order "cpu")
    assert.equal("XPU", order "xpu")
  end)

  for _, consumer in ipairs { "document-era", "vllm-0.33" } do
    it("ORC-03, ORC-04: " .. consumer .. ": the format decides between the Marlin backends; activations are 16-bit",
      function()
      local q = experts { consumer = consumer }
      local name, _, r = chosen(q)
      assert.same({ "MARLIN", "none" }, { name, r.quant.activations })
      assert.equal("BATCHED_MARLIN", chosen(with(q, { format = "batched" })))
      assert.equal("serves standard activations, found batched", (why(with(q, { format = "batched" }), "MARLIN")))
      assert.equal("serves batched activations, found standard", (why(q, "BATCHED_MARLIN")))
    end)
  end

  it("ORC-10: what Marlin takes", function()
    for _, ok in ipairs {
      { gated = false, activation_fn = "relu2_no_mul" }, { activation_fn = "swigluoai" },
        { activation_fn = "swiglustep" }, { lora = true },
      { weight = weight { symmetric = false } }, { weight = weight { group = 32 } }, { weight = weight { bits = 8 } },
      { weight = weight { group = 32, symmetric = false } }, { all2all = "deepep_ht" }, { batch_invariant = true },
        { weight = weight { actorder = "group" } },
    } do assert.is_nil((why(experts(ok), "MARLIN"))) end
    for _, no in ipairs {
      { { device = "sm_70" }, "needs SM 75 or above, found SM 70" }, { { activation_fn = "tanh" }, "found tanh" },
      { { all2all = "fi_nvl_two_sided" }, "fi_nvl_two_sided" }, { { weight = weight { bits = 3 } }, "found int3" },
      { { routing = { hash = true } }, "hash" }, { { weight = weight { actorder = "group" }, input = "fp8" },
        "takes act%-order with 16%-bit input only, found fp8" },
    } do assert.matches(no[2], (why(experts(no[1]), "MARLIN"))) end
    for _, float in ipairs { { bits = 8, strategy = "tensor" }, { bits = 8, strategy = "channel" },
      { bits = 8, strategy = "block", block = { 128, 128 } },
                             { bits = 8, group = 32 }, { bits = 4, group = 16 } } do
      float.type = "float"
      assert.is_nil((why(experts { weight = float }, "MARLIN")))
    end
  end)

  it("ORC-12, C-08: 8-bit weights are refused with a reason, not with nothing", function()
    local q = experts { consumer = "document-era", weight = weight { bits = 8 } }
    local reason, requirement = why(q, "MARLIN")
    assert.same({ "takes weights of bits 4, found 8", "ORC-12" }, { reason, requirement })
    local name, msg = chosen(q)
    assert.is_nil(name)
    assert.matches("no WNA16 MoE backend supports the deployment configuration: MARLIN: takes weights of bits "
      .. "4, found 8; BATCHED_MARLIN:", msg)
    reason, requirement = why(experts { weight = weight { bits = 8, symmetric = false } }, "MARLIN")
    assert.same({ "takes weights of int4, int4 asym or int8, found int8 asym", "ORC-12" }, { reason, requirement })
  end)

  it("ORC-13: what layout, zero-points, bias, act-order and shapes make impossible", function()
    local function says(backend, o, pattern)
      local reason, requirement = why(experts(o), backend)
      assert.matches(pattern, reason)
      assert.equal("ORC-13", requirement)
    end
    says("FLASHINFER_TRTLLM", { device = "sm_100", weight = weight { group = 32, type = "uint4b8",
      zero_points = false }, bias = true }, "takes no bias")
    says("TRITON", { weight = weight { format = "awq" } }, "no weights in the awq layout")
    says("TRITON", { weight = weight { format = "gptq", actorder = "group" } }, "takes no act%-order")
    says("TRITON", { bias = true }, "takes no bias")
    says("MARLIN", { weight = weight { format = "moe_wna16" } }, "no weights in the moe_wna16 layout")
    says("MARLIN", { weight = weight { group = 256 } }, "group sizes")
    says("MARLIN", { hidden = 2000 }, "hidden size of a multiple of 128, found 2000")
    says("MARLIN", { intermediate = 192 }, "intermediate size of a multiple of 128 %(group 128%), found 192")
    assert.is_nil((why(experts { intermediate = 192, weight = weight { group = 64 } }, "MARLIN")))
  end)

  it("MRL-07, MRL-08: the Marlin MoE shapes are marlin.supports_moe's, and the peer's", function()
    for _, hidden in ipairs { 128, 192, 256 } do
      for _, intermediate in ipairs { 64, 96, 128, 192 } do
        for _, g in ipairs { -1, 16, 32, 64, 128 } do
          for _, pad in ipairs { false, true } do
            local q = experts { hidden = hidden, intermediate = intermediate, weight = weight { group = g },
              tile_padding = pad }
            assert.equal(marlin.supports_moe(hidden, intermediate, g, { pad = pad }), why(q, "MARLIN") == nil)
          end
        end
      end
    end
    local q = experts { consumer = "document-era", weight = weight { symmetric = false, format = "awq" } }
    assert.equal("awq_marlin", chosen(q))
    local function fallback(o)
      local name, _, r = chosen(with(q, o))
      assert.same({ "moe_wna16", true, 1 }, { name, r.fallback, #r.rejected })
      return r.rejected[1].reason
    end
    assert.matches("router weight", fallback { router_weight_on_input = true })
    assert.matches("found gelu", fallback { activation_fn = "gelu" })
    assert.matches("intermediate size", fallback { intermediate = 96 })
  end)

  it("CTM-WNA16-01, CTM-WNA16-02: compressed-tensors' experts of the documents' era", function()
    local ct = experts { consumer = "document-era", weight = weight { format = "pack-quantized", group = 32 } }
    local told = {}
    local function sink(level, m) if level == "info" then told[#told + 1] = m end end
    local r = assert(backends.select(ct, { log = sink }))
    assert.equal("Marlin", r.backend)
    assert.same({ "using the compressed-tensors WNA16 MoE backend Marlin (group size 32, 4 bits)" }, told)
    local enabled = with(ct, { device = "sm_100", packages = { flashinfer_mxint4 = true } })
    r = assert(backends.select(enabled))
    assert.same({ "Flashinfer", true }, { r.backend, r.monolithic })
    for _, o in ipairs { { packages = {} }, { device = "sm_90" }, { weight = weight { format = "pack-quantized",
      group = 128 } },
                         { weight = weight { format = "pack-quantized", group = 32, bits = 8 } } } do
      assert.equal("Marlin", chosen(with(enabled, o)))
    end
    for _, bits in ipairs { 2, 3, 5, 6, 7 } do
      local _, msg = chosen(with(ct, { weight = weight { format = "pack-quantized", bits = bits } }))
      assert.matches("takes weights of bits 4 or 8, found " .. bits, msg)
    end
    local _, msg = chosen(with(ct, { weight = weight { format = "pack-quantized", symmetric = false } }))
    assert.matches("takes no zero%-points", msg)
    local name = chosen(experts { device = "sm_100", weight = weight { group = 32, format = "pack-quantized" } })
    assert.equal("FLASHINFER_TRTLLM", name)
  end)

  it("CTM-WNA16-11: only 4 bits have a description, of block shape [0, g]", function()
    local ct = experts { consumer = "document-era", weight = weight { format = "pack-quantized", group = 64 } }
    assert.same({ 0, 64 }, assert(backends.select(ct)).quant.block_shape)
    assert.is_false(assert(backends.select(ct)).quant.zero_points)
    ct.weight = weight { format = "pack-quantized", bits = 8 }
    assert.is_nil(assert(backends.select(ct)).quant)
  end)

  it("ORC-08, ORC-11: classes and names", function()
    assert.same({ "MarlinExperts" }, backends.classes("document-era", "WNA16 MoE", "MARLIN"))
    assert.same({ "BatchedMarlinExperts" }, backends.classes("document-era", "WNA16 MoE", "BATCHED_MARLIN"))
    assert.error_matches(function() backends.classes("document-era", "WNA16 MoE", "NONE") end,
      "unknown WNA16 MoE backend NONE")
    local _, msg = chosen(experts { backend = "cutlass" })
    assert.equal("backend cutlass is unknown to the table WNA16 MoE; expected one of triton, marlin, humming, "
      .. "flashinfer_trtllm, emulation, rdna3", msg)
    _, msg = chosen(experts { backend = "flashinfer_trtllm" })
    assert.equal("the WNA16 MoE backend FLASHINFER_TRTLLM does not support this deployment: it needs SM 10x, "
      .. "found SM 80", msg)
    assert.equal("EMULATION", chosen(experts { backend = "emulation" }))
  end)
end)

describe("NVFP4 MoE", function()
  local nvfp4 = { type = "float", bits = 4, strategy = "tensor_group", group = 16 }
  local base = experts { weight = nvfp4, activation = with(nvfp4, { dynamic = "local" }), device = "sm_100" }

  it("CTM-NVFP4-10: the order, the monolithic class first, and what each device gets", function()
    assert.same({ "FLASHINFER_TRTLLM", "FLASHINFER_CUTEDSL", "FLASHINFER_CUTEDSL_BATCHED", "FLASHINFER_CUTLASS",
      "VLLM_CUTLASS", "MARLIN",
                  "HUMMING", "EMULATION" }, backends.priority { consumer = "vllm-0.33", table = "NVFP4 MoE",
                    device = "sm_100" })
    local _, _, r = chosen(base)
    assert.same({ "FLASHINFER_TRTLLM", "monolithic", true }, { r.backend, r.variant, r.monolithic })
    _, _, r = chosen(with(base, { eplb = true }))
    assert.same({ "FLASHINFER_TRTLLM", "modular", false }, { r.backend, r.variant, r.monolithic })
    assert.equal("FLASHINFER_CUTEDSL_BATCHED", chosen(with(base, { format = "batched" })))
    assert.equal("FLASHINFER_CUTLASS", chosen(with(base, { device = "sm_120" })))
    assert.equal("VLLM_CUTLASS", chosen(with(base, { device = "sm_120", packages = { flashinfer = false } })))
    assert.equal("MARLIN", chosen(with(base, { device = "sm_90" })))
    assert.equal("EMULATION", chosen(with(base, { device = "rocm" })))
  end)

  it("CTM-NVFP4-17: without activations the description has only the weights' scales", function()
    local q = with(base, {})
    q.activation = nil
    local _, _, r = chosen(q)
    assert.same({ "MARLIN", true, "scale_2", "none" },
      { r.backend, r.quant.weight_only, r.quant.alpha, r.quant.activations })
    assert.is_nil(r.quant.input_scales)
    _, _, r = chosen(base)
    assert.same({ false, "scale_2 * input_scale", "nvfp4" },
      { r.quant.weight_only, r.quant.alpha, r.quant.activations })
  end)

  it("CTM-NVFP4-10, CTM-NVFP4-11: a clamp leaves those that apply it; names, twins and errors", function()
    local batched = with(base, { format = "batched" })
    assert.not_equal("FLASHINFER_CUTEDSL_BATCHED", chosen(with(batched, { clamp = 7 })) or "none")
    assert.matches("does not apply the SwiGLU clamp %(limit 7%)", (why(with(batched, { clamp = 7 }),
      "FLASHINFER_CUTEDSL_BATCHED")))
    assert.equal("FLASHINFER_CUTEDSL_BATCHED", chosen(with(batched, { backend = "flashinfer_cutedsl" })))
    assert.equal("FLASHINFER_CUTEDSL", chosen(with(base, { backend = "flashinfer_cutedsl" })))
    local _, msg = chosen(with(batched, { backend = "flashinfer_cutedsl", clamp = 7 }))
    assert.matches("clamps SwiGLU at 7, which the backend flashinfer_cutedsl does not apply: use cutlass, "
      .. "flashinfer_trtllm", msg)
    _, msg = chosen(with(base, { backend = "cutedsl" }))
    assert.matches("expected one of cutlass, flashinfer_trtllm, flashinfer_cutlass, flashinfer_cutedsl, "
      .. "flashinfer_b12x, marlin, humming, emulation", msg)
    _, msg = chosen(with(base, { backend = "marlin", hidden = 2080 }))
    assert.matches("MARLIN does not support this deployment: it needs the hidden size of a multiple of 64, found 2080",
      msg)
    _, msg = chosen(with(base, { backend = "marlin", input = "fp8" }))
    assert.matches("takes no 8%-bit activations with nvfp4 weights, found fp8", msg)
  end)

  it("CTM-NVFP4-12: how input scales are reduced, by backend", function()
    local function reduction(o)
      local _, _, r = chosen(with(base, o))
      return r.quant.input_scales, r.quant.global_factor
    end
    assert.same({ "all", true }, { reduction {} })
    assert.same({ "expert", false }, { reduction { device = "sm_120", packages = { flashinfer = false } } })
    assert.same({ "inverse", false }, { reduction { device = "rocm" } })
  end)
end)

describe("FP8 MoE", function()
  local block = experts { weight = { type = "float", bits = 8, strategy = "block", block = { 128, 128 } },
                          activation = { type = "float", bits = 8, strategy = "group", group = 128, dynamic = true } }
  local channel = experts { weight = { type = "float", bits = 8, strategy = "channel" },
    activation = { type = "float", bits = 8, strategy = "token" } }
  local tensor = experts { weight = { type = "float", bits = 8, strategy = "tensor" },
                           activation = { type = "float", bits = 8, strategy = "tensor", dynamic = false } }
  local function order(q, o)
    return table.concat(backends.priority(with(q, { table = "FP8 MoE" }, o)), " ")
  end
  local usual = "AITER FLASHINFER_TRTLLM FLASHINFER_CUTLASS DEEPGEMM VLLM_CUTLASS TRITON MARLIN HUMMING "
    .. "BATCHED_DEEPGEMM "
    .. "BATCHED_VLLM_CUTLASS BATCHED_TRITON XPU CPU_W8A8 CPU HPC"

  it("CTM-FP8-12: the order, and what Hopper, XPU and the CPU move to the front", function()
    assert.equal(usual, order(block, { device = "sm_80" }))
    assert.equal(usual, order(channel, { device = "sm_90" }))
    assert.equal("TRITON " .. usual:gsub("TRITON ", "", 1), order(block, { device = "sm_90" }):gsub("BATCHED_ ",
      "BATCHED_TRITON ", 1))
    assert.matches("^TRITON AITER FLASHINFER_TRTLLM FLASHINFER_CUTLASS", order(block, { device = "sm_90" }))
    assert.matches("^FLASHINFER_CUTLASS AITER FLASHINFER_TRTLLM DEEPGEMM", order(block, { device = "sm_90", ep = 2 }))
    assert.matches("^XPU AITER", order(block, { device = "xpu" }))
    assert.matches("^CPU_W8A8 CPU AITER", order(block, { device = "cpu" }))
  end)

  it("CTM-FP8-12: what each device gets", function()
    for _, case in ipairs {
      { block, "sm_80", "MARLIN" }, { block, "sm_89", "TRITON" }, { block, "sm_90", "TRITON" },
        { block, "sm_100", "FLASHINFER_TRTLLM" },
      { block, "cpu", "CPU" }, { channel, "sm_90", "VLLM_CUTLASS" }, { channel, "sm_89", "TRITON" },
        { tensor, "sm_90", "FLASHINFER_CUTLASS" },
      { tensor, "rocm", "TRITON" },
    } do assert.equal(case[3], chosen(with(case[1], { device = case[2] }))) end
    assert.equal("FLASHINFER_CUTLASS", chosen(with(block, { device = "sm_90", ep = 4 })))
    assert.equal("BATCHED_DEEPGEMM", chosen(with(block, { device = "sm_90", format = "batched" })))
    assert.equal("AITER", chosen(with(block, { device = "rocm", packages = { aiter = true } })))
    -- Other blocks: only where a backend says that it takes them. (C-16)
    local other = with(block, { device = "sm_90", weight = { type = "float", bits = 8, strategy = "block",
      block = { 64, 64 } } })
    assert.equal("TRITON", chosen(other))
    assert.matches("found fp8 block 64x64", (why(other, "MARLIN")))
    -- The caller may take the built-in CUTLASS pair out.
    assert.equal("TRITON", chosen(with(channel, { device = "sm_90", disabled = { "VLLM_CUTLASS",
      "BATCHED_VLLM_CUTLASS" } })))
  end)

  it("CTM-FP8-12: no match is an error on CUDA and ROCm, and none elsewhere", function()
    for _, device in ipairs { "sm_70", "rocm" } do
      local name, msg = chosen(with(block, { device = device, activation_fn = "tanh" }))
      assert.is_nil(name)
      assert.matches("^no FP8 MoE backend supports the deployment configuration: ", msg)
    end
    for _, device in ipairs { "cpu", "xpu" } do
      local name, _, r = chosen(with(block, { device = device, activation_fn = "tanh" }))
      assert.same({ "NONE", true }, { name, r.none })
    end
  end)

  it("CTM-FP8-03, C-16: dynamic activations per tensor are looked up as groups of 128", function()
    local q = with(tensor, { device = "sm_90", activation = { type = "float", bits = 8, strategy = "tensor",
      dynamic = true } })
    assert.matches("found fp8 tensor x fp8 group 128", (why(q, "TRITON")))
    assert.equal("MARLIN", chosen(q))
  end)

  it("CTM-FP8-13: names, batched twins, never falling through", function()
    for word, twin in pairs { deep_gemm = "BATCHED_DEEPGEMM", triton = "BATCHED_TRITON" } do
      assert.equal(twin, chosen(with(block, { device = "sm_90", format = "batched", backend = word })))
    end
    assert.equal("BATCHED_VLLM_CUTLASS", chosen(with(channel, { device = "sm_90", format = "batched",
      backend = "cutlass" })))
    -- Every word stands for its backend, which is checked alone.
    for word, backend in pairs { triton = "TRITON", deep_gemm = "DEEPGEMM", cutlass = "VLLM_CUTLASS", marlin = "MARLIN",
      flashinfer_trtllm = "FLASHINFER_TRTLLM", flashinfer_cutlass = "FLASHINFER_CUTLASS", aiter = "AITER",
      humming = "HUMMING", hpc = "HPC" } do
      local name, msg, r = chosen(with(block, { device = "sm_90", backend = word }))
      assert.equal(backend, name or msg:match "^the FP8 MoE backend (%S+) does not support")
      assert.equal(name and 0 or nil, r and #r.rejected)
    end
    local name, msg = chosen(with(block, { device = "sm_90", backend = "cutlass" }))
    assert.is_nil(name)
    assert.matches("^the FP8 MoE backend VLLM_CUTLASS does not support this deployment: it takes fp8 channel x "
      .. "fp8 token", msg)
    name, msg = chosen(with(block, { backend = "cuda" }))
    assert.is_nil(name)
    assert.matches("backend cuda is unknown to the table FP8 MoE; expected one of triton, deep_gemm, cutlass", msg)
  end)

  it("CTM-FP8-14: the description", function()
    local function quant(q, o) return assert(backends.select(with(q, o), { change = false })).quant end
    local d = quant(channel, { device = "sm_90" })
    assert.same({ true, true, "channel" }, { d.per_token, d.per_channel, d.scales })
    d = quant(block, { device = "sm_90" })
    assert.same({ false, false, { 128, 128 }, false }, { d.per_token, d.per_channel, d.block_shape, d.weight_only })
    d = quant(tensor, { device = "sm_90" })
    assert.same({ "w_scale * a_scale", true }, { d.alpha, d.reciprocal_input_scales })
    assert.is_nil(quant(block, { device = "sm_90", ep = 2 }).alpha)
    assert.same({ true, "none" }, { quant(block, { device = "sm_80" }).weight_only,
      quant(block, { device = "sm_80" }).activations })
    assert.is_true(quant(block, { device = "cpu" }).weight_only)
  end)
end)

describe("W4A8-int8 MoE", function()
  local base = experts { device = "cpu", activation = { type = "int", bits = 8, strategy = "token", dynamic = true } }
  local function refused(o)
    local name, msg = chosen(with(base, o))
    assert.is_nil(name)
    return msg
  end

  it("CTM-W4A8-01: 4-bit weights, activations by token, on the CPU", function()
    local name, _, r = chosen(base)
    assert.same({ "CPU_W4A8_INT8", true }, { name, r.monolithic })
    assert.is_nil(r.quant) -- CTM-W4A8-09
    assert.equal("CPU_W4A8_INT8", chosen(with(base, { weight = weight { group = -1, strategy = "channel" } })))
    assert.matches("takes activations of int8 token, found int8 tensor static",
      refused { activation = { type = "int", bits = 8, strategy = "tensor", dynamic = false } })
    assert.matches("takes activations of int8 token, found int8 token static",
      refused { activation = { type = "int", bits = 8, strategy = "token", dynamic = false } })
    assert.matches("takes weights of bits 4, found 3", refused { weight = weight { bits = 3 } })
    assert.matches("needs the CPU, found CUDA", refused { device = "sm_90" })
  end)

  it("CTM-W4A8-02: on Arm the primitives must be there", function()
    assert.matches("dynamic 4%-bit primitives.*torch 2.4 lacks: use a newer build",
      refused { arch = "arm", versions = { torch = "2.4" } })
    assert.equal("CPU_W4A8_INT8", chosen(with(base, { arch = "arm", packages = { dynamic_4bit = true } })))
    assert.equal("CPU_W4A8_INT8", chosen(with(base, { arch = "x86" })))
  end)

  it("CTM-W4A8-09: each of the other refusals has its own text", function()
    assert.matches("balancing of experts", refused { eplb = true })
    assert.matches("no expert map: expert parallelism is 2", refused { ep = 2 })
    assert.matches("activation functions silu, swigluoai or swiglustep, found gelu", refused { activation_fn = "gelu" })
    assert.matches("takes no non%-gated MLP", refused { gated = false })
  end)

  it("CTM-W4A8-10: the kernel's numbers of the activation functions", function()
    for name, number in pairs { swiglustep = 0, swigluoai = 1, silu = 2 } do
      local _, _, r = chosen(with(base, { activation_fn = name }))
      assert.equal(number, r.activation_kind)
    end
  end)
end)

-- Consumer vllm-0.33: vLLM 0.33's experts: integers with 16-bit activations (ORC-02), NVFP4 (CTM-NVFP4-10), FP8
-- (CTM-FP8-12), 4-bit integers with 8-bit activations on the CPU (CTM-W4A8). MXINT4 is FLASHINFER_TRTLLM in the first
-- table (CTM-WNA16-02).
local every_fn = { "activation_fn", "silu", "gelu", "gelu_tanh", "swigluoai", "swigluoai_uninterleave", "swiglustep",
  "silu_no_mul", "gelu_no_mul", "gelu_tanh_no_mul", "relu2_no_mul" }
local gated_fn = { "activation_fn", "silu", "gelu", "gelu_tanh", "swigluoai", "swigluoai_uninterleave", "swiglustep" }
local not_fi_nvl = { "not_all2all", "fi_nvl_two_sided", "fi_nvl_one_sided" }
-- Blocks of 32 experts: fewer than 1024 after rounding up.
local few_experts = { "experts_below", 993 }

-- Marlin's own checks, whatever the weight. (ORC-10)
local marlin = { { "platform", "cuda" }, { "capability", min = 75 }, every_fn, { "not_all2all", "fi_nvl_two_sided" } }
local marlin_ints = {
  marlin, { "weights", "int4", "int4 asym", "int8", requirement = "ORC-12" },
  { "not_layout", "moe_wna16", requirement = "ORC-13" }, { "actorder_wide_input", requirement = "C-28" },
  { "group", -1, 32, 64, 128, requirement = "ORC-13" }, { "multiple", "hidden", 128, requirement = "ORC-13" },
  { "multiple_of_group", "intermediate", least = 64, requirement = "ORC-13" },
}
local marlin_takes, batched_takes = { "ungated", "lora", "batch_invariance" }, { "ungated", "batch_invariance" }

local humming = { { "platform", "cuda" }, { "capability", min = 75 }, { "package", "humming" }, { "no_actorder" },
  gated_fn }
local humming_classes = {
  { name = "batched", class = "BatchedHummingGroupedExperts", format = "batched" },
  { name = "grouped", class = "HummingGroupedExperts", format = "standard" },
}

local trtllm_routing = { "routing", "deepseek_v3", "renormalize", "renormalize_naive", "llama4", "sigmoid_renorm",
  "sigmoid",
  "minimax2", "simulated" }
local monolithic_parallel = { { "all2all", "ag_rs" }, { "no_eplb" } }
local blackwell_trtllm = { { "platform", "cuda" }, { "capability", family = { 100 } }, { "package", "flashinfer" } }

-- FlashInfer's kernels take one input scale for all experts. (CTM-NVFP4-12)
local all_scales = { input_scales = "all" }

local block, group128 = "fp8 block 128x128", "fp8 group 128"
local sm90_block = { { "platform", "cuda" }, { "capability", exact = { 90 } }, { "schemes", { block, group128 } } }

return {
  tables = {
    {
      name = "WNA16 MoE", kind = "moe", requirement = "ORC-10", staged = true,
      when = { { "kind_of_weight", "int" }, { "activations", "none" } },
      order = { "RDNA3", "FLASHINFER_TRTLLM", "MARLIN", "BATCHED_MARLIN", "TRITON", "HUMMING", "EMULATION" },
      orders = {
        { when = { { "platform", "cpu" } }, "ZEN_CPU", "CPU" },
        { when = { { "platform", "xpu" } }, "XPU" },
        { when = { { "platform", "cuda" }, { "capability", exact = { 90 } } },
          "RDNA3", "FLASHINFER_TRTLLM", "HUMMING", "MARLIN", "BATCHED_MARLIN", "TRITON", "EMULATION" },
      },
      rows = {
        { name = "RDNA3", class = "Rdna3WNA16Experts", format = "standard", requirement = "ORC-13", checks = {
          { "platform", "rocm" }, { "chip", "gfx1100" }, { "activation_fn", "silu" },
          { "only_layout", "compressed-tensors", advice = "convert it to compressed-tensors" },
          { "weights", "int4" }, { "no_bias" }, { "no_actorder" }, { "strategy", "group" } } },
        { name = "FLASHINFER_TRTLLM", format = "standard", requirement = "CTM-WNA16-02", classes = {
          { class = "TrtLlmMxint4ExpertsMonolithic", monolithic = true, checks = {
            { "platform", "cuda" }, { "capability", family = { 100 } }, { "package", "flashinfer_mxint4" },
            { "activation_fn", "silu", "swigluoai" }, { "weights", "int4" }, { "group", 32 },
            { "symmetric", requirement = "ORC-13" }, { "no_bias", requirement = "ORC-13" }, { "no_actorder" },
            monolithic_parallel,
            { "routing", "renormalize", "renormalize_naive", "deepseek_v3", "llama4", "simulated" },
            { "logits", "bf16", "f16", f32_routing = { "deepseek_v3", "simulated" } } } } } },
        { name = "MARLIN", class = "MarlinExperts", format = "standard", takes = marlin_takes, checks = marlin_ints },
        { name = "BATCHED_MARLIN", class = "BatchedMarlinExperts", format = "batched", takes = batched_takes,
          checks = marlin_ints },
        { name = "TRITON", class = "TritonWNA16Experts", format = "standard", takes = { "ungated", "lora" },
          requirement = "ORC-13",
          checks = { { "platform", "cuda", "rocm" }, every_fn, { "weights", "int4", "int4 asym", "int8", "int8 asym" },
                     { "no_bias" }, { "not_layout", "awq" }, { "no_actorder" }, not_fi_nvl, few_experts } },
        { name = "HUMMING", checks = { humming, { "bits", 4, 8 } }, classes = humming_classes },
        { name = "EMULATION", class = "Int4EmulationTritonExperts", format = "standard", takes = { "ungated" },
          note = "decoded at every call: slow", requirement = "ORC-13", checks = {
            { "platform", "cuda", "rocm" }, every_fn, { "weights", "int4", "int8" }, { "not_layout", "moe_wna16" },
            { "no_actorder" }, not_fi_nvl, few_experts } },
        { name = "ZEN_CPU", class = "ZenCPUExpertsInt4", format = "standard", checks = {
          { "platform", "cpu" }, { "package", "zentorch" }, { "activation_fn", "silu" }, { "weights", "int4" },
          { "no_actorder" } } },
        { name = "CPU", format = "standard", classes = {
          { class = "CPUExpertsInt4", monolithic = true, checks = {
            { "platform", "cpu" }, { "activation_fn", "silu" }, { "weights", "int4", "int4 asym" }, { "no_actorder" },
            { "routing", "default", "renormalize", "renormalize_naive" } } } } },
        { name = "XPU", class = "XPUExpertsWNA16", format = "standard", takes = { "ungated" }, checks = {
          { "platform", "xpu" }, { "activation_fn", "silu", "gelu", "swigluoai", "relu2_no_mul" },
          { "weights", "int4" }, { "no_actorder" } } },
      },
      explicit = { { "triton", "TRITON" }, { "marlin", "MARLIN" }, { "humming", "HUMMING" },
                   { "flashinfer_trtllm", "FLASHINFER_TRTLLM" }, { "emulation", "EMULATION" }, { "rdna3", "RDNA3" } },
      quant = { block_shape = "group" },
    },
    {
      name = "NVFP4 MoE", kind = "moe", requirement = "CTM-NVFP4-10", staged = true,
      when = { { "weights", "nvfp4" }, { "activations", "nvfp4", "none" } },
      order = { "FLASHINFER_TRTLLM", "FLASHINFER_CUTEDSL", "FLASHINFER_CUTEDSL_BATCHED", "FLASHINFER_CUTLASS",
                "VLLM_CUTLASS", "MARLIN", "HUMMING", "EMULATION" },
      rows = {
        { name = "FLASHINFER_TRTLLM", format = "standard", takes = { "ungated" }, quant = all_scales,
          checks = { blackwell_trtllm, { "schemes", { "nvfp4", "nvfp4" } },
                     { "activation_fn", "silu", "relu2_no_mul", "gelu", "gelu_tanh", "swigluoai_uninterleave" } },
          classes = {
            { name = "monolithic", class = "TrtLlmNvFp4ExpertsMonolithic", monolithic = true, checks = {
              { "all2all" }, { "no_eplb" }, trtllm_routing, { "logits", "bf16", "f32" } } },
            { name = "modular", class = "TrtLlmNvFp4ExpertsModular" },
          } },
        { name = "FLASHINFER_CUTEDSL", class = "FlashInferCuteDSLExperts", format = "standard", quant = all_scales,
          checks = { blackwell_trtllm, { "activation_fn", "silu" }, { "schemes", { "nvfp4", "nvfp4" } } } },
        { name = "FLASHINFER_CUTEDSL_BATCHED", class = "FlashInferCuteDSLBatchedExperts", format = "batched",
          quant = all_scales, checks = {
            blackwell_trtllm, { "activation_fn", "silu" }, { "schemes", { "nvfp4", "nvfp4" } } } },
        { name = "FLASHINFER_CUTLASS", class = "FlashInferExperts", format = "standard", takes = { "ungated" },
          quant = all_scales, checks = {
            { "platform", "cuda" }, { "capability", family = { 100, 120 } }, { "package", "flashinfer" },
            { "activation_fn", "silu", "relu2_no_mul", "swigluoai" }, { "schemes", { "nvfp4", "nvfp4" } } } },
        { name = "VLLM_CUTLASS", class = "CutlassExpertsFp4", format = "standard", checks = {
          { "platform", "cuda" }, { "capability", family = { 100, 110, 120 } }, gated_fn,
          { "schemes", { "nvfp4", "nvfp4" } },
          { "no_expert_parallel" } } },
        { name = "MARLIN", class = "MarlinExperts", format = "standard", takes = marlin_takes,
          quant = { weight_only = true },
          note = "the device has no use for FP4 activations here: weights only", checks = {
            marlin, { "schemes", { "nvfp4", "any" } }, { "wide_input", requirement = "MRL-47" },
            { "multiple", "hidden", 64, requirement = "CTM-NVFP4-16" } } },
        { name = "HUMMING", checks = humming, classes = humming_classes },
        { name = "EMULATION", class = "Nvfp4QuantizationEmulationTritonExperts", format = "standard",
          note = "decoded at every call: slow", quant = { input_scales = "inverse" }, checks = {
            { "platform", "cuda", "rocm" }, every_fn, { "schemes", { "nvfp4", "nvfp4" } }, not_fi_nvl, few_experts } },
        { name = "FLASHINFER_B12X", class = "FlashInferB12xExperts", format = "standard", quant = all_scales, checks = {
          { "platform", "cuda" }, { "capability", family = { 120 } }, { "package", "flashinfer" },
          { "activation_fn", "silu" }, { "schemes", { "nvfp4", "nvfp4" } } } },
      },
      explicit = { { "cutlass", "VLLM_CUTLASS" }, { "flashinfer_trtllm", "FLASHINFER_TRTLLM" },
                   { "flashinfer_cutlass", "FLASHINFER_CUTLASS" }, { "flashinfer_cutedsl", "FLASHINFER_CUTEDSL" },
                   { "flashinfer_b12x", "FLASHINFER_B12X" }, { "marlin", "MARLIN" }, { "humming", "HUMMING" },
                   { "emulation", "EMULATION" } },
      twins = { FLASHINFER_CUTEDSL = "FLASHINFER_CUTEDSL_BATCHED" },
      clamp = { "FLASHINFER_TRTLLM", "FLASHINFER_CUTLASS", "FLASHINFER_CUTEDSL", "VLLM_CUTLASS", "MARLIN", "HUMMING",
        "EMULATION" },
      quant = { global = true },
    },
    {
      name = "FP8 MoE", kind = "moe", requirement = "CTM-FP8-12", staged = true,
      when = { { "kind_of_weight", "float" }, { "bits", 8 } },
      -- Dynamic activations per tensor are looked up as groups of 128; block weights always are. (CTM-FP8-03, C-16)
      keys = { ["fp8 tensor"] = group128 }, block_activation = group128,
      order = { "AITER", "FLASHINFER_TRTLLM", "FLASHINFER_CUTLASS", "DEEPGEMM", "VLLM_CUTLASS", "TRITON", "MARLIN",
                "HUMMING", "BATCHED_DEEPGEMM", "BATCHED_VLLM_CUTLASS", "BATCHED_TRITON", "XPU", "CPU_W8A8", "CPU",
                "HPC" },
      front = {
        { when = { sm90_block, { "expert_parallel" } }, "FLASHINFER_CUTLASS" },
        { when = { sm90_block, { "no_expert_parallel" } }, "TRITON" },
        { when = { { "platform", "xpu" } }, "XPU" },
        { when = { { "platform", "cpu" } }, "CPU" }, { when = { { "platform", "cpu" } }, "CPU_W8A8" },
      },
      none_on = { "cpu", "xpu" },
      rows = {
        { name = "AITER", class = "AiterExperts", format = "standard", checks = {
          { "platform", "rocm" }, { "package", "aiter" }, { "activation_fn", "silu", "gelu" },
          { "schemes", { block, group128 }, { "fp8 channel", "fp8 token" }, { "fp8 tensor", "fp8 tensor static" } } } },
        { name = "FLASHINFER_TRTLLM", format = "standard", takes = { "ungated" },
          checks = { blackwell_trtllm, { "activation_fn", "silu", "swigluoai_uninterleave", "relu2_no_mul" },
                     { "experts_below", 2049 } },
          classes = {
            { name = "monolithic", class = "TrtLlmFp8ExpertsMonolithic", monolithic = true, checks = {
              { "schemes", { block, group128 }, { "fp8 tensor", "fp8 tensor static" }, { "mxfp8", "mxfp8" } },
              monolithic_parallel, { "no_sequence_parallel" }, trtllm_routing, { "logits", "bf16", "f32" } } },
            { name = "modular", class = "TrtLlmFp8ExpertsModular", checks = {
              { "schemes", { block, group128 }, { "mxfp8", "mxfp8" } }, { "no_eplb" },
              { "all2all", "ag_rs", "deepep_v2", "fi_nvl_one_sided", "fi_nvl_two_sided" } } },
          } },
        { name = "FLASHINFER_CUTLASS", class = "FlashInferExperts", format = "standard", takes = { "ungated" },
          checks = {
            { "platform", "cuda" }, { "capability", exact = { 90 }, family = { 100, 120 } },
            { "package", "flashinfer" }, { "activation_fn", "silu", "relu2_no_mul", "swigluoai" },
            { "schemes", { "fp8 tensor", "fp8 tensor static" },
              { block, group128, capability = { "capability", exact = { 90 } } } } },
          quant = { alpha = "w_scale * a_scale", when = { { "weights", "fp8 tensor" } } } },
        { name = "DEEPGEMM", class = "TritonOrDeepGemmExperts", format = "standard",
          note = "shapes that DeepGEMM has no tiles for run in Triton", checks = {
            { "platform", "cuda" }, { "capability", exact = { 90 }, family = { 100 } }, { "package", "deep_gemm" },
            { "activation_fn", "silu", "swiglustep", "swigluoai_uninterleave" }, { "schemes", { block, group128 } },
            not_fi_nvl } },
        { name = "VLLM_CUTLASS", class = "TritonOrCutlassExperts", format = "standard", checks = {
          { "platform", "cuda" }, { "capability", exact = { 90 }, family = { 100 } }, gated_fn,
          { "schemes", { "fp8 channel", "fp8 token" }, { "fp8 tensor", "fp8 tensor static" } },
          { "not_all2all", "fi_nvl_two_sided", "fi_nvl_one_sided", "deepep_ht" } } },
        { name = "TRITON", class = "TritonExperts", format = "standard", takes = marlin_takes, checks = {
          { "platform", "cuda", "rocm", "xpu" }, { "capability", min = 89 }, every_fn,
          -- The kernels take the block's shape at run time.
          { "schemes", { "fp8 block", group128 }, { "fp8 channel", "fp8 token" }, { "fp8 tensor", "fp8 token" },
            { "fp8 tensor", "fp8 tensor static" } }, not_fi_nvl, few_experts } },
        { name = "MARLIN", class = "MarlinExperts", format = "standard", takes = marlin_takes,
          quant = { weight_only = true },
          note = "weights only: activations stay at 16 bits", checks = {
            marlin, { "schemes", { "fp8 tensor", "any" }, { "fp8 channel", "any" }, { block, "any" },
              { "mxfp8", "any" } } } },
        { name = "HUMMING", checks = humming, classes = humming_classes },
        { name = "BATCHED_DEEPGEMM", class = "BatchedDeepGemmExperts", format = "batched", checks = {
          { "platform", "cuda" }, { "capability", exact = { 90 }, family = { 100 } }, { "package", "deep_gemm" },
          { "activation_fn", "silu" }, { "schemes", { block, group128 } } } },
        { name = "BATCHED_VLLM_CUTLASS", class = "CutlassBatchedExpertsFp8", format = "batched", checks = {
          { "platform", "cuda" }, { "capability", exact = { 90 }, family = { 100 } }, gated_fn,
          { "schemes", { "fp8 channel", "fp8 token" }, { "fp8 tensor", "fp8 tensor static" } } } },
        { name = "BATCHED_TRITON", class = "BatchedTritonExperts", format = "batched", checks = {
          { "platform", "cuda", "rocm", "xpu" }, { "capability", min = 89 },
          { "activation_fn", "silu", "gelu", "swigluoai" },
          { "schemes", { block, group128 }, { "fp8 channel", "fp8 token" }, { "fp8 tensor", "fp8 token" },
            { "fp8 tensor", "fp8 tensor static" } } } },
        { name = "XPU", class = "XPUExpertsFp8", format = "standard", takes = { "ungated" }, checks = {
          { "platform", "xpu" }, { "activation_fn", "silu", "gelu", "swigluoai", "relu2_no_mul" },
          { "schemes", { "fp8 tensor", "none" }, { "fp8 tensor", group128 }, { "mxfp8", "none" },
            { "mxfp8", "mxfp8" } } } },
        { name = "CPU_W8A8", format = "standard", classes = {
          { class = "CPUExpertsFp8W8A8", monolithic = true, checks = {
            { "platform", "cpu" }, { "package", "cpu_fp8_products" }, { "activation_fn", "silu" },
            { "schemes", { block, group128 } }, { "routing", "default", "renormalize", "renormalize_naive" } } } } },
        { name = "CPU", format = "standard", quant = { weight_only = true }, classes = {
          { class = "CPUExpertsFp8", monolithic = true, checks = {
            { "platform", "cpu" }, { "activation_fn", "silu" }, { "schemes", { block, group128 } },
            { "routing", "default", "renormalize", "renormalize_naive" } } } } },
        { name = "HPC", class = "HPCExperts", format = "standard", checks = {
            { "platform", "cuda" }, { "capability", exact = { 90 } }, { "package", "hpc" }, { "activation_fn", "silu" },
            { "schemes", { block, group128 }, { "fp8 tensor", "fp8 tensor static" } } },
          quant = { alpha = "w_scale * a_scale", when = { { "weights", "fp8 tensor" } } } },
      },
      explicit = { { "triton", "TRITON" }, { "deep_gemm", "DEEPGEMM" }, { "cutlass", "VLLM_CUTLASS" },
                   { "flashinfer_trtllm", "FLASHINFER_TRTLLM" }, { "flashinfer_cutlass", "FLASHINFER_CUTLASS" },
                   { "marlin", "MARLIN" }, { "aiter", "AITER" }, { "humming", "HUMMING" }, { "hpc", "HPC" } },
      twins = { DEEPGEMM = "BATCHED_DEEPGEMM", TRITON = "BATCHED_TRITON", VLLM_CUTLASS = "BATCHED_VLLM_CUTLASS" },
      quant = { flags = true },
    },
    {
      name = "INT8 MoE", kind = "moe", requirement = "CTM-SEL-04", staged = true,
      when = { { "weights", "int8" }, { "activations_of", "int", 8 } },
      rows = {
        { name = "TRITON", class = "TritonExperts", format = "standard", takes = marlin_takes, checks = {
          { "platform", "cuda", "rocm", "xpu" }, { "capability", min = 75 }, every_fn,
          { "activations", "int8 token", "int8 tensor" }, not_fi_nvl, few_experts } },
      },
    },
    {
      name = "W4A8-int8 MoE", kind = "moe", requirement = "CTM-W4A8-01",
      when = { { "kind_of_weight", "int" }, { "activations_of", "int", 8 } },
      rows = {
        { name = "CPU_W4A8_INT8", format = "standard", quant = { none = true },
          -- How its kernel numbers the activation functions. (CTM-W4A8-10)
          kinds = { swiglustep = 0, swigluoai = 1, silu = 2 }, classes = {
            { class = "dynamic_4bit_int_moe", monolithic = true, checks = {
              { "activations", "int8 token" }, { "bits", 4 }, { "platform", "cpu" },
              { "arm_primitives", "torch", requirement = "CTM-W4A8-02" }, { "symmetric" },
              { "gated", requirement = "CTM-W4A8-05" }, { "no_eplb", requirement = "CTM-W4A8-09" },
              { "no_expert_parallel", requirement = "CTM-W4A8-09" },
              { "activation_fn", "silu", "swigluoai", "swiglustep", requirement = "CTM-W4A8-10" },
              { "multiple", "hidden", 2, requirement = "CTM-W4A8-06" },
              { "group_divides", "hidden", requirement = "CTM-W4A8-06" },
              { "group_divides", "intermediate", requirement = "CTM-W4A8-06" },
              { "hash_routing" }, { "changed_routes" }, { "format", "standard" }, { "lora" } } } } },
      },
    },
  },
}

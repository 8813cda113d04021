-- Consumer vllm-0.33: vLLM 0.33's linear layers. The table of weight-only integers is AWQ-21's; the others hold the
-- kernels that are chosen without being asked for. Experts are in vllm_0_33_moe.
local eight_four = { "uint4", "uint8", "uint4b8", "uint8b128" }

-- What Marlin asks of weights that are not integers.
local marlin_float = { { "platform", "cuda" }, { "capability", min = 75 } }

return {
  name = "vllm-0.33",
  about = "vLLM 0.33",
  -- What its own installation brings; the query's packages add to it or take from it.
  packages = { flashinfer = true, flashinfer_mxint4 = true, deep_gemm = true },
  tables = {
    {
      name = "INT8 linear", kind = "linear", requirement = "CTM-SEL-04",
      when = { { "weights", "int8", "int8 asym" }, { "activations", "int8 token", "int8 tensor",
        "int8 tensor static" } },
      orders = { { when = { { "platform", "cpu" } }, "cpu" }, { when = { { "platform", "rocm" } }, "aiter", "triton" },
                 { when = { { "platform", "xpu" } }, "triton" } },
      order = { "cutlass", "triton", "humming" },
      rows = {
        { name = "cutlass", class = "CutlassInt8ScaledMMLinearKernel", checks = {
          { "platform", "cuda" }, { "capability", below = 100, min = 75 } } },
        { name = "aiter", class = "AiterInt8ScaledMMLinearKernel", checks = {
          { "platform", "rocm" }, { "package", "aiter" }, { "symmetric" } } },
        { name = "triton", class = "TritonInt8ScaledMMLinearKernel", checks = {
          { "platform", "cuda", "rocm", "xpu" }, { "symmetric" } } },
        { name = "humming", class = "HummingInt8ScaledMMLinearKernel", checks = {
          { "platform", "cuda" }, { "capability", min = 75 }, { "package", "humming" } } },
        { name = "cpu", class = "CPUInt8ScaledMMLinearKernel", checks = { { "platform", "cpu" } } },
      },
    },
    {
      name = "WNA16 linear", kind = "linear", requirement = "AWQ-21",
      when = { { "kind_of_weight", "int" }, { "activations", "none", "fp8 token", "int8 token" } },
      order = { "cutlass_w4a8", "machete", "marlin", "conch", "exllama", "triton_w4a16", "humming" },
      orders = {
        { when = { { "platform", "rocm" } }, "triton_w4a16", "conch", "exllama" },
        { when = { { "platform", "xpu" } }, "xpu_w4a8", "xpu_wna16" },
        { when = { { "platform", "cpu" } }, "dynamic_4bit", "zentorch", "cpu_wna16" },
      },
      rows = {
        { name = "cutlass_w4a8", class = "CutlassW4A8LinearKernel", checks = {
          { "platform", "cuda" }, { "capability", exact = { 90 } }, { "input", "fp8" }, { "no_actorder" },
          { "symmetric" }, { "type", "int4" }, { "group", 128 }, { "multiple", "k", 128 }, { "multiple", "n", 128 },
          { "output", "bf16" } } },
        { name = "machete", class = "MacheteLinearKernel", checks = {
          { "platform", "cuda" }, { "capability", exact = { 90 } }, { "actorder_whole_k" },
          { "type_by_zero_points", with = { "uint4", "uint8" }, without = { "uint4b8", "uint8b128" } },
          { "group_by_input", wide = { -1, 64, 128 }, narrow = { -1, 128 } }, { "multiple", "k", 64 },
          { "multiple", "n", 128 } } },
        { name = "marlin", class = "MarlinLinearKernel", checks = {
          { "platform", "cuda" }, { "capability", min = 75 },
          { "type_by_zero_points", with = { "uint4" },
            without = { "uint4b8", "uint8b128", "float8_e4m3fn", "float4_e2m1f" } },
          { "group", -1, 32, 64, 128 }, { "tiles_with_actorder" }, { "group_in_rank" },
          { "actorder_wide_input", requirement = "C-28" },
          { "narrow_input_type", "uint4b8", requirement = "AWQ-27" } } },
        { name = "conch", class = "ConchLinearKernel", checks = {
          { "platform", "cuda", "rocm" }, { "capability", min = 80 }, { "type", unpack(eight_four) },
          { "group", -1, 128 }, { "no_actorder" }, { "package", "conch-triton-kernels" } } },
        { name = "exllama", class = "ExllamaLinearKernel", checks = {
          { "platform", "cuda", "rocm" }, { "capability", min = 60 }, { "actorder_whole_k" }, { "packs" },
          { "input", "f16" }, { "type", "uint4b8", "uint8b128" }, { "group_positive" },
            { "group_divides", "k_full" } } },
        { name = "triton_w4a16", class = "TritonW4A16LinearKernel", checks = {
          { "platform", "cuda", "rocm" }, { "type", "uint4", "uint4b8" }, { "input", "f16", "bf16" },
          { "multiple", "n", 8 }, { "no_actorder" }, { "group", -1, 32, 64, 128, 256, or_full = true },
          { "group_divides", "k" } } },
        { name = "humming", class = "HummingLinearKernel", checks = {
          { "platform", "cuda" }, { "capability", min = 75 }, { "package", "humming" }, { "no_actorder" } } },
        { name = "xpu_w4a8", class = "XPUW4A8IntLinearKernel", checks = {
          { "platform", "xpu" }, { "type", "int4" }, { "symmetric" }, { "group_multiple", 32 }, { "multiple", "k", 8 },
          { "multiple", "n", 8 } } },
        { name = "xpu_wna16", class = "XPUwNa16LinearKernel", checks = {
          { "platform", "xpu" }, { "input", "bf16", "f16" }, { "type", "uint4", "uint4b8" }, { "group_multiple", 32 },
          { "multiple", "k", 32 } } },
        { name = "dynamic_4bit", class = "Dynamic4bitLinearKernel", checks = {
          { "platform", "cpu" }, { "package", "dynamic_4bit" }, { "type", "int4" }, { "symmetric" },
          { "group_divides", "k" } } },
        { name = "zentorch", class = "ZentorchWNA16LinearKernel", checks = {
          { "platform", "cpu" }, { "package", "zentorch" }, { "type", "uint4", "uint4b8" } } },
        { name = "cpu_wna16", class = "CPUWNA16LinearKernel", checks = {
          { "platform", "cpu" }, { "type", "uint4", "uint4b8" }, { "group_multiple", 2 }, { "multiple", "k", 32 },
          { "multiple", "n", 32 } } },
      },
      explicit = { { "cutlass", "cutlass_w4a8" }, { "machete", "machete" }, { "marlin", "marlin" },
                   { "conch", "conch" }, { "exllama", "exllama" }, { "triton", "triton_w4a16" },
                     { "humming", "humming" } },
    },
    {
      name = "FP8 linear", kind = "linear", requirement = "CTM-FP8-01",
      when = { { "weights", "fp8 tensor", "fp8 channel" } },
      order = { "flashinfer", "cutlass", "torch", "marlin", "humming" },
      orders = { { when = { { "platform", "rocm" } }, "aiter", "rocm", "torch" },
                 { when = { { "platform", "cpu" } }, "torch" },
                 { when = { { "platform", "xpu" } }, "xpu", "torch" } },
      rows = {
        { name = "flashinfer", class = "FlashInferFP8ScaledMMLinearKernel", checks = {
          { "platform", "cuda" }, { "capability", min = 100 }, { "package", "flashinfer" },
          { "schemes", { "fp8 tensor", "fp8 tensor static" }, { "fp8 tensor", "fp8 tensor" } } } },
        { name = "cutlass", class = "CutlassFP8ScaledMMLinearKernel", checks = {
          { "platform", "cuda" }, { "capability", min = 89 },
          { "activations", "fp8 token", "fp8 tensor", "fp8 tensor static" } } },
        { name = "torch", class = "PerTensorTorchFP8ScaledMMLinearKernel", checks = {
          { "capability", min = 89 }, { "activations", "fp8 token", "fp8 tensor", "fp8 tensor static" } } },
        { name = "marlin", class = "MarlinFP8ScaledMMLinearKernel", checks = marlin_float,
          quant = { weight_only = true } },
        { name = "humming", class = "HummingFP8ScaledMMLinearKernel",
          checks = { marlin_float, { "package", "humming" } } },
        { name = "aiter", class = "AiterPerTokenFp8ScaledMMLinearKernel", checks = {
          { "platform", "rocm" }, { "package", "aiter" }, { "schemes", { "fp8 channel", "fp8 token" } } } },
        { name = "rocm", class = "ROCmFP8ScaledMMLinearKernel", checks = {
          { "platform", "rocm" }, { "schemes", { "fp8 tensor", "fp8 tensor static" },
            { "fp8 tensor", "fp8 tensor" } } } },
        { name = "xpu", class = "XPUW8A16FP8LinearKernel", checks = { { "platform", "xpu" } },
          quant = { weight_only = true } },
      },
      quant = { flags = true },
    },
    {
      name = "FP8 block linear", kind = "linear", requirement = "CTM-FP8-01",
      when = { { "strategy", "block" }, { "kind_of_weight", "float" } },
      order = { "deep_gemm", "cutlass", "marlin", "humming", "triton" },
      orders = { { when = { { "platform", "rocm" } }, "aiter", "triton" },
        { when = { { "platform", "xpu" } }, "xpu", "triton" },
                 { when = { { "platform", "cpu" } }, "cpu" } },
      rows = {
        { name = "deep_gemm", class = "DeepGemmFp8BlockScaledMMKernel", checks = {
          { "platform", "cuda" }, { "capability", exact = { 90 }, family = { 100 } }, { "package", "deep_gemm" },
          { "weights", "fp8 block 128x128" }, { "output", "bf16" }, { "multiple", "n", 64 },
          { "multiple", "k", 128 } } },
        { name = "cutlass", class = "CutlassFp8BlockScaledMMKernel", checks = {
          { "platform", "cuda" }, { "capability", min = 90 }, { "weights", "fp8 block 128x128" },
          { "multiple", "k", 128 } } },
        { name = "marlin", class = "MarlinFP8ScaledMMLinearKernel", quant = { weight_only = true }, checks = {
          marlin_float, { "weights", "fp8 block 128x128" } } },
        { name = "humming", class = "HummingFP8ScaledMMLinearKernel",
          checks = { marlin_float, { "package", "humming" } } },
        { name = "triton", class = "TritonFp8BlockScaledMMKernel", checks = {
          { "platform", "cuda", "rocm", "xpu" }, { "capability", min = 89 } } },
        { name = "aiter", class = "AiterFp8BlockScaledMMKernel", checks = { { "platform", "rocm" },
          { "package", "aiter" } } },
        { name = "xpu", class = "XPUFp8BlockScaledMMKernel", checks = { { "platform", "xpu" } } },
        { name = "cpu", class = "CPUFp8BlockScaledMMKernel", checks = { { "platform", "cpu" } },
          quant = { weight_only = true } },
      },
    },
    {
      name = "NVFP4 linear", kind = "linear", requirement = "CTM-NVFP4-02",
      when = { { "weights", "nvfp4" }, { "activations", "nvfp4", "none" } },
      order = { "flashinfer_cutlass", "cutlass", "marlin", "emulation", "humming" },
      orders = { { when = { { "platform", "rocm" } }, "emulation" } },
      rows = {
        { name = "flashinfer_cutlass", class = "FlashInferCutlassNvFp4LinearKernel", checks = {
          { "platform", "cuda" }, { "capability", min = 100 }, { "package", "flashinfer" },
          { "activations", "nvfp4" } } },
        { name = "cutlass", class = "CutlassNvFp4LinearKernel", checks = {
          { "platform", "cuda" }, { "capability", min = 100 }, { "activations", "nvfp4" } } },
        { name = "marlin", class = "MarlinNvFp4LinearKernel", checks = marlin_float, quant = { weight_only = true } },
        { name = "humming", class = "HummingNvFp4LinearKernel", checks = { marlin_float, { "package", "humming" } } },
        { name = "emulation", class = "EmulationNvFp4LinearKernel", note = "decoded at every call: slow", checks = {
          { "platform", "cuda", "rocm" } } },
      },
      quant = { global = true },
    },
    {
      name = "MXFP4 linear", kind = "linear", requirement = "CTM-SEL-04",
      when = { { "weights", "mxfp4" }, { "activations", "mxfp4", "none" } },
      order = { "flashinfer", "marlin", "humming", "emulation" },
      orders = { { when = { { "platform", "rocm" } }, "aiter", "emulation" },
        { when = { { "platform", "xpu" } }, "xpu" } },
      rows = {
        { name = "flashinfer", class = "FlashInferMxFp4LinearKernel", checks = {
          { "platform", "cuda" }, { "capability", family = { 100 } }, { "package", "flashinfer" },
          { "activations", "mxfp4" } } },
        { name = "marlin", class = "MarlinMxFp4LinearKernel", checks = marlin_float, quant = { weight_only = true } },
        { name = "humming", class = "HummingMxFp4LinearKernel", checks = { marlin_float, { "package", "humming" } } },
        { name = "emulation", class = "EmulationMxfp4LinearKernel", note = "decoded at every call: slow", checks = {
          { "platform", "cuda", "rocm" } } },
        { name = "aiter", class = "AiterMxfp4LinearKernel", checks = { { "platform", "rocm" },
          { "package", "aiter" } } },
        { name = "xpu", class = "XPUMxFp4LinearKernel", checks = { { "platform", "xpu" } } },
      },
    },
  },
}

-- Consumer nibble on CUDA devices: the kernels in cuda/ and what they check before they run, so that a yes here is a
-- layer that the device takes and a no is its refusal.
local cuda = { { "platform", "cuda" }, { "capability", min = 80 } }
local weight_only = { "activations", "none" }
local half = { "input", "f16", "bf16" }
local padded = "what the tensor cores' tiles don't divide is padded once, when the layer is loaded"
local takes = { "ungated", "batch_invariance" }
local groups = { "group", -1, 32, 64, 128 }
local marlin_shape = { groups, { "multiple", "hidden", 128 }, { "multiple_of_group", "intermediate", least = 64, actorder = true } }
local elsewhere = "another method reads it"
local rounded = "no product here takes such inputs (tensor cores multiply 4-bit floats from SM 100 on): they are quantized, and what their "
  .. "codes stand for goes in 16 bits through the weight-only product"
local codes = "int8 products of one group, or groups of 32, 64 or a multiple of 128 rows; else 16-bit ones of what the codes stand for"
local on_device = "nibble.methods.on_device"

return {
  name = "nibble",
  packages = { cublaslt = true },
  tables = {
    {
      name = "nibble linear on CUDA", kind = "linear", when = { { "platform", "cuda" } },
      rows = {
        { name = "marlin_cuda", class = "nibble.methods.marlin_cuda",
          note = "more than 256 rows: the weights become floats, a panel at a time, for cuBLASLt where that is", checks = {
          cuda, { "kind_of_weight", "int" }, weight_only, { "bits", 4, 8 }, { "layout", "awq", "gptq", "compressed-tensors" },
          { "strategy", "group", "channel" }, { "input", "f16", "bf16" },
          { "actorder_in_groups" }, { "group_in_rank", actorder = true }, { "multiple", "k", 16 }, { "multiple", "n", 64 } } },
        { name = "marlin_a8_cuda", class = "nibble.methods.marlin_a8_cuda", note = padded, checks = {
          cuda, { "schemes", { "int8", "int8 token" }, { "int8", "int8 tensor static" }, { "int4", "int8 token" },
            { "int4", "int8 tensor static" }, { "int4", "int4 token" }, { "int4 asym", "int8 token" },
            { "int4 asym", "int8 tensor static" }, { "int4", "fp8 token" }, { "int4", "fp8 tensor static" }, { "mxfp4", "fp8 token" },
            { "mxfp4", "fp8 tensor static" } },
          { "symmetric_activations" }, { "strategy", "group", "channel", "tensor" }, { "no_actorder" }, { "output", "f16", "bf16" },
          { "group_tiles" }, { "group_in_rank" }, { "multiple", "k", 8 }, { "multiple", "n", 8 } } },
        { name = "fp8_cuda", class = "nibble.methods.fp8_cuda",
          note = "more than 16 rows: cuBLASLt, by tensor from SM 89 on, by channel, token and block on SM 90", checks = {
          cuda, { "schemes", { "fp8 tensor", "fp8 tensor static" }, { "fp8 tensor", "fp8 tensor" }, { "fp8 tensor", "fp8 token" },
            { "fp8 channel", "fp8 token" }, { "fp8 channel", "fp8 tensor" }, { "fp8 channel", "fp8 tensor static" },
            { "fp8 block 128x128", "fp8 group 128" } }, { "multiple", "k", 16 },
            { "scales_in_rank" } } },
        { name = "nvfp4_cuda", class = "nibble.methods.nvfp4_cuda", note = "cuBLASLt 12.8 or later", checks = {
          { { "platform", "cuda" }, { "capability", min = 100 } }, { "package", "cublaslt" }, { "schemes", { "nvfp4", "nvfp4" } },
          { "multiple", "k", 32 }, { "multiple", "n", 8 }, { "scales_in_rank" } } },
        { name = "marlin_float_cuda", class = "nibble.methods.marlin_float_cuda", checks = {
          cuda, { "kind_of_weight", "float" }, { "bits", 4, 8 }, { "decodes" }, { "output", "f16", "bf16" }, { "multiple", "k", 8 },
          { "multiple", "n", 2 }, { "scales_in_rank" } },
          classes = { { class = "nibble.methods.marlin_float_cuda", note = padded, checks = { weight_only } },
            { class = "nibble.methods.marlin_float_cuda", name = "inputs rounded to their codes", note = rounded } } },
        { name = "dequantize_cuda", class = "nibble.methods.dequantize_cuda", note = "decoded at every call", checks = {
          cuda, { "package", "cublaslt" }, weight_only, { "decodes" }, { "input", "f16", "bf16", "f32" }, { "scales_in_rank" } } },
        { name = "awq_marlin", class = on_device, note = padded, checks = {
          cuda, { "only_layout", "awq", advice = elsewhere }, weight_only, { "bits", 4 }, { "zero_points" }, half,
          { "group", -1, 32, 64, 128 }, { "group_in_rank" }, { "packs" } } },
        { name = "awq", class = on_device, note = padded, checks = {
          cuda, { "only_layout", "awq", advice = elsewhere }, weight_only, { "bits", 4, 8 }, { "zero_points" }, half,
          { "group_in_rank" }, { "packs" } } },
        { name = "inc", class = on_device, note = padded, checks = {
          cuda, { "only_layout", "awq", "gptq", advice = elsewhere }, weight_only, { "bits_symmetric", 4 },
          { "no_actorder" }, half, { "group_in_rank" }, { "packs" }, { "packs", "k" } } },
      },
    },
    {
      name = "nibble MoE on CUDA", kind = "moe", when = { { "platform", "cuda" } }, staged = true,
      rows = {
        { name = "awq_marlin_moe", class = on_device, format = "standard", takes = takes, checks = {
          cuda, { "only_layout", "awq", advice = elsewhere }, weight_only, { "bits", 4 }, { "zero_points" }, half, marlin_shape } },
        { name = "gptq_marlin_moe", class = on_device, format = "standard", takes = takes, checks = {
          cuda, { "only_layout", "gptq", advice = elsewhere }, weight_only, { "bits_symmetric", 4, 8 }, half, marlin_shape,
          { "actorder_in_groups" } } },
        { name = "moe_wna16", class = on_device, format = "standard", takes = takes, checks = {
          cuda, { "only_layout", "awq", "gptq", advice = elsewhere }, weight_only, { "bits", 4, 8 }, { "no_actorder" }, half,
          { "multiple", "hidden", 64 }, { "multiple", "intermediate", 8 }, { "group_halves" } } },
        { name = "ct_wna16_moe", class = on_device, format = "standard", takes = takes, checks = {
          cuda, { "only_layout", "compressed-tensors", advice = elsewhere }, weight_only, { "symmetric" }, { "bits", 4, 8 }, half,
          marlin_shape, { "actorder_in_groups" } } },
        { name = "w4a8_moe", format = "standard", takes = { "batch_invariance" }, note = codes, classes = {
          { class = on_device, monolithic = true, checks = {
            cuda, { "weights", "int4" }, { "activations", "int8 token" }, { "output", "f16", "bf16" }, { "no_expert_parallel" },
            { "activation_fn", "silu", "swigluoai", "swiglustep" }, { "multiple", "hidden", 64 }, { "multiple", "intermediate", 2 },
            { "group_divides", "hidden" }, { "group_divides", "intermediate" } } } } },
        { name = "ct_fp8_moe", class = on_device, format = "standard", takes = takes, checks = {
          cuda, { "layout", "compressed-tensors" }, { "output", "f16", "bf16" }, { "schemes", { "fp8 tensor", "none" },
            { "fp8 tensor", "fp8 tensor static" }, { "fp8 tensor", "fp8 tensor" }, { "fp8 channel", "none" },
            { "fp8 channel", "fp8 token" }, { "fp8 block", "any" } }, { "multiple", "hidden", 64 }, { "blocks_divide" } } },
        { name = "ct_nvfp4_moe", class = on_device, format = "standard", takes = takes, note = rounded, checks = {
          cuda, { "layout", "compressed-tensors" }, { "output", "f16", "bf16" }, { "weights", "nvfp4" }, { "multiple", "hidden", 64 },
          { "multiple", "intermediate", 16 } } },
        { name = "marlin_a8_moe_cuda", class = "nibble.methods.marlin_a8_moe_cuda", format = "standard", takes = takes, note = padded,
          checks = { cuda, { "schemes", { "int8", "int8 token" }, { "int8", "int8 tensor static" }, { "int4", "int8 token" },
              { "int4", "int8 tensor static" }, { "int4", "int4 token" }, { "int4", "fp8 token" }, { "int4", "fp8 tensor static" } },
            { "symmetric_activations" }, { "strategy", "group", "channel", "tensor" }, { "no_actorder" }, { "output", "f16", "bf16" },
            { "group_tiles" }, { "multiple", "hidden", 64 }, { "group_divides", "hidden" }, { "group_divides", "intermediate" } } },
        { name = "marlin_float_moe_cuda", format = "standard", takes = takes, checks = {
          cuda, { "output", "f16", "bf16" }, { "schemes", { "fp8 tensor", "any" }, { "fp8 channel", "any" }, { "fp8 block", "any" },
            { "mxfp8", "any" }, { "mxfp4", "any" }, { "nvfp4", "any" } }, { "multiple", "hidden", 64 }, { "blocks_divide" },
            { "scales_in_rank" } },
          classes = { { class = "nibble.methods.marlin_float_moe_cuda", note = padded, checks = { weight_only } },
            { class = "nibble.methods.marlin_float_moe_cuda", name = "inputs rounded to their codes", note = rounded } } },
        { name = "reference", format = "standard", takes = { "ungated", "batch_invariance", "hash_routing" },
          note = "one expert after the other, whose projections run as linear layers do", checks = { cuda } },
      },
    },
  },
}

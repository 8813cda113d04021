-- Consumer nibble: what this workbench computes itself, on the CPU: nibble.methods' methods by their names, and the
-- reference: what no method covers is decoded to float32 and multiplied, which always works. The rows stand in the order
-- of methods.candidates.
local cpu = { "platform", "cpu" }
local groups = { "group", -1, 32, 64, 128 }
local weight_only = { "activations", "none" }
local marlin_shape = { groups, { "multiple", "hidden", 128 }, { "multiple_of_group", "intermediate", least = 64 } }
local takes = { "ungated", "batch_invariance" }
local reference = { { "decodes" } }

return {
  name = "nibble",
  about = "this workbench's own methods and kernels",
  tables = {
    {
      name = "nibble linear", kind = "linear", when = { cpu },
      rows = {
        { name = "awq_marlin", class = "nibble.methods.awq_marlin", checks = {
          { "only_layout", "awq", advice = "the reference reads it" }, weight_only, { "bits", 4 },
            { "zero_points" },
          groups, { "group_in_rank" }, { "narrow_input_type", "uint4b8", requirement = "AWQ-27" } } },
        { name = "awq", class = "nibble.methods.awq", checks = {
          { "only_layout", "awq", advice = "the reference reads it" }, weight_only, { "bits", 4, 8 },
            { "zero_points" },
          { "group_divides", "k" } } },
        { name = "inc", class = "nibble.methods.inc", checks = {
          { "only_layout", "awq", "gptq", advice = "the reference reads it" }, weight_only,
          { "bits_symmetric", 4 }, { "no_actorder" }, { "group_divides", "k" }, { "multiple", "k", 8 },
          { "multiple", "n", 8 } } },
        { name = "reference", note = "decoded to float32 block by block", checks = reference },
      },
    },
    {
      name = "nibble MoE", kind = "moe", when = { cpu }, staged = true,
      rows = {
        { name = "awq_marlin_moe", class = "nibble.methods.awq_marlin_moe", format = "standard", takes = takes,
          checks = {
          { "only_layout", "awq", advice = "another method reads it" }, weight_only, { "bits", 4 },
            { "zero_points" },
          marlin_shape } },
        { name = "gptq_marlin_moe", class = "nibble.methods.gptq_marlin_moe", format = "standard", takes = takes,
          checks = {
          { "only_layout", "gptq", advice = "another method reads it" }, weight_only, { "bits_symmetric", 4, 8 },
          { "actorder_wide_input", requirement = "C-28" }, marlin_shape } },
        { name = "moe_wna16", class = "nibble.methods.moe_wna16", format = "standard", takes = takes, checks = {
          { "only_layout", "awq", "gptq", advice = "another method reads it" }, weight_only, { "bits", 4, 8 },
          { "no_actorder" }, { "group_divides", "hidden" }, { "group_divides", "intermediate" } } },
        { name = "ct_wna16_moe", class = "nibble.methods.ct_wna16_moe", format = "standard", takes = takes, checks = {
          { "only_layout", "compressed-tensors", advice = "another method reads it" }, weight_only,
            { "symmetric" },
          { "bits", 4, 8 }, { "actorder_wide_input", requirement = "C-28" }, marlin_shape } },
        { name = "w4a8_moe", format = "standard", takes = { "batch_invariance" }, classes = {
          { class = "nibble.methods.w4a8_moe", monolithic = true, checks = {
            { "weights", "int4" }, { "activations", "int8 token" }, { "no_expert_parallel" },
            { "activation_fn", "silu", "swigluoai", "swiglustep" }, { "multiple", "hidden", 2 } } } } },
        { name = "ct_fp8_moe", class = "nibble.methods.ct_fp8_moe", format = "standard", takes = takes, checks = {
          { "schemes", { "fp8 tensor", "fp8 tensor static" }, { "fp8 tensor", "fp8 tensor" },
                 { "fp8 channel", "fp8 token" }, { "fp8 block 128x128", "any" } } } },
        { name = "ct_nvfp4_moe", class = "nibble.methods.ct_nvfp4_moe", format = "standard", takes = takes, checks = {
          { "weights", "nvfp4" } } },
        { name = "reference", format = "standard", takes = { "ungated", "batch_invariance", "hash_routing" },
          note = "decoded to float32 expert by expert", checks = reference },
      },
    },
  },
}

-- Consumer nibble: what this workbench computes itself, on the CPU. What it has no kernel for is decoded to float32 and
-- multiplied; that always works, and is the reference that kernels are tested against.
local cpu = { "platform", "cpu" }
local marlin_types = { "type_by_zero_points", with = { "uint4", "uint8" }, without = { "uint4b8", "uint8b128" } }
local reference = { cpu, { "decodes" } }

return {
  name = "nibble",
  about = "this workbench's own methods, on the CPU",
  tables = {
    {
      name = "nibble linear", kind = "linear", when = {},
      rows = {
        { name = "marlin", checks = {
          cpu, { "not_layout", "gguf" }, { "activations", "none" }, marlin_types, { "group", -1, 32, 64, 128 },
          { "group_in_rank" }, { "actorder_wide_input" }, { "narrow_input_type", "uint4b8" } } },
        { name = "fp8", checks = { cpu, { "kind_of_weight", "float" }, { "bits", 8 },
          { "strategy", "tensor", "channel", "block" } } },
        { name = "nvfp4", checks = { cpu, { "weights", "nvfp4" } } },
        { name = "reference", note = "decoded to float32 block by block", checks = reference },
      },
    },
    {
      name = "nibble MoE", kind = "moe", when = {}, staged = true,
      rows = {
        { name = "marlin", format = "standard", takes = { "ungated", "batch_invariance" }, checks = {
          cpu, { "not_layout", "gguf" }, { "activations", "none" }, marlin_types, { "group", -1, 32, 64, 128 },
          { "actorder_wide_input" }, { "multiple", "hidden", 128 },
          { "multiple_of_group", "intermediate", least = 64 } } },
        { name = "fp8", format = "standard", takes = { "ungated", "batch_invariance" }, checks = {
          cpu, { "kind_of_weight", "float" }, { "bits", 8 }, { "strategy", "tensor", "channel", "block" } } },
        { name = "nvfp4", format = "standard", takes = { "ungated", "batch_invariance" },
          checks = { cpu, { "weights", "nvfp4" } } },
        { name = "w4a8_int8", format = "standard", takes = { "batch_invariance" }, classes = {
          { monolithic = true, checks = {
            cpu, { "weights", "int4" }, { "activations", "int8 token" }, { "no_expert_parallel" },
            { "activation_fn", "silu", "swigluoai", "swiglustep" }, { "multiple", "hidden", 2 } } } } },
        { name = "reference", format = "standard", takes = { "ungated", "batch_invariance", "hash_routing" },
          note = "decoded to float32 expert by expert", checks = reference },
      },
    },
  },
}

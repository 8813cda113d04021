-- Consumer document-era: vLLM as the reference documents D0, D1 and D4 have it: two WNA16 MoE backends
-- (ORC-01), dense AWQ only by AWQ-Marlin, experts of compressed-tensors by FlashInfer's MXINT4 or Marlin.
local activations = { "activation_fn", "silu", "gelu", "gelu_tanh", "swigluoai", "swigluoai_uninterleave", "swiglustep",
  "silu_no_mul", "gelu_no_mul", "gelu_tanh_no_mul", "relu2_no_mul" }

local marlin_shape = {
  { "group", -1, 32, 64, 128, requirement = "MRL-07" },
  { "multiple", "hidden", 128, requirement = "MRL-07" },
  { "multiple_of_group", "intermediate", least = 64, requirement = "MRL-07" },
}

local marlin = {
  { "platform", "cuda" }, { "capability", min = 75 }, activations,
  -- The document promises that 8-bit weights find no backend, and has no such branch; here they are refused. (C-08)
  { "bits", 4, requirement = "ORC-12" },
  { "actorder_wide_input", requirement = "C-28" },
  { "not_all2all", "fi_nvl_two_sided" }, marlin_shape,
}

return {
  name = "document-era",
  about = "vLLM of the reference documents: Marlin for AWQ, two WNA16 MoE backends",
  packages = {},
  tables = {
    {
      name = "AWQ linear", kind = "linear", requirement = "AWQ-15",
      when = { { "kind_of_weight", "int" }, { "layout", "awq" } },
      rows = {
        { name = "awq_marlin", class = "AWQMarlinLinearMethod", checks = {
          { "platform", "cuda", "cpu" }, { "capability", min = 75, requirement = "AWQ-04" },
          { "bits", 4, requirement = "AWQ-02", final = true },
          { "zero_points", requirement = "AWQ-03" }, { "group", -1, 32, 64, 128, requirement = "MRL-04" },
          { "narrow_input_type", "uint4b8", requirement = "AWQ-27", final = true },
          { "multiple", "n", 64, requirement = "MRL-05" }, { "multiple", "k", 128, requirement = "MRL-05" },
          { "group_in_rank", requirement = "MRL-05" },
        } },
      },
      fallback = { name = "awq", warning = "falling back to the unoptimized AWQ kernels", requirement = "AWQ-15" },
    },
    {
      name = "AWQ MoE", kind = "moe", requirement = "AWQ-16", staged = true,
      when = { { "kind_of_weight", "int" }, { "only_layout", "awq", advice = "the layout is another" } },
      rows = {
        { name = "awq_marlin", class = "AWQMarlinMoEMethod", format = "standard",
          takes = { "ungated", "lora", "batch_invariance" },
          checks = {
            { "platform", "cuda" }, { "capability", min = 75 },
            -- The method passes no activation function on, so that SiLU is all that it can be asked for. (C-10)
            { "activation_fn", "silu", requirement = "C-10" },
            { "bits", 4, requirement = "AWQ-30", final = true }, { "zero_points", requirement = "AWQ-03" },
              marlin_shape,
            { "no_router_weight_on_input", requirement = "MRL-07" },
          } },
      },
      fallback = { name = "moe_wna16", warning = "falling back to the generic WNA16 MoE kernels",
        requirement = "AWQ-16" },
    },
    {
      name = "compressed-tensors WNA16 MoE", kind = "moe", requirement = "CTM-WNA16-02", staged = true,
        say_scheme = true,
      when = { { "kind_of_weight", "int" }, { "activations", "none" },
               { "only_layout", "compressed-tensors", advice = "the layout is another" } },
      rows = {
        { name = "Flashinfer", class = "flashinfer_trtllm_mxint4_moe", format = "standard", classes = {
          { class = "flashinfer_trtllm_mxint4_moe", monolithic = true, checks = {
            { "platform", "cuda" }, { "capability", family = { 100 } }, { "package", "flashinfer_mxint4" },
            { "bits", 4 }, { "symmetric", requirement = "CTM-WNA16-01" }, { "group", 32 }, { "no_actorder" } } },
        } },
        { name = "Marlin", class = "fused_marlin_moe", format = "standard",
          takes = { "ungated", "lora", "batch_invariance" },
          checks = {
            { "platform", "cuda" }, { "capability", min = 75 }, activations,
            { "symmetric", requirement = "CTM-WNA16-01" }, { "bits", 4, 8, requirement = "CTM-WNA16-01" },
            { "actorder_wide_input", requirement = "C-28" }, marlin_shape,
          } },
      },
      quant = { block_shape = "group", bits = { 4 } },
    },
    {
      name = "WNA16 MoE", kind = "moe", requirement = "ORC-10", staged = true,
      when = { { "kind_of_weight", "int" }, { "activations", "none" } },
      order = { "MARLIN", "BATCHED_MARLIN" },
      rows = {
        { name = "MARLIN", class = "MarlinExperts", format = "standard",
          takes = { "ungated", "lora", "batch_invariance" },
          checks = marlin },
        { name = "BATCHED_MARLIN", class = "BatchedMarlinExperts", format = "batched",
          takes = { "ungated", "batch_invariance" },
          checks = marlin },
      },
      explicit = { { "marlin", "MARLIN" }, { "batched_marlin", "BATCHED_MARLIN" } },
      quant = { block_shape = "group", bits = { 4 } },
    },
  },
}

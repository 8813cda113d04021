-- Consumer pymllm: AWQ-Marlin on linear layers only; SM 80, 4 or 8 bits, and shapes that do not fit raise
-- instead of falling back (MRL-06, MRL-53, MRL-55, C-01, C-05).
return {
  name = "pymllm",
  about = "pymllm: AWQ-Marlin for every linear layer",
  tables = {
    {
      name = "AWQ linear", kind = "linear", requirement = "MRL-06",
      when = { { "kind_of_weight", "int" }, { "layout", "awq" }, { "activations", "none" } },
      rows = {
        { name = "awq_marlin", class = "AWQMarlinLinearMethod", checks = {
          { "platform", "cuda" }, { "capability", min = 80, requirement = "MRL-06" },
          { "bits", 4, 8, requirement = "MRL-53" }, { "group", -1, 32, 64, 128, requirement = "MRL-06" },
          { "zero_points", requirement = "MRL-06" },
          { "input", "f16", "bf16", requirement = "MRL-53" },
          { "multiple", "n", 64, requirement = "MRL-05",
            advice = "use a smaller tensor-parallel size or the plain method" },
          { "multiple", "k", 128, requirement = "MRL-05",
            advice = "use a smaller tensor-parallel size or the plain method" },
          { "group_in_rank", requirement = "MRL-05" },
        } },
      },
    },
  },
}

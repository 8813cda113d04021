-- Consumer inc-cuda: AutoRound/INC weights on NVIDIA (INC-18, INC-19): GPTQ packing by Marlin or not at all, AWQ
-- packing by Marlin or plain AWQ, other widths by Humming; experts by Marlin or the generic kernels.
local experts = { { "platform", "cuda" }, { "capability", min = 75 }, { "group", -1, 32, 64, 128 },
  { "multiple", "hidden", 128 }, { "multiple_of_group", "intermediate", least = 64 } }
local marlin = { { "platform", "cuda" }, { "capability", min = 75 }, { "group", -1, 32, 64, 128 }, { "group_in_rank" } }

return {
  name = "inc-cuda",
  about = "AutoRound/INC on CUDA: Marlin for 4 and 8 bits, Humming for 2, 3, 5, 6 and 7",
  packages = { humming = true },
  tables = {
    {
      name = "INC linear, other widths", kind = "linear", requirement = "INC-18", details = true,
      when = { { "kind_of_weight", "int" }, { "bits", 2, 3, 5, 6, 7 } },
      rows = {
        { name = "humming", class = "HummingLinearKernel", checks = {
          { "platform", "cuda" }, { "capability", min = 75 }, { "package", "humming" }, { "no_actorder" } } },
      },
    },
    {
      name = "INC linear, AWQ", kind = "linear", requirement = "INC-19", details = true,
      when = { { "kind_of_weight", "int" }, { "only_layout", "awq",
        advice = "the packing is another" } },
      rows = {
        { name = "marlin", class = "MarlinLinearKernel", checks = { marlin,
          { "type_by_zero_points", with = { "uint4" }, without = {} } } },
        { name = "awq", class = "AWQLinearMethod", checks = { { "platform", "cuda" }, { "capability", min = 75 },
          { "bits", 4 } } },
      },
    },
    {
      name = "INC linear, GPTQ", kind = "linear", requirement = "INC-19", details = true,
      when = { { "kind_of_weight", "int" } },
      rows = {
        { name = "marlin", class = "MarlinLinearKernel", checks = { { "bits_symmetric", 4, 8 }, marlin } },
      },
    },
    {
      name = "INC MoE, AWQ", kind = "moe", requirement = "INC-19", details = true,
      when = { { "kind_of_weight", "int" }, { "bits", 4, 8 }, { "only_layout", "awq",
        advice = "the packing is another" } },
      rows = {
        { name = "marlin", class = "AWQMarlinMoEMethod", checks = { experts,
          { "type_by_zero_points", with = { "uint4" }, without = {} } } },
        { name = "moe_wna16", class = "MoeWNA16Method", checks = { { "platform", "cuda" } } },
      },
    },
    {
      name = "INC MoE, GPTQ", kind = "moe", requirement = "INC-19", details = true,
      when = { { "kind_of_weight", "int" }, { "bits", 4, 8 } },
      rows = {
        { name = "marlin", class = "GPTQMarlinMoEMethod", checks = { { "bits_symmetric", 4, 8 }, experts } },
        { name = "moe_wna16", class = "MoeWNA16Method", checks = { { "platform", "cuda" },
          { "bits_symmetric", 4, 8 } } },
      },
    },
  },
}

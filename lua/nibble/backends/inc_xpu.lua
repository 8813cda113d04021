-- Consumer inc-xpu: AutoRound/INC weights on Intel GPUs (INC-18). A w4a8 asked for by name runs as w4a16 below 512
-- tokens.
return {
  name = "inc-xpu",
  about = "AutoRound/INC on XPU: ARK where it is installed, else oneDNN's int4 path",
  packages = {},
  tables = {
    {
      name = "INC linear", kind = "linear", requirement = "INC-18", details = true,
      when = { { "kind_of_weight", "int" } },
      order = { "ark", "w4a16" },
      rows = {
        { name = "ark", class = "INCARKLinearMethod", checks = {
          { "platform", "xpu" }, { "bits_symmetric", 2, 4, requirement = "INC-13" }, { "package", "auto_round_kernel" },
          { "group_divides", "k", requirement = "INC-10" } } },
        { name = "w4a16", class = "INCXPULinearMethod", note = "the XPU's own path, where ARK is not", checks = {
          { "platform", "xpu" }, { "bits_symmetric", 4, requirement = "INC-13" },
          { "group_divides", "k", requirement = "INC-10" } } },
        { name = "w4a8", class = "INCXPUW4A8LinearMethod", note = "fewer than 512 tokens run as w4a16", checks = {
          { "platform", "xpu" }, { "bits_symmetric", 4, requirement = "INC-13" }, { "group_positive" },
          { "group_multiple", 32 },
          { "multiple", "k", 8 }, { "multiple", "n", 8 } } },
      },
      explicit = { { "ark", "ark" }, { "w4a16", "w4a16" }, { "w4a8", "w4a8" } },
    },
  },
}

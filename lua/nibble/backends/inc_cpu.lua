-- Consumer inc-cpu: AutoRound/INC weights on the CPU (INC-18): symmetric 4-bit GPTQ by ARK, else by the generic kernel.
local checks = {
  { "platform", "cpu" }, { "layout", "gptq" }, { "bits_symmetric", 4, requirement = "INC-13" },
  { "group_divides", "k", requirement = "INC-10" },
}

return {
  name = "inc-cpu",
  about = "AutoRound/INC on the CPU: ARK where it is installed, else the generic kernel",
  packages = {},
  tables = {
    {
      name = "INC linear", kind = "linear", requirement = "INC-18", details = true,
      when = { { "kind_of_weight", "int" } },
      rows = {
        { name = "ark", class = "INCARKLinearMethod", checks = { checks, { "package", "auto_round_kernel" } } },
        { name = "generic", class = "INCWNA16LinearScheme", note = "the CPU's own path, where ARK is not",
          checks = checks },
      },
    },
  },
}

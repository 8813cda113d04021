-- Consumer nibble on CUDA devices: the kernels in cuda/ and what they check before they run, so that a yes here is a
-- layer that the device takes and a no is its refusal. What is not written yet is a row that refuses, with what to do.
local cuda = { { "platform", "cuda" }, { "capability", min = 80 } }
local on_the_cpu = "; with --device cpu nibble computes it"

local function absent(what) return { cuda, { "absent", ("is not written yet: %s%s"):format(what, on_the_cpu) } } end

return {
  name = "nibble",
  tables = {
    {
      name = "nibble linear on CUDA", kind = "linear", when = { { "platform", "cuda" } },
      rows = {
        { name = "marlin_cuda", class = "nibble.methods.marlin_cuda", checks = {
          cuda, { "kind_of_weight", "int" }, { "activations", "none" }, { "bits", 4, 8 }, { "input", "f16", "bf16" },
          { "group", -1, 32, 64, 128 }, { "multiple", "k", 16 }, { "multiple", "n", 64 }, { "group_divides", "k" } } },
        { name = "fp8", checks = absent "the product of FP8 weights and FP8 activations" },
        { name = "nvfp4", checks = absent "the product of 4-bit floats" },
      },
    },
    {
      name = "nibble MoE on CUDA", kind = "moe", when = { { "platform", "cuda" } },
      rows = { { name = "marlin_moe", checks = absent "the product of all experts in one launch" } },
    },
  },
}

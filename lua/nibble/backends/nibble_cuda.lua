-- Consumer nibble on CUDA devices: the kernels in cuda/ and what they check before they run, so that a yes here is a
-- layer that the device takes and a no is its refusal. What is not written yet is a row that refuses, with what to do.
local cuda = { { "platform", "cuda" }, { "capability", min = 80 } }
local weight_only = { "activations", "none" }
local half = { "input", "f16", "bf16" }
local padded = "what the tensor cores' tiles don't divide is padded once, when the layer is loaded"
local on_the_cpu = "; with --device cpu nibble computes it"

local function absent(what) return { cuda, { "absent", ("is not written yet: %s%s"):format(what, on_the_cpu) } } end

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
        { name = "dequantize_cuda", class = "nibble.methods.dequantize_cuda", note = "decoded at every call", checks = {
          cuda, { "package", "cublaslt" }, weight_only, { "decodes" }, { "input", "f16", "bf16", "f32" } } },
        { name = "awq_marlin", class = "nibble.methods.on_device", note = padded, checks = {
          cuda, { "only_layout", "awq", advice = "another method reads it" }, weight_only, { "bits", 4 }, { "zero_points" }, half,
          { "group", -1, 32, 64, 128 }, { "group_in_rank" }, { "packs" } } },
        { name = "awq", class = "nibble.methods.on_device", note = padded, checks = {
          cuda, { "only_layout", "awq", advice = "another method reads it" }, weight_only, { "bits", 4, 8 }, { "zero_points" }, half,
          { "group_in_rank" }, { "packs" } } },
        { name = "inc", class = "nibble.methods.on_device", note = padded, checks = {
          cuda, { "only_layout", "awq", "gptq", advice = "another method reads it" }, weight_only, { "bits_symmetric", 4 },
          { "no_actorder" }, half, { "group_in_rank" }, { "packs" }, { "packs", "k" } } },
        { name = "fp8", checks = absent "the product of FP8 weights and FP8 activations" },
        { name = "nvfp4", checks = absent "the product of 4-bit floats and 4-bit activations" },
      },
    },
    {
      name = "nibble MoE on CUDA", kind = "moe", when = { { "platform", "cuda" } },
      rows = { { name = "marlin_moe", checks = absent "the product of all experts in one launch" } },
    },
  },
}

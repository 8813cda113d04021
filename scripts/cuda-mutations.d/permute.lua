-- Bugs for the kernels that permute scales and zero-points.
local PERMUTE = "cuda/kernels/permute.cu"

return {
  spec = "spec/cuda_kernels_spec.lua",
  bugs = {
    { "scales: rows for columns", PERMUTE, "p / 8 + 8 * (p % 8)", "p" },
    { "scales: pairs parted", PERMUTE, "2 * (p / 8) + p % 2 + 8 * (p % 8 / 2)", "p / 8 + 4 * (p % 8)" },
    { "scales: block of the other kind", PERMUTE, "grouped ? GROUPED : SINGLE", "GROUPED" },
    { "zero-points: AWQ's order for all", PERMUTE, "awq ? x / 2", "PF ? x / 2" },
    { "zero-points: the last ones left out", PERMUTE, "i < count; i += step()) {\n    int w", "i < count - 1; i += step()) {\n    int w" },
  },
}

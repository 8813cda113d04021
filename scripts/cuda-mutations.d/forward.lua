-- Bugs for the forward pass's small operations, and for who launches them.
local EXP, PLAIN, FLAT = "cuda/exp.cuh", "cuda/kernels/plain.cuh", "cuda/kernels/forward.cu"
local ROWS, HOST = "cuda/kernels/forward_rows.cu", "cuda/forward.c"

return {
  spec = "spec/cuda_forward_spec.lua",
  bugs = {
    { "halves swapped in a word", PLAIN, "widened<EXACT>((uint16_t)(w[i / 2] >> i % 2 * 16)",
      "widened<EXACT>((uint16_t)(w[i / 2] >> (1 - i % 2) * 16)" },
    { "NaN loses its bits", PLAIN, "if (EXACT && (lo != lo || hi != hi))", "if (false && EXACT && (lo != lo || hi != hi))" },
    { "a last part is written past the end", PLAIN, "      if (i >= count) continue;\n      if (dtype == NB_KERNEL_F32) cast<float>(to)",
      "      if (dtype == NB_KERNEL_F32) cast<float>(to)" },
    { "exp contracted", EXP, "p = mul_rn(mul_rn(p, r), r) + r + 1.0f;", "p = fma_rn(mul_rn(p, r), r, r) + 1.0f;" },
    { "the last element left out", FLAT, "(int)smaller((int64_t)EIGHT, n - at)", "(int)smaller((int64_t)EIGHT, n - 1 - at)" },
    { "a sum read before all warps are done", ROWS, "  __syncthreads();\n  double sum = 0;", "  double sum = 0;" },
    { "a warp's sum is missing", ROWS, "i < lanes / 32; i++", "i < lanes / 32 - 1; i++" },
    { "the halves turn the other way", ROWS, "mul_rn(p, c[j]) - mul_rn(q, s[j])", "mul_rn(p, c[j]) + mul_rn(q, s[j])" },
    { "every row of a run adds", ROWS, "    if (before == id) return;", "    if (before > id) return;" },
    { "only the first of a run", ROWS, "      if (here != id) break;", "      if (here != id || row > first) break;" },
    { "host: alignment not looked at", HOST, "row % NB_FORWARD_EIGHT == 0 && (uintptr_t)t->data % 16 == 0;",
      "row % NB_FORWARD_EIGHT == 0;" },
    { "host: one block of a warp's rows too few", HOST, "NB_CEIL(rows, NB_FORWARD_THREADS / lanes);",
      "NB_MAX(rows / (NB_FORWARD_THREADS / lanes), 1);" },
  },
}

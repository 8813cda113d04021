-- Bugs for attention's kernels, and for who launches them.
local KERNEL, WIDE, HOST = "cuda/kernels/attention.cu", "cuda/kernels/attention_f32.cu", "cuda/attention.c"

return {
  spec = "spec/cuda_attention_spec.lua",
  bugs = {
    { "f32: a query sees the next keys", WIDE, "if (first + i > query) score[i] = -INFINITY;", "" },
    { "f32: a window of one key more", WIDE, "query - s.sliding + 1 : 0", "query - s.sliding : 0" },
    { "f32: sums don't shrink", WIDE, "sums[j] = mul_rn(sums[j], shrink)", "sums[j] = mul_rn(sums[j], 1)" },
    { "f32: totals don't shrink", WIDE, "total = mul_rn(total, shrink);", "" },
    { "f32: another head's keys", WIDE, "head / (s.heads / s.kv_heads)", "head % s.kv_heads" },
    { "f32: rows past a sequence", WIDE, "if (query >= s.length) return;", "" },
    { "f32: columns past a head", WIDE, "    if (lane + j * LANES < s.head_dim) out[", "    out[" },
    { "f32: sums of half the lanes", WIDE, "int m = LANES / 2; m;", "int m = LANES / 4; m;" },
    { "f32: half a head", HOST, "size += wide ? 2 : 1;", "size += wide ? 1 : 1;" },
    { "f32: scores for powers of two", HOST, "(float)(wide ? scale :", "(float)(wide ? scale * 1.4426950408889634 :" },
    { "bank conflicts: chunks in their own places", KERNEL, "row / (8 / TURNS) & (TURNS - 1); }", "row & 0; }" },
    { "keys read before they are there", KERNEL, "      cp_async_wait<1>();\n", "      cp_async_wait<2>();\n" },
    { "keys read before others' are there", KERNEL, "      cp_async_wait<1>();\n      __syncthreads();", "      cp_async_wait<1>();" },
    { "keys overwritten while they are read", KERNEL, "      __syncthreads(); /* all are", "      /* all are" },
    { "a query sees the next key", KERNEL, "if (key > row ||", "if (key > row + 1 ||" },
    { "a window of one key more", KERNEL, "key <= row - s.sliding)", "key < row - s.sliding)" },
    { "a window's first block is not cut", KERNEL, " || first <= mine + 15 - s.sliding", "" },
    { "the diagonal is not cut", KERNEL, "first + KEYS - 1 > mine ||", "first > mine ||" },
    { "sums don't shrink with a new largest score", KERNEL, "sums[n / GROUP][n % GROUP][i] *= shrink",
      "sums[n / GROUP][n % GROUP][i] *= 1" },
    { "totals don't shrink", KERNEL, "total[r] = mul_rn(total[r], shrink);", "" },
    { "another head's keys", KERNEL, "head / (s.heads / s.kv_heads)", "head % s.kv_heads" },
    { "rows past a sequence", KERNEL, "if (q0 + row >= end) continue;", "" },
    { "columns past a head", KERNEL, "if (n * 8 + lane % 4 * 2 < s.head_dim)", "" },
    { "host: places not looked at", HOST, "(uintptr_t)t->data % 16 == 0;", "true;" },
  },
}

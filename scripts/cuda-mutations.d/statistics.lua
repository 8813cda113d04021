-- Bugs for calibration's kernels, and for who launches them.
local KERNEL, HOST = "cuda/kernels/statistics.cu", "cuda/statistics.c"

return {
  spec = "spec/cuda_statistics_spec.lua",
  bugs = {
    { "rows beyond the last", KERNEL, "      if (r + i >= m) continue;\n", "" },
    { "sums begin anew", KERNEL, "double sum = sums[c];", "double sum = 0;" },
    { "the order of negative numbers", KERNEL, "b ^ (b >> 31 ? 0xffffffffu : 0x80000000u)", "b ^ 0x80000000u" },
    { "0 does not belong to the range", KERNEL, "float_of_order(~larger(e.low, 0x7fffffffu))", "float_of_order(~e.low)" },
    { "read before all have written", KERNEL, "  __syncthreads();\n  for (int i = 0; i < NB_STATISTICS",
      "  for (int i = 0; i < NB_STATISTICS" },
    { "MX scales round half up a bit too late", KERNEL, "absmax + 0x00200000u", "absmax + 0x00400000u" },
    { "halves round up", KERNEL, "(unit / 2 - 1) + (a >> o.shift & 1)", "unit / 2" },
    { "subnormal codes as others", KERNEL, "if (a < o.normal)", "if (a < o.normal / 2)" },
    { "the extent of what is not there", KERNEL, "      if (j < count) e.see(v[j]);", "      e.see(v[j] + 1);" },
    { "spans by a row more", KERNEL, "words + me.unit / share * NB_STATISTICS_WORDS;\n  atomic_max(to,",
      "words + me.unit / (share + 1) * NB_STATISTICS_WORDS;\n  atomic_max(to," },
    { "a NaN that is lost in its code", KERNEL, "is_number ? s.by : float_of_bits(0x7fc00000u)", "s.by" },
    { "codes of what is not there", KERNEL, "if (!whole && j < count) codes", "if (!whole) codes" },
    { "codes with their sign's bits", KERNEL, "(uint32_t)(int)v & 0xffu", "(uint32_t)(int)v" },
    { "a row's own scale where it is the tensor's", KERNEL, "e = {from[0], from[1], from[2]};", "" },
    { "scales by every lane's row", KERNEL, "scales[me.unit] = is_number", "scales[me.unit / 2] = is_number" },
    { "host: words of the call before", HOST, "  return nb_device_zero(&t);", "  return NB_OK;" },
  },
}

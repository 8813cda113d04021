-- Bugs for calibration's kernels, and for who launches them.
local KERNEL, HOST = "cuda/kernels/statistics.cu", "cuda/statistics.c"

return {
  spec = "spec/cuda_statistics_spec.lua spec/cuda_experts_float_spec.lua",
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
    { "a NaN that is lost in its code", KERNEL, "is_number ? s.by : float_of_bits(0x7fc00000u)", "s.by" },
    { "codes of what is not there", KERNEL, "if (!whole && j < count) codes", "if (!whole) codes" },
    { "codes with their sign's bits", KERNEL, "(uint32_t)(int)v & 0xffu", "(uint32_t)(int)v" },
    { "a row's own scale where it is the tensor's", KERNEL, "e = {from[0], from[1], from[2]};", "" },
    { "scales by every lane's row", KERNEL, "scales[me.unit] = is_number", "scales[me.unit / 2] = is_number" },
    { "spans by a row more", KERNEL, "return unit / share; }", "return unit / (share + 1); }" },
    { "experts: a row of the pair's number", KERNEL,
      "unit / o.each / o.top * o.each + unit % o.each", "unit / o.each * o.each + unit % o.each" },
    { "experts: the first group of each row", KERNEL, "/ o.top * o.each + unit % o.each", "/ o.top * o.each" },
    { "experts: the map is not looked at", KERNEL, "    if (map) e = e >= 0 && e < o.entries ? map[e] : -1;\n", "" },
    { "experts: ids beyond the map", KERNEL, "e >= 0 && e < o.entries ? map[e] : -1", "e >= 0 ? map[e < o.entries ? e : 0] : -1" },
    { "experts: all have the first one's scale", KERNEL, "scales ? scales[e] : q.global", "scales ? scales[0] : q.global" },
    { "experts: all have the first one's static scale", KERNEL, "scales ? scales[e] : q.scale", "scales ? scales[0] : q.scale" },
    { "experts: the extents of all together", KERNEL,
      "words + owner * NB_STATISTICS_WORDS;\n  atomic_max(to, e", "words;\n  atomic_max(to, e" },
    { "host: words of the call before", HOST, "  return nb_device_zero(&t);", "  return NB_OK;" },
  },
}

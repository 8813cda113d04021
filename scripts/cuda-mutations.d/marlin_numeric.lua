-- Bugs for the kernels that make numbers for Marlin's 8-bit activations and 4-bit floats, and for who launches them.
local KERNELS, HOST = "cuda/kernels/marlin_numeric.cu", "cuda/marlin_numeric.c"

return {
  spec = "spec/cuda_marlin_numeric_spec.lua",
  bugs = {
    { "fold: equal is below", KERNELS, "(q | 0x80808080u) - z", "(q | 0x80808080u) - z - ONES" },
    { "fold: the high nibbles with the low zero-points", KERNELS, "| fold(w >> 4 & LOW, z >> 4 & LOW) << 4",
      "| fold(w >> 4 & LOW, z & LOW) << 4" },
    { "unfold: 16 is not beyond", KERNELS, "over = (sum >> 4 & ONES)", "over = (sum >> 5 & ONES)" },
    { "fold: the first zero-points for all", KERNELS, "zero = r / per_zero * units", "zero = 0" },
    { "fold: zero-points of the row", KERNELS, "zero = r / per_zero * units", "zero = r * units" },
    { "words: the last ones are left out", KERNELS, "i < words; i += step()) to[i] = f(", "i < words - 1; i += step()) to[i] = f(" },
    { "words: the first 16 bytes twice", KERNELS, "int64_t i = words / 4 * 4 + first(); i < words; i += step()) to",
      "int64_t i = words / 4 + first(); i < words; i += step()) to" },
    { "MX: columns 2 and 1 where they are", KERNELS, "return (w & 0xff0000ffu) |", "return w; return (w & 0xff0000ffu) |" },
    { "MX: 250 passes", KERNELS, "& 0x01000100u) != 0", "& 0x02000200u) != 0" },
    { "MX: beyond in even columns alone", KERNELS, "((even | odd) & 0x0100", "(even & 0x0100" },
    { "NVFP4: no f16 before the factor", KERNELS, "mul_rn(through_f16(f), factor)", "mul_rn(f, factor)" },
    { "NVFP4: small ones stay", KERNELS, "< 2.0f ? 0", "< 1.0f ? 0" },
    { "NVFP4: any NaN", KERNELS, "s >> 7 & 3u", "3u" },
    { "int8: halves away from even", KERNELS, "rintf(", "roundf(" },
    { "int8: an odd last one is left out", KERNELS, "if (count % 2 && first() == 0)", "if (count % 2 && first() < 0)" },
    { "int8: what doesn't fit goes unseen", KERNELS, "wrong |= !fits;", "" },
    { "max: the last ones are not looked at", KERNELS, "i < count; i += step()) look(", "i < count - 1; i += step()) look(" },
    { "max: lanes far apart don't meet", KERNELS, "for (int m = 16; m", "for (int m = 8; m" },
    { "max: negative ones are large", KERNELS, "h & 0x8000u ? NB_NUMERIC_ZERO - size : ", "" },
    { "swizzle: rows side by side", KERNELS, "mt * 128 + q * 32 + r", "mt * 128 + q + r * 4" },
    { "swizzle: the padding takes the next row", KERNELS, "j < 4 && kt * 4 + j < columns", "j < 4" },
    { "swizzle: experts forgotten", KERNELS, "(matrix * row_tiles + mt)", "(mt)" },
    { "host: NaN goes unseen", HOST, "range.widest > (f16", "0 > (f16" },
    { "host: the notes are kept", HOST, "  nb_tensor_release(&notes);\n  if (rc < 0) return rc;", "  if (rc < 0) return rc;" },
  },
}

-- Bugs for the quantize kernels and who launches them.
local WAY, RTN, FLOAT, ACT = "cuda/kernels/quantize.cuh", "cuda/kernels/quantize.cu", "cuda/kernels/quantize_float.cu",
  "cuda/kernels/quantize_act.cu"
local NUMBERS, HOST = "cuda/numbers.cuh", "cuda/quantize.c"

return {
  spec = "spec/cuda_quantize_spec.lua",
  bugs = {
    { "warps meet in the same words each round", WAY, "shared_words() + round % 2 * 2 * warps", "shared_words() + 0 * round" },
    { "warps don't meet", WAY, "    __syncthreads();\n", "" },
    { "two lanes don't compare", WAY, "m; m /= 2", "m > 1; m /= 2" },
    { "positive values taken for negative ones", WAY, "s.neg = s.neg >> 31 ? s.neg & 0x7fffffffu : 0;", "s.neg &= 0x7fffffffu;" },
    { "a weight beyond the row is read", WAY, "if (i >= count) break;", "if (i > count) break;" },
    { "the last block of a column isn't cut", WAY, "smaller((int64_t)b.rows, b.n - row)", "(int64_t)b.rows" },
    { "the last block of a row isn't cut", WAY, "(int)smaller((int64_t)b.columns, b.k - column)", "b.columns" },
    { "a vector beyond what is held is skipped", WAY, "for (int v = me.lane + HELD * me.lanes", "for (int v = me.lane + (HELD + 1) * me.lanes" },
    { "the last round is left out", WAY, "first < b.count; first += me.count", "first + me.count <= b.count; first += me.count" },
    { "signs of two weights changed", WAY, "0x7531", "0x5731" },
    { "the quotient without its step", NUMBERS, "q = fma_rn(fma_rn(-d.by, q, x[i]), d.inverse, q);\n      if", "if" },
    { "reciprocals of any scale", NUMBERS, "by >= 0x1p-80f && by <= 0x1p+100f && most", "most" },
    { "subnormal codes rounded as normal ones", NUMBERS, "(uint32_t)(128 - BIAS) << 23", "(uint32_t)(127 - BIAS) << 23" },
    { "codes from a scale before it is rounded", RTN, "rounded(o.symmetric ? divided(pos, neg, o) : (pos + neg) / (float)levels, o.scale_dtype)",
      "(o.symmetric ? divided(pos, neg, o) : (pos + neg) / (float)levels)" },
    { "ties go up", RTN, "bits_of_float(x[i] + WHOLE)", "bits_of_float(floorf(x[i] + 0.5f) + WHOLE)" },
    { "a zero-point beyond the codes", RTN, "smaller(neg / s, (float)levels)", "neg / s" },
    { "the scale of zeros is the least number", RTN, "s = pos == 0 && neg == 0 ? epsilon_of(o.scale_dtype) : least_of(o.scale_dtype)",
      "s = least_of(o.scale_dtype)" },
    { "the last failure is told", RTN, "else atomic_max(failed, ~(uint64_t)i);", "else atomic_max(failed, ~(uint64_t)0 - (uint64_t)(99 - i));" },
    { "the range of half the tensor", RTN, "at += threads * VECTOR * HELD", "at += 2 * threads * VECTOR * HELD" },
    { "NVFP4: a scale of 0", FLOAT, "if (code == 0) code = 0x20;", "" },
    { "e2m1 keeps -0", FLOAT, "mul_rn(x[i], g.scale.by) + 0.0f;", "mul_rn(x[i], g.scale.by);" },
    { "MX: a power too small", FLOAT, "E2M1 ? 0x003fffffu : 0x001fffffu", "0x001fffffu" },
    { "an infinite scale that is given", FLOAT, "(small || magnitude_of(by) != 0x7f800000u)", "(small || true)" },
    { "activations: NaN is the largest", ACT, "SKIP_NAN = true", "SKIP_NAN = false" },
    { "activations: halves go to even", ACT, "roundf(x[i])", "rintf(x[i])" },
    { "activations: the tensor's scale isn't finished", HOST, "finish = 1;", "finish = 0;" },
    { "a view that begins anywhere is read in 16 bytes", HOST, "aligned(w, 16) && aligned(codes, 8)", "aligned(w, 2) && aligned(codes, 1)" },
  },
}

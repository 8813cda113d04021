/* dequantize.cuh - one weight's value, as the dequantize kernels share it: (code - zero) * scale, or code * scale
 * of float codes, in float32 as core/quant/dequant.c and dequant_float.c compute it, rounded once to out's dtype.
 * So the bytes are the processor's; only a NaN's other bits are the device's own. */
#ifndef NB_DEQUANTIZE_CUH
#define NB_DEQUANTIZE_CUH
#include "../numbers.cuh"
#include "dequantize.h"

namespace dequantize {

/* A weight's tensors; zeros and g_idx may be null. */
struct weight {
  global<const uint8_t> values, scales, zeros;
  global<const int32_t> g_idx;
  global<uint8_t> out;
  nb_dequantize_job job;
};

/* What the bits c are worth; exact. Small floats: their exponent and mantissa at the place of float32's are the
 * number times a power of two, subnormal ones too. */
NB_DEVICE float e4m3(uint32_t c, bool fnuz) {
  float f = float_of_bits((c & 0x7f) << 20 | (c & 0x80) << 24) * (fnuz ? 0x1p119f : 0x1p120f);
  return (fnuz ? c == 0x80 : (c & 0x7f) == 0x7f) ? float_of_bits(0x7fffffffu) : f;
}
NB_DEVICE float e2m1(uint32_t c) { return float_of_bits((c & 7) << 22 | (c & 8) << 28) * 0x1p126f; }
NB_DEVICE float plain(uint32_t c, int as) {
  return as == NB_KERNEL_F32    ? float_of_bits(c)
         : as == NB_KERNEL_BF16 ? float_of_bf16((uint16_t)c)
                                : float_of_f16((uint16_t)c);
}

/* 2^23 + c, c below 2^23: a float whose last bits are c's, so no conversion; differences of two are exact. */
NB_DEVICE float whole(uint32_t c) { return float_of_bits(0x4b000000u | c); }

/* Scale i; of integers a plain float, without divisor. */
template <int CODES> NB_DEVICE float scale_at(const weight &w, int64_t i) {
  const int as = w.job.scale;
  float s;
  if (CODES != NB_CODES_INT && (as == NB_KERNEL_E4M3 || as == NB_KERNEL_E8M0)) {
    uint32_t c = w.scales[i];
    s = as == NB_KERNEL_E4M3 ? e4m3(c, false) : e8m0_to_f32(c);
  } else {
    uint32_t c = as == NB_KERNEL_F32 ? cast<const uint32_t>(w.scales)[i] : cast<const uint16_t>(w.scales)[i];
    s = plain(c, as);
  }
  return CODES == NB_CODES_INT || w.job.divisor == 1 ? s : s / w.job.divisor;
}

/* PIECE columns side by side and their groups: one, or with EACH one for each column. */
template <int PIECE, bool EACH> struct columns {
  static constexpr int GROUPS = EACH ? PIECE : 1;
  int group[GROUPS];

  NB_DEVICE columns(const weight &w, int first) {
#pragma unroll
    for (int i = 0; i < GROUPS; i++) group[i] = EACH ? (int)w.g_idx[first + i] : first / w.job.columns;
  }
};

/* Scales and zero-points of such columns in one row. */
template <int CODES, int PIECE, bool EACH> struct grid {
  static constexpr int GROUPS = columns<PIECE, EACH>::GROUPS;
  float scale[GROUPS], zero[GROUPS]; /* zero: as whole() gives it */

  NB_DEVICE void load(const weight &w, const columns<PIECE, EACH> &at, int64_t row) {
    if (CODES == NB_CODES_PLAIN) return;
    /* A division only where blocks are higher than a row. */
    int64_t first = (w.job.rows == 1 ? row : (uint32_t)row / (uint32_t)w.job.rows) * w.job.groups;
#pragma unroll
    for (int i = 0; i < GROUPS; i++) {
      scale[i] = scale_at<CODES>(w, first + at.group[i]);
      if (CODES == NB_CODES_INT)
        zero[i] = whole(w.zeros ? w.zeros[first + at.group[i]] : (uint32_t)w.job.zero);
    }
  }
  /* The value of code c in column i. */
  NB_DEVICE float value(const weight &w, uint32_t c, int i) const {
    const int g = EACH ? i : 0;
    if (CODES == NB_CODES_PLAIN) return plain(c, w.job.code);
    if (CODES == NB_CODES_INT) return (whole(c) - zero[g]) * scale[g];
    float x = CODES == NB_CODES_E2M1 ? e2m1(c) : e4m3(c, w.job.code == NB_KERNEL_E4M3FNUZ);
    return x * scale[g] * w.job.factor;
  }
};

/* x becomes the at-th 16 bytes of out: 4 elements of float32, or 8 of 16 bits. */
template <int PIECE> NB_DEVICE void store(const weight &w, int64_t at, const float *x) {
  uint32_t u[4];
#pragma unroll
  for (int i = 0; i < 4; i++)
    u[i] = PIECE == 4                    ? bits_of_float(x[i])
           : w.job.out == NB_KERNEL_BF16 ? bf16_pair(x[2 * i % PIECE], x[(2 * i + 1) % PIECE])
                                         : f16_pair(x[2 * i % PIECE], x[(2 * i + 1) % PIECE]);
  cast<uint4>(w.out)[at] = make_uint4(u[0], u[1], u[2], u[3]);
}

} // namespace dequantize
#endif

/* numbers.cuh - number formats inside kernels, bit for bit as core/base.h and core/dtype.h make them.
 *
 * Nothing here is contracted into a multiply-add behind our back: products are mul_rn, divisions are IEEE's own
 * (nvcc's and the emulator's default), and rounding to a format is integer arithmetic or the one instruction that does
 * the same. */
#ifndef NB_NUMBERS_CUH
#define NB_NUMBERS_CUH
#include "kernels/numbers.h"
#include "ptx.cuh"

template <class T> NB_DEVICE T larger(T a, T b) { return a > b ? a : b; }
template <class T> NB_DEVICE T smaller(T a, T b) { return a < b ? a : b; }

NB_DEVICE uint32_t magnitude_of(float f) { return bits_of_float(f) & 0x7fffffffu; }

/* ---- bf16 and f16 ------------------------------------------------------------------ */

/* f in the dtype's 16 bits. Not of NaN, which nothing here makes. */
NB_DEVICE uint16_t half_of(float f, int dtype) {
  return (uint16_t)(dtype == NB_KERNEL_BF16 ? bf16_pair(f, 0) : f16_pair(f, 0));
}
NB_DEVICE float float_of_half(uint16_t h, int dtype) {
  return dtype == NB_KERNEL_BF16 ? float_of_bf16(h) : float_of_f16(h);
}
/* Rounds to the dtype and back; x[0..N-1] a pair at a time. */
NB_DEVICE float rounded(float f, int dtype) {
  return dtype == NB_KERNEL_F32 ? f : float_of_half(half_of(f, dtype), dtype);
}
template <int DTYPE, int N> NB_DEVICE void round_all(float *x) {
#pragma unroll
  for (int i = 0; i < N && DTYPE != NB_KERNEL_F32; i += 2) {
    uint32_t u = DTYPE == NB_KERNEL_BF16 ? bf16_pair(x[i], x[i + 1]) : f16_pair(x[i], x[i + 1]);
    x[i] = float_of_half((uint16_t)u, DTYPE);
    x[i + 1] = float_of_half((uint16_t)(u >> 16), DTYPE);
  }
}
/* finfo(dtype).eps */
NB_DEVICE float epsilon_of(int dtype) {
  return dtype == NB_KERNEL_F32 ? 0x1p-23f : dtype == NB_KERNEL_BF16 ? 0x1p-7f : 0x1p-10f;
}
/* The smallest positive number. */
NB_DEVICE float least_of(int dtype) {
  return dtype == NB_KERNEL_F32 ? 0x1p-149f : dtype == NB_KERNEL_BF16 ? 0x1p-133f : 0x1p-24f;
}
NB_DEVICE void store_float(global<uint8_t> to, int64_t i, float f, int dtype) {
  if (dtype == NB_KERNEL_F32) cast<float>(to)[i] = f;
  else cast<uint16_t>(to)[i] = half_of(f, dtype);
}
NB_DEVICE float load_float(global<const uint8_t> from, int64_t i, int dtype) {
  if (dtype == NB_KERNEL_F32) return cast<const float>(from)[i];
  const uint16_t h = cast<const uint16_t>(from)[i];
  const float f = float_of_half(h, dtype);
  return f == f ? f : float_of_bf16(h | 0x7fc0u); /* with its sign, which a conversion drops */
}

/* ---- small floats -------------------------------------------------------------------- */

/* The code of f, which is clamped first; half to even. Below `least`, the smallest normal, an addend whose last bit is
 * the smallest subnormal makes the adder round; from there up the exponent is taken off together with rounding. */
template <int MBITS, int BIAS, uint32_t LARGEST> NB_DEVICE uint32_t small_magnitude(float f) {
  constexpr int SHIFT = 23 - MBITS;
  constexpr uint32_t MAGIC = (uint32_t)(128 + SHIFT - BIAS) << 23, LEAST = (uint32_t)(128 - BIAS) << 23;
  uint32_t a = smaller(magnitude_of(f), LARGEST);
  uint32_t low = bits_of_float(float_of_bits(a) + float_of_bits(MAGIC)) - MAGIC;
  uint32_t high =
      (a + ((1u << (SHIFT - 1)) - 1 - ((uint32_t)(127 - BIAS) << 23)) + (a >> SHIFT & 1u)) >> SHIFT;
  return a < LEAST ? low : high;
}
NB_DEVICE uint32_t e4m3_of(float f) {
  return small_magnitude<3, 7, 0x43e00000u>(f) | (bits_of_float(f) >> 24 & 0x80u);
}
/* -0 becomes 0, but not what rounds to it. */
NB_DEVICE uint32_t e2m1_of(float f) {
  return small_magnitude<1, 1, 0x40c00000u>(f) | (magnitude_of(f) ? bits_of_float(f) >> 28 & 8u : 0u);
}
/* Of codes 0 to 0x7e and their negatives; NaN of 0x7f. */
NB_DEVICE float e4m3_to_f32(uint32_t code) {
  uint32_t a = code & 0x7fu, sign = (code & 0x80u) << 24;
  if (a == 0x7fu) return float_of_bits(sign | 0x7ff00000u);
  return float_of_bits(sign |
                       bits_of_float(a < 8 ? (float)a * 0x1p-9f : float_of_bits((a + (120u << 3)) << 20)));
}
/* 255 is NaN; 2^-127 is no normal number. */
NB_DEVICE float e8m0_to_f32(uint32_t code) {
  if (code == 255) return float_of_bits(0x7f800001u);
  return float_of_bits(code ? code << 23 : 0x00400000u);
}

/* ---- division by one number, many times -------------------------------------------------- */

/* by's reciprocal, and whether numbers up to `most` can be divided by way of it. */
struct divisor {
  float by, inverse;
  bool quick;
};
NB_DEVICE divisor divisor_of(float by, float most) {
  return {by, 1 / by, by >= 0x1p-80f && by <= 0x1p+100f && most <= mul_rn(by, 0x1p+20f)};
}

/* x / by, the correctly rounded quotient: x * inverse is less than two last places off, the first step leaves one, and
 * by Markstein's theorem (P. Markstein, IBM J. Res. Dev. 34, 1990) the second leaves none, where neither the quotient
 * nor a remainder is subnormal. With `quick` they are only where the quotient is less than 2^-20: a code of 0 then,
 * whatever its last bits. -0 stays what it is. */
NB_DEVICE float quick_quotient(float x, const divisor &d) {
  float q = mul_rn(x, d.inverse);
  q = fma_rn(fma_rn(-d.by, q, x), d.inverse, q);
  q = fma_rn(fma_rn(-d.by, q, x), d.inverse, q);
  return float_of_bits(bits_of_float(q) | (bits_of_float(x) & 0x80000000u));
}
/* x[0..N-1] / by */
template <int N> NB_DEVICE void divide(float *x, const divisor &d) {
  if (d.quick) {
#pragma unroll
    for (int i = 0; i < N; i++) x[i] = quick_quotient(x[i], d);
  } else {
#pragma unroll
    for (int i = 0; i < N; i++) x[i] = x[i] / d.by;
  }
}
#endif

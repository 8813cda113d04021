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

NB_DEVICE uint32_t magnitude_of(float f) { return bits_of(f) & 0x7fffffffu; }

/* ---- bf16 and f16 ------------------------------------------------------------------ */

NB_DEVICE float bf16_to_f32(uint32_t h) { return float_of(h << 16); }
/* Not of NaN. */
NB_DEVICE uint32_t f32_to_bf16(float f) {
  uint32_t u = bits_of(f);
  return (u + 0x7fffu + (u >> 16 & 1u)) >> 16;
}

/* Rounds to the dtype and back. */
NB_DEVICE float rounded(float f, int dtype) {
  if (dtype == NB_KERNEL_BF16) return bf16_to_f32(f32_to_bf16(f));
  return dtype == NB_KERNEL_F16 && f == f ? f16_to_f32(f32_to_f16(f)) : f;
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
  else cast<uint16_t>(to)[i] = (uint16_t)(dtype == NB_KERNEL_BF16 ? f32_to_bf16(f) : f32_to_f16(f));
}
NB_DEVICE float load_float(global<const uint8_t> from, int64_t i, int dtype) {
  if (dtype == NB_KERNEL_F32) return cast<const float>(from)[i];
  uint16_t h = cast<const uint16_t>(from)[i];
  return dtype == NB_KERNEL_BF16 ? bf16_to_f32(h) : f16_to_f32(h);
}

/* ---- small floats -------------------------------------------------------------------- */

/* The code of f, which is clamped first; half to even. Below `least`, the smallest normal, an addend whose last bit is
 * the smallest subnormal makes the adder round; from there up the exponent is taken off together with rounding. */
template <int MBITS, int BIAS, uint32_t LARGEST> NB_DEVICE uint32_t small_magnitude(float f) {
  constexpr int SHIFT = 23 - MBITS;
  constexpr uint32_t MAGIC = (uint32_t)(128 + SHIFT - BIAS) << 23, LEAST = (uint32_t)(128 - BIAS) << 23;
  uint32_t a = smaller(magnitude_of(f), LARGEST);
  uint32_t low = bits_of(float_of(a) + float_of(MAGIC)) - MAGIC;
  uint32_t high =
      (a + ((1u << (SHIFT - 1)) - 1 - ((uint32_t)(127 - BIAS) << 23)) + (a >> SHIFT & 1u)) >> SHIFT;
  return a < LEAST ? low : high;
}
NB_DEVICE uint32_t e4m3_of(float f) {
  return small_magnitude<3, 7, 0x43e00000u>(f) | (bits_of(f) >> 24 & 0x80u);
}
/* -0 becomes 0, but not what rounds to it. */
NB_DEVICE uint32_t e2m1_of(float f) {
  return small_magnitude<1, 1, 0x40c00000u>(f) | (magnitude_of(f) ? bits_of(f) >> 28 & 8u : 0u);
}
/* Of codes 0 to 0x7e and their negatives; NaN of 0x7f. */
NB_DEVICE float e4m3_to_f32(uint32_t code) {
  uint32_t a = code & 0x7fu, sign = (code & 0x80u) << 24;
  if (a == 0x7fu) return float_of(sign | 0x7ff00000u);
  return float_of(sign | bits_of(a < 8 ? (float)a * 0x1p-9f : float_of((a + (120u << 3)) << 20)));
}
/* 255 is NaN; 2^-127 is no normal number. */
NB_DEVICE float e8m0_to_f32(uint32_t code) {
  if (code == 255) return float_of(0x7f800001u);
  return float_of(code ? code << 23 : 0x00400000u);
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
  return float_of(bits_of(q) | (bits_of(x) & 0x80000000u));
}
/* What a processor's operation on a number and `by` gives where q, a GPU's, is NaN: its own, which is negative, or
 * by's, quiet. */
NB_DEVICE float processors(float q, float by) {
  return q == q ? q : float_of(by == by ? 0xffc00000u : bits_of(by) | 0x00400000u);
}
/* x[i] / by, x[i] * by. */
template <int N> NB_DEVICE void divide(float *x, const divisor &d) {
  if (d.quick) {
#pragma unroll
    for (int i = 0; i < N; i++) x[i] = quick_quotient(x[i], d);
  } else {
#pragma unroll
    for (int i = 0; i < N; i++) x[i] = processors(x[i] / d.by, d.by);
  }
}
template <int N> NB_DEVICE void multiply(float *x, float by) {
#pragma unroll
  for (int i = 0; i < N; i++) x[i] = processors(mul_rn(x[i], by), by);
}
#endif

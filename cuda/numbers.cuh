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

/* A format of that many bits in the mantissa, its exponents' bias and the bits of its largest number. A code is made in
 * two parts, so that four together need `rest` but once: magnitude(f) - rest, modulo 2^32. f is clamped; half to even: a
 * power of two is added whose last bit is worth as much as the code's, so that the adder rounds, and leaves the mantissa
 * with its leading one, to which the exponents above the least belong (which is that of subnormal codes too). */
template <int MBITS, int BIAS, uint32_t LARGEST> struct small_float {
  static constexpr int SHIFT = 23 - MBITS;
  static constexpr uint32_t LEAST = (uint32_t)(128 - BIAS) << 23, POWER = (uint32_t)SHIFT << 23,
                            REST = POWER + (LEAST >> SHIFT);
  static NB_DEVICE uint32_t magnitude(float f) {
    const float a = fminf(fabsf(f), float_of_bits(LARGEST));
    const uint32_t e = larger(bits_of_float(a) & 0x7f800000u, LEAST);
    return bits_of_float(a + float_of_bits(e + POWER)) + ((e >> SHIFT) - e);
  }
};
typedef small_float<3, 7, 0x43e00000u> e4m3;
typedef small_float<1, 1, 0x40c00000u> e2m1;

NB_DEVICE uint32_t e4m3_of(float f) {
  return (e4m3::magnitude(f) - e4m3::REST) | (bits_of_float(f) >> 24 & 0x80u);
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

/* x[0..N-1] / by, correctly rounded. By way of the reciprocal x * inverse is less than two last places off; a step
 * leaves one of them, and by Markstein's theorem (P. Markstein, IBM J. Res. Dev. 34, 1990) one more leaves none. For the
 * 11 bits of bf16 and f16 the first leaves none: all their 2^10 numbers over all 2^23 divisors were tried. This holds where
 * neither quotient nor remainder is subnormal; with `quick` they are only where the quotient is less than 2^-20, a
 * code of 0 whatever its last bits. -0 / by is -0 with SIGNS,
 * else 0. QUICK: d.quick is known to be true. */
template <int DTYPE, int N, bool SIGNS, bool QUICK> NB_DEVICE void divide(float *x, const divisor &d) {
#pragma unroll
  for (int i = 0; i < N; i++) {
    if (QUICK || d.quick) {
      float q = mul_rn(x[i], d.inverse);
      q = fma_rn(fma_rn(-d.by, q, x[i]), d.inverse, q);
      if (DTYPE == NB_KERNEL_F32) q = fma_rn(fma_rn(-d.by, q, x[i]), d.inverse, q);
      x[i] = SIGNS ? float_of_bits(bits_of_float(q) | (bits_of_float(x[i]) & 0x80000000u)) : q;
    } else x[i] = SIGNS ? x[i] / d.by : x[i] / d.by + 0.0f;
  }
}
#endif

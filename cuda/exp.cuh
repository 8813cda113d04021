/* exp.cuh - exp, and what is made of it, inside kernels: the bits of core/compute/lanes.h, which says how good they are.
 *
 * Nothing is contracted into a multiply-add (numbers.cuh): these are the CPU's own roundings, one after the other. */
#ifndef NB_EXP_CUH
#define NB_EXP_CUH
#include "ptx.cuh"

NB_DEVICE float exp_f(float x) {
  const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer in the low bits */
  x = x < -87.3f ? -87.3f : x;     /* NaN stays */
  x = x > 88.3f ? 88.3f : x;
  const float shifted = mul_rn(x, 1.44269504088896341f) + magic, k = shifted - magic;
  const float r = x - mul_rn(k, 0.693359375f) - mul_rn(k, -2.12194440e-4f);
  float p = mul_rn(1.9875691500e-4f, r) + 1.3981999507e-3f;
  p = mul_rn(p, r) + 8.3334519073e-3f;
  p = mul_rn(p, r) + 4.1665795894e-2f;
  p = mul_rn(p, r) + 1.6666665459e-1f;
  p = mul_rn(p, r) + 5.0000001201e-1f;
  p = mul_rn(mul_rn(p, r), r) + r + 1.0f;
  return mul_rn(p, float_of_bits((bits_of_float(shifted) - 0x4b400000u + 127u) << 23));
}

NB_DEVICE double exp_d(double x) {
  const double magic = 6755399441055744.0; /* 1.5 * 2^52 */
  x = x < -708.0 ? -708.0 : x;
  const double shifted = mul_rn(x, 1.4426950408889634074) + magic, k = shifted - magic;
  const double r = x - mul_rn(k, 6.93145751953125e-1) - mul_rn(k, 1.42860682030941723212e-6);
  double p = mul_rn(1.0 / 479001600, r) + 1.0 / 39916800;
  p = mul_rn(p, r) + 1.0 / 3628800;
  p = mul_rn(p, r) + 1.0 / 362880;
  p = mul_rn(p, r) + 1.0 / 40320;
  p = mul_rn(p, r) + 1.0 / 5040;
  p = mul_rn(p, r) + 1.0 / 720;
  p = mul_rn(p, r) + 1.0 / 120;
  p = mul_rn(p, r) + 1.0 / 24;
  p = mul_rn(p, r) + 1.0 / 6;
  p = mul_rn(p, r) + 0.5;
  p = mul_rn(p, r) + 1.0;
  p = mul_rn(p, r) + 1.0;
  return mul_rn(p, double_of_bits((bits_of_double(shifted) - 0x4338000000000000u + 1023u) << 52));
}

NB_DEVICE float sigmoid_f(float x) { return 1.0f / (1.0f + exp_f(-x)); }
/* silu(g) * u */
NB_DEVICE float silu_times(float g, float u) { return mul_rn(g / (1.0f + exp_f(-g)), u); }
#endif

/* mse.h - the inner loop of the search for a clipping range: the error of one
 * group on one candidate grid. Both paths add in the same order: eight lanes over
 * a block of NB_MSE_BLOCK values, the lanes pairwise, the blocks one after another. */
#ifndef NB_QUANT_MSE_H
#define NB_QUANT_MSE_H

#include "groups.h"

enum { NB_MSE_BLOCK = 64 };

/* x: the group's values times a power of two, padded with zeros to a multiple of
 * 8; scale: times the same. Sum of |x - round(clamp(x / scale)) * scale|^norm;
 * infinite as soon as the sum exceeds limit. exact: divide as the codes will be
 * found, else multiply by the reciprocal, which may move a value that lies in the
 * middle between two codes and so has the same error on both. */
typedef struct nb_mse_candidate {
  float scale, lo, hi, norm;
  double limit;
  bool exact;
} nb_mse_candidate;

typedef double nb_mse_error_fn(const float *x, int64_t len, const nb_mse_candidate *c);
nb_mse_error_fn nb_mse_error_avx2;

/* ---- |e|^norm -------------------------------------------------------------
 * libm's powf may differ from machine to machine and a vector of it doesn't
 * exist everywhere; this one is additions and products in a fixed order.
 * a = 2^n * m, 2/3 <= m < 4/3: log2 m = odd series in (m-1)/(m+1); exp2 of the
 * fraction by its Taylor series. Relative error below 1e-6 for the exponents in use. */
#define NB_LOG2_C0 2.88539008f
#define NB_LOG2_C1 0.961796694f
#define NB_LOG2_C2 0.577078016f
#define NB_LOG2_C3 0.412198583f
#define NB_LOG2_C4 0.320598898f
#define NB_EXP2_C1 0.693147181f
#define NB_EXP2_C2 0.240226507f
#define NB_EXP2_C3 0.0555041087f
#define NB_EXP2_C4 0.00961812911f
#define NB_EXP2_C5 0.00133335581f
#define NB_EXP2_C6 0.000154035304f
#define NB_POW_LEAST 0x1p-40f /* below this the power counts as 0 */
#define NB_POW_SPLIT 0x2aaaab /* mantissa bits of 4/3, rounded up */

static inline float nb_mse_pow(float a, float norm) {
  if (norm == 2.0f) return a * a;
  if (!(a >= NB_POW_LEAST)) return 0;
  uint32_t u = nb_f32_bits(a);
  int32_t n = (int32_t)(u >> 23) - 127, up = (u & 0x7fffff) >= NB_POW_SPLIT;
  float m = nb_f32_from_bits((u & 0x7fffff) | (uint32_t)(127 - up) << 23);
  float z = (m - 1.0f) / (m + 1.0f), z2 = z * z;
  float p = NB_LOG2_C4;
  p = p * z2 + NB_LOG2_C3;
  p = p * z2 + NB_LOG2_C2;
  p = p * z2 + NB_LOG2_C1;
  p = p * z2 + NB_LOG2_C0;
  float t = norm * ((float)(n + up) + p * z);
  t = t < -126.0f ? -126.0f : t;
  float whole = (t + 0x1.8p23f) - 0x1.8p23f, f = t - whole;
  p = NB_EXP2_C6;
  p = p * f + NB_EXP2_C5;
  p = p * f + NB_EXP2_C4;
  p = p * f + NB_EXP2_C3;
  p = p * f + NB_EXP2_C2;
  p = p * f + NB_EXP2_C1;
  p = p * f + 1.0f;
  return p * nb_f32_from_bits((uint32_t)((int32_t)whole + 127) << 23);
}

#endif

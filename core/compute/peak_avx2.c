/* peak_avx2.c - independent 8-lane fused multiply-adds, enough to fill both pipes. */
#include "peak.h"

#include <immintrin.h>

double nb_peak_avx2(long long rounds, double *flops) {
  enum { CHAINS = 12 };
  __m256 acc[CHAINS], a = _mm256_set1_ps(0.999999f), b = _mm256_set1_ps(1e-6f);
  for (int i = 0; i < CHAINS; i++) acc[i] = _mm256_set1_ps((float)i);
  for (long long r = 0; r < rounds; r++) {
#pragma GCC unroll 16
    for (int i = 0; i < CHAINS; i++) acc[i] = _mm256_fmadd_ps(acc[i], a, b);
  }
  __m256 sum = acc[0];
  for (int i = 1; i < CHAINS; i++) sum = _mm256_add_ps(sum, acc[i]);
  *flops = 16.0 * CHAINS * (double)rounds;
  return (double)_mm256_cvtss_f32(sum);
}

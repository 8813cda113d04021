/* peak_avx512.c - independent 16-lane fused multiply-adds, enough to fill both pipes. */
#include "peak.h"

#include <immintrin.h>

double nb_peak_avx512(long long rounds, double *flops) {
  enum { CHAINS = 16 };
  __m512 acc[CHAINS], a = _mm512_set1_ps(0.999999f), b = _mm512_set1_ps(1e-6f);
  for (int i = 0; i < CHAINS; i++) acc[i] = _mm512_set1_ps((float)i);
  for (long long r = 0; r < rounds; r++) {
#pragma GCC unroll 16
    for (int i = 0; i < CHAINS; i++) acc[i] = _mm512_fmadd_ps(acc[i], a, b);
  }
  __m512 sum = acc[0];
  for (int i = 1; i < CHAINS; i++) sum = _mm512_add_ps(sum, acc[i]);
  *flops = 32.0 * CHAINS * (double)rounds;
  return (double)_mm512_cvtss_f32(sum);
}

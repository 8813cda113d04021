/* mse_avx2.c - the error of a group on a candidate grid in AVX2; the same sums as
 * the portable path, bit for bit. */
#include "mse.h"

#include <immintrin.h>
#include <math.h>

#define INLINE static inline __attribute__((always_inline))

INLINE __m256 poly(__m256 p, __m256 x, float c) {
  return _mm256_add_ps(_mm256_mul_ps(p, x), _mm256_set1_ps(c));
}

/* nb_mse_pow for eight values. */
INLINE __m256 pow8(__m256 a, __m256 norm) {
  __m256 counts = _mm256_cmp_ps(a, _mm256_set1_ps(NB_POW_LEAST), _CMP_GE_OQ), one = _mm256_set1_ps(1.0f);
  __m256i u = _mm256_castps_si256(a), mantissa = _mm256_and_si256(u, _mm256_set1_epi32(0x7fffff));
  __m256i up = _mm256_srli_epi32(_mm256_cmpgt_epi32(mantissa, _mm256_set1_epi32(NB_POW_SPLIT - 1)), 31);
  __m256i n = _mm256_add_epi32(_mm256_sub_epi32(_mm256_srli_epi32(u, 23), _mm256_set1_epi32(127)), up);
  __m256i exponent = _mm256_slli_epi32(_mm256_sub_epi32(_mm256_set1_epi32(127), up), 23);
  __m256 m = _mm256_castsi256_ps(_mm256_or_si256(mantissa, exponent));
  __m256 z = _mm256_div_ps(_mm256_sub_ps(m, one), _mm256_add_ps(m, one)), z2 = _mm256_mul_ps(z, z);
  __m256 p = _mm256_set1_ps(NB_LOG2_C4);
  p = poly(p, z2, NB_LOG2_C3);
  p = poly(p, z2, NB_LOG2_C2);
  p = poly(p, z2, NB_LOG2_C1);
  p = poly(p, z2, NB_LOG2_C0);
  __m256 t = _mm256_mul_ps(norm, _mm256_add_ps(_mm256_cvtepi32_ps(n), _mm256_mul_ps(p, z)));
  t = _mm256_max_ps(t, _mm256_set1_ps(-126.0f));
  __m256i whole = _mm256_cvtps_epi32(t);
  __m256 f = _mm256_sub_ps(t, _mm256_cvtepi32_ps(whole));
  p = _mm256_set1_ps(NB_EXP2_C6);
  p = poly(p, f, NB_EXP2_C5);
  p = poly(p, f, NB_EXP2_C4);
  p = poly(p, f, NB_EXP2_C3);
  p = poly(p, f, NB_EXP2_C2);
  p = poly(p, f, NB_EXP2_C1);
  p = poly(p, f, 1.0f);
  __m256i two = _mm256_slli_epi32(_mm256_add_epi32(whole, _mm256_set1_epi32(127)), 23);
  return _mm256_and_ps(_mm256_mul_ps(p, _mm256_castsi256_ps(two)), counts);
}

INLINE double error_with(const float *x, int64_t len, const nb_mse_candidate *c, bool exact, bool square) {
  __m256 scale = _mm256_set1_ps(c->scale), inverse = _mm256_set1_ps(1.0f / c->scale);
  __m256 lo = _mm256_set1_ps(c->lo), hi = _mm256_set1_ps(c->hi), norm = _mm256_set1_ps(c->norm);
  __m256 sign = _mm256_set1_ps(-0.0f);
  double sum = 0;
  for (int64_t b = 0; b < len; b += NB_MSE_BLOCK) {
    __m256 lane = _mm256_setzero_ps();
    for (int64_t i = b; i < NB_MIN(len, b + NB_MSE_BLOCK); i += 8) {
      __m256 v = _mm256_loadu_ps(x + i);
      __m256 r = exact ? _mm256_div_ps(v, scale) : _mm256_mul_ps(v, inverse);
      r = _mm256_min_ps(_mm256_max_ps(r, lo), hi);
      r = _mm256_round_ps(r, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
      __m256 e = _mm256_sub_ps(v, _mm256_mul_ps(r, scale));
      lane = _mm256_add_ps(lane, square ? _mm256_mul_ps(e, e) : pow8(_mm256_andnot_ps(sign, e), norm));
    }
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(lane), _mm256_extractf128_ps(lane, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    s = _mm_add_ss(s, _mm_movehdup_ps(s));
    sum += (double)_mm_cvtss_f32(s);
    if (sum > c->limit) return INFINITY;
  }
  return sum;
}

double nb_mse_error_avx2(const float *x, int64_t len, const nb_mse_candidate *c) {
  bool square = c->norm == 2.0f;
  if (c->exact) return square ? error_with(x, len, c, true, true) : error_with(x, len, c, true, false);
  return square ? error_with(x, len, c, false, true) : error_with(x, len, c, false, false);
}

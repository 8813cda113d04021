/* difference_avx2.c - the sums of difference.h with AVX2; and those of floats and 4-bit
 * codes decoded in registers. */
#include "difference.h"

#include <immintrin.h>

#define INLINE static inline __attribute__((always_inline))

float nb_segment_avx2(nb_segment_sums *sums, float *a, float *b, int64_t n) {
  return nb_segment_of_floats(sums, a, b, n);
}

INLINE __m256 floats8(const void *at, int64_t i, int dtype) {
  if (dtype == NB_F32) return _mm256_loadu_ps((const float *)at + i);
  __m128i h = _mm_loadu_si128((const __m128i *)(const void *)((const uint16_t *)at + i));
  if (dtype == NB_F16) return _mm256_cvtph_ps(h);
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}

/* offset: -zero * scale. */
INLINE __m256 nibbles8(uint32_t word, __m256 scale, __m256 offset) {
  const __m256i place = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
  __m256i codes = _mm256_srlv_epi32(_mm256_set1_epi32((int32_t)word), place);
  codes = _mm256_and_si256(codes, _mm256_set1_epi32(15));
  return _mm256_fmadd_ps(_mm256_cvtepi32_ps(codes), scale, offset);
}

INLINE float segment(nb_segment_sums *sums, const void *floats, int dtype, const nb_nibbles *q, int64_t n,
                     bool codes_first) {
  nb_lanes low = {0}, high = {0};
  for (int64_t i = 0, g = 0, end = NB_MIN(n, q->group - q->first); i < n;
       g++, end = NB_MIN(n, end + q->group)) {
    __m256 scale = _mm256_set1_ps(q->scale[g]);
    __m256 offset = _mm256_set1_ps(-(float)q->zero[g] * q->scale[g]);
    for (; i < end; i += NB_SEGMENT_LANES) {
      _mm_prefetch((const char *)floats + i * (dtype == NB_F32 ? 4 : 2) + q->ahead, _MM_HINT_T0);
      _mm_prefetch((const char *)(q->words + i / 8) + 1024, _MM_HINT_T0);
      __m256 w0 = floats8(floats, i, dtype), x0 = nibbles8(q->words[i / 8], scale, offset);
      __m256 w1 = floats8(floats, i + 8, dtype), x1 = nibbles8(q->words[i / 8 + 1], scale, offset);
      low = nb_lanes_add(low, (nb_v8f)(codes_first ? x0 : w0), (nb_v8f)(codes_first ? w0 : x0));
      high = nb_lanes_add(high, (nb_v8f)(codes_first ? x1 : w1), (nb_v8f)(codes_first ? w1 : x1));
    }
  }
  return nb_lanes_finish(sums, low, high);
}

float nb_segment_nibbles_avx2(nb_segment_sums *sums, const void *floats, int dtype, const nb_nibbles *q,
                              int64_t n, bool codes_first) {
  /* constants inside each loop */
  if (dtype == NB_BF16)
    return codes_first ? segment(sums, floats, NB_BF16, q, n, true)
                       : segment(sums, floats, NB_BF16, q, n, false);
  if (dtype == NB_F16)
    return codes_first ? segment(sums, floats, NB_F16, q, n, true)
                       : segment(sums, floats, NB_F16, q, n, false);
  return codes_first ? segment(sums, floats, NB_F32, q, n, true) : segment(sums, floats, NB_F32, q, n, false);
}

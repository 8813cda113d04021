/* difference_avx2.c - the sums of difference.h with AVX2; and those of floats and 4-bit
 * codes decoded in registers. */
#include "difference.h"

#include <immintrin.h>

#define INLINE static inline __attribute__((always_inline))

float nb_segment_avx2(nb_segment_sums *sums, float *a, float *b, int64_t n) {
  return nb_segment_of_floats(sums, a, b, n);
}

typedef struct step {
  __m256 low, high;
} step;

INLINE __m128i bytes16(const void *at) { return _mm_loadu_si128(at); }

INLINE step floats_at(const char *at, int dtype) {
  const __m256i zero = _mm256_setzero_si256();
  if (dtype == NB_F32)
    return (step){(__m256)nb_load_half_step((const float *)at),
                  (__m256)nb_load_half_step((const float *)at + 4)};
  if (dtype == NB_F16) {
    __m128i x = bytes16(at), y = bytes16(at + 16);
    return (step){_mm256_cvtph_ps(_mm_unpacklo_epi64(x, y)), _mm256_cvtph_ps(_mm_unpackhi_epi64(x, y))};
  }
  __m256i x = _mm256_loadu_si256((const __m256i *)at);
  return (step){_mm256_castsi256_ps(_mm256_unpacklo_epi16(zero, x)),
                _mm256_castsi256_ps(_mm256_unpackhi_epi16(zero, x))};
}

/* Each byte into two lanes, one for each of its codes: the higher one is 16 times itself there, and its
 * scale a 16th. offset: -zero * scale. */
INLINE step nibbles_at(const uint32_t *words, __m256 scale, __m256 offset) {
  const __m256i lower = _mm256_setr_epi32(0, 0, 1, 1, 4, 4, 5, 5), two = _mm256_set1_epi32(2);
  const __m256i clear = _mm256_set1_epi32((int32_t)0x80808000), code = _mm256_set1_epi64x(0xf00000000f);
  int64_t both;
  memcpy(&both, words, sizeof both);
  __m256i x = _mm256_set1_epi64x(both);
  __m256i low = _mm256_shuffle_epi8(x, _mm256_or_si256(lower, clear));
  __m256i high = _mm256_shuffle_epi8(x, _mm256_or_si256(_mm256_add_epi32(lower, two), clear));
  return (step){_mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_and_si256(low, code)), scale, offset),
                _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_and_si256(high, code)), scale, offset)};
}

INLINE float segment(nb_segment_sums *sums, const void *floats, int dtype, const nb_nibbles *q, int64_t n,
                     bool codes_first) {
  enum { STEP = NB_SEGMENT_STEP };
  const __m256 places = _mm256_setr_ps(1, 0x1p-4f, 1, 0x1p-4f, 1, 0x1p-4f, 1, 0x1p-4f);
  const int64_t bytes = dtype == NB_F32 ? 4 : 2;
  nb_lanes low = {0}, high = {0};
  const char *at = floats, *ahead = at + q->ahead;
  const uint32_t *words = q->words;
  for (int64_t left = n, g = 0, count; left > 0; left -= count, g++) {
    count = NB_MIN(left, g ? q->group : q->group - q->first);
    __m256 scale = _mm256_mul_ps(_mm256_set1_ps(q->scale[g]), places);
    __m256 offset = _mm256_set1_ps(-(float)q->zero[g] * q->scale[g]);
    for (const uint32_t *end = words + count / 8; words < end; words += STEP / 8) {
      _mm_prefetch(ahead, _MM_HINT_T0);
      step f = floats_at(at, dtype), c = nibbles_at(words, scale, offset);
      step a = codes_first ? c : f, b = codes_first ? f : c;
      low = nb_lanes_add(low, (nb_v8f)a.low, (nb_v8f)b.low);
      high = nb_lanes_add(high, (nb_v8f)a.high, (nb_v8f)b.high);
      at += STEP * bytes, ahead += STEP * bytes;
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

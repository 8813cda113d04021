/* difference_avx2.c - the sums of difference.h with AVX2; and those of floats and
 * codes, of 4 bits or e4m3, decoded in registers. */
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
INLINE step nibbles_at(const void *words, __m256 scale, __m256 offset) {
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

/* Codes as float16, which is 2^-8 of them. */
INLINE step e4m3_at(const uint8_t *codes, __m256 scale) {
  const __m256i high = _mm256_setr_epi8(-1, 0, -1, 1, -1, 2, -1, 3, -1, 8, -1, 9, -1, 10, -1, 11, -1, 4, -1,
                                        5, -1, 6, -1, 7, -1, 12, -1, 13, -1, 14, -1, 15);
  __m256i x = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(bytes16(codes)), high);
  x = _mm256_and_si256(_mm256_srai_epi16(x, 1), _mm256_set1_epi16((int16_t)0xbfff));
  return (step){_mm256_mul_ps(_mm256_cvtph_ps(_mm256_castsi256_si128(x)), scale),
                _mm256_mul_ps(_mm256_cvtph_ps(_mm256_extracti128_si256(x, 1)), scale)};
}

/* Whether one of the codes is NaN, 0x7f or 0xff: their largest, and their largest with sign. */
INLINE bool any_nan(__m128i most, __m128i most_signed) {
  __m128i both =
      _mm_or_si128(_mm_cmpeq_epi8(most, _mm_set1_epi8(-1)), _mm_cmpeq_epi8(most_signed, _mm_set1_epi8(0x7f)));
  return _mm_movemask_epi8(both) != 0;
}

INLINE float segment(nb_segment_sums *sums, const void *floats, int dtype, const nb_segment_codes *q,
                     int64_t n, bool e4m3, bool codes_first) {
  enum { STEP = NB_SEGMENT_STEP };
  const __m256 places = _mm256_setr_ps(1, 0x1p-4f, 1, 0x1p-4f, 1, 0x1p-4f, 1, 0x1p-4f);
  const int64_t bytes = dtype == NB_F32 ? 4 : 2, step_bytes = e4m3 ? STEP : STEP / 2;
  nb_lanes low = {0}, high = {0};
  __m128i most = _mm_setzero_si128(), most_signed = most;
  const char *at = floats, *ahead = at + q->ahead;
  const uint8_t *codes = q->codes;
  for (int64_t left = n, g = 0, count; left > 0; left -= count, g++) {
    count = NB_MIN(left, g ? q->group : q->group - q->first);
    __m256 scale = _mm256_mul_ps(_mm256_set1_ps(q->scale[g]), e4m3 ? _mm256_set1_ps(0x1p8f) : places);
    __m256 offset = _mm256_set1_ps(e4m3 ? 0 : -(float)q->zero[g] * q->scale[g]);
    for (const uint8_t *end = codes + count / STEP * step_bytes; codes < end; codes += step_bytes) {
      _mm_prefetch(ahead, _MM_HINT_T0);
      step f = floats_at(at, dtype), c = e4m3 ? e4m3_at(codes, scale) : nibbles_at(codes, scale, offset);
      step a = codes_first ? c : f, b = codes_first ? f : c;
      if (e4m3) {
        most = _mm_max_epu8(most, bytes16(codes));
        most_signed = _mm_max_epi8(most_signed, bytes16(codes));
      }
      low = nb_lanes_add(low, (nb_v8f)a.low, (nb_v8f)b.low);
      high = nb_lanes_add(high, (nb_v8f)a.high, (nb_v8f)b.high);
      at += STEP * bytes, ahead += STEP * bytes;
    }
  }
  return any_nan(most, most_signed) ? -1 : nb_lanes_finish(sums, low, high);
}

/* Constants inside each loop. */
INLINE float by_order(nb_segment_sums *sums, const void *floats, int dtype, const nb_segment_codes *q,
                      int64_t n, bool codes_first) {
  if (q->zero)
    return codes_first ? segment(sums, floats, dtype, q, n, false, true)
                       : segment(sums, floats, dtype, q, n, false, false);
  return codes_first ? segment(sums, floats, dtype, q, n, true, true)
                     : segment(sums, floats, dtype, q, n, true, false);
}

float nb_segment_codes_avx2(nb_segment_sums *sums, const void *floats, int dtype, const nb_segment_codes *q,
                            int64_t n, bool codes_first) {
  if (dtype == NB_BF16) return by_order(sums, floats, NB_BF16, q, n, codes_first);
  if (dtype == NB_F16) return by_order(sums, floats, NB_F16, q, n, codes_first);
  return by_order(sums, floats, NB_F32, q, n, codes_first);
}

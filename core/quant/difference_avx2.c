/* difference_avx2.c - the sums of difference.h with AVX2; and those of floats and
 * codes, of 4 bits or e4m3, decoded in registers. */
#include "difference.h"

#include <immintrin.h>

#define INLINE static inline __attribute__((always_inline))

float nb_segment_avx2(nb_segment_sums *sums, float *a, float *b, int64_t n) {
  return nb_segment_of_floats(sums, a, b, n);
}

INLINE __m128i bytes16(const void *at) { return _mm_loadu_si128(at); }
INLINE __m256i bytes32(const void *at) { return _mm256_loadu_si256(at); }
INLINE nb_step step_of(__m256 even, __m256 odd) { return (nb_step){(nb_v8f)even, (nb_v8f)odd}; }

/* Sixteen float16, the even ones in the lower half. */
INLINE nb_step of_halves(__m256i x) {
  return step_of(_mm256_cvtph_ps(_mm256_castsi256_si128(x)), _mm256_cvtph_ps(_mm256_extracti128_si256(x, 1)));
}

INLINE nb_step floats_at(const char *at, int dtype) {
  if (dtype == NB_F32) return nb_load_step((const float *)at);
  __m256i x = bytes32(at);
  if (dtype == NB_F16) {
    const __m256i part =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15));
    return of_halves(_mm256_permute4x64_epi64(_mm256_shuffle_epi8(x, part), 0xd8));
  }
  return step_of(_mm256_castsi256_ps(_mm256_slli_epi32(x, 16)),
                 _mm256_castsi256_ps(_mm256_and_si256(x, _mm256_set1_epi32((int32_t)0xffff0000))));
}

/* offset: -zero * scale. */
INLINE nb_step nibbles_at(const uint8_t *codes, __m256 scale, __m256 offset) {
  __m256i x = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)codes));
  __m256 even = _mm256_cvtepi32_ps(_mm256_and_si256(x, _mm256_set1_epi32(15)));
  __m256 odd = _mm256_cvtepi32_ps(_mm256_srli_epi32(x, 4));
  return step_of(_mm256_fmadd_ps(even, scale, offset), _mm256_fmadd_ps(odd, scale, offset));
}

/* As float16, which is 2^-8 of the codes: scale is 2^8 of theirs. */
INLINE nb_step e4m3_at(const uint8_t *codes, __m256 scale) {
  const __m256i high = _mm256_setr_epi8(-1, 0, -1, 2, -1, 4, -1, 6, -1, 8, -1, 10, -1, 12, -1, 14, -1, 1, -1,
                                        3, -1, 5, -1, 7, -1, 9, -1, 11, -1, 13, -1, 15);
  __m256i x = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(bytes16(codes)), high);
  nb_step c = of_halves(_mm256_and_si256(_mm256_srai_epi16(x, 1), _mm256_set1_epi16((int16_t)0xbfff)));
  return (nb_step){c.even * (nb_v8f)scale, c.odd * (nb_v8f)scale};
}

/* Whether one of n codes is NaN, 0x7f or 0xff: the largest, with sign and without. */
static bool any_nan(const uint8_t *codes, int64_t n) {
  __m256i most = _mm256_setzero_si256(), most_signed = most, x;
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) {
    x = bytes32(codes + i);
    most = _mm256_max_epu8(most, x);
    most_signed = _mm256_max_epi8(most_signed, x);
  }
  x = i < n ? _mm256_broadcastsi128_si256(bytes16(codes + i)) : most;
  most = _mm256_cmpeq_epi8(_mm256_max_epu8(most, x), _mm256_set1_epi8(-1));
  most_signed = _mm256_cmpeq_epi8(_mm256_max_epi8(most_signed, x), _mm256_set1_epi8(0x7f));
  return _mm256_movemask_epi8(_mm256_or_si256(most, most_signed)) != 0;
}

INLINE float segment(nb_segment_sums *sums, const void *floats, int dtype, const nb_segment_codes *q,
                     int64_t n, bool e4m3, bool codes_first) {
  enum { STEP = NB_SEGMENT_STEP };
  const int64_t step = e4m3 ? STEP : STEP / 2, times = (dtype == NB_F32 ? 4 : 2) * STEP / step;
  nb_both_lanes lanes = {0};
  const char *at = floats, *ahead = at + q->ahead;
  const uint8_t *codes = q->codes;
  for (int64_t left = n, g = 0, count; left > 0; left -= count, g++) {
    count = NB_MIN(left, g ? q->group : q->group - q->first);
    __m256 scale = _mm256_set1_ps(e4m3 ? q->scale[g] * 0x1p8f : q->scale[g]);
    __m256 offset = _mm256_set1_ps(e4m3 ? 0 : -(float)q->zero[g] * q->scale[g]);
    const int64_t end = count / STEP * step;
    for (int64_t i = 0; i < end; i += step) {
      _mm_prefetch(ahead + i * times, _MM_HINT_T0);
      nb_step f = floats_at(at + i * times, dtype);
      nb_step c = e4m3 ? e4m3_at(codes + i, scale) : nibbles_at(codes + i, scale, offset);
      lanes = codes_first ? nb_step_add(lanes, c, f) : nb_step_add(lanes, f, c);
    }
    codes += end, at += end * times, ahead += end * times;
  }
  /* behind the loop, which has brought the codes */
  return e4m3 && any_nan(q->codes, n) ? -1 : nb_lanes_finish(sums, lanes);
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

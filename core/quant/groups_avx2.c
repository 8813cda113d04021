/* groups_avx2.c - the inner loops of groups.h in AVX2; the same bits as the
 * portable ones. Divisions stay divisions: multiplying by a rounded reciprocal
 * would move values that lie near the middle between two codes. */
#include "groups.h"

#include <immintrin.h>

#define INLINE static inline __attribute__((always_inline))

/* ---- spans ---------------------------------------------------------------- */

static uint32_t max_epi16(__m256i v) {
  __m128i m = _mm_max_epi16(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  /* minpos finds the least unsigned word; the values are 0 to 0x7fff, so complement */
  m = _mm_minpos_epu16(_mm_xor_si128(m, _mm_set1_epi16(-1)));
  return 0xffffu ^ ((uint32_t)_mm_cvtsi128_si32(m) & 0xffffu);
}

static nb_span span16(const void *w, int64_t len) {
  const uint16_t *p = w;
  __m256i pos = _mm256_setzero_si256(), neg = pos, sign = _mm256_set1_epi16((int16_t)0x8000);
  int64_t i = 0;
  for (; i + 16 <= len; i += 16) {
    __m256i v = _mm256_loadu_si256((const __m256i *)(p + i));
    pos = _mm256_max_epi16(pos, v);
    neg = _mm256_max_epi16(neg, _mm256_xor_si256(v, sign));
  }
  return nb_span_max((nb_span){max_epi16(pos), max_epi16(neg)}, nb_span16(p + i, len - i));
}

static uint32_t max_epi32(__m256i v) {
  __m128i m = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4e));
  m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0xb1));
  return (uint32_t)_mm_cvtsi128_si32(m);
}

static nb_span span32(const void *w, int64_t len) {
  const uint32_t *p = w;
  __m256i pos = _mm256_setzero_si256(), neg = pos, sign = _mm256_set1_epi32(INT32_MIN);
  int64_t i = 0;
  for (; i + 8 <= len; i += 8) {
    __m256i v = _mm256_loadu_si256((const __m256i *)(p + i));
    pos = _mm256_max_epi32(pos, v);
    neg = _mm256_max_epi32(neg, _mm256_xor_si256(v, sign));
  }
  return nb_span_max((nb_span){max_epi32(pos), max_epi32(neg)}, nb_span32(p + i, len - i));
}

/* ---- codes ---------------------------------------------------------------- */

INLINE __m256 load8(const void *w, int64_t i, int dtype) {
  if (dtype == NB_F32) return _mm256_loadu_ps((const float *)w + i);
  __m128i h = _mm_loadu_si128((const __m128i *)((const uint16_t *)w + i));
  if (dtype == NB_F16) return _mm256_cvtph_ps(h);
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}

/* Rounds to dtype and back. Values are finite or infinite here, never NaN. */
INLINE __m256 round8(__m256 x, int dtype) {
  if (dtype == NB_F32) return x;
  if (dtype == NB_F16) return _mm256_cvtph_ps(_mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
  __m256i u = _mm256_castps_si256(x);
  __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  u = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  return _mm256_castsi256_ps(_mm256_and_si256(u, _mm256_set1_epi32((int32_t)0xffff0000u)));
}

INLINE __m256i codes8(const void *w, int64_t i, __m256 scale, __m256 add, __m256 lo, __m256 hi, int dtype,
                      int arithmetic) {
  __m256 x = _mm256_div_ps(load8(w, i, dtype), scale);
  if (arithmetic == NB_ARITHMETIC_DTYPE) x = round8(_mm256_add_ps(round8(x, dtype), add), dtype);
  return _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(x, lo), hi));
}

INLINE void codes(uint8_t *out, const void *w, int64_t len, const nb_grid *g, int dtype, int arithmetic) {
  __m256 scale = _mm256_set1_ps(g->scale), add = _mm256_set1_ps(g->add);
  __m256 lo = _mm256_set1_ps(g->lo), hi = _mm256_set1_ps(g->hi);
  __m256i offset = _mm256_set1_epi16((int16_t)g->offset), order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  int64_t i = 0;
  for (; i + 32 <= len; i += 32) {
    __m256i a = codes8(w, i, scale, add, lo, hi, dtype, arithmetic);
    __m256i b = codes8(w, i + 8, scale, add, lo, hi, dtype, arithmetic);
    __m256i c = codes8(w, i + 16, scale, add, lo, hi, dtype, arithmetic);
    __m256i d = codes8(w, i + 24, scale, add, lo, hi, dtype, arithmetic);
    a = _mm256_add_epi16(_mm256_packs_epi32(a, b), offset); /* a0-3 b0-3 | a4-7 b4-7 */
    c = _mm256_add_epi16(_mm256_packs_epi32(c, d), offset);
    a = _mm256_packus_epi16(a, c); /* a0-3 b0-3 c0-3 d0-3 | a4-7 b4-7 c4-7 d4-7 */
    _mm256_storeu_si256((__m256i *)(out + i), _mm256_permutevar8x32_epi32(a, order));
  }
  const char *rest = (const char *)w + i * nb_elem_bytes(dtype);
  nb_codes_scalar(out + i, rest, len - i, g, dtype, arithmetic);
}

NB_GROUP_KERNELS(pick, codes)

nb_group_kernels nb_group_kernels_avx2(int dtype, int arithmetic) { return pick(dtype, arithmetic); }

/* dequant_avx2.c - rows of codes to weights in AVX2; the same bits as the portable rows. */
#include "dequant.h"

#include <immintrin.h>

#define INLINE static inline __attribute__((always_inline))

INLINE __m256i codes8(const uint8_t *codes) {
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)codes));
}

INLINE void store8(void *out, int64_t i, __m256 x, int dtype) {
  if (dtype == NB_F32) {
    _mm256_storeu_ps((float *)out + i, x);
    return;
  }
  __m128i h;
  if (dtype == NB_F16) {
    h = _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT);
  } else {
    __m256i u = _mm256_castps_si256(x), high = _mm256_srli_epi32(u, 16);
    __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
    __m256i near =
        _mm256_srli_epi32(_mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    near = _mm256_blendv_epi8(near, high, nan); /* a product's NaN is quiet already */
    h = _mm_packus_epi32(_mm256_castsi256_si128(near), _mm256_extracti128_si256(near, 1));
  }
  _mm_storeu_si128((__m128i *)((uint16_t *)out + i), h);
}

INLINE void row(void *out, const uint8_t *codes, const nb_dequant *d, const float *scale, const int32_t *zero,
                int dtype) {
  for (int64_t g = 0; g < d->per_row; g++) {
    int64_t i = g * d->group, end = i + d->group;
    __m256 s = _mm256_set1_ps(scale[g]);
    __m256i z = _mm256_set1_epi32(zero[g]);
    for (; i + 8 <= end; i += 8)
      store8(out, i, _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_sub_epi32(codes8(codes + i), z)), s), dtype);
    for (; i < end; i++) nb_store(out, i, (float)(codes[i] - zero[g]) * scale[g], dtype);
  }
}

INLINE void row_g_idx(void *out, const uint8_t *codes, const nb_dequant *d, const float *scale,
                      const int32_t *zero, int dtype) {
  int64_t i = 0;
  for (; i + 8 <= d->k; i += 8) {
    __m256i g = _mm256_loadu_si256((const __m256i *)(d->g_idx + i));
    __m256 s = _mm256_i32gather_ps(scale, g, 4);
    __m256i z = _mm256_i32gather_epi32(zero, g, 4);
    store8(out, i, _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_sub_epi32(codes8(codes + i), z)), s), dtype);
  }
  for (; i < d->k; i++) nb_store(out, i, (float)(codes[i] - zero[d->g_idx[i]]) * scale[d->g_idx[i]], dtype);
}

/* A constant dtype inside each loop. */
#define BY_DTYPE(fn) \
  if (d->dtype == NB_F32) fn(out, codes, d, scale, zero, NB_F32); \
  else if (d->dtype == NB_BF16) fn(out, codes, d, scale, zero, NB_BF16); \
  else fn(out, codes, d, scale, zero, NB_F16)

void nb_dequant_row_avx2(void *out, const uint8_t *codes, const nb_dequant *d, const float *scale,
                         const int32_t *zero) {
  BY_DTYPE(row);
}

void nb_dequant_row_g_idx_avx2(void *out, const uint8_t *codes, const nb_dequant *d, const float *scale,
                               const int32_t *zero) {
  BY_DTYPE(row_g_idx);
}

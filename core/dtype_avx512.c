/* dtype_avx512.c - f16, bf16 and f8 to f32 and back, sixteen values at a time. The
 * same bytes as dtype.c's portable functions; so no AVX512_BF16 conversion, which
 * takes subnormals for zero. */
#include "dtype.h"

#include <immintrin.h>

static void load_bf16(float *out, const void *in, int64_t n) {
  const uint16_t *p = in;
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    __m512i a = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(p + i)));
    _mm512_storeu_si512(out + i, _mm512_slli_epi32(a, 16));
  }
  for (; i < n; i++) out[i] = nb_bf16_to_f32(p[i]);
}

static void load_f16(float *out, const void *in, int64_t n) {
  const uint16_t *p = in;
  int64_t i = 0;
  for (; i + 16 <= n; i += 16)
    _mm512_storeu_ps(out + i, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(p + i))));
  for (; i < n; i++) out[i] = nb_f16_to_f32(p[i]);
}

static void load_f8_e5m2(float *out, const void *in, int64_t n) {
  const uint8_t *p = in;
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    __m256i h = _mm256_slli_epi16(_mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(p + i))), 8);
    _mm512_storeu_ps(out + i, _mm512_cvtph_ps(h));
  }
  const float *v = nb_code_values(NB_F8_E5M2);
  for (; i < n; i++) out[i] = v[p[i]];
}

static void load_f8_e4m3(float *out, const void *in, int64_t n) {
  const uint8_t *p = in;
  const __m256i low = _mm256_set1_epi16(0x3f80), sign = _mm256_set1_epi16((short)0x8000);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    __m256i c = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(p + i)));
    __m256i mag = _mm256_and_si256(_mm256_slli_epi16(c, 7), low);
    mag = _mm256_mask_mov_epi16(mag, _mm256_cmpeq_epi16_mask(mag, low), _mm256_set1_epi16(0x7f80));
    mag = _mm256_or_si256(mag, _mm256_and_si256(_mm256_slli_epi16(c, 8), sign));
    _mm512_storeu_ps(out + i, _mm512_mul_ps(_mm512_cvtph_ps(mag), _mm512_set1_ps(256.0f)));
  }
  const float *v = nb_code_values(NB_F8_E4M3);
  for (; i < n; i++) out[i] = v[p[i]];
}

static void store_bf16(void *out, const float *in, int64_t n) {
  uint16_t *p = out;
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    __m512 f = _mm512_loadu_ps(in + i);
    __m512i u = _mm512_castps_si512(f);
    __m512i lsb = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    __m512i r = _mm512_add_epi32(u, _mm512_add_epi32(lsb, _mm512_set1_epi32(0x7fff)));
    __mmask16 nan = _mm512_cmp_ps_mask(f, f, _CMP_UNORD_Q);
    r = _mm512_mask_or_epi32(r, nan, u, _mm512_set1_epi32(0x400000));
    _mm256_storeu_si256((__m256i *)(p + i), _mm512_cvtepi32_epi16(_mm512_srli_epi32(r, 16)));
  }
  for (; i < n; i++) p[i] = nb_f32_to_bf16(in[i]);
}

static void store_f16(void *out, const float *in, int64_t n) {
  uint16_t *p = out;
  int64_t i = 0;
  for (; i + 16 <= n; i += 16)
    _mm256_storeu_si256((__m256i *)(p + i),
                        _mm512_cvtps_ph(_mm512_loadu_ps(in + i), _MM_FROUND_TO_NEAREST_INT));
  for (; i < n; i++) p[i] = nb_f32_to_f16(in[i]);
}

nb_load_fn *nb_load_avx512(int dtype) {
  switch (dtype) {
  case NB_BF16: return load_bf16;
  case NB_F16: return load_f16;
  case NB_F8_E5M2: return load_f8_e5m2;
  case NB_F8_E4M3: return load_f8_e4m3;
  default: return NULL;
  }
}

nb_store_fn *nb_store_avx512(int dtype) {
  switch (dtype) {
  case NB_BF16: return store_bf16;
  case NB_F16: return store_f16;
  default: return NULL;
  }
}

/* dtype_avx2.c - f16, bf16 and f8 to f32 and back, eight values at a time. The
 * same bytes as dtype.c's portable functions. */
#include "dtype.h"

#include <immintrin.h>

static void load_bf16(float *out, const void *in, int64_t n) {
  const uint16_t *p = in;
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    __m256i a = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(p + i)));
    __m256i b = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(p + i + 8)));
    _mm256_storeu_si256((__m256i *)(out + i), _mm256_slli_epi32(a, 16));
    _mm256_storeu_si256((__m256i *)(out + i + 8), _mm256_slli_epi32(b, 16));
  }
  for (; i < n; i++) out[i] = nb_bf16_to_f32(p[i]);
}

static void load_f16(float *out, const void *in, int64_t n) {
  const uint16_t *p = in;
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + i))));
  for (; i < n; i++) out[i] = nb_f16_to_f32(p[i]);
}

/* e5m2 is the upper byte of an f16. */
static void load_f8_e5m2(float *out, const void *in, int64_t n) {
  const uint8_t *p = in;
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    __m128i h = _mm_slli_epi16(_mm_cvtepu8_epi16(_mm_loadl_epi64((const __m128i *)(p + i))), 8);
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(h));
  }
  const float *v = nb_code_values(NB_F8_E5M2);
  for (; i < n; i++) out[i] = v[p[i]];
}

/* e4m3 in an f16's place has the value divided by 2^8; its NaN, 0x7f, becomes f16's
 * with the same mantissa. */
static void load_f8_e4m3(float *out, const void *in, int64_t n) {
  const uint8_t *p = in;
  const __m128i low = _mm_set1_epi16(0x3f80), sign = _mm_set1_epi16((short)0x8000);
  const __m128i nan = _mm_set1_epi16(0x7f80);
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    __m128i c = _mm_cvtepu8_epi16(_mm_loadl_epi64((const __m128i *)(p + i)));
    __m128i mag = _mm_and_si128(_mm_slli_epi16(c, 7), low);
    mag = _mm_blendv_epi8(mag, nan, _mm_cmpeq_epi16(mag, low));
    mag = _mm_or_si128(mag, _mm_and_si128(_mm_slli_epi16(c, 8), sign));
    _mm256_storeu_ps(out + i, _mm256_mul_ps(_mm256_cvtph_ps(mag), _mm256_set1_ps(256.0f)));
  }
  const float *v = nb_code_values(NB_F8_E4M3);
  for (; i < n; i++) out[i] = v[p[i]];
}

/* Nearest even by integer arithmetic; NaN keeps its sign and upper bits, made quiet. */
static inline __m256i round_bf16(const float *in) {
  __m256 f = _mm256_loadu_ps(in);
  __m256i u = _mm256_castps_si256(f);
  __m256i lsb = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  __m256i r = _mm256_add_epi32(u, _mm256_add_epi32(lsb, _mm256_set1_epi32(0x7fff)));
  __m256i quiet = _mm256_or_si256(u, _mm256_set1_epi32(0x400000));
  __m256 nan = _mm256_cmp_ps(f, f, _CMP_UNORD_Q);
  r = _mm256_blendv_epi8(r, quiet, _mm256_castps_si256(nan));
  return _mm256_srli_epi32(r, 16);
}

static void store_bf16(void *out, const float *in, int64_t n) {
  uint16_t *p = out;
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) { /* the pack works per 128-bit lane: put the quarters in order */
    __m256i both = _mm256_packus_epi32(round_bf16(in + i), round_bf16(in + i + 8));
    _mm256_storeu_si256((__m256i *)(p + i), _mm256_permute4x64_epi64(both, 0xd8));
  }
  for (; i < n; i++) p[i] = nb_f32_to_bf16(in[i]);
}

static void store_f16(void *out, const float *in, int64_t n) {
  uint16_t *p = out;
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    _mm_storeu_si128((__m128i *)(p + i), _mm256_cvtps_ph(_mm256_loadu_ps(in + i), _MM_FROUND_TO_NEAREST_INT));
  for (; i < n; i++) p[i] = nb_f32_to_f16(in[i]);
}

nb_load_fn *nb_load_avx2(int dtype) {
  switch (dtype) {
  case NB_BF16: return load_bf16;
  case NB_F16: return load_f16;
  case NB_F8_E5M2: return load_f8_e5m2;
  case NB_F8_E4M3: return load_f8_e4m3;
  default: return NULL;
  }
}

nb_store_fn *nb_store_avx2(int dtype) {
  switch (dtype) {
  case NB_BF16: return store_bf16;
  case NB_F16: return store_f16;
  default: return NULL;
  }
}

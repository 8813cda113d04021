/* cast_avx2.c - bf16 and f16 to and from float32, eight at a time. */
#include "cast.h"

#include <immintrin.h>

void nb_widen_bf16_avx2(float *out, const uint16_t *in, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(in + i)));
    _mm256_storeu_ps(out + i, _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16)));
  }
  for (; i < n; i++) out[i] = nb_bf16_to_f32(in[i]);
}

void nb_widen_f16_avx2(float *out, const uint16_t *in, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(in + i))));
  for (; i < n; i++) out[i] = nb_f16_to_f32(in[i]);
}

void nb_narrow_bf16_avx2(uint16_t *out, const float *in, int64_t n) {
  const __m256i one = _mm256_set1_epi32(1), half = _mm256_set1_epi32(0x7fff), quiet = _mm256_set1_epi32(0x40);
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    __m256 f = _mm256_loadu_ps(in + i);
    __m256i u = _mm256_castps_si256(f), top = _mm256_srli_epi32(u, 16);
    __m256i even = _mm256_add_epi32(_mm256_and_si256(top, one), half);
    __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(u, even), 16);
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(f, f, _CMP_UNORD_Q));
    __m256i r = _mm256_blendv_epi8(rounded, _mm256_or_si256(top, quiet), nan);
    __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(r, r), 0x08);
    _mm_storeu_si128((__m128i *)(out + i), _mm256_castsi256_si128(packed));
  }
  for (; i < n; i++) out[i] = nb_f32_to_bf16(in[i]);
}

void nb_narrow_f16_avx2(uint16_t *out, const float *in, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    _mm_storeu_si128((__m128i *)(out + i),
                     _mm256_cvtps_ph(_mm256_loadu_ps(in + i), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  for (; i < n; i++) out[i] = nb_f32_to_f16(in[i]);
}

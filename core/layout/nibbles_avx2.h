/* nibbles_avx2.h - what the AVX2 layout kernels share: pairing nibbles, transposing
 * bytes and words, storing past the caches. Only x_avx2.c files include it. */
#ifndef NB_NIBBLES_AVX2_H
#define NB_NIBBLES_AVX2_H

#include <immintrin.h>
#include <stdbool.h>
#include <stdint.h>

/* Vectors in small arrays stay in registers only when the loops over them unroll. */
#define UNROLL _Pragma("GCC unroll 16")

typedef __m256i v8; /* eight words in two lanes of four */

static inline v8 nb_v8_load(const void *p) { return _mm256_loadu_si256((const v8 *)p); }
static inline void nb_v8_store(void *p, v8 v) { _mm256_storeu_si256((v8 *)p, v); }
/* stream: past the caches; p must lie on 32 bytes. */
static inline void nb_v8_put(void *p, v8 v, bool stream) {
  if (stream) _mm256_stream_si256((v8 *)p, v);
  else nb_v8_store(p, v);
}
/* Four words from each of two places: the lower and the upper lane. */
static inline v8 nb_v8_load2(const void *lower, const void *upper) {
  v8 v = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)lower));
  return _mm256_inserti128_si256(v, _mm_loadu_si128((const __m128i *)upper), 1);
}

/* Swaps a's high nibbles with b's low ones: a's bytes become the two low nibbles
 * (a's, then b's), b's the two high ones. */
static inline void nb_swap_nibbles(v8 *a, v8 *b) {
  v8 t = _mm256_and_si256(_mm256_xor_si256(_mm256_srli_epi16(*a, 4), *b), _mm256_set1_epi8(0x0f));
  *b = _mm256_xor_si256(*b, t);
  *a = _mm256_xor_si256(*a, _mm256_slli_epi16(t, 4));
}

/* In each lane, the 4x4 words of v[0..3] transposed. */
static inline void nb_words_4x4(v8 *v) {
  v8 a = _mm256_unpacklo_epi32(v[0], v[1]), b = _mm256_unpackhi_epi32(v[0], v[1]);
  v8 c = _mm256_unpacklo_epi32(v[2], v[3]), d = _mm256_unpackhi_epi32(v[2], v[3]);
  v[0] = _mm256_unpacklo_epi64(a, c);
  v[1] = _mm256_unpackhi_epi64(a, c);
  v[2] = _mm256_unpacklo_epi64(b, d);
  v[3] = _mm256_unpackhi_epi64(b, d);
}

/* In each lane: word b of out[w] = byte b of word w of x, then of y, z and t, as
 * bytes 0 to 3. So four rows of bytes become words of one column each. */
static inline void nb_bytes_to_words(v8 *out, v8 x, v8 y, v8 z, v8 t) {
  v8 a = _mm256_unpacklo_epi8(x, y), b = _mm256_unpackhi_epi8(x, y);
  v8 c = _mm256_unpacklo_epi8(z, t), d = _mm256_unpackhi_epi8(z, t);
  out[0] = _mm256_unpacklo_epi16(a, c);
  out[1] = _mm256_unpackhi_epi16(a, c);
  out[2] = _mm256_unpacklo_epi16(b, d);
  out[3] = _mm256_unpackhi_epi16(b, d);
}

static inline v8 nb_lower(v8 a, v8 b) { return _mm256_permute2x128_si256(a, b, 0x20); }
static inline v8 nb_upper(v8 a, v8 b) { return _mm256_permute2x128_si256(a, b, 0x31); }

#endif

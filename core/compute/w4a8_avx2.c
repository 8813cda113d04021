/* w4a8_avx2.c - 4-bit weights times int8 activations with AVX2.
 *
 * 32 bytes of a strip are 8 inputs of 8 outputs. Unsigned nibbles times signed bytes, summed in pairs, are
 * at most 2 * 15 * 127, so eight such sums fit into 16 bits before they are widened. */
#include "w4a8_body.h"

#include <immintrin.h>

enum { ROWS = 4, WIDEN = 4 }; /* blocks of 8 inputs between two widenings: 8 sums */

#define UNROLL _Pragma("GCC unroll 4")

static inline __m256i broadcast4(const int8_t *p) {
  int32_t v;
  memcpy(&v, p, sizeof v);
  return _mm256_set1_epi32(v);
}

/* acc[r] += blocks of 8 inputs of 8 outputs times row r. */
static inline __attribute__((always_inline)) void dots(__m256i *acc, int rows, const uint8_t *w,
                                                       const int8_t *q, int64_t ldq, int64_t blocks) {
  const __m256i low = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
  for (int64_t b0 = 0; b0 < blocks; b0 += WIDEN) {
    __m256i sum[ROWS];
    UNROLL for (int r = 0; r < rows; r++) sum[r] = _mm256_setzero_si256();
    int64_t end = NB_MIN(b0 + WIDEN, blocks);
    for (int64_t b = b0; b < end; b++) {
      __m256i v = _mm256_loadu_si256((const __m256i *)(const void *)(w + b * NB_W4A8_BLOCK));
      __m256i lo = _mm256_and_si256(v, low), hi = _mm256_and_si256(_mm256_srli_epi16(v, 4), low);
      UNROLL for (int r = 0; r < rows; r++) {
        const int8_t *x = q + r * ldq + b * NB_W4A8_STEP;
        sum[r] = _mm256_add_epi16(sum[r], _mm256_maddubs_epi16(lo, broadcast4(x)));
        sum[r] = _mm256_add_epi16(sum[r], _mm256_maddubs_epi16(hi, broadcast4(x + 4)));
      }
    }
    UNROLL for (int r = 0; r < rows; r++) acc[r] = _mm256_add_epi32(acc[r], _mm256_madd_epi16(sum[r], ones));
  }
}

static inline __m256 scales_of(const nb_w4a8_form *f, const uint8_t *strip, int64_t at) {
  if (f->wide_scales) return _mm256_loadu_ps((const float *)(const void *)(strip + f->scale_at) + at);
  __m128i h = _mm_loadu_si128(
      (const __m128i *)(const void *)((const uint16_t *)(const void *)(strip + f->scale_at) + at));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}

/* Outputs half*8 .. half*8+8 of `rows` rows from row0 on. */
static inline __attribute__((always_inline)) void tile(__m256 *y, int rows, const nb_w4a8_rows *x,
                                                       int64_t row0, const uint8_t *strip, int64_t half,
                                                       const nb_w4a8_form *f) {
  int64_t ldq = f->groups * f->padded, blocks = f->padded / NB_W4A8_STEP;
  UNROLL for (int r = 0; r < rows; r++) y[r] = _mm256_setzero_ps();
  for (int64_t g = 0; g < f->groups; g++) {
    __m256i acc[ROWS];
    UNROLL for (int r = 0; r < rows; r++) acc[r] =
        _mm256_set1_epi32(-8 * x->sums[(row0 + r) * f->groups + g]);
    dots(acc, rows, strip + g * blocks * NB_W4A8_BLOCK + half * 32, x->q + row0 * ldq + g * f->padded, ldq,
         blocks);
    __m256 s = scales_of(f, strip, g * NB_W4A8_STRIP + half * 8);
    UNROLL for (int r = 0; r < rows; r++) y[r] =
        _mm256_add_ps(y[r], _mm256_mul_ps(_mm256_cvtepi32_ps(acc[r]), s));
  }
  __m256 bias = _mm256_loadu_ps((const float *)(const void *)(strip + f->bias_at) + half * 8);
  UNROLL for (int r = 0; r < rows; r++) y[r] =
      _mm256_add_ps(_mm256_mul_ps(y[r], _mm256_set1_ps(x->scales[row0 + r])), bias);
}

static void put(float *y, __m256 v, int64_t n) {
  if (n >= LANES) {
    _mm256_storeu_ps(y, v);
    return;
  }
  float part[LANES];
  _mm256_storeu_ps(part, v);
  memcpy(y, part, (size_t)n * sizeof *y);
}

static void strip_avx2(float *y, int64_t ldy, int64_t n, const nb_w4a8_rows *x, int64_t m,
                       const uint8_t *strip, const nb_w4a8_form *f) {
  for (int64_t half = 0; half < 2 && half * LANES < n; half++) {
    __m256 out[ROWS];
    int64_t kept = NB_MIN(LANES, n - half * LANES), row = 0;
    for (; row + ROWS <= m; row += ROWS) {
      tile(out, ROWS, x, row, strip, half, f);
      UNROLL for (int r = 0; r < ROWS; r++) put(y + (row + r) * ldy + half * LANES, out[r], kept);
    }
    for (; row < m; row++) {
      tile(out, 1, x, row, strip, half, f);
      put(y + row * ldy + half * LANES, out[0], kept);
    }
  }
}

const nb_w4a8_kernels nb_w4a8_avx2 = {quantize, strip_avx2};

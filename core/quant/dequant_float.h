/* dequant_float.h - the inner loops of float codes' dequantization, written once over
 * vectors of eight and compiled once for each instruction set; the same bits everywhere. */
#ifndef NB_QUANT_DEQUANT_FLOAT_H
#define NB_QUANT_DEQUANT_FLOAT_H

#include "dtype.h"

#ifdef __AVX2__
#include <immintrin.h>
#endif

typedef struct nb_dequant_float_kernels {
  /* out[i] = the value of e2m1 code i, one a byte. */
  void (*e2m1)(float *out, const uint8_t *codes, int64_t n);
  /* x[i] *= scale[(first + i) / columns]. */
  void (*multiply)(float *x, int64_t n, int64_t first, int64_t columns, const float *scale);
} nb_dequant_float_kernels;

extern const nb_dequant_float_kernels nb_dequant_float_portable, nb_dequant_float_avx2;

typedef float v8f __attribute__((vector_size(32)));
enum { LANES = 8 };

static inline void load_e2m1(float *out, const uint8_t *codes, int64_t n) {
  const float *value = nb_code_values(NB_F4);
  int64_t i = 0;
#ifdef __AVX2__
  __m256 magnitudes = _mm256_loadu_ps(value);
  for (; i + LANES <= n; i += LANES) {
    __m256i c = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)(codes + i)));
    __m256 sign = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_and_si256(c, _mm256_set1_epi32(8)), 28));
    _mm256_storeu_ps(out + i, _mm256_or_ps(_mm256_permutevar8x32_ps(magnitudes, c), sign));
  }
#endif
  for (; i < n; i++) out[i] = value[codes[i] & 15];
}

static inline void multiply(float *x, int64_t n, int64_t first, int64_t columns, const float *scale) {
  int64_t g = first / columns, next = (g + 1) * columns - first; /* where the next group begins */
  for (int64_t i = 0; i < n; next += columns) {
    int64_t end = NB_MIN(n, next);
    float s = scale[g++];
    v8f all = {s, s, s, s, s, s, s, s};
    for (; i + LANES <= end; i += LANES) {
      v8f v;
      memcpy(&v, x + i, sizeof v);
      v *= all;
      memcpy(x + i, &v, sizeof v);
    }
    for (; i < end; i++) x[i] *= s;
  }
}

#define NB_DEQUANT_FLOAT_KERNELS \
  { load_e2m1, multiply }

#endif

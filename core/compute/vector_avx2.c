/* vector_avx2.c - the row operations with AVX2; f16 by F16C. */
#include "vector_body.h"

#include <immintrin.h>

static void widen_f16_f16c(float *y, const uint16_t *x, int64_t n) {
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES)
    _mm256_storeu_ps(y + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(x + i))));
  widen_f16(y + i, x + i, n - i);
}

const nb_vector nb_vector_avx2 = {softmax, sigmoid,   swiglu,     sum_squares,
                                  lse,     lse_cross, widen_bf16, widen_f16_f16c};

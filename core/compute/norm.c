/* norm.c - RMSNorm, over whole rows or over the heads of a row. */
#include "vector.h"

#include <math.h>

enum { BLOCK = 64 }; /* rows of one task */

int nb_rmsnorm(nb_tensor *y, const nb_tensor *x, const nb_tensor *weight, double eps) {
  NB_TRY(nb_expect(weight, "rmsnorm: weight", NB_F32, 1, NB_SHAPE(-1)));
  int64_t d = weight->shape[0], numel = nb_tensor_numel(x);
  if (x->dtype != NB_F32 || y->dtype != NB_F32 || nb_tensor_numel(y) != numel || d < 1 || numel % d) {
    char a[160], b[160];
    return nb_fail(NB_EINVAL, "rmsnorm: expected f32 x and y of rows of %lld, found x %s and y %s",
                   (long long)d, nb_tensor_describe(x, a, sizeof a), nb_tensor_describe(y, b, sizeof b));
  }
  int64_t rows = numel / d, blocks = NB_CEIL(rows, BLOCK);
  const nb_vector *v = nb_vector_here();
  const float *w = weight->data;
#pragma omp parallel for schedule(static) num_threads(nb_threads()) if (blocks > 1)
  for (int64_t r = 0; r < rows; r++) {
    const float *in = (const float *)x->data + r * d;
    float *out = (float *)y->data + r * d;
    float scale = (float)(1.0 / sqrt(v->sum_squares(in, d) / (double)d + eps));
#pragma omp simd
    for (int64_t i = 0; i < d; i++) out[i] = w[i] * (in[i] * scale);
  }
  return NB_OK;
}

/* rope.c - rotary position embedding, in place.
 *
 * The halves of a head turn together (the checkpoints' own order, "rotate half"):
 *   x[i], x[i+d/2]  ->  x[i] c - x[i+d/2] s,  x[i+d/2] c + x[i] s     i < d/2
 * c and s come from a table of cosines and sines [positions, d/2], so that every
 * scaling rule lives where the table is made. */
#include "base.h"

int nb_rope(nb_tensor *x, const nb_tensor *cosines, const nb_tensor *sines, int64_t head_dim,
            int64_t length) {
  NB_TRY(nb_expect(x, "rope: x", NB_F32, 2, NB_SHAPE(-1, -1)));
  if (head_dim < 2 || head_dim % 2 || x->shape[1] % head_dim)
    return nb_fail(NB_EINVAL, "rope: rows of %lld are not heads of %lld (an even number)",
                   (long long)x->shape[1], (long long)head_dim);
  int64_t half = head_dim / 2, m = x->shape[0], heads = x->shape[1] / head_dim;
  NB_TRY(nb_expect(cosines, "rope: cosines", NB_F32, 2, NB_SHAPE(-1, half)));
  NB_TRY(nb_expect(sines, "rope: sines", NB_F32, 2, NB_SHAPE(cosines->shape[0], half)));
  if (length < 1 || length > cosines->shape[0])
    return nb_fail(NB_EINVAL, "rope: sequences of %lld, but the table has %lld positions", (long long)length,
                   (long long)cosines->shape[0]);
#pragma omp parallel for schedule(static) num_threads(nb_threads()) if (m > 16)
  for (int64_t row = 0; row < m; row++) {
    const float *c = (const float *)cosines->data + row % length * half;
    const float *s = (const float *)sines->data + row % length * half;
    for (int64_t h = 0; h < heads; h++) {
      float *a = (float *)x->data + (row * heads + h) * head_dim, *b = a + half;
#pragma omp simd
      for (int64_t i = 0; i < half; i++) {
        float p = a[i], q = b[i];
        a[i] = p * c[i] - q * s[i];
        b[i] = q * c[i] + p * s[i];
      }
    }
  }
  return NB_OK;
}

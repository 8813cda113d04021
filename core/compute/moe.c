/* moe.c - which experts a token goes to, and the tokens of each expert in order. */
#include "vector.h"

enum { MAX_EXPERTS = 4096 };

/* The index of the greatest of n probabilities that is not taken yet; the lowest wins a tie. */
static int64_t best(const float *p, const uint8_t *taken, int64_t n) {
  int64_t at = -1;
  for (int64_t i = 0; i < n; i++)
    if (!taken[i] && (at < 0 || p[i] > p[at])) at = i;
  return at;
}

int nb_moe_route(nb_tensor *experts, nb_tensor *weights, const nb_tensor *logits, int normalize) {
  NB_TRY(nb_expect(logits, "moe route: logits", NB_F32, 2, NB_SHAPE(-1, -1)));
  NB_TRY(nb_expect(experts, "moe route: experts", NB_I32, 2, NB_SHAPE(logits->shape[0], -1)));
  int64_t m = logits->shape[0], e = logits->shape[1], top = experts->shape[1];
  NB_TRY(nb_expect(weights, "moe route: weights", NB_F32, 2, NB_SHAPE(m, top)));
  if (e < 1 || e > MAX_EXPERTS || top < 1 || top > e)
    return nb_fail(NB_EINVAL, "moe route: the top %lld of %lld experts, expected 1 <= top <= experts <= %d",
                   (long long)top, (long long)e, MAX_EXPERTS);
  const nb_vector *v = nb_vector_here();
#pragma omp parallel for schedule(static) num_threads(nb_threads()) if (m > 64)
  for (int64_t row = 0; row < m; row++) {
    float p[MAX_EXPERTS], total = 0.0f;
    uint8_t taken[MAX_EXPERTS];
    memcpy(p, (const float *)logits->data + row * e, (size_t)e * sizeof *p);
    memset(taken, 0, (size_t)e);
    v->softmax(p, e);
    float *w = (float *)weights->data + row * top;
    int32_t *id = (int32_t *)experts->data + row * top;
    for (int64_t t = 0; t < top; t++) {
      int64_t at = best(p, taken, e);
      taken[at] = 1;
      id[t] = (int32_t)at;
      w[t] = p[at];
      total += p[at];
    }
    for (int64_t t = 0; normalize && t < top; t++) w[t] /= total;
  }
  return NB_OK;
}

int nb_moe_group(nb_tensor *rows, nb_tensor *row_weights, nb_tensor *offsets, const nb_tensor *experts,
                 const nb_tensor *weights) {
  NB_TRY(nb_expect(experts, "moe group: experts", NB_I32, 2, NB_SHAPE(-1, -1)));
  int64_t m = experts->shape[0], top = experts->shape[1], n = m * top;
  NB_TRY(nb_expect(weights, "moe group: weights", NB_F32, 2, NB_SHAPE(m, top)));
  NB_TRY(nb_expect(rows, "moe group: rows", NB_I32, 1, NB_SHAPE(n)));
  NB_TRY(nb_expect(row_weights, "moe group: row weights", NB_F32, 1, NB_SHAPE(n)));
  NB_TRY(nb_expect(offsets, "moe group: offsets", NB_I32, 1, NB_SHAPE(-1)));
  int64_t e = offsets->shape[0] - 1;
  if (n > INT32_MAX)
    return nb_fail(NB_EUNSUPPORTED, "moe group: %lld pairs are more than 2^31-1", (long long)n);
  const int32_t *id = experts->data;
  int32_t *at = offsets->data, *out = rows->data;
  memset(at, 0, (size_t)nb_tensor_bytes(offsets));
  for (int64_t i = 0; i < n; i++) {
    if (id[i] < 0 || id[i] >= e)
      return nb_fail(NB_EINVAL, "moe group: expert %d at place %lld is outside the %lld experts", id[i],
                     (long long)i, (long long)e);
    at[id[i] + 1]++;
  }
  for (int64_t i = 0; i < e; i++) at[i + 1] += at[i];
  /* at[x] runs to the end of expert x, which is the start of the next: shifted back below. */
  for (int64_t i = 0; i < n; i++) {
    int32_t place = at[id[i]]++;
    out[place] = (int32_t)(i / top);
    ((float *)row_weights->data)[place] = ((const float *)weights->data)[i];
  }
  memmove(at + 1, at, (size_t)e * sizeof *at);
  at[0] = 0;
  return NB_OK;
}

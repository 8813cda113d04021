/* elementwise.c - the small operations between the products: rows gathered and
 * scattered, residual sums, SwiGLU, and a look for values that are not finite. */
#include "moe_act.h"
#include "vector.h"

enum { BLOCK = 1 << 14, STEP = 1024 }; /* elements of one task, of a row at a time */

static int same_f32(const nb_tensor *a, const nb_tensor *b, const char *what) {
  if (a->dtype == NB_F32 && b->dtype == NB_F32 && nb_tensor_numel(a) == nb_tensor_numel(b)) return NB_OK;
  char x[160], y[160];
  return nb_fail(NB_EINVAL, "%s: expected two f32 tensors of one size, found %s and %s", what,
                 nb_tensor_describe(a, x, sizeof x), nb_tensor_describe(b, y, sizeof y));
}

int nb_add(nb_tensor *y, const nb_tensor *x) {
  NB_TRY(same_f32(y, x, "add"));
  int64_t n = nb_tensor_numel(y);
  float *a = y->data;
  const float *b = x->data;
#pragma omp parallel for simd schedule(static) num_threads(nb_threads()) if (n > BLOCK)
  for (int64_t i = 0; i < n; i++) a[i] += b[i];
  return NB_OK;
}

int nb_swiglu(nb_tensor *gate, const nb_tensor *up) {
  NB_TRY(same_f32(gate, up, "swiglu"));
  int64_t n = nb_tensor_numel(gate), blocks = NB_CEIL(n, BLOCK);
  const nb_vector *v = nb_vector_here();
#pragma omp parallel for schedule(static) num_threads(nb_threads()) if (blocks > 1)
  for (int64_t b = 0; b < blocks; b++)
    v->swiglu((float *)gate->data + b * BLOCK, (const float *)up->data + b * BLOCK,
              NB_MIN(BLOCK, n - b * BLOCK));
  return NB_OK;
}

int64_t nb_count_nonfinite(const nb_tensor *x) {
  NB_TRY(nb_expect_float(x, "count of non-finite values"));
  int64_t n = nb_tensor_numel(x), count = 0;
  /* Non-finite: every bit of the exponent set. */
  if (x->dtype == NB_F32) {
    const uint32_t *u = x->data;
#pragma omp parallel for simd schedule(static) num_threads(nb_threads()) reduction(+ : count) if (n > BLOCK)
    for (int64_t i = 0; i < n; i++) count += (u[i] & 0x7f800000u) == 0x7f800000u;
    return count;
  }
  const uint16_t *u = x->data, mask = x->dtype == NB_BF16 ? 0x7f80u : 0x7c00u;
#pragma omp parallel for simd schedule(static) num_threads(nb_threads()) reduction(+ : count) if (n > BLOCK)
  for (int64_t i = 0; i < n; i++) count += (u[i] & mask) == mask;
  return count;
}

int nb_gather(nb_tensor *out, const nb_tensor *table, const nb_tensor *ids) {
  NB_TRY(nb_expect(table, "gather: table", -1, 2, NB_SHAPE(-1, -1)));
  NB_TRY(nb_expect_float(table, "gather: table"));
  NB_TRY(nb_expect(ids, "gather: ids", NB_I32, 1, NB_SHAPE(-1)));
  int64_t m = ids->shape[0], d = table->shape[1], rows = table->shape[0];
  NB_TRY(nb_expect(out, "gather: out", NB_F32, 2, NB_SHAPE(m, d)));
  const int32_t *id = ids->data;
  for (int64_t i = 0; i < m; i++)
    if (id[i] < 0 || id[i] >= rows)
      return nb_fail(NB_EINVAL, "gather: id %d at place %lld is outside the table's %lld rows", id[i],
                     (long long)i, (long long)rows);
  const nb_vector *v = nb_vector_here();
#pragma omp parallel for schedule(static) num_threads(nb_threads()) if (m * d > BLOCK)
  for (int64_t i = 0; i < m; i++) nb_widen(v, (float *)out->data + i * d, table, id[i] * d, d);
  return NB_OK;
}

static void add_row(float *y, const float *x, float factor, int64_t d, int dtype, const nb_act_table *t) {
  if (dtype == NB_F32) {
#pragma omp simd
    for (int64_t j = 0; j < d; j++) y[j] += factor * x[j];
    return;
  }
  float scaled[STEP];
  for (int64_t at = 0; at < d; at += STEP) {
    int64_t n = NB_MIN(STEP, d - at);
    for (int64_t j = 0; j < n; j++) scaled[j] = factor * x[at + j];
    nb_round_row(t, scaled, n, dtype);
    for (int64_t j = 0; j < n; j++) y[at + j] += scaled[j];
  }
}

int nb_scatter_add(nb_tensor *y, const nb_tensor *x, const nb_tensor *ids, const nb_tensor *weights,
                   int dtype) {
  NB_TRY(nb_expect(x, "scatter_add: x", NB_F32, 2, NB_SHAPE(-1, -1)));
  int64_t m = x->shape[0], d = x->shape[1];
  NB_TRY(nb_expect(y, "scatter_add: y", NB_F32, 2, NB_SHAPE(-1, d)));
  NB_TRY(nb_expect(ids, "scatter_add: ids", NB_I32, 1, NB_SHAPE(m)));
  if (weights) NB_TRY(nb_expect(weights, "scatter_add: weights", NB_F32, 1, NB_SHAPE(m)));
  const int32_t *id = ids->data;
  for (int64_t i = 0; i < m; i++) /* in order, so that runs of one row may be added at the same time */
    if (id[i] < 0 || id[i] >= y->shape[0] || (i && id[i] < id[i - 1]))
      return nb_fail(NB_EINVAL, "scatter_add: id %d at place %lld must not descend, within the %lld rows",
                     id[i], (long long)i, (long long)y->shape[0]);
  const nb_act_table *t = nb_act_table_here();
  const float *w = weights ? weights->data : NULL;
#pragma omp parallel for schedule(static) num_threads(nb_threads()) if (m * d > BLOCK)
  for (int64_t i = 0; i < m; i++) {
    if (i && id[i] == id[i - 1]) continue; /* the first of a run adds all of it, in order */
    for (int64_t r = i; r < m && id[r] == id[i]; r++)
      add_row((float *)y->data + id[i] * d, (const float *)x->data + r * d, w ? w[r] : 1.0f, d, dtype, t);
  }
  return NB_OK;
}

/* experts.c - stacks of expert weights [e,r,c] (or one matrix [r,c]), all experts in
 * one call: rows in another order, zeros around a matrix, columns repeated, groups
 * of activation order sorted. Bytes are moved, never looked at. */
#include "layout.h"

enum { SERIAL_BYTES = 1 << 15 };

/* [e,r,c] or [r,c] with elements of whole bytes. */
typedef struct stack {
  char *data;
  int64_t e, r, c, bytes;
} stack;

static int stack_of(stack *s, const nb_tensor *t, const char *what) {
  int64_t bits = nb_dtype_bits(t->dtype);
  int d = t->ndim;
  if ((d != 2 && d != 3) || bits % 8)
    return nb_fail(NB_EINVAL, "%s: expected [r,c] or [e,r,c] of whole bytes, found %s of %d dimensions", what,
                   nb_dtype_name(t->dtype), d);
  *s = (stack){t->data, d == 3 ? t->shape[0] : 1, t->shape[d - 2], t->shape[d - 1], bits / 8};
  return NB_OK;
}

/* Two stacks of one dtype and the same experts. */
static int both(stack *out, stack *in, const nb_tensor *to, const nb_tensor *from, const char *what) {
  NB_TRY(stack_of(in, from, what));
  NB_TRY(nb_expect(to, what, from->dtype, from->ndim,
                   from->ndim == 3 ? NB_SHAPE(from->shape[0], -1, -1) : NB_SHAPE(-1, -1)));
  return stack_of(out, to, what);
}

int nb_rows_take(nb_tensor *out, const nb_tensor *in, const nb_tensor *index) {
  const char *what = "rows_take";
  stack o, s;
  NB_TRY(both(&o, &s, out, in, what));
  NB_TRY(nb_expect(index, what, NB_I32, 1, NB_SHAPE(o.r)));
  if (o.c != s.c)
    return nb_fail(NB_EINVAL, "%s: rows of %lld elements into rows of %lld", what, (long long)s.c,
                   (long long)o.c);
  const int32_t *at = index->data;
  for (int64_t i = 0; i < o.r; i++)
    if (at[i] < 0 || at[i] >= s.r)
      return nb_fail(NB_EINVAL, "%s: index %lld is %d, outside the %lld rows", what, (long long)i, at[i],
                     (long long)s.r);
  int64_t row = s.c * s.bytes, rows = o.e * o.r;
  int stopped = 0;
#pragma omp parallel for schedule(static) num_threads(nb_threads()) \
    reduction(| \
              : stopped) if (rows * row > SERIAL_BYTES)
  for (int64_t i = 0; i < rows; i++) {
    if (nb_stop_requested()) stopped = 1;
    else memcpy(o.data + i * row, s.data + (i / o.r * s.r + at[i % o.r]) * row, (size_t)row);
  }
  return stopped ? nb_fail_stopped() : NB_OK;
}

int nb_matrix_pad(nb_tensor *out, const nb_tensor *in, int64_t parts) {
  const char *what = "matrix_pad";
  stack o, s;
  NB_TRY(both(&o, &s, out, in, what));
  if (parts < 1 || s.c % parts || o.c % parts || o.r < s.r || o.c < s.c)
    return nb_fail(NB_EINVAL, "%s: [%lldx%lld] in %lld parts does not fit into [%lldx%lld]", what,
                   (long long)s.r, (long long)s.c, (long long)parts, (long long)o.r, (long long)o.c);
  int64_t from = s.c / parts * s.bytes, to = o.c / parts * s.bytes, rows = o.e * o.r;
#pragma omp parallel for schedule(static) num_threads(nb_threads()) if (rows * parts * to > SERIAL_BYTES)
  for (int64_t i = 0; i < rows; i++)
    for (int64_t p = 0; p < parts; p++) {
      char *d = o.data + (i * parts + p) * to;
      bool there = i % o.r < s.r;
      if (there) memcpy(d, s.data + ((i / o.r * s.r + i % o.r) * parts + p) * from, (size_t)from);
      memset(d + (there ? from : 0), 0, (size_t)(there ? to - from : to));
    }
  return NB_OK;
}

int nb_columns_repeat(nb_tensor *out, const nb_tensor *in, const int64_t *widths) {
  const char *what = "columns_repeat";
  stack o, s;
  NB_TRY(both(&o, &s, out, in, what));
  int64_t total = 0;
  for (int64_t c = 0; c < s.c; c++) total += widths[c];
  if (o.r != s.r || total < o.c)
    return nb_fail(NB_EINVAL, "%s: [%lldx%lld], %lld columns when repeated, does not fill [%lldx%lld]", what,
                   (long long)s.r, (long long)s.c, (long long)total, (long long)o.r, (long long)o.c);
  int64_t rows = o.e * o.r;
#pragma omp parallel for schedule(static) num_threads(nb_threads()) if (rows * o.c * s.bytes > SERIAL_BYTES)
  for (int64_t i = 0; i < rows; i++) {
    char *d = o.data + i * o.c * s.bytes;
    int64_t at = 0;
    for (int64_t c = 0; c < s.c; c++)
      for (int64_t w = 0; w < widths[c] && at < o.c; w++, at++)
        memcpy(d + at * s.bytes, s.data + (i * s.c + c) * s.bytes, (size_t)s.bytes);
  }
  return NB_OK;
}

int nb_int4_flip(nb_tensor *words) {
  NB_TRY(nb_expect_words(words, "int4_flip", words->ndim, words->shape));
  uint32_t *w = words->data;
  int64_t count = nb_tensor_numel(words);
#pragma omp parallel for schedule(static) num_threads(nb_threads()) if (count * 4 > SERIAL_BYTES)
  for (int64_t i = 0; i < count; i++) w[i] ^= 0x88888888u;
  return NB_OK;
}

static int ascending(const void *a, const void *b) {
  uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
  return (x > y) - (x < y);
}

/* The group above the place in one number: sorting it is stable. */
int nb_groups_sort(nb_tensor *sorted, nb_tensor *perm, const nb_tensor *g_idx) {
  const char *what = "groups_sort";
  int d = g_idx->ndim;
  if (d < 1) return nb_expect(g_idx, what, NB_I32, 1, NB_SHAPE(-1));
  NB_TRY(nb_expect(g_idx, what, NB_I32, d, g_idx->shape));
  NB_TRY(nb_expect(sorted, what, NB_I32, d, g_idx->shape));
  NB_TRY(nb_expect(perm, what, NB_I32, d, g_idx->shape));
  int64_t k = g_idx->shape[d - 1], rows = k ? nb_tensor_numel(g_idx) / k : 0;
  uint64_t *key = nb_alloc(NB_MAX(k, 1), sizeof *key);
  if (!key) return NB_ENOMEM;
  for (int64_t r = 0; r < rows; r++) {
    const int32_t *g = (const int32_t *)g_idx->data + r * k;
    for (int64_t i = 0; i < k; i++) key[i] = (uint64_t)((int64_t)g[i] - INT32_MIN) << 32 | (uint64_t)i;
    qsort(key, (size_t)k, sizeof *key, ascending);
    for (int64_t i = 0; i < k; i++) {
      ((int32_t *)perm->data)[r * k + i] = (int32_t)(uint32_t)key[i];
      ((int32_t *)sorted->data)[r * k + i] = (int32_t)((int64_t)(key[i] >> 32) + INT32_MIN);
    }
  }
  free(key);
  return NB_OK;
}

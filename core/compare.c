/* compare.c - how far one tensor's values are from another's, by row and by span
 * of columns. Threads cannot be seen in the result: see stats.c. */
#include "blocks.h"
#include "dtype.h"

#include <math.h>

/* Rows of a chunk; most spans of columns. */
enum { ROWS = 16, SPANS = 64 };

typedef struct difference {
  nb_comparison c;
  double spans[SPANS];
} difference;

/* Values that are the same (infinities, both NaN) have no difference; where only one
 * is a number, or infinities differ, the pair is counted and left out. */
static void settle_odd(double *x, double *y, int64_t n, nb_comparison *c) {
  for (int64_t i = 0; i < n; i++) {
    if (isfinite(x[i]) && isfinite(y[i])) continue;
    c->odd += !(x[i] == y[i] || (x[i] != x[i] && y[i] != y[i]));
    x[i] = y[i] = 0;
  }
}

/* n <= NB_BLOCK elements from `at` on; -> the squared error. */
static double compare_block(nb_comparison *c, const nb_tensor *a, const nb_tensor *b, int64_t at, int64_t n) {
  _Alignas(64) double x[NB_BLOCK], y[NB_BLOCK];
  const nb_blocks *blocks = nb_blocks_get();
  nb_load_f64(x, (const char *)a->data + at * nb_dtype_bits(a->dtype) / 8, a->dtype, n);
  nb_load_f64(y, (const char *)b->data + at * nb_dtype_bits(b->dtype) / 8, b->dtype, n);
  if (blocks->has_odd(x, n) || blocks->has_odd(y, n)) settle_odd(x, y, n, c);
  nb_difference d;
  blocks->difference(&d, x, y, n);
  if (d.max_abs > c->max_abs) { /* seldom: look for the first one */
    int64_t i = 0;
    while (i < n - 1 && fabs(y[i] - x[i]) != d.max_abs) i++;
    c->max_abs = d.max_abs;
    c->max_at = at + i;
  }
  c->a2 += d.a2;
  c->b2 += d.b2;
  c->dot += d.dot;
  return d.error2;
}

/* Span s of a row: columns [s*cols/spans, (s+1)*cols/spans); packed dtypes are cut on
 * multiples of 8 columns, which begin on a byte. */
static int64_t span_start(int64_t s, int64_t cols, int64_t spans, bool packed) {
  int64_t at = s * cols / spans;
  return packed && s < spans ? at & ~(int64_t)7 : at;
}

static void compare_row(difference *d, const nb_tensor *a, const nb_tensor *b, int64_t row, int64_t cols,
                        int spans) {
  bool packed = nb_dtype_bits(a->dtype) < 8 || nb_dtype_bits(b->dtype) < 8;
  double row_error = 0;
  for (int s = 0; s < spans; s++) {
    int64_t end = span_start(s + 1, cols, spans, packed);
    for (int64_t from = span_start(s, cols, spans, packed); from < end; from += NB_BLOCK) {
      double e2 = compare_block(&d->c, a, b, row * cols + from, NB_MIN((int64_t)NB_BLOCK, end - from));
      d->spans[s] += e2;
      row_error += e2;
    }
  }
  d->c.error2 += row_error;
  if (row_error > d->c.worst_error2) d->c.worst_error2 = row_error, d->c.worst_row = row;
}

static void merge(nb_comparison *out, const nb_comparison *c) {
  out->error2 += c->error2;
  out->a2 += c->a2;
  out->b2 += c->b2;
  out->dot += c->dot;
  out->odd += c->odd;
  if (c->max_abs > out->max_abs) out->max_abs = c->max_abs, out->max_at = c->max_at;
  if (c->worst_error2 > out->worst_error2) out->worst_error2 = c->worst_error2, out->worst_row = c->worst_row;
}

int nb_tensor_compare(nb_comparison *out, double *by_column, int spans, const nb_tensor *a,
                      const nb_tensor *b) {
  memset(out, 0, sizeof *out);
  NB_TRY(nb_real_only(a, "a comparison"));
  NB_TRY(nb_real_only(b, "a comparison"));
  NB_TRY(nb_expect(b, "compare", -1, a->ndim, a->shape));
  if (by_column && (spans < 1 || spans > SPANS))
    return nb_fail(NB_EINVAL, "compare: %d spans of columns, expected 1 to %d", spans, SPANS);
  int64_t numel = nb_tensor_numel(a), cols = a->ndim ? a->shape[a->ndim - 1] : 1;
  if (nb_dtype_bits(a->dtype) * cols % 8 || nb_dtype_bits(b->dtype) * cols % 8)
    return nb_fail(NB_EUNSUPPORTED, "compare: rows of %lld elements don't end on a byte", (long long)cols);
  if (!by_column) spans = 1;
  int64_t rows = cols ? numel / cols : 0, chunks = NB_CEIL(rows, (int64_t)ROWS);
  difference *part = nb_alloc(chunks, sizeof *part);
  if (!part) return NB_ENOMEM;
  bool stopped = false;
#pragma omp parallel for schedule(static) num_threads(nb_threads()) if (chunks > 1) reduction(|| : stopped)
  for (int64_t k = 0; k < chunks; k++)
    for (int64_t r = k * ROWS; r < NB_MIN(rows, (k + 1) * ROWS); r++) {
      if ((stopped = stopped || nb_stop_requested())) break;
      compare_row(&part[k], a, b, r, cols, spans);
    }
  for (int i = 0; by_column && i < spans; i++) by_column[i] = 0;
  for (int64_t k = 0; k < chunks; k++) {
    merge(out, &part[k].c);
    for (int i = 0; by_column && i < spans; i++) by_column[i] += part[k].spans[i];
  }
  free(part);
  out->numel = numel;
  return stopped ? nb_fail_stopped() : NB_OK;
}

/* stats.c - what a tensor's values are like, in one pass: moments, histogram,
 * and the difference of two tensors.
 *
 * Work is cut into chunks of 64 blocks of 4096 elements. A chunk's result depends
 * on nothing else, and chunks are merged in order: threads cannot be seen. */
#include "cast.h"

#include <math.h>

enum { CHUNK = 64 * NB_CAST_BLOCK };

/* n elements from element `at` on, as float32. */
static void values(float *out, const nb_tensor *t, int64_t at, int64_t n) {
  const char *p = (const char *)t->data + at * nb_dtype_bits(t->dtype) / 8;
  switch (t->dtype) {
  case NB_F64: for (int64_t i = 0; i < n; i++) out[i] = (float)((const double *)(const void *)p)[i]; break;
  case NB_I32: for (int64_t i = 0; i < n; i++) out[i] = (float)((const int32_t *)(const void *)p)[i]; break;
  case NB_U32: for (int64_t i = 0; i < n; i++) out[i] = (float)((const uint32_t *)(const void *)p)[i]; break;
  case NB_I64: for (int64_t i = 0; i < n; i++) out[i] = (float)((const int64_t *)(const void *)p)[i]; break;
  case NB_U64: for (int64_t i = 0; i < n; i++) out[i] = (float)((const uint64_t *)(const void *)p)[i]; break;
  default: nb_decode_block(out, t->dtype, p, n);
  }
}

static int real_only(const nb_tensor *t, const char *what) {
  if (t->dtype != NB_C64) return NB_OK;
  return nb_fail(NB_EUNSUPPORTED, "%s: complex numbers have none", what);
}

/* ---- moments ------------------------------------------------------------------- */

typedef struct moments {
  int64_t n, zeros, nan, inf;
  double min, max, mean, m2, m3, m4; /* sums of powers of (x - mean) */
} moments;

/* Pebay's pairwise update of the central moments. */
static void merge(moments *a, const moments *b) {
  a->zeros += b->zeros;
  a->nan += b->nan;
  a->inf += b->inf;
  if (b->n == 0) return;
  if (a->n == 0) {
    int64_t zeros = a->zeros, nan = a->nan, inf = a->inf;
    *a = *b;
    a->zeros = zeros, a->nan = nan, a->inf = inf;
    return;
  }
  double na = (double)a->n, nb = (double)b->n, n = na + nb, d = b->mean - a->mean, d2 = d * d;
  a->m4 += b->m4 + d2 * d2 * na * nb * (na * na - na * nb + nb * nb) / (n * n * n) +
           6 * d2 * (na * na * b->m2 + nb * nb * a->m2) / (n * n) + 4 * d * (na * b->m3 - nb * a->m3) / n;
  a->m3 += b->m3 + d2 * d * na * nb * (na - nb) / (n * n) + 3 * d * (na * b->m2 - nb * a->m2) / n;
  a->m2 += b->m2 + d2 * na * nb / n;
  a->mean += d * nb / n;
  a->min = fmin(a->min, b->min);
  a->max = fmax(a->max, b->max);
  a->n += b->n;
}

/* Two passes over a block in the cache: the mean first, then what is around it. */
static moments of_block(float *x, int64_t count) {
  moments b = {.min = INFINITY, .max = -INFINITY};
  int64_t n = 0;
  for (int64_t i = 0; i < count; i++) {
    float v = x[i];
    if (v != v) b.nan++;
    else if (v - v != 0) b.inf++;
    else x[n++] = v;
  }
  double sum = 0;
  float lo = INFINITY, hi = -INFINITY;
  for (int64_t i = 0; i < n; i++) {
    sum += x[i];
    b.zeros += x[i] == 0;
    lo = x[i] < lo ? x[i] : lo;
    hi = x[i] > hi ? x[i] : hi;
  }
  b.n = n;
  b.min = lo;
  b.max = hi;
  b.mean = n ? sum / (double)n : 0;
  for (int64_t i = 0; i < n; i++) {
    double d = x[i] - b.mean, d2 = d * d;
    b.m2 += d2;
    b.m3 += d2 * d;
    b.m4 += d2 * d2;
  }
  return b;
}

int nb_tensor_stats(nb_stats *out, const nb_tensor *t) {
  memset(out, 0, sizeof *out);
  NB_TRY(real_only(t, "statistics"));
  int64_t numel = nb_tensor_numel(t), chunks = NB_CEIL(numel, (int64_t)CHUNK);
  moments *part = nb_alloc(chunks, sizeof *part);
  if (!part) return NB_ENOMEM;
#pragma omp parallel for schedule(static) num_threads(nb_threads()) if (chunks > 1)
  for (int64_t c = 0; c < chunks; c++) {
    if (nb_stop_requested()) continue;
    float x[NB_CAST_BLOCK];
    for (int64_t at = c * CHUNK; at < NB_MIN(numel, (c + 1) * CHUNK); at += NB_CAST_BLOCK) {
      int64_t n = NB_MIN((int64_t)NB_CAST_BLOCK, numel - at);
      values(x, t, at, n);
      moments b = of_block(x, n);
      merge(&part[c], &b);
    }
  }
  moments all = {0};
  for (int64_t c = 0; c < chunks; c++) merge(&all, &part[c]);
  free(part);
  if (nb_stop_requested()) return nb_fail_stopped();
  out->numel = numel;
  out->zeros = all.zeros;
  out->nan = all.nan;
  out->inf = all.inf;
  if (all.n == 0) return NB_OK;
  double n = (double)all.n;
  out->min = all.min;
  out->max = all.max;
  out->absmax = fmax(fabs(all.min), fabs(all.max));
  out->mean = all.mean;
  out->std = sqrt(all.m2 / n);
  out->kurtosis = all.m2 > 0 ? all.m4 * n / (all.m2 * all.m2) : 0;
  return NB_OK;
}

/* ---- histogram -------------------------------------------------------------------- */

int nb_tensor_hist(int64_t *counts, int bins, double lo, double hi, const nb_tensor *t) {
  NB_TRY(real_only(t, "a histogram"));
  if (bins < 1 || bins > 65536) return nb_fail(NB_EINVAL, "hist: %d bins, expected 1 to 65536", bins);
  if (!(hi > lo)) return nb_fail(NB_EINVAL, "hist: the range %g to %g is empty", lo, hi);
  memset(counts, 0, (size_t)bins * sizeof *counts);
  int64_t numel = nb_tensor_numel(t);
  double scale = bins / (hi - lo);
#pragma omp parallel num_threads(nb_threads()) if (numel > CHUNK)
  {
    int64_t *own = calloc((size_t)bins, sizeof *own);
    float x[NB_CAST_BLOCK];
#pragma omp for schedule(static)
    for (int64_t at = 0; at < numel; at += NB_CAST_BLOCK) {
      if (!own || nb_stop_requested()) continue;
      int64_t n = NB_MIN((int64_t)NB_CAST_BLOCK, numel - at);
      values(x, t, at, n);
      for (int64_t i = 0; i < n; i++)
        if (x[i] >= lo && x[i] <= hi) own[NB_MIN((int)((x[i] - lo) * scale), bins - 1)]++;
    }
#pragma omp critical
    for (int i = 0; own && i < bins; i++) counts[i] += own[i];
    free(own);
  }
  return nb_stop_requested() ? nb_fail_stopped() : NB_OK;
}

/* ---- two tensors ------------------------------------------------------------------- */

enum { ROWS = 16 }; /* rows of a chunk */

typedef struct difference { nb_comparison c; double bins[64]; } difference;

static void compare_row(difference *d, const nb_tensor *a, const nb_tensor *b, int64_t row, int64_t cols, int bins) {
  float x[NB_CAST_BLOCK], y[NB_CAST_BLOCK];
  double row_error = 0;
  for (int64_t from = 0; from < cols; from += NB_CAST_BLOCK) {
    int64_t n = NB_MIN((int64_t)NB_CAST_BLOCK, cols - from), at = row * cols + from;
    values(x, a, at, n);
    values(y, b, at, n);
    for (int64_t i = 0; i < n; i++) {
      double e = (double)y[i] - x[i], e2 = e * e;
      if (bins) d->bins[(from + i) * bins / cols] += e2;
      row_error += e2;
      d->c.a2 += (double)x[i] * x[i];
      d->c.b2 += (double)y[i] * y[i];
      d->c.dot += (double)x[i] * y[i];
      if (fabs(e) > d->c.max_abs) d->c.max_abs = fabs(e), d->c.max_at = at + i;
    }
  }
  d->c.error2 += row_error;
  if (row_error > d->c.worst_error2) d->c.worst_error2 = row_error, d->c.worst_row = row;
}

int nb_tensor_compare(nb_comparison *out, double *by_column, int bins, const nb_tensor *a, const nb_tensor *b) {
  memset(out, 0, sizeof *out);
  NB_TRY(real_only(a, "a comparison"));
  NB_TRY(real_only(b, "a comparison"));
  NB_TRY(nb_expect(b, "compare", -1, a->ndim, a->shape));
  int64_t numel = nb_tensor_numel(a), cols = a->ndim ? a->shape[a->ndim - 1] : 1;
  bins = by_column ? bins : 0;
  if (bins < 0 || bins > 64) return nb_fail(NB_EINVAL, "compare: %d spans of columns, expected 0 to 64", bins);
  if (nb_dtype_bits(a->dtype) * cols % 8 || nb_dtype_bits(b->dtype) * cols % 8)
    return nb_fail(NB_EUNSUPPORTED, "compare: rows of %lld elements don't end on a byte", (long long)cols);
  int64_t rows = cols ? numel / cols : 0, chunks = NB_CEIL(rows, (int64_t)ROWS);
  difference *part = nb_alloc(chunks, sizeof *part);
  if (!part) return NB_ENOMEM;
#pragma omp parallel for schedule(static) num_threads(nb_threads()) if (chunks > 1)
  for (int64_t k = 0; k < chunks; k++)
    for (int64_t r = k * ROWS; r < NB_MIN(rows, (k + 1) * ROWS) && !nb_stop_requested(); r++)
      compare_row(&part[k], a, b, r, cols, bins);
  for (int i = 0; i < bins; i++) by_column[i] = 0;
  for (int64_t k = 0; k < chunks; k++) {
    const nb_comparison *c = &part[k].c;
    out->error2 += c->error2;
    out->a2 += c->a2;
    out->b2 += c->b2;
    out->dot += c->dot;
    if (c->max_abs > out->max_abs) out->max_abs = c->max_abs, out->max_at = c->max_at;
    if (c->worst_error2 > out->worst_error2) out->worst_error2 = c->worst_error2, out->worst_row = c->worst_row;
    for (int i = 0; i < bins; i++) by_column[i] += part[k].bins[i];
  }
  free(part);
  out->numel = numel;
  return nb_stop_requested() ? nb_fail_stopped() : NB_OK;
}

/* ---- one element --------------------------------------------------------------------- */

static double element(const nb_tensor *t, int64_t i) {
  switch (t->dtype) { /* what float32 can't hold */
  case NB_F64: return ((const double *)t->data)[i];
  case NB_I32: return ((const int32_t *)t->data)[i];
  case NB_U32: return ((const uint32_t *)t->data)[i];
  case NB_I64: return (double)((const int64_t *)t->data)[i];
  case NB_U64: return (double)((const uint64_t *)t->data)[i];
  case NB_C64: return ((const float *)t->data)[2 * i];
  default: break;
  }
  float x[8];
  int64_t from = i & ~(int64_t)7;
  values(x, t, from, NB_MIN((int64_t)8, nb_tensor_numel(t) - from));
  return x[i - from];
}

double nb_tensor_get(const nb_tensor *t, int64_t i) {
  double v = element(t, i);
  return v != v ? (double)NAN : v; /* LuaJIT takes the bits of some NaNs for other types' tags */
}

void nb_tensor_set(nb_tensor *t, int64_t i, double v) {
  int64_t shape = 1, from = i & ~(int64_t)7, bits = nb_dtype_bits(t->dtype);
  nb_tensor value, at;
  nb_tensor_borrow(&value, &v, NB_F64, 1, &shape);
  if (bits >= 8) {
    nb_tensor_borrow(&at, (char *)t->data + i * bits / 8, t->dtype, 1, &shape);
    nb_cast(&at, &value, 0);
    return;
  }
  float x[8];
  int64_t n = NB_MIN((int64_t)8, nb_tensor_numel(t) - from);
  char *p = (char *)t->data + from * bits / 8;
  nb_decode_block(x, t->dtype, p, n);
  x[i - from] = (float)v;
  nb_encode_block(p, t->dtype, x, n, false);
}

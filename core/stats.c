/* stats.c - what a tensor's values are like: moments in one pass, histograms.
 *
 * Work is cut into chunks of fixed size and the blocks in them into fixed lanes. A
 * chunk's result depends on nothing else and chunks are merged in order, so that
 * threads cannot be seen in the result. */
#include "blocks.h"
#include "dtype.h"

#include <float.h>
#include <math.h>
#include <omp.h>

enum { CHUNK = 128 * NB_BLOCK };

int nb_real_only(const nb_tensor *t, const char *what) {
  char text[160];
  NB_TRY(nb_expect_here(t, what));
  if (t->dtype != NB_C64) return NB_OK;
  return nb_fail(NB_EUNSUPPORTED, "%s: complex numbers (%s) have none", what,
                 nb_tensor_describe(t, text, sizeof text));
}

/* ---- moments ------------------------------------------------------------------- */

/* Pebay's pairwise update of the central moments. */
static void merge(nb_moments *a, const nb_moments *b) {
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

/* Counts NaN and infinities and closes the gaps they leave; -> how many values stay. */
static int64_t finite_only(nb_moments *b, double *x, int64_t count) {
  int64_t n = 0;
  for (int64_t i = 0; i < count; i++) {
    if (x[i] != x[i]) b->nan++;
    else if (isinf(x[i])) b->inf++;
    else x[n++] = x[i];
  }
  return n;
}

static nb_moments of_block(const nb_blocks *blocks, double *x, int64_t n) {
  nb_moments b = {0};
  if (blocks->has_odd(x, n)) n = finite_only(&b, x, n);
  if (n > 0) blocks->moments(&b, x, n);
  return b;
}

static const void *element(const nb_tensor *t, int64_t at) {
  return (const char *)t->data + at * nb_dtype_bits(t->dtype) / 8;
}

int nb_tensor_stats(nb_stats *out, const nb_tensor *t) {
  memset(out, 0, sizeof *out);
  NB_TRY(nb_real_only(t, "statistics"));
  int64_t numel = nb_tensor_numel(t), chunks = NB_CEIL(numel, (int64_t)CHUNK);
  nb_moments *part = nb_alloc(chunks, sizeof *part);
  if (!part) return NB_ENOMEM;
  const nb_blocks *blocks = nb_blocks_get();
  bool stopped = false;
#pragma omp parallel for schedule(static) num_threads(nb_threads()) if (chunks > 1) reduction(|| : stopped)
  for (int64_t c = 0; c < chunks; c++) {
    _Alignas(64) double x[NB_BLOCK];
    for (int64_t at = c * CHUNK; at < NB_MIN(numel, (c + 1) * CHUNK); at += NB_BLOCK) {
      if ((stopped = stopped || nb_stop_requested())) break;
      int64_t n = NB_MIN((int64_t)NB_BLOCK, numel - at);
      nb_load_f64(x, element(t, at), t->dtype, n);
      nb_moments b = of_block(blocks, x, n);
      merge(&part[c], &b);
    }
  }
  nb_moments all = {0};
  for (int64_t c = 0; c < chunks; c++) merge(&all, &part[c]);
  free(part);
  if (stopped) return nb_fail_stopped();
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
  NB_TRY(nb_real_only(t, "a histogram"));
  if (bins < 1 || bins > 65536) return nb_fail(NB_EINVAL, "hist: %d bins, expected 1 to 65536", bins);
  if (!(hi > lo) || isinf(hi - lo)) return nb_fail(NB_EINVAL, "hist: %g to %g is no range", lo, hi);
  memset(counts, 0, (size_t)bins * sizeof *counts);
  int64_t numel = nb_tensor_numel(t);
  int threads = numel > CHUNK ? nb_threads() : 1;
  /* Four counters a bin, so that equal values in a row don't wait for one another; each
   * thread's on cache lines of their own. */
  int64_t stride = 4 * (int64_t)bins + 8;
  int64_t *own = nb_alloc(threads * stride, sizeof *own);
  if (!own) return NB_ENOMEM;
  double scale = bins / (hi - lo);
  bool stopped = false;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1) reduction(|| : stopped)
  for (int64_t at = 0; at < numel; at += NB_BLOCK) {
    if ((stopped = stopped || nb_stop_requested())) continue;
    int64_t n = NB_MIN((int64_t)NB_BLOCK, numel - at), *mine = own + omp_get_thread_num() * stride;
    double x[NB_BLOCK];
    nb_load_f64(x, element(t, at), t->dtype, n);
    for (int64_t i = 0; i < n; i++)
      if (x[i] >= lo && x[i] <= hi) mine[4 * NB_MIN((int)((x[i] - lo) * scale), bins - 1) + (i & 3)]++;
  }
  for (int64_t k = 0; k < threads; k++)
    for (int64_t i = 0; i < 4 * (int64_t)bins; i++) counts[i / 4] += own[k * stride + i];
  free(own);
  return stopped ? nb_fail_stopped() : NB_OK;
}

int nb_tensor_count_beyond(int64_t *count, const nb_tensor *t, double lo, double hi) {
  NB_TRY(nb_real_only(t, "a count"));
  int64_t numel = nb_tensor_numel(t), found = 0;
  bool stopped = false;
#pragma omp parallel for schedule(static) num_threads(nb_threads()) if (numel > CHUNK) \
    reduction(|| : stopped) reduction(+ : found)
  for (int64_t at = 0; at < numel; at += NB_BLOCK) {
    if ((stopped = stopped || nb_stop_requested())) continue;
    int64_t n = NB_MIN((int64_t)NB_BLOCK, numel - at), beyond = 0;
    double x[NB_BLOCK];
    nb_load_f64(x, element(t, at), t->dtype, n);
    for (int64_t i = 0; i < n; i++) beyond += ((x[i] < lo) | (x[i] > hi)) & (fabs(x[i]) <= DBL_MAX);
    found += beyond;
  }
  *count = found;
  return stopped ? nb_fail_stopped() : NB_OK;
}

/* ---- columns ---------------------------------------------------------------------- */

int nb_column_squares(nb_tensor *sums, const nb_tensor *x) {
  NB_TRY(nb_expect(x, "column squares: x", NB_F32, 2, NB_SHAPE(-1, -1)));
  int64_t m = x->shape[0], k = x->shape[1], block = 512, blocks = NB_CEIL(k, block);
  NB_TRY(nb_expect(sums, "column squares: sums", NB_F64, 1, NB_SHAPE(k)));
  double *to = sums->data;
  const float *from = x->data;
#pragma omp parallel for schedule(static) num_threads(nb_threads()) if (m * k > 1 << 18)
  for (int64_t b = 0; b < blocks; b++)
    for (int64_t r = 0; r < m; r++)
      for (int64_t c = b * block; c < NB_MIN(k, (b + 1) * block); c++)
        to[c] += (double)from[r * k + c] * from[r * k + c];
  return NB_OK;
}

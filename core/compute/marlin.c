/* marlin.c - y = x W + bias out of a weight in Marlin's run-time layout: words,
 * permuted scales and zero-points are read as the kernels read them (SYSTEMS 2.3 to
 * 2.6), a strip at a time, and multiplied in float32.
 *
 *            n strip           One task is one strip of columns by up to TILE_M rows:
 *          +--------+          for each block of k its tiles become floats [k, n], then
 *   x  ->  | y tile |          one product on one thread. Tasks and blocks are fixed,
 *          +--------+          so y does not depend on how many threads ran.
 *
 * A weight's value is the exact (code - zero) * scale, rounded once to float32. */
#include "marlin_body.h"

#include "dtype.h"

#include <omp.h>

enum { TILE_M = 2048, BLOCK = 64 };

static const char what[] = "marlin gemm";

void nb_marlin_decode(const nb_marlin_strip *s) { decode(s); }

/* ---- checks (MRL-51) ---------------------------------------------------------- */

static bool empty(const nb_tensor *t) { return !t || nb_tensor_numel(t) == 0; }

static int check_rows(const nb_tensor *t, const char *name, int64_t k) {
  if (t->dtype != NB_I32 || t->ndim != 1 || t->shape[0] != k)
    return nb_fail(NB_EINVAL, "%s: %s must be i32 of length 0 or K = %lld, found %s of %lld elements", what,
                   name, (long long)k, nb_dtype_name(t->dtype), (long long)nb_tensor_numel(t));
  return NB_OK;
}

/* Every element of t in 0 .. below-1. */
static int check_range(const nb_tensor *t, const char *name, int64_t below) {
  const int32_t *p = t->data;
  for (int64_t i = 0; i < nb_tensor_numel(t); i++)
    if (p[i] < 0 || p[i] >= below)
      return nb_fail(NB_EINVAL, "%s: %s: %d at position %lld is outside 0..%lld", what, name, p[i],
                     (long long)i, (long long)below - 1);
  return NB_OK;
}

static int check_order(const nb_marlin_weight *w, int64_t groups) {
  if (empty(w->perm) != empty(w->g_idx))
    return nb_fail(NB_EINVAL, "%s: perm and g_idx belong together, found only %s", what,
                   empty(w->perm) ? "g_idx" : "perm");
  if (empty(w->perm)) {
    if (groups == 0 || w->k % groups)
      return nb_fail(NB_EINVAL, "%s: K = %lld is not a multiple of the %lld groups of scales", what,
                     (long long)w->k, (long long)groups);
    return NB_OK;
  }
  NB_TRY(check_rows(w->perm, "perm", w->k));
  NB_TRY(check_rows(w->g_idx, "g_idx", w->k));
  if (w->k_full && groups <= 1)
    return nb_fail(NB_EINVAL, "%s: an activation order over the full K needs more than one group, found %lld",
                   what, (long long)groups);
  if (w->a8)
    return nb_fail(NB_EINVAL, "%s: an activation order cannot be combined with 8-bit activations", what);
  NB_TRY(check_range(w->perm, "perm", w->k));
  return check_range(w->g_idx, "g_idx", groups);
}

static int check_scales(const nb_marlin_weight *w) {
  const nb_tensor *s = w->scales;
  if (s->ndim != 2 || s->shape[1] != w->n)
    return nb_fail(NB_EINVAL, "%s: scales must be [groups, N = %lld], found %lld dimensions and %lld columns",
                   what, (long long)w->n, (long long)s->ndim,
                   (long long)(s->ndim ? s->shape[s->ndim - 1] : 1));
  int64_t bits = nb_dtype_bits(s->dtype);
  bool fits = w->scale == NB_MARLIN_FLOAT   ? nb_expect_float(s, what) == NB_OK
              : w->scale == NB_MARLIN_INT16 ? bits == 16
                                            : bits == 8;
  if (!fits)
    return nb_fail(NB_EINVAL, "%s: scales of this weight cannot be %s", what, nb_dtype_name(s->dtype));
  return NB_OK;
}

static int check(const nb_tensor *y, const nb_tensor *x, const nb_marlin_weight *w,
                 const nb_tensor *row_scale) {
  NB_TRY(nb_expect(x, "marlin gemm: x", -1, 2, NB_SHAPE(-1, -1)));
  NB_TRY(nb_expect_float(x, "marlin gemm: x"));
  if (w->bits != 4 && w->bits != 8)
    return nb_fail(NB_EINVAL, "%s: bits must be 4 or 8, found %d", what, w->bits);
  if (w->code != NB_MARLIN_INT && (w->code == NB_MARLIN_E4M3) != (w->bits == 8))
    return nb_fail(NB_EINVAL, "%s: codes of kind %d cannot have %d bits", what, w->code, w->bits);
  int64_t k = w->k, n = w->n, unit = w->a8 ? 32 : 16;
  if (k % unit || k <= 0)
    return nb_fail(NB_EINVAL, "%s: K = %lld is not a multiple of %lld", what, (long long)k, (long long)unit);
  NB_TRY(nb_expect_words(w->words, "marlin gemm: words", 2, NB_SHAPE(-1, -1)));
  if (w->words->shape[0] != k / 16)
    return nb_fail(NB_EINVAL, "%s: the words have %lld rows, K = %lld needs %lld", what,
                   (long long)w->words->shape[0], (long long)k, (long long)(k / 16));
  if (w->words->shape[1] * 2 / w->bits != n)
    return nb_fail(NB_EINVAL, "%s: the words' %lld columns hold N = %lld, expected %lld", what,
                   (long long)w->words->shape[1], (long long)(w->words->shape[1] * 2 / w->bits),
                   (long long)n);
  if (n % BLOCK || n <= 0)
    return nb_fail(NB_EINVAL, "%s: N = %lld is not a multiple of %d", what, (long long)n, BLOCK);
  if (x->shape[1] > k || y->shape[1] > n)
    return nb_fail(NB_EINVAL, "%s: x has %lld columns for K = %lld, y has %lld for N = %lld", what,
                   (long long)x->shape[1], (long long)k, (long long)y->shape[1], (long long)n);
  NB_TRY(nb_expect(y, "marlin gemm: y", NB_F32, 2, NB_SHAPE(x->shape[0], -1)));
  NB_TRY(check_scales(w));
  if (w->zeros) {
    int64_t groups = w->scales->shape[0], cols = n * w->bits / 32;
    if (w->zeros->ndim != 2 || w->zeros->shape[0] != groups || w->zeros->shape[1] != cols)
      return nb_fail(NB_EINVAL, "%s: zero-points must be [%lld groups, N/%d = %lld], found [%lld, %lld]",
                     what, (long long)groups, 32 / w->bits, (long long)cols, (long long)w->zeros->shape[0],
                     (long long)(w->zeros->ndim > 1 ? w->zeros->shape[1] : 1));
    NB_TRY(nb_expect_words(w->zeros, "marlin gemm: zero-points", 2, NB_SHAPE(-1, -1)));
  }
  NB_TRY(check_order(w, w->scales->shape[0]));
  if (w->bias) {
    NB_TRY(nb_expect(w->bias, "marlin gemm: bias", -1, 1, NB_SHAPE(n)));
    NB_TRY(nb_expect_float(w->bias, "marlin gemm: bias"));
  }
  if (row_scale) NB_TRY(nb_expect(row_scale, "marlin gemm: row scales", NB_F32, 2, NB_SHAPE(x->shape[0], 1)));
  return NB_OK;
}

/* ---- scales and zero-points of a strip ------------------------------------------ */

/* The job, the same for all threads. */
typedef struct job {
  const nb_marlin_weight *w;
  nb_marlin_tile tile;
  uint8_t scale_column[BLOCK], zero_column[BLOCK], bias_column[BLOCK];
  int64_t groups;
  const int32_t *g_idx;
} job;

/* One thread's memory: a block of k of the weight, and its groups' scales and zero-points. */
typedef struct workspace {
  float *w, *scales, *zeros;
  const float *scale_of[NB_TILE_K], *zero_of[NB_TILE_K];
} workspace;

static float load16(int dtype, uint16_t h) { return dtype == NB_F16 ? nb_f16_to_f32(h) : nb_bf16_to_f32(h); }

static float load_float(const nb_tensor *t, int64_t i) {
  if (t->dtype == NB_F32) return ((const float *)t->data)[i];
  return load16(t->dtype, ((const uint16_t *)t->data)[i]);
}

static float load_scale(const nb_marlin_weight *w, int64_t i) {
  switch (w->scale) {
  case NB_MARLIN_INT16: return ((const int16_t *)w->scales->data)[i];
  case NB_MARLIN_S0E5M3: return nb_f16_to_f32((uint16_t)(((const uint8_t *)w->scales->data)[i] << 7));
  case NB_MARLIN_E8M0: return nb_e8m0_to_f32(((const uint8_t *)w->scales->data)[i]);
  default: return load_float(w->scales, i);
  }
}

static void load_group(float *scales, float *zeros, const job *j, int64_t group, int64_t n0, int64_t cols) {
  const nb_marlin_weight *w = j->w;
  float factor = (float)w->scale_factor;
  for (int64_t b = 0; b < cols; b += BLOCK)
    for (int p = 0; p < BLOCK; p++)
      scales[b + j->scale_column[p]] = load_scale(w, group * w->n + n0 + b + p) * factor;
  if (w->code == NB_MARLIN_E4M3 || w->code == NB_MARLIN_E2M1) return;
  if (!w->zeros) {
    for (int64_t i = 0; i < cols; i++) zeros[i] = (float)(1 << (w->bits - 1));
    return;
  }
  int pf = 32 / w->bits;
  const uint32_t *words = (const uint32_t *)w->zeros->data + (group * w->n + n0) / pf;
  for (int64_t b = 0; b < cols; b += BLOCK)
    for (int p = 0; p < BLOCK; p++)
      zeros[b + j->zero_column[p]] =
          (float)(words[(b + p) / pf] >> (p % pf * w->bits) & ((1u << w->bits) - 1));
}

/* Rows k0 .. k0+rows of the strip at n0 as floats in ws->w. */
static void load_block(workspace *ws, const job *j, nb_marlin_decode_fn *decode_fn, int64_t k0, int64_t rows,
                       int64_t n0, int64_t cols) {
  int64_t group = -1, per_group = j->w->k / NB_MAX(j->groups, 1), held = -1;
  for (int64_t k = 0; k < rows; k++) {
    int64_t g = j->g_idx ? j->g_idx[k0 + k] : (k0 + k) / per_group;
    if (g != group) {
      held++;
      load_group(ws->scales + held * NB_TILE_N, ws->zeros + held * NB_TILE_N, j, g, n0, cols);
    }
    group = g;
    ws->scale_of[k] = ws->scales + held * NB_TILE_N;
    ws->zero_of[k] = ws->zeros + held * NB_TILE_N;
  }
  nb_marlin_strip s = {.tile = &j->tile,
                       .words = j->w->words->data,
                       .n = j->w->n,
                       .k0 = k0,
                       .n0 = n0,
                       .rows = rows,
                       .cols = cols,
                       .w = ws->w,
                       .scales = ws->scale_of,
                       .zeros = ws->zero_of,
                       .code = j->w->code};
  decode_fn(&s);
}

static void finish(float *y, int64_t ldy, int64_t m, int64_t n, int64_t n0, const job *j,
                   const float *row_scale) {
  const nb_marlin_weight *w = j->w;
  float bias[NB_TILE_N] = {0}, global = (float)w->global;
  for (int64_t p = 0; w->bias && p < NB_CEIL(n, BLOCK) * BLOCK; p++)
    bias[p / BLOCK * BLOCK + j->bias_column[p % BLOCK]] = load_float(w->bias, n0 + p);
  if (!row_scale && global == 1.0f && !w->bias) return;
  for (int64_t i = 0; i < m; i++) {
    float scale = row_scale ? row_scale[i] : 1.0f;
    for (int64_t c = 0; c < n; c++) y[i * ldy + c] = y[i * ldy + c] * scale * global + bias[c];
  }
}

/* ---- the product ------------------------------------------------------------------ */

/* x as float32 with its columns in the order of the weight's rows: x itself, or *made. */
static int gather(const float **out, float **made, int64_t *ld, const nb_tensor *x,
                  const nb_marlin_weight *w) {
  int64_t m = x->shape[0], ki = x->shape[1];
  bool ordered = !empty(w->perm);
  *made = NULL, *out = x->data, *ld = ki;
  if (x->dtype == NB_F32 && !ordered) return NB_OK;
  *ld = ordered ? w->k : ki;
  float *to = *made = nb_alloc(NB_MAX(m * *ld, 1), sizeof *to),
        *row = ordered ? nb_alloc(w->k, sizeof *row) : NULL;
  if (!to || (ordered && !row)) {
    free(to);
    free(row);
    return NB_ENOMEM;
  }
  const nb_vector *v = nb_vector_here();
  for (int64_t i = 0; i < m; i++) {
    nb_widen(v, ordered ? row : to + i * *ld, x, i * ki, ki);
    for (int64_t k = 0; ordered && k < w->k; k++) to[i * *ld + k] = row[((const int32_t *)w->perm->data)[k]];
  }
  free(row);
  *out = to;
  return NB_OK;
}

static void init_job(job *j, const nb_marlin_weight *w) {
  static const uint8_t quarter[4] = {0, 2, 1, 3};
  *j = (job){.w = w, .groups = w->scales->shape[0], .g_idx = empty(w->g_idx) ? NULL : w->g_idx->data};
  nb_marlin_tile_init(&j->tile, w->bits, w->a8 != 0);
  nb_marlin_zero_columns(j->zero_column, w->bits, w->a8 != 0);
  nb_marlin_scale_columns(j->bias_column, false);
  uint8_t column[BLOCK];
  nb_marlin_scale_columns(column, j->groups > 1 && !w->a8); /* as the kernel decides: MRL-22 */
  bool bytes = w->scale == NB_MARLIN_S0E5M3 || (w->scale == NB_MARLIN_E8M0 && !w->a8);
  for (int p = 0; p < BLOCK; p++) j->scale_column[p] = column[bytes ? p / 4 * 4 + quarter[p % 4] : p];
}

static bool init_workspaces(workspace *ws, int threads) {
  bool ok = true;
  for (int t = 0; t < threads; t++) {
    ws[t].w = nb_alloc(3 * NB_TILE_K * NB_TILE_N, sizeof *ws[t].w);
    ws[t].scales = ws[t].w + NB_TILE_K * NB_TILE_N;
    ws[t].zeros = ws[t].scales + NB_TILE_K * NB_TILE_N;
    ok = ok && ws[t].w;
  }
  return ok;
}

int nb_marlin_gemm(nb_tensor *y, const nb_tensor *x, const nb_marlin_weight *w, const nb_tensor *row_scale) {
  NB_TRY(check(y, x, w, row_scale));
  int64_t m = x->shape[0], n = y->shape[1], k = x->shape[1], ld;
  if (m == 0 || n == 0) return NB_OK;
  job j;
  init_job(&j, w);
  const float *from;
  float *made;
  NB_TRY(gather(&from, &made, &ld, x, w));
  if (made && !empty(w->perm)) k = w->k;
  if (k == 0) memset(y->data, 0, (size_t)nb_tensor_bytes(y));
  int64_t down = NB_CEIL(m, TILE_M), tasks = down * NB_CEIL(n, NB_TILE_N);
  int threads = (int)NB_MIN(nb_threads(), tasks), stopped = 0;
  workspace *ws = nb_alloc(threads, sizeof *ws);
  bool ready = ws && init_workspaces(ws, threads);
  nb_sgemm_fn *sgemm = nb_sgemm_here();
  nb_marlin_decode_fn *decode_fn = nb_cpu() & NB_CPU_AVX2 ? nb_marlin_decode_avx2 : nb_marlin_decode;
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (tasks > 1 && ready)
  for (int64_t task = 0; task < tasks; task++) {
    if (!ready || nb_stop_requested()) {
#pragma omp atomic write
      stopped = 1;
      continue;
    }
    workspace *mine = ws + omp_get_thread_num();
    int64_t m0 = task % down * TILE_M, n0 = task / down * NB_TILE_N;
    int64_t mb = NB_MIN(TILE_M, m - m0), nb = NB_MIN(NB_TILE_N, n - n0), tk = j.tile.k;
    int64_t cols = NB_CEIL(nb, BLOCK) * BLOCK;
    float *tile = (float *)y->data + m0 * n + n0;
    for (int64_t k0 = 0; k0 < k; k0 += NB_TILE_K) {
      int64_t kb = NB_MIN(NB_TILE_K, k - k0);
      load_block(mine, &j, decode_fn, k0, NB_CEIL(kb, tk) * tk, n0, cols);
      sgemm(false, mb, nb, kb, 1.0f, from + m0 * ld + k0, ld, mine->w, NB_TILE_N, k0 ? 1.0f : 0.0f, tile, n);
    }
    finish(tile, n, mb, nb, n0, &j, row_scale ? (const float *)row_scale->data + m0 : NULL);
  }
  for (int t = 0; ws && t < threads; t++) free(ws[t].w);
  free(ws);
  free(made);
  if (!ready) return NB_ENOMEM;
  return stopped ? nb_fail_stopped() : NB_OK;
}

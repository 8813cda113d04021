/* gemm.c - y = x W^T + bias in float32: the reference that every quantized kernel
 * is tested against.
 *
 *            n tile            One task is one tile of y: TILE_M rows by NB_TILE_N
 *          +--------+          columns, over all of k in blocks of NB_TILE_K. Tiles
 *   x  ->  | y tile |          and blocks are fixed, and each is one product on one
 *          +--------+          thread, so y does not depend on how many threads ran.
 */
#include "sgemm.h"

#include <omp.h>

enum { TILE_M = 512 };

int64_t nb_gemm_scratch(const nb_tensor *w) {
  return w->dtype == NB_F32 ? 0 : (int64_t)NB_TILE_N * NB_MIN(NB_TILE_K, w->shape[1]);
}

void nb_gemm_tile(nb_sgemm_fn *sgemm, const nb_vector *v, float *y, int64_t ldy, const float *x, int64_t ldx,
                  int64_t m, const nb_tensor *w, int64_t n0, int64_t n, float *scratch) {
  int64_t k = w->shape[1];
  if (w->dtype == NB_F32) {
    sgemm(true, m, n, k, 1.0f, x, ldx, (const float *)w->data + n0 * k, k, 0.0f, y, ldy);
    return;
  }
  for (int64_t k0 = 0; k0 < k; k0 += NB_TILE_K) {
    int64_t kb = NB_MIN(NB_TILE_K, k - k0);
    for (int64_t r = 0; r < n; r++) nb_widen(v, scratch + r * kb, w, (n0 + r) * k + k0, kb);
    sgemm(true, m, n, kb, 1.0f, x + k0, ldx, scratch, kb, k0 ? 1.0f : 0.0f, y, ldy);
  }
}

static void add_bias(float *y, int64_t ldy, int64_t m, const float *bias, int64_t n) {
  for (int64_t i = 0; i < m; i++)
    for (int64_t j = 0; j < n; j++) y[i * ldy + j] += bias[j];
}

static int check(const nb_tensor *y, const nb_tensor *x, const nb_tensor *w, const nb_tensor *bias) {
  NB_TRY(nb_expect(x, "gemm: x", NB_F32, 2, NB_SHAPE(-1, -1)));
  NB_TRY(nb_expect(w, "gemm: w", -1, 2, NB_SHAPE(-1, x->shape[1])));
  NB_TRY(nb_expect_float(w, "gemm: w"));
  NB_TRY(nb_expect(y, "gemm: y", NB_F32, 2, NB_SHAPE(x->shape[0], w->shape[0])));
  if (bias) NB_TRY(nb_expect(bias, "gemm: bias", NB_F32, 1, NB_SHAPE(w->shape[0])));
  if (x->shape[1] > INT32_MAX || w->shape[0] > INT32_MAX)
    return nb_fail(NB_EUNSUPPORTED, "gemm: %lld columns are more than 2^31-1",
                   (long long)NB_MAX(x->shape[1], w->shape[0]));
  return NB_OK;
}

int nb_gemm(nb_tensor *y, const nb_tensor *x, const nb_tensor *w, const nb_tensor *bias) {
  NB_TRY(check(y, x, w, bias));
  int64_t m = x->shape[0], n = w->shape[0], k = x->shape[1], per_thread = nb_gemm_scratch(w);
  int64_t down = NB_CEIL(m, TILE_M), tasks = down * NB_CEIL(n, NB_TILE_N);
  if (k == 0) {
    memset(y->data, 0, (size_t)nb_tensor_bytes(y));
    if (bias) add_bias(y->data, n, m, bias->data, n);
    return NB_OK;
  }
  int threads = (int)NB_MIN(nb_threads(), NB_MAX(tasks, 1)), stopped = 0;
  float *scratch = per_thread ? nb_alloc(threads * per_thread, sizeof *scratch) : NULL;
  if (per_thread && !scratch) return NB_ENOMEM;
  nb_sgemm_fn *sgemm = nb_sgemm_here();
  const nb_vector *v = nb_vector_here();
  /* Tasks of one n tile follow each other: they share its weights in the cache. */
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (tasks > 1)
  for (int64_t task = 0; task < tasks; task++) {
    if (nb_stop_requested()) {
#pragma omp atomic write
      stopped = 1;
      continue;
    }
    int64_t m0 = task % down * TILE_M, n0 = task / down * NB_TILE_N;
    int64_t mb = NB_MIN(TILE_M, m - m0), nb = NB_MIN(NB_TILE_N, n - n0);
    float *tile = (float *)y->data + m0 * n + n0;
    nb_gemm_tile(sgemm, v, tile, n, (const float *)x->data + m0 * k, k, mb, w, n0, nb,
                 scratch ? scratch + omp_get_thread_num() * per_thread : NULL);
    if (bias) add_bias(tile, n, mb, (const float *)bias->data + n0, nb);
  }
  free(scratch);
  return stopped ? nb_fail_stopped() : NB_OK;
}

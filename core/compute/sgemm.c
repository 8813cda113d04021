/* sgemm.c - finds OpenBLAS at run time; a plain product where there is none.
 *
 * Opened at first use, not linked: its start-up costs milliseconds and a pool of
 * threads that nothing here wants. */
#include "sgemm.h"

#include <dlfcn.h>
#include <pthread.h>

enum { ROW_MAJOR = 101, NO_TRANS = 111, TRANS = 112 };

typedef void cblas_sgemm_fn(int order, int ta, int tb, int m, int n, int k, float alpha, const float *a,
                            int lda, const float *b, int ldb, float beta, float *c, int ldc);

static cblas_sgemm_fn *cblas_sgemm;
static const char *blas_note = "not tried yet";
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void open_blas(void) {
  /* One thread from the start, so that no pool is made; children don't see it. */
  bool ours = !getenv("OPENBLAS_NUM_THREADS");
  if (ours) setenv("OPENBLAS_NUM_THREADS", "1", 1);
  void *lib = dlopen("libopenblas.so.0", RTLD_NOW | RTLD_LOCAL);
  if (!lib) lib = dlopen("libopenblas.so", RTLD_NOW | RTLD_LOCAL);
  if (ours) unsetenv("OPENBLAS_NUM_THREADS");
  if (!lib) {
    blas_note = "not found: libopenblas.so.0 (Debian: libopenblas0-pthread); plain loops instead";
    return;
  }
  void (*set_threads)(int);
  char *(*config)(void);
  *(void **)&set_threads = dlsym(lib, "openblas_set_num_threads");
  *(void **)&config = dlsym(lib, "openblas_get_config");
  *(void **)&cblas_sgemm = dlsym(lib, "cblas_sgemm");
  if (set_threads) set_threads(1);
  blas_note = config ? config() : "OpenBLAS";
}

const char *nb_blas_name(void) {
  pthread_once(&once, open_blas);
  return blas_note;
}

static void blas(bool b_is_nk, int64_t m, int64_t n, int64_t k, float alpha, const float *a, int64_t lda,
                 const float *b, int64_t ldb, float beta, float *c, int64_t ldc) {
  cblas_sgemm(ROW_MAJOR, NO_TRANS, b_is_nk ? TRANS : NO_TRANS, (int)m, (int)n, (int)k, alpha, a, (int)lda, b,
              (int)ldb, beta, c, (int)ldc);
}

/* ---- the plain product ----------------------------------------------------- */

typedef float v4f __attribute__((vector_size(16)));
enum { LANES = 4 };

static inline v4f load4(const float *p) {
  v4f v;
  memcpy(&v, p, sizeof v);
  return v;
}

/* Dot products of rows a0, a1 with rows b0..b3: enough of them at once to keep the adders busy. */
static void dots_2x4(float out[2][4], const float *const a[2], const float *const b[4], int64_t k) {
  v4f acc[2][4] = {{{0}}};
  int64_t i = 0;
  for (; i + LANES <= k; i += LANES)
    for (int r = 0; r < 2; r++) {
      v4f x = load4(a[r] + i);
      for (int c = 0; c < 4; c++) acc[r][c] += x * load4(b[c] + i);
    }
  for (int r = 0; r < 2; r++)
    for (int c = 0; c < 4; c++) {
      v4f s = acc[r][c];
      float sum = (s[0] + s[2]) + (s[1] + s[3]);
      for (int64_t t = i; t < k; t++) sum += a[r][t] * b[c][t];
      out[r][c] = sum;
    }
}

static void plain_nk(int64_t m, int64_t n, int64_t k, float alpha, const float *a, int64_t lda,
                     const float *b, int64_t ldb, float beta, float *c, int64_t ldc) {
  for (int64_t j = 0; j < n; j += 4)
    for (int64_t i = 0; i < m; i += 2) {
      float out[2][4];
      const float *rows[2], *cols[4]; /* past the edge: the last one again, not stored */
      for (int r = 0; r < 2; r++) rows[r] = a + NB_MIN(i + r, m - 1) * lda;
      for (int s = 0; s < 4; s++) cols[s] = b + NB_MIN(j + s, n - 1) * ldb;
      dots_2x4(out, rows, cols, k);
      for (int64_t r = i; r < NB_MIN(i + 2, m); r++)
        for (int64_t s = j; s < NB_MIN(j + 4, n); s++) {
          float *y = c + r * ldc + s, value = alpha * out[r - i][s - j];
          *y = beta == 0.0f ? value : *y + value;
        }
    }
}

static void plain_kn(int64_t m, int64_t n, int64_t k, float alpha, const float *a, int64_t lda,
                     const float *b, int64_t ldb, float beta, float *c, int64_t ldc) {
  for (int64_t i = 0; i < m; i++) {
    float *y = c + i * ldc;
    if (beta == 0.0f) memset(y, 0, (size_t)n * sizeof *y);
    for (int64_t t = 0; t < k; t++) {
      float x = alpha * a[i * lda + t];
      const float *row = b + t * ldb;
#pragma omp simd
      for (int64_t j = 0; j < n; j++) y[j] += x * row[j];
    }
  }
}

static void plain(bool b_is_nk, int64_t m, int64_t n, int64_t k, float alpha, const float *a, int64_t lda,
                  const float *b, int64_t ldb, float beta, float *c, int64_t ldc) {
  (b_is_nk ? plain_nk : plain_kn)(m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

nb_sgemm_fn *nb_sgemm_here(void) {
  if (!(nb_cpu() & NB_CPU_AVX2)) return plain;
  pthread_once(&once, open_blas);
  return cblas_sgemm ? blas : plain;
}

/* sgemm.h - one float32 matrix product on one thread: the tile under gemm,
 * attention and logits. */
#ifndef NB_SGEMM_H
#define NB_SGEMM_H

#include "vector.h"

/* c[m,n] = alpha * a[m,k] b + beta * c, row-major with leading dimensions lda, ldb, ldc;
 * b is [n,k] and meant transposed when b_is_nk, else [k,n]. beta is 0 or 1. */
typedef void nb_sgemm_fn(bool b_is_nk, int64_t m, int64_t n, int64_t k, float alpha, const float *a,
                         int64_t lda, const float *b, int64_t ldb, float beta, float *c, int64_t ldc);

/* OpenBLAS, opened at first use and kept to one thread; a plain loop where it is
 * missing or nb_cpu_limit took AVX2 away. Call it outside parallel regions. */
nb_sgemm_fn *nb_sgemm_here(void);

/* ---- a tile of x W^T (gemm.c) --------------------------------------------- */

enum { NB_TILE_N = 256, NB_TILE_K = 1024 };

/* Floats of scratch that one thread needs for tiles of w; 0 when w is float32. */
int64_t nb_gemm_scratch(const nb_tensor *w);

/* y[m,n] = x[m,k] times rows n0..n0+n of w, transposed; n <= NB_TILE_N. Narrower
 * weights are widened, block by block of k, into scratch. */
void nb_gemm_tile(nb_sgemm_fn *sgemm, const nb_vector *v, float *y, int64_t ldy, const float *x, int64_t ldx,
                  int64_t m, const nb_tensor *w, int64_t n0, int64_t n, float *scratch);

#endif

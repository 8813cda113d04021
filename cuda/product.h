/* product.h - what products with Marlin's weights share: product.c, product_experts.c, product_a8.c. */
#ifndef NB_CUDA_PRODUCT_H
#define NB_CUDA_PRODUCT_H
#include "device.h"

/* The operands, checked, as the kernels take them. group: rows of a group, or 0 where groups don't divide k. */
typedef struct nb_cuda_marlin_gemm {
  nb_cuda_device *d;
  const nb_marlin_weight *w;
  int dtype, k, n, groups, group;
  const void *words, *scales, *zeros, *bias, *perm, *g_idx;
  const float *row_scale;       /* or NULL */
  int32_t *irregular, *arrived; /* of the stream's workspace, and behind them */
  void *parts;
} nb_cuda_marlin_gemm;

/* Where an operand of theirs lies, which must be of this dtype (-1: words, -2: any) and shape. */
int nb_cuda_marlin_gemm_place(const void **at, nb_cuda_marlin_gemm *p, const nb_tensor *t, const char *name,
                              int dtype, int ndim, const int64_t *shape);
/* How many columns y has, or is to have: an even number up to n. */
int nb_cuda_marlin_gemm_outputs(int64_t *outputs, const nb_tensor *y, int n, const char *what);
/* Blocks of 16 rows that a block of threads takes where there are so many rows. */
static inline int nb_cuda_marlin_gemm_blocks(int64_t rows) { return rows <= 16 ? 1 : rows <= 32 ? 2 : 4; }
/* out [m,k] of from [m,columns], of numbers of 2 bytes, in the order of p's weight's rows; columns that there are not are 0.
 * irregular: where it is noted that p's order is not by groups, or NULL. */
int nb_cuda_marlin_gemm_gather(void *out, const nb_cuda_marlin_gemm *p, const void *from, int64_t m,
                               int columns, int k, int32_t *irregular);
/* out [m,k] of x [m,columns], of 1 or 2 bytes (then columns are even), with columns of 0 up to k. */
int nb_cuda_marlin_gemm_widen(nb_tensor *out, const nb_cuda_marlin_gemm *p, const nb_tensor *x);

/* nb_device_marlin_gemm's checks of its operands, y apart. */
int nb_cuda_marlin_gemm_check(nb_cuda_marlin_gemm *p, const nb_tensor *x, const nb_marlin_weight *w,
                              const nb_tensor *row_scale);
/* Whether product_loop.cuh's kernels take groups of so many rows, under such scales. */
bool nb_cuda_marlin_gemm_whole(const nb_cuda_marlin_gemm *p);
/* What their names have of the weight's format; bytes of a stage of theirs; what their sums are multiplied by. */
const char *nb_cuda_marlin_gemm_format(const nb_marlin_weight *w);
int nb_cuda_marlin_gemm_stage(const nb_cuda_marlin_gemm *p, int blocks);
float nb_cuda_marlin_gemm_factor(const nb_cuda_marlin_gemm *p);
/* The current stream's workspace: whether a weight's order is irregular; the counts of blocks that arrived, all 0
 * between launches; their parts. */
int nb_cuda_marlin_gemm_workspace(nb_cuda_marlin_gemm *p);
/* Of a weight in the order for 8-bit activations (product_a8.c): checks, y's dtype being p's afterwards, and the like;
 * nb_device_marlin_gemm. */
int nb_cuda_product_a8_check(nb_cuda_marlin_gemm *p, const nb_tensor *y, const nb_tensor *x,
                             const nb_marlin_weight *w, const nb_tensor *row_scale);
const char *nb_cuda_product_a8_format(const nb_marlin_weight *w);
int nb_cuda_product_a8_stage(const nb_cuda_marlin_gemm *p, int blocks);
float nb_cuda_product_a8_factor(const nb_cuda_marlin_gemm *p);
int nb_cuda_product_a8(nb_tensor *y, const nb_tensor *x, const nb_marlin_weight *w,
                       const nb_tensor *row_scale);
#endif

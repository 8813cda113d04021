/* blas.h - cuBLASLt as cuda/ uses it: a table of its functions, filled at run time like the driver's (driver.h). */
#ifndef NB_CUDA_BLAS_H
#define NB_CUDA_BLAS_H

#include "device.h"

/* How a product is done, as the library chose it: its cublasLtMatmulAlgo_t and cublasLtMatmulHeuristicResult_t. */
typedef struct nb_lt_way {
  uint64_t data[8];
} nb_lt_way;
typedef struct nb_lt_choice {
  nb_lt_way way;
  size_t workspace; /* bytes */
  int state;
  float waves;
  int reserved[4];
} nb_lt_choice;

/* Every function taken from the library: name and parameters. All give a cublasStatus_t, 0 where all is well. */
#define NB_LT_FUNCTIONS(X) \
  X(cublasLtCreate, (void **handle)) \
  X(cublasLtMatmulDescCreate, (void **what, int compute, int scale)) \
  X(cublasLtMatmulDescDestroy, (void *what)) \
  X(cublasLtMatmulDescSetAttribute, (void *what, int attribute, const void *value, size_t bytes)) \
  X(cublasLtMatrixLayoutCreate, (void **layout, int type, uint64_t rows, uint64_t columns, int64_t pitch)) \
  X(cublasLtMatrixLayoutDestroy, (void *layout)) \
  X(cublasLtMatmulPreferenceCreate, (void **preference)) \
  X(cublasLtMatmulPreferenceDestroy, (void *preference)) \
  X(cublasLtMatmulPreferenceSetAttribute, \
    (void *preference, int attribute, const void *value, size_t bytes)) \
  X(cublasLtMatmulAlgoGetHeuristic, (void *handle, void *what, void *a, void *b, void *c, void *d, \
                                     void *preference, int wanted, nb_lt_choice *choices, int *found)) \
  X(cublasLtMatmul, \
    (void *handle, void *what, const void *alpha, const void *a, void *a_layout, const void *b, \
     void *b_layout, const void *beta, const void *c, void *c_layout, void *d, void *d_layout, \
     const nb_lt_way *way, void *workspace, size_t workspace_bytes, void *stream))

/* What nibble asks of them, as the library numbers it. */
enum { LT_F32 = 0, LT_F16 = 2, LT_BF16 = 14, LT_E4M3 = 28, LT_E2M1 = 33 }; /* cudaDataType */
enum { LT_COMPUTE_F32 = 68, LT_TRANSPOSED = 1 }; /* cublasComputeType_t, cublasOperation_t */
/* Of a matmul. Scales of A and B; their modes exist from 12.8 on. */
enum {
  LT_OP_A = 3,
  LT_EPILOGUE = 7,
  LT_BIAS = 8,
  LT_SCALE_A = 17,
  LT_SCALE_B = 18,
  LT_MODE_A = 31,
  LT_MODE_B = 32
};
/* cublasLtMatmulMatrixScale_t: what an f32 scale, or one of e4m3 (OF_16), serves: the tensor; 16 side by side, in the
 * swizzled order of blocks; a row; 128 of a row; 128 x 128. */
enum { LT_OF_ALL = 0, LT_OF_16 = 1, LT_OF_ROW = 3, LT_OF_128 = 4, LT_OF_128X128 = 5 };
enum { LT_EPILOGUE_BIAS = 4 };                      /* cublasLtEpilogue_t */
enum { LT_MOST_WORKSPACE = 1, LT_ALIGNMENT_A = 5 }; /* of a preference; B, C, D: 6, 7, 8 */
enum {
  LT_INVALID_VALUE = 7,
  LT_ARCH_MISMATCH = 8,
  LT_EXECUTION_FAILED = 13,
  LT_NOT_SUPPORTED = 15
}; /* cublasStatus_t */

/* y[m, n] = factor x[m, k] w + bias[n]; w is [n, k] transposed, or where it lies `across` [k, n]. Elements from row to
 * row; dtypes of x and w, y and bias. Of f8_e4m3, and of e2m1 two to a byte, which is u8 here, with their scales. */
typedef struct nb_cuda_product {
  int64_t m, n, k, x_pitch, w_pitch, y_pitch;
  int32_t in, out, across;
  float factor;
  const void *x, *w, *bias; /* bias: NULL without one */
  const void *x_scales, *w_scales;
  int32_t x_mode, w_mode; /* LT_OF_… */
  void *y;
} nb_cuda_product;

/* Whether the library multiplies small floats so on device d, by its version and the device (blas.c); a sentence where it
 * doesn't, or isn't there. */
int nb_cuda_gemm_scaled(nb_cuda_device *d, int in, int mode);

/* Begins it on the current stream; m, n and k above 0. What failed is told as nb_device_gemm does. */
int nb_cuda_gemm(nb_cuda_device *d, const nb_cuda_product *p);

/* y [m,n'] = x [m,k'] times the weight + bias, as nb_device_marlin_gemm, whose checks of x and y are done; m, n' and k'
 * above 0 (product_large.c). NB_EUNSUPPORTED or NB_ENOMEM where cuBLASLt can't, or has no room: y may be begun. */
int nb_cuda_marlin_large(const nb_tensor *y, const nb_tensor *x, const nb_marlin_weight *w);

#endif

/* w4a8.h - the kernels of the product of int8 activations with 4-bit weights, one table
 * per instruction set. Integer sums are exact and the float operations of one output run
 * in one order, so every instruction set gives the same bits. */
#ifndef NB_COMPUTE_W4A8_H
#define NB_COMPUTE_W4A8_H

#include "layout/w4a8.h"

/* Rows of activations: q [m, groups*padded] (zeros in the padding), sums [m, groups] of them,
 * scales [m]. */
typedef struct nb_w4a8_rows {
  int8_t *q;
  int32_t *sums;
  float *scales;
} nb_w4a8_rows;

typedef struct nb_w4a8_kernels {
  /* One row x [k] into row `row` of r. A value that isn't finite makes the scale NaN. */
  void (*quantize)(const nb_w4a8_rows *r, int64_t row, const float *x, const nb_w4a8_form *f);
  /* y [m, ldy] = the 16 outputs (n of them kept) of one strip. */
  void (*strip)(float *y, int64_t ldy, int64_t n, const nb_w4a8_rows *r, int64_t m, const uint8_t *strip,
                const nb_w4a8_form *f);
} nb_w4a8_kernels;

extern const nb_w4a8_kernels nb_w4a8_portable, nb_w4a8_avx2;

#endif

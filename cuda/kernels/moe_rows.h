/* moe_rows.h - what who launches the kernels of moe_act.cu and moe_rows.cu must know: for C and C++. */
#ifndef NB_MOE_ROWS_H
#define NB_MOE_ROWS_H
#include <stdint.h>

#include "forward.h"

/* The activations, as nibble.h numbers them (NB_MOE_*). */
enum {
  NB_KERNEL_SILU,
  NB_KERNEL_GELU,
  NB_KERNEL_GELU_TANH,
  NB_KERNEL_SWIGLUOAI,
  NB_KERNEL_SWIGLUOAI_UNINTERLEAVE,
  NB_KERNEL_SWIGLUSTEP,
  NB_KERNEL_SILU_NO_MUL,
  NB_KERNEL_GELU_NO_MUL,
  NB_KERNEL_GELU_TANH_NO_MUL,
  NB_KERNEL_RELU2_NO_MUL
};

/* An activation: rows of n results by eights, a block's threads side by side (grid: rows, pieces of a row). stride: of
 * gates and ups from row to row; up: where a row's ups begin, of the gates' tensor (without one of their own).
 * whole: all eights may be taken at once. */
typedef struct nb_moe_act_rows {
  int64_t n, stride, up;
  int kind, dtype, rounding, whole;
  float limit, alpha, beta;
} nb_moe_act_rows;

/* Sums: of each token the pairs t*top .. t*top + top-1, columns by eights. placed: keys are rows of x; else experts,
 * through a map of so many entries or, without one, themselves. Keys outside 0 .. keys-1 are left out. */
typedef struct nb_moe_sums {
  int64_t columns;
  int top, keys, entries, placed;
  int dtype, rounding, out_dtype, whole;
} nb_moe_sums;

/* Bytes of shared memory of a sum: of each pair its key, its row and its weight, and an end. */
static inline int nb_moe_sum_shared(int top) { return (3 * top + 1) * 4; }

#endif

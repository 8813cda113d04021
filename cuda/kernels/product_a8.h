/* product_a8.h - what who launches the kernels of product_a8.cuh must know besides product.h: for C and C++. */
#ifndef NB_PRODUCT_A8_H
#define NB_PRODUCT_A8_H
#include "product.h"

/* Bytes of x in a stage: one a number, and at least what warps that share k exchange at the end (product_finish.cuh). */
NB_PRODUCT_KNOWN int nb_product_a8_x_bytes(int blocks) {
  return 16 * blocks * nb_product_k(blocks) * (blocks == 2 ? 2 : 1);
}
/* Bytes of a stage; scale_bytes: of a scale. */
static inline int nb_product_a8_stage_bytes(int blocks, int bits, int group_rows, int scale_bytes,
                                            int zeros) {
  return nb_product_a8_x_bytes(blocks) + nb_product_word_bytes(blocks, bits) +
         group_rows * NB_PRODUCT_COLUMNS * (scale_bytes * 8 + (zeros ? bits : 0)) / 8;
}
#endif

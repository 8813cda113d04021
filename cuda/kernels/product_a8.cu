/* product_a8.cu - the product's kernels for x of one byte a number (product_a8.cuh). */
#include "product_a8.cuh"

NB_PRODUCTS_A8(NB_PRODUCT_A8, f16)
NB_PRODUCTS_A8(NB_PRODUCT_A8, bf16)

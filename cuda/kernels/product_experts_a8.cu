/* product_experts_a8.cu - the product's kernels for experts and x of one byte a number (product_a8.cuh). */
#include "product_a8.cuh"

NB_PRODUCTS_A8(NB_PRODUCT_A8_EXPERTS, f16)
NB_PRODUCTS_A8(NB_PRODUCT_A8_EXPERTS, bf16)

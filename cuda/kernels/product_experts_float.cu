/* product_experts_float.cu - the product's kernels (product_loop.cuh) for experts' 8- and 4-bit floats. */
#include "product_loop.cuh"

NB_PRODUCTS_OF_FLOATS(NB_PRODUCT_EXPERTS, f16)
NB_PRODUCTS_OF_FLOATS(NB_PRODUCT_EXPERTS, bf16)

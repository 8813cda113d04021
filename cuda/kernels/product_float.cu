/* product_float.cu - the product's kernels (product_loop.cuh) for 8- and 4-bit floats. */
#include "product_loop.cuh"

NB_PRODUCTS_OF_FLOATS(NB_PRODUCT, f16)
NB_PRODUCTS_OF_FLOATS(NB_PRODUCT, bf16)

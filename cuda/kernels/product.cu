/* product.cu - the product's kernels (product_loop.cuh) for integers of 4 and 8 bits. */
#include "product_loop.cuh"

NB_PRODUCTS_OF_INTEGERS(NB_PRODUCT, f16)
NB_PRODUCTS_OF_INTEGERS(NB_PRODUCT, bf16)

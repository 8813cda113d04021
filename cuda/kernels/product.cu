/* product.cu - the product's kernels (product_loop.cuh) for integers of 4 and 8 bits under 16-bit scales. */
#include "product_loop.cuh"

namespace product {
typedef codes<f16, 4> f16_w4;
typedef codes<f16, 8> f16_w8;
typedef codes<bf16, 4> bf16_w4;
typedef codes<bf16, 8> bf16_w8;
} // namespace product

NB_PRODUCTS(f16_w4, product::f16_w4, product::plain_scales<product::f16>)
NB_PRODUCTS(f16_w8, product::f16_w8, product::plain_scales<product::f16>)
NB_PRODUCTS(bf16_w4, product::bf16_w4, product::plain_scales<product::bf16>)
NB_PRODUCTS(bf16_w8, product::bf16_w8, product::plain_scales<product::bf16>)

/* product_float.cu - the product's kernels (product_loop.cuh) for 8- and 4-bit floats: FP8 under 16-bit scales, MXFP8 and
 * MXFP4 under E8M0 ones (groups of 32, 64 or a multiple of 128 rows, more than one), NVFP4 (groups of 16, likewise). */
#include "product_floats.cuh"
#include "product_loop.cuh"

#define NB_PRODUCT_FLOATS(NUMBER) \
  NB_PRODUCTS(NUMBER##_fp8, product::e4m3<product::NUMBER>, product::fp8_scales<product::NUMBER>) \
  NB_PRODUCTS(NUMBER##_mxfp8, product::e4m3<product::NUMBER>, product::e8m0_scales) \
  NB_PRODUCTS(NUMBER##_mxfp4, product::e2m1<product::NUMBER>, product::e8m0_scales) \
  NB_PRODUCTS(NUMBER##_nvfp4, product::e2m1<product::NUMBER>, product::nvfp4_scales<product::NUMBER>)

NB_PRODUCT_FLOATS(f16)
NB_PRODUCT_FLOATS(bf16)

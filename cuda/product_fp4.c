/* product_fp4.c - products of 4-bit floats on a device (NVFP4 on both sides): cuBLASLt's, from sm_100 on; and the
 * activations for them, kernels/quantize_fp4.cu (SYSTEMS CTM-NVFP4-13, CTM-NVFP4-14). */
#include "blas.h"
#include "layout/layout.h"

#include "kernels/quantize.h"

#include <stdio.h>

enum { BLOCKS = 1 << 16 }; /* of a launch at most */

int nb_device_fp4_usable(int device) {
  nb_cuda_device *d;
  NB_TRY(nb_cuda_use(&d, device));
  return nb_cuda_gemm_scaled(d, NB_U8, LT_OF_16);
}

int nb_device_act_quant_fp4(nb_tensor *q, nb_tensor *scales, const nb_tensor *x, float global) {
  nb_cuda_device *d = NULL;
  nb_tensor seen[3];
  NB_TRY(nb_cuda_operand(&seen[0], &d, x, "act_quant fp4"));
  NB_TRY(nb_cuda_operand(&seen[1], &d, q, "act_quant fp4"));
  NB_TRY(nb_cuda_operand(&seen[2], &d, scales, "act_quant fp4"));
  NB_TRY(nb_act_fp4_check(&seen[1], &seen[2], &seen[0], global));
  if (nb_tensor_numel(x) == 0) return NB_OK;
  if (x->shape[0] > INT32_MAX - 128 || x->shape[1] > INT32_MAX)
    return nb_fail(NB_EUNSUPPORTED, "act_quant fp4: %lld rows are more than a launch can count",
                   (long long)x->shape[0]);
  char name[32];
  int m = (int)x->shape[0], groups = (int)(x->shape[1] / 16), wide = (int)scales->shape[1];
  int64_t places = nb_tensor_numel(scales);
  snprintf(name, sizeof name, "nb_quantize_fp4_%s", nb_dtype_name(x->dtype));
  nb_launch at = {{(int32_t)NB_MIN(NB_CEIL(places, (int64_t)NB_QUANTIZE_THREADS), (int64_t)BLOCKS), 1, 1},
                  {NB_QUANTIZE_THREADS, 1, 1},
                  0};
  return nb_device_launch(d->number, name, &at,
                          (void *[]){(void *)&x->data, (void *)&q->data, (void *)&scales->data, &m, &groups,
                                     &wide, &places, &global});
}

static const char what[] = "fp4 gemm";

/* Codes [rows, k/2] and their swizzled scales. */
static int side(nb_cuda_device **d, const nb_tensor *codes, const nb_tensor *scales, int64_t bytes,
                const char *name) {
  nb_tensor seen;
  char text[48];
  snprintf(text, sizeof text, "%s: %s", what, name);
  NB_TRY(nb_cuda_operand(&seen, d, codes, text));
  NB_TRY(nb_expect(&seen, text, NB_U8, 2, NB_SHAPE(-1, bytes)));
  snprintf(text, sizeof text, "%s: scales of %s", what, name);
  NB_TRY(nb_cuda_operand(&seen, d, scales, text));
  return nb_expect(
      &seen, text, NB_F8_E4M3, 2,
      NB_SHAPE(NB_CEIL(codes->shape[0], (int64_t)128) * 128, NB_CEIL(codes->shape[1] / 8, (int64_t)4) * 4));
}

int nb_device_fp4_gemm(nb_tensor *y, const nb_tensor *x, const nb_tensor *x_scales, const nb_tensor *w,
                       const nb_tensor *w_scales, double factor, const nb_tensor *bias) {
  nb_cuda_device *d = NULL;
  nb_tensor seen;
  NB_TRY(side(&d, x, x_scales, -1, "x"));
  NB_TRY(side(&d, w, w_scales, x->shape[1], "w"));
  const int64_t m = x->shape[0], n = w->shape[0], k = x->shape[1] * 2;
  NB_TRY(nb_cuda_operand(&seen, &d, y, "fp4 gemm: y"));
  if (!nb_cuda_is_plain(y->dtype))
    return nb_fail(NB_EINVAL, "%s: y: expected f32, bf16 or f16, found %s", what, nb_dtype_name(y->dtype));
  NB_TRY(nb_expect(&seen, "fp4 gemm: y", y->dtype, 2, NB_SHAPE(m, n)));
  if (bias) NB_TRY(nb_cuda_operand(&seen, &d, bias, "fp4 gemm: bias"));
  if (bias) NB_TRY(nb_expect(&seen, "fp4 gemm: bias", y->dtype, 1, NB_SHAPE(n)));
  const int64_t columns = 16 / (nb_dtype_bits(y->dtype) / 8);
  if (k % 32 || n % columns || (bias && y->dtype == NB_F32))
    return nb_fail(NB_EUNSUPPORTED,
                   "%s: K = %lld and N = %lld of %s%s: cuBLASLt takes K in multiples of 32, N of %lld, and "
                   "no bias of f32",
                   what, (long long)k, (long long)n, nb_dtype_name(y->dtype), bias ? " with bias" : "",
                   (long long)columns);
  if (k == 0) return nb_fail(NB_EUNSUPPORTED, "%s: K is 0", what);
  NB_TRY(nb_cuda_gemm_scaled(d, NB_U8, LT_OF_16));
  if (m == 0 || n == 0) return NB_OK;
  nb_cuda_product p = {.m = m,
                       .n = n,
                       .k = k,
                       .x_pitch = k,
                       .w_pitch = k,
                       .y_pitch = n,
                       .in = NB_U8,
                       .out = y->dtype,
                       .factor = (float)factor,
                       .x = x->data,
                       .w = w->data,
                       .bias = bias ? bias->data : NULL,
                       .x_scales = x_scales->data,
                       .w_scales = w_scales->data,
                       .x_mode = LT_OF_16,
                       .w_mode = LT_OF_16,
                       .y = y->data};
  return nb_cuda_gemm(d, &p);
}

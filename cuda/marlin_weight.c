/* marlin_weight.c - which of Marlin's weights kernels on a device take, and how they know them. */
#include "device.h"
#include "kernels/dequantize.h"
#include "kernels/product.h"

enum { TILE_K = 16, TILE_N = 64 };

int nb_cuda_marlin_sizes(const nb_marlin_weight *w, int tile_k, const char *what) {
  if (w->k % tile_k || w->k <= 0)
    return nb_fail(NB_EINVAL, "%s: K = %lld is not a multiple of %d", what, (long long)w->k, tile_k);
  if (w->n % TILE_N || w->n <= 0)
    return nb_fail(NB_EINVAL, "%s: N = %lld is not a multiple of %d", what, (long long)w->n, TILE_N);
  /* Kernels count 16-byte pieces of words in 32 bits, and tiles of 128 columns, of two blocks of rows. */
  if (w->k > INT32_MAX || w->n > (int64_t)NB_PRODUCT_MOST_TILES / 2 * NB_PRODUCT_COLUMNS ||
      w->k / 16 * (w->n * w->bits / 8) > INT32_MAX / 2)
    return nb_fail(NB_EUNSUPPORTED, "%s: a weight of K = %lld and N = %lld is more than a launch can count",
                   what, (long long)w->k, (long long)w->n);
  return NB_OK;
}

int nb_cuda_marlin_kind(const nb_marlin_weight *w, const char *what) {
  bool floats = w->code == NB_MARLIN_E4M3 || w->code == NB_MARLIN_E2M1,
       known = w->code == NB_MARLIN_INT    ? w->scale == NB_MARLIN_FLOAT
               : w->code == NB_MARLIN_E4M3 ? w->scale == NB_MARLIN_FLOAT || w->scale == NB_MARLIN_E8M0
               : w->code == NB_MARLIN_E2M1 ? w->scale == NB_MARLIN_S0E5M3 || w->scale == NB_MARLIN_E8M0
                                           : false;
  if (w->a8 || !known)
    return nb_fail(
        NB_EUNSUPPORTED,
        "%s: on a device weights are integers or FP8 under float scales, MXFP8, MXFP4 or NVFP4, in "
        "the order for 16-bit activations; others are multiplied in the computer's memory only",
        what);
  if (w->bits != 4 && w->bits != 8)
    return nb_fail(NB_EINVAL, "%s: bits must be 4 or 8, found %d", what, w->bits);
  if (floats && (w->code == NB_MARLIN_E4M3) != (w->bits == 8))
    return nb_fail(NB_EINVAL, "%s: codes of kind %d cannot have %d bits", what, w->code, w->bits);
  return nb_cuda_marlin_sizes(w, TILE_K, what);
}

int nb_cuda_marlin_scales(const nb_marlin_weight *w, const char *what) {
  int dtype = w->scales->dtype;
  if (w->scale == NB_MARLIN_FLOAT ? nb_cuda_is_plain(dtype) : nb_dtype_bits(dtype) == 8) return NB_OK;
  return nb_fail(NB_EINVAL, "%s: scales of this weight cannot be %s", what, nb_dtype_name(dtype));
}

int nb_cuda_marlin_codes(const nb_marlin_weight *w) {
  return w->code == NB_MARLIN_INT ? NB_CODES_INT : w->code == NB_MARLIN_E4M3 ? NB_CODES_E4M3 : NB_CODES_E2M1;
}

int nb_cuda_marlin_scale(const nb_marlin_weight *w) {
  return w->scale == NB_MARLIN_E8M0     ? NB_KERNEL_E8M0
         : w->scale == NB_MARLIN_S0E5M3 ? NB_KERNEL_S0E5M3
                                        : nb_cuda_kernel_dtype(w->scales->dtype);
}

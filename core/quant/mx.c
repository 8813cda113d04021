/* mx.c - the shared scales of MX blocks: one power of two per block, from the block's
 * largest magnitude. */
#include "dtype.h"

/* The exponent of the element type's largest value: 6 = 1.5 * 2^2, 448 = 1.75 * 2^8. */
enum { FP4_TOP = 2, FP8_TOP = 8 };

/* compressed-tensors' rule: a magnitude from 1.75 * 2^e up counts as 2^(e+1), for
 * both element types; less the element's own exponent, as an e8m0 byte. */
static uint8_t scale_of(float amax, int top) {
  uint32_t a = nb_f32_bits(amax) & 0x7fffffffu;
  if (a >= 0x7f800000u) return 255;
  int e = (int)((a + 0x00200000u) >> 23) - top;
  return (uint8_t)NB_MAX(e, 0);
}

int nb_mx_scales(nb_tensor *scales, const nb_tensor *amax, int bits) {
  if (bits != 4 && bits != 8)
    return nb_fail(NB_EINVAL, "mx scales: elements of %d bits, expected 4 (f4) or 8 (f8_e4m3)", bits);
  NB_TRY(nb_expect(scales, "mx scales", NB_F8_E8M0, amax->ndim, amax->shape));
  NB_TRY(nb_real_only(amax, "mx scales"));
  enum { BLOCK = 1024 };
  int64_t n = nb_tensor_numel(amax), step = nb_dtype_bits(amax->dtype) / 8;
  if (step == 0)
    return nb_fail(NB_EINVAL, "mx scales: magnitudes as %s, expected whole bytes",
                   nb_dtype_name(amax->dtype));
  for (int64_t at = 0; at < n; at += BLOCK) {
    float a[BLOCK];
    int64_t m = NB_MIN((int64_t)BLOCK, n - at);
    nb_cast_block(a, NB_F32, (const char *)amax->data + at * step, amax->dtype, m);
    for (int64_t i = 0; i < m; i++)
      ((uint8_t *)scales->data)[at + i] = scale_of(a[i], bits == 4 ? FP4_TOP : FP8_TOP);
  }
  return NB_OK;
}

/* act_quant_fp4.c - activations to NVFP4 as the tensor cores take them: two e2m1 codes to a byte, e4m3 scales of 16
 * swizzled (SYSTEMS CTM-NVFP4-13, CTM-NVFP4-14). The numbers are nb_act_fake_quant's. */
#include "dtype.h"
#include "layout.h"

static const char what[] = "act_quant fp4";

int nb_act_fp4_check(const nb_tensor *q, const nb_tensor *scales, const nb_tensor *x, float global) {
  if (x->dtype != NB_F16 && x->dtype != NB_BF16 && x->dtype != NB_F32)
    return nb_fail(NB_EINVAL, "%s: activations must be f16, bf16 or f32, found %s", what,
                   nb_dtype_name(x->dtype));
  NB_TRY(nb_expect(x, what, -1, 2, NB_SHAPE(-1, -1)));
  const int64_t m = x->shape[0], k = x->shape[1];
  if (k % 16) return nb_fail(NB_EINVAL, "%s: K = %lld is not a multiple of 16", what, (long long)k);
  if (!(global > 0 && global < INFINITY))
    return nb_fail(NB_EFORMAT, "%s: the global scale is %g, expected a finite number above 0", what,
                   (double)global);
  NB_TRY(nb_expect(q, what, NB_U8, 2, NB_SHAPE(m, k / 2)));
  return nb_expect(scales, what, NB_F8_E4M3, 2,
                   NB_SHAPE(NB_CEIL(m, (int64_t)128) * 128, NB_CEIL(k / 16, (int64_t)4) * 4));
}

static float load(const nb_tensor *t, int64_t i) {
  switch (t->dtype) {
  case NB_F16: return nb_f16_to_f32(((const uint16_t *)t->data)[i]);
  case NB_BF16: return nb_bf16_to_f32(((const uint16_t *)t->data)[i]);
  default: return ((const float *)t->data)[i];
  }
}

/* The scale of x[from..from + 15] and its code: NaN where one of them isn't finite. */
static float scale_of(uint8_t *code, const nb_tensor *x, int64_t from, float global) {
  uint32_t most = 0;
  for (int64_t i = from; i < from + 16; i++) most = NB_MAX(most, nb_f32_bits(load(x, i)) & 0x7fffffffu);
  *code = 0x7f;
  if (most >= 0x7f800000u) return 0;
  float s = fminf(nb_f32_from_bits(most) / 6 * global, 448);
  *code = nb_f32_to_small(s, nb_small_of(NB_F8_E4M3));
  if (*code == 0) *code = 0x20; /* 0.125, as its peers have it */
  return nb_code_values(NB_F8_E4M3)[*code] / global;
}

int nb_act_quant_fp4(nb_tensor *q, nb_tensor *scales, const nb_tensor *x, float global) {
  NB_TRY(nb_act_fp4_check(q, scales, x, global));
  const int64_t m = x->shape[0], k = x->shape[1], groups = k / 16;
  nb_tensor plain;
  NB_TRY(nb_tensor_new(&plain, NB_F8_E4M3, 2, NB_SHAPE(m, groups)));
  for (int64_t g = 0; g < m * groups; g++) {
    const float s = scale_of((uint8_t *)plain.data + g, x, g * 16, global);
    uint8_t *to = (uint8_t *)q->data + g * 8;
    for (int i = 0; i < 16; i++) {
      const float v = s > 0 ? fmaxf(-6, fminf(load(x, g * 16 + i) / s, 6)) : 0;
      const uint8_t code = nb_f32_to_small(v, nb_small_of(NB_F4));
      to[i / 2] = (uint8_t)(i % 2 ? to[i / 2] | code << 4 : code);
    }
  }
  int rc = nb_swizzle_blockscale(scales, &plain);
  nb_tensor_release(&plain);
  return rc;
}

/* act_quant.c - activations to one byte: int8 a token, fp8 e4m3 by tensor, token or
 * group of 128 (SYSTEMS MRL-45, CTM-FP8-03). Float32 arithmetic, in the order in which the reference kernels
 * compute. */
#include "dtype.h"
#include "layout.h"

static float load(const nb_tensor *t, int64_t i) {
  switch (t->dtype) {
  case NB_F16: return nb_f16_to_f32(((const uint16_t *)t->data)[i]);
  case NB_BF16: return nb_bf16_to_f32(((const uint16_t *)t->data)[i]);
  default: return ((const float *)t->data)[i];
  }
}

static int check_input(const nb_tensor *x, const nb_tensor *q, int dtype, const char *what) {
  if (x->dtype != NB_F16 && x->dtype != NB_BF16 && x->dtype != NB_F32)
    return nb_fail(NB_EINVAL, "%s: activations must be f16, bf16 or f32, found %s", what,
                   nb_dtype_name(x->dtype));
  NB_TRY(nb_expect(x, what, -1, 2, NB_SHAPE(-1, -1)));
  return nb_expect(q, what, dtype, 2, x->shape);
}

static const char what_int8[] = "act_quant int8", what_fp8[] = "act_quant fp8";

int nb_act_int8_check(const nb_tensor *q, const nb_tensor *scales, const nb_tensor *x) {
  NB_TRY(check_input(x, q, NB_I8, what_int8));
  return nb_expect(scales, what_int8, NB_F32, 2, NB_SHAPE(x->shape[0], 1));
}

int nb_act_fp8_check(const nb_tensor *q, const nb_tensor *scales, const nb_tensor *x, int mode) {
  NB_TRY(check_input(x, q, NB_F8_E4M3, what_fp8));
  if (mode == NB_ACT_TOKEN) return nb_expect(scales, what_fp8, NB_F32, 2, NB_SHAPE(x->shape[0], 1));
  if (mode == NB_ACT_GROUP)
    return nb_expect(scales, what_fp8, NB_F32, 2,
                     NB_SHAPE(x->shape[0], NB_CEIL(x->shape[1], (int64_t)NB_ACT_COLUMNS)));
  if (mode != NB_ACT_STATIC && mode != NB_ACT_TENSOR)
    return nb_fail(NB_EINVAL, "%s: unknown mode %d", what_fp8, mode);
  if (scales->dtype == NB_F32 && nb_tensor_numel(scales) == 1) return nb_expect_here(scales, what_fp8);
  return nb_fail(NB_EINVAL, "%s: expected one f32 scale, found %lld of %s", what_fp8,
                 (long long)nb_tensor_numel(scales), nb_dtype_name(scales->dtype));
}

/* NaN where one of them is not finite: then so is the scale that they share, as nb_act_fake_quant has it. */
static float absmax(const nb_tensor *x, int64_t from, int64_t to) {
  uint32_t most = 0;
  for (int64_t i = from; i < to; i++) most = NB_MAX(most, nb_f32_bits(load(x, i)) & 0x7fffffffu);
  return nb_f32_from_bits(most < 0x7f800000u ? most : 0x7fc00000u);
}

/* a, or b where a is smaller; NaN stays. */
static float at_least(float a, float b) { return a < b ? b : a; }

int nb_act_quant_int8(nb_tensor *q, nb_tensor *scales, const nb_tensor *x, float global) {
  NB_TRY(nb_act_int8_check(q, scales, x));
  int64_t m = x->shape[0], k = x->shape[1];
  for (int64_t r = 0; r < m; r++) {
    float max = at_least(absmax(x, r * k, (r + 1) * k), 1e-10f), up = 127.0f / max;
    ((float *)scales->data)[r] = max / 127.0f * global;
    for (int64_t i = r * k; i < (r + 1) * k; i++) {
      float v = fmaxf(-127.0f, fminf(roundf(load(x, i) * up), 127.0f));
      ((int8_t *)q->data)[i] = (int8_t)v;
    }
  }
  return NB_OK;
}

float nb_act_fp8_least(int mode) { return mode == NB_ACT_TOKEN ? 1.0f / (448.0f * 512.0f) : 1e-10f / 448.0f; }

/* The code of scaled = x over its scale; NaN of an x that is, and not where a scale of 0 makes it. */
static uint8_t to_e4m3(float x, float scaled) {
  if (isnan(x)) return 0x7f;
  return nb_f32_to_small(fmaxf(-448.0f, fminf(scaled, 448.0f)), nb_small_of(NB_F8_E4M3));
}

int nb_act_quant_fp8(nb_tensor *q, nb_tensor *scales, const nb_tensor *x, int mode) {
  NB_TRY(nb_act_fp8_check(q, scales, x, mode));
  int64_t m = x->shape[0], k = x->shape[1];
  float *s = scales->data;
  uint8_t *to = q->data;
  if (mode == NB_ACT_TOKEN || mode == NB_ACT_GROUP) {
    const int64_t columns = mode == NB_ACT_TOKEN ? k : NB_ACT_COLUMNS, groups = scales->shape[1];
    const float least = nb_act_fp8_least(mode);
    for (int64_t r = 0; r < m; r++)
      for (int64_t g = 0; g < groups; g++, s++) {
        const int64_t from = r * k + g * columns, end = r * k + NB_MIN((g + 1) * columns, k);
        *s = at_least(absmax(x, from, end) / 448.0f, least);
        for (int64_t i = from; i < end; i++) to[i] = to_e4m3(load(x, i), load(x, i) / *s);
      }
    return NB_OK;
  }
  if (mode == NB_ACT_TENSOR) s[0] = absmax(x, 0, m * k) / 448.0f;
  float up = 1.0f / s[0];
  for (int64_t i = 0; i < m * k; i++) to[i] = to_e4m3(load(x, i), load(x, i) * up);
  return NB_OK;
}

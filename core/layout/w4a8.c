/* w4a8.c - 4-bit weights for the product with int8 activations: from values -8..7 to
 * nibbles, and from those to the strips of w4a8.h and back (SYSTEMS CTM-W4A8-06 to 08). */
#include "w4a8.h"

int nb_w4a8_form_of(nb_w4a8_form *f, int64_t n, int64_t k, int64_t group) {
  enum { MOST = 1 << 20 }; /* 2^20 products of at most 15 * 127 are below 2^31 */
  if (n < 1 || k < 1 || k > MOST || n > INT32_MAX)
    return nb_fail(NB_EINVAL,
                   "w4a8: a matrix of %lld outputs and %lld inputs, expected 1 to 2^31-1 and 1 to %d",
                   (long long)n, (long long)k, MOST);
  if (k % 2)
    return nb_fail(NB_EINVAL, "w4a8: %lld inputs; two go into a byte, so they must be even", (long long)k);
  if (group != -1 && (group < 1 || k % group))
    return nb_fail(NB_EINVAL, "w4a8: groups of %lld do not divide %lld inputs", (long long)group,
                   (long long)k);
  *f = (nb_w4a8_form){.n = n, .k = k, .group = group == -1 ? k : group, .wide_scales = group == -1};
  f->groups = k / f->group;
  f->padded = NB_CEIL(f->group, NB_W4A8_STEP) * NB_W4A8_STEP;
  f->strips = NB_CEIL(n, NB_W4A8_STRIP);
  f->scale_at = f->groups * f->padded / NB_W4A8_STEP * NB_W4A8_BLOCK;
  f->bias_at = f->scale_at + f->groups * NB_W4A8_STRIP * (f->wide_scales ? 4 : 2);
  f->strip_bytes = NB_CEIL(f->bias_at + NB_W4A8_STRIP * 4, 64) * 64;
  return NB_OK;
}

int64_t nb_w4a8_bytes(int64_t n, int64_t k, int64_t group) {
  nb_w4a8_form f;
  NB_TRY(nb_w4a8_form_of(&f, n, k, group));
  return f.strips * f.strip_bytes;
}

int nb_w4a8_nibbles(nb_tensor *nibbles, const nb_tensor *codes) {
  NB_TRY(nb_expect(codes, "w4a8: codes", NB_I8, 2, NB_SHAPE(-1, -1)));
  int64_t n = codes->shape[0], k = codes->shape[1];
  if (k % 2)
    return nb_fail(NB_EINVAL, "w4a8: %lld inputs; two go into a byte, so they must be even", (long long)k);
  NB_TRY(nb_expect(nibbles, "w4a8: nibbles", NB_U8, 2, NB_SHAPE(n, k / 2)));
  const int8_t *q = codes->data;
  uint8_t *out = nibbles->data;
  for (int64_t i = 0; i < n * k; i++)
    if (q[i] < -8 || q[i] > 7)
      return nb_fail(NB_EFORMAT, "w4a8: the code %d at row %lld, column %lld (from 0) is outside -8 to 7",
                     q[i], (long long)(i / k), (long long)(i % k));
  for (int64_t i = 0; i < n * k / 2; i++)
    out[i] = (uint8_t)((unsigned)(q[2 * i] + 8) | (unsigned)(q[2 * i + 1] + 8) << 4);
  return NB_OK;
}

int nb_w4a8_codes(nb_tensor *codes, const nb_tensor *nibbles) {
  NB_TRY(nb_expect(nibbles, "w4a8: nibbles", NB_U8, 2, NB_SHAPE(-1, -1)));
  NB_TRY(nb_expect(codes, "w4a8: codes", NB_I8, 2, NB_SHAPE(nibbles->shape[0], nibbles->shape[1] * 2)));
  const uint8_t *in = nibbles->data;
  int8_t *q = codes->data;
  for (int64_t i = 0; i < nb_tensor_numel(nibbles); i++) {
    q[2 * i] = (int8_t)((in[i] & 15) - 8);
    q[2 * i + 1] = (int8_t)((in[i] >> 4) - 8);
  }
  return NB_OK;
}

/* The byte of a strip that holds input k of output o, and whether in its high nibble. */
static int64_t place(const nb_w4a8_form *f, int64_t k, int64_t o, bool *high) {
  int64_t in_group = k % f->group, step = in_group % NB_W4A8_STEP;
  int64_t block = (k / f->group * f->padded + in_group) / NB_W4A8_STEP;
  *high = step >= 4;
  return block * NB_W4A8_BLOCK + 4 * o + step % 4;
}

static int check(nb_w4a8_form *f, const nb_tensor *packed, const nb_tensor *nibbles, const nb_tensor *scales,
                 const nb_tensor *bias, int64_t group) {
  NB_TRY(nb_expect(nibbles, "w4a8: nibbles", NB_U8, 2, NB_SHAPE(-1, -1)));
  int64_t n = nibbles->shape[0];
  NB_TRY(nb_w4a8_form_of(f, n, nibbles->shape[1] * 2, group));
  NB_TRY(nb_expect(packed, "w4a8: packed", NB_U8, 1, NB_SHAPE(f->strips * f->strip_bytes)));
  NB_TRY(nb_expect(scales, "w4a8: scales", f->wide_scales ? NB_F32 : NB_BF16, 2, NB_SHAPE(n, f->groups)));
  if (bias) NB_TRY(nb_expect(bias, "w4a8: bias", NB_F32, 1, NB_SHAPE(n)));
  return NB_OK;
}

int nb_w4a8_pack(nb_tensor *packed, const nb_tensor *nibbles, const nb_tensor *scales, const nb_tensor *bias,
                 int64_t group) {
  nb_w4a8_form f;
  NB_TRY(check(&f, packed, nibbles, scales, bias, group));
  memset(packed->data, 0, (size_t)nb_tensor_bytes(packed));
  int stopped = 0;
#pragma omp parallel for schedule(static) num_threads(nb_threads()) \
    reduction(| \
              : stopped) if (f.n * f.k > 1 << 16)
  for (int64_t s = 0; s < f.strips; s++) {
    if (nb_stop_requested()) stopped = 1;
    if (stopped) continue;
    uint8_t *strip = (uint8_t *)packed->data + s * f.strip_bytes;
    for (int64_t o = 0; o < NB_MIN(NB_W4A8_STRIP, f.n - s * NB_W4A8_STRIP); o++) {
      int64_t row = s * NB_W4A8_STRIP + o;
      const uint8_t *from = (const uint8_t *)nibbles->data + row * f.k / 2;
      for (int64_t k = 0; k < f.k; k++) {
        bool high;
        uint8_t *to = strip + place(&f, k, o, &high), code = k % 2 ? from[k / 2] >> 4 : from[k / 2] & 15;
        *to = (uint8_t)(*to | code << (high ? 4 : 0));
      }
      for (int64_t g = 0; g < f.groups; g++) {
        int64_t at = g * NB_W4A8_STRIP + o, i = row * f.groups + g;
        if (f.wide_scales) ((float *)(void *)(strip + f.scale_at))[at] = ((const float *)scales->data)[i];
        else ((uint16_t *)(void *)(strip + f.scale_at))[at] = ((const uint16_t *)scales->data)[i];
      }
      if (bias) ((float *)(void *)(strip + f.bias_at))[o] = ((const float *)bias->data)[row];
    }
  }
  return stopped ? nb_fail_stopped() : NB_OK;
}

int nb_w4a8_unpack(nb_tensor *nibbles, nb_tensor *scales, nb_tensor *bias, const nb_tensor *packed,
                   int64_t group) {
  nb_w4a8_form f;
  NB_TRY(check(&f, packed, nibbles, scales, bias, group));
  int stopped = 0;
#pragma omp parallel for schedule(static) num_threads(nb_threads()) \
    reduction(| \
              : stopped) if (f.n * f.k > 1 << 16)
  for (int64_t row = 0; row < f.n; row++) {
    if (nb_stop_requested()) stopped = 1;
    if (stopped) continue;
    const uint8_t *strip = (const uint8_t *)packed->data + row / NB_W4A8_STRIP * f.strip_bytes;
    int64_t o = row % NB_W4A8_STRIP;
    uint8_t *to = (uint8_t *)nibbles->data + row * f.k / 2;
    memset(to, 0, (size_t)f.k / 2);
    for (int64_t k = 0; k < f.k; k++) {
      bool high;
      uint8_t from = strip[place(&f, k, o, &high)];
      to[k / 2] = (uint8_t)(to[k / 2] | (high ? from >> 4 : from & 15) << (k % 2 ? 4 : 0));
    }
    for (int64_t g = 0; g < f.groups; g++) {
      int64_t at = g * NB_W4A8_STRIP + o, i = row * f.groups + g;
      if (f.wide_scales) ((float *)scales->data)[i] = ((const float *)(const void *)(strip + f.scale_at))[at];
      else ((uint16_t *)scales->data)[i] = ((const uint16_t *)(const void *)(strip + f.scale_at))[at];
    }
    if (bias) ((float *)bias->data)[row] = ((const float *)(const void *)(strip + f.bias_at))[o];
  }
  return stopped ? nb_fail_stopped() : NB_OK;
}

/* scales.c - what no quantized weight may hold: scales that are NaN, infinite, or
 * zero over codes that are not; column groups that don't exist. */
#include "base.h"

#include <math.h>

static float scale_at(const nb_tensor *scales, int64_t i) {
  if (scales->dtype == NB_F32) return ((const float *)scales->data)[i];
  uint16_t h = ((const uint16_t *)scales->data)[i];
  return scales->dtype == NB_F16 ? nb_f16_to_f32(h) : nb_bf16_to_f32(h);
}

/* Index of the first scale from i on that is 0, infinite or NaN; count when all are sound.
 * Adding one to the exponent field carries out of it exactly when it is all ones, and a
 * magnitude of zero is the only other case, so one pass over the bits finds both. */
static int64_t next_unsound(const nb_tensor *scales, int64_t i, int64_t count) {
  if (scales->dtype == NB_F32) {
    const uint32_t *s = scales->data;
    for (; i < count; i++)
      if ((s[i] & 0x7fffffffu) - 1u >= 0x7f800000u - 1u) return i;
    return count;
  }
  const uint16_t *s = scales->data;
  uint16_t infinity = scales->dtype == NB_F16 ? 0x7c00u : 0x7f80u;
  for (; i < count; i++)
    if ((uint16_t)((s[i] & 0x7fffu) - 1u) >= (uint16_t)(infinity - 1u)) return i;
  return count;
}

/* The first column of group g in row r whose code is not the zero code; -1 when none is. */
static int64_t nonzero_column(const nb_tensor *codes, const nb_tensor *zeros, const nb_tensor *g_idx, int bits,
                              int64_t groups, int64_t r, int64_t g) {
  int64_t k = codes->shape[1], size = NB_CEIL(k, groups);
  const uint8_t *row = (const uint8_t *)codes->data + r * k;
  int zero = zeros ? ((const uint8_t *)zeros->data)[r * groups + g] : 1 << (bits - 1);
  const int32_t *column_group = g_idx ? g_idx->data : NULL;
  for (int64_t c = 0; c < k; c++)
    if ((column_group ? column_group[c] : c / size) == g && row[c] != zero) return c;
  return -1;
}

int nb_scales_check(const nb_tensor *scales, const nb_tensor *codes, const nb_tensor *zeros,
                    const nb_tensor *g_idx, int bits, int64_t row0, const char *name) {
  NB_TRY(nb_expect(codes, "codes", NB_U8, 2, NB_SHAPE(-1, -1)));
  int64_t n = codes->shape[0], k = codes->shape[1];
  if (scales->dtype != NB_F16 && scales->dtype != NB_BF16 && scales->dtype != NB_F32)
    return nb_fail(NB_EINVAL, "scales: expected f16, bf16 or f32, found %s", nb_dtype_name(scales->dtype));
  NB_TRY(nb_expect(scales, "scales", -1, 2, NB_SHAPE(n, -1)));
  int64_t groups = scales->shape[1];
  if (groups < 1) return nb_fail(NB_EINVAL, "scales: expected at least one group");
  if (zeros) NB_TRY(nb_expect(zeros, "zeros", NB_U8, 2, NB_SHAPE(n, groups)));
  if (g_idx) NB_TRY(nb_expect(g_idx, "g_idx", NB_I32, 1, NB_SHAPE(k)));
  int64_t count = n * groups;
  for (int64_t i = next_unsound(scales, 0, count); i < count; i = next_unsound(scales, i + 1, count)) {
    float s = scale_at(scales, i);
    long long row = (long long)(row0 + i / groups), group = (long long)(i % groups);
    if (isnan(s) || isinf(s))
      return nb_fail(NB_EFORMAT, "%s: the scale of row %lld, group %lld is %s: every scale must be finite", name,
                     row, group, isnan(s) ? "NaN" : "infinite");
    int64_t c = nonzero_column(codes, zeros, g_idx, bits, groups, i / groups, i % groups);
    if (c >= 0)
      return nb_fail(NB_EFORMAT,
                     "%s: the scale of row %lld, group %lld is zero, but column %lld of it holds code %d, "
                     "which is not the zero-point: a zero scale needs a group of zeros",
                     name, row, group, (long long)c, ((const uint8_t *)codes->data)[(i / groups) * k + c]);
  }
  return NB_OK;
}

int nb_g_idx_check(const nb_tensor *g_idx, int64_t group, int64_t groups, const char *name) {
  NB_TRY(nb_expect(g_idx, "g_idx", NB_I32, 1, NB_SHAPE(-1)));
  if (group < 1) return nb_fail(NB_EINVAL, "g_idx: group size %lld, expected 1 or more", (long long)group);
  const int32_t *g = g_idx->data;
  int64_t k = g_idx->shape[0];
  int trivial = 1;
  for (int64_t c = 0; c < k; c++) {
    if (g[c] < 0 || g[c] >= groups)
      return nb_fail(NB_EFORMAT, "%s: g_idx[%lld] is %d, but there are %lld groups", name, (long long)c, g[c],
                     (long long)groups);
    if (g[c] != c / group) trivial = 0;
  }
  return trivial;
}

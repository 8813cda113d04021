/* scales.c - the scales of quantized weights: what they may not be (NaN, infinite, zero over
 * codes that are not), comparing and casting them as numbers, and hashing a weight with
 * them; column groups that don't exist. */
#include "dtype.h"

#include <math.h>

static bool is_short(int dtype) { return dtype == NB_F8_E4M3 || dtype == NB_F8_E8M0; }

static float scale_at(const nb_tensor *scales, int64_t i) {
  if (scales->dtype == NB_F32) return ((const float *)scales->data)[i];
  if (is_short(scales->dtype)) return nb_code_values(scales->dtype)[((const uint8_t *)scales->data)[i]];
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
  if (is_short(scales->dtype)) {
    const float *value = nb_code_values(scales->dtype);
    const uint8_t *s = scales->data;
    for (; i < count; i++)
      if (value[s[i]] == 0 || isnan(value[s[i]])) return i;
    return count;
  }
  const uint16_t *s = scales->data;
  uint16_t infinity = scales->dtype == NB_F16 ? 0x7c00u : 0x7f80u;
  for (; i + 64 <= count; i += 64) { /* without a way out, so by vectors */
    unsigned odd = 0;
#pragma omp simd reduction(| : odd)
    for (int j = 0; j < 64; j++) odd |= (uint16_t)((s[i + j] & 0x7fffu) - 1u) >= (uint16_t)(infinity - 1u);
    if (odd) break;
  }
  for (; i < count; i++)
    if ((uint16_t)((s[i] & 0x7fffu) - 1u) >= (uint16_t)(infinity - 1u)) return i;
  return count;
}

/* The first column of group g in row r whose code is not the zero code; -1 when none is. */
static int64_t nonzero_column(const nb_tensor *codes, const nb_tensor *zeros, const nb_tensor *g_idx,
                              int bits, int64_t groups, int64_t r, int64_t g) {
  int64_t k = codes->shape[1], size = NB_CEIL(k, groups);
  const uint8_t *row = (const uint8_t *)codes->data + r * k;
  int zero = zeros ? ((const uint8_t *)zeros->data)[r * groups + g] : 1 << (bits - 1);
  const int32_t *column_group = g_idx ? g_idx->data : NULL;
  for (int64_t c = 0; c < k; c++)
    if ((column_group ? column_group[c] : c / size) == g && row[c] != zero) return c;
  return -1;
}

static void scale_put(nb_tensor *scales, int64_t i, float v) {
  if (scales->dtype == NB_F32) ((float *)scales->data)[i] = v;
  else if (scales->dtype == NB_F8_E8M0) ((uint8_t *)scales->data)[i] = nb_f32_to_e8m0(v);
  else if (is_short(scales->dtype))
    ((uint8_t *)scales->data)[i] = nb_f32_to_small(v, nb_small_of(scales->dtype));
  else ((uint16_t *)scales->data)[i] = scales->dtype == NB_F16 ? nb_f32_to_f16(v) : nb_f32_to_bf16(v);
}

static int expect_scales(const nb_tensor *scales, int64_t rows, int64_t groups) {
  if (scales->dtype != NB_F16 && scales->dtype != NB_BF16 && scales->dtype != NB_F32 &&
      !is_short(scales->dtype))
    return nb_fail(NB_EINVAL, "scales: expected f16, bf16, f32, f8_e4m3 or f8_e8m0, found %s",
                   nb_dtype_name(scales->dtype));
  return nb_expect(scales, "scales", -1, 2, NB_SHAPE(rows, groups));
}

int nb_scales_sound(const nb_tensor *scales) {
  int64_t count = nb_tensor_numel(scales);
  return next_unsound(scales, 0, count) == count;
}

int nb_scales_check(const nb_tensor *scales, const nb_tensor *codes, const nb_tensor *zeros,
                    const nb_tensor *g_idx, int bits, int64_t row0, const char *name) {
  NB_TRY(nb_expect(codes, "codes", NB_U8, 2, NB_SHAPE(-1, -1)));
  int64_t n = codes->shape[0], k = codes->shape[1];
  NB_TRY(expect_scales(scales, n, -1));
  int64_t groups = scales->shape[1];
  if (groups < 1) return nb_fail(NB_EINVAL, "scales: expected at least one group");
  if (zeros) NB_TRY(nb_expect(zeros, "zeros", NB_U8, 2, NB_SHAPE(n, groups)));
  if (g_idx) NB_TRY(nb_expect(g_idx, "g_idx", NB_I32, 1, NB_SHAPE(k)));
  int64_t count = n * groups;
  for (int64_t i = next_unsound(scales, 0, count); i < count; i = next_unsound(scales, i + 1, count)) {
    float s = scale_at(scales, i);
    long long row = (long long)(row0 + i / groups), group = (long long)(i % groups);
    if (isnan(s) || isinf(s))
      return nb_fail(NB_EFORMAT, "%s: the scale of row %lld, group %lld is %s: every scale must be finite",
                     name, row, group, isnan(s) ? "NaN" : "infinite");
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

int nb_scales_cast(nb_tensor *dst, const nb_tensor *src, int64_t row0, const char *name) {
  NB_TRY(expect_scales(src, -1, -1));
  NB_TRY(expect_scales(dst, src->shape[0], src->shape[1]));
  if (dst->dtype == src->dtype) return nb_tensor_copy(dst, src);
  int64_t count = nb_tensor_numel(src), groups = src->shape[1];
  for (int64_t i = 0; i < count; i++) {
    float v = scale_at(src, i);
    scale_put(dst, i, v);
    if (nb_f32_bits(scale_at(dst, i)) != nb_f32_bits(v))
      return nb_fail(NB_EINEXACT, "%s: the %s value %.9g of row %lld, group %lld has no exact %s", name,
                     nb_dtype_name(src->dtype), (double)v, (long long)(row0 + i / groups),
                     (long long)(i % groups), nb_dtype_name(dst->dtype));
  }
  return NB_OK;
}

int nb_scales_equal(const nb_tensor *a, const nb_tensor *b) {
  if (expect_scales(a, -1, -1) < 0 || expect_scales(b, a->shape[0], a->shape[1]) < 0) return 0;
  if (a->dtype == b->dtype) return nb_tensor_equal(a, b);
  int64_t count = nb_tensor_numel(a);
  for (int64_t i = 0; i < count; i++)
    if (nb_f32_bits(scale_at(a, i)) != nb_f32_bits(scale_at(b, i))) return 0;
  return 1;
}

int nb_hash_rows(nb_hash *h, const nb_tensor *codes, const nb_tensor *scales, const nb_tensor *zeros,
                 int bits) {
  NB_TRY(nb_expect(codes, "codes", NB_U8, 2, NB_SHAPE(-1, -1)));
  int64_t n = codes->shape[0], k = codes->shape[1];
  NB_TRY(expect_scales(scales, n, -1));
  int64_t groups = scales->shape[1];
  if (zeros) NB_TRY(nb_expect(zeros, "zeros", NB_U8, 2, NB_SHAPE(n, groups)));
  float *wide = nb_alloc(groups, (int64_t)sizeof *wide);
  uint8_t *constant = nb_alloc(groups, 1);
  if (!wide || !constant) {
    free(wide);
    free(constant);
    return NB_ENOMEM;
  }
  memset(constant, 1 << (bits - 1), (size_t)groups);
  for (int64_t r = 0; r < n; r++) {
    for (int64_t g = 0; g < groups; g++) wide[g] = scale_at(scales, r * groups + g);
    nb_hash_update(h, (const uint8_t *)codes->data + r * k, k);
    nb_hash_update(h, wide, groups * (int64_t)sizeof *wide);
    nb_hash_update(h, zeros ? (const uint8_t *)zeros->data + r * groups : constant, groups);
  }
  free(wide);
  free(constant);
  return NB_OK;
}

/* ---- float codes -------------------------------------------------------------- */

static int expect_float_codes(const nb_tensor *codes) {
  if (codes->dtype != NB_F8_E4M3 && codes->dtype != NB_U8)
    return nb_fail(NB_EINVAL, "codes: expected f8_e4m3, or u8 with one e2m1 code a byte, found %s",
                   nb_dtype_name(codes->dtype));
  return nb_expect(codes, "codes", -1, 2, NB_SHAPE(-1, -1));
}

static int expect_blocks(const nb_tensor *scales, const nb_tensor *codes, int64_t rows, int64_t columns) {
  NB_TRY(expect_float_codes(codes));
  if (rows < 1 || columns < 1)
    return nb_fail(NB_EINVAL, "scales: blocks of %lldx%lld, expected at least 1x1", (long long)rows,
                   (long long)columns);
  return expect_scales(scales, NB_CEIL(codes->shape[0], rows), NB_CEIL(codes->shape[1], columns));
}

/* The first element of the codes' block (i, j) that isn't 0 or -0; -1 when none is. */
static int64_t nonzero_in_block(const nb_tensor *codes, int64_t rows, int64_t columns, int64_t i, int64_t j) {
  int64_t n = codes->shape[0], k = codes->shape[1];
  uint8_t magnitude = codes->dtype == NB_F8_E4M3 ? 0x7f : 0x07;
  for (int64_t r = i * rows; r < NB_MIN(n, (i + 1) * rows); r++)
    for (int64_t c = j * columns; c < NB_MIN(k, (j + 1) * columns); c++)
      if (((const uint8_t *)codes->data)[r * k + c] & magnitude) return r * k + c;
  return -1;
}

int nb_float_check(const nb_tensor *scales, const nb_tensor *codes, int64_t rows, int64_t columns,
                   int64_t row0, const char *name) {
  NB_TRY(expect_blocks(scales, codes, rows, columns));
  int64_t count = nb_tensor_numel(scales), groups = scales->shape[1], k = codes->shape[1];
  for (int64_t i = next_unsound(scales, 0, count); i < count; i = next_unsound(scales, i + 1, count)) {
    float s = scale_at(scales, i);
    long long row = (long long)(row0 + i / groups * rows), group = (long long)(i % groups);
    if (isnan(s) || isinf(s))
      return nb_fail(NB_EFORMAT, "%s: the scale of row %lld, group %lld is %s: every scale must be finite",
                     name, row, group, isnan(s) ? "NaN" : "infinite");
    /* an e4m3 block scale may have underflowed; its block is all zeros then, whatever the codes */
    int64_t at =
        scales->dtype == NB_F8_E4M3 ? -1 : nonzero_in_block(codes, rows, columns, i / groups, i % groups);
    if (at >= 0)
      return nb_fail(NB_EFORMAT,
                     "%s: the scale of row %lld, group %lld is zero, but row %lld, column %lld holds code "
                     "0x%02x: a zero scale needs a group of zeros",
                     name, row, group, (long long)(row0 + at / k), (long long)(at % k),
                     ((const uint8_t *)codes->data)[at]);
  }
  if (codes->dtype != NB_F8_E4M3) return NB_OK;
  const uint8_t *c = codes->data;
  int64_t numel = nb_tensor_numel(codes);
  for (int64_t i = 0; i < numel; i++)
    if ((c[i] & 0x7f) == 0x7f)
      return nb_fail(NB_EFORMAT, "%s: the code of row %lld, column %lld is 0x%02x, which is NaN in f8_e4m3",
                     name, (long long)(row0 + i / k), (long long)(i % k), c[i]);
  return NB_OK;
}

int nb_hash_float_rows(nb_hash *h, const nb_tensor *codes, const nb_tensor *scales, int64_t rows,
                       int64_t columns) {
  NB_TRY(expect_blocks(scales, codes, rows, columns));
  int64_t n = codes->shape[0], k = codes->shape[1], groups = scales->shape[1];
  float *wide = nb_alloc(groups, (int64_t)sizeof *wide);
  if (!wide) return NB_ENOMEM;
  for (int64_t r = 0; r < n; r++) {
    for (int64_t g = 0; g < groups; g++) wide[g] = scale_at(scales, r / rows * groups + g);
    nb_hash_update(h, (const uint8_t *)codes->data + r * k, k);
    nb_hash_update(h, wide, groups * (int64_t)sizeof *wide);
  }
  free(wide);
  return NB_OK;
}

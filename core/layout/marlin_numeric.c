/* marlin_numeric.c - what the Marlin kernels need done to numbers before they run:
 * int8 scales, 4-bit codes for fp8 arithmetic, exponents folded into scales
 * (SYSTEMS 2.5, MRL-40 to MRL-44, MRL-48).
 *
 * Every step rounds where the reference's tensors round: bytes are compared. */
#include "layout.h"

#include <math.h>

static bool is_float16(const nb_tensor *t) { return t->dtype == NB_F16 || t->dtype == NB_BF16; }

static float load16(int dtype, uint16_t h) { return dtype == NB_F16 ? nb_f16_to_f32(h) : nb_bf16_to_f32(h); }
static uint16_t store16(int dtype, float f) { return dtype == NB_F16 ? nb_f32_to_f16(f) : nb_f32_to_bf16(f); }

static int same_shape(const nb_tensor *out, int dtype, const nb_tensor *in, const char *what) {
  return nb_expect(out, what, dtype, in->ndim, in->shape);
}

static int expect_float16(const nb_tensor *t, const char *what) {
  if (is_float16(t)) return NB_OK;
  return nb_fail(NB_EINVAL, "%s: expected f16 or bf16, found %s", what, nb_dtype_name(t->dtype));
}

/* The largest element, NaN when there is one; -inf of an empty tensor. */
static float max16(const nb_tensor *t) {
  const uint16_t *p = t->data;
  float max = -INFINITY;
  for (int64_t i = 0; i < nb_tensor_numel(t); i++) {
    float f = load16(t->dtype, p[i]);
    if (f > max || isnan(f)) max = f;
    if (isnan(f)) break;
  }
  return max;
}

/* s' = round(s / max * 4096) as int16 bits inside the 16-bit float. */
int nb_marlin_int8_scales(nb_tensor *out, float *global, const nb_tensor *scales) {
  const char *what = "marlin int8_scales";
  NB_TRY(expect_float16(scales, what));
  NB_TRY(same_shape(out, scales->dtype, scales, what));
  int dtype = scales->dtype;
  float max = max16(scales);
  if (!(max > 0) || isinf(max))
    return nb_fail(NB_EINVAL, "%s: the largest scale must be positive and finite, found %g", what,
                   (double)max);
  const uint16_t *s = scales->data;
  for (int64_t i = 0; i < nb_tensor_numel(scales); i++) {
    float ratio = load16(dtype, store16(dtype, load16(dtype, s[i]) / max));
    float code = rintf(load16(dtype, store16(dtype, ratio * 4096.0f)));
    if (!(fabsf(code) <= 32767))
      return nb_fail(NB_EINVAL, "%s: scale %g at position %lld is beyond int16 after scaling by 4096/%g",
                     what, (double)load16(dtype, s[i]), (long long)i, (double)max);
    ((uint16_t *)out->data)[i] = (uint16_t)(int16_t)code;
  }
  *global = max / 4096.0f;
  return NB_OK;
}

static float load_scale(const nb_tensor *t, int64_t i) {
  return t->dtype == NB_F32 ? ((const float *)t->data)[i] : load16(t->dtype, ((const uint16_t *)t->data)[i]);
}

int nb_scales_multiply(nb_tensor *out, const nb_tensor *scales, double factor) {
  const nb_tensor *both[2] = {scales, out};
  NB_TRY(nb_expect(out, "scales multiply", -1, scales->ndim, scales->shape));
  for (int i = 0; i < 2; i++)
    if (!is_float16(both[i]) && both[i]->dtype != NB_F32)
      return nb_fail(NB_EINVAL, "scales multiply: expected f16, bf16 or f32, found %s",
                     nb_dtype_name(both[i]->dtype));
  int64_t count = nb_tensor_numel(scales);
  float f = (float)factor;
  if (out->dtype == NB_F32)
    for (int64_t i = 0; i < count; i++) ((float *)out->data)[i] = load_scale(scales, i) * f;
  else
    for (int64_t i = 0; i < count; i++)
      ((uint16_t *)out->data)[i] = store16(out->dtype, load_scale(scales, i) * f);
  return NB_OK;
}

/* ---- 4-bit codes for fp8 activations ----------------------------------------- */

/* code q, zero-point z -> c = q-z, or 15-q below z. Back: c is q-z unless c+z > 15. */
static uint32_t fp8_code(uint32_t q, uint32_t z) { return q >= z ? q - z : 15 - q; }
static uint32_t fp8_restore(uint32_t c, uint32_t z) { return c + z <= 15 ? c + z : 15 - c; }

static uint32_t fp8_word(uint32_t w, uint32_t z, bool inverse) {
  uint32_t out = 0;
  for (int u = 0; u < 32; u += 4) {
    uint32_t q = w >> u & 15, zu = z >> u & 15;
    out |= (inverse ? fp8_restore(q, zu) : fp8_code(q, zu)) << u;
  }
  return out;
}

static int fp8_checks(const nb_tensor *words, const nb_tensor *zeros, int64_t *experts, int64_t *k,
                      int64_t *groups, const char *what) {
  int d = words->ndim;
  int64_t count = nb_tensor_numel(words);
  *experts = *k = *groups = 1;
  if (!zeros) {
    if (count % 32)
      return nb_fail(NB_EINVAL,
                     "%s: without zero-points the number of words must be a multiple of 32, found %lld", what,
                     (long long)count);
    *k = count / 32; /* any rows will do */
    return NB_OK;
  }
  if (d != 2 && d != 3) return nb_expect_words(words, what, 2, NB_SHAPE(-1, -1));
  *experts = d == 3 ? words->shape[0] : 1;
  *k = words->shape[d - 2];
  NB_TRY(nb_expect_words(zeros, what, d,
                         d == 3 ? NB_SHAPE(*experts, -1, words->shape[2]) : NB_SHAPE(-1, words->shape[1])));
  *groups = zeros->shape[d - 2];
  if (*k % 32) return nb_fail(NB_EINVAL, "%s: K must be a multiple of 32, found %lld", what, (long long)*k);
  if (*groups == 0 || *k % *groups)
    return nb_fail(NB_EINVAL, "%s: K = %lld is not a multiple of the %lld groups of zero-points", what,
                   (long long)*k, (long long)*groups);
  if (*k / *groups % 8)
    return nb_fail(NB_EINVAL, "%s: the group of %lld rows (K = %lld, %lld groups) is not a multiple of 8",
                   what, (long long)(*k / *groups), (long long)*k, (long long)*groups);
  return NB_OK;
}

int nb_marlin_fp8_preprocess(nb_tensor *out, const nb_tensor *words, const nb_tensor *zeros, int bits,
                             int inverse) {
  const char *what = "marlin fp8_preprocess";
  int64_t experts, k, groups;
  if (bits != 4) return nb_fail(NB_EINVAL, "%s: weights must be of 4 bits, found %d", what, bits);
  NB_TRY(nb_expect_words(words, what, words->ndim, words->shape));
  NB_TRY(same_shape(out, words->dtype, words, what));
  NB_TRY(fp8_checks(words, zeros, &experts, &k, &groups, what));
  const uint32_t *in = words->data;
  uint32_t *to = out->data;
  int64_t rows = experts * k, cols = rows ? nb_tensor_numel(words) / rows : 0;
  int stopped = 0;
#pragma omp parallel for schedule(static) num_threads(nb_threads()) reduction(| : stopped) if (rows > 256)
  for (int64_t r = 0; r < rows; r++) {
    if (nb_stop_requested()) stopped = 1;
    /* Row r of experts*k rows has zero-point row r / (k/groups). */
    const uint32_t *z = zeros ? (const uint32_t *)zeros->data + r / (k / groups) * cols : NULL;
    for (int64_t c = 0; c < cols && !stopped; c++)
      to[r * cols + c] = fp8_word(in[r * cols + c], z ? z[c] : 0x88888888u, inverse != 0);
  }
  return stopped ? nb_fail_stopped() : NB_OK;
}

/* ---- NVFP4 block scales ------------------------------------------------------- */

int nb_marlin_nvfp4_factor(double *factor, const nb_tensor *scales) {
  NB_TRY(expect_float16(scales, "marlin nvfp4_factor"));
  float max = max16(scales);
  *factor = scales->dtype == NB_BF16 && max > 0 && max < 448 ? exp2(floor(log2(448.0 / (double)max))) : 1;
  return NB_OK;
}

/* A block scale is >= 0 and, times 2^7, has f16's top exponent bit set unless it is
 * 0: so bits 14..7 of the f16, "S0E5M3", hold it. */
int nb_marlin_nvfp4_scales(nb_tensor *out, const nb_tensor *scales, double factor) {
  static const uint8_t order[4] = {0, 2, 1, 3};
  const char *what = "marlin nvfp4_scales";
  NB_TRY(expect_float16(scales, what));
  NB_TRY(same_shape(out, NB_F8_E4M3, scales, what));
  int64_t n = scales->ndim ? scales->shape[scales->ndim - 1] : 1;
  if (n % 4) return nb_fail(NB_EINVAL, "%s: N = %lld is not a multiple of 4", what, (long long)n);
  const uint16_t *s = scales->data;
  uint8_t *to = out->data;
  for (int64_t i = 0; i < nb_tensor_numel(scales); i++) {
    uint16_t h = nb_f32_to_f16(load16(scales->dtype, s[i / 4 * 4 + order[i % 4]]));
    h = nb_f32_to_f16(nb_f16_to_f32(h) * (float)factor);
    h = nb_f32_to_f16(nb_f16_to_f32(h) * 128.0f);
    to[i] = nb_f16_to_f32(h) < 2.0f ? 0 : (uint8_t)(h >> 7);
  }
  return NB_OK;
}

/* MX block scales (E8M0 bytes). fp4's exponent in fp8 is 6 lower, so with a8 scales rise by 6. */
int nb_marlin_mx_scales(nb_tensor *out, const nb_tensor *scales, int a8) {
  static const uint8_t order[4] = {0, 2, 1, 3};
  const char *what = "marlin mx_scales";
  if (nb_dtype_bits(scales->dtype) != 8 || scales->ndim < 1)
    return nb_fail(NB_EINVAL, "%s: expected 8-bit scales, found %s of %d dimensions", what,
                   nb_dtype_name(scales->dtype), scales->ndim);
  NB_TRY(same_shape(out, scales->dtype, scales, what));
  int64_t n = scales->shape[scales->ndim - 1];
  if (n % 4) return nb_fail(NB_EINVAL, "%s: N = %lld is not a multiple of 4", what, (long long)n);
  const uint8_t *s = scales->data;
  uint8_t *to = out->data;
  for (int64_t i = 0; i < nb_tensor_numel(scales); i++) {
    if (!a8) {
      to[i] = s[i / 4 * 4 + order[i % 4]];
      continue;
    }
    if (s[i] > 249)
      return nb_fail(
          NB_EINVAL,
          "%s: scale 2^%d at position %lld is too large for fp8 activations: at most 2^122 is possible", what,
          s[i] - 127, (long long)i + 1);
    to[i] = (uint8_t)(s[i] + 6);
  }
  return NB_OK;
}

/* ---- block scales in the tensor cores' order ------------------------------------ */

/* Plain and swizzled stacks [e,m,k] and [e,mp,kp], mp and kp up to multiples of 128 and 4. */
static int swizzle_checks(const nb_tensor *plain, const nb_tensor *swizzled, int64_t *bytes,
                          const char *what) {
  int d = plain->ndim;
  *bytes = nb_dtype_bits(plain->dtype) / 8;
  if ((*bytes != 1 && *bytes != 2) || (d != 2 && d != 3))
    return nb_fail(NB_EINVAL,
                   "%s: expected scales [m,k] or [e,m,k] of 8 or 16 bits, found %s of %d dimensions", what,
                   nb_dtype_name(plain->dtype), d);
  int64_t mp = NB_CEIL(plain->shape[d - 2], 128) * 128, kp = NB_CEIL(plain->shape[d - 1], 4) * 4;
  return nb_expect(swizzled, what, plain->dtype, d,
                   d == 3 ? NB_SHAPE(plain->shape[0], mp, kp) : NB_SHAPE(mp, kp));
}

/* Element (m,k) of a [128*a, 4*b] scale matrix lies where the tensor cores read it:
 * tiles of 128 x 4, in a tile 32 rows of 16 elements, 4 k of 4 rows 32 apart. Runs of 4
 * along k stay together, so they are moved as one. */
static void swizzle(char *plain, char *swizzled, const nb_tensor *t, int64_t bytes, bool back) {
  int d = t->ndim;
  int64_t experts = d == 3 ? t->shape[0] : 1, m = t->shape[d - 2], k = t->shape[d - 1];
  int64_t mp = NB_CEIL(m, 128) * 128, kp = NB_CEIL(k, 4) * 4;
#pragma omp parallel for schedule(static) num_threads(nb_threads()) if (experts * m * k > 65536)
  for (int64_t r = 0; r < experts * m; r++) {
    int64_t i = r % m;
    for (int64_t j = 0; j < k; j += 4) {
      int64_t at = ((i / 128 * (kp / 4) + j / 4) * 32 + i % 32) * 16 + i % 128 / 32 * 4;
      char *p = plain + (r * k + j) * bytes, *s = swizzled + (r / m * mp * kp + at) * bytes;
      memcpy(back ? p : s, back ? s : p, (size_t)(NB_MIN(4, k - j) * bytes));
    }
  }
}

int nb_swizzle_blockscale(nb_tensor *out, const nb_tensor *scales) {
  int64_t bytes;
  NB_TRY(swizzle_checks(scales, out, &bytes, "swizzle_blockscale"));
  if (nb_tensor_numel(out)) memset(out->data, 0, (size_t)nb_tensor_bytes(out)); /* padding is 0 */
  swizzle(scales->data, out->data, scales, bytes, false);
  return NB_OK;
}

int nb_unswizzle_blockscale(nb_tensor *out, const nb_tensor *swizzled) {
  int64_t bytes;
  NB_TRY(swizzle_checks(out, swizzled, &bytes, "unswizzle_blockscale"));
  swizzle(out->data, swizzled->data, out, bytes, true);
  return NB_OK;
}

/* marlin_numeric.c - what the Marlin kernels need done to numbers before they run:
 * int8 scales, 4-bit codes for fp8 arithmetic, exponents folded into scales
 * (SYSTEMS 2.5, MRL-40 to MRL-44, MRL-48).
 *
 * Every step rounds where the reference's tensors round: bytes are compared. */
#include "dtype.h"
#include "simd.h"

#include <math.h>

static bool is_float16(const nb_tensor *t) { return t->dtype == NB_F16 || t->dtype == NB_BF16; }

static float load16(int dtype, uint16_t h) { return dtype == NB_F16 ? nb_f16_to_f32(h) : nb_bf16_to_f32(h); }
static uint16_t store16(int dtype, float f) { return dtype == NB_F16 ? nb_f32_to_f16(f) : nb_f32_to_bf16(f); }

static int same_shape(const nb_tensor *out, int dtype, const nb_tensor *in, const char *what) {
  return nb_expect(out, what, dtype, in->ndim, in->shape);
}

int nb_expect_float16(const nb_tensor *t, const char *what) {
  if (is_float16(t)) return NB_OK;
  return nb_fail(NB_EINVAL, "%s: expected f16 or bf16, found %s", what, nb_dtype_name(t->dtype));
}

/* The largest element, NaN when there is one; -inf of an empty tensor. By the order of the
 * bits: as they are above 0, backwards below. */
static float max16(const nb_tensor *t) {
  const int16_t *p = t->data;
  int64_t count = nb_tensor_numel(t);
  int16_t infinity = t->dtype == NB_F16 ? 0x7c00 : 0x7f80, greatest = INT16_MIN, widest = 0;
#pragma omp simd reduction(max : greatest, widest)
  for (int64_t i = 0; i < count; i++) {
    int16_t size = p[i] & 0x7fff, key = (int16_t)(p[i] < 0 ? -size : size);
    greatest = key > greatest ? key : greatest;
    widest = size > widest ? size : widest;
  }
  if (count == 0) return -INFINITY;
  if (widest > infinity) return NAN;
  return greatest < 0 ? -load16(t->dtype, (uint16_t)-greatest) : load16(t->dtype, (uint16_t)greatest);
}

/* The code of one scale; beyond int16: NAN or what it would be. */
static float int8_code(int dtype, uint16_t s, float max) {
  float ratio = load16(dtype, store16(dtype, load16(dtype, s) / max));
  return rintf(load16(dtype, store16(dtype, ratio * 4096.0f)));
}

enum { KNOWN = 1 << 20 }; /* added to codes that are worked out: no code is 0 then */

int nb_marlin_int8_max_check(float max, const char *what) {
  if (max > 0 && !isinf(max)) return NB_OK;
  return nb_fail(NB_EINVAL, "%s: the largest scale must be positive and finite, found %g", what, (double)max);
}

/* s' = round(s / max * 4096) as int16 bits inside the 16-bit float. */
int nb_marlin_int8_scales(nb_tensor *out, float *global, const nb_tensor *scales) {
  const char *what = "marlin int8_scales";
  NB_TRY(nb_expect_float16(scales, what));
  NB_TRY(same_shape(out, scales->dtype, scales, what));
  int dtype = scales->dtype;
  float max = max16(scales);
  NB_TRY(nb_marlin_int8_max_check(max, what));
  /* Few of the 2^16 scales that there could be occur, most of them often: worked out once each. */
  int32_t *codes = nb_alloc(1 << 16, sizeof *codes);
  if (!codes) return NB_ENOMEM;
  const uint16_t *s = scales->data;
  uint16_t *to = out->data;
  int64_t count = nb_tensor_numel(scales);
  for (int64_t i = 0; i < count; i++) {
    int32_t code = codes[s[i]];
    if (!code) {
      float f = int8_code(dtype, s[i], max);
      if (!(fabsf(f) <= 32767)) {
        free(codes);
        return nb_fail(NB_EINVAL, "%s: scale %g at position %lld is beyond int16 after scaling by 4096/%g",
                       what, (double)load16(dtype, s[i]), (long long)i, (double)max);
      }
      code = codes[s[i]] = (int32_t)f + KNOWN;
    }
    to[i] = (uint16_t)(code - KNOWN);
  }
  free(codes);
  *global = max / 4096.0f;
  return NB_OK;
}

int nb_scales_multiply(nb_tensor *out, const nb_tensor *scales, double factor) {
  const nb_tensor *both[2] = {scales, out};
  NB_TRY(nb_expect(out, "scales multiply", -1, scales->ndim, scales->shape));
  for (int i = 0; i < 2; i++)
    if (!is_float16(both[i]) && both[i]->dtype != NB_F32)
      return nb_fail(NB_EINVAL, "scales multiply: expected f16, bf16 or f32, found %s",
                     nb_dtype_name(both[i]->dtype));
  enum { BLOCK = 1024 };
  float block[BLOCK], f = (float)factor;
  nb_load_fn *load = nb_load_of(scales->dtype);
  nb_store_fn *store = nb_store_of(out->dtype);
  int64_t count = nb_tensor_numel(scales), from = nb_dtype_bits(scales->dtype) / 8,
          to = nb_dtype_bits(out->dtype) / 8;
  for (int64_t at = 0; at < count; at += BLOCK) {
    int64_t n = NB_MIN(BLOCK, count - at);
    load(block, (const char *)scales->data + at * from, n);
    for (int64_t i = 0; i < n; i++) block[i] *= f;
    store((char *)out->data + at * to, block, n);
  }
  return NB_OK;
}

/* ---- 4-bit codes for fp8 activations ----------------------------------------- */

/* code q, zero-point z -> c = q-z, or 15-q below z. Back: c is q-z unless c+z > 15. */
static uint32_t fp8_restore(uint32_t c, uint32_t z) { return c + z <= 15 ? c + z : 15 - c; }

static uint32_t unfold_word(uint32_t w, uint32_t z) {
  uint32_t out = 0;
  for (int u = 0; u < 32; u += 4) out |= fp8_restore(w >> u & 15, z >> u & 15) << u;
  return out;
}

typedef int8_t v16 __attribute__((vector_size(16)));
typedef uint16_t v8h __attribute__((vector_size(16))); /* the same, for shifts: bytes have none */

/* 16 nibbles, each in a byte. */
static inline v16 fold_nibbles(v16 q, v16 z) {
  v16 above = q >= z;
  return (above & (q - z)) | (~above & (15 - q));
}

static inline void fold_16(uint32_t *to, const uint32_t *in, v16 zero) {
  v16 q;
  memcpy(&q, in, sizeof q);
  v16 up = (v16)((v8h)q >> 4) & 15, up_zero = (v16)((v8h)zero >> 4) & 15;
  q = fold_nibbles(q & 15, zero & 15) | (v16)((v8h)fold_nibbles(up, up_zero) << 4);
  memcpy(to, &q, sizeof q);
}

void nb_marlin_fold_words(uint32_t *to, const uint32_t *in, const uint32_t *z, int64_t n) {
  enum { WORDS = sizeof(v16) / sizeof *in };
  v16 zero = (v16){0} + (char)0x88;
  int64_t i = nb_cpu() & NB_CPU_AVX2 ? nb_marlin_fold_avx2(to, in, z, n) : 0;
  for (; i + WORDS <= n; i += WORDS) {
    if (z) memcpy(&zero, z + i, sizeof zero);
    fold_16(to + i, in + i, zero);
  }
  if (i == n) return;
  uint32_t rest[WORDS] = {0};
  size_t bytes = (size_t)(n - i) * sizeof *in;
  memcpy(rest, in + i, bytes);
  if (z) memcpy(&zero, z + i, bytes);
  fold_16(rest, rest, zero);
  memcpy(to + i, rest, bytes);
}

int nb_marlin_fold_check(const nb_tensor *words, const nb_tensor *zeros, int bits, int64_t *experts,
                         int64_t *k, int64_t *groups, const char *what) {
  if (bits != 4) return nb_fail(NB_EINVAL, "%s: weights must be of 4 bits, found %d", what, bits);
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
  NB_TRY(nb_marlin_fold_check(words, zeros, bits, &experts, &k, &groups, what));
  NB_TRY(nb_expect_words(words, what, words->ndim, words->shape));
  NB_TRY(same_shape(out, words->dtype, words, what));
  const uint32_t *in = words->data;
  uint32_t *to = out->data;
  int64_t rows = experts * k, cols = rows ? nb_tensor_numel(words) / rows : 0;
  int stopped = 0;
#pragma omp parallel for schedule(static) num_threads(nb_threads()) reduction(| : stopped) if (rows > 256)
  for (int64_t r = 0; r < rows; r++) {
    if (nb_stop_requested()) stopped = 1;
    /* Row r of experts*k rows has zero-point row r / (k/groups). */
    const uint32_t *z = zeros ? (const uint32_t *)zeros->data + r / (k / groups) * cols : NULL;
    if (!stopped && !inverse) nb_marlin_fold_words(to + r * cols, in + r * cols, z, cols);
    for (int64_t c = 0; c < cols && !stopped && inverse; c++)
      to[r * cols + c] = unfold_word(in[r * cols + c], z ? z[c] : 0x88888888u);
  }
  return stopped ? nb_fail_stopped() : NB_OK;
}

/* ---- NVFP4 block scales ------------------------------------------------------- */

double nb_marlin_nvfp4_factor_of(float max) {
  return max > 0 && max < 448 ? exp2(floor(log2(448.0 / (double)max))) : 1;
}

int nb_marlin_nvfp4_factor(double *factor, const nb_tensor *scales) {
  NB_TRY(nb_expect_float16(scales, "marlin nvfp4_factor"));
  *factor = nb_marlin_nvfp4_factor_of(scales->dtype == NB_BF16 ? max16(scales) : 0);
  return NB_OK;
}

/* A block scale is >= 0 and, times 2^7, has f16's top exponent bit set unless it is
 * 0: so bits 14..7 of the f16, "S0E5M3", hold it. */
static uint8_t nvfp4_code(uint16_t s, int dtype, float factor) {
  uint16_t h = nb_f32_to_f16(load16(dtype, s));
  h = nb_f32_to_f16(nb_f16_to_f32(h) * factor);
  h = nb_f32_to_f16(nb_f16_to_f32(h) * 128.0f);
  return nb_f16_to_f32(h) < 2.0f ? 0 : (uint8_t)(h >> 7);
}

int nb_marlin_nvfp4_check(const nb_tensor *scales, const char *what) {
  NB_TRY(nb_expect_float16(scales, what));
  int64_t n = scales->ndim ? scales->shape[scales->ndim - 1] : 1;
  if (n % 4) return nb_fail(NB_EINVAL, "%s: N = %lld is not a multiple of 4", what, (long long)n);
  return NB_OK;
}

int nb_marlin_nvfp4_scales(nb_tensor *out, const nb_tensor *scales, double factor) {
  /* From so many scales on a table of all 16-bit values is faster than doing each. */
  enum { TABLE_FROM = 1 << 17, VALUES = 1 << 16 };
  static const uint8_t order[4] = {0, 2, 1, 3};
  const char *what = "marlin nvfp4_scales";
  NB_TRY(nb_marlin_nvfp4_check(scales, what));
  NB_TRY(same_shape(out, NB_F8_E4M3, scales, what));
  int64_t count = nb_tensor_numel(scales);
  const uint16_t *s = scales->data;
  uint8_t *to = out->data, *code = count < TABLE_FROM ? NULL : nb_alloc(VALUES, 1);
  for (int v = 0; code && v < VALUES; v++) code[v] = nvfp4_code((uint16_t)v, scales->dtype, (float)factor);
#pragma omp parallel for schedule(static) num_threads(nb_threads()) if (code != NULL)
  for (int64_t i = 0; i < count; i += 4)
    for (int j = 0; j < 4; j++) {
      uint16_t v = s[i + order[j]];
      to[i + j] = code ? code[v] : nvfp4_code(v, scales->dtype, (float)factor);
    }
  free(code);
  return NB_OK;
}

int nb_marlin_mx_check(const nb_tensor *scales, const char *what) {
  if (nb_dtype_bits(scales->dtype) != 8 || scales->ndim < 1)
    return nb_fail(NB_EINVAL, "%s: expected 8-bit scales, found %s of %d dimensions", what,
                   nb_dtype_name(scales->dtype), scales->ndim);
  int64_t n = scales->shape[scales->ndim - 1];
  if (n % 4) return nb_fail(NB_EINVAL, "%s: N = %lld is not a multiple of 4", what, (long long)n);
  return NB_OK;
}

/* MX block scales (E8M0 bytes). fp4's exponent in fp8 is 6 lower, so with a8 scales rise by 6. */
int nb_marlin_mx_scales(nb_tensor *out, const nb_tensor *scales, int a8) {
  static const uint8_t order[4] = {0, 2, 1, 3};
  const char *what = "marlin mx_scales";
  NB_TRY(nb_marlin_mx_check(scales, what));
  NB_TRY(same_shape(out, scales->dtype, scales, what));
  const uint8_t *s = scales->data;
  uint8_t *to = out->data;
  for (int64_t i = 0; i < nb_tensor_numel(scales); i++) {
    if (!a8) {
      to[i] = s[i / 4 * 4 + order[i % 4]];
      continue;
    }
    if (s[i] > 248) /* 255 is NaN */
      return nb_fail(
          NB_EINVAL,
          "%s: scale 2^%d at position %lld is too large for fp8 activations: at most 2^121 is possible", what,
          s[i] - 127, (long long)i + 1);
    to[i] = (uint8_t)(s[i] + 6);
  }
  return NB_OK;
}

/* ---- block scales in the tensor cores' order ------------------------------------ */

int nb_swizzle_shape(int64_t shape[3], const nb_tensor *plain, const char *what) {
  int d = plain->ndim;
  int64_t bits = nb_dtype_bits(plain->dtype);
  if ((bits != 8 && bits != 16) || (d != 2 && d != 3))
    return nb_fail(NB_EINVAL,
                   "%s: expected scales [m,k] or [e,m,k] of 8 or 16 bits, found %s of %d dimensions", what,
                   nb_dtype_name(plain->dtype), d);
  memcpy(shape, plain->shape, 3 * sizeof *shape);
  shape[d - 2] = NB_CEIL(shape[d - 2], 128) * 128;
  shape[d - 1] = NB_CEIL(shape[d - 1], 4) * 4;
  return NB_OK;
}

/* Plain and swizzled stacks [e,m,k] and [e,mp,kp], mp and kp up to multiples of 128 and 4. */
static int swizzle_checks(const nb_tensor *plain, const nb_tensor *swizzled, int64_t *bytes,
                          const char *what) {
  int64_t shape[3];
  *bytes = nb_dtype_bits(plain->dtype) / 8;
  NB_TRY(nb_swizzle_shape(shape, plain, what));
  return nb_expect(swizzled, what, plain->dtype, plain->ndim, shape);
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

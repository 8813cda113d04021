/* cast.c - casts among all number formats.
 *
 * Two roads. Formats of 24 significant bits or fewer go through float32, block
 * by block: decoding is exact, encoding rounds once. As soon as one side is
 * wider (f64, 32- and 64-bit integers) elements go through long double, whose 64
 * significant bits hold every such value exactly; towards a narrow float the
 * value is first rounded to odd in float32, which leaves the second rounding
 * what a single one would have given.
 *
 * Small floats, sign s, exponent e, mantissa m, LSB first in their packing:
 *   f8_e4m3  s eeee mmm   bias 7, no inf, NaN 0x7f, max 448
 *   f8_e5m2  s eeeee mm   bias 15, IEEE, max 57344
 *   fnuz     as above with bias 8 and 16, no inf, no -0: 0x80 is the only NaN
 *   f8_e8m0  eeeeeeee     2^(e-127), 255 is NaN
 *   f6_e2m3  s ee mmm     bias 1, max 7.5      f6_e3m2  s eee mm  bias 3, max 28
 *   f4       s ee m       bias 1, max 6 */
#include "cast.h"

#include <math.h>

/* ---- small floats ----------------------------------------------------------- */

typedef struct small_float {
  int bits, mantissa, bias;
  int max;      /* the code of the greatest finite magnitude */
  int overflow; /* the code (with sign added) beyond it; -1: max */
  int nan;      /* the code of NaN; -1: there is none, NaN becomes max */
  bool unsigned_zero; /* fnuz: the sign bit alone means NaN */
} small_float;

static const small_float *small_of(int dtype) {
  static const small_float e4m3 = {8, 3, 7, 0x7e, -1, 0x7f, false}, e5m2 = {8, 2, 15, 0x7b, 0x7c, 0x7f, false},
                           e4m3fnuz = {8, 3, 8, 0x7f, 0x80, 0x80, true},
                           e5m2fnuz = {8, 2, 16, 0x7f, 0x80, 0x80, true}, f6a = {6, 3, 1, 31, -1, -1, false},
                           f6b = {6, 2, 3, 31, -1, -1, false}, f4 = {4, 1, 1, 7, -1, -1, false};
  switch (dtype) {
  case NB_F8_E4M3: return &e4m3;
  case NB_F8_E5M2: return &e5m2;
  case NB_F8_E4M3FNUZ: return &e4m3fnuz;
  case NB_F8_E5M2FNUZ: return &e5m2fnuz;
  case NB_F6_E2M3: return &f6a;
  case NB_F6_E3M2: return &f6b;
  case NB_F4: return &f4;
  default: return NULL;
  }
}

static float small_decode(const small_float *t, int code) {
  int sign = code >> (t->bits - 1), magnitude = code & ((1 << (t->bits - 1)) - 1);
  /* Infinity and NaN keep sign and mantissa, NaN quiet; fnuz has one NaN, the least one. */
  if (t->unsigned_zero && sign && !magnitude) return nb_f32_from_bits(0x7f800001u);
  if (!t->unsigned_zero && t->nan >= 0 && magnitude > t->max) {
    uint32_t m = (uint32_t)(magnitude & ((1 << t->mantissa) - 1)) << (23 - t->mantissa);
    return nb_f32_from_bits((uint32_t)sign << 31 | 0x7f800000u | m | (m ? 0x400000u : 0));
  }
  int e = magnitude >> t->mantissa, m = magnitude & ((1 << t->mantissa) - 1);
  float v = e ? ldexpf((float)(m | 1 << t->mantissa), e - t->bias - t->mantissa)
              : ldexpf((float)m, 1 - t->bias - t->mantissa);
  return sign ? -v : v;
}

/* saturate: what lies beyond the range, infinities too, becomes the greatest finite value. */
static int small_encode(const small_float *t, float f, bool saturate) {
  uint32_t u = nb_f32_bits(f), a = u & 0x7fffffffu;
  int sign = (int)(u >> 31) << (t->bits - 1), code;
  if (a > 0x7f800000u) return t->unsigned_zero ? t->nan : sign | (t->nan < 0 ? t->max : t->nan);
  int smallest = 1 - t->bias; /* exponent of the least normal value */
  if (a < (uint32_t)(smallest + 127) << 23) {
    /* The adder rounds at the subnormals' step: 2^(smallest - mantissa). */
    float magic = ldexpf(1.0f, smallest - t->mantissa + 23);
    code = (int)(nb_f32_bits(nb_f32_from_bits(a) + magic) - nb_f32_bits(magic));
  } else {
    int drop = 23 - t->mantissa;
    a += (1u << (drop - 1)) - 1u + ((a >> drop) & 1u);
    code = (int)(a >> drop) - ((127 - t->bias) << t->mantissa);
  }
  if (code > t->max) {
    if (saturate || t->overflow < 0) return sign | t->max;
    return t->unsigned_zero ? t->overflow : sign | t->overflow;
  }
  if (t->unsigned_zero && code == 0) return 0;
  if (t->bits == 4 && a == 0) return 0; /* fp4's peers drop the sign of -0, but not of what rounds to 0 */
  return sign | code;
}

static float e8m0_decode(int code) {
  if (code == 255) return nb_f32_from_bits(0x7f800001u);
  return code == 0 ? nb_f32_from_bits(0x00400000u) : nb_f32_from_bits((uint32_t)code << 23);
}

/* The nearest power of two, halves up, sign dropped (torch's rule). */
static int e8m0_encode(float f) {
  uint32_t a = nb_f32_bits(f) & 0x7fffffffu;
  uint32_t e = a >> 23, up = (a >> 22) & 1u;
  if (e == 255) return 255;
  if (e == 0) return (a & 0x7fffffu) > 0x400000u ? 1 : 0;
  return (int)(e + up);
}

/* ---- blocks through float32 --------------------------------------------------- */

/* Packed elements i of 4 and 6 bits, LSB first. */
static int get4(const uint8_t *p, int64_t i) { return p[i >> 1] >> (4 * (i & 1)) & 15; }
static int get6(const uint8_t *p, int64_t i) {
  int64_t bit = 6 * i, byte = bit >> 3;
  int shift = (int)(bit & 7), v = p[byte] >> shift;
  if (shift > 2) v |= p[byte + 1] << (8 - shift);
  return v & 63;
}
static void put4(uint8_t *p, int64_t i, int v) {
  int shift = 4 * (int)(i & 1);
  p[i >> 1] = (uint8_t)((p[i >> 1] & ~(15 << shift)) | v << shift);
}
static void put6(uint8_t *p, int64_t i, int v) {
  int64_t bit = 6 * i, byte = bit >> 3;
  int shift = (int)(bit & 7);
  p[byte] = (uint8_t)((p[byte] & ~(63 << shift)) | v << shift);
  if (shift > 2) p[byte + 1] = (uint8_t)((p[byte + 1] & ~(63 >> (8 - shift))) | v >> (8 - shift));
}

static void widen_bf16(float *out, const uint16_t *in, int64_t n) {
  for (int64_t i = 0; i < n; i++) out[i] = nb_bf16_to_f32(in[i]);
}
static void widen_f16(float *out, const uint16_t *in, int64_t n) {
  for (int64_t i = 0; i < n; i++) out[i] = nb_f16_to_f32(in[i]);
}
static void narrow_bf16(uint16_t *out, const float *in, int64_t n) {
  for (int64_t i = 0; i < n; i++) out[i] = nb_f32_to_bf16(in[i]);
}
static void narrow_f16(uint16_t *out, const float *in, int64_t n) {
  for (int64_t i = 0; i < n; i++) out[i] = nb_f32_to_f16(in[i]);
}

void nb_decode_block(float *out, int dtype, const void *p, int64_t n) {
  bool avx2 = nb_cpu() & NB_CPU_AVX2;
  const small_float *t = small_of(dtype);
  float table[256];
  if (t)
    for (int i = 0; i < 1 << t->bits; i++) table[i] = small_decode(t, i);
  switch (dtype) {
  case NB_F32: memcpy(out, p, (size_t)n * 4); break;
  case NB_BF16: (avx2 ? nb_widen_bf16_avx2 : widen_bf16)(out, p, n); break;
  case NB_F16: (avx2 ? nb_widen_f16_avx2 : widen_f16)(out, p, n); break;
  case NB_F8_E8M0: for (int64_t i = 0; i < n; i++) out[i] = e8m0_decode(((const uint8_t *)p)[i]); break;
  case NB_F4: for (int64_t i = 0; i < n; i++) out[i] = table[get4(p, i)]; break;
  case NB_F6_E2M3: case NB_F6_E3M2: for (int64_t i = 0; i < n; i++) out[i] = table[get6(p, i)]; break;
  case NB_U4: for (int64_t i = 0; i < n; i++) out[i] = (float)get4(p, i); break;
  case NB_I4: for (int64_t i = 0; i < n; i++) out[i] = (float)((get4(p, i) ^ 8) - 8); break;
  case NB_BOOL: for (int64_t i = 0; i < n; i++) out[i] = ((const uint8_t *)p)[i] != 0; break;
  case NB_U8: for (int64_t i = 0; i < n; i++) out[i] = ((const uint8_t *)p)[i]; break;
  case NB_I8: for (int64_t i = 0; i < n; i++) out[i] = ((const int8_t *)p)[i]; break;
  case NB_U16: for (int64_t i = 0; i < n; i++) out[i] = ((const uint16_t *)p)[i]; break;
  case NB_I16: for (int64_t i = 0; i < n; i++) out[i] = ((const int16_t *)p)[i]; break;
  default: for (int64_t i = 0; i < n; i++) out[i] = table[((const uint8_t *)p)[i]]; break; /* fp8 */
  }
}

/* Half to even, into [lo, hi]; NaN is 0. */
static int to_int(float f, int lo, int hi) {
  if (f != f) return 0;
  f = rintf(f);
  return f <= (float)lo ? lo : f >= (float)hi ? hi : (int)f;
}

void nb_encode_block(void *p, int dtype, const float *in, int64_t n, bool saturate) {
  bool avx2 = nb_cpu() & NB_CPU_AVX2;
  const small_float *t = small_of(dtype);
  switch (dtype) {
  case NB_F32: memcpy(p, in, (size_t)n * 4); break;
  case NB_BF16: (avx2 ? nb_narrow_bf16_avx2 : narrow_bf16)(p, in, n); break;
  case NB_F16: (avx2 ? nb_narrow_f16_avx2 : narrow_f16)(p, in, n); break;
  case NB_F8_E8M0: for (int64_t i = 0; i < n; i++) ((uint8_t *)p)[i] = (uint8_t)e8m0_encode(in[i]); break;
  case NB_F4: for (int64_t i = 0; i < n; i++) put4(p, i, small_encode(t, in[i], saturate)); break;
  case NB_F6_E2M3: case NB_F6_E3M2:
    for (int64_t i = 0; i < n; i++) put6(p, i, small_encode(t, in[i], saturate));
    break;
  case NB_U4: for (int64_t i = 0; i < n; i++) put4(p, i, to_int(in[i], 0, 15)); break;
  case NB_I4: for (int64_t i = 0; i < n; i++) put4(p, i, to_int(in[i], -8, 7) & 15); break;
  case NB_BOOL: for (int64_t i = 0; i < n; i++) ((uint8_t *)p)[i] = in[i] != 0; break;
  case NB_U8: for (int64_t i = 0; i < n; i++) ((uint8_t *)p)[i] = (uint8_t)to_int(in[i], 0, 255); break;
  case NB_I8: for (int64_t i = 0; i < n; i++) ((int8_t *)p)[i] = (int8_t)to_int(in[i], -128, 127); break;
  case NB_U16: for (int64_t i = 0; i < n; i++) ((uint16_t *)p)[i] = (uint16_t)to_int(in[i], 0, 65535); break;
  case NB_I16: for (int64_t i = 0; i < n; i++) ((int16_t *)p)[i] = (int16_t)to_int(in[i], -32768, 32767); break;
  default: for (int64_t i = 0; i < n; i++) ((uint8_t *)p)[i] = (uint8_t)small_encode(t, in[i], saturate); break;
  }
}

/* ---- elements through long double ------------------------------------------------ */

static bool is_wide(int dtype) {
  return dtype == NB_F64 || dtype == NB_I32 || dtype == NB_U32 || dtype == NB_I64 || dtype == NB_U64;
}

static long double wide_get(int dtype, const void *p, int64_t i) {
  switch (dtype) {
  case NB_F64: return ((const double *)p)[i];
  case NB_I32: return ((const int32_t *)p)[i];
  case NB_U32: return ((const uint32_t *)p)[i];
  case NB_I64: return ((const int64_t *)p)[i];
  default: return ((const uint64_t *)p)[i];
  }
}

static void wide_put(int dtype, void *p, int64_t i, long double v) {
  if (dtype == NB_F64) {
    ((double *)p)[i] = (double)v;
    return;
  }
  v = v != v ? 0 : rintl(v);
  switch (dtype) {
  case NB_I32: ((int32_t *)p)[i] = v <= INT32_MIN ? INT32_MIN : v >= INT32_MAX ? INT32_MAX : (int32_t)v; break;
  case NB_U32: ((uint32_t *)p)[i] = v <= 0 ? 0 : v >= UINT32_MAX ? UINT32_MAX : (uint32_t)v; break;
  case NB_I64: ((int64_t *)p)[i] = v <= (long double)INT64_MIN ? INT64_MIN : v >= (long double)INT64_MAX ? INT64_MAX : (int64_t)v; break;
  default: ((uint64_t *)p)[i] = v <= 0 ? 0 : v >= (long double)UINT64_MAX ? UINT64_MAX : (uint64_t)v; break;
  }
}

/* Truncated to float32 with the last bit set where something was cut off. */
static float round_to_odd(long double v) {
  float f = (float)v;
  if ((long double)f == v || f != f) return f;
  uint32_t u = nb_f32_bits(f);
  if (fabsl((long double)f) > fabsl(v)) u--;
  return nb_f32_from_bits(u | 1u);
}

static void cast_wide(char *to, int td, const char *from, int fd, int64_t n, bool saturate, float *scratch) {
  if (is_wide(fd) && is_wide(td)) {
    for (int64_t i = 0; i < n; i++) wide_put(td, to, i, wide_get(fd, from, i));
  } else if (is_wide(fd)) {
    for (int64_t i = 0; i < n; i++)
      scratch[i] = td == NB_F32 ? (float)wide_get(fd, from, i) : round_to_odd(wide_get(fd, from, i));
    nb_encode_block(to, td, scratch, n, saturate);
  } else {
    nb_decode_block(scratch, fd, from, n);
    for (int64_t i = 0; i < n; i++) wide_put(td, to, i, scratch[i]);
  }
}

/* ---- the cast -------------------------------------------------------------------- */

int nb_cast(nb_tensor *dst, const nb_tensor *src, int saturate) {
  int64_t n = nb_tensor_numel(src);
  int td = dst->dtype, fd = src->dtype;
  if (nb_tensor_numel(dst) != n) {
    char a[160], b[160];
    return nb_fail(NB_EINVAL, "cast: %s and %s have different numbers of elements",
                   nb_tensor_describe(dst, a, sizeof a), nb_tensor_describe(src, b, sizeof b));
  }
  if (td == fd) return nb_tensor_copy(dst, src);
  if (td == NB_C64 || fd == NB_C64)
    return nb_fail(NB_EUNSUPPORTED, "cast from %s to %s: complex numbers are only copied", nb_dtype_name(fd),
                   nb_dtype_name(td));
  bool wide = is_wide(td) || is_wide(fd);
  int64_t blocks = NB_CEIL(n, (int64_t)NB_CAST_BLOCK);
  bool stopped = false;
#pragma omp parallel for schedule(static) num_threads(nb_threads()) if (blocks > 16)
  for (int64_t b = 0; b < blocks; b++) {
    if (nb_stop_requested()) {
#pragma omp atomic write
      stopped = true;
      continue;
    }
    float scratch[NB_CAST_BLOCK];
    int64_t at = b * NB_CAST_BLOCK, count = NB_MIN((int64_t)NB_CAST_BLOCK, n - at);
    char *to = (char *)dst->data + at * nb_dtype_bits(td) / 8;
    const char *from = (const char *)src->data + at * nb_dtype_bits(fd) / 8;
    if (wide) {
      cast_wide(to, td, from, fd, count, saturate != 0, scratch);
    } else if (td == NB_F32) {
      nb_decode_block((float *)(void *)to, fd, from, count);
    } else if (fd == NB_F32) {
      nb_encode_block(to, td, (const float *)(const void *)from, count, saturate != 0);
    } else {
      nb_decode_block(scratch, fd, from, count);
      nb_encode_block(to, td, scratch, count, saturate != 0);
    }
  }
  return stopped ? nb_fail_stopped() : NB_OK;
}

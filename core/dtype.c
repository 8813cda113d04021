/* dtype.c - the number formats: names, sizes, and blocks of values to and from f32. */
#include "dtype.h"

#include "blocks.h"

#include <math.h>
#include <pthread.h>
#include <strings.h>

static const struct {
  const char *name;
  int bits;
} dtypes[NB_NDTYPES] = {
    [NB_BOOL] = {"bool", 8},
    [NB_F4] = {"f4", 4},
    [NB_F6_E2M3] = {"f6_e2m3", 6},
    [NB_F6_E3M2] = {"f6_e3m2", 6},
    [NB_U8] = {"u8", 8},
    [NB_I8] = {"i8", 8},
    [NB_F8_E5M2] = {"f8_e5m2", 8},
    [NB_F8_E4M3] = {"f8_e4m3", 8},
    [NB_F8_E8M0] = {"f8_e8m0", 8},
    [NB_F8_E4M3FNUZ] = {"f8_e4m3fnuz", 8},
    [NB_F8_E5M2FNUZ] = {"f8_e5m2fnuz", 8},
    [NB_I16] = {"i16", 16},
    [NB_U16] = {"u16", 16},
    [NB_F16] = {"f16", 16},
    [NB_BF16] = {"bf16", 16},
    [NB_I32] = {"i32", 32},
    [NB_U32] = {"u32", 32},
    [NB_F32] = {"f32", 32},
    [NB_C64] = {"c64", 64},
    [NB_F64] = {"f64", 64},
    [NB_I64] = {"i64", 64},
    [NB_U64] = {"u64", 64},
    [NB_I4] = {"i4", 4},
    [NB_U4] = {"u4", 4},
};

static bool known(int dtype) { return dtype >= 0 && dtype < NB_NDTYPES; }

int64_t nb_dtype_bits(int dtype) { return known(dtype) ? dtypes[dtype].bits : 0; }

const char *nb_dtype_name(int dtype) { return known(dtype) ? dtypes[dtype].name : NULL; }

int nb_dtype_parse(const char *name) {
  for (int i = 0; name && i < NB_NDTYPES; i++)
    if (strcasecmp(name, dtypes[i].name) == 0) return i;
  return -1;
}

/* ---- the small floats ----------------------------------------------------- */

/* over: e5m2 and the fnuz overflow from the middle between their largest value and
 * the next power of two up (the tie's mantissa is odd, so it goes up); the others
 * have no infinity and stay at their largest value. */
static const nb_small_float smalls[NB_NDTYPES] = {
    [NB_F4] = {2, 1, 1, 0x40c00000, 0x07, 0x07, false, false, true, 6.0f},
    [NB_F6_E2M3] = {2, 3, 1, 0x40f00000, 0x1f, 0x1f, false, false, false, 7.5f},
    [NB_F6_E3M2] = {3, 2, 3, 0x41e00000, 0x1f, 0x1f, false, false, false, 28.0f},
    [NB_F8_E5M2] = {5, 2, 15, 0x47700000, 0x7c, 0x7f, true, false, false, 57344.0f},
    [NB_F8_E4M3] = {4, 3, 7, 0x43e00000, 0x7e, 0x7f, true, false, false, 448.0f},
    [NB_F8_E4M3FNUZ] = {4, 3, 8, 0x43780000, 0x80, 0x80, false, true, false, 240.0f},
    [NB_F8_E5M2FNUZ] = {5, 2, 16, 0x47700000, 0x80, 0x80, false, true, false, 57344.0f},
};

const nb_small_float *nb_small_of(int dtype) {
  return known(dtype) && smalls[dtype].ebits ? &smalls[dtype] : NULL;
}

static float small_value(unsigned code, int dtype) {
  const nb_small_float *s = &smalls[dtype];
  int width = s->ebits + s->mbits;
  uint32_t mag = code & ((1u << width) - 1), sign = (uint32_t)(code >> width) << 31;
  /* Infinity and NaN keep sign and mantissa, NaN quiet; the fnuz's one NaN is torch's. */
  if (s->code_0x80_is_nan && code == 0x80) return nb_f32_from_bits(0x7f800001u);
  if ((dtype == NB_F8_E4M3 && mag == 0x7f) || (dtype == NB_F8_E5M2 && mag >= 0x7c)) {
    uint32_t m = (mag & ((1u << s->mbits) - 1)) << (23 - s->mbits);
    return nb_f32_from_bits(sign | 0x7f800000u | m | (m ? 0x400000u : 0));
  }
  float f = nb_f32_from_bits(mag << (23 - s->mbits)) * nb_f32_from_bits((uint32_t)(254 - s->bias) << 23);
  return nb_f32_from_bits(sign | nb_f32_bits(f));
}

static float values[NB_NDTYPES][256];
static pthread_once_t values_once = PTHREAD_ONCE_INIT;

static float code_value(unsigned c, int dtype) {
  switch (dtype) {
  case NB_BOOL: return c != 0;
  case NB_U8: return (float)c;
  case NB_I8: return (float)(int8_t)c;
  case NB_U4: return (float)(c & 15u);
  case NB_I4: return (float)((int)(c & 15u) - (int)((c & 8u) << 1));
  case NB_F8_E8M0: return nb_e8m0_to_f32((uint8_t)c);
  default: return small_value(c, dtype);
  }
}

static void fill_values(void) {
  for (int d = 0; d < NB_NDTYPES; d++)
    for (unsigned c = 0; c < 256 && dtypes[d].bits <= 8; c++) values[d][c] = code_value(c, d);
}

const float *nb_code_values(int dtype) {
  if (!known(dtype) || dtypes[dtype].bits > 8) return NULL;
  pthread_once(&values_once, fill_values);
  return values[dtype];
}

/* ---- portable loads -------------------------------------------------------- */

#define LOAD_CODES(name, dtype) \
  static void load_##name(float *out, const void *in, int64_t n) { \
    const uint8_t *p = in; \
    const float *v = nb_code_values(dtype); \
    for (int64_t i = 0; i < n; i++) out[i] = v[p[i]]; \
  }
LOAD_CODES(bool, NB_BOOL)
LOAD_CODES(f8_e5m2, NB_F8_E5M2)
LOAD_CODES(f8_e4m3, NB_F8_E4M3)
LOAD_CODES(f8_e8m0, NB_F8_E8M0)
LOAD_CODES(f8_e4m3fnuz, NB_F8_E4M3FNUZ)
LOAD_CODES(f8_e5m2fnuz, NB_F8_E5M2FNUZ)

#define LOAD_PLAIN(name, ctype, expr) \
  static void load_##name(float *out, const void *in, int64_t n) { \
    const ctype *p = in; \
    for (int64_t i = 0; i < n; i++) out[i] = expr(p[i]); \
  }
LOAD_PLAIN(u8, uint8_t, (float))
LOAD_PLAIN(i8, int8_t, (float))
LOAD_PLAIN(u16, uint16_t, (float))
LOAD_PLAIN(i16, int16_t, (float))
LOAD_PLAIN(f16, uint16_t, nb_f16_to_f32)
LOAD_PLAIN(bf16, uint16_t, nb_bf16_to_f32)

static void load_f32(float *out, const void *in, int64_t n) { memcpy(out, in, (size_t)n * 4); }

/* Two to a byte, the low nibble first. */
static void load_nibbles(float *out, const uint8_t *in, int64_t n, const float *v) {
  for (int64_t i = 0; i < n / 2; i++) {
    out[2 * i] = v[in[i] & 15];
    out[2 * i + 1] = v[in[i] >> 4];
  }
}
static void load_f4(float *out, const void *in, int64_t n) {
  load_nibbles(out, in, n, nb_code_values(NB_F4));
}
static void load_i4(float *out, const void *in, int64_t n) {
  load_nibbles(out, in, n, nb_code_values(NB_I4));
}
static void load_u4(float *out, const void *in, int64_t n) {
  load_nibbles(out, in, n, nb_code_values(NB_U4));
}

/* Four to three bytes, a stream of bits from the lowest up. */
static void load_f6(float *out, const uint8_t *in, int64_t n, const float *v) {
  for (; n > 0; n -= 4, in += 3, out += 4) {
    uint32_t w = (uint32_t)in[0] | (uint32_t)in[1] << 8 | (uint32_t)in[2] << 16;
    for (int i = 0; i < 4; i++) out[i] = v[w >> (6 * i) & 63];
  }
}
static void load_f6_e2m3(float *out, const void *in, int64_t n) {
  load_f6(out, in, n, nb_code_values(NB_F6_E2M3));
}
static void load_f6_e3m2(float *out, const void *in, int64_t n) {
  load_f6(out, in, n, nb_code_values(NB_F6_E3M2));
}

/* ---- portable stores ------------------------------------------------------- */

#define STORE_PLAIN(name, ctype, expr) \
  static void store_##name(void *out, const float *in, int64_t n) { \
    ctype *p = out; \
    for (int64_t i = 0; i < n; i++) p[i] = (ctype)(expr(in[i])); \
  }
STORE_PLAIN(f64, double, )
STORE_PLAIN(f16, uint16_t, nb_f32_to_f16)
STORE_PLAIN(bf16, uint16_t, nb_f32_to_bf16)
STORE_PLAIN(f8_e8m0, uint8_t, nb_f32_to_e8m0)

static void store_f32(void *out, const float *in, int64_t n) { memcpy(out, in, (size_t)n * 4); }
static void store_bool(void *out, const float *in, int64_t n) {
  for (int64_t i = 0; i < n; i++) ((uint8_t *)out)[i] = in[i] != 0;
}

#define STORE_SMALL(name, dtype) \
  static void store_##name(void *out, const float *in, int64_t n) { \
    for (int64_t i = 0; i < n; i++) ((uint8_t *)out)[i] = nb_f32_to_small(in[i], &smalls[dtype]); \
  }
STORE_SMALL(f8_e5m2, NB_F8_E5M2)
STORE_SMALL(f8_e4m3, NB_F8_E4M3)
STORE_SMALL(f8_e4m3fnuz, NB_F8_E4M3FNUZ)
STORE_SMALL(f8_e5m2fnuz, NB_F8_E5M2FNUZ)

#define STORE_INT(name, ctype, lo, hi) \
  static void store_##name(void *out, const float *in, int64_t n) { \
    ctype *p = out; \
    for (int64_t i = 0; i < n; i++) p[i] = (ctype)nb_round_clamp(in[i], lo, hi); \
  }
/* The upper bounds round to powers of two as f32, so they compare with >=. */
#define STORE_WIDE(name, ctype, lo, lo_f, hi, hi_f) \
  static void store_##name(void *out, const float *in, int64_t n) { \
    ctype *p = out; \
    for (int64_t i = 0; i < n; i++) \
      p[i] = in[i] != in[i] ? 0 : in[i] <= lo_f ? lo : in[i] >= hi_f ? hi : (ctype)rintf(in[i]); \
  }
STORE_INT(u8, uint8_t, 0, 255)
STORE_INT(i8, int8_t, -128, 127)
STORE_INT(u16, uint16_t, 0, 65535)
STORE_INT(i16, int16_t, -32768, 32767)
STORE_WIDE(i32, int32_t, INT32_MIN, -0x1p31f, INT32_MAX, 0x1p31f)
STORE_WIDE(u32, uint32_t, 0, 0.0f, UINT32_MAX, 0x1p32f)
STORE_WIDE(i64, int64_t, INT64_MIN, -0x1p63f, INT64_MAX, 0x1p63f)
STORE_WIDE(u64, uint64_t, 0, 0.0f, UINT64_MAX, 0x1p64f)

static void store_f4(void *out, const float *in, int64_t n) {
  const nb_small_float *s = &smalls[NB_F4];
  for (int64_t i = 0; i < n / 2; i++)
    ((uint8_t *)out)[i] = (uint8_t)(nb_f32_to_small(in[2 * i], s) | nb_f32_to_small(in[2 * i + 1], s) << 4);
}
static void store_int4(uint8_t *out, const float *in, int64_t n, float lo, float hi) {
  for (int64_t i = 0; i < n / 2; i++)
    out[i] = (uint8_t)((nb_round_clamp(in[2 * i], lo, hi) & 15) | (nb_round_clamp(in[2 * i + 1], lo, hi) & 15)
                                                                      << 4);
}
static void store_i4(void *out, const float *in, int64_t n) { store_int4(out, in, n, -8, 7); }
static void store_u4(void *out, const float *in, int64_t n) { store_int4(out, in, n, 0, 15); }

static void store_f6(uint8_t *out, const float *in, int64_t n, const nb_small_float *s) {
  for (; n > 0; n -= 4, in += 4, out += 3) {
    uint32_t w = 0;
    for (int i = 0; i < 4; i++) w |= (uint32_t)nb_f32_to_small(in[i], s) << (6 * i);
    out[0] = (uint8_t)w;
    out[1] = (uint8_t)(w >> 8);
    out[2] = (uint8_t)(w >> 16);
  }
}
static void store_f6_e2m3(void *out, const float *in, int64_t n) {
  store_f6(out, in, n, &smalls[NB_F6_E2M3]);
}
static void store_f6_e3m2(void *out, const float *in, int64_t n) {
  store_f6(out, in, n, &smalls[NB_F6_E3M2]);
}

/* ---- choosing --------------------------------------------------------------- */

static nb_load_fn *const loads[NB_NDTYPES] = {
    [NB_BOOL] = load_bool,
    [NB_F4] = load_f4,
    [NB_F6_E2M3] = load_f6_e2m3,
    [NB_F6_E3M2] = load_f6_e3m2,
    [NB_U8] = load_u8,
    [NB_I8] = load_i8,
    [NB_F8_E5M2] = load_f8_e5m2,
    [NB_F8_E4M3] = load_f8_e4m3,
    [NB_F8_E8M0] = load_f8_e8m0,
    [NB_F8_E4M3FNUZ] = load_f8_e4m3fnuz,
    [NB_F8_E5M2FNUZ] = load_f8_e5m2fnuz,
    [NB_I16] = load_i16,
    [NB_U16] = load_u16,
    [NB_F16] = load_f16,
    [NB_BF16] = load_bf16,
    [NB_F32] = load_f32,
    [NB_I4] = load_i4,
    [NB_U4] = load_u4,
};
static nb_store_fn *const stores[NB_NDTYPES] = {
    [NB_BOOL] = store_bool,
    [NB_F4] = store_f4,
    [NB_F6_E2M3] = store_f6_e2m3,
    [NB_F6_E3M2] = store_f6_e3m2,
    [NB_U8] = store_u8,
    [NB_I8] = store_i8,
    [NB_F8_E5M2] = store_f8_e5m2,
    [NB_F8_E4M3] = store_f8_e4m3,
    [NB_F8_E8M0] = store_f8_e8m0,
    [NB_F8_E4M3FNUZ] = store_f8_e4m3fnuz,
    [NB_F8_E5M2FNUZ] = store_f8_e5m2fnuz,
    [NB_I16] = store_i16,
    [NB_U16] = store_u16,
    [NB_F16] = store_f16,
    [NB_BF16] = store_bf16,
    [NB_I32] = store_i32,
    [NB_U32] = store_u32,
    [NB_F32] = store_f32,
    [NB_F64] = store_f64,
    [NB_I64] = store_i64,
    [NB_U64] = store_u64,
    [NB_I4] = store_i4,
    [NB_U4] = store_u4,
};

nb_load_fn *nb_load_of(int dtype) {
  nb_load_fn *f = NULL;
  if (!known(dtype)) return NULL;
  if (nb_cpu() & NB_CPU_AVX512) f = nb_load_avx512(dtype);
  if (!f && (nb_cpu() & NB_CPU_AVX2)) f = nb_load_avx2(dtype);
  return f ? f : loads[dtype];
}

nb_store_fn *nb_store_of(int dtype) {
  nb_store_fn *f = NULL;
  if (!known(dtype)) return NULL;
  if (nb_cpu() & NB_CPU_AVX512) f = nb_store_avx512(dtype);
  if (!f && (nb_cpu() & NB_CPU_AVX2)) f = nb_store_avx2(dtype);
  return f ? f : stores[dtype];
}

void nb_load_f64(double *out, const void *in, int dtype, int64_t n) {
  switch (dtype) {
  case NB_F64: memcpy(out, in, (size_t)n * 8); return;
  case NB_I32:
    for (int64_t i = 0; i < n; i++) out[i] = ((const int32_t *)in)[i];
    return;
  case NB_U32:
    for (int64_t i = 0; i < n; i++) out[i] = ((const uint32_t *)in)[i];
    return;
  case NB_I64:
    for (int64_t i = 0; i < n; i++) out[i] = (double)((const int64_t *)in)[i];
    return;
  case NB_U64:
    for (int64_t i = 0; i < n; i++) out[i] = (double)((const uint64_t *)in)[i];
    return;
  default: break;
  }
  enum { BLOCK = 512 };
  float f[BLOCK];
  nb_load_fn *load = nb_load_of(dtype);
  const nb_blocks *blocks = nb_blocks_get();
  for (int64_t done = 0; done < n; done += BLOCK) {
    int64_t m = NB_MIN(BLOCK, n - done);
    load(f, (const char *)in + done * nb_dtype_bits(dtype) / 8, m);
    blocks->widen(out + done, f, m);
  }
}

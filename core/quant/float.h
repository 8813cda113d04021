/* float.h - round to nearest onto small floats (e4m3, e2m1): the inner loops, written once
 * over vectors of eight and compiled once for each instruction set. Divisions stay
 * divisions, and nothing is contracted: every instruction set gives the same bytes. */
#ifndef NB_QUANT_FLOAT_H
#define NB_QUANT_FLOAT_H

#include "dtype.h"
#include "groups.h"

#ifdef __AVX2__
#include <immintrin.h>
#endif

/* What NVFP4's and MX's scales are made by. */
typedef struct nb_float_scales {
  float global;       /* NVFP4: absmax / 6, rounded to round_to, times this, as e4m3 */
  int32_t round_to;   /* a dtype */
  int32_t nudge, top; /* MX: the exponent of the bits of absmax plus nudge, less top */
} nb_float_scales;

typedef struct nb_float_kernels {
  /* bits[g] = the magnitude bits of the largest of x's g-th `columns` values. */
  void (*absmax)(uint32_t *bits, const float *x, int64_t n, int64_t columns);
  /* bytes[g] and what weights are divided by, for n groups, n a multiple of 8: e4m3 under
   * the global scale (0 becomes 0.125), or e8m0. */
  void (*nvfp4)(uint8_t *bytes, float *divisors, const uint32_t *bits, int64_t n, const nb_float_scales *s);
  void (*mx)(uint8_t *bytes, float *divisors, const uint32_t *bits, int64_t n, const nb_float_scales *s);
  /* codes[i] = x[i] / scale[i / columns], or times it where `multiply`, rounded to dtype
   * (f32: not at all), clamped, rounded to e2m1 or e4m3; one code a byte. */
  void (*encode)(uint8_t *codes, const float *x, int64_t n, int64_t columns, const float *scale,
                 bool multiply, int dtype, bool e2m1);
} nb_float_kernels;

extern const nb_float_kernels nb_float_portable, nb_float_avx2;

/* ---- vectors --------------------------------------------------------------------- */

typedef float v8f __attribute__((vector_size(32)));
typedef int32_t v8i __attribute__((vector_size(32)));
typedef uint8_t v8b __attribute__((vector_size(8)));
enum { LANES = 8 };

#define INLINE static inline __attribute__((always_inline))

INLINE v8i splat(int32_t i) { return (v8i){i, i, i, i, i, i, i, i}; }
INLINE v8f splat_f(float f) { return (v8f){f, f, f, f, f, f, f, f}; }
INLINE v8i load(const void *x) {
  v8i v;
  memcpy(&v, x, sizeof v);
  return v;
}
/* The last n < 8 values, filled up with zeros. */
INLINE v8i load_tail(const float *x, int64_t n) {
  v8i v = {0};
  memcpy(&v, x, (size_t)n * sizeof *x);
  return v;
}

#ifdef __AVX2__
INLINE v8i select_of(v8i mask, v8i a, v8i b) {
  return (v8i)_mm256_blendv_epi8((__m256i)b, (__m256i)a, (__m256i)mask);
}
INLINE v8i larger(v8i a, v8i b) { return (v8i)_mm256_max_epi32((__m256i)a, (__m256i)b); }
INLINE v8i smaller(v8i a, v8i b) { return (v8i)_mm256_min_epi32((__m256i)a, (__m256i)b); }
/* Eight numbers below 256 as bytes. */
INLINE void put(uint8_t *to, v8i v) {
  __m128i words =
      _mm_packus_epi32(_mm256_castsi256_si128((__m256i)v), _mm256_extracti128_si256((__m256i)v, 1));
  _mm_storel_epi64((__m128i *)(void *)to, _mm_packus_epi16(words, words));
}
/* Thirty-two of them. */
INLINE void put32(uint8_t *to, v8i a, v8i b, v8i c, v8i d) {
  __m256i ab = _mm256_packus_epi32((__m256i)a, (__m256i)b), cd = _mm256_packus_epi32((__m256i)c, (__m256i)d);
  __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(ab, cd), order);
  _mm256_storeu_si256((__m256i *)(void *)to, bytes);
}
#else
INLINE v8i select_of(v8i mask, v8i a, v8i b) { return (mask & a) | (~mask & b); }
INLINE v8i larger(v8i a, v8i b) { return select_of(a > b, a, b); }
INLINE v8i smaller(v8i a, v8i b) { return select_of(a < b, a, b); }
INLINE void put(uint8_t *to, v8i v) {
  v8b bytes = __builtin_convertvector(v, v8b);
  memcpy(to, &bytes, sizeof bytes);
}
INLINE void put32(uint8_t *to, v8i a, v8i b, v8i c, v8i d) {
  put(to, a);
  put(to + 8, b);
  put(to + 16, c);
  put(to + 24, d);
}
#endif

/* Rounds to dtype and back; values are finite or infinite. */
INLINE v8f rounded(v8f x, int dtype) {
  if (dtype == NB_BF16) {
    v8i u = (v8i)x, odd = (u >> 16) & splat(1);
    return (v8f)((u + odd + splat(0x7fff)) & splat((int32_t)0xffff0000u));
  }
  if (dtype == NB_F16)
#ifdef __F16C__
    x = (v8f)_mm256_cvtph_ps(_mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT));
#else
    for (int l = 0; l < LANES; l++) x[l] = nb_round_to(x[l], NB_F16);
#endif
  return x;
}

/* nb_f32_to_small of values that are finite, clamped first. Its constants: shift 23 - mbits;
 * below `least`, the smallest normal, the addend `magic` makes the adder round; from there
 * up the exponent is taken off together with rounding half to even. */
INLINE v8i codes_of(v8f x, bool e2m1) {
  const int shift = e2m1 ? 22 : 20, bias = e2m1 ? 1 : 7, width = e2m1 ? 3 : 7;
  const int32_t largest = e2m1 ? 0x40c00000 : 0x43e00000, magic = (128 + shift - bias) << 23;
  const int32_t offset = (1 << (shift - 1)) - 1 - ((127 - bias) << 23);
  v8i u = (v8i)x, a = smaller(u & splat(0x7fffffff), splat(largest));
  v8i sign = (u >> (31 - width)) & splat(1 << width);
  v8i low = (v8i)((v8f)a + (v8f)splat(magic)) - splat(magic);
  v8i high = (a + splat(offset) + ((a >> shift) & splat(1))) >> shift;
  v8i code = select_of(splat((128 - bias) << 23) > a, low, high);
  if (e2m1) sign &= a != splat(0); /* -0 becomes 0, but not what rounds to it */
  return code | sign;
}

/* ---- magnitudes and scales --------------------------------------------------------- */

INLINE int32_t largest_lane(v8i v) {
#ifdef __AVX2__
  __m128i m = _mm_max_epi32(_mm256_castsi256_si128((__m256i)v), _mm256_extracti128_si256((__m256i)v, 1));
  m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4e));
  m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0xb1));
  return _mm_cvtsi128_si32(m);
#else
  int32_t best = v[0];
  for (int l = 1; l < LANES; l++) best = NB_MAX(best, v[l]);
  return best;
#endif
}

static void absmax(uint32_t *bits, const float *x, int64_t n, int64_t columns) {
  v8i magnitude = splat(0x7fffffff);
  for (int64_t at = 0; at < n; at += columns) {
    v8i max = splat(0);
    int64_t i = at, end = NB_MIN(n, at + columns);
    for (; i + LANES <= end; i += LANES) max = larger(max, load(x + i) & magnitude);
    if (i < end) max = larger(max, load_tail(x + i, end - i) & magnitude);
    *bits++ = (uint32_t)largest_lane(max);
  }
}

/* The values of e4m3 codes 0 to 0x7e. */
INLINE v8f e4m3_values(v8i code) {
  v8i normal = (code + splat(120 << 3)) << 20;
  v8f small = __builtin_convertvector(code, v8f) * splat_f(0x1p-9f);
  return (v8f)select_of(code < splat(8), (v8i)small, normal);
}

static void nvfp4_scales(uint8_t *bytes, float *divisors, const uint32_t *bits, int64_t n,
                         const nb_float_scales *s) {
  for (int64_t i = 0; i < n; i += LANES) {
    v8f t = rounded((v8f)load(bits + i) / splat_f(6), s->round_to) * splat_f(s->global);
    v8i code = codes_of(t, false);
    code = select_of(code == splat(0), splat(0x20), code); /* 0.125, as the peer stores it */
    put(bytes + i, code);
    v8f divisor = e4m3_values(code) / splat_f(s->global);
    memcpy(divisors + i, &divisor, sizeof divisor);
  }
}

static void mx_scales(uint8_t *bytes, float *divisors, const uint32_t *bits, int64_t n,
                      const nb_float_scales *s) {
  for (int64_t i = 0; i < n; i += LANES) {
    v8i e = larger(((load(bits + i) + splat(s->nudge)) >> 23) - splat(s->top), splat(0));
    put(bytes + i, e);
    v8i divisor = select_of(e == splat(0), splat(0x00400000), e << 23); /* 2^-127 is no normal number */
    memcpy(divisors + i, &divisor, sizeof divisor);
  }
}

/* ---- codes ------------------------------------------------------------------------- */

INLINE v8i code8(v8i x, v8f scale, bool multiply, int dtype, bool e2m1) {
  return codes_of(rounded(multiply ? (v8f)x * scale : (v8f)x / scale, dtype), e2m1);
}

INLINE void encode_run(uint8_t *codes, const float *x, int64_t n, float scale, bool multiply, int dtype,
                       bool e2m1) {
  v8f s = splat_f(scale);
  int64_t i = 0;
  for (; i + 4 * LANES <= n; i += 4 * LANES)
    put32(codes + i, code8(load(x + i), s, multiply, dtype, e2m1),
          code8(load(x + i + 8), s, multiply, dtype, e2m1), code8(load(x + i + 16), s, multiply, dtype, e2m1),
          code8(load(x + i + 24), s, multiply, dtype, e2m1));
  for (; i + LANES <= n; i += LANES) put(codes + i, code8(load(x + i), s, multiply, dtype, e2m1));
  if (i == n) return;
  uint8_t last[LANES];
  put(last, code8(load_tail(x + i, n - i), s, multiply, dtype, e2m1));
  memcpy(codes + i, last, (size_t)(n - i));
}

INLINE void encode_runs(uint8_t *codes, const float *x, int64_t n, int64_t columns, const float *scale,
                        bool multiply, int dtype, bool e2m1) {
  for (int64_t at = 0; at < n; at += columns)
    encode_run(codes + at, x + at, NB_MIN(columns, n - at), *scale++, multiply, dtype, e2m1);
}

/* A constant dtype, operation and format inside each loop. (Only FP8 rounds to a dtype.) */
static void encode(uint8_t *codes, const float *x, int64_t n, int64_t columns, const float *scale,
                   bool multiply, int dtype, bool e2m1) {
  if (e2m1 && multiply) encode_runs(codes, x, n, columns, scale, true, NB_F32, true);
  else if (e2m1) encode_runs(codes, x, n, columns, scale, false, NB_F32, true);
  else if (dtype == NB_BF16) encode_runs(codes, x, n, columns, scale, false, NB_BF16, false);
  else if (dtype == NB_F16) encode_runs(codes, x, n, columns, scale, false, NB_F16, false);
  else encode_runs(codes, x, n, columns, scale, false, NB_F32, false);
}

#define NB_FLOAT_KERNELS \
  { absmax, nvfp4_scales, mx_scales, encode }

#endif

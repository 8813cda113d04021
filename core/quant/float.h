/* float.h - round to nearest onto small floats (e4m3, e2m1): the element format as the
 * inner loops see it, and these loops, written once over vectors
 * of eight and compiled once for each instruction set. Divisions stay divisions, and
 * nothing is contracted: every instruction set gives the same bytes. */
#ifndef NB_QUANT_FLOAT_H
#define NB_QUANT_FLOAT_H

#include "dtype.h"
#include "groups.h"

/* nb_f32_to_small's numbers, for values that are finite. */
typedef struct nb_float_format {
  int32_t shift, least, odd, rebias, largest; /* largest: the bits of the greatest value */
  int32_t sign_shift, sign_bit;
  float magic;
  bool drops_negative_zero;
} nb_float_format;

nb_float_format nb_float_format_of(int dtype);

typedef struct nb_float_kernels {
  /* bits[g] = the magnitude bits of the largest of x's g-th `columns` values. */
  void (*absmax)(uint32_t *bits, const float *x, int64_t n, int64_t columns);
  /* codes[i] = x[i] / scale[i / columns], or times it where `multiply`, rounded to dtype
   * (f32: not at all), clamped, rounded to the format; one code a byte. */
  void (*encode)(uint8_t *codes, const float *x, int64_t n, int64_t columns, const float *scale,
                 bool multiply, int dtype, const nb_float_format *f);
} nb_float_kernels;

extern const nb_float_kernels nb_float_portable, nb_float_avx2;

/* ---- the loops ----------------------------------------------------------------- */

typedef float v8f __attribute__((vector_size(32)));
typedef int32_t v8i __attribute__((vector_size(32)));
typedef uint8_t v8b __attribute__((vector_size(8)));
enum { LANES = 8 };

#define INLINE static inline __attribute__((always_inline))

INLINE v8i splat(int32_t i) { return (v8i){i, i, i, i, i, i, i, i}; }
INLINE v8i select_of(v8i mask, v8i a, v8i b) { return (mask & a) | (~mask & b); }
INLINE v8i load(const float *x) {
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

INLINE v8i larger(v8i a, v8i b) { return select_of(a > b, a, b); }

static uint32_t absmax_of(const float *x, int64_t n) {
  v8i magnitude = splat(0x7fffffff), max = splat(0);
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) max = larger(max, load(x + i) & magnitude);
  if (i < n) max = larger(max, load_tail(x + i, n - i) & magnitude);
  int32_t best = 0;
  for (int l = 0; l < LANES; l++) best = NB_MAX(best, max[l]);
  return (uint32_t)best;
}

static void absmax(uint32_t *bits, const float *x, int64_t n, int64_t columns) {
  for (int64_t at = 0; at < n; at += columns) *bits++ = absmax_of(x + at, NB_MIN(columns, n - at));
}

/* Rounds to dtype and back; values are finite or infinite. */
INLINE v8f rounded(v8f x, int dtype) {
  if (dtype == NB_BF16) {
    v8i u = (v8i)x, odd = (u >> 16) & splat(1);
    return (v8f)((u + odd + splat(0x7fff)) & splat((int32_t)0xffff0000u));
  }
  if (dtype == NB_F16)
    for (int l = 0; l < LANES; l++) x[l] = nb_round_to(x[l], NB_F16);
  return x;
}

INLINE v8i codes_of(v8f x, const nb_float_format *f) {
  v8i u = (v8i)x, a = u & splat(0x7fffffff), largest = splat(f->largest);
  a = select_of(a > largest, largest, a);
  v8i sign = (u >> f->sign_shift) & splat(f->sign_bit);
  float m = f->magic;
  v8i low = (v8i)((v8f)a + (v8f){m, m, m, m, m, m, m, m}) - splat((int32_t)nb_f32_bits(m));
  v8i high = ((a + splat(f->odd) + ((a >> f->shift) & splat(1))) >> f->shift) - splat(f->rebias);
  v8i code = select_of(a < splat(f->least), low, high);
  if (f->drops_negative_zero) sign &= a != splat(0);
  return code | sign;
}

INLINE void encode_run(uint8_t *codes, const float *x, int64_t n, float scale, bool multiply, int dtype,
                       const nb_float_format *f) {
  v8f s = {scale, scale, scale, scale, scale, scale, scale, scale};
  int64_t i = 0;
  for (; i < n; i += LANES) {
    bool whole = i + LANES <= n;
    v8f v = (v8f)(whole ? load(x + i) : load_tail(x + i, n - i));
    v8i code = codes_of(rounded(multiply ? v * s : v / s, dtype), f);
    v8b bytes = __builtin_convertvector(code, v8b);
    memcpy(codes + i, &bytes, whole ? sizeof bytes : (size_t)(n - i));
  }
}

INLINE void encode_runs(uint8_t *codes, const float *x, int64_t n, int64_t columns, const float *scale,
                        bool multiply, int dtype, const nb_float_format *f) {
  nb_float_format own = *f; /* in registers, not behind a pointer that codes may alias */
  for (int64_t at = 0; at < n; at += columns)
    encode_run(codes + at, x + at, NB_MIN(columns, n - at), *scale++, multiply, dtype, &own);
}

/* A constant dtype and operation inside each loop. */
static void encode(uint8_t *codes, const float *x, int64_t n, int64_t columns, const float *scale,
                   bool multiply, int dtype, const nb_float_format *f) {
  if (multiply) encode_runs(codes, x, n, columns, scale, true, NB_F32, f);
  else if (dtype == NB_BF16) encode_runs(codes, x, n, columns, scale, false, NB_BF16, f);
  else if (dtype == NB_F16) encode_runs(codes, x, n, columns, scale, false, NB_F16, f);
  else encode_runs(codes, x, n, columns, scale, false, NB_F32, f);
}

#endif

/* dtype.h - number formats inside the library: one value of a small float, and
 * the block functions that take any dtype to f32 and back.
 *
 * Every dtype whose values f32 holds exactly ("narrow": all but i32, u32, i64,
 * u64, f64, c64) has a load; every dtype but c64 has a store, which rounds once.
 * Blocks start on a byte and n * bits is whole bytes.
 */
#ifndef NB_DTYPE_H
#define NB_DTYPE_H

#include "base.h"

#include <math.h>

typedef void nb_load_fn(float *out, const void *in, int64_t n);
typedef void nb_store_fn(void *out, const float *in, int64_t n);

/* The fastest function that nb_cpu() allows; NULL where there is none. */
nb_load_fn *nb_load_of(int dtype);
nb_store_fn *nb_store_of(int dtype);
/* What the instruction-set files offer; NULL: use the portable one. */
nb_load_fn *nb_load_avx2(int dtype);
nb_store_fn *nb_store_avx2(int dtype);
nb_load_fn *nb_load_avx512(int dtype);
nb_store_fn *nb_store_avx512(int dtype);

/* n values of any dtype but c64 as f64. Exact except for i64 and u64 beyond 2^53,
 * which round to nearest even. */
void nb_load_f64(double *out, const void *in, int dtype, int64_t n);

/* nb_cast of n elements on this thread: neither is c64, both begin and end on a byte. */
void nb_cast_block(void *dst, int to, const void *src, int from, int64_t n);

/* Fails with a sentence that begins with `what` for complex numbers and device memory. */
int nb_real_only(const nb_tensor *t, const char *what);

/* A float of up to 8 bits: sign, ebits, mbits, exponent bias. Values from the f32
 * with bits `over` up become over_code, NaN becomes nan_code. */
typedef struct nb_small_float {
  int ebits, mbits, bias;
  uint32_t over;
  uint8_t over_code, nan_code;
  bool signed_nan;
  bool code_0x80_is_nan;    /* the fnuz formats: no -0, no infinity */
  bool drops_negative_zero; /* f4: -0.0 becomes 0 (but not what rounds to it), as its peers do */
  float max;
} nb_small_float;

/* NULL unless dtype is an f4, f6 or f8 (e8m0, which has no sign, is not). */
const nb_small_float *nb_small_of(int dtype);
/* The values of all codes of a dtype of up to 8 bits, 256 entries; NULL for others. */
const float *nb_code_values(int dtype);

static inline uint8_t nb_f32_to_small(float f, const nb_small_float *s) {
  uint32_t u = nb_f32_bits(f), a = u & 0x7fffffffu, code;
  uint8_t sign = (uint8_t)(u >> 31 << (s->ebits + s->mbits));
  int shift = 23 - s->mbits;
  if (a > 0x7f800000u) return s->signed_nan ? (uint8_t)(s->nan_code | sign) : s->nan_code;
  if (a >= s->over) return s->code_0x80_is_nan ? s->over_code : (uint8_t)(s->over_code | sign);
  if (a < (uint32_t)(128 - s->bias) << 23) {
    /* Below the smallest normal: an addend whose last bit is the smallest
     * subnormal makes the adder round there. */
    uint32_t magic = (uint32_t)(127 + shift + 1 - s->bias) << 23;
    code = nb_f32_bits(nb_f32_from_bits(a) + nb_f32_from_bits(magic)) - magic;
    if (code == 0 && (s->code_0x80_is_nan || (s->drops_negative_zero && a == 0))) return 0;
  } else {
    a += (1u << (shift - 1)) - 1 + ((a >> shift) & 1u);
    code = (a >> shift) - ((uint32_t)(127 - s->bias) << s->mbits);
  }
  return (uint8_t)(code | sign);
}

static inline float nb_e8m0_to_f32(uint8_t c) {
  if (c == 255) return nb_f32_from_bits(0x7f800001u); /* torch's */
  return nb_f32_from_bits(c ? (uint32_t)c << 23 : 0x00400000u);
}
/* The sign is dropped; a half rounds up (both powers of two are "even"), as torch does. */
static inline uint8_t nb_f32_to_e8m0(float f) {
  uint32_t a = nb_f32_bits(f) & 0x7fffffffu;
  if (a < 0x00800000u) return a > 0x00400000u;
  return (uint8_t)NB_MIN((a + 0x00400000u) >> 23, 255u);
}

/* Half to even into [lo, hi], both whole; NaN is 0. */
static inline int32_t nb_round_clamp(float f, float lo, float hi) {
  if (f != f) return 0;
  return (int32_t)rintf(f < lo ? lo : f > hi ? hi : f);
}

/* f32 with round-to-odd: inexact results get their last bit set, so that one more
 * rounding, to a format at least two bits shorter, rounds as if once. */
static inline float nb_f64_to_f32_odd(double d) {
  float f = (float)d;
  uint32_t u = nb_f32_bits(f);
  if ((double)f == d || d != d || (u & 1u)) return f;
  double up = f < 0 ? -(double)f : (double)f, mag = d < 0 ? -d : d;
  if (up > mag) u -= 1; /* rounded away: truncate, which makes it odd */
  else u |= 1u;
  return nb_f32_from_bits(u);
}

#endif

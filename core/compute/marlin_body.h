/* marlin_body.h - Marlin words to floats, written once over eight lanes and compiled
 * once per instruction set.
 *
 * In all four layouts the lanes of a warp come in eight columns nn of four (lane =
 * 4*nn + a), each with `per` words. So the words of one a and one place r are `stride`
 * apart, and slot u of those eight holds one row k and eight columns n .. n+7:
 *
 *     word  nn*stride + a*per + r        k, n = the tile's table at (nn = 0, a, r, u)
 */
#include "marlin.h"

typedef float v8f __attribute__((vector_size(32)));
typedef int32_t v8i __attribute__((vector_size(32)));
typedef uint32_t v8u __attribute__((vector_size(32)));

#define INLINE static inline __attribute__((always_inline))

INLINE v8f load(const float *p) {
  v8f v;
  memcpy(&v, p, sizeof v);
  return v;
}

INLINE v8u splat(uint32_t x) { return (v8u){x, x, x, x, x, x, x, x}; }
INLINE v8f as_float(v8u x) { return __builtin_convertvector((v8i)x, v8f); }

INLINE v8f e4m3(v8u c) {
  v8u exponent = c & 0x78, sign = (c & 0x80) << 24;
  v8u normal = ((c & 0x7f) << 20) + (120u << 23);
  v8u small = (v8u)(as_float(c & 7) * 0x1p-9f);
  v8u is_small = (v8u)(exponent == 0), is_nan = (v8u)((c & 0x7f) == 0x7f);
  v8u bits = (is_small & small) | (~is_small & normal) | (is_nan & splat(0x7fc00000u));
  return (v8f)(bits | sign);
}

INLINE v8f e2m1(v8u c) {
  const v8f magnitudes = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f};
  v8f m = __builtin_shuffle(magnitudes, (v8i)(c & 7));
  return (v8f)((v8u)m | (c & 8) << 28);
}

INLINE v8f value(v8u c, const float *zero, int code) {
  v8f f = as_float(c);
  if (code == NB_MARLIN_E4M3) return e4m3(c);
  if (code == NB_MARLIN_E2M1) return e2m1(c);
  v8f z = load(zero);
  if (code == NB_MARLIN_INT) return f - z;
  v8i whole = f + z <= 15.0f;
  return (v8f)((whole & (v8i)f) | (~whole & (v8i)(15.0f - f - z)));
}

INLINE void tile(const nb_marlin_strip *s, const uint32_t *words, int64_t k0, int64_t n0, int bits,
                 int code) {
  const int per = bits, pf = 32 / bits, stride = 4 * per, tn = s->tile->n;
  for (int m = 0; m < stride; m++) { /* m = a*per + r, of nn = 0 */
    const uint32_t *p = words + m;
    v8u x = {p[0],          p[stride],     p[2 * stride], p[3 * stride],
             p[4 * stride], p[5 * stride], p[6 * stride], p[7 * stride]};
    for (int u = 0; u < pf; u++) {
      int at = s->tile->at[m * pf + u];
      int64_t k = k0 + at / tn, n = n0 + at % tn;
      v8u c = x >> (unsigned)(u * bits) & ((1u << bits) - 1);
      const float *zero = code == NB_MARLIN_INT || code == NB_MARLIN_FOLDED ? s->zeros[k] + n : NULL;
      v8f w = value(c, zero, code) * load(s->scales[k] + n);
      memcpy(s->w + k * NB_TILE_N + n, &w, sizeof w);
    }
  }
}

INLINE void tiles(const nb_marlin_strip *s, int bits, int code) {
  int tk = s->tile->k, tn = s->tile->n;
  for (int64_t k = 0; k < s->rows; k += tk)
    for (int64_t n = 0; n < s->cols; n += tn) {
      int64_t t = (s->k0 + k) / tk * (s->n / tn) + (s->n0 + n) / tn;
      tile(s, s->words + t * 32 * bits, k, n, bits, code);
    }
}

/* One compiled loop for each kind of code. */
INLINE void decode(const nb_marlin_strip *s) {
  bool four = s->tile->bits == 4;
  if (s->code == NB_MARLIN_E4M3) tiles(s, 8, NB_MARLIN_E4M3);
  else if (s->code == NB_MARLIN_E2M1) tiles(s, 4, NB_MARLIN_E2M1);
  else if (s->code == NB_MARLIN_FOLDED) tiles(s, 4, NB_MARLIN_FOLDED);
  else if (four) tiles(s, 4, NB_MARLIN_INT);
  else tiles(s, 8, NB_MARLIN_INT);
}

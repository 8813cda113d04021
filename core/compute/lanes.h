/* lanes.h - fixed lanes (8 floats, twice 4 doubles) for operations that are written once
 * and compiled once per instruction set: the same bits on all of them.
 *
 * exp is a branch-free polynomial after reduction by ln 2: within 2 ulp in
 * float32, 1e-15 relative in double, NaN stays NaN, below the range gives about
 * the smallest normal number instead of 0. Sums run over lanes in a fixed order. */
#ifndef NB_LANES_H
#define NB_LANES_H

#include "base.h"

#include <math.h>

typedef float v8f __attribute__((vector_size(32)));
typedef int32_t v8i __attribute__((vector_size(32)));
typedef float v4f __attribute__((vector_size(16)));
typedef double v4d __attribute__((vector_size(32)));
typedef int64_t v4l __attribute__((vector_size(32)));
enum { LANES = 8 };

#define INLINE static inline __attribute__((always_inline))

INLINE v8f splat(float f) { return (v8f){f, f, f, f, f, f, f, f}; }
INLINE v4d splat_d(double f) { return (v4d){f, f, f, f}; }
INLINE v8f select_f(v8i mask, v8f a, v8f b) { return (v8f)((mask & (v8i)a) | (~mask & (v8i)b)); }
INLINE v8i select_i(v8i mask, v8i a, v8i b) { return (mask & a) | (~mask & b); }
INLINE v4d select_d(v4l mask, v4d a, v4d b) { return (v4d)((mask & (v4l)a) | (~mask & (v4l)b)); }

INLINE v8f load(const float *p) {
  v8f v;
  memcpy(&v, p, sizeof v);
  return v;
}
INLINE void store(float *p, v8f v) { memcpy(p, &v, sizeof v); }
/* The last n < 8 values, filled up with pad. */
INLINE v8f load_tail(const float *p, int64_t n, float pad) {
  v8f v = splat(pad);
  memcpy(&v, p, (size_t)n * sizeof *p);
  return v;
}

INLINE v8f exp_f(v8f x) {
  const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer in the low bits */
  x = select_f(x < splat(-87.3f), splat(-87.3f), x);
  x = select_f(x > splat(88.3f), splat(88.3f), x);
  v8f shifted = x * splat(1.44269504088896341f) + splat(magic);
  v8f k = shifted - splat(magic);
  v8f r = x - k * splat(0.693359375f) - k * splat(-2.12194440e-4f);
  v8f p = splat(1.9875691500e-4f);
  p = p * r + splat(1.3981999507e-3f);
  p = p * r + splat(8.3334519073e-3f);
  p = p * r + splat(4.1665795894e-2f);
  p = p * r + splat(1.6666665459e-1f);
  p = p * r + splat(5.0000001201e-1f);
  p = p * r * r + r + splat(1.0f);
  return p * (v8f)(((v8i)shifted - 0x4b400000 + 127) << 23);
}

INLINE v4d exp_d(v4d x) {
  const double magic = 6755399441055744.0; /* 1.5 * 2^52 */
  x = select_d(x < splat_d(-708.0), splat_d(-708.0), x);
  v4d shifted = x * splat_d(1.4426950408889634074) + splat_d(magic);
  v4d k = shifted - splat_d(magic);
  v4d r = x - k * splat_d(6.93145751953125e-1) - k * splat_d(1.42860682030941723212e-6);
  static const double c[] = {
      1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040, 1.0 / 720,
      1.0 / 120,       1.0 / 24,       1.0 / 6,       0.5,          1.0,         1.0};
  v4d p = splat_d(c[0]);
#pragma GCC unroll 12
  for (int i = 1; i < 13; i++) p = p * r + splat_d(c[i]);
  return p * (v4d)(((v4l)shifted - 0x4338000000000000 + 1023) << 52);
}

INLINE float sum_f(v8f v) { return ((v[0] + v[4]) + (v[1] + v[5])) + ((v[2] + v[6]) + (v[3] + v[7])); }
INLINE double sum_d(v4d a, v4d b) {
  v4d v = a + b;
  return (v[0] + v[2]) + (v[1] + v[3]);
}

INLINE v8f sigmoid_f(v8f x) { return splat(1.0f) / (splat(1.0f) + exp_f(-x)); }
INLINE v8f silu_times(v8f g, v8f u) { return g / (splat(1.0f) + exp_f(-g)) * u; }

#endif

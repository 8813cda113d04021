/* vector_body.h - the row operations, written once over fixed lanes (8 floats, twice
 * 4 doubles) and compiled once per instruction set; see vector.h.
 *
 * exp is a branch-free polynomial after reduction by ln 2: within 2 ulp in
 * float32, 1e-15 relative in double, NaN stays NaN, below the range gives about
 * the smallest normal number instead of 0. Sums run over lanes in a fixed order. */
#include "vector.h"

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

static float row_max(const float *x, int64_t n) {
  v8f m = splat(-INFINITY);
  for (int64_t i = 0; i < n; i += LANES) {
    v8f v = i + LANES <= n ? load(x + i) : load_tail(x + i, n - i, -INFINITY);
    m = select_f(v > m, v, m);
  }
  float best = m[0];
  for (int l = 1; l < LANES; l++) best = m[l] > best ? m[l] : best;
  return best;
}

static void softmax(float *x, int64_t n) {
  v8f max = splat(row_max(x, n)), sum = splat(0.0f);
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) {
    v8f e = exp_f(load(x + i) - max);
    store(x + i, e);
    sum += e;
  }
  if (i < n) {
    v8f e = exp_f(load_tail(x + i, n - i, 0.0f) - max), zero = splat(0.0f);
    memcpy(x + i, &e, (size_t)(n - i) * sizeof *x);
    memcpy(&zero, &e, (size_t)(n - i) * sizeof *x);
    sum += zero;
  }
  float inverse = 1.0f / sum_f(sum);
  for (i = 0; i + LANES <= n; i += LANES) store(x + i, load(x + i) * splat(inverse));
  for (; i < n; i++) x[i] *= inverse;
}

INLINE v8f silu_times(v8f g, v8f u) { return g / (splat(1.0f) + exp_f(-g)) * u; }

static void swiglu(float *gate, const float *up, int64_t n) {
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) store(gate + i, silu_times(load(gate + i), load(up + i)));
  if (i < n) {
    v8f y = silu_times(load_tail(gate + i, n - i, 0.0f), load_tail(up + i, n - i, 0.0f));
    memcpy(gate + i, &y, (size_t)(n - i) * sizeof *gate);
  }
}

/* 4 values in double; the last n < 4 filled up with zeros. */
INLINE v4d wide(const float *p) {
  v4f v;
  memcpy(&v, p, sizeof v);
  return __builtin_convertvector(v, v4d);
}
INLINE v4d wide_tail(const float *p, int64_t n) {
  float v[4] = {0};
  memcpy(v, p, (size_t)n * sizeof *p);
  return wide(v);
}

static double sum_squares(const float *x, int64_t n) {
  v4d a = splat_d(0.0), b = a;
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) {
    v4d lo = wide(x + i), hi = wide(x + i + 4);
    a += lo * lo;
    b += hi * hi;
  }
  double total = sum_d(a, b);
  for (; i < n; i++) total += (double)x[i] * (double)x[i];
  return total;
}

/* Raises the running maximum to that of x; sum, and what is summed with the same
 * factor, shrink by what is returned. */
static double lse_raise(nb_lse *state, const float *x, int64_t n) {
  double max = (double)row_max(x, n);
  if (!(max > state->max)) return 1.0;
  double factor = state->sum == 0.0 ? 0.0 : exp(state->max - max);
  state->max = max;
  state->sum *= factor;
  return factor;
}

static void lse(nb_lse *state, const float *x, int64_t n) {
  lse_raise(state, x, n);
  v4d max = splat_d(state->max), a = splat_d(0.0), b = a;
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) {
    a += exp_d(wide(x + i) - max);
    b += exp_d(wide(x + i + 4) - max);
  }
  double total = sum_d(a, b);
  for (; i < n; i += 4) {
    v4d e = exp_d(wide_tail(x + i, NB_MIN(4, n - i)) - max);
    for (int l = 0; l < NB_MIN(4, n - i); l++) total += e[l];
  }
  state->sum += total;
}

static void lse_cross(nb_lse *state, double *cross, const float *p, const float *q, int64_t n) {
  *cross *= lse_raise(state, p, n);
  v4d max = splat_d(state->max), a = splat_d(0.0), b = a, ca = a, cb = a;
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) {
    v4d lo = wide(p + i), hi = wide(p + i + 4), elo = exp_d(lo - max), ehi = exp_d(hi - max);
    a += elo;
    b += ehi;
    ca += elo * (lo - wide(q + i));
    cb += ehi * (hi - wide(q + i + 4));
  }
  double total = sum_d(a, b), crossed = sum_d(ca, cb);
  for (; i < n; i += 4) {
    int64_t left = NB_MIN(4, n - i);
    v4d v = wide_tail(p + i, left), e = exp_d(v - max), c = e * (v - wide_tail(q + i, left));
    for (int l = 0; l < left; l++) {
      total += e[l];
      crossed += c[l];
    }
  }
  state->sum += total;
  *cross += crossed;
}

static void widen_bf16(float *y, const uint16_t *x, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    uint32_t u = (uint32_t)x[i] << 16;
    memcpy(y + i, &u, sizeof u);
  }
}

static void widen_f16(float *y, const uint16_t *x, int64_t n) {
  for (int64_t i = 0; i < n; i++) y[i] = nb_f16_to_f32(x[i]);
}

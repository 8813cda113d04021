/* activations.h - the row kernels of activations.c, written once and compiled once per
 * instruction set; no order of operations depends on it, so every one gives the same bits. */
#ifndef NB_ACTIVATIONS_H
#define NB_ACTIVATIONS_H

#include "act_grid.h"
#include "dtype.h"

typedef struct nb_act_kernels {
  /* Bits of the largest magnitude; NaN and infinity above all numbers. */
  uint32_t (*absmax)(const float *x, int64_t n);
  /* Smallest and largest value as integers in the floats' order; a NaN is the one or the other. */
  void (*range)(int32_t lohi[2], const float *x, int64_t n);
  /* out = (round(clamp(x / scale + zero)) - zero) * scale; out may be x. */
  void (*apply)(float *out, const float *x, int64_t n, float scale, float zero, const nb_act_grid *g);
} nb_act_kernels;

extern const nb_act_kernels nb_act_portable, nb_act_avx2;

static uint32_t absmax(const float *x, int64_t n) {
  uint32_t m = 0;
#pragma omp simd reduction(max : m)
  for (int64_t i = 0; i < n; i++) {
    uint32_t a = nb_f32_bits(x[i]) & 0x7fffffffu;
    m = a > m ? a : m;
  }
  return m;
}

static void range(int32_t lohi[2], const float *x, int64_t n) {
  int32_t lo = lohi[0], hi = lohi[1];
#pragma omp simd reduction(min : lo) reduction(max : hi)
  for (int64_t i = 0; i < n; i++) {
    int32_t s = (int32_t)nb_f32_bits(x[i]);
    s ^= (s >> 31) & 0x7fffffff;
    lo = s < lo ? s : lo;
    hi = s > hi ? s : hi;
  }
  lohi[0] = lo;
  lohi[1] = hi;
}

typedef float nb_act_v8f __attribute__((vector_size(32)));
typedef int32_t nb_act_v8i __attribute__((vector_size(32)));

static inline nb_act_v8i nb_act_select(nb_act_v8i mask, nb_act_v8i a, nb_act_v8i b) {
  return (mask & a) | (~mask & b);
}

/* Eight values at once: the compiler doesn't find the way through these choices. A value within
 * the grid is rounded in its mantissa's bits, or, below the smallest normal value, by an adder
 * whose last bit is the grid's unit; NaN stays. */
static inline nb_act_v8f round_small(nb_act_v8f x, float scale, const nb_act_grid *g) {
  nb_act_v8f v = x / scale + 0.0f;
  v = (nb_act_v8f)nb_act_select(v < g->min, (nb_act_v8i)(nb_act_v8f){} + (int32_t)nb_f32_bits(g->min),
                                (nb_act_v8i)v);
  v = (nb_act_v8f)nb_act_select(v > g->max, (nb_act_v8i)(nb_act_v8f){} + (int32_t)nb_f32_bits(g->max),
                                (nb_act_v8i)v);
  nb_act_v8i u = (nb_act_v8i)v, a = u & 0x7fffffff;
  nb_act_v8i large = (a + ((1 << (g->shift - 1)) - 1) + ((a >> g->shift) & 1)) & -(1 << g->shift);
  nb_act_v8i small = (nb_act_v8i)((nb_act_v8f)a + g->magic - g->magic);
  nb_act_v8i r = nb_act_select(a < (int32_t)g->normal, small, large);
  r = nb_act_select(a > 0x7f800000, a, r);
  return (nb_act_v8f)((u & INT32_MIN) | r) * scale;
}

static void apply_float(float *out, const float *x, int64_t n, float scale, const nb_act_grid *g) {
  nb_act_v8f v = {};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    memcpy(&v, x + i, sizeof v);
    v = round_small(v, scale, g);
    memcpy(out + i, &v, sizeof v);
  }
  if (i < n) {
    memcpy(&v, x + i, (size_t)(n - i) * sizeof *x);
    v = round_small(v, scale, g);
    memcpy(out + i, &v, (size_t)(n - i) * sizeof *x);
  }
}

static void apply(float *out, const float *x, int64_t n, float scale, float zero, const nb_act_grid *g) {
  if (g->is_float) {
    apply_float(out, x, n, scale, g);
    return;
  }
  float min = g->min, max = g->max;
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    float v = x[i] / scale + zero;
    v = v < min ? min : v;
    v = v > max ? max : v;
    out[i] = (rintf(v) - zero) * scale;
  }
}

#endif

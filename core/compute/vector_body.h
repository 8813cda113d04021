/* vector_body.h - the row operations, written once over fixed lanes and compiled once
 * per instruction set; see vector.h and lanes.h. */
#include "lanes.h"
#include "vector.h"

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

static void sigmoid(float *x, int64_t n) {
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) store(x + i, sigmoid_f(load(x + i)));
  if (i < n) {
    v8f y = sigmoid_f(load_tail(x + i, n - i, 0.0f));
    memcpy(x + i, &y, (size_t)(n - i) * sizeof *x);
  }
}

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

/* moe_act_body.h - the activation functions over fixed lanes, compiled once per
 * instruction set; see moe_act.h. Clamps keep NaN. */
#include "lanes.h"
#include "moe_act.h"

INLINE v8f at_most(v8f x, float limit) { return select_f(x > splat(limit), splat(limit), x); }
INLINE v8f within(v8f x, float limit) {
  return select_f(x < splat(-limit), splat(-limit), at_most(x, limit));
}

INLINE v4d lower_half(v8f x) { return (v4d){x[0], x[1], x[2], x[3]}; }
INLINE v4d upper_half(v8f x) { return (v4d){x[4], x[5], x[6], x[7]}; }

/* x * Phi(x) = x/2 * erfc(-x/sqrt 2) in double. erfc(z) = t exp(-z^2 + P(2t-1)) for z >= 0 with
 * t = 1/(1+z/2); P is the Chebyshev fit of degree 11 of what that leaves, good to 1e-8. */
INLINE v4d gelu_d(v4d x) {
  static const double c[] = {-8.728157957672711e-05,  7.997932599488435e-06,  0.0005737622639129361,
                             -0.00022790511333291625, -0.0022887631032270216, 0.0017940622113871289,
                             0.008808825189987383,    -0.009880018251999972,  -0.04689364063484012,
                             0.04734388752008952,     0.6726431547820434,     -0.6717940916796016};
  v4d z = x * splat_d(-0.70710678118654752440), positive = select_d(z < splat_d(0.0), -z, z);
  v4d t = splat_d(1.0) / (splat_d(1.0) + splat_d(0.5) * positive), s = t + t - splat_d(1.0);
  v4d p = splat_d(c[0]);
#pragma GCC unroll 11
  for (int i = 1; i < 12; i++) p = p * s + splat_d(c[i]);
  v4d e = t * exp_d(p - positive * positive);
  return splat_d(0.5) * x * select_d(z < splat_d(0.0), splat_d(2.0) - e, e);
}

INLINE v8f gelu(v8f x) {
  v4d a = gelu_d(lower_half(x)), b = gelu_d(upper_half(x));
  return (v8f){(float)a[0], (float)a[1], (float)a[2], (float)a[3],
               (float)b[0], (float)b[1], (float)b[2], (float)b[3]};
}

/* x/2 (1 + tanh y) = x / (1 + exp(-2y)), y = sqrt(2/pi) (x + 0.044715 x^3). */
INLINE v8f gelu_tanh(v8f x) {
  v8f y = splat(0.79788456080286535588f) * (x + splat(0.044715f) * x * x * x);
  return x / (splat(1.0f) + exp_f(splat(-2.0f) * y));
}

INLINE v8f relu2(v8f x) {
  v8f y = select_f(x < splat(0.0f), splat(0.0f), x);
  return y * y;
}

INLINE v8f swigluoai(v8f g, v8f u, const nb_moe_act *a) {
  v8f gate = at_most(g, a->limit);
  return gate * sigmoid_f(splat(a->alpha) * gate) * (within(u, a->limit) + splat(a->beta));
}

INLINE v8f swiglustep(v8f g, v8f u, const nb_moe_act *a) {
  return at_most(silu_times(g, splat(1.0f)), a->limit) * within(u, a->limit);
}

INLINE v8f silu_limited(v8f g, v8f u, const nb_moe_act *a) {
  return silu_times(at_most(g, a->limit), within(u, a->limit));
}

/* A row operation `name` whose value is `expr` of g, u and a. */
#define GATED(name, expr) \
  static void name(float *out, const float *gate, const float *up, int64_t n, const nb_moe_act *a) { \
    (void)a; \
    int64_t i = 0; \
    for (; i + LANES <= n; i += LANES) { \
      v8f g = load(gate + i), u = load(up + i); \
      store(out + i, expr); \
    } \
    if (i < n) { \
      v8f g = load_tail(gate + i, n - i, 0.0f), u = load_tail(up + i, n - i, 0.0f), y = expr; \
      memcpy(out + i, &y, (size_t)(n - i) * sizeof *out); \
    } \
  }
#define PLAIN(name, expr) \
  static void name(float *out, const float *gate, const float *up, int64_t n, const nb_moe_act *a) { \
    (void)a, (void)up; \
    int64_t i = 0; \
    for (; i + LANES <= n; i += LANES) { \
      v8f g = load(gate + i); \
      store(out + i, expr); \
    } \
    if (i < n) { \
      v8f g = load_tail(gate + i, n - i, 0.0f), y = expr; \
      memcpy(out + i, &y, (size_t)(n - i) * sizeof *out); \
    } \
  }

GATED(silu_unlimited_row, silu_times(g, u))
GATED(silu_limited_row, silu_limited(g, u, a))
/* The same bits without a limit, faster. */
static void silu_row(float *out, const float *gate, const float *up, int64_t n, const nb_moe_act *a) {
  (a->limit == INFINITY ? silu_unlimited_row : silu_limited_row)(out, gate, up, n, a);
}
GATED(gelu_row, gelu(g) * u)
GATED(gelu_tanh_row, gelu_tanh(g) * u)
GATED(swigluoai_row, swigluoai(g, u, a))
GATED(swiglustep_row, swiglustep(g, u, a))
PLAIN(silu_plain_row, silu_times(g, splat(1.0f)))
PLAIN(gelu_plain_row, gelu(g))
PLAIN(gelu_tanh_plain_row, gelu_tanh(g))
PLAIN(relu2_plain_row, relu2(g))

/* ---- rounding ---------------------------------------------------------------- */

/* Magnitudes are rounded as integers; a NaN's, which could overflow, is put aside. */
INLINE v8i no_nan(v8i magnitude) {
  return select_i(magnitude > 0x7f800000, (v8i){0} + 0x7f800000, magnitude);
}

INLINE v8f to_bf16(v8f x) {
  v8i u = (v8i)x, sign = u & (int32_t)0x80000000, magnitude = u & 0x7fffffff, a = no_nan(magnitude);
  v8i y = (a + 0x7fff + ((a >> 16) & 1)) & 0x7fff0000;
  return (v8f)(sign | select_i(magnitude > 0x7f800000, (magnitude & 0x7fff0000) | 0x400000, y));
}

/* Below 2^-14 the adder rounds at f16's last place, 2^-24; above, the bits do. */
INLINE v8f to_f16(v8f x) {
  v8i u = (v8i)x, sign = u & (int32_t)0x80000000, magnitude = u & 0x7fffffff, a = no_nan(magnitude);
  v8i small = (v8i)((v8f)a + splat(0.5f) - splat(0.5f));
  v8i normal = (a + 0xfff + ((a >> 13) & 1)) & ~0x1fff;
  v8i y = select_i(a < 0x38800000, small, normal);
  y = select_i(normal >= 0x47800000, (v8i){0} + 0x7f800000, y);
  return (v8f)(sign | select_i(magnitude > 0x7f800000, (magnitude & 0x7fffe000) | 0x400000, y));
}

#define ROUND(name, function) \
  static void name(float *x, int64_t n) { \
    int64_t i = 0; \
    for (; i + LANES <= n; i += LANES) store(x + i, function(load(x + i))); \
    if (i < n) { \
      v8f y = function(load_tail(x + i, n - i, 0.0f)); \
      memcpy(x + i, &y, (size_t)(n - i) * sizeof *x); \
    } \
  }

ROUND(round_f16_row, to_f16)
ROUND(round_bf16_row, to_bf16)

#define NB_ACT_TABLE \
  { \
    .row = {[NB_MOE_SILU] = silu_row, \
            [NB_MOE_GELU] = gelu_row, \
            [NB_MOE_GELU_TANH] = gelu_tanh_row, \
            [NB_MOE_SWIGLUOAI] = swigluoai_row, \
            [NB_MOE_SWIGLUOAI_UNINTERLEAVE] = swigluoai_row, \
            [NB_MOE_SWIGLUSTEP] = swiglustep_row, \
            [NB_MOE_SILU_NO_MUL] = silu_plain_row, \
            [NB_MOE_GELU_NO_MUL] = gelu_plain_row, \
            [NB_MOE_GELU_TANH_NO_MUL] = gelu_tanh_plain_row, \
            [NB_MOE_RELU2_NO_MUL] = relu2_plain_row}, \
    .round_f16 = round_f16_row, .round_bf16 = round_bf16_row, \
  }

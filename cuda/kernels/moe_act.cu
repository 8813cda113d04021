/* moe_act.cu - what stands between an expert's two products, for all rows in one launch: core/compute/moe_act_body.h on a
 * device, bit for bit.
 *
 * A thread takes eight gates and eight ups, 32 bytes of 16-bit floats, all asked for before the first is worked on.
 * Memory limits it, and about as much the 45 instructions of a value: an exp that is the CPU's to the bit, and a true
 * division. gelu (not its tanh form) is double precision, as on the CPU: a kernel of its own, which that limits where a GPU
 * has little of it. */
#include "moe_rows.h"
#include "plain.cuh"

namespace moe_act_kernels {
using plain::EIGHT;

/* Clamps that keep NaN. */
NB_DEVICE float at_most(float x, float limit) { return x > limit ? limit : x; }
NB_DEVICE float within(float x, float limit) { return x < -limit ? -limit : at_most(x, limit); }

/* x * Phi(x), the CPU's way: x/2 * erfc(-x/sqrt 2), erfc(z) = t exp(-z^2 + P(2t-1)) for z >= 0, t = 1/(1+z/2). */
NB_DEVICE float gelu(float x) {
  const double c[] = {-8.728157957672711e-05,  7.997932599488435e-06,  0.0005737622639129361,
                      -0.00022790511333291625, -0.0022887631032270216, 0.0017940622113871289,
                      0.008808825189987383,    -0.009880018251999972,  -0.04689364063484012,
                      0.04734388752008952,     0.6726431547820434,     -0.6717940916796016};
  const double z = mul_rn((double)x, -0.70710678118654752440), positive = z < 0.0 ? -z : z;
  const double t = 1.0 / (1.0 + mul_rn(0.5, positive)), s = t + t - 1.0;
  double p = c[0];
#pragma unroll
  for (int i = 1; i < 12; i++) p = mul_rn(p, s) + c[i];
  const double e = mul_rn(t, exp_d(p - mul_rn(positive, positive)));
  return (float)mul_rn(mul_rn(0.5, (double)x), z < 0.0 ? 2.0 - e : e);
}

/* x / (1 + exp(-2y)), y = sqrt(2/pi) (x + 0.044715 x^3). */
NB_DEVICE float gelu_tanh(float x) {
  const float y = mul_rn(0.79788456080286535588f, x + mul_rn(mul_rn(mul_rn(0.044715f, x), x), x));
  return x / (1.0f + exp_f(mul_rn(-2.0f, y)));
}
NB_DEVICE float swigluoai(float g, float u, const nb_moe_act_rows &o) {
  const float gate = at_most(g, o.limit);
  return mul_rn(mul_rn(gate, sigmoid_f(mul_rn(o.alpha, gate))), within(u, o.limit) + o.beta);
}
NB_DEVICE float relu2(float x) {
  const float y = x < 0.0f ? 0.0f : x;
  return mul_rn(y, y);
}

template <class F> NB_DEVICE void each(float (&g)[EIGHT], const float (&u)[EIGHT], F f) {
#pragma unroll
  for (int i = 0; i < EIGHT; i++) g[i] = f(g[i], u[i]);
}

/* g = the activation of g and u. GELU: of the kinds that need double precision; else of all the others. */
template <bool GELU>
NB_DEVICE void activate(float (&g)[EIGHT], const float (&u)[EIGHT], const nb_moe_act_rows &o) {
  if (GELU) {
    if (o.kind == NB_KERNEL_GELU) each(g, u, [](float a, float b) { return mul_rn(gelu(a), b); });
    else each(g, u, [](float a, float) { return gelu(a); });
    return;
  }
  switch (o.kind) {
  case NB_KERNEL_SILU:
    each(g, u, [&](float a, float b) { return silu_times(at_most(a, o.limit), within(b, o.limit)); });
    break;
  case NB_KERNEL_GELU_TANH: each(g, u, [](float a, float b) { return mul_rn(gelu_tanh(a), b); }); break;
  case NB_KERNEL_SWIGLUOAI:
  case NB_KERNEL_SWIGLUOAI_UNINTERLEAVE:
    each(g, u, [&](float a, float b) { return swigluoai(a, b, o); });
    break;
  case NB_KERNEL_SWIGLUSTEP:
    each(g, u,
         [&](float a, float b) { return mul_rn(at_most(silu_times(a, 1.0f), o.limit), within(b, o.limit)); });
    break;
  case NB_KERNEL_SILU_NO_MUL: each(g, u, [](float a, float) { return silu_times(a, 1.0f); }); break;
  case NB_KERNEL_GELU_TANH_NO_MUL: each(g, u, [](float a, float) { return gelu_tanh(a); }); break;
  default: each(g, u, [](float a, float) { return relu2(a); }); break;
  }
}

/* out may be gate, or lie over gate and up where these lie apart: a thread writes what it alone has read. */
template <bool GELU>
NB_DEVICE void run(global<uint8_t> out, global<uint8_t> gate, global<uint8_t> up, const nb_moe_act_rows &o) {
  const int64_t row = blockIdx.x, at = ((int64_t)blockIdx.y * blockDim.x + threadIdx.x) * EIGHT;
  const int count = (int)smaller((int64_t)EIGHT, o.n - at);
  float g[EIGHT], u[EIGHT] = {0};
  if (count <= 0) return;
  if (o.kind == NB_KERNEL_SWIGLUOAI) {
    /* In pairs: sixteen in a row. */
    const int64_t from = row * o.stride + 2 * at;
    float a[2][EIGHT];
#pragma unroll
    for (int i = 0; i < 2; i++)
      plain::load(a[i], cast<const uint8_t>(gate), from + i * EIGHT, 2 * count - i * EIGHT, o.dtype, o.whole);
#pragma unroll
    for (int i = 0; i < EIGHT; i++) {
      g[i] = a[2 * i / EIGHT][2 * i % EIGHT];
      u[i] = a[2 * i / EIGHT][2 * i % EIGHT + 1];
    }
  } else {
    plain::load(g, cast<const uint8_t>(gate), row * o.stride + at, count, o.dtype, o.whole);
    if (up) plain::load(u, cast<const uint8_t>(up), row * o.stride + o.up + at, count, o.dtype, o.whole);
  }
  plain::round(g, o.rounding);
  plain::round(u, o.rounding);
  activate<GELU>(g, u, o);
  plain::round(g, o.rounding);
  plain::store(out, g, row * o.n + at, count, o.dtype, o.whole);
}
} // namespace moe_act_kernels

extern "C" __global__ void __launch_bounds__(NB_FORWARD_THREADS)
    nb_moe_activation(global<uint8_t> out, global<uint8_t> gate, global<uint8_t> up,
                      const __grid_constant__ nb_moe_act_rows o) {
  moe_act_kernels::run<false>(out, gate, up, o);
}
extern "C" __global__ void __launch_bounds__(NB_FORWARD_THREADS)
    nb_moe_activation_gelu(global<uint8_t> out, global<uint8_t> gate, global<uint8_t> up,
                           const __grid_constant__ nb_moe_act_rows o) {
  moe_act_kernels::run<true>(out, gate, up, o);
}

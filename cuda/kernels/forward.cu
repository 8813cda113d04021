/* forward.cu - the small operations between the products, element by element: residual sums, SwiGLU, another dtype, and a
 * look for values that are not finite. The processor's bytes (core/compute/elementwise.c, core/cast.c).
 *
 * A thread takes eight values, which are sent for at once; a block 2048 of them. Memory limits them; SwiGLU, with 45
 * instructions a value, about as much. `whole`: elements are a multiple of eight, tensors begin on 16 bytes. */
#include "plain.cuh"

namespace flat {
using plain::EIGHT;

struct place {
  int64_t at;
  int count; /* 0 or less: nothing */
};
NB_DEVICE place mine(int64_t n) {
  const int64_t at = ((int64_t)blockIdx.x * NB_FORWARD_THREADS + (int)threadIdx.x) * EIGHT;
  return {at, (int)smaller((int64_t)EIGHT, n - at)};
}
} // namespace flat

/* y f32 [n] += x of any plain dtype. */
extern "C" __global__ void __launch_bounds__(NB_FORWARD_THREADS)
    nb_forward_add(global<uint8_t> y, global<const uint8_t> x, int64_t n, int dtype, int whole) {
  const flat::place p = flat::mine(n);
  float a[flat::EIGHT], b[flat::EIGHT];
  if (p.count <= 0) return;
  plain::load(a, cast<const uint8_t>(y), p.at, p.count, NB_KERNEL_F32, whole);
  plain::load(b, x, p.at, p.count, dtype, whole);
#pragma unroll
  for (int i = 0; i < flat::EIGHT; i++) a[i] += b[i];
  plain::store(y, a, p.at, p.count, NB_KERNEL_F32, whole);
}

/* gate = gate / (1 + exp(-gate)) * up. */
extern "C" __global__ void __launch_bounds__(NB_FORWARD_THREADS)
    nb_forward_swiglu(global<uint8_t> gate, global<const uint8_t> up, int64_t n, int dtype, int whole) {
  const flat::place p = flat::mine(n);
  float g[flat::EIGHT], u[flat::EIGHT];
  if (p.count <= 0) return;
  plain::load(g, cast<const uint8_t>(gate), p.at, p.count, dtype, whole);
  plain::load(u, up, p.at, p.count, dtype, whole);
#pragma unroll
  for (int i = 0; i < flat::EIGHT; i++) g[i] = mul_rn(g[i] / (1.0f + exp_f(-g[i])), u[i]);
  plain::store(gate, g, p.at, p.count, dtype, whole);
}

/* to = from in another dtype; limit: what larger magnitudes become, 0: they stay. */
extern "C" __global__ void __launch_bounds__(NB_FORWARD_THREADS)
    nb_forward_cast(global<uint8_t> to, global<const uint8_t> from, int64_t n, int to_dtype, int from_dtype,
                    float limit, int whole) {
  const flat::place p = flat::mine(n);
  float v[flat::EIGHT];
  if (p.count <= 0) return;
  plain::load<true>(v, from, p.at, p.count, from_dtype, whole);
  if (limit > 0) {
#pragma unroll
    for (int i = 0; i < flat::EIGHT; i++) /* NaN fails both comparisons and stays */
      v[i] = v[i] > limit ? limit : v[i] < -limit ? -limit : v[i];
  }
  plain::store<true>(to, v, p.at, p.count, to_dtype, whole);
}

/* *count += how many values are infinite or NaN. Most blocks find none and add nothing. */
extern "C" __global__ void __launch_bounds__(NB_FORWARD_THREADS)
    nb_forward_nonfinite(global<int> count, global<const uint8_t> x, int64_t n, int dtype, int whole) {
  const flat::place p = flat::mine(n);
  float v[flat::EIGHT];
  if (p.count <= 0) return;
  plain::load(v, x, p.at, p.count, dtype, whole);
  int found = 0;
#pragma unroll
  for (int i = 0; i < flat::EIGHT; i++) found += magnitude_of(v[i]) >= 0x7f800000u;
  if (found) add_in_turn(count, found);
}

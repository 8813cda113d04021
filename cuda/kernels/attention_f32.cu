/* attention_f32.cu - causal attention of float32, over independent sequences, grouped heads, with an optional sliding
 * window: a warp to a query, its head's numbers side by side in the lanes, four keys at a time (two of long heads; online
 * softmax). For losses that are to be the processor's; attention.cu is the fast one.
 *
 * What limits it: for 128 numbers a head 8 multiply-adds, 5 shuffles and 5 additions a key and a query. Keys and values
 * come out of the caches: eight neighbouring queries make a block. */
#include "../exp.cuh"
#include "../numbers.cuh"
#include "attention.h"

namespace attend_f32 {
enum { LANES = 32 };

/* The sum of all lanes' v. */
NB_DEVICE float over_lanes(float v) {
#pragma unroll
  for (int m = LANES / 2; m; m /= 2) v += float_of_bits(shuffle_xor(bits_of_float(v), m));
  return v;
}

/* N: numbers of a head that a lane has. */
template <int N>
NB_DEVICE void run(global<float> out, global<const float> q, global<const float> k, global<const float> v,
                   const nb_attention_shape &s) {
  constexpr int KEYS = N > 4 ? 2 : 4;
  const int lane = (int)threadIdx.x % LANES, head = (int)blockIdx.x % s.heads,
            rest = (int)blockIdx.x / s.heads, sequence = rest % s.sequences;
  const int query = rest / s.sequences * NB_ATTENTION_F32_QUERIES + (int)threadIdx.x / LANES;
  if (query >= s.length) return;
  const int64_t q_row = (int64_t)s.heads * s.head_dim, k_row = (int64_t)s.kv_heads * s.head_dim;
  const int64_t q_at = ((int64_t)sequence * s.length + query) * q_row + head * s.head_dim + lane;
  const int64_t k_at =
      (int64_t)sequence * s.length * k_row + head / (s.heads / s.kv_heads) * s.head_dim + lane;

  float mine[N], sums[N], top = -INFINITY, total = 0;
#pragma unroll
  for (int j = 0; j < N; j++) {
    sums[j] = mine[j] = 0;
    if (lane + j * LANES < s.head_dim) mine[j] = q[q_at + j * LANES];
  }
  for (int first = query >= s.sliding ? query - s.sliding + 1 : 0; first <= query; first += KEYS) {
    float score[KEYS], most = top;
#pragma unroll
    for (int i = 0; i < KEYS; i++) {
      global<const float> from = k + (k_at + smaller(first + i, query) * k_row);
      score[i] = 0;
#pragma unroll
      for (int j = 0; j < N; j++)
        if (lane + j * LANES < s.head_dim) score[i] += mine[j] * from[j * LANES];
    }
#pragma unroll
    for (int i = 0; i < KEYS; i++) {
      score[i] = mul_rn(over_lanes(score[i]), s.scale);
      if (first + i > query) score[i] = -INFINITY; /* keys to come */
      most = fmaxf(most, score[i]);
    }
    const float base = most == -INFINITY ? 0 : most, shrink = exp_f(top - base); /* of nothing, first */
    top = most;
    total = mul_rn(total, shrink);
#pragma unroll
    for (int j = 0; j < N; j++) sums[j] = mul_rn(sums[j], shrink);
#pragma unroll
    for (int i = 0; i < KEYS; i++) {
      global<const float> from = v + (k_at + smaller(first + i, query) * k_row);
      const float weight = score[i] == -INFINITY ? 0 : exp_f(score[i] - base);
      total += weight;
#pragma unroll
      for (int j = 0; j < N; j++)
        if (lane + j * LANES < s.head_dim && first + i <= query) sums[j] += weight * from[j * LANES];
    }
  }
#pragma unroll
  for (int j = 0; j < N; j++)
    if (lane + j * LANES < s.head_dim) out[q_at + j * LANES] = sums[j] / total;
}
} // namespace attend_f32

/* out, q [m, heads*head_dim], k and v [m, kv_heads*head_dim]; m = sequences*length. A block to eight queries of a head; three to a
 * processor, for more long heads would spill. */
#define ATTENTION_F32_KERNEL(name, numbers) \
  extern "C" __global__ void __launch_bounds__(NB_ATTENTION_F32_QUERIES * 32, 3) \
      name(global<float> out, global<const float> q, global<const float> k, global<const float> v, \
           const __grid_constant__ nb_attention_shape s) { \
    attend_f32::run<numbers>(out, q, k, v, s); \
  }
ATTENTION_F32_KERNEL(nb_attention_f32_64, 2)
ATTENTION_F32_KERNEL(nb_attention_f32_128, 4)
ATTENTION_F32_KERNEL(nb_attention_f32_256, 8)

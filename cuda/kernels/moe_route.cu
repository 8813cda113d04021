/* moe_route.cu - which experts a token goes to: core/compute/moe_route.c on a device, bit for bit, since ties and what a
 * small difference decides follow from the scores' last bits.
 *
 * A warp has a row. Sums run over eight lanes as the CPU's do. What limits it is the chain of `top` choices, each a look
 * at all experts and five exchanges; a row's logits are read once. */
#include "../exp.cuh"
#include "../numbers.cuh"
#include "moe_route.h"

namespace moe_route_kernels {
enum { LANES = 32, SUM_LANES = 8 };

/* Ranks, in the order of the floats, of which none is -0: scores are positive. Those that are taken come last, before
 * them NaN. */
enum : uint32_t { TAKEN = 0, NOT_A_NUMBER = 1 };
NB_DEVICE uint32_t rank_of(float f) {
  const uint32_t u = bits_of_float(f);
  return f != f ? NOT_A_NUMBER : u >> 31 ? ~u : u | 0x80000000u;
}

template <class JOIN> NB_DEVICE uint32_t over_lanes(uint32_t v, JOIN join) {
  for (int d = 1; d < LANES; d *= 2) v = join(v, shuffle_xor(v, d));
  return v;
}
NB_DEVICE uint32_t most_of(uint32_t v) { return over_lanes(v, larger<uint32_t>); }
NB_DEVICE float shuffled(float v, int mask) { return float_of_bits(shuffle_xor(bits_of_float(v), mask)); }

/* The place of the highest of n ranks, the lowest of such places. As for the CPU, which goes from first to last, no
 * rank is higher than a NaN that comes first; nans: there may be some. */
NB_DEVICE int best(shared<uint32_t> ranks, int n, bool nans) {
  uint32_t most = TAKEN;
  int at = n, first = n;
  for (int i = (int)threadIdx.x % LANES; i < n; i += LANES) {
    const uint32_t r = ranks[i];
    if (r > most) {
      most = r;
      at = i;
    }
    if (r != TAKEN) first = smaller(first, i);
  }
  const uint32_t highest = most_of(most);
  at = n - (int)most_of((uint32_t)(n - (most == highest ? at : n)));
  if (nans) {
    first = n - (int)most_of((uint32_t)(n - first));
    if (ranks[first] == NOT_A_NUMBER) at = first;
  }
  return at;
}

/* A warp's row: the scores of its experts in shared memory, and their ranks in the choice. */
struct router {
  const nb_moe_routing &o;
  shared<float> scores;
  shared<uint32_t> ranks, groups;
  int lane;

  NB_DEVICE router(const nb_moe_routing &o_, int warp, int lane_)
      : o(o_), scores(cast<float>(shared_words()) + warp * (2 * o_.experts + o_.groups)),
        ranks(cast<uint32_t>(scores) + o_.experts), groups(ranks + o_.experts), lane(lane_) {}

  /* scores: softmax of logits from x[at] on. */
  NB_DEVICE void softmax(global<const uint8_t> x, int64_t at) const {
    float most = float_of_bits(0xff800000u);
    for (int i = lane; i < o.experts; i += LANES) {
      const float v = load_float(x, at + i, o.dtype);
      scores[i] = v;
      if (v > most) most = v;
    }
    for (int d = 1; d < LANES; d *= 2) most = larger(most, shuffled(most, d));
    for (int i = lane; i < o.experts; i += LANES) scores[i] = exp_f(scores[i] - most);
    __syncwarp();
    float sum = 0;
    for (int i = lane % SUM_LANES; i < o.experts; i += SUM_LANES) sum += scores[i];
    for (int d : {4, 1, 2}) sum += shuffled(sum, d);
    const float inverse = 1.0f / sum;
    __syncwarp();
    for (int i = lane; i < o.experts; i += LANES) scores[i] = mul_rn(scores[i], inverse);
  }
  NB_DEVICE void sigmoid(global<const uint8_t> x, int64_t at) const {
    for (int i = lane; i < o.experts; i += LANES) scores[i] = sigmoid_f(load_float(x, at + i, o.dtype));
  }

  /* The ranks of all experts; gives whether one is NaN. */
  NB_DEVICE bool rank(global<const uint8_t> bias) const {
    bool nan = false;
    for (int i = lane; i < o.experts; i += LANES) {
      const float score = scores[i];
      const uint32_t r = rank_of(bias ? score + load_float(bias, i, o.bias_dtype) : score);
      ranks[i] = r;
      nan = nan || r == NOT_A_NUMBER;
    }
    return most_of(nan);
  }

  /* A group's score: its best expert's, or with a correction the sum of its best two. NaN is no best. */
  NB_DEVICE float group_score(int g, int size, bool corrected) const {
    uint32_t first = rank_of(float_of_bits(0xff800000u)), second = first;
    /* Lanes begin where each finds a bank of its own: the same places of groups share one where 2 divides their size. */
    const int shared_by = smaller<int>(size & -size, LANES);
    int i = lane * shared_by / LANES % size;
    for (int n = 0; n < size; n++) {
      const uint32_t r = ranks[g * size + i];
      if (r > first) {
        second = first;
        first = r;
      } else if (r > second) second = r;
      if (++i == size) i = 0;
    }
    return corrected && size > 1 ? score_of(first) + score_of(second) : score_of(first);
  }
  static NB_DEVICE float score_of(uint32_t rank) {
    return float_of_bits(rank >> 31 ? rank & 0x7fffffffu : ~rank);
  }

  /* Takes the experts of all but the best groups out of the choice. */
  NB_DEVICE void keep_groups(bool corrected) const {
    const int size = o.experts / o.groups;
    bool nan = false;
    for (int g = lane; g < o.groups; g += LANES) {
      const uint32_t r = rank_of(group_score(g, size, corrected));
      groups[g] = r;
      nan = nan || r == NOT_A_NUMBER;
    }
    nan = most_of(nan);
    for (int i = 0; i < o.top_groups; i++) {
      __syncwarp();
      const int g = best(groups, o.groups, nan);
      __syncwarp();
      if (lane == 0) groups[g] = TAKEN;
    }
    __syncwarp();
    for (int i = lane; i < o.experts; i += LANES)
      if (groups[i / size] != TAKEN) ranks[i] = TAKEN;
  }
};
} // namespace moe_route_kernels

/* experts, weights [rows, top] from logits [rows, experts] of o.dtype and bias [experts] (or null). Shared memory:
 * nb_moe_route_shared for each warp. */
extern "C" __global__ void __launch_bounds__(NB_MOE_ROUTE_WARPS * 32)
    nb_moe_route(global<const uint8_t> logits, global<const uint8_t> bias, global<int> experts,
                 global<float> weights, const __grid_constant__ nb_moe_routing o) {
  using namespace moe_route_kernels;
  const int warp = (int)threadIdx.x / LANES, lane = (int)threadIdx.x % LANES;
  const int64_t row = (int64_t)blockIdx.x * ((int)blockDim.x / LANES) + warp, out = row * o.top;
  if (row >= o.rows) return;
  const router r(o, warp, lane);
  if (o.sigmoid) r.sigmoid(logits, row * o.experts);
  else r.softmax(logits, row * o.experts);
  __syncwarp();
  const bool nans = r.rank(bias);
  __syncwarp();
  if (o.groups) {
    r.keep_groups(bias ? true : false);
    __syncwarp();
  }
  float total = 0;
  for (int t = 0; t < o.top; t++) {
    const int at = best(r.ranks, o.experts, nans);
    const float w = r.scores[at];
    total += w;
    __syncwarp();
    if (lane == 0) {
      r.ranks[at] = TAKEN;
      experts[out + t] = at;
      weights[out + t] = w;
    }
    __syncwarp();
  }
  if (!o.normalize && o.scale == 1.0f) return;
  for (int t = lane; t < o.top; t += LANES) {
    float w = weights[out + t];
    if (o.normalize) w /= total;
    weights[out + t] = o.scale != 1.0f ? mul_rn(w, o.scale) : w;
  }
}

/* logits.cu - from logits, a block of the vocabulary at a time, to negative log-likelihoods, best tokens and KL divergences
 * (core/compute/logits.c): running sums in double, in one order.
 *
 * A block of threads takes a token: first for the largest logit, which scales the sums, then for the sums, out of the
 * nearest cache. What limits it: memory, or, where a processor has few units for double, exp. */
#include "plain.cuh"
#include "logits.h"

namespace logits {
enum { LANES = 32, THREADS = NB_LOGITS_THREADS, WARPS = THREADS / LANES };
#define NEGATIVE_INFINITY float_of_bits(0xff800000u)

/* The largest and where it is first; at: beyond all entries where none is larger than -Inf. */
struct best {
  float value;
  int at;
};
NB_DEVICE best better(best a, best b) {
  return b.value > a.value || (b.value == a.value && b.at < a.at) ? b : a;
}

/* Of the whole block; NaN is never the largest. */
NB_DEVICE best best_of(global<const float> y, int columns) {
  best b = {NEGATIVE_INFINITY, 0x7fffffff};
  for (int i = (int)threadIdx.x; i < columns; i += THREADS) {
    const float v = y[i];
    if (v > b.value) b = {v, i};
  }
#pragma unroll
  for (int m = 16; m; m /= 2) {
    const best other = {float_of_bits(shuffle_xor(bits_of_float(b.value), m)),
                        (int)shuffle_xor((uint32_t)b.at, m)};
    b = better(b, other);
  }
  shared<uint32_t> part = shared_words();
  __syncthreads(); /* what was there before is no longer read */
  if (threadIdx.x % LANES == 0) {
    part[threadIdx.x / LANES * 2] = bits_of_float(b.value);
    part[threadIdx.x / LANES * 2 + 1] = (uint32_t)b.at;
  }
  __syncthreads();
  for (int w = 0; w < WARPS; w++) {
    const uint32_t value = part[2 * w], at = part[2 * w + 1];
    b = better(b, {float_of_bits(value), (int)at});
  }
  return b;
}

NB_DEVICE double sum_of(double v) {
#pragma unroll
  for (int m = 16; m; m /= 2) v += shuffle_xor_f64(v, m);
  shared<double> part = cast<double>(shared_words());
  __syncthreads();
  if (threadIdx.x % LANES == 0) part[threadIdx.x / LANES] = v;
  __syncthreads();
  double sum = 0;
  for (int w = 0; w < WARPS; w++) sum += part[w];
  return sum;
}

/* What is known of one model's logits of a token: log of their sum of exponentials is max + log(sum). */
struct side {
  double max, sum, target;
  float best;
  int best_at;
};
NB_DEVICE side load_side(global<const double> from) {
  return {from[0], from[1], from[2], (float)(double)from[3], (int)(double)from[4]};
}
NB_DEVICE void store_side(global<double> to, const side &s) {
  to[0] = s.max, to[1] = s.sum, to[2] = s.target, to[3] = (double)s.best, to[4] = (double)s.best_at;
}

/* Takes a block's logits y into what is known, but for its sum. */
struct taken {
  logits::side side;
  double shrunk; /* by what the sums before shrank */
};
NB_DEVICE taken take(side s, global<const float> y, const nb_logits_block &b, int target) {
  const best top = best_of(y, b.columns);
  double shrunk = 1;
  if (top.value > s.best) {
    s.best = top.value;
    s.best_at = b.n0 + top.at;
  }
  if ((double)top.value > s.max) {
    shrunk = s.sum == 0 ? 0 : exp(s.max - (double)top.value);
    s.max = (double)top.value;
    s.sum *= shrunk;
  }
  if (target >= b.n0 && target - b.n0 < b.columns) s.target = (double)(float)y[target - b.n0];
  return {s, shrunk};
}

/* exp(v - max); what can't be seen beside a maximum of -Inf is 0. */
NB_DEVICE double share(float v, double max) { return v == NEGATIVE_INFINITY ? 0 : exp((double)v - max); }

NB_DEVICE double plain_nan(double v) { return v == v ? v : (double)float_of_bits(0x7fc00000u); }
NB_DEVICE double total(const side &s) { return s.max + log(s.sum); }
NB_DEVICE double likelihood(const side &s, int target, int vocab) {
  if (target < 0) return 0;
  return plain_nan(target < vocab ? total(s) - s.target : (double)float_of_bits(0x7fc00000u));
}
} // namespace logits

/* y_p, y_q (null: one model) f32 [rows, b.columns] into the states of so many rows, one block each; with b.last the results. A
 * target outside of the vocabulary makes NaN, a negative one 0. */
extern "C" __global__ void __launch_bounds__(NB_LOGITS_THREADS)
    nb_logits_take(global<double> states, global<const float> y_p, global<const float> y_q,
                   global<const int> targets, global<double> kl, global<double> nll_p, global<double> nll_q,
                   global<int> top_p, global<int> top_q, const __grid_constant__ nb_logits_block b) {
  using namespace logits;
  const int64_t row = blockIdx.x;
  const int target = targets[row];
  global<double> state = states + row * NB_LOGITS_STATE;
  side of_p = {(double)NEGATIVE_INFINITY, 0, 0, NEGATIVE_INFINITY, 0}, of_q = of_p;
  double cross = 0; /* sum of exp(p - the largest) (p - q) */
  if (!b.first) {
    of_p = load_side(cast<const double>(state));
    of_q = load_side(cast<const double>(state + 5));
    cross = state[10];
  }
  global<const float> p = y_p + row * b.columns, q = y_q ? y_q + row * b.columns : y_q;
  const taken from_p = take(of_p, p, b, target), from_q = q ? take(of_q, q, b, target) : taken{of_q, 1};
  of_p = from_p.side;
  of_q = from_q.side;
  double sum_p = 0, sum_q = 0, crossed = 0;
  for (int i = (int)threadIdx.x; i < b.columns; i += THREADS) {
    const float v = p[i];
    const double e = share(v, of_p.max);
    sum_p += e;
    if (!q) continue;
    const float w = q[i];
    sum_q += share(w, of_q.max);
    crossed += e * ((double)v - (double)w);
  }
  of_p.sum += sum_of(sum_p);
  if (q) {
    of_q.sum += sum_of(sum_q);
    cross = cross * from_p.shrunk + sum_of(crossed);
  }
  if (threadIdx.x) return;
  if (!b.last) {
    store_side(state, of_p);
    store_side(state + 5, of_q);
    state[10] = cross;
    return;
  }
  nll_p[row] = likelihood(of_p, target, b.vocab);
  top_p[row] = of_p.best_at;
  if (!q) return;
  nll_q[row] = likelihood(of_q, target, b.vocab);
  top_q[row] = of_q.best_at;
  /* sum of p (log p - log q), with log p - log q = (y_p - y_q) - (lse p - lse q) */
  kl[row] = target < 0 ? 0 : plain_nan(cross / of_p.sum - (total(of_p) - total(of_q)));
}

/* y f32 [m, columns] = x [m,k] head [columns,k]^T, of any plain dtypes: where there is no cuBLASLt.
 * Right, and no faster than simple: a warp makes one column of some rows. */
extern "C" __global__ void __launch_bounds__(NB_LOGITS_THREADS)
    nb_logits_product(global<float> y, global<const uint8_t> x, global<const uint8_t> head, int columns,
                      int m, int k, int x_dtype, int head_dtype, int whole) {
  using plain::EIGHT;
  enum { ROWS = NB_LOGITS_PRODUCT_ROWS };
  const int lane = (int)threadIdx.x % 32, column = (int)blockIdx.x * logits::WARPS + (int)threadIdx.x / 32;
  const int row = (int)blockIdx.y * ROWS;
  if (column >= columns) return;
  float sums[ROWS] = {};
  for (int i = lane * EIGHT; i < k; i += 32 * EIGHT) {
    const int count = smaller((int)EIGHT, k - i);
    float w[EIGHT], v[EIGHT];
    plain::load(w, head, (int64_t)column * k + i, count, head_dtype, whole);
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      if (row + r >= m) continue;
      plain::load(v, x, (int64_t)(row + r) * k + i, count, x_dtype, whole);
#pragma unroll
      for (int j = 0; j < EIGHT; j++) sums[r] += v[j] * w[j];
    }
  }
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
#pragma unroll
    for (int d = 16; d; d /= 2) sums[r] += float_of_bits(shuffle_xor(bits_of_float(sums[r]), d));
    if (lane == 0 && row + r < m) y[(int64_t)(row + r) * columns + column] = sums[r];
  }
}

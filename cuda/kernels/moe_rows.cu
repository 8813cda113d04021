/* moe_rows.cu - rows of a mixture's tokens, there and back: to the experts' batches, and the sums over a token's experts.
 *
 * Memory limits both: rows are read and written once, 16 bytes to a thread at a time; of a sum's rows each thread asks
 * for four at once. */
#include "moe_rows.h"
#include "plain.cuh"

namespace moe_rows_kernels {
using plain::EIGHT;
enum { AT_ONCE = 4, NONE = 0x7fffffff };

/* Pair p's place in the order of the sum; NONE: it has no part in it. */
NB_DEVICE int key_of(global<const int> ids, global<const int> map, int64_t p, const nb_moe_sums &o) {
  int key = ids[p];
  if (map) key = (unsigned)key < (unsigned)o.entries ? map[key] : -1;
  return (unsigned)key < (unsigned)o.keys ? key : NONE;
}
} // namespace moe_rows_kernels

/* y[t] = the sum of weights[p] x[row of p] over t's pairs, keys ascending and of equal keys the first pair first: f32 sums
 * of products that are rounded. A block has a piece of a token's row. weights: null for 1. */
extern "C" __global__ void __launch_bounds__(NB_FORWARD_THREADS)
    nb_moe_sum(global<uint8_t> y, global<const uint8_t> x, global<const int> ids, global<const int> map,
               global<const float> weights, const __grid_constant__ nb_moe_sums o) {
  using namespace moe_rows_kernels;
  const int64_t token = blockIdx.x, at = ((int64_t)blockIdx.y * blockDim.x + threadIdx.x) * EIGHT;
  shared<int> keys = cast<int>(shared_words()),
              rows = keys + o.top; /* rows: in the sum's order, NONE behind them */
  shared<float> factors = cast<float>(rows + (o.top + 1));
  for (int j = (int)threadIdx.x; j <= o.top; j += (int)blockDim.x) {
    rows[j] = NONE;
    if (j < o.top) keys[j] = key_of(ids, map, token * o.top + j, o);
  }
  __syncthreads();
  for (int j = (int)threadIdx.x; j < o.top; j += (int)blockDim.x) {
    const int key = keys[j];
    if (key == NONE) continue;
    int before = 0;
    for (int i = 0; i < o.top; i++) {
      const int other = keys[i];
      before += other < key || (other == key && i < j);
    }
    rows[before] = o.placed ? key : j;
    factors[before] = weights ? weights[token * o.top + j] : 1.0f;
  }
  __syncthreads();

  const int count = (int)smaller((int64_t)EIGHT, o.columns - at);
  if (count <= 0) return;
  const int64_t first = o.placed ? 0 : token * o.top;
  float sum[EIGHT] = {0}, v[AT_ONCE][EIGHT];
  for (int i = 0;; i += AT_ONCE) {
    int n = 0; /* how many there are of these */
#pragma unroll
    for (int k = 0; k < AT_ONCE; k++) {
      const int row = n == k ? rows[smaller(i + k, o.top)] : (int)NONE;
      if (row == NONE) continue;
      plain::load(v[k], x, (first + row) * o.columns + at, count, o.dtype, o.whole);
      n++;
    }
#pragma unroll
    for (int k = 0; k < AT_ONCE; k++) {
      if (k >= n) continue;
      const float w = factors[i + k];
#pragma unroll
      for (int c = 0; c < EIGHT; c++) v[k][c] = mul_rn(w, v[k][c]);
      plain::round(v[k], o.rounding);
#pragma unroll
      for (int c = 0; c < EIGHT; c++) sum[c] += v[k][c];
    }
    if (n < AT_ONCE) break;
  }
  plain::store(y, sum, token * o.columns + at, count, o.out_dtype, o.whole);
}

/* out [experts, room] rows of so many units: the rows of x that `rows` [experts, room] names, the first counts[e] of
 * each expert; the others become 0. A unit has 16 bytes, or 2. */
template <class UNIT>
NB_DEVICE void moe_dispatch(global<uint8_t> out, global<const uint8_t> x, global<const int> rows,
                            global<const int> counts, int room, int64_t units, UNIT zero) {
  const int place = (int)blockIdx.x, expert = place / room;
  const bool there = place - expert * room < counts[expert];
  const int64_t from = there ? rows[place] * units : 0, step = (int64_t)gridDim.y * blockDim.x;
  for (int64_t i = (int64_t)blockIdx.y * blockDim.x + threadIdx.x; i < units; i += step)
    cast<UNIT>(out)[place * units + i] = there ? cast<const UNIT>(x)[from + i] : zero;
}
extern "C" __global__ void __launch_bounds__(NB_FORWARD_THREADS)
    nb_moe_dispatch(global<uint8_t> out, global<const uint8_t> x, global<const int> rows,
                    global<const int> counts, int room, int64_t units) {
  moe_dispatch<uint4>(out, x, rows, counts, room, units, make_uint4(0, 0, 0, 0));
}
extern "C" __global__ void __launch_bounds__(NB_FORWARD_THREADS)
    nb_moe_dispatch_odd(global<uint8_t> out, global<const uint8_t> x, global<const int> rows,
                        global<const int> counts, int room, int64_t units) {
  moe_dispatch<uint16_t>(out, x, rows, counts, room, units, 0);
}

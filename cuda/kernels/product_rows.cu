/* product_rows.cu - what products need besides product.cu: x brought into the order of the weight's rows, and the
 * product of weights of which any row may be of any group (a rank's part of a weight in activation order, groups that
 * the tensor cores' kernels don't take). Right, and no faster than simple: one block makes 64 columns of four rows. */
#include "marlin_order.cuh"
#include "product.h"

namespace rows {

enum {
  LANES = 32,
  THREADS = NB_PRODUCT_THREADS,
  WARPS = THREADS / LANES,
  ROWS = NB_PRODUCT_ROWS_AT_ONCE,
  NAN16 = 0x7fff
};

struct job {
  global<const uint16_t> x;
  global<const uint8_t> scales;
  global<const uint32_t> words, zeros;
  global<const int32_t> g_idx;
  int n, k, groups, codes, scale, bf16;
  float scale_factor;
};

/* The rows that a block makes, up to `count`: of y from `first` of m on, or of experts the pairs that `sorted` lists from
 * there on, of which `top` have a row of x. -1: none. */
struct lines {
  global<const int> sorted;
  int first, count, m, top;
  NB_DEVICE int y(int r) const {
    if (r >= count) return -1;
    const int row = sorted ? sorted[first + r] : first + r;
    return row >= 0 && row < m ? row : -1;
  }
  NB_DEVICE int x(int r) const { return y(r) < 0 ? -1 : y(r) / top; }
};

/* What y becomes: sums * row_scale, of rows of x, * factor + bias, all of that times weights, of rows of y. */
struct result {
  global<const uint16_t> bias;
  global<const float> row_scale, weights;
  global<uint16_t> y;
  int outputs;
  float factor;
};

NB_DEVICE float number(uint16_t h, int bf16) { return bf16 ? float_of_bf16(h) : float_of_f16(h); }

/* The weight of row k and column c + 8t of the tile's 64, out of its word. slot: bits before the row's codes there. */
template <int BITS>
NB_DEVICE float weight(const job &j, uint32_t word, int slot, int k, int tile, int c, int t) {
  constexpr uint32_t MASK = (1u << BITS) - 1;
  const int g = j.g_idx ? j.g_idx[k] : (int)(k / (j.k / j.groups));
  if (g < 0 || g >= j.groups) return float_of_bits(0x7fffffffu);
  const uint32_t code = word >> (BITS == 4 ? slot + t % 2 * 8 : slot) & MASK;
  uint32_t zero = 1u << (BITS - 1);
  if (j.zeros) {
    const int at = BITS == 4 ? c : c * 2 + t / 4,
              shift = t % 2 * 16 + (BITS == 4 ? t / 2 * 4 : t % 4 / 2 * 8);
    zero = j.zeros[(int64_t)g * (j.n * BITS / 32) + tile * (2 * BITS) + at] >> shift & MASK;
  }
  const int place = marlin::scale_place(c + 8 * t, j.groups > 1, j.scale);
  const float scale = marlin::scale_at(j.scales, (int64_t)g * j.n + tile * 64 + place, j.scale);
  return marlin::value(code, j.codes, dequantize::whole(zero)) * (scale * j.scale_factor);
}

/* Where a thread's sum of row r and column lane/4 + 8t lies, in shared memory: sums in registers would need loops that
 * unroll, for which the compiler takes minutes. */
NB_DEVICE int sum_at(int r, int t) { return (r * 8 + t) * THREADS + (int)threadIdx.x; }

/* The sums: of this lane's rows of k. */
template <int BITS> NB_DEVICE void add(const job &j, int tile, const lines &at) {
  const int lane = (int)threadIdx.x % LANES, warp = (int)threadIdx.x / LANES;
  const shared<float> all = cast<float>(shared_words());
  for (int i = 0; i < ROWS * 8; i++) all[sum_at(i / 8, i % 8)] = 0;
  for (int kt = warp; kt < j.k / 16; kt += WARPS) {
    const int64_t from = (((int64_t)kt * (j.n / 64) + tile) * LANES + lane) * BITS;
#pragma unroll 1
    for (int i = 0; i < 4; i++) { /* rows 2t, 2t + 1, 2t + 8, 2t + 9 of the 16 */
      const int k = kt * 16 + lane % 4 * 2 + i % 2 + i / 2 * 8;
      float x[ROWS];
#pragma unroll
      for (int r = 0; r < ROWS; r++) x[r] = at.x(r) < 0 ? 0 : number(j.x[(int64_t)at.x(r) * j.k + k], j.bf16);
#pragma unroll 1
      for (int t = 0; t < 8; t++) {
        const float w = weight<BITS>(j, j.words[from + (BITS == 4 ? t / 2 : t)], i % 2 * 16 + i / 2 * BITS, k,
                                     tile, lane / 4, t);
#pragma unroll
        for (int r = 0; r < ROWS; r++) all[sum_at(r, t)] = all[sum_at(r, t)] + x[r] * w;
      }
    }
  }
}

/* y of 64 columns and ROWS rows: the lanes' sums, of all rows of k, added in one order. */
NB_DEVICE void finish(const job &j, const result &to, int tile, const lines &at) {
  const shared<float> all = cast<float>(shared_words());
  __syncthreads();
  for (int i = (int)threadIdx.x; i < ROWS * 64; i += THREADS) {
    const int row = at.y(i / 64), c = i % 64, column = tile * 64 + c;
    if (row < 0 || column >= to.outputs) continue;
    float sum = 0;
    for (int warp = 0; warp < WARPS;
         warp++) /* four lanes of each have the column; threads take turns with them */
      for (int q = 0; q < 4; q++) sum += all[(i / 8) * THREADS + warp * LANES + c % 8 * 4 + (q + c / 8) % 4];
    if (to.row_scale) sum *= to.row_scale[row / at.top];
    sum *= to.factor;
    if (to.bias) sum += number(to.bias[tile * 64 + marlin::single_place(c)], j.bf16);
    if (to.weights) sum *= to.weights[row];
    to.y[(int64_t)row * to.outputs + column] = (uint16_t)(j.bf16 ? bf16_pair(sum, 0) : f16_pair(sum, 0));
  }
}

NB_DEVICE void run(const job &j, const result &to, int bits, const lines &at) {
  const int tile = (int)blockIdx.x;
  if (bits == 4) add<4>(j, tile, at);
  else add<8>(j, tile, at);
  finish(j, to, tile, at);
}

/* How many of a block's threads found a row i of the weight not of group i / group; for the first of them. */
NB_DEVICE int irregular_threads(global<const int32_t> g_idx, int k, int group) {
  shared<uint32_t> found = shared_words();
  bool other = false;
  for (int i = (int)threadIdx.x; i < k; i += THREADS) other = other || g_idx[i] != i / group;
  found[threadIdx.x] = other;
  __syncthreads();
  int threads = 0;
  for (int i = 0; threadIdx.x == 0 && i < THREADS; i++) threads += (int)found[i];
  return threads;
}

/* Row `from` of x [.., columns] to row `to` of [.., k]: column perm[i] (i without perm) becomes column i. */
NB_DEVICE void reorder(global<const uint16_t> from, global<uint16_t> to, global<const int32_t> perm,
                       int columns, int k) {
  const int step = (int)gridDim.x * THREADS;
  for (int i = (int)blockIdx.x * THREADS + (int)threadIdx.x; i < k; i += step) {
    const int column = perm ? perm[i] : i;
    uint16_t v = NAN16;
    if (column >= 0 && column < columns) v = from[column];
    else if (column >= 0 && column < k) v = 0;
    to[i] = v;
  }
}

} // namespace rows

/* As nb_product's arguments (product_loop.cuh) with codes of NB_CODES_* and scales of NB_KERNEL_*, which are multiplied by
 * scale_factor, and: g_idx [k], the group of each row of the weight, or null: row i is of group i / (k / groups); an
 * entry outside of the groups makes NaN. x [m,k]. needed: null, or 0: then nothing is done. A block makes 64 columns
 * of NB_PRODUCT_ROWS_AT_ONCE rows. Eight blocks to a processor: for more the compiler would spill. */
extern "C" __global__ void __launch_bounds__(NB_PRODUCT_THREADS, 8)
    nb_product_rows(global<const uint16_t> x, global<const uint32_t> words, global<const uint8_t> scales,
                    global<const uint32_t> zeros, global<const int32_t> g_idx, global<const uint16_t> bias,
                    global<const float> row_scale, global<uint16_t> y, global<const int> needed, int m, int n,
                    int k, int groups, int outputs, int bits, int codes, int scale, int bf16,
                    float scale_factor, float factor) {
  if (needed && needed[0] == 0) return;
  rows::run({x, scales, words, zeros, g_idx, n, k, groups, codes, scale, bf16, scale_factor},
            {bias, row_scale, {}, y, outputs, factor}, bits,
            {{}, (int)blockIdx.y * rows::ROWS, rows::ROWS, m, 1});
}

/* x [m,columns] -> to [m,k], a row to blockIdx.y: column perm[i] (i without perm) becomes column i; 0 from `columns` on,
 * NaN where perm leaves k. irregular, unless null: how many threads found a row i of the weight not of group i / group. */
extern "C" __global__ void __launch_bounds__(NB_PRODUCT_THREADS)
    nb_product_gather(global<const uint16_t> x, global<const int32_t> perm, global<const int32_t> g_idx,
                      global<uint16_t> to, global<int> irregular, int columns, int k, int group) {
  const int64_t row = blockIdx.y;
  rows::reorder(x + row * columns, to + row * k, perm, columns, k);
  if (!irregular || blockIdx.x || blockIdx.y) return;
  const int threads = rows::irregular_threads(g_idx, k, group);
  if (threadIdx.x == 0) irregular[0] = threads;
}

/* The same three of experts, whose blocks of pairs sorted, owners and total tell of (product_routes.cuh). */

/* irregular [experts] of g_idx [experts,k]: a block of threads to each expert. */
extern "C" __global__ void __launch_bounds__(NB_PRODUCT_THREADS)
    nb_product_experts_orders(global<const int32_t> g_idx, global<int> irregular, int k, int group) {
  const int threads = rows::irregular_threads(g_idx + (int64_t)blockIdx.x * k, k, group);
  if (threadIdx.x == 0) irregular[blockIdx.x] = threads;
}

/* x [pairs/top, columns] -> to [pairs, k]: the pairs of each expert in the order of perm [experts, k] (or null). */
extern "C" __global__ void __launch_bounds__(NB_PRODUCT_THREADS)
    nb_product_experts_gather(global<const uint16_t> x, global<const int32_t> perm, global<uint16_t> to,
                              global<const int> sorted, global<const int> owners, global<const int> total,
                              int block, int most, int top, int experts, int pairs, int columns, int k) {
  const int used = total[0] < most * block ? total[0] : most * block;
  for (int place = (int)blockIdx.y; place < used; place += (int)gridDim.y) {
    const int expert = owners[place / block], pair = sorted[place];
    if (expert < 0 || expert >= experts || pair < 0 || pair >= pairs) continue;
    global<const int32_t> order = perm;
    if (perm) order = perm + (int64_t)expert * k;
    rows::reorder(x + (int64_t)(pair / top) * columns, to + (int64_t)pair * k, order, columns, k);
  }
}

/* As nb_product_experts' arguments (product_loop.cuh), and nb_product_rows'. only: null, or which experts, not 0. gridDim.y
 * shares blocks, NB_PRODUCT_ROWS_AT_ONCE pairs at a time. */
extern "C" __global__ void __launch_bounds__(NB_PRODUCT_THREADS, 8) nb_product_experts_rows(
    global<const uint16_t> x, global<const uint32_t> words, global<const uint8_t> scales,
    global<const uint32_t> zeros, global<const int32_t> g_idx, global<const uint16_t> bias,
    global<const float> row_scale, global<uint16_t> y, global<const int> sorted, global<const int> owners,
    global<const int> total, global<const int> only, global<const float> weights, global<const float> globals,
    int block, int most, int top, int experts, int pairs, int n, int k, int groups, int outputs, int bits,
    int codes, int scale, int scale_bytes, int bf16, float scale_factor, float factor) {
  const int blocks = total[0] / block < most ? total[0] / block : most,
            to_block = (block + rows::ROWS - 1) / rows::ROWS;
  for (int i = (int)blockIdx.y; i < blocks * to_block; i += (int)gridDim.y) {
    const int at = i / to_block, first = i % to_block * rows::ROWS, e = owners[at];
    if (e < 0 || e >= experts || (only && only[e] == 0)) continue;
    rows::job j = {x,
                   scales + (int64_t)e * groups * n * scale_bytes,
                   words + (int64_t)e * (k / 16) * (n * bits / 2),
                   zeros,
                   g_idx,
                   n,
                   k,
                   groups,
                   codes,
                   scale,
                   bf16,
                   scale_factor};
    rows::result to = {bias, row_scale, weights, y, outputs, globals ? factor * globals[e] : factor};
    if (zeros) j.zeros = zeros + (int64_t)e * groups * (n * bits / 32);
    if (g_idx) j.g_idx = g_idx + (int64_t)e * k;
    if (bias) to.bias = bias + (int64_t)e * n;
    rows::run(j, to, bits, {sorted, at * block + first, block - first, pairs, top});
    __syncthreads(); /* the sums are read before the next ones come */
  }
}

/* x [T,H] -> to [T*top,H]: row t times weights[t*top + j]. */
extern "C" __global__ void __launch_bounds__(NB_PRODUCT_THREADS)
    nb_moe_weigh(global<const uint16_t> x, global<const float> weights, global<uint16_t> to, int64_t numbers,
                 int width, int top, int bf16) {
  for (int64_t i = (int64_t)blockIdx.x * rows::THREADS + (int)threadIdx.x; i < numbers;
       i += (int64_t)gridDim.x * rows::THREADS) {
    const int64_t pair = i / width;
    const float v = rows::number(x[pair / top * width + i % width], bf16) * weights[pair];
    to[i] = (uint16_t)(bf16 ? bf16_pair(v, 0) : f16_pair(v, 0));
  }
}

/* ids [experts * most]: e for the first counts[e] of an expert's rows, -1 for the others. */
extern "C" __global__ void __launch_bounds__(NB_PRODUCT_THREADS)
    nb_moe_batch_ids(global<const int> counts, global<int> ids, int64_t places, int most) {
  for (int64_t i = (int64_t)blockIdx.x * rows::THREADS + (int)threadIdx.x; i < places;
       i += (int64_t)gridDim.x * rows::THREADS)
    ids[i] = (int)(i % most) < counts[i / most] ? (int)(i / most) : -1;
}

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
  int m, n, k, groups, codes, scale, bf16;
  float scale_factor;
};

NB_DEVICE float number(uint16_t h, int bf16) { return bf16 ? float_of_bf16(h) : float_of_f16(h); }

/* Eight weights of row k: of columns c + 8t of the tile's 64. words: this lane's of the tile; slot: of the row. */
template <int BITS>
NB_DEVICE void weights(float (&w)[8], const job &j, const uint32_t (&words)[BITS], int slot, int k, int tile,
                       int c) {
  constexpr uint32_t MASK = (1u << BITS) - 1;
  const int g = j.g_idx ? j.g_idx[k] : (int)(k / (j.k / j.groups));
  const bool known = g >= 0 && g < j.groups;
#pragma unroll
  for (int t = 0; t < 8; t++) {
    const uint32_t code = (BITS == 4 ? words[t / 2] >> t % 2 * 8 : words[t]) >> slot & MASK;
    const int column = c + 8 * t, place = marlin::scale_place(column, j.groups > 1, j.scale);
    uint32_t zero = 1u << (BITS - 1);
    if (known && j.zeros) {
      const int word = BITS == 4 ? c : c * 2 + t / 4,
                shift = t % 2 * 16 + (BITS == 4 ? t / 2 * 4 : t % 4 / 2 * 8);
      zero = j.zeros[(int64_t)g * (j.n * BITS / 32) + tile * (2 * BITS) + word] >> shift & MASK;
    }
    const float scale =
        known ? marlin::scale_at(j.scales, (int64_t)g * j.n + tile * 64 + place, j.scale) * j.scale_factor
              : float_of_bits(0x7fffffffu);
    w[t] = marlin::value(code, j.codes, dequantize::whole(zero)) * scale;
  }
}

/* sums: of this lane's rows of k, of columns lane/4 + 8t. */
template <int BITS> NB_DEVICE void add(float (&sums)[ROWS][8], const job &j, int tile, int first_row) {
  const int lane = (int)threadIdx.x % LANES, warp = (int)threadIdx.x / LANES;
  for (int kt = warp; kt < j.k / 16; kt += WARPS) {
    const int64_t from = (((int64_t)kt * (j.n / 64) + tile) * LANES + lane) * BITS;
    uint32_t words[BITS];
#pragma unroll
    for (int i = 0; i < BITS; i++) words[i] = j.words[from + i];
#pragma unroll
    for (int i = 0; i < 4; i++) { /* rows 2t, 2t + 1, 2t + 8, 2t + 9 of the 16 */
      const int k = kt * 16 + lane % 4 * 2 + i % 2 + i / 2 * 8;
      float w[8];
      weights<BITS>(w, j, words, i % 2 * 16 + i / 2 * BITS, k, tile, lane / 4);
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        if (first_row + r >= j.m) continue;
        const float x = number(j.x[(int64_t)(first_row + r) * j.k + k], j.bf16);
#pragma unroll
        for (int t = 0; t < 8; t++) sums[r][t] += x * w[t];
      }
    }
  }
}

/* y of 64 columns and ROWS rows: the lanes' sums, of all rows of k, added in one order. */
NB_DEVICE void finish(const float (&sums)[ROWS][8], const job &j, global<const uint16_t> bias,
                      global<const float> row_scale, global<uint16_t> y, int tile, int first_row, int outputs,
                      float factor) {
  const int tid = (int)threadIdx.x;
  shared<float> all = cast<float>(shared_words());
#pragma unroll
  for (int i = 0; i < ROWS * 8; i++) all[i * THREADS + tid] = sums[i / 8][i % 8];
  __syncthreads();
  for (int i = tid; i < ROWS * 64; i += THREADS) {
    const int row = first_row + i / 64, c = i % 64, column = tile * 64 + c;
    if (row >= j.m || column >= outputs) continue;
    float sum = 0;
    for (int warp = 0; warp < WARPS;
         warp++) /* four lanes of each have the column; threads take turns with them */
      for (int q = 0; q < 4; q++) sum += all[(i / 8) * THREADS + warp * LANES + c % 8 * 4 + (q + c / 8) % 4];
    if (row_scale) sum *= row_scale[row];
    sum *= factor;
    if (bias) sum += number(bias[tile * 64 + marlin::single_place(c)], j.bf16);
    y[(int64_t)row * outputs + column] = (uint16_t)(j.bf16 ? bf16_pair(sum, 0) : f16_pair(sum, 0));
  }
}

} // namespace rows

/* As nb_product's arguments (product_loop.cuh) with codes of NB_CODES_* and scales of NB_KERNEL_*, which are multiplied by
 * scale_factor, and: g_idx [k], the group of each row of the weight, or null: row i is of group i / (k / groups); an
 * entry outside of the groups makes NaN. x [m,k]. needed: null, or 0: then nothing is done. A block makes 64 columns
 * of NB_PRODUCT_ROWS_AT_ONCE rows. */
extern "C" __global__ void __launch_bounds__(NB_PRODUCT_THREADS)
    nb_product_rows(global<const uint16_t> x, global<const uint32_t> words, global<const uint8_t> scales,
                    global<const uint32_t> zeros, global<const int32_t> g_idx, global<const uint16_t> bias,
                    global<const float> row_scale, global<uint16_t> y, global<const int> needed, int m, int n,
                    int k, int groups, int outputs, int bits, int codes, int scale, int bf16,
                    float scale_factor, float factor) {
  if (needed && needed[0] == 0) return;
  const rows::job j = {x, scales, words, zeros, g_idx, m, n, k, groups, codes, scale, bf16, scale_factor};
  const int tile = (int)blockIdx.x, first_row = (int)blockIdx.y * rows::ROWS;
  float sums[rows::ROWS][8] = {};
  if (bits == 4) rows::add<4>(sums, j, tile, first_row);
  else rows::add<8>(sums, j, tile, first_row);
  rows::finish(sums, j, bias, row_scale, y, tile, first_row, outputs, factor);
}

/* x [m,columns] -> to [m,k], a row to blockIdx.y: column perm[i] (i without perm) becomes column i; 0 from `columns` on,
 * NaN where perm leaves k. irregular, unless null: how many threads found a row i of the weight not of group i / group. */
extern "C" __global__ void __launch_bounds__(NB_PRODUCT_THREADS)
    nb_product_gather(global<const uint16_t> x, global<const int32_t> perm, global<const int32_t> g_idx,
                      global<uint16_t> to, global<int> irregular, int columns, int k, int group) {
  const int row = (int)blockIdx.y, step = (int)gridDim.x * rows::THREADS;
  for (int i = (int)blockIdx.x * rows::THREADS + (int)threadIdx.x; i < k; i += step) {
    const int from = perm ? perm[i] : i;
    uint16_t v = rows::NAN16;
    if (from >= 0 && from < columns) v = x[(int64_t)row * columns + from];
    else if (from >= 0 && from < k) v = 0;
    to[(int64_t)row * k + i] = v;
  }
  if (!irregular || blockIdx.x || blockIdx.y) return;
  shared<uint32_t> found = shared_words();
  bool other = false;
  for (int i = (int)threadIdx.x; i < k; i += rows::THREADS) other = other || g_idx[i] != i / group;
  found[threadIdx.x] = other;
  __syncthreads();
  if (threadIdx.x) return;
  int threads = 0;
  for (int i = 0; i < rows::THREADS; i++) threads += (int)found[i];
  irregular[0] = threads;
}

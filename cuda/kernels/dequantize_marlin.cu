/* dequantize_marlin.cu - floats [k,n] out of Marlin's words, for products that a library does: what
 * core/compute/marlin.c multiplies with, rounded to 16 bits; rows in the order of the inputs, whatever perm.
 *
 * A warp takes a tile of 16 k x 64 n. Eight columns side by side are in one slot of eight words that lie 4 * BITS apart
 * (core/compute/marlin_body.h), so lane 8a + q takes columns 8q.. of rows 2a + {0, 1, 8, 9} and reads what others
 * read beside it: a load is 64 or 128 bytes side by side, and a store four rows' 128 bytes. Nothing goes
 * through shared memory, no lane waits for another. What limits it: the memory, by what is read and written once. */
#include "marlin_order.cuh"

namespace dequantize {

enum { TILE_ROWS = 16, TILE_COLUMNS = 64, LANES = 32 };

/* The tensors; zeros, perm and g_idx may be null. */
struct tensors {
  global<const uint32_t> words, zeros;
  global<const uint8_t> scales;
  global<const int32_t> perm, g_idx;
  global<uint8_t> out;
  nb_dequantize_marlin_job job;
};

/* Scales and zero-points of a group's eight columns 8q.. of tile column nt. */
template <int BITS> struct octet {
  float scale[8], zero[8]; /* zero: as whole() gives it */

  NB_DEVICE void load(const tensors &w, int64_t group, int nt, int q) {
    constexpr int PF = 32 / BITS;
    const int64_t first = group * w.job.n + nt * TILE_COLUMNS;
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const int64_t at = first + marlin::scale_place(8 * q + i, w.job.groups > 1, w.job.scale);
      scale[i] = marlin::scale_at(w.scales, at, w.job.scale) * w.job.factor;
      zero[i] = whole(1u << (BITS - 1));
    }
    if (!w.zeros) return;
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const int p = marlin::grouped_place(8 * q + i),
                slot = p % PF / 2 + p % 2 * (PF / 2); /* even places first */
      zero[i] = whole((uint32_t)w.zeros[first / PF + p / PF] >> (slot * BITS) & ((1u << BITS) - 1));
    }
  }
};

template <int BITS> NB_DEVICE void tile(const tensors &w, int t, int lane) {
  const int across = w.job.columns / TILE_COLUMNS, kt = t / across,
            nt = w.job.first / TILE_COLUMNS + t % across, a = lane / 8, q = lane % 8;
  const int64_t source = (int64_t)kt * (w.job.n / TILE_COLUMNS) + nt;
  const int per_group = w.job.k / w.job.groups;
  const bool alike = per_group % TILE_ROWS == 0; /* rows of one group: the division is done once */
  uint32_t word[8];
#pragma unroll
  for (int i = 0; i < 8; i++) {
    word[i] = w.words[source * LANES * BITS + i * 4 * BITS + (BITS == 4 ? lane / 2 : lane)];
    if (BITS == 4) word[i] >>= q % 2 * 8; /* odd octets' slots are two further on */
  }
  octet<BITS> g;
  int64_t held = -1;
#pragma unroll 1
  for (int c = 0; c < 4; c++) {
    const int slot = c / 2 + c % 2 * (BITS == 4 ? 4 : 2), row = kt * TILE_ROWS + 2 * a + c % 2 + c / 2 * 8;
    const int64_t group = w.g_idx ? (int)w.g_idx[row] : (alike ? kt * TILE_ROWS : row) / per_group;
    if (group != held) g.load(w, group, nt, q);
    held = group;
    uint32_t u[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      float x[2];
#pragma unroll
      for (int h = 0; h < 2; h++) {
        uint32_t code = word[2 * i + h] >> (slot * BITS) & ((1u << BITS) - 1);
        x[h] = marlin::value(code, w.job.codes, g.zero[2 * i + h]) * g.scale[2 * i + h];
      }
      u[i] = w.job.out == NB_KERNEL_BF16 ? bf16_pair(x[0], x[1]) : f16_pair(x[0], x[1]);
    }
    const int64_t to = w.perm ? (int)w.perm[row] : row;
    cast<uint4>(w.out)[(to * w.job.columns + t % across * TILE_COLUMNS) / 8 + q] =
        make_uint4(u[0], u[1], u[2], u[3]);
  }
}

} // namespace dequantize

/* out [k, job.columns] of words [k/16, n*bits/2], 4 or 8 bits, scales [G,n] permuted, in bytes of four changed places, zeros [G, n*bits/32] or null; perm and g_idx
 * [k] or null: trusted. k a multiple of 16, n, first and columns of 64, of 2^31 words in all at most. A warp for each tile. */
extern "C" __global__ void __launch_bounds__(NB_DEQUANTIZE_MARLIN_WARPS * 32)
    nb_dequantize_marlin(global<const uint32_t> words, global<const uint8_t> scales,
                         global<const uint32_t> zeros, global<const int32_t> perm,
                         global<const int32_t> g_idx, global<uint8_t> out, nb_dequantize_marlin_job job) {
  const dequantize::tensors w = {words, zeros, scales, perm, g_idx, out, job};
  const int t = (int)(blockIdx.x * NB_DEQUANTIZE_MARLIN_WARPS + threadIdx.x / 32),
            lane = (int)threadIdx.x % 32;
  if (t >= job.k / 16 * (job.columns / 64)) return;
  if (job.bits == 4) dequantize::tile<4>(w, t, lane);
  else dequantize::tile<8>(w, t, lane);
}

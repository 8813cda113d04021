/* product_finish.cuh - a tile's sums become y (product.cu): the warps' and the blocks' parts added, scaled, stored. */
#ifndef NB_PRODUCT_FINISH_CUH
#define NB_PRODUCT_FINISH_CUH
#include "product_fetch.cuh"

namespace product {

/* A thread's place: its warp down m, side by side along n, one behind the other along k. */
template <class S> struct place {
  int lane, warp, m, n, k;
  NB_DEVICE place() {
    lane = (int)threadIdx.x % LANES;
    warp = (int)threadIdx.x / LANES;
    n = warp % 2;
    k = warp / 2 % S::WARPS_K;
    m = warp / 2 / S::WARPS_K;
  }
};

/* How the (tile, stage) pairs are shared: `per` to a block, in order; a tile has `depth`. */
struct shares {
  int per, depth;
  NB_DEVICE int first_block(int tile) const { return tile * depth / per; }
  NB_DEVICE int last_block(int tile) const { return ((tile + 1) * depth - 1) / per; }
  /* Which of its two parts a block leaves: of its first tile, or of a later one, its last. */
  NB_DEVICE int part(int block, int tile) const { return block * 2 + (block * per / depth != tile); }
};

NB_DEVICE float4 sum(float4 a, float4 b) { return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w); }
NB_DEVICE float4 row4(const float (&s)[4]) { return make_float4(s[0], s[1], s[2], s[3]); }

/* The sums of a tile that a warp brings to an end: of its 64 columns all, or one half where another warp has the
 * rest of k. Four sums: rows lane/4 and + 8, two columns. */
template <class S> struct tile_sums {
  static constexpr int TILES = 8 / S::WARPS_K;
  float4 of[S::WARP_BLOCKS][TILES];

  /* Warps that are one behind the other along k change halves. scratch: nobody's since the last barrier. */
  NB_DEVICE void gather(const float (&sums)[S::WARP_BLOCKS][8][4], shared<float4> scratch,
                        const place<S> &at) {
#pragma unroll
    for (int b = 0; b < S::WARP_BLOCKS; b++)
#pragma unroll
      for (int t = 0; t < TILES; t++) {
        of[b][t] = row4(sums[b][t]);
        if (S::WARPS_K == 1) continue;
        float4 other = row4(sums[b][8 - TILES + t]);
        scratch[((at.warp * S::WARP_BLOCKS + b) * TILES + t) * LANES + at.lane] = at.k ? of[b][t] : other;
        if (at.k) of[b][t] = other;
      }
    if (S::WARPS_K == 1) return;
    __syncthreads();
#pragma unroll
    for (int b = 0; b < S::WARP_BLOCKS; b++)
#pragma unroll
      for (int t = 0; t < TILES; t++) {
        float4 others = scratch[(((at.warp ^ 2) * S::WARP_BLOCKS + b) * TILES + t) * LANES + at.lane];
        of[b][t] = sum(of[b][t], others);
      }
  }

  NB_DEVICE int64_t part_place(int part, int b, const place<S> &at) const {
    return (int64_t)part * S::PART + (at.warp * S::WARP_BLOCKS + b) * TILES * LANES + at.lane;
  }
  /* Whether this lane has a row of y in block b. */
  NB_DEVICE bool has_row(const job &j, int b, const place<S> &at) const {
    return (at.m * S::WARP_BLOCKS + b) * 16 + at.lane / 4 < j.m;
  }

  NB_DEVICE void leave(const job &j, int part, const place<S> &at) const {
#pragma unroll
    for (int b = 0; b < S::WARP_BLOCKS; b++)
#pragma unroll
      for (int t = 0; t < TILES; t++)
        if (has_row(j, b, at)) j.parts[part_place(part, b, at) + t * LANES] = of[b][t];
  }
  NB_DEVICE void add_left(const job &j, const shares &s, int tile, const place<S> &at) {
    for (int block = s.first_block(tile), first = block; block <= s.last_block(tile); block++)
#pragma unroll
      for (int b = 0; b < S::WARP_BLOCKS; b++)
#pragma unroll
        for (int t = 0; t < TILES; t++) {
          if (!has_row(j, b, at)) continue;
          float4 left =
              load_far(cast<const float4>(j.parts) + (part_place(s.part(block, tile), b, at) + t * LANES));
          of[b][t] = block == first ? left : sum(of[b][t], left);
        }
  }

  NB_DEVICE void store(const job &j, bool one_group, int tile, const place<S> &at) const {
    typedef typename S::NUMBER NUMBER;
#pragma unroll
    for (int t = 0; t < TILES; t++) {
      const int across = at.k * TILES + t, column = tile * COLUMNS + at.n * 64 + across * 8 + at.lane % 4 * 2;
      if (column >= j.outputs) continue;
      /* One scale to a column, and bias, lie in this order, two columns to a pair: core/layout/marlin_scales.c */
      const int pair = (tile * COLUMNS + at.n * 64 + across / 4 * 32) / 2 + at.lane % 4 * 4 + across % 4;
      float low = j.factor, high = j.factor, bias_low = 0, bias_high = 0;
      if constexpr (S::SCALES_WAIT)
        if (one_group) {
          uint32_t scale = cast<const uint32_t>(j.scales)[pair];
          low *= S::SCALES::low(scale);
          high *= S::SCALES::high(scale);
        }
      if (j.bias) {
        uint32_t bias = j.bias[pair];
        bias_low = NUMBER::low(bias);
        bias_high = NUMBER::high(bias);
      }
#pragma unroll
      for (int b = 0; b < S::WARP_BLOCKS; b++) {
        const int row = (at.m * S::WARP_BLOCKS + b) * 16 + at.lane / 4;
        const float4 f = of[b][t];
        const float r = row_scale(j, row), r8 = row_scale(j, row + 8);
        put(j, row, column, NUMBER::pair(f.x * r * low + bias_low, f.y * r * high + bias_high));
        put(j, row + 8, column, NUMBER::pair(f.z * r8 * low + bias_low, f.w * r8 * high + bias_high));
      }
    }
  }
  static NB_DEVICE float row_scale(const job &j, int row) {
    return j.row_scale && row < j.m ? j.row_scale[(int)blockIdx.y * S::M_BLOCKS * 16 + row] : 1;
  }
  static NB_DEVICE void put(const job &j, int row, int column, uint32_t pair) {
    if (row < j.m) j.y[((int64_t)row * j.outputs + column) / 2] = pair;
  }
};

/* sums of a tile -> y, or a part of it for who comes last. scratch: the stage that all warps read last. */
template <class S>
NB_DEVICE void finish(const job &j, const shares &s, const float (&sums)[S::WARP_BLOCKS][8][4], int tile,
                      bool one_group, shared<uint4> scratch, const place<S> &at) {
  tile_sums<S> mine;
  if (S::WARPS_K > 1) __syncthreads();
  mine.gather(sums, cast<float4>(scratch), at);
  const int others = s.last_block(tile) - s.first_block(tile);
  if (others) {
    mine.leave(j, s.part((int)blockIdx.x, tile), at);
    __syncthreads();
    shared<int> last = cast<int>(scratch);
    if (threadIdx.x == 0) {
      last[0] = add_in_turn(j.arrived + tile, 1) == others;
      if (last[0]) j.arrived[tile] = 0; /* for the next launch */
    }
    __syncthreads();
    if (!last[0]) return;
    mine.add_left(j, s, tile, at);
  }
  mine.store(j, one_group, tile, at);
}

} // namespace product
#endif

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

/* How the (unit, stage) pairs are shared: `per` to a block, in order; a unit, which is a tile of a block of rows, has
 * `depth`. */
struct shares {
  int per, depth;
  NB_DEVICE int first_block(int unit) const { return unit * depth / per; }
  NB_DEVICE int last_block(int unit) const { return ((unit + 1) * depth - 1) / per; }
  /* Which of its two parts a block leaves: of its first unit, or of a later one, its last. */
  NB_DEVICE int part(int block, int unit) const { return block * 2 + (block * per / depth != unit); }
};

/* A unit, and what it is: a tile of a block of rows, which is one expert's; -1: nobody's here. */
struct spot {
  int unit, tile, rows, expert;
};
template <class S> NB_DEVICE spot spot_of(const job &j, const cut &c, int unit) {
  const int block = S::ROUTES::EXPERTS ? unit / c.tiles : 0;
  return {unit, unit - block * c.tiles, block, S::ROUTES::owner(j, block)};
}

NB_DEVICE float4 sum(float4 a, float4 b) { return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w); }
NB_DEVICE float4 row4(const float (&s)[4]) { return make_float4(s[0], s[1], s[2], s[3]); }

/* The sums of a tile that a warp brings to an end: of its 64 columns all, or one half where another warp has the
 * rest of k. Four sums: rows lane/4 and + 8, two columns. */
template <class S> struct tile_sums {
  static constexpr int TILES = 8 / S::WARPS_K;
  typedef typename S::ROUTES ROUTES;
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
  /* Where this lane's row of block b, and of the 8 rows below with i = 1, lies in y; -1: nowhere. */
  static NB_DEVICE int row_of(const job &j, const spot &u, int b, int i, const place<S> &at) {
    return ROUTES::row(j, u.rows, (at.m * S::WARP_BLOCKS + b) * 16 + i * 8 + at.lane / 4);
  }

  NB_DEVICE void leave(const job &j, const shares &s, const spot &u, const place<S> &at) const {
    const int part = s.part((int)blockIdx.x, u.unit);
#pragma unroll
    for (int b = 0; b < S::WARP_BLOCKS; b++) {
      if (row_of(j, u, b, 0, at) < 0) continue;
#pragma unroll
      for (int t = 0; t < TILES; t++) j.parts[part_place(part, b, at) + t * LANES] = of[b][t];
    }
  }
  NB_DEVICE void add_left(const job &j, const shares &s, const spot &u, const place<S> &at) {
    const int first = s.first_block(u.unit), last = s.last_block(u.unit);
#pragma unroll
    for (int b = 0; b < S::WARP_BLOCKS; b++) {
      if (row_of(j, u, b, 0, at) < 0) continue;
      for (int block = first; block <= last; block++) {
        global<const float4> left = cast<const float4>(j.parts) + part_place(s.part(block, u.unit), b, at);
#pragma unroll
        for (int t = 0; t < TILES; t++) {
          float4 theirs = load_far(left + t * LANES);
          of[b][t] = block == first ? theirs : sum(of[b][t], theirs);
        }
      }
    }
  }

  NB_DEVICE void store(const job &j, bool one_group, const spot &u, const place<S> &at) const {
    typedef typename S::NUMBER NUMBER;
    const float factor = j.factor * ROUTES::global_scale(j, u.expert);
#pragma unroll
    for (int b = 0; b < S::WARP_BLOCKS; b++)
#pragma unroll 1
      for (int i = 0; i < 2; i++) {
        const int row = row_of(j, u, b, i, at);
        if (row < 0) continue;
        const float times = j.row_scale ? j.row_scale[ROUTES::source(j, row)] : 1,
                    weight = ROUTES::weight(j, row);
#pragma unroll
        for (int t = 0; t < TILES; t++) {
          const int across = at.k * TILES + t,
                    column = u.tile * COLUMNS + at.n * 64 + across * 8 + at.lane % 4 * 2;
          if (column >= j.outputs) continue;
          /* One scale to a column, and bias, lie in this order, two columns to a pair: core/layout/marlin_scales.c */
          const int pair = u.expert * (j.n / 2) + (u.tile * COLUMNS + at.n * 64 + across / 4 * 32) / 2 +
                           at.lane % 4 * 4 + across % 4;
          float x = (i ? of[b][t].z : of[b][t].x) * times, y = (i ? of[b][t].w : of[b][t].y) * times;
          float low = factor, high = factor;
          if constexpr (S::SCALES_WAIT)
            if (one_group) {
              const uint32_t scale = cast<const uint32_t>(j.scales)[pair];
              low *= S::SCALES::low(scale);
              high *= S::SCALES::high(scale);
            }
          const uint32_t bias = j.bias ? j.bias[pair] : 0;
          x = (x * low + NUMBER::low(bias)) * weight;
          y = (y * high + NUMBER::high(bias)) * weight;
          j.y[((int64_t)row * j.outputs + column) / 2] = NUMBER::pair(x, y);
        }
      }
  }
};

/* sums of a tile -> y, or a part of it for who comes last. scratch: the stage that all warps read last. */
template <class S>
NB_DEVICE void finish(const job &j, const shares &s, const float (&sums)[S::WARP_BLOCKS][8][4], const spot &u,
                      bool one_group, shared<uint4> scratch, const place<S> &at) {
  tile_sums<S> mine;
  if (S::WARPS_K > 1) __syncthreads();
  mine.gather(sums, cast<float4>(scratch), at);
  const int first = s.first_block(u.unit), others = s.last_block(u.unit) - first;
  if (others) {
    mine.leave(j, s, u, at);
    __syncthreads();
    shared<int> last = cast<int>(scratch);
    if (threadIdx.x == 0) {
      /* Who is first of several has no other unit like this: it is its last one. */
      last[0] = add_in_turn(j.arrived + first, 1) == others;
      if (last[0]) j.arrived[first] = 0; /* for the next launch */
    }
    __syncthreads();
    if (!last[0]) return;
    mine.add_left(j, s, u, at);
  }
  mine.store(j, one_group, u, at);
}

} // namespace product
#endif

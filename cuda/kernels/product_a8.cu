/* product_a8.cu - y = x W for x of one byte a number, int8 or e4m3 with a scale a row, and W in Marlin's order for such
 * (SYSTEMS MRL-30, MRL-40 to MRL-47): product.cu's way through tiles and stages, with these differences.
 *
 * Words are in tiles of 32 rows and 32 columns, of which a warp takes two side by side. Both operands are bytes: int8
 * sums of a group's rows in a warp's part of a stage, 64 at most, are exact, and so are the floats that they become; e4m3's
 * leave the tensor cores after two products, so that their own way of adding, which keeps fewer bits, sees few terms.
 * Those floats times their group's scale are summed in f32: what nb_marlin_gemm does, which rounds each weight times its
 * scale besides. One group is no different from many. */
#include "product_a8.h"
#include "product_a8_codes.cuh"
#include "product_finish.cuh"

namespace product_a8 {
using namespace product;

template <class NUMBER, class CODES_, class SCALES_, int M_BLOCKS_>
struct bytes : shape<NUMBER, CODES_::BITS, M_BLOCKS_> {
  typedef CODES_ CODES;
  typedef SCALES_ SCALES;
  typedef shape<NUMBER, CODES::BITS, M_BLOCKS_> BASE;
  static constexpr int BITS = CODES::BITS, X_PIECE = 16, TILE_K = 32, X_ROW = BASE::STAGE_K / PIECE,
                       X = nb_product_a8_x_bytes(M_BLOCKS_) / PIECE, TILE_ROW = COLUMNS * BITS * 4 / PIECE,
                       SCALE_ROW = COLUMNS * SCALES::BYTES / PIECE;
  /* Where the tensor cores take f16 for e4m3, 64 rows of x leave too few registers for both steps at once. */
  static constexpr int STEPS_AT_ONCE = CODES::SUMS::WIDENED && M_BLOCKS_ == 4 ? 1 : 2;
  static constexpr bool SCALES_WAIT = false;
};

/* A launch's arguments, and whether 16-bit scales are whole numbers. */
struct arguments : job {
  bool whole;
};

/* sums += part * the scales of a row, of a tile's 32 columns; part becomes sums of nothing. */
template <class S, class PART>
NB_DEVICE void scale(float (&sums)[S::WARP_BLOCKS][8][4], PART (&part)[S::WARP_BLOCKS][4][4],
                     shared<const uint4> row, bool whole, int half, const place<S> &at) {
  typedef typename S::CODES::SUMS SUMS;
  float low[4], high[4];
  S::SCALES::load(low, high, row, at.n * 2 + half, at.lane % 4, whole);
#pragma unroll
  for (int b = 0; b < S::WARP_BLOCKS; b++)
#pragma unroll
    for (int t = 0; t < 4; t++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        sums[b][half * 4 + t][i] += SUMS::number(part[b][t][i]) * (i % 2 ? high[t] : low[t]);
        part[b][t][i] = SUMS::NOTHING;
      }
}

/* A stage's rows of scales and zero-points for a warp's first 32 rows of k and for its next ones. */
struct group_rows {
  int first, next;
};

/* A warp's 64 rows of a stage: of one tile of 32 columns, then of the other, for which fewer registers do. */
template <class S>
NB_DEVICE void multiply(const arguments &j, const cut &c, const group_rows &r,
                        float (&sums)[S::WARP_BLOCKS][8][4], shared<const uint4> stage, const place<S> &at) {
  typedef typename S::CODES::SUMS SUMS;
  constexpr int PIECES = S::BITS / 4, TILE = PIECES * LANES; /* a lane's of a tile, and all */
  const shared<const uint4> scales = stage + (S::X + S::WORDS), zeros = scales + c.rows * S::SCALE_ROW;
  const int x_at = x_place<S>(at.m * S::WARP_BLOCKS * 16 + at.lane % 16, at.k * 4 + at.lane / 16);
  typename SUMS::sum part[S::WARP_BLOCKS][4][4];
#pragma unroll
  for (int i = 0; i < S::WARP_BLOCKS * 16; i++) part[i / 16][i / 4 % 4][i % 4] = SUMS::NOTHING;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    uint32_t minus[4] = {S::CODES::MIDDLE, S::CODES::MIDDLE, S::CODES::MIDDLE, S::CODES::MIDDLE};
#pragma unroll(S::STEPS_AT_ONCE)
    for (int step = 0; step < 2; step++) {
      const int row = step ? r.next : r.first;
      if (j.zeros &&
          (step == 0 || r.next != r.first)) { /* a word has a column's of each of eight tiles of 8 */
        const uint32_t zero = cast<const uint32_t>(zeros + row * S::ZERO_ROW)[at.n * 8 + at.lane / 4];
#pragma unroll
        for (int t = 0; t < 4; t++) minus[t] = S::CODES::minus(zero >> (half * 4 + t) * 4 & 15);
      }
      uint32_t q[S::BITS], b[4][2];
#pragma unroll
      for (int i = 0; i < PIECES; i++) {
        const uint4 v = stage[S::X + (at.k * 2 + step) * S::TILE_ROW + (at.n * 2 + half) * TILE +
                              word_place<S>(at.lane * PIECES + i)];
        q[4 * i] = v.x, q[4 * i + 1] = v.y, q[4 * i + 2] = v.z, q[4 * i + 3] = v.w;
      }
#pragma unroll
      for (int t = 0; t < 4; t++) S::CODES::decode(b[t], q + t * PIECES, minus[t]);
#pragma unroll
      for (int i = 0; i < S::WARP_BLOCKS; i++) {
        uint32_t a[4];
        ldmatrix_x4(a, stage + ((x_at ^ step * 2) + i * 16 * S::X_ROW));
        SUMS::mma(part[i], a, b);
      }
      if (step == 1 || r.next != r.first)
        scale<S>(sums, part, scales + row * S::SCALE_ROW, j.whole, half, at);
    }
  }
}

template <class S> NB_DEVICE void run(arguments j) {
  const int y_block = (int)blockIdx.y, rows_before = y_block * S::M_BLOCKS * 16;
  j.m = j.m - rows_before < S::M_BLOCKS * 16 ? j.m - rows_before : S::M_BLOCKS * 16;
  j.x = j.x + (int64_t)rows_before * (j.k / S::X_PIECE);
  j.y = j.y + (int64_t)rows_before * (j.outputs / 2);
  const cut c = cut_of<S>(j);
  const int tiles = (j.n + COLUMNS - 1) / COLUMNS, all = tiles * c.depth;
  j.parts = j.parts + (int64_t)y_block * (int)gridDim.x * 2 * S::PART;
  j.arrived = j.arrived + y_block * tiles;
  const shares s = {(all + (int)gridDim.x - 1) / (int)gridDim.x, c.depth};
  const int first = (int)blockIdx.x * s.per;
  int left = all - first < s.per ? all - first : s.per, tile = first / c.depth, stage = first % c.depth,
      now = 0;
  const place<S> at;
  const group_rows r = {c.rows > 1 ? at.k * 64 / j.group : 0, c.rows > 1 ? (at.k * 64 + 32) / j.group : 0};
  const shared<uint4> memory = cast<uint4>(shared_words());
  fetcher<S> ahead;
  ahead.begin(j, c, tile, stage, left);
  for (int i = 0; i < STAGES - 1; i++) ahead.fetch(j, c, memory);
  for (; left > 0; stage = 0, tile++) {
    const int stages = c.depth - stage < left ? c.depth - stage : left;
    float sums[S::WARP_BLOCKS][8][4] = {};
    int read = 0;
    for (int i = 0; i < stages; i++) {
      cp_async_wait<STAGES - 2>();
      __syncthreads(); /* the stage is here for all, and all have left the one that is filled next */
      ahead.fetch(j, c, memory);
      read = now;
      multiply<S>(j, c, r, sums, cast<const uint4>(memory) + read, at);
      now = now == (STAGES - 1) * c.pieces ? 0 : now + c.pieces;
    }
    finish<S>(j, s, sums, tile, false, memory + read, at);
    left -= stages;
  } /* the groups still under way are empty */
}

} // namespace product_a8

/* As NB_PRODUCT's (product.cu): x [m,k] of int8 or e4m3; words [k/16, n*BITS/2]; scales [k/group, n] of 16-bit NUMBER or,
 * with whole, int16, or E8M0 bytes; zeros words [k/group, n/8] or null, of 4-bit codes; row_scale f32 [m] or null.
 * k a multiple of 32 and n of 64, outputs even, group k, 32, 64 or a multiple of 128 that divides k. */
#define NB_PRODUCT_A8(NUMBER, NAME, CODES, SCALES, M_BLOCKS, ROWS) \
  extern "C" __global__ void __launch_bounds__(NB_PRODUCT_THREADS, \
                                               nb_product_resident(M_BLOCKS, product_a8::CODES::BITS)) \
      nb_product_a8_##NUMBER##_##NAME##_m##ROWS( \
          global<const uint4> x, global<const uint4> words, global<const uint4> scales, \
          global<const uint4> zeros, global<const uint32_t> bias, global<const float> row_scale, \
          global<uint32_t> y, global<float4> parts, global<int> arrived, int m, int n, int k, int group, \
          int outputs, int whole, float factor) { \
    product_a8::run<product_a8::bytes<product::NUMBER, product_a8::CODES, product_a8::SCALES, M_BLOCKS>>( \
        {{x, words, scales, zeros, bias, row_scale, y, parts, arrived, m, n, k, group, outputs, factor}, \
         whole != 0}); \
  }

#define NB_PRODUCT_A8_SIZES(NUMBER, NAME, CODES, SCALES) \
  NB_PRODUCT_A8(NUMBER, NAME, CODES, SCALES, 1, 16) \
  NB_PRODUCT_A8(NUMBER, NAME, CODES, SCALES, 2, 32) \
  NB_PRODUCT_A8(NUMBER, NAME, CODES, SCALES, 4, 64)

NB_PRODUCT_A8_SIZES(f16, int4, int4, scales16<product::f16>)
NB_PRODUCT_A8_SIZES(f16, int8, int8, scales16<product::f16>)
NB_PRODUCT_A8_SIZES(f16, folded4, folded4, scales16<product::f16>)
NB_PRODUCT_A8_SIZES(f16, e4m3, e4m3_8, scales16<product::f16>)
NB_PRODUCT_A8_SIZES(f16, e2m1, e2m1_4, scales8)
NB_PRODUCT_A8_SIZES(bf16, int4, int4, scales16<product::bf16>)
NB_PRODUCT_A8_SIZES(bf16, int8, int8, scales16<product::bf16>)
NB_PRODUCT_A8_SIZES(bf16, folded4, folded4, scales16<product::bf16>)
NB_PRODUCT_A8_SIZES(bf16, e4m3, e4m3_8, scales16<product::bf16>)
NB_PRODUCT_A8_SIZES(bf16, e2m1, e2m1_4, scales8)

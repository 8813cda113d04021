/* product_a8.cuh - y = x W for x of one byte a number, int8 or e4m3 with a scale a row, and W in Marlin's order for such
 * (SYSTEMS MRL-30, MRL-40 to MRL-47): product_loop.cuh's way through tiles and stages, with these differences.
 *
 * Words are in tiles of 32 rows and 32 columns, of which a warp takes two side by side. Both operands are bytes: int8
 * sums of a group's rows in a warp's part of a stage, 64 at most, are exact, and so are the floats that they become; e4m3's
 * leave the tensor cores after two products, so that their own way of adding, which keeps fewer bits, sees few terms.
 * Those floats times their group's scale are summed in f32: what nb_marlin_gemm does, which rounds each weight times its
 * scale besides. One group is no different from many. */
#ifndef NB_PRODUCT_A8_CUH
#define NB_PRODUCT_A8_CUH
#include "product_a8.h"
#include "product_a8_codes.cuh"
#include "product_loop.cuh"

namespace product_a8 {
using namespace product;

template <class CODES, class SCALES, int M_BLOCKS, class ROUTES = plain>
struct bytes : shape<CODES, SCALES, M_BLOCKS, ROUTES> {
  typedef shape<CODES, SCALES, M_BLOCKS, ROUTES> BASE;
  static constexpr int X_PIECE = 16, TILE_K = 32, X_ROW = BASE::STAGE_K / PIECE,
                       X = nb_product_a8_x_bytes(M_BLOCKS) / PIECE,
                       TILE_ROW = COLUMNS * CODES::BITS * 4 / PIECE;
  static constexpr bool SCALES_WAIT = false;
  /* Where the tensor cores take f16 for e4m3, 64 rows of x leave too few registers for both steps at once. */
  static constexpr int STEPS_AT_ONCE = CODES::SUMS::WIDENED && M_BLOCKS == 4 ? 1 : 2;
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

/* A warp's 64 rows of a stage: of one tile of 32 columns, then of the other, for which fewer registers do. */
template <class S>
NB_DEVICE void multiply_bytes(const job &j, const cut &c, const rows &r, float (&sums)[S::WARP_BLOCKS][8][4],
                              uint32_t (&)[8], shared<const uint4> stage, const place<S> &at) {
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

} // namespace product_a8

/* As NB_PRODUCT's (product_loop.cuh): x [m,k] of int8 or e4m3; words [k/16, n*BITS/2]; scales [k/group, n] of 16-bit numbers
 * or, with whole, int16, or E8M0 bytes; zeros words [k/group, n/8] or null, of 4-bit codes; row_scale f32 [m] or null.
 * k a multiple of 32 and n of 64, outputs even, group k, 32, 64 or a multiple of 128 that divides k. */
#define NB_PRODUCT_A8(NAME, CODES, SCALES, M_BLOCKS, ROWS) \
  extern "C" __global__ void __launch_bounds__(NB_PRODUCT_THREADS, \
                                               nb_product_resident(M_BLOCKS, CODES::BITS)) \
      nb_product_a8_##NAME##_m##ROWS(NB_PRODUCT_OPERANDS, int m, int n, int k, int group, int outputs, \
                                     int whole, float factor) { \
    typedef product_a8::bytes<CODES, SCALES, M_BLOCKS> shape; \
    product::run<shape, product_a8::multiply_bytes<shape>>( \
        {NB_PRODUCT_GIVEN, m, n, k, group, outputs, factor, {}, whole != 0}); \
  }

/* The same of experts: words [experts, k/16, n*BITS/2] and so on, as NB_PRODUCT_EXPERTS' (product_loop.cuh). */
#define NB_PRODUCT_A8_EXPERTS(NAME, CODES, SCALES, M_BLOCKS, ROWS) \
  extern "C" __global__ void __launch_bounds__(NB_PRODUCT_THREADS, \
                                               nb_product_resident(M_BLOCKS, CODES::BITS)) \
      nb_product_experts_a8_##NAME##_m##ROWS(NB_PRODUCT_OPERANDS, NB_PRODUCT_ROUTED, int pairs, int n, \
                                             int k, int group, int outputs, float factor, int whole) { \
    typedef product_a8::bytes<CODES, SCALES, M_BLOCKS, product::experts> shape; \
    product::run<shape, product_a8::multiply_bytes<shape>>( \
        {NB_PRODUCT_GIVEN, pairs, n, k, group, outputs, factor, NB_PRODUCT_ROUTES, whole != 0}); \
  }

/* One of these for each format of weights (product_a8_codes.cuh). */
#define NB_PRODUCTS_A8(KERNEL, NUMBER) \
  NB_PRODUCTS(KERNEL, NUMBER##_int4, product_a8::int4<product::NUMBER>, \
              product_a8::scales16<product::NUMBER>) \
  NB_PRODUCTS(KERNEL, NUMBER##_int8, product_a8::int8<product::NUMBER>, \
              product_a8::scales16<product::NUMBER>) \
  NB_PRODUCTS(KERNEL, NUMBER##_folded4, product_a8::folded4<product::NUMBER>, \
              product_a8::scales16<product::NUMBER>) \
  NB_PRODUCTS(KERNEL, NUMBER##_e4m3, product_a8::e4m3_8<product::NUMBER>, \
              product_a8::scales16<product::NUMBER>) \
  NB_PRODUCTS(KERNEL, NUMBER##_e2m1, product_a8::e2m1_4<product::NUMBER>, product_a8::scales8)
#endif

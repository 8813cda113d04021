/* product_loop.cuh - y = x W for few rows of x, and W of 4 or 8 bits in Marlin's layout (core/layout/marlin.c), as
 * nb_marlin_gemm on the CPU has it (SYSTEMS MRL-51): what all the product_*.cu share.
 *
 * y is cut into tiles of 128 columns and k into stages; the blocks share the (tile, stage) pairs evenly, in order, so
 * that all end at once whatever the shape. Stages come to shared memory STAGES - 1 ahead; words go on to registers
 * as they lie, which is the tensor cores' order of b. Two warps lie side by side along n; for few rows two more
 * take the other half of a stage's k, for many rows the other rows.
 *
 *      |  tile 0  |  tile 1  |  tile 2  |     A block leaves its sums of a tile that it shares with others in
 *      | block 0 | block 1 | block 2 | ..     memory: two at most, of its first and its last tile. The last to
 *                                             arrive adds them, in the blocks' order: the same bits in every run.
 *
 * Sums are f32 and are multiplied by their group's scale in f32: weights are exact.
 * What limits it: the words' way from memory for few rows (16 bytes a lane, each once, dropped from the cache first),
 * the tensor cores for many. */
#ifndef NB_PRODUCT_LOOP_CUH
#define NB_PRODUCT_LOOP_CUH
#include "product_finish.cuh"
#include "product_floats.cuh"

namespace product {

/* `minus` of the zero-points (product_codes.cuh) of this lane's column in each of 8 tiles of 8, out of the words of
 * a row of zero-points. */
template <class S, class POINTER>
NB_DEVICE void set_minus(uint32_t (&minus)[8], POINTER words, const place<S> &at) {
#pragma unroll
  for (int p = 0; p < 4; p++) {
    const int word = S::BITS == 4 ? at.lane / 4 : at.lane / 4 * 2 + p / 2, slot = S::BITS == 4 ? p : p % 2;
    uint32_t pair = S::CODES::minus(words[at.n * (64 * S::BITS / 32) + word] >> slot * S::BITS);
    minus[2 * p] = pick_bytes(pair, pair, 0x1010);
    minus[2 * p + 1] = pick_bytes(pair, pair, 0x3232);
  }
}

/* sums += part * the scales of the group whose row of scales that is; part = 0. */
template <class S>
NB_DEVICE void scale(float (&sums)[S::WARP_BLOCKS][8][4], float (&part)[S::WARP_BLOCKS][8][4],
                     shared<const uint4> row, const place<S> &at) {
  float low[8], high[8]; /* of the columns 2t of eight tiles, and of the columns 2t + 1 */
  row = row + at.n * (S::SCALE_ROW / 2);
  if constexpr (S::SCALES::BYTES == 2) load_pairs<typename S::SCALES>(low, high, row, at.lane % 4);
  else S::SCALES::load(low, high, row, at.lane % 4);
#pragma unroll
  for (int b = 0; b < S::WARP_BLOCKS; b++)
#pragma unroll
    for (int t = 0; t < 8; t++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        sums[b][t][i] += part[b][t][i] * (i % 2 ? high[t] : low[t]);
        part[b][t][i] = 0;
      }
}

/* A tile's weights of this lane: b[t], of its column of eight tiles of 8. */
template <class S>
NB_DEVICE void decode(uint32_t (&b)[8][2], const uint32_t (&q)[S::BITS], const uint32_t (&minus)[8]) {
  typedef typename S::CODES CODES;
#pragma unroll
  for (int t = 0; t < 8; t++) {
    if constexpr (CODES::INTEGERS) CODES::decode(b[t], S::BITS == 4 ? q[t / 2] >> t % 2 * 8 : q[t], minus[t]);
    else if constexpr (S::BITS == 8) CODES::decode(b[t], q[t]);
    else if (t % 2 == 0) CODES::decode(b[t], b[t + 1], q[t / 2]);
  }
  if constexpr (S::RAISED) {
    const uint32_t unit = S::NUMBER::pair(CODES::UNIT, CODES::UNIT);
#pragma unroll
    for (int i = 0; i < 16; i++) b[i / 2][i % 2] = S::NUMBER::fma(b[i / 2][i % 2], unit, 0);
  }
}

/* A stage's rows of scales and zero-points for a warp's first 32 rows of k and for its next ones. */
struct rows {
  int first, next;
};

/* A warp's 64 rows of a stage. */
template <class S>
NB_DEVICE void multiply(const job &j, const cut &c, const rows &r, float (&sums)[S::WARP_BLOCKS][8][4],
                        uint32_t (&minus)[8], shared<const uint4> stage, const place<S> &at) {
  const shared<const uint4> scales = stage + (S::X + S::WORDS), zeros = scales + c.rows * S::SCALE_ROW;
  const int x_at = x_place<S>(at.m * S::WARP_BLOCKS * 16 + at.lane % 16, at.k * 8 + at.lane / 16);
  const bool staged_zeros = j.zeros && !c.one_group;
  float part[S::WARP_BLOCKS][8][4] = {}; /* where scales wait for the end of a group */
#pragma unroll
  for (int step = 0; step < 4; step++) {
    const int row = step < 2 ? r.first : r.next;
    if constexpr (S::CODES::INTEGERS)
      if (step % 2 == 0 && (step == 0 || r.next != r.first) && staged_zeros)
        set_minus<S>(minus, cast<const uint32_t>(zeros + row * S::ZERO_ROW), at);
    uint32_t q[S::BITS], b[8][2];
#pragma unroll
    for (int i = 0; i < S::BITS / 4; i++) {
      const uint4 v = stage[S::X + (at.k * 4 + step) * S::TILE_ROW + at.n * (S::TILE_ROW / 2) +
                            word_place<S>(at.lane * (S::BITS / 4) + i)];
      q[4 * i] = v.x, q[4 * i + 1] = v.y, q[4 * i + 2] = v.z, q[4 * i + 3] = v.w;
    }
    decode<S>(b, q, minus);
    if constexpr (S::SCALES::OF_WEIGHTS)
      S::SCALES::multiply(b, scales + (at.k * 4 + step) * S::SCALE_ROW + at.n * (S::SCALE_ROW / 2),
                          at.lane / 4);
#pragma unroll
    for (int i = 0; i < S::WARP_BLOCKS; i++) {
      uint32_t a[4];
      ldmatrix_x4(a, stage + ((x_at ^ step * 2) + i * 16 * S::X_ROW));
      S::NUMBER::mma(S::SCALES::OF_WEIGHTS ? sums[i] : part[i], a, b);
    }
    if constexpr (S::SCALES::OF_WEIGHTS) continue;
    else if (step == 3 || (step == 1 && r.next != r.first))
      scale<S>(sums, part, scales + row * S::SCALE_ROW, at);
  }
}

/* Of one weight: the part of the rows that is blockIdx.y's. */
template <class S> NB_DEVICE void take_rows(job &j) {
  constexpr int ROWS = S::M_BLOCKS * 16;
  const int y_block = (int)blockIdx.y, before = y_block * ROWS;
  j.m = j.m - before < ROWS ? j.m - before : ROWS;
  j.x = j.x + (int64_t)before * (j.k / S::X_PIECE);
  j.y = j.y + (int64_t)before * (j.outputs / 2);
  if (j.row_scale) j.row_scale = j.row_scale + before;
  j.parts = j.parts + (int64_t)y_block * (int)gridDim.x * 2 * S::PART;
  j.arrived = j.arrived + y_block * (int)gridDim.x;
}

/* What multiplies a warp's 64 rows of a stage: `multiply`, or product_a8.cuh's. */
template <class S>
using multiplier = void (*)(const job &, const cut &, const rows &, float (&)[S::WARP_BLOCKS][8][4],
                            uint32_t (&)[8], shared<const uint4>, const place<S> &);

template <class S, multiplier<S> MULTIPLY> NB_DEVICE void run(job j) {
  constexpr bool EXPERTS = S::ROUTES::EXPERTS;
  if constexpr (!EXPERTS) take_rows<S>(j);
  const cut c = cut_of<S>(j);
  const int all = S::ROUTES::blocks(j) * c.tiles * c.depth;
  const shares s = {(all + (int)gridDim.x - 1) / (int)gridDim.x, c.depth};
  const int first = (int)blockIdx.x * s.per;
  int left = all - first < s.per ? all - first : s.per;
  if (EXPERTS && left <= 0) return; /* how many there are is known here only */
  int unit = first / c.depth, stage = first % c.depth, now = 0;
  const place<S> at;
  const rows r = {c.rows > 1 ? at.k * 64 / j.group : 0, c.rows > 1 ? (at.k * 64 + 32) / j.group : 0};
  shared<uint4> memory = cast<uint4>(shared_words());
  if constexpr (S::SCALES_WAIT) {
    const uint32_t one = S::SCALES::one();
    if (c.one_group && threadIdx.x < STAGES * S::SCALE_ROW)
      memory[(int)threadIdx.x / S::SCALE_ROW * c.pieces + S::X + S::WORDS + (int)threadIdx.x % S::SCALE_ROW] =
          make_uint4(one, one, one, one);
  }
  fetcher<S> ahead;
  ahead.begin(j, c, unit, stage, left, memory);
  for (int i = 0; i < STAGES - 1; i++) ahead.fetch(j, c, memory);
  for (; left > 0; stage = 0, unit++) {
    const int stages = c.depth - stage < left ? c.depth - stage : left;
    const spot u = spot_of<S>(j, c, unit);
    left -= stages;
    if (EXPERTS && u.expert < 0) continue;
    float sums[S::WARP_BLOCKS][8][4] = {};
    uint32_t minus[8];
    if constexpr (S::CODES::INTEGERS) {
#pragma unroll
      for (int t = 0; t < 8; t++) minus[t] = S::CODES::SYMMETRIC;
      if (c.one_group && j.zeros && u.tile * COLUMNS + at.n * 64 < j.n)
        set_minus<S>(minus,
                     cast<const uint32_t>(j.zeros) +
                         ((int64_t)u.expert * (j.n * S::BITS / 32) + u.tile * (COLUMNS * S::BITS / 32)),
                     at);
    }
    int read = 0;
    for (int i = 0; i < stages; i++) {
      cp_async_wait<STAGES - 2>();
      __syncthreads(); /* the stage is here for all, and all have left the one that is filled next */
      ahead.fetch(j, c, memory);
      read = now;
      MULTIPLY(j, c, r, sums, minus, cast<const uint4>(memory) + read, at);
      now = now == (STAGES - 1) * c.pieces ? 0 : now + c.pieces;
    }
    finish<S>(j, s, sums, spot_of<S>(j, c, unit), c.one_group, memory + read,
              at); /* u anew: registers are dear */
  }                /* the groups still under way are empty */
}

} // namespace product

/* What each product is given, and the beginning of its job; and what those of experts are given besides. */
#define NB_PRODUCT_OPERANDS \
  global<const uint4> x, global<const uint4> words, global<const uint4> scales, global<const uint4> zeros, \
      global<const uint32_t> bias, global<const float> row_scale, global<uint32_t> y, global<float4> parts, \
      global<int> arrived
#define NB_PRODUCT_GIVEN x, words, scales, zeros, bias, row_scale, y, parts, arrived
#define NB_PRODUCT_ROUTED \
  global<const int> sorted, global<const int> owners, global<const int> total, global<const int> skip, \
      global<const float> weights, global<const float> globals, int block, int most, int top, int experts
#define NB_PRODUCT_ROUTES \
  { sorted, owners, total, skip, weights, globals, block, most, top, experts }

/* x [m,k], words [k/16, n*BITS/2], scales [k/group, n] in Marlin's order, as SCALES has them, all else in the kernel's
 * 16-bit floats; zeros words [k/group, n*BITS/32] or null, of integers; bias [n] or null, in Marlin's order; row_scale [m] or null
 * -> y [m,outputs] = x W * row_scale * factor + bias.
 * blockIdx.y has 16 M_BLOCKS rows of x. parts: room for two nb_product_part(M_BLOCKS) to a block; arrived: 0 for each
 * block, and so again at the end. needless: null, or not 0: then nothing is done.
 * k a multiple of 16 and n of 64, outputs even, group k, 32, 64 or a multiple of 128 that divides k (product_floats.cuh's: as
 * they say); all in 2^30 pieces of 16 bytes, aligned to them, y to 4. */
#define NB_PRODUCT(NAME, CODES, SCALES, M_BLOCKS, ROWS) \
  extern "C" __global__ void __launch_bounds__(NB_PRODUCT_THREADS, \
                                               nb_product_resident(M_BLOCKS, CODES::BITS)) \
      nb_product_##NAME##_m##ROWS(NB_PRODUCT_OPERANDS, global<const int> needless, int m, int n, int k, \
                                  int group, int outputs, float factor) { \
    if (needless && needless[0]) return; \
    typedef product::shape<CODES, SCALES, M_BLOCKS> shape; \
    product::run<shape, product::multiply<shape>>( \
        {NB_PRODUCT_GIVEN, m, n, k, group, outputs, factor * shape::FACTOR, {}}); \
  }

/* The same of experts: words [experts, k/16, n*BITS/2] and so on, and the rest as product_routes.cuh has it: x
 * [pairs/top, k], row_scale as x, y [pairs, outputs], of which rows of pairs that are not in `sorted` stay as they are.
 * y is multiplied by weights, bias and all. The blocks are shared among gridDim.x. */
#define NB_PRODUCT_EXPERTS(NAME, CODES, SCALES, M_BLOCKS, ROWS) \
  extern "C" __global__ void __launch_bounds__(NB_PRODUCT_THREADS, \
                                               nb_product_resident(M_BLOCKS, CODES::BITS)) \
      nb_product_experts_##NAME##_m##ROWS(NB_PRODUCT_OPERANDS, NB_PRODUCT_ROUTED, int pairs, int n, int k, \
                                          int group, int outputs, float factor) { \
    typedef product::shape<CODES, SCALES, M_BLOCKS, product::experts> shape; \
    product::run<shape, product::multiply<shape>>( \
        {NB_PRODUCT_GIVEN, pairs, n, k, group, outputs, factor * shape::FACTOR, NB_PRODUCT_ROUTES}); \
  }

/* One of these for 16, 32 and 64 rows to a block. */
#define NB_PRODUCTS(KERNEL, NAME, CODES, SCALES) \
  KERNEL(NAME, CODES, SCALES, 1, 16) \
  KERNEL(NAME, CODES, SCALES, 2, 32) \
  KERNEL(NAME, CODES, SCALES, 4, 64)

/* For all formats of weights: integers of 4 and 8 bits under 16-bit scales; and FP8 under 16-bit scales, MXFP8 and MXFP4
 * under E8M0 ones (more than one group, of 32, 64 or a multiple of 128 rows), NVFP4 (more than one group, of 16). */
namespace product {
typedef codes<f16, 4> f16_w4;
typedef codes<f16, 8> f16_w8;
typedef codes<bf16, 4> bf16_w4;
typedef codes<bf16, 8> bf16_w8;
} // namespace product
#define NB_PRODUCTS_OF_INTEGERS(KERNEL, NUMBER) \
  NB_PRODUCTS(KERNEL, NUMBER##_w4, product::NUMBER##_w4, product::plain_scales<product::NUMBER>) \
  NB_PRODUCTS(KERNEL, NUMBER##_w8, product::NUMBER##_w8, product::plain_scales<product::NUMBER>)
#define NB_PRODUCTS_OF_FLOATS(KERNEL, NUMBER) \
  NB_PRODUCTS(KERNEL, NUMBER##_fp8, product::e4m3<product::NUMBER>, product::fp8_scales<product::NUMBER>) \
  NB_PRODUCTS(KERNEL, NUMBER##_mxfp8, product::e4m3<product::NUMBER>, product::e8m0_scales) \
  NB_PRODUCTS(KERNEL, NUMBER##_mxfp4, product::e2m1<product::NUMBER>, product::e8m0_scales) \
  NB_PRODUCTS(KERNEL, NUMBER##_nvfp4, product::e2m1<product::NUMBER>, product::nvfp4_scales<product::NUMBER>)
#endif

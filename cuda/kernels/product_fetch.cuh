/* product_fetch.cuh - what a product is about, how it is cut, and its data's way to shared memory (product.cu). */
#ifndef NB_PRODUCT_FETCH_CUH
#define NB_PRODUCT_FETCH_CUH
#include "product.h"
#include "product_codes.cuh"
#include "product_routes.cuh"

namespace product {

enum {
  COLUMNS = NB_PRODUCT_COLUMNS,
  STAGES = NB_PRODUCT_STAGES,
  LANES = 32,
  THREADS = NB_PRODUCT_THREADS,
  PIECE = 16
};

/* What is fixed when a kernel is compiled. CODES and SCALES: what words and scales hold (product_codes.cuh,
 * product_floats.cuh); M_BLOCKS: blocks of 16 rows of x; ROUTES: plain, or experts. */
template <class CODES_, class SCALES_, int M_BLOCKS_, class ROUTES_ = plain> struct shape {
  typedef CODES_ CODES;
  typedef SCALES_ SCALES;
  typedef ROUTES_ ROUTES;
  typedef typename CODES::NUMBER NUMBER;
  static constexpr int BITS = CODES::BITS, M_BLOCKS = M_BLOCKS_, WARPS_K = nb_product_warps_k(M_BLOCKS),
                       WARPS_M = 2 / WARPS_K, WARP_BLOCKS = M_BLOCKS / WARPS_M,
                       STAGE_K = nb_product_k(M_BLOCKS), PART = nb_product_part(M_BLOCKS) / 4;
  /* Numbers of x in a piece of 16 bytes, rows of k that words are in order for, whether one group's scales wait. */
  static constexpr int X_PIECE = 8, TILE_K = 16;
  static constexpr bool SCALES_WAIT = SCALES::BYTES == 2;
  /* Whether weights are raised by the unit of their codes, because sums cannot be without it; what multiplies y. */
  static constexpr bool RAISED = CODES::UNIT > 0x1p64f && !SCALES::OF_WEIGHTS;
  static constexpr float FACTOR = (RAISED ? 1 : CODES::UNIT) / SCALES::HAVE;
  /* In pieces of 16 bytes: a row of x, x and the words in a stage, a tile row (TILE_K rows of k) of words, a row of
   * scales and of zero-points. */
  static constexpr int X_ROW = STAGE_K * 2 / PIECE, X = nb_product_x_bytes(M_BLOCKS) / PIECE,
                       WORDS = nb_product_word_bytes(M_BLOCKS, BITS) / PIECE,
                       TILE_ROW = COLUMNS * BITS * 2 / PIECE, SCALE_ROW = COLUMNS * SCALES::BYTES / PIECE,
                       ZERO_ROW = COLUMNS * BITS / 8 / PIECE;
};

/* How k is cut: a tile has `depth` stages; a stage has `rows` rows of scales, which serve as many stages as `same`. One
 * group: its scales wait for the end, and each stage's row of scales is ones. */
struct cut {
  int depth, rows, same, pieces, tiles; /* pieces of a stage, tiles of a row of them */
  bool one_group;
};
template <class S> NB_DEVICE cut cut_of(const job &j) {
  cut c = {(j.k + S::STAGE_K - 1) / S::STAGE_K, 1, 1, 0, (j.n + COLUMNS - 1) / COLUMNS,
           S::SCALES_WAIT && j.group == j.k};
  if (!c.one_group && j.group < S::STAGE_K) c.rows = S::STAGE_K / j.group;
  if (!c.one_group && j.group > S::STAGE_K) c.same = (j.group + S::STAGE_K - 1) / S::STAGE_K;
  c.pieces = S::X + S::WORDS + c.rows * (S::SCALE_ROW + (j.zeros && !c.one_group ? S::ZERO_ROW : 0));
  return c;
}

/* Where piece p of a row of tiles lies in shared memory. A lane's two pieces of 8 bits come apart, so that what eight
 * lanes write or read at once lies in different banks. */
template <class S> NB_DEVICE int word_place(int p) {
  constexpr int BOTH = 2 * LANES;
  if (S::BITS == 4) return p;
  return p / BOTH * BOTH + p % 2 * LANES + (p % BOTH / 2 ^ p % 2 * 4);
}

/* The same of a piece of a row of x: eight rows' pieces, or two rows of four, lie in different banks. */
template <class S> NB_DEVICE int x_place(int row, int piece) {
  return row * S::X_ROW + (piece ^ (S::X_ROW < 8 ? row / 2 % S::X_ROW : row % 8));
}

/* Sends for stage after stage by pointers that run along; each thread has its pieces of a stage. A thread has a piece
 * of the scales or of the zero-points at most: `side`. */
template <class S> struct fetcher {
  static constexpr int HALF = THREADS / 2; /* threads for scales; the others for zero-points */

  static constexpr bool EXPERTS = S::ROUTES::EXPERTS;
  static constexpr int X_STEP = THREADS / S::X_ROW, X_ROWS = S::M_BLOCKS * 16 / X_STEP;

  global<const uint4> x, words, side; /* this thread's first piece of the next stage */
  uint64_t once;
  shared<int> x_at;                 /* of experts: from x to this thread's rows of a block; -1: none */
  int todo, columns, k_left, block; /* stages; what n and k have left; the block of rows */
  int to, same;                     /* where the next stage goes; stages that need the same scales */
  int side_to, side_step, side_column, side_k; /* 0: none; pieces to the next rows; columns and k before it */
  int x_back, words_back, side_back;           /* pieces to the next tile */

  /* At a stage of the tiles of all blocks; so many stages are this block's. */
  NB_DEVICE void begin(const job &j, const cut &c, int unit, int stage, int stages, shared<uint4> memory) {
    if constexpr (EXPERTS)
      x_at = cast<int>(memory + STAGES * c.pieces) + (int)threadIdx.x / S::X_ROW * X_ROWS;
    once = stream_once();
    todo = stages;
    to = 0;
    block = EXPERTS ? unit / c.tiles : 0;
    enter(j, c, unit - block * c.tiles, stage);
  }
  /* A block of rows at a tile and stage; where its expert is not here, the first one from there on whose is. */
  NB_DEVICE void enter(const job &j, const cut &c, int tile, int stage) {
    if constexpr (EXPERTS) {
      while (todo > 0 && S::ROUTES::owner(j, block) < 0) {
        todo -= (c.tiles - tile) * c.depth - stage;
        tile = stage = 0;
        block++;
      }
      if (todo <= 0) return;
      __syncwarp(); /* all of a row's threads, which are of one warp, have done with the last block's */
      const int row = (int)threadIdx.x / S::X_ROW;
      for (int i = (int)threadIdx.x % S::X_ROW; i < X_ROWS; i += S::X_ROW) {
        const int y_row = S::ROUTES::row(j, block, row + i * X_STEP);
        x_at[i] = y_row < 0 ? -1 : S::ROUTES::source(j, y_row) * (j.k / S::X_PIECE);
      }
      __syncwarp();
    }
    go_to(j, c, tile, stage);
  }
  /* A tile and stage of the block of rows. */
  NB_DEVICE void go_to(const job &j, const cut &c, int tile, int stage) {
    const int expert = S::ROUTES::owner(j, block);
    const int tid = (int)threadIdx.x, k = stage * S::STAGE_K, wide = j.n * S::BITS * S::TILE_K / 128,
              row = tid / S::X_ROW;
    columns = j.n - tile * COLUMNS;
    k_left = j.k - k;
    x = j.x + ((EXPERTS ? 0 : (int64_t)row * (j.k / S::X_PIECE)) + k / S::X_PIECE + tid % S::X_ROW);
    x_back = -c.depth * S::X_ROW;
    words = j.words + (((int64_t)expert * (j.k / S::TILE_K) + k / S::TILE_K + tid / S::TILE_ROW) * wide +
                       tile * S::TILE_ROW + tid % S::TILE_ROW);
    words_back = S::TILE_ROW - c.depth * (S::STAGE_K / S::TILE_K * wide);
    same = c.same - stage % c.same;
    enter_side(j, c, expert, tile, k);
  }
  NB_DEVICE void enter_side(const job &j, const cut &c, int expert, int tile, int k) {
    const bool zero = (int)threadIdx.x >= HALF;
    const int i = (int)threadIdx.x % HALF, wide = zero ? S::ZERO_ROW : S::SCALE_ROW, row = i / wide,
              pitch = j.n * wide / COLUMNS;
    side = (zero ? j.zeros : j.scales) +
           (((int64_t)expert * (j.k / j.group) + k / j.group + row) * pitch + tile * wide + i % wide);
    side_to = S::X + S::WORDS + (zero ? c.rows * S::SCALE_ROW : 0) + i;
    if (row >= c.rows || c.one_group || (zero && !j.zeros)) side_to = 0;
    side_step = c.rows * pitch;
    side_back = wide - c.depth / c.same * side_step;
    side_column = i % wide * (COLUMNS / wide);
    side_k = row * j.group;
  }

  NB_DEVICE void fetch(const job &j, const cut &c, shared<uint4> memory) {
    if (todo > 0) {
      send(j, memory + to);
      todo--;
      to = to == (STAGES - 1) * c.pieces ? 0 : to + c.pieces;
      x = x + S::X_ROW;
      words = words + S::STAGE_K / S::TILE_K * (j.n * S::BITS * S::TILE_K / 128);
      if (--same == 0) {
        same = c.same;
        side = side + side_step;
      }
      k_left -= S::STAGE_K;
      if (k_left <= 0) next_tile(j, c);
    }
    cp_async_commit();
  }

  /* Back to the first row, and across, or on to the next block of rows. */
  NB_DEVICE void next_tile(const job &j, const cut &c) {
    columns -= COLUMNS;
    if constexpr (EXPERTS) { /* from the start: registers are dearer */
      const bool across = columns > 0;
      if (!across) block++;
      enter(j, c, across ? (j.n - columns) / COLUMNS : 0, 0);
    } else {
      k_left = j.k;
      x = x + x_back;
      words = words + words_back;
      side = side + side_back;
    }
  }

  /* What lies outside of the matrices becomes zeros. */
  NB_DEVICE void send(const job &j, shared<uint4> stage) {
    constexpr int HALF_ROW = S::TILE_ROW / 2;
    const int tid = (int)threadIdx.x, row = tid / S::X_ROW, piece = tid % S::X_ROW,
              word_row = tid / S::TILE_ROW, p = tid % S::TILE_ROW, wide = j.n * S::BITS * S::TILE_K / 128;
    const bool x_left = piece * S::X_PIECE < k_left;
    shared<uint4> x_to = stage + x_place<S>(row, piece),
                  words_to = stage + (word_row * S::TILE_ROW + word_place<S>(p));
#pragma unroll
    for (int i = 0; i < X_ROWS; i++)
      if constexpr (EXPERTS) {
        const int from = x_at[i];
        cp_async16_if(x_left && from >= 0, x_to + i * THREADS, x + from);
      } else
        cp_async16_if(x_left && i * X_STEP < j.m - row, x_to + i * THREADS,
                      x + (int64_t)i * X_STEP * (j.k / S::X_PIECE));
#pragma unroll
    for (int i = 0; i < S::WORDS / THREADS; i++) { /* down a row of tiles, or along it */
      const int down = i * THREADS / S::TILE_ROW, along = i * THREADS % S::TILE_ROW;
      cp_async16_once((p + along) / HALF_ROW * 64 < columns && (word_row + down) * S::TILE_K < k_left,
                      words_to + (S::X + i * THREADS), words + ((int64_t)down * wide + along), once);
    }
    if (side_to) cp_async16_if(side_column < columns && side_k < k_left, stage + side_to, side);
  }
};

} // namespace product
#endif

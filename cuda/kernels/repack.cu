/* repack.cu - Marlin's weight layout out of GPTQ-like or AWQ words, 4 and 8 bits, for
 * activations of 16 and 8 bits, all experts in one launch: what nb_marlin_repack and
 * nb_marlin_awq_repack do on the CPU (core/layout/marlin.c has the layout).
 *
 * A warp takes a tile of 1024 codes, then the one `warps` further on, whatever expert it
 * is of: the tile rows of all experts are one long column. Its source words come to shared
 * memory some tiles ahead; lane i then makes the BITS words that lane i of a product's
 * warp will read, 16-byte pieces side by side. No block barrier: warps never meet.
 *
 * Memory limits it: each word is read and written once. So that instructions don't (4 bits:
 * about 220 to a tile is what a GPU of 132 processors has time for), what depends on the
 * lane is one address and one shift, the rest is known to the compiler, and the way from
 * tile to tile takes no division. */
#include "../ptx.cuh"
#include "repack.h"

namespace repack_kernels {
enum { LANES = 32 };

/* Marlin's tile and a lane's part of it: row(lane, r) for r from 0, columns lane/4 + 8j. Rows add up: row(lane, r) =
 * row(lane, 0) + row(0, r), and the sum carries nowhere into the next word of the source. */
template <int BITS, bool A8> struct tile {
  static constexpr int K = A8 ? 32 : 16, N = A8 ? 32 : 64, PF = 32 / BITS;

  static NB_DEVICE constexpr int row(int lane, int r) {
    return A8 ? lane % 4 * 4 + r % 4 + r / 4 * 16 : lane % 4 * 2 + r % 2 + r / 2 * 8;
  }
  /* Slot u of the lane's word m holds its row r and column j. */
  static NB_DEVICE constexpr int r_of(int m, int u) {
    return A8 ? (BITS == 4 ? u / 2 + u % 2 * 4 : u + m % 2 * 4) : (u / (PF / 2) + u % (PF / 2) * 2) % 4;
  }
  static NB_DEVICE constexpr int j_of(int m, int u) {
    return A8 ? (BITS == 4 ? m : m / 2) : BITS == 4 ? 2 * m + u % 4 / 2 : m;
  }
};

/* The matrices: words as the source has them, perm [E,k] or none, k and n of each. */
struct job {
  global<const uint32_t> words;
  global<const int32_t> perm;
  int k, n;
};

/* A tile: its row among those of all experts, its column, its expert. */
struct place {
  int row, column, expert;
};

/* GPTQ: words [E, k/pf, n], pf consecutive k in each. */
template <int BITS, bool A8> struct gptq {
  typedef repack_kernels::tile<BITS, A8> tile;
  static constexpr bool DOWN = false; /* tiles are taken row by row */
  static constexpr int PITCH = A8 ? NB_REPACK_PITCH_A8 : NB_REPACK_PITCH, STAGES = NB_REPACK_STAGES,
                       ROWS = tile::K / tile::PF, ROW_WORDS = tile::N, STAGE_WORDS = ROWS * PITCH;
  int at, shift; /* of this lane: its first word, how far its first code is from the word's end */

  NB_DEVICE gptq(int lane)
      : at(tile::row(lane, 0) / tile::PF * PITCH + lane / 4), shift(tile::row(lane, 0) % tile::PF * BITS) {}
  NB_DEVICE void begin(const job &, const place &, int) {}
  NB_DEVICE uint32_t code(shared<uint32_t> stage, int r, int j) const {
    uint32_t word = stage[at + tile::row(0, r) / tile::PF * PITCH + 8 * j];
    return word >> shift >> (tile::row(0, r) % tile::PF * BITS);
  }

  static NB_DEVICE int shared_row(int r) { return r * PITCH; }
  /* The row that the ith 16 bytes of a tile belong to, and which of it they are: along rows. */
  static NB_DEVICE int row_of_piece(int i) { return i / (ROW_WORDS / 4); }
  static NB_DEVICE int piece_in_row(int i) { return i % (ROW_WORDS / 4); }
  /* Where row r of the tile begins in the source. */
  static NB_DEVICE int64_t source(const job &x, const place &p, int r) {
    return ((int64_t)p.row * ROWS + r) * x.n + p.column * ROW_WORDS;
  }
};

/* The same with an activation order: a tile's rows come from anywhere in their expert, and each brings its own row
 * of words, of which one code is used. Tiles are taken down the columns, so that a column's words, read once for
 * each code in them, are still in the L2 cache. */
template <int BITS> struct gptq_ordered {
  typedef repack_kernels::tile<BITS, false> tile;
  static constexpr bool DOWN = true;
  static constexpr int PITCH = NB_REPACK_PITCH_ORDERED, STAGES = NB_REPACK_STAGES_ORDERED, ROWS = tile::K,
                       ROW_WORDS = tile::N, STAGE_WORDS = ROWS * PITCH;
  int at, shift[4];

  NB_DEVICE gptq_ordered(int lane) : at(tile::row(lane, 0) * PITCH + lane / 4) {}
  NB_DEVICE void begin(const job &x, const place &p, int lane) {
#pragma unroll
    for (int r = 0; r < 4; r++)
      shift[r] = x.perm[(int64_t)p.row * tile::K + tile::row(lane, r)] % tile::PF * BITS;
  }
  NB_DEVICE uint32_t code(shared<uint32_t> stage, int r, int j) const {
    uint32_t word = stage[at + tile::row(0, r) * PITCH + 8 * j];
    return word >> shift[r];
  }

  static NB_DEVICE int shared_row(int r) { return r * PITCH; }
  static NB_DEVICE int row_of_piece(int i) { return i / (ROW_WORDS / 4); }
  static NB_DEVICE int piece_in_row(int i) { return i % (ROW_WORDS / 4); }
  static NB_DEVICE int64_t source(const job &x, const place &p, int r) {
    int from = x.perm[(int64_t)p.row * tile::K + r] / tile::PF;
    return ((int64_t)p.expert * (x.k / tile::PF) + from) * x.n + p.column * ROW_WORDS;
  }
};

/* AWQ: words [E, k, n/pf], pf columns in each, even ones first. */
template <int BITS, bool A8> struct awq {
  typedef repack_kernels::tile<BITS, A8> tile;
  static constexpr bool DOWN = false;
  static constexpr int PITCH = A8          ? BITS == 4 ? NB_REPACK_PITCH_AWQ4_A8 : NB_REPACK_PITCH_AWQ8_A8
                               : BITS == 4 ? NB_REPACK_PITCH_AWQ4
                                           : NB_REPACK_PITCH_AWQ8,
                       STAGES = NB_REPACK_STAGES, ROWS = tile::K, ROW_WORDS = tile::N / tile::PF,
                       STAGE_WORDS = ROWS * PITCH + ROWS / 8 * NB_REPACK_SKEW_AWQ;
  int at, shift;

  NB_DEVICE awq(int lane) : at(shared_row(tile::row(lane, 0)) + lane / 4 / tile::PF) {
    int column = lane / 4 % tile::PF;
    shift = (column / 2 + column % 2 * (tile::PF / 2)) * BITS;
  }
  NB_DEVICE void begin(const job &, const place &, int) {}
  NB_DEVICE uint32_t code(shared<uint32_t> stage, int r, int j) const {
    uint32_t word = stage[at + shared_row(tile::row(0, r)) + 8 * j / tile::PF];
    return word >> shift;
  }

  static NB_DEVICE int shared_row(int r) { return r * PITCH + r / 8 * NB_REPACK_SKEW_AWQ; }
  /* Down 16 rows, then on along them: eight lanes side by side then fill different banks, and a warp takes 32 bytes
   * of a row, where it has as many. */
  static NB_DEVICE int row_of_piece(int i) { return i % 16 + i / (4 * ROW_WORDS) * 16; }
  static NB_DEVICE int piece_in_row(int i) { return i / 16 % (ROW_WORDS / 4); }
  static NB_DEVICE int64_t source(const job &x, const place &p, int r) {
    return ((int64_t)p.row * ROWS + r) * (x.n / tile::PF) + p.column * ROW_WORDS;
  }
};

/* A warp's tiles one after the other: `outer` rows of `inner` each, or, DOWN, columns. */
template <class SOURCE> struct walk {
  int t, warps, outer, inner, outer_step, inner_step, rows, columns;

  NB_DEVICE walk(const job &x, int first, int warps_) : t(first), warps(warps_) {
    rows = x.k / SOURCE::tile::K;
    columns = x.n / SOURCE::tile::N;
    int of = SOURCE::DOWN ? rows : columns;
    outer = t / of;
    inner = t % of;
    outer_step = warps / of;
    inner_step = warps % of;
  }
  NB_DEVICE void next() {
    const int of = SOURCE::DOWN ? rows : columns;
    t += warps;
    outer += outer_step;
    inner += inner_step;
    if (inner < of) return;
    inner -= of;
    outer++;
  }
  NB_DEVICE place here() const {
    if (!SOURCE::DOWN) return {outer, inner, 0};
    int expert = outer / columns;
    return {expert * rows + inner, outer % columns, expert};
  }
};

/* Sends for the source of a tile. */
template <class SOURCE> NB_DEVICE void fetch(const job &x, shared<uint32_t> stage, const place &p, int lane) {
#pragma unroll
  for (int first = 0; first < SOURCE::ROWS * SOURCE::ROW_WORDS / 4; first += LANES) {
    int r = SOURCE::row_of_piece(first + lane), at = SOURCE::piece_in_row(first + lane) * 4;
    cp_async16(stage + (SOURCE::shared_row(r) + at), x.words + (SOURCE::source(x, p, r) + at));
  }
}

/* The BITS words of lane `to`, counted over the whole result; of 8, which are two stores, both lanes of a pair first
 * write those of the one and then those of the other: 32 bytes that lie side by side. */
template <int BITS> NB_DEVICE void store(global<uint4> out, int64_t to, int lane, const uint32_t *w) {
  if (BITS == 4) {
    out[to] = make_uint4(w[0], w[1], w[2], w[3]);
    return;
  }
  const bool odd = lane % 2;
  uint32_t a[4], b[4]; /* even lane: its own first half, the other's first half; odd lane: the second ones */
#pragma unroll
  for (int i = 0; i < 4; i++) {
    uint32_t other = shuffle_xor(odd ? w[i] : w[BITS - 4 + i], 1);
    a[i] = odd ? other : w[i];
    b[i] = odd ? w[BITS - 4 + i] : other;
  }
  out[(to - odd) * 2 + odd] = make_uint4(a[0], a[1], a[2], a[3]);
  out[(to - odd) * 2 + 2 + odd] = make_uint4(b[0], b[1], b[2], b[3]);
}

template <int BITS, class SOURCE> NB_DEVICE void run(const job &x, global<uint32_t> words, int experts) {
  constexpr int STAGES = SOURCE::STAGES;
  const int lane = (int)threadIdx.x % LANES, warp = (int)threadIdx.x / LANES;
  const int tiles = experts * (x.k / SOURCE::tile::K) * (x.n / SOURCE::tile::N);
  global<uint4> out = cast<uint4>(words);
  shared<uint32_t> stages = shared_words() + warp * STAGES * SOURCE::STAGE_WORDS;
  SOURCE source(lane);

  walk<SOURCE> now(x, (int)blockIdx.x * NB_REPACK_WARPS + warp, (int)gridDim.x * NB_REPACK_WARPS),
      ahead = now;
  for (int s = 0; s < STAGES - 1; s++, ahead.next()) {
    if (ahead.t < tiles) fetch<SOURCE>(x, stages + s * SOURCE::STAGE_WORDS, ahead.here(), lane);
    cp_async_commit();
  }
  for (int s = 0; now.t < tiles; now.next(), ahead.next(), s = (s + 1) % STAGES) {
    cp_async_wait<STAGES - 2>();
    __syncwarp(); /* this tile is here for all lanes, and all have left the stage filled next */
    if (ahead.t < tiles)
      fetch<SOURCE>(x, stages + (s + STAGES - 1) % STAGES * SOURCE::STAGE_WORDS, ahead.here(), lane);
    cp_async_commit();

    const place p = now.here();
    source.begin(x, p, lane);
    uint32_t w[BITS];
#pragma unroll
    for (int m = 0; m < BITS; m++) {
      w[m] = 0;
#pragma unroll
      for (int u = 0; u < 32 / BITS; u++) {
        uint32_t code =
            source.code(stages + s * SOURCE::STAGE_WORDS, SOURCE::tile::r_of(m, u), SOURCE::tile::j_of(m, u));
        w[m] |= (code & ((1u << BITS) - 1)) << (u * BITS);
      }
    }
    const int64_t to = ((int64_t)p.row * (x.n / SOURCE::tile::N) + p.column) * LANES + lane;
    store<BITS>(out, to, lane, w);
  } /* the groups still under way are empty */
}
} // namespace repack_kernels

/* words [E, k*bits/32, n] -> out [E, k/16, n*bits/2]. k a multiple of 16, n of 64 (a8: 32, 32); blocks of
 * NB_REPACK_WARPS warps, as many as the device holds. */
extern "C" __global__ void __launch_bounds__(NB_REPACK_WARPS * 32, NB_REPACK_BLOCKS)
    nb_repack_gptq(global<const uint32_t> words, global<uint32_t> out, int experts, int k, int n, int bits,
                   int a8) {
  using namespace repack_kernels;
  const job x = {words, {}, k, n};
  if (bits == 4) {
    if (a8) run<4, gptq<4, true>>(x, out, experts);
    else run<4, gptq<4, false>>(x, out, experts);
  } else if (a8) run<8, gptq<8, true>>(x, out, experts);
  else run<8, gptq<8, false>>(x, out, experts);
}

/* The same with perm [E,k], the source row of each row, which is trusted. */
extern "C" __global__ void __launch_bounds__(NB_REPACK_WARPS * 32, NB_REPACK_BLOCKS_ORDERED)
    nb_repack_gptq_ordered(global<const uint32_t> words, global<const int32_t> perm, global<uint32_t> out,
                           int experts, int k, int n, int bits) {
  using namespace repack_kernels;
  const job x = {words, perm, k, n};
  if (bits == 4) run<4, gptq_ordered<4>>(x, out, experts);
  else run<8, gptq_ordered<8>>(x, out, experts);
}

/* words [E, k, n*bits/32] -> out [E, k/16, n*bits/2]. */
extern "C" __global__ void __launch_bounds__(NB_REPACK_WARPS * 32, NB_REPACK_BLOCKS)
    nb_repack_awq(global<const uint32_t> words, global<uint32_t> out, int experts, int k, int n, int bits,
                  int a8) {
  using namespace repack_kernels;
  const job x = {words, {}, k, n};
  if (bits == 4) {
    if (a8) run<4, awq<4, true>>(x, out, experts);
    else run<4, awq<4, false>>(x, out, experts);
  } else if (a8) run<8, awq<8, true>>(x, out, experts);
  else run<8, awq<8, false>>(x, out, experts);
}

/* repack.cu - Marlin's weight layout out of GPTQ-like or AWQ words, 4 and 8 bits, all
 * experts in one launch: what nb_marlin_repack and nb_marlin_awq_repack do on the CPU
 * (core/layout/marlin.c has the layout; 16-bit activations).
 *
 * A warp takes a tile of 16 k x 64 n, then the one `warps` further on, whatever expert it
 * is of: [E, k/16] tile rows are one long column of them. Its source words come to shared
 * memory some tiles ahead; lane i then makes the BITS words that lane i of a product's
 * warp will read, 16-byte pieces side by side. No block barrier: warps never meet. */
#include "../ptx.cuh"
#include "repack.h"

enum { TILE_K = 16, TILE_N = 64, LANES = 32 };

/* Row of the tile, for this lane, of the cth of its four codes in a column: 0 1 8 9. */
NB_DEVICE int row_of(int lane, int c) { return 2 * (lane % 4) + c % 2 + c / 2 * 8; }

/* The matrices: words as the source has them, perm [E,k] or none, tiles side by side. */
struct repack_job {
  global<const uint32_t> words;
  global<const int32_t> perm;
  int k, n;
};

/* GPTQ: words [E, k/pf, n], pf consecutive k in each. With an activation order a tile's
 * 16 rows come from anywhere in their expert: each brings its own row of words. */
template <int BITS, bool PERM> struct gptq_source {
  static constexpr int PF = 32 / BITS, ROWS = PERM ? TILE_K : TILE_K / PF, ROW_WORDS = TILE_N,
                       PITCH = PERM ? NB_REPACK_PITCH_PERM : NB_REPACK_PITCH,
                       STAGES = PERM ? NB_REPACK_STAGES_PERM : NB_REPACK_STAGES;
  int within[4]; /* where this lane's four rows lie in their words */

  /* The source's row of words that is row r of tile row kt. */
  static NB_DEVICE int64_t source_row(const repack_job &job, int kt, int r) {
    if (!PERM) return (int64_t)kt * ROWS + r;
    int expert = kt / (job.k / TILE_K);
    return (int64_t)expert * (job.k / PF) + job.perm[(int64_t)kt * TILE_K + r] / PF;
  }
  static NB_DEVICE int source_words(const repack_job &job) { return job.n; }
  /* The row that the ith 16 bytes of a tile belong to, and which of it they are: along rows. */
  static NB_DEVICE int row_of_piece(int i) { return i / (ROW_WORDS / 4); }
  static NB_DEVICE int piece_in_row(int i) { return i % (ROW_WORDS / 4); }

  NB_DEVICE void begin(const repack_job &job, int kt, int lane) {
    for (int c = 0; c < 4; c++) {
      int row = row_of(lane, c);
      within[c] = PERM ? job.perm[(int64_t)kt * TILE_K + row] % PF : row % PF;
    }
  }
  NB_DEVICE uint32_t code(shared<uint32_t> stage, int lane, int c, int n) const {
    int row = row_of(lane, c);
    uint32_t word = stage[(PERM ? row : row / PF) * PITCH + n];
    return word >> (within[c] * BITS) & ((1u << BITS) - 1);
  }
};

/* AWQ: words [E, k, n/pf], pf columns in each, even ones first. */
template <int BITS> struct awq_source {
  static constexpr int PF = 32 / BITS, ROWS = TILE_K, ROW_WORDS = TILE_N / PF,
                       PITCH = BITS == 4 ? NB_REPACK_PITCH_AWQ4 : NB_REPACK_PITCH_AWQ8,
                       STAGES = NB_REPACK_STAGES;

  static NB_DEVICE int64_t source_row(const repack_job &, int kt, int r) { return (int64_t)kt * ROWS + r; }
  static NB_DEVICE int source_words(const repack_job &job) { return job.n / PF; }
  /* Down the rows, which are short: eight lanes side by side then fill different banks. */
  static NB_DEVICE int row_of_piece(int i) { return i % ROWS; }
  static NB_DEVICE int piece_in_row(int i) { return i / ROWS; }

  NB_DEVICE void begin(const repack_job &, int, int) {}
  NB_DEVICE uint32_t code(shared<uint32_t> stage, int lane, int c, int n) const {
    int column = n % PF, slot = column / 2 + column % 2 * (PF / 2);
    uint32_t word = stage[row_of(lane, c) * PITCH + n / PF];
    return word >> (slot * BITS) & ((1u << BITS) - 1);
  }
};

/* Sends for the source of tile t. */
template <class SOURCE> NB_DEVICE void fetch(const repack_job &job, shared<uint32_t> stage, int t, int lane) {
  const int columns = job.n / TILE_N, kt = t / columns, nt = t % columns;
  for (int i = lane; i < SOURCE::ROWS * SOURCE::ROW_WORDS / 4; i += LANES) {
    int r = SOURCE::row_of_piece(i), at = SOURCE::piece_in_row(i) * 4;
    int64_t from = SOURCE::source_row(job, kt, r) * SOURCE::source_words(job) + nt * SOURCE::ROW_WORDS + at;
    cp_async16(stage + (r * SOURCE::PITCH + at), job.words + from);
  }
}

/* Word m of this lane: the slots hold even places of the order first. */
template <int BITS, class SOURCE>
NB_DEVICE uint32_t word_of(const SOURCE &source, shared<uint32_t> stage, int lane, int m) {
  constexpr int PF = 32 / BITS;
  uint32_t word = 0;
#pragma unroll
  for (int u = 0; u < PF; u++) {
    int t = u / (PF / 2) + u % (PF / 2) * 2, j = BITS == 4 ? m : m / 2, h = BITS == 4 ? t / 4 : m % 2;
    word |= source.code(stage, lane, t % 4, 16 * j + lane / 4 + 8 * h) << (u * BITS);
  }
  return word;
}

template <int BITS, class SOURCE>
NB_DEVICE void repack(const repack_job &job, global<uint4> out, int experts) {
  constexpr int STAGES = SOURCE::STAGES, STAGE_WORDS = SOURCE::ROWS * SOURCE::PITCH;
  const int lane = (int)threadIdx.x % LANES, warp = (int)threadIdx.x / LANES;
  const int tiles = experts * (job.k / TILE_K) * (job.n / TILE_N), warps = (int)gridDim.x * NB_REPACK_WARPS;
  shared<uint32_t> stages = shared_words() + warp * STAGES * STAGE_WORDS;
  SOURCE source;

  int t = (int)blockIdx.x * NB_REPACK_WARPS + warp;
  for (int s = 0; s < STAGES - 1; s++) {
    if (t + s * warps < tiles) fetch<SOURCE>(job, stages + s * STAGE_WORDS, t + s * warps, lane);
    cp_async_commit();
  }
  for (int now = 0; t < tiles; t += warps, now = (now + 1) % STAGES) {
    cp_async_wait<STAGES - 2>();
    __syncwarp(); /* this tile is here for all lanes, and all have left the stage filled next */
    int ahead = t + (STAGES - 1) * warps;
    if (ahead < tiles) fetch<SOURCE>(job, stages + (now + STAGES - 1) % STAGES * STAGE_WORDS, ahead, lane);
    cp_async_commit();

    shared<uint32_t> stage = stages + now * STAGE_WORDS;
    source.begin(job, t / (job.n / TILE_N), lane);
    uint32_t w[BITS];
#pragma unroll
    for (int m = 0; m < BITS; m++) w[m] = word_of<BITS>(source, stage, lane, m);
#pragma unroll
    for (int m = 0; m < BITS; m += 4)
      out[((int64_t)t * LANES + lane) * (BITS / 4) + m / 4] = make_uint4(w[m], w[m + 1], w[m + 2], w[m + 3]);
  } /* the groups still under way are empty */
}

/* words [E, k*bits/32, n] -> out [E, k/16, n*bits/2]. perm: null, or [E,k], the source row of each
 * row, which is trusted. k a multiple of 16, n of 64; blocks of NB_REPACK_WARPS warps, as many as the device holds. */
extern "C" __global__ void __launch_bounds__(NB_REPACK_WARPS *LANES)
    nb_repack_gptq(global<const uint32_t> words, global<const int32_t> perm, global<uint32_t> out,
                   int experts, int k, int n, int bits) {
  const repack_job job = {words, perm, k, n};
  global<uint4> to = cast<uint4>(out);
  if (bits == 4 && perm) repack<4, gptq_source<4, true>>(job, to, experts);
  else if (bits == 4) repack<4, gptq_source<4, false>>(job, to, experts);
  else if (perm) repack<8, gptq_source<8, true>>(job, to, experts);
  else repack<8, gptq_source<8, false>>(job, to, experts);
}

/* words [E, k, n*bits/32] -> out [E, k/16, n*bits/2]. */
extern "C" __global__ void __launch_bounds__(NB_REPACK_WARPS *LANES)
    nb_repack_awq(global<const uint32_t> words, global<uint32_t> out, int experts, int k, int n, int bits) {
  const repack_job job = {words, {}, k, n};
  global<uint4> to = cast<uint4>(out);
  if (bits == 4) repack<4, awq_source<4>>(job, to, experts);
  else repack<8, awq_source<8>>(job, to, experts);
}

/* dequantize_words.cu - floats out of words that lie along the rows of out (n): GPTQ's [k/pf, n], a word pf
 * consecutive k, and AWQ's [k, n/pf], a word pf columns n, even ones first; 4 and 8 bits.
 *
 * A block takes TILE_K columns of out and as many rows as its words have. They come to shared memory as they lie,
 * 128 to 512 bytes of a row at once; then a lane takes the words of a piece (16 bytes of out), eight lanes
 * eight pieces side by side, so that a warp writes whole lines of 128 bytes. No block has a second tile: several share a
 * multiprocessor, and one's reads go on under another's writes. What limits it: the memory, by what is read and written once. */
#include "dequantize.cuh"

namespace dequantize {

enum { TILE_K = NB_DEQUANTIZE_TILE_K, PAD = NB_DEQUANTIZE_PAD };

/* What a source's words hold. ROWS: its rows that one piece needs; code i of the piece, in row d of a word's. */
template <int BITS, int PIECE> struct gptq {
  static constexpr int PF = 32 / BITS, ROWS = PIECE < PF ? 1 : PIECE / PF, TILE_ROWS = TILE_K / PF,
                       WORDS = NB_DEQUANTIZE_GPTQ_WORDS, DOWN = 1;
  static NB_DEVICE int first_row(int piece) { return piece * PIECE / PF; }
  /* Where in its first word the piece begins. */
  static NB_DEVICE int shift(int piece) { return piece * PIECE % PF * BITS; }
  static NB_DEVICE uint32_t code(const uint32_t *words, int i, int) {
    return words[i / PF] >> (i % PF * BITS);
  }
};

template <int BITS, int PIECE> struct awq {
  static constexpr int PF = 32 / BITS, ROWS = PIECE, TILE_ROWS = TILE_K, WORDS = NB_DEQUANTIZE_AWQ_WORDS,
                       DOWN = PF;
  static NB_DEVICE int first_row(int piece) { return piece * PIECE; }
  static NB_DEVICE int shift(int) { return 0; }
  static NB_DEVICE uint32_t code(const uint32_t *words, int i, int d) {
    return words[i] >> ((d / 2 + d % 2 * (PF / 2)) * BITS);
  }
};

/* The place of the tile's row r: after the rows of each piece a gap, so that eight pieces side by side fill
 * different banks. */
template <class SOURCE> NB_DEVICE int place(int r) { return r * SOURCE::WORDS + r / SOURCE::ROWS * PAD; }

/* Brings what there is of the tile whose first row and word these are. */
template <class SOURCE> NB_DEVICE void fetch(const weight &w, shared<uint32_t> tile, int row, int word) {
  const int rows = w.job.k / (TILE_K / SOURCE::TILE_ROWS), width = w.job.width;
  for (int i = (int)threadIdx.x; i < SOURCE::TILE_ROWS * SOURCE::WORDS / 4; i += (int)blockDim.x) {
    const int r = i / (SOURCE::WORDS / 4), x = i % (SOURCE::WORDS / 4) * 4;
    if (row + r < rows && word + x < width)
      cp_async16(tile + (place<SOURCE>(r) + x),
                 cast<const uint32_t>(w.values) + ((int64_t)(row + r) * width + word + x));
  }
  cp_async_commit();
  cp_async_wait<0>();
}

template <class SOURCE, int BITS, int PIECE, bool EACH> NB_DEVICE void words(const weight &w) {
  const int across = (w.job.k + TILE_K - 1) / TILE_K, pieces = w.job.k / PIECE;
  const int kt = (int)blockIdx.x % across, first_word = (int)blockIdx.x / across * SOURCE::WORDS;
  shared<uint32_t> tile = shared_words();
  fetch<SOURCE>(w, tile, kt * SOURCE::TILE_ROWS, first_word);
  __syncthreads();

  /* A thread keeps to its piece's columns and goes along the words. */
  constexpr int TILE_PIECES = TILE_K / PIECE, ALONG = NB_DEQUANTIZE_THREADS / TILE_PIECES;
  const int t = (int)threadIdx.x, p = t % 8 + t / (8 * ALONG) * 8, piece = kt * TILE_PIECES + p;
  if (piece >= pieces) return;
  const columns<PIECE, EACH> at(w, piece * PIECE);
  for (int x = t / 8 % ALONG; x < SOURCE::WORDS && first_word + x < w.job.width; x += ALONG) {
    uint32_t c[SOURCE::ROWS];
#pragma unroll
    for (int i = 0; i < SOURCE::ROWS; i++)
      c[i] = (uint32_t)tile[place<SOURCE>(SOURCE::first_row(p)) + i * SOURCE::WORDS + x] >> SOURCE::shift(p);
#pragma unroll 2
    for (int d = 0; d < SOURCE::DOWN; d++) {
      const int64_t row = (int64_t)(first_word + x) * SOURCE::DOWN + d;
      if (row >= w.job.n) continue; /* the last word's rows may be more than there are */
      grid<NB_CODES_INT, PIECE, EACH> g;
      g.load(w, at, row);
      float f[PIECE];
#pragma unroll
      for (int i = 0; i < PIECE; i++) f[i] = g.value(w, SOURCE::code(c, i, d) & ((1u << BITS) - 1), i);
      store<PIECE>(w, row * pieces + piece, f);
    }
  }
}

template <int PIECE> NB_DEVICE void words(const weight &w) {
  const bool four = w.job.bits == 4;
  if (w.job.along == NB_ALONG_AWQ)
    four ? words<awq<4, PIECE>, 4, PIECE, false>(w) : words<awq<8, PIECE>, 8, PIECE, false>(w);
  else if (w.g_idx)
    four ? words<gptq<4, PIECE>, 4, PIECE, true>(w) : words<gptq<8, PIECE>, 8, PIECE, true>(w);
  else four ? words<gptq<4, PIECE>, 4, PIECE, false>(w) : words<gptq<8, PIECE>, 8, PIECE, false>(w);
}

} // namespace dequantize

/* out [n,k] of GPTQ's or AWQ's words, 4 or 8 bits; values and out 16-byte aligned; k and the groups' columns multiples of 8,
 * the words of a row of 4; g_idx (entries below groups) with GPTQ only. One block for each tile, those of the same
 * rows one after the other; nb_dequantize_words_shared() bytes. */
extern "C" __global__ void __launch_bounds__(NB_DEQUANTIZE_THREADS, 4)
    nb_dequantize_words(global<const uint8_t> values, global<const uint8_t> scales,
                        global<const uint8_t> zeros, global<const int32_t> g_idx, global<uint8_t> out,
                        nb_dequantize_job job) {
  const dequantize::weight w = {values, scales, zeros, g_idx, out, job};
  if (job.out == NB_KERNEL_F32) dequantize::words<4>(w);
  else dequantize::words<8>(w);
}

/* quantize.cuh - how the quantize kernels go through a weight: a team of threads takes a block that has one scale, looks
 * for its largest values, and looks again for the codes. The second look is at registers, but for what is beyond
 * NB_QUANTIZE_HELD_BYTES of each thread: that comes out of the caches.
 *
 * What limits it: memory. Weights come 16 bytes at a time, all that a thread holds sent for at once (64 KiB a
 * multiprocessor under way at half occupancy); codes leave 8 side by side. */
#ifndef NB_QUANTIZE_CUH
#define NB_QUANTIZE_CUH
#include "../numbers.cuh"
#include "quantize.h"

enum { VECTOR = NB_QUANTIZE_VECTOR };

/* Eight weights side by side, as they are stored. */
template <int DTYPE> struct eight {
  static constexpr int BYTES = DTYPE == NB_KERNEL_F32 ? 4 : 2, WORDS = VECTOR * BYTES / 4,
                       HELD = NB_QUANTIZE_HELD_BYTES / (VECTOR * BYTES); /* vectors that a thread holds */
  uint32_t word[WORDS];

  NB_DEVICE float operator[](int i) const {
    if (DTYPE == NB_KERNEL_F32) return float_of_bits(word[i % WORDS]);
    uint32_t h = word[i / 2 % WORDS] >> i % 2 * 16 & 0xffffu;
    return float_of_half((uint16_t)h, DTYPE);
  }
  NB_DEVICE void clear() {
#pragma unroll
    for (int j = 0; j < WORDS; j++) word[j] = 0;
  }
  NB_DEVICE void load(global<const uint8_t> w, int64_t at) {
#pragma unroll
    for (int j = 0; j < WORDS / 4; j++) {
      uint4 v = cast<const uint4>(w)[at * BYTES / 16 + j];
      word[4 * j] = v.x, word[4 * j + 1] = v.y, word[4 * j + 2] = v.z, word[4 * j + 3] = v.w;
    }
  }
  /* The first `count` one by one, zeros for the others. */
  NB_DEVICE void load_some(global<const uint8_t> w, int64_t at, int count) {
    clear();
#pragma unroll
    for (int i = 0; i < VECTOR; i++) {
      if (i >= count) break;
      if (DTYPE == NB_KERNEL_F32) word[i % WORDS] = cast<const uint32_t>(w)[at + i];
      else word[i / 2 % WORDS] |= (uint32_t)cast<const uint16_t>(w)[at + i] << i % 2 * 16;
    }
  }
};

/* The largest positive value's bits and the most negative one's magnitude; 0: there is none. Floats order as whole
 * numbers do, without their sign; Inf and NaN come last. */
struct span {
  uint32_t pos, neg;
};

/* While looking: pos as a signed number, neg the largest bits as an unsigned one, sign included. */
template <int DTYPE> NB_DEVICE void look(span &s, const eight<DTYPE> &v, bool skip_nan) {
#pragma unroll
  for (int i = 0; i < VECTOR; i++) {
    float x = v[i];
    if (skip_nan && x != x) continue;
    s.pos = (uint32_t)larger((int)s.pos, (int)bits_of_float(x));
    s.neg = larger(s.neg, bits_of_float(x));
  }
}

/* Of all lanes that share a block; after it neg is a magnitude. Two halves of shared memory take turns, so that one
 * meeting is enough. */
NB_DEVICE span largest(span s, int lanes, int round) {
  for (int m = (lanes ? lanes : 32) / 2; m; m /= 2) {
    s.pos = larger(s.pos, shuffle_xor(s.pos, m));
    s.neg = larger(s.neg, shuffle_xor(s.neg, m));
  }
  if (!lanes) {
    const int warps = (int)blockDim.x / 32, warp = (int)threadIdx.x / 32;
    shared<uint32_t> half = shared_words() + round % 2 * 2 * warps;
    if (threadIdx.x % 32 == 0) {
      half[2 * warp] = s.pos;
      half[2 * warp + 1] = s.neg;
    }
    __syncthreads();
    for (int i = 0; i < warps; i++) {
      uint32_t pos = half[2 * i], neg = half[2 * i + 1];
      s.pos = larger(s.pos, pos);
      s.neg = larger(s.neg, neg);
    }
  }
  s.neg = s.neg >> 31 ? s.neg & 0x7fffffffu : 0;
  return s;
}

/* Where this thread stands among all teams of the grid. */
struct team {
  int lane, lanes;
  int64_t index, count;
};
NB_DEVICE team team_of(int lanes) {
  if (!lanes) return {(int)threadIdx.x, (int)blockDim.x, blockIdx.x, gridDim.x};
  const int each = (int)blockDim.x / lanes;
  return {(int)threadIdx.x % lanes, lanes, (int64_t)blockIdx.x * each + (int)threadIdx.x / lanes,
          (int64_t)gridDim.x * each};
}

/* A block of the weight, in vectors row after row; none beyond the last block. */
struct block {
  int64_t first;       /* its first weight */
  int columns, in_row; /* in_row: vectors of a row, the last of which may be cut */
  int vectors;
};
NB_DEVICE block block_of(const nb_quantize_blocks &b, int64_t i) {
  if (i >= b.count) return {0, 0, 0, 0};
  const int64_t row = i / b.per_row * b.rows, column = i % b.per_row * b.columns;
  const int columns = (int)smaller(b.columns, b.k - column), rows = (int)smaller(b.rows, b.n - row);
  const int in_row = (columns + VECTOR - 1) / VECTOR;
  return {row * b.k + column, columns, in_row, rows * in_row};
}

/* The weights of one vector: where they begin, how many they are. */
struct piece {
  int64_t at;
  int count;
};
NB_DEVICE piece piece_of(const nb_quantize_blocks &b, const block &of, int v) {
  const int row = b.rows == 1 ? 0 : v / of.in_row, column = (v - row * of.in_row) * VECTOR;
  return {of.first + row * b.k + column, smaller((int)VECTOR, of.columns - column)};
}

template <int DTYPE>
NB_DEVICE void load(eight<DTYPE> &v, const nb_quantize_blocks &b, global<const uint8_t> w, const piece &p) {
  if (b.vectors) v.load(w, p.at);
  else v.load_some(w, p.at, p.count);
}

/* Eight codes, one a byte. */
NB_DEVICE void store(const nb_quantize_blocks &b, global<uint8_t> codes, const piece &p,
                     uint64_t eight_codes) {
  if (b.vectors) cast<uint64_t>(codes)[p.at / VECTOR] = eight_codes;
  else
    for (int i = 0; i < p.count; i++) codes[p.at + i] = (uint8_t)(eight_codes >> 8 * i);
}

/* METHOD: SKIP_NAN; grid, what codes are found with; make(grid, i, span, stores), false where block i can't be quantized:
 * the one lane that stores leaves the scale; codes(grid, weights). */
template <int DTYPE, class METHOD>
NB_DEVICE void quantize_blocks(const nb_quantize_blocks &b, global<const uint8_t> w, global<uint8_t> codes,
                               const METHOD &method) {
  constexpr int HELD = eight<DTYPE>::HELD;
  const team me = team_of(b.lanes);
  int round = 0;
  for (int64_t first = 0; first < b.count; first += me.count, round++) { /* as often for all: they meet */
    const block of = block_of(b, first + me.index);
    eight<DTYPE> held[HELD], more;
    span s = {0, 0};
#pragma unroll
    for (int j = 0; j < HELD; j++) {
      held[j].clear();
      const int v = me.lane + j * me.lanes;
      if (v < of.vectors) load(held[j], b, w, piece_of(b, of, v));
    }
#pragma unroll
    for (int j = 0; j < HELD; j++) look(s, held[j], METHOD::SKIP_NAN);
    for (int v = me.lane + HELD * me.lanes; v < of.vectors; v += me.lanes) {
      load(more, b, w, piece_of(b, of, v));
      look(s, more, METHOD::SKIP_NAN);
    }
    s = largest(s, b.lanes, round);
    typename METHOD::grid g;
    if (first + me.index >= b.count || !method.make(g, first + me.index, s, me.lane == 0)) continue;
#pragma unroll
    for (int j = 0; j < HELD; j++) {
      const int v = me.lane + j * me.lanes;
      if (v < of.vectors) store(b, codes, piece_of(b, of, v), method.codes(g, held[j]));
    }
    for (int v = me.lane + HELD * me.lanes; v < of.vectors; v += me.lanes) {
      const piece p = piece_of(b, of, v);
      load(more, b, w, p);
      store(b, codes, p, method.codes(g, more));
    }
  }
}

/* Four numbers below 256 as bytes. */
NB_DEVICE uint32_t bytes_of(const uint32_t *c) { return c[0] + (c[1] << 8) + (c[2] << 16) + (c[3] << 24); }
NB_DEVICE uint64_t join(uint32_t low, uint32_t high) { return low | (uint64_t)high << 32; }
#endif

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
  /* The four bytes with the signs of weights i to i + 3 on top. */
  NB_DEVICE uint32_t tops(int i) const {
    if (DTYPE != NB_KERNEL_F32) return pick_bytes(word[i / 2 % WORDS], word[(i / 2 + 1) % WORDS], 0x7531);
    return pick_bytes(pick_bytes(word[i % WORDS], word[(i + 1) % WORDS], 0x73),
                      pick_bytes(word[(i + 2) % WORDS], word[(i + 3) % WORDS], 0x73), 0x5410);
  }
  NB_DEVICE void clear() {
#pragma unroll
    for (int j = 0; j < WORDS; j++) word[j] = 0;
  }
  NB_DEVICE void load(global<const uint8_t> w, int64_t at) {
#pragma unroll
    for (int j = 0; j < WORDS / 4; j++) {
      uint4 v = cast<const uint4>(w)[(at * BYTES >> 4) + j];
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
 * numbers do, without their sign; Inf and NaN come last. While looking pos is a number with a sign and neg one without,
 * so that any negative is larger than all others. */
struct span {
  uint32_t pos, neg;
};

/* The same of a thread's vectors, in the weights' own bits: of 16 a pair at a time. */
template <int DTYPE> struct look {
  uint32_t pos = 0, neg = 0;

  NB_DEVICE void at(const eight<DTYPE> &v) {
    if (DTYPE == NB_KERNEL_F32) {
#pragma unroll
      for (int i = 0; i < VECTOR; i++) {
        const uint32_t bits = bits_of_float(v[i]);
        pos = (uint32_t)larger((int)pos, (int)bits);
        neg = larger(neg, bits);
      }
    } else {
#pragma unroll
      for (int j = 0; j < eight<DTYPE>::WORDS; j++) {
        pos = max_s16x2(pos, v.word[j]);
        neg = max_u16x2(neg, v.word[j]);
      }
    }
  }
  NB_DEVICE span seen() const {
    if (DTYPE == NB_KERNEL_F32) return {pos, neg};
    const uint32_t p = larger(pos & 0xffffu, pos >> 16), n = larger(neg & 0xffffu, neg >> 16);
    /* NaN as float32 has it, which conversions may change; the sign stays. */
    const float above = float_of_half((uint16_t)p, DTYPE),
                below = float_of_half((uint16_t)(n & 0x7fffu), DTYPE);
    return {magnitude_of(above), magnitude_of(below) | (n & 0x8000u) << 16};
  }
};

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
  int lane, lanes, index, count;
};
NB_DEVICE team team_of(int lanes) {
  if (!lanes) return {(int)threadIdx.x, (int)blockDim.x, (int)blockIdx.x, (int)gridDim.x};
  const int each = (int)blockDim.x / lanes;
  return {(int)threadIdx.x % lanes, lanes, (int)blockIdx.x * each + (int)threadIdx.x / lanes,
          (int)gridDim.x * each};
}

/* Ways through a weight: one long row of whole vectors, which takes no division; rows of whole vectors; weight by
 * weight, where rows are something else. */
enum { ROW, ROWS, SINGLES };

/* A block of the weight, in vectors row after row; none beyond the last block. */
struct block {
  int64_t first;       /* its first weight */
  int columns, in_row; /* in_row: vectors of a row, the last of which may be cut */
  int vectors;
};
template <int WAY> NB_DEVICE block block_of(const nb_quantize_blocks &b, int i) {
  if (i >= b.count) return {0, 0, 0, 0};
  const int across = WAY == ROW ? i : i % b.per_row, down = WAY == ROW ? 0 : i / b.per_row;
  const int64_t row = (int64_t)down * b.rows, column = (int64_t)across * b.columns;
  const int columns = (int)smaller((int64_t)b.columns, b.k - column);
  const int in_row = (columns + VECTOR - 1) / VECTOR;
  return {row * b.k + column, columns, in_row,
          WAY == ROW ? in_row : (int)smaller((int64_t)b.rows, b.n - row) * in_row};
}

/* The weights of one vector: where they begin, how many they are. */
struct piece {
  int64_t at;
  int count;
};
template <int WAY> NB_DEVICE piece piece_of(const nb_quantize_blocks &b, const block &of, int v) {
  if (WAY == ROW) return {of.first + v * VECTOR, VECTOR};
  const int row = b.rows == 1 ? 0 : v / of.in_row, column = (v - row * of.in_row) * VECTOR;
  return {of.first + row * b.k + column, smaller((int)VECTOR, of.columns - column)};
}

template <int WAY, int DTYPE> NB_DEVICE void load(eight<DTYPE> &v, global<const uint8_t> w, const piece &p) {
  if (WAY == SINGLES) v.load_some(w, p.at, p.count);
  else v.load(w, p.at);
}

/* Eight codes, one a byte. */
template <int WAY> NB_DEVICE void store(global<uint8_t> codes, const piece &p, uint64_t eight_codes) {
  if (WAY == SINGLES)
    for (int i = 0; i < p.count; i++) codes[p.at + i] = (uint8_t)(eight_codes >> 8 * i);
  else cast<uint64_t>(codes)[p.at >> 3] = eight_codes;
}

/* METHOD: grid, what codes are found with, its scale a divisor; make(grid, i, span, stores), false where block i
 * can't be quantized: the one lane that stores leaves the scale; codes<QUICK>(grid, weights), QUICK where scale.quick is
 * known to be true. Blocks with a slow scale are read again, so that its long way is compiled only once. */
template <int DTYPE, int WAY, class METHOD>
NB_DEVICE void go(const nb_quantize_blocks &b, global<const uint8_t> w, global<uint8_t> codes,
                  const METHOD &method) {
  constexpr int HELD = WAY == SINGLES ? 1 : eight<DTYPE>::HELD;
  const team me = team_of(b.lanes);
  int round = 0;
  for (int first = 0; first < b.count; first += me.count, round++) { /* as often for all: they meet */
    const int i = first + me.index;
    const block of = block_of<WAY>(b, i);
    eight<DTYPE> held[HELD], more;
    look<DTYPE> all;
#pragma unroll
    for (int j = 0; j < HELD; j++) {
      const int v = me.lane + j * me.lanes;
      held[j].clear();
      if (v < of.vectors) load<WAY>(held[j], w, piece_of<WAY>(b, of, v));
    }
#pragma unroll
    for (int j = 0; j < HELD; j++) all.at(held[j]);
    for (int v = me.lane + HELD * me.lanes; v < of.vectors; v += me.lanes) {
      load<WAY>(more, w, piece_of<WAY>(b, of, v));
      all.at(more);
    }
    const span s = largest(all.seen(), b.lanes, round);
    typename METHOD::grid g;
    if (i >= b.count || !method.make(g, i, s, me.lane == 0)) continue;
    int v = me.lane;
    if (g.scale.quick) {
#pragma unroll
      for (int j = 0; j < HELD; j++, v += me.lanes)
        if (v < of.vectors)
          store<WAY>(codes, piece_of<WAY>(b, of, v), method.template codes<true>(g, held[j]));
    }
    for (; v < of.vectors; v += me.lanes) {
      const piece p = piece_of<WAY>(b, of, v);
      load<WAY>(more, w, p);
      store<WAY>(codes, p, method.template codes<false>(g, more));
    }
  }
}

template <int DTYPE, class METHOD>
NB_DEVICE void quantize_blocks(const nb_quantize_blocks &b, global<const uint8_t> w, global<uint8_t> codes,
                               const METHOD &method) {
  if (!b.vectors) go<DTYPE, SINGLES>(b, w, codes, method);
  else if (b.n == 1) go<DTYPE, ROW>(b, w, codes, method);
  else go<DTYPE, ROWS>(b, w, codes, method);
}

/* Four numbers as bytes; of what exceeds them the sum is the caller's affair. */
NB_DEVICE uint32_t bytes_of(const uint32_t *c) { return c[0] + (c[1] << 8) + (c[2] << 16) + (c[3] << 24); }
/* The four bytes with their signs on top. */
NB_DEVICE uint32_t tops_of(const float *x) {
  return pick_bytes(pick_bytes(bits_of_float(x[0]), bits_of_float(x[1]), 0x73),
                    pick_bytes(bits_of_float(x[2]), bits_of_float(x[3]), 0x73), 0x5410);
}
NB_DEVICE uint64_t join(uint32_t low, uint32_t high) { return low | (uint64_t)high << 32; }
#endif

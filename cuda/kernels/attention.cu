/* attention.cu - causal attention over independent sequences, grouped heads, with an optional sliding window: by tensor
 * cores, scores only ever in registers (online softmax, after FlashAttention-2, arXiv 2307.08691).
 *
 *   block   64 queries of one head of one sequence; the longest rows first. It takes 64 keys (32 where a head is longer
 *           than 128) and their values at a time, the next ones on their way meanwhile (cp.async, two buffers).
 *   warp    16 of the queries: scores by q k^T from ldmatrix, their largest and sum kept in f32, weights rounded to the
 *           inputs' dtype as the left operand of the product with v, which ldmatrix transposes.
 * Rows in shared memory are chunks of 16 bytes in an order (place) that keeps ldmatrix free of bank conflicts. Heads are
 * padded with zeros to a multiple of 32.
 *
 * What limits it: for 128 numbers a head a warp takes per 64 keys 128 mma and 72 ldmatrix_x4, which keep the tensor cores
 * and shared memory about as long busy (820 and 290 x 4 clocks of an H100's processor), and some 350 other instructions. */
#include "../ptx.cuh"
#include "attention.h"

namespace attend {
enum { LANES = 32, THREADS = NB_ATTENTION_THREADS, QUERIES = NB_ATTENTION_QUERIES, GROUP = 4 };

struct operands {
  global<uint16_t> out;
  global<const uint16_t> q, k, v;
};

template <int D, bool BF16> struct kernel {
  static constexpr int CHUNKS = D / 8, KEYS = NB_ATTENTION_KEYS(D), TILES = KEYS / 8 / GROUP,
                       WIDE = D / 8 / GROUP;
  /* Chunks that repeat the banks of a row's: rows take turns with their order. */
  static constexpr int TURNS = CHUNKS % 8 == 0 ? 8 : 4;

  static NB_DEVICE int turn(int row) { return row / (8 / TURNS) & (TURNS - 1); }
  static NB_DEVICE int place(int row, int chunk) { return row * CHUNKS + (chunk ^ turn(row)); }

  /* A lane's row of a tile whose rows repeat after a multiple of 8, from chunk `half` on. */
  struct reader {
    shared<const uint4> row;
    int half, turn;
    NB_DEVICE shared<const uint4> chunk(int c) const { return row + ((c + half) ^ turn); }
  };
  static NB_DEVICE reader read(shared<uint4> tile, int row, int half) {
    return {cast<const uint4>(tile + row * CHUNKS), half, turn(row)};
  }
  static NB_DEVICE uint32_t pair(float lo, float hi) { return BF16 ? bf16_pair(lo, hi) : f16_pair(lo, hi); }
  static NB_DEVICE void multiply(float (&sums)[GROUP][4], const uint32_t (&a)[4],
                                 const uint32_t (&b)[GROUP][2]) {
    if (BF16) mma_bf16<GROUP>(sums, a, b);
    else mma_f16<GROUP>(sums, a, b);
  }

  static NB_DEVICE void deal(uint32_t (&b)[GROUP][2], int p, const uint32_t (&r)[4]) {
    b[p][0] = r[0], b[p][1] = r[1], b[p + 1][0] = r[2], b[p + 1][1] = r[3];
  }

  /* ROWS rows of a head, `stride` numbers apart, of which `there` are there; zeros for others and beyond the head. */
  template <int ROWS>
  static NB_DEVICE void fetch(shared<uint4> to, global<const uint16_t> from, int64_t stride, int there,
                              const nb_attention_shape &s) {
    constexpr int PASS = THREADS / CHUNKS; /* rows at a time; some threads are left over */
    const int first = (int)(threadIdx.x / CHUNKS), chunk = (int)(threadIdx.x % CHUNKS);
    const bool inside = chunk * 8 < s.head_dim;
    from = from + (first * stride + chunk * 8);
    if (THREADS % CHUNKS && first >= PASS) return;
    if (s.whole) {
#pragma unroll
      for (int j = 0; j < (ROWS + PASS - 1) / PASS; j++) {
        const int row = first + j * PASS;
        if (ROWS % PASS == 0 || row < ROWS)
          cp_async16_if(inside && row < there, to + place(row, chunk),
                        cast<const uint4>(from + j * PASS * stride));
      }
      return;
    }
#pragma unroll 1
    for (int row = first; row < ROWS; row += PASS, from = from + PASS * stride) { /* two numbers at a time */
      uint32_t w[4] = {0, 0, 0, 0};
#pragma unroll
      for (int i = 0; i < 4; i++)
        if (row < there && chunk * 8 + 2 * i < s.head_dim) w[i] = cast<const uint32_t>(from)[i];
      to[place(row, chunk)] = make_uint4(w[0], w[1], w[2], w[3]);
    }
  }

  /* Scores of this warp's queries and the keys: [query g, g + 8][key 8 n + 2t, + 1] of tile n. */
  static NB_DEVICE void scores(float (&sums)[TILES][GROUP][4], const reader &q, const reader &k) {
#pragma unroll(D > 192 ? 4 : D / 16) /* longer heads: registers */
    for (int step = 0; step < D / 16; step++) {
      uint32_t a[4];
      ldmatrix_x4(a, q.chunk(2 * step));
#pragma unroll
      for (int n = 0; n < TILES; n++) {
        uint32_t b[GROUP][2];
#pragma unroll
        for (int p = 0; p < GROUP; p += 2) {
          uint32_t r[4];
          ldmatrix_x4(r, k.chunk(2 * step) + (n * GROUP + p) * 8 * CHUNKS);
          deal(b, p, r);
        }
        multiply(sums[n], a, b);
      }
    }
  }

  /* sums += weights times values. */
  static NB_DEVICE void weigh(float (&sums)[WIDE][GROUP][4], const float (&weights)[TILES][GROUP][4],
                              const reader &v) {
#pragma unroll
    for (int step = 0; step < KEYS / 16; step++) {
      const float(&low)[4] = weights[step / 2][step % 2 * 2],
            (&high)[4] = weights[step / 2][step % 2 * 2 + 1];
      const uint32_t a[4] = {pair(low[0], low[1]), pair(low[2], low[3]), pair(high[0], high[1]),
                             pair(high[2], high[3])};
#pragma unroll
      for (int n = 0; n < WIDE; n++) {
        uint32_t b[GROUP][2];
#pragma unroll
        for (int p = 0; p < GROUP; p += 2) {
          uint32_t r[4];
          ldmatrix_x4_turned(r, v.chunk(n * GROUP + p) + step * 16 * CHUNKS);
          deal(b, p, r);
        }
        multiply(sums[n], a, b);
      }
    }
  }

  /* Scores of keys from `first` on become weights: 2^(score - the largest so far); what was summed before shrinks. Keys
   * that a query may not see weigh 0. top, total: of rows g and g + 8, total of this lane's columns. */
  static NB_DEVICE void soften(float (&x)[TILES][GROUP][4], float (&sums)[WIDE][GROUP][4], float (&top)[2],
                               float (&total)[2], int query, int first, bool masked,
                               const nb_attention_shape &s) {
    const int t = (int)threadIdx.x % 4;
    float most[2] = {top[0], top[1]};
#pragma unroll
    for (int n = 0; n < TILES * GROUP; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) x[n / GROUP][n % GROUP][i] *= s.scale;
    if (masked) {
#pragma unroll
      for (int n = 0; n < TILES * GROUP; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const int row = query + i / 2 * 8, key = first + n * 8 + 2 * t + i % 2;
          if (key > row || key <= row - s.sliding) x[n / GROUP][n % GROUP][i] = -INFINITY;
        }
    }
#pragma unroll
    for (int n = 0; n < TILES * GROUP; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) most[i / 2] = fmaxf(most[i / 2], x[n / GROUP][n % GROUP][i]);
#pragma unroll
    for (int r = 0; r < 2; r++) {
      most[r] = fmaxf(most[r], float_of_bits(shuffle_xor(bits_of_float(most[r]), 1)));
      most[r] = fmaxf(most[r], float_of_bits(shuffle_xor(bits_of_float(most[r]), 2)));
      const float base = most[r] == -INFINITY ? 0 : most[r]; /* none seen yet */
      const float shrink = exp2_near(top[r] - base);
      top[r] = most[r];
      total[r] = mul_rn(total[r], shrink);
#pragma unroll
      for (int n = 0; n < TILES * GROUP; n++)
#pragma unroll
        for (int i = 2 * r; i < 2 * r + 2; i++) {
          float &score = x[n / GROUP][n % GROUP][i];
          score = exp2_near(score - base);
          total[r] += score;
        }
#pragma unroll
      for (int n = 0; n < WIDE * GROUP; n++)
#pragma unroll
        for (int i = 2 * r; i < 2 * r + 2; i++) sums[n / GROUP][n % GROUP][i] *= shrink;
    }
  }

  static NB_DEVICE void run(operands o, const nb_attention_shape &s) {
    const int lane = (int)(threadIdx.x % LANES), warp = (int)(threadIdx.x / LANES);
    const int blocks = (s.length + QUERIES - 1) / QUERIES, head = (int)blockIdx.x % s.heads;
    const int rest = (int)blockIdx.x / s.heads, sequence = rest % s.sequences;
    const int q0 = (blocks - 1 - rest / s.sequences) * QUERIES,
              end = q0 + QUERIES < s.length ? q0 + QUERIES : s.length;
    const int begin = q0 >= s.sliding ? (q0 - s.sliding + 1) / KEYS * KEYS : 0;
    const int64_t q_row = (int64_t)s.heads * s.head_dim, k_row = (int64_t)s.kv_heads * s.head_dim;
    const int64_t q_at = ((int64_t)sequence * s.length + q0) * q_row + head * s.head_dim;
    const int64_t k_at = ((int64_t)sequence * s.length) * k_row + head / (s.heads / s.kv_heads) * s.head_dim;

    shared<uint4> queries = cast<uint4>(shared_words()), keys = queries + QUERIES * CHUNKS,
                  values = keys + 2 * KEYS * CHUNKS;
    const reader q = read(queries, warp * 16 + lane % 16, lane / 16);
    fetch<QUERIES>(queries, o.q + q_at, q_row, end - q0, s);
    fetch<KEYS>(keys, o.k + (k_at + begin * k_row), k_row, end - begin, s);
    fetch<KEYS>(values, o.v + (k_at + begin * k_row), k_row, end - begin, s);
    cp_async_commit();

    float sums[WIDE][GROUP][4] = {}, top[2] = {-INFINITY, -INFINITY}, total[2] = {0, 0};
    const int query = q0 + warp * 16 + lane / 4,
              mine = q0 + warp * 16; /* this lane's first one, this warp's */
    int stage = 0;
    for (int first = begin; first < end; first += KEYS, stage ^= KEYS * CHUNKS) {
      const int next = first + KEYS, other = stage ^ (KEYS * CHUNKS);
      if (next < end) {
        fetch<KEYS>(keys + other, o.k + (k_at + next * k_row), k_row, end - next, s);
        fetch<KEYS>(values + other, o.v + (k_at + next * k_row), k_row, end - next, s);
      }
      cp_async_commit();
      cp_async_wait<1>();
      __syncthreads();
      if (first <= mine + 15) { /* else all of it comes after this warp's queries */
        const bool masked = first + KEYS - 1 > mine || first <= mine + 15 - s.sliding;
        float x[TILES][GROUP][4] = {};
        scores(x, q, read(keys + stage, lane / 16 * 8 + lane % 8, lane / 8 % 2));
        soften(x, sums, top, total, query, first, masked, s);
        weigh(sums, x, read(values + stage, lane % 16, lane / 16));
      }
      __syncthreads(); /* all are done with them before others come */
    }

#pragma unroll
    for (int r = 0; r < 2; r++) {
      total[r] += float_of_bits(shuffle_xor(bits_of_float(total[r]), 1));
      total[r] += float_of_bits(shuffle_xor(bits_of_float(total[r]), 2));
      const float factor = 1.0f / total[r];
      const int row = query - q0 + 8 * r;
      global<uint32_t> to = cast<uint32_t>(o.out + (q_at + row * q_row));
      if (q0 + row >= end) continue;
#pragma unroll
      for (int n = 0; n < WIDE * GROUP; n++) {
        const float(&v)[4] = sums[n / GROUP][n % GROUP];
        if (n * 8 + lane % 4 * 2 < s.head_dim)
          to[n * 4 + lane % 4] = pair(mul_rn(v[2 * r], factor), mul_rn(v[2 * r + 1], factor));
      }
    }
  }
};
} // namespace attend

/* out, q [m, heads*head_dim], k and v [m, kv_heads*head_dim]; m = sequences*length. A block to 64 queries of a head. */
#define ATTENTION_KERNEL(name, d, bf16) \
  extern "C" __global__ void __launch_bounds__(NB_ATTENTION_THREADS) \
      name(global<uint16_t> out, global<const uint16_t> q, global<const uint16_t> k, \
           global<const uint16_t> v, const __grid_constant__ nb_attention_shape s) { \
    attend::kernel<d, bf16>::run({out, q, k, v}, s); \
  }
ATTENTION_KERNEL(nb_attention_f16_32, 32, false)
ATTENTION_KERNEL(nb_attention_f16_64, 64, false)
ATTENTION_KERNEL(nb_attention_f16_96, 96, false)
ATTENTION_KERNEL(nb_attention_f16_128, 128, false)
ATTENTION_KERNEL(nb_attention_f16_192, 192, false)
ATTENTION_KERNEL(nb_attention_f16_256, 256, false)
ATTENTION_KERNEL(nb_attention_bf16_32, 32, true)
ATTENTION_KERNEL(nb_attention_bf16_64, 64, true)
ATTENTION_KERNEL(nb_attention_bf16_96, 96, true)
ATTENTION_KERNEL(nb_attention_bf16_128, 128, true)
ATTENTION_KERNEL(nb_attention_bf16_192, 192, true)
ATTENTION_KERNEL(nb_attention_bf16_256, 256, true)

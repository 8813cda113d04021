/* product_fp8.cu - y = x w^T of E4M3 codes with their scales, both as a checkpoint has them, row after row: by tensor,
 * token or channel, or by groups of 128 (SYSTEMS CTM-FP8-01, CTM-FP8-15).
 *
 * A block makes 32 columns of y; its warps take turns with steps of k and add their sums at the end. Codes go from memory
 * straight to registers: a lane has 16 of them side by side in each of its rows, and what it has of w and of x are the
 * same columns of k, so that any of them may be first in the tensor cores' order. They become f16, which has all of
 * them; w's rows are the tensor cores' a, tokens their b. Sums are f32.
 *
 *   lane 4g+t of w: row g (+ 8, 16, 24), bytes 16t to 16t + 15 of 64: in word s the k of step s at 2t, 2t+1, 2t+8, 2t+9
 *
 * What limits it: w's way from memory for few tokens (2 or 4 KiB of it a warp under way, 16 bytes a lane, each byte read
 * once); for many the tensor cores and x's way from the cache, which is read again for each 32 columns. */
#include "../numbers.cuh"
#include "product_fp8.h"

namespace fp8 {

enum { LANES = 32, COLUMNS = NB_FP8_COLUMNS, PITCH = NB_FP8_PITCH };
enum { W_ROWS = COLUMNS / 8 }; /* of a lane */

struct job {
  global<const uint4> x, w; /* 16 codes a piece */
  global<const float> x_scales, w_scales;
  global<const uint8_t> bias;
  global<uint8_t> y;
  nb_fp8_scales xs, ws;
  int m, n, pieces, dtype; /* pieces of a row */
};

NB_DEVICE int scale_place(const nb_fp8_scales &at, int row, int group) {
  return (row >> at.shift) * at.pitch + group * at.along;
}

/* Where a lane's rows of w and x begin, and their scales: x's are of tokens g + 8i, its scales, as y has them, of 2t + 8i
 * and the next. Rows beyond the last are the last once more: nobody looks at what comes of them. */
template <int TOKENS> struct rows {
  int w[W_ROWS], x[TOKENS], ws[W_ROWS], xs[TOKENS][2];

  NB_DEVICE rows(const job &j, int column, int token) {
    const int g = (int)threadIdx.x % LANES / 4, t = (int)threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < W_ROWS; i++) {
      const int row = smaller(column + g + 8 * i, j.n - 1);
      w[i] = row * j.pieces;
      ws[i] = scale_place(j.ws, row, 0);
    }
#pragma unroll
    for (int i = 0; i < TOKENS; i++) {
      x[i] = smaller(token + g + 8 * i, j.m - 1) * j.pieces;
      xs[i][0] = scale_place(j.xs, smaller(token + 2 * t + 8 * i, j.m - 1), 0);
      xs[i][1] = scale_place(j.xs, smaller(token + 2 * t + 1 + 8 * i, j.m - 1), 0);
    }
  }
};

/* A lane's codes of a step of 64 HALVES columns of k, and with GROUPS their scales. */
template <int TOKENS, int HALVES, bool GROUPS> struct step {
  uint4 w[HALVES][W_ROWS], x[HALVES][TOKENS];
  float ws[W_ROWS], xs[TOKENS][2];

  /* piece: this lane's first of a row; beyond the last there are zeros. */
  NB_DEVICE void load(const job &j, const rows<TOKENS> &at, int piece) {
#pragma unroll
    for (int h = 0; h < HALVES; h++) {
      const bool there = piece + 4 * h < j.pieces;
#pragma unroll
      for (int i = 0; i < W_ROWS; i++) {
        w[h][i] = make_uint4(0, 0, 0, 0);
        if (there) w[h][i] = j.w[at.w[i] + piece + 4 * h];
      }
#pragma unroll
      for (int i = 0; i < TOKENS; i++) {
        x[h][i] = make_uint4(0, 0, 0, 0);
        if (there) x[h][i] = j.x[at.x[i] + piece + 4 * h];
      }
    }
    if (!GROUPS || piece / 4 * 4 >= j.pieces) return; /* sums are of all four lanes' codes */
    const int group = piece / (NB_FP8_GROUP / 16);
#pragma unroll
    for (int i = 0; i < W_ROWS; i++) ws[i] = j.w_scales[at.ws[i] + group * j.ws.along];
#pragma unroll
    for (int i = 0; i < TOKENS * 2; i++)
      xs[i / 2][i % 2] = j.x_scales[at.xs[i / 2][i % 2] + group * j.xs.along];
  }

  static NB_DEVICE uint32_t word(const uint4 &v, int s) {
    return s == 0 ? v.x : s == 1 ? v.y : s == 2 ? v.z : v.w;
  }

  /* sums of rows g and g + 8 of the first and the last 16 columns, of tokens 2t and 2t + 1 of each 8. */
  NB_DEVICE void multiply(float (&sums)[2][TOKENS][4]) const {
#pragma unroll
    for (int h = 0; h < HALVES; h++)
#pragma unroll
      for (int s = 0; s < 4; s++) {
        uint32_t b[TOKENS][2];
#pragma unroll
        for (int i = 0; i < TOKENS; i++) {
          b[i][0] = f16_pair_of_e4m3(word(x[h][i], s));
          b[i][1] = f16_pair_of_e4m3(word(x[h][i], s) >> 16);
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
          const uint32_t upper = word(w[h][2 * half], s), lower = word(w[h][2 * half + 1], s);
          const uint32_t a[4] = {f16_pair_of_e4m3(upper), f16_pair_of_e4m3(lower),
                                 f16_pair_of_e4m3(upper >> 16), f16_pair_of_e4m3(lower >> 16)};
          mma_f16(sums[half], a, b);
        }
      }
  }

  NB_DEVICE void add(float (&sums)[2][TOKENS][4]) const {
    if (!GROUPS) {
      multiply(sums);
      return;
    }
    float part[2][TOKENS][4] = {};
    multiply(part);
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
      for (int i = 0; i < TOKENS; i++)
#pragma unroll
        for (int c = 0; c < 4; c++)
          sums[half][i][c] += part[half][i][c] * xs[i][c % 2] * ws[2 * half + c / 2];
  }
};

/* The warps' sums, added in their order, with what scales and bias there still are -> y. */
template <int TOKENS, bool GROUPS>
NB_DEVICE void finish(const job &j, const float (&sums)[2][TOKENS][4], int first_column, int first_row) {
  const int tid = (int)threadIdx.x, lane = tid % LANES, rows = 8 * TOKENS;
  shared<float> all = cast<float>(shared_words()), mine = all + tid / LANES * rows * PITCH;
#pragma unroll
  for (int half = 0; half < 2; half++)
#pragma unroll
    for (int i = 0; i < TOKENS; i++)
#pragma unroll
      for (int c = 0; c < 4; c++)
        mine[(8 * i + lane % 4 * 2 + c % 2) * PITCH + half * 16 + c / 2 * 8 + lane / 4] = sums[half][i][c];
  __syncthreads();
  for (int i = tid; i < rows * COLUMNS; i += (int)blockDim.x) {
    const int row = first_row + i / COLUMNS, column = first_column + i % COLUMNS;
    if (row >= j.m || column >= j.n) continue;
    float sum = 0;
    for (int warp = 0; warp < (int)blockDim.x / LANES; warp++)
      sum += all[(warp * rows + i / COLUMNS) * PITCH + i % COLUMNS];
    if (!GROUPS) sum = sum * j.x_scales[scale_place(j.xs, row, 0)] * j.w_scales[scale_place(j.ws, column, 0)];
    if (j.bias) sum += load_float(j.bias, column, j.dtype);
    store_float(j.y, (int64_t)row * j.n + column, sum, j.dtype);
  }
}

template <int TOKENS, bool GROUPS> NB_DEVICE void run(const job &j) {
  constexpr int HALVES = TOKENS <= 2 ? 2 : 1, STEP = 4 * HALVES;
  const int first_column = (int)blockIdx.x * COLUMNS, first_row = (int)blockIdx.y * 8 * TOKENS,
            warp = (int)threadIdx.x / LANES, round = STEP * ((int)blockDim.x / LANES);
  const rows<TOKENS> at(j, first_column, first_row);
  float sums[2][TOKENS][4] = {};
  step<TOKENS, HALVES, GROUPS> now, next;
  int first = warp * STEP, piece = first + (int)threadIdx.x % 4;
  next.load(j, at, piece);
#pragma unroll 1
  for (; first < j.pieces; first += round) {
    now = next;
    piece += round;
    next.load(j, at, piece); /* on its way meanwhile */
    now.add(sums);
  }
  finish<TOKENS, GROUPS>(j, sums, first_column, first_row);
}

} // namespace fp8

/* x codes [m,k], w codes [n,k], their scales where xs and ws say, bias [n] or null and y [m,n] of dtype
 * (NB_KERNEL_F32, …). blockIdx.x has 32 columns of y, blockIdx.y 8 TOKENS rows. k is a multiple of 16, which x and w are
 * aligned to. GROUPS: either's scales go along k. A block has nb_fp8_most_warps(TOKENS, GROUPS) warps at most. Shared
 * memory: nb_fp8_shared(8 TOKENS, warps). */
#define NB_FP8(NAME, TOKENS, GROUPS) \
  extern "C" __global__ void __launch_bounds__(nb_fp8_most_warps(TOKENS, GROUPS) * 32) \
      NAME(global<const uint4> x, global<const uint4> w, global<const float> x_scales, \
           global<const float> w_scales, global<const uint8_t> bias, global<uint8_t> y, nb_fp8_scales xs, \
           nb_fp8_scales ws, int m, int n, int k, int dtype) { \
    fp8::run<TOKENS, GROUPS>({x, w, x_scales, w_scales, bias, y, xs, ws, m, n, k / 16, dtype}); \
  }

/* Scales in the order that cuBLASLt takes, to[row * down + group * across] = the scale of row and group; a thread to each. */
extern "C" __global__ void nb_fp8_scales_order(global<const float> scales, nb_fp8_scales at, global<float> to,
                                               int rows, int groups, int down, int across) {
  for (int i = (int)(blockIdx.x * blockDim.x + threadIdx.x); i < rows * groups;
       i += (int)(gridDim.x * blockDim.x)) {
    const int row = i % rows, group = i / rows;
    to[row * down + group * across] = scales[fp8::scale_place(at, row, group)];
  }
}

NB_FP8(nb_fp8_m8, 1, false)
NB_FP8(nb_fp8_m16, 2, false)
NB_FP8(nb_fp8_m64, 8, false)
NB_FP8(nb_fp8_groups_m8, 1, true)
NB_FP8(nb_fp8_groups_m16, 2, true)
NB_FP8(nb_fp8_groups_m32, 4, true)

/* permute.cu - Marlin's order of scales, bias and zero-points along n: what core/layout/marlin_scales.c
 * does on the CPU (its comment shows the order; 16-bit activations). All experts are one long row of
 * blocks. A thread makes an element, in a launch of any size: these are a hundredth of the weights. */
#include "../ptx.cuh"

enum { GROUPED = 64, SINGLE = 32 };

/* The element of its block that place p holds. */
NB_DEVICE int grouped_source(int p) { return p / 8 + 8 * (p % 8); }
NB_DEVICE int single_source(int p) { return 2 * (p / 8) + p % 2 + 8 * (p % 8 / 2); }

NB_DEVICE int64_t first_element() { return (int64_t)blockIdx.x * blockDim.x + threadIdx.x; }
NB_DEVICE int64_t step() { return (int64_t)gridDim.x * blockDim.x; }

/* in -> out, `count` elements of 16 bits, a multiple of the block: grouped 1: of 64, the scales of groups;
 * 0: of 32, one scale to a column, and bias. */
extern "C" __global__ void nb_permute_scales(global<const uint16_t> in, global<uint16_t> out, int64_t count,
                                             int grouped) {
  const int block = grouped ? GROUPED : SINGLE;
  for (int64_t i = first_element(); i < count; i += step()) {
    int p = (int)(i % block);
    out[i] = in[i - p + (grouped ? grouped_source(p) : single_source(p))];
  }
}

template <int BITS>
NB_DEVICE void zero_points(global<const uint32_t> in, global<uint32_t> out, int64_t count, int awq) {
  constexpr int PF = 32 / BITS, WORDS = GROUPED / PF;
  for (int64_t i = first_element(); i < count; i += step()) {
    int w = (int)(i % WORDS);
    uint32_t word = 0;
#pragma unroll
    for (int u = 0; u < PF; u++) {
      int column = grouped_source(w * PF + u / (PF / 2) + u % (PF / 2) * 2), x = column % PF;
      int slot = awq ? x / 2 + x % 2 * (PF / 2) : x;
      uint32_t from = in[i - w + column / PF];
      word |= (from >> (slot * BITS) & ((1u << BITS) - 1)) << (u * BITS);
    }
    out[i] = word;
  }
}

/* Words of zero-points along n -> `count` words for Marlin. awq 1: even columns first, as AWQ packs them; 0: in
 * their order. n a multiple of 64. */
extern "C" __global__ void nb_permute_zero_points(global<const uint32_t> in, global<uint32_t> out,
                                                  int64_t count, int bits, int awq) {
  if (bits == 4) zero_points<4>(in, out, count, awq);
  else zero_points<8>(in, out, count, awq);
}

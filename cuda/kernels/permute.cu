/* permute.cu - elements in another order within each block of 64: Marlin's scales, bias and zero-points along n, as
 * core/layout/marlin_scales.c makes them on the CPU, which also says the order. All rows of all experts are one
 * long row of blocks, in one launch.
 *
 * A warp takes 512 bytes, then those `warps` further on, which it asks for before it works on the ones it has. They
 * go through shared memory, where each lane picks the elements of 16 bytes of the result. Memory limits it: each byte
 * is read and written once, 1 KiB is under way for each warp. */
#include "../ptx.cuh"
#include "permute.h"

namespace permute_kernels {
enum { LANES = 32, CHUNK_WORDS = 128 };

/* Where word w of a warp's 128 lies: each 32 in another order, so that lanes that write or pick one after the other
 * find different banks, for every element size and order that Marlin has (the specs count). */
NB_DEVICE int place(int w) {
  int row = w / 32;
  return w ^ (row * 10 + row / 2);
}

/* Elements of IN bits become such of OUT bits; more than fits into OUT sets *wrong, where that is given. units: of 16
 * bytes, of the source, whole blocks of it. */
template <int IN, int OUT, class T>
NB_DEVICE void run(global<const uint4> in, global<uint4> out, int64_t units, const nb_permutation &order,
                   global<int> wrong) {
  constexpr int ELEMENTS = 128 / OUT, TO_LANES = LANES * OUT / IN;
  const int lane = (int)threadIdx.x % LANES, warp = (int)threadIdx.x / LANES;
  shared<uint32_t> stage = shared_words() + warp * CHUNK_WORDS;
  shared<const T> elements = cast<const T>(stage);

  /* Of this lane's elements: where each lies, in elements of T, and for 4 bits which half it is. */
  int at[ELEMENTS];
#pragma unroll
  for (int e = 0; e < ELEMENTS; e++) {
    int p = lane % TO_LANES * ELEMENTS + e;
    int bit = (p / NB_PERMUTE_BLOCK * NB_PERMUTE_BLOCK + order.from[p % NB_PERMUTE_BLOCK]) * IN;
    at[e] = (place(bit / 32) * 32 + bit % 32) / IN;
  }

  const int64_t chunks = (units + LANES - 1) / LANES, step = (int64_t)gridDim.x * NB_PERMUTE_WARPS;
  int64_t chunk = (int64_t)blockIdx.x * NB_PERMUTE_WARPS + warp;
  uint4 next = make_uint4(0, 0, 0, 0);
  if (chunk * LANES + lane < units) next = in[chunk * LANES + lane];
  uint32_t seen = 0;
#pragma unroll 1
  for (; chunk < chunks; chunk += step) {
    const uint4 now = next;
    if ((chunk + step) * LANES + lane < units) next = in[(chunk + step) * LANES + lane];
    stage[place(4 * lane)] = now.x;
    stage[place(4 * lane + 1)] = now.y;
    stage[place(4 * lane + 2)] = now.z;
    stage[place(4 * lane + 3)] = now.w;
    __syncwarp();
    if (lane < TO_LANES && (chunk * LANES + lane * IN / OUT) < units) {
      uint32_t w[4] = {0, 0, 0, 0};
#pragma unroll
      for (int e = 0; e < ELEMENTS; e++) {
        uint32_t v = elements[IN == 4 ? at[e] / 2 : at[e]];
        if (IN == 4) v = v >> (at[e] % 2 * 4) & 15;
        seen |= v;
        w[e * OUT / 32] |= v << (e * OUT % 32);
      }
      out[chunk * TO_LANES + lane] = make_uint4(w[0], w[1], w[2], w[3]);
    }
    __syncwarp(); /* all have picked theirs before the next ones come */
  }
  if constexpr (IN > OUT)
    if (seen >> OUT) wrong[0] = 1;
}
} // namespace permute_kernels

/* in -> out, of as many bytes: elements of 4, 8, 16 and 32 bits. */
extern "C" __global__ void __launch_bounds__(NB_PERMUTE_WARPS * 32, NB_PERMUTE_BLOCKS_4)
    nb_permute_4(global<const uint4> in, global<uint4> out, int64_t units,
                 const __grid_constant__ nb_permutation order) {
  permute_kernels::run<4, 4, uint8_t>(in, out, units, order, {});
}
extern "C" __global__ void __launch_bounds__(NB_PERMUTE_WARPS * 32, NB_PERMUTE_BLOCKS)
    nb_permute_8(global<const uint4> in, global<uint4> out, int64_t units,
                 const __grid_constant__ nb_permutation order) {
  permute_kernels::run<8, 8, uint8_t>(in, out, units, order, {});
}
extern "C" __global__ void __launch_bounds__(NB_PERMUTE_WARPS * 32, NB_PERMUTE_BLOCKS)
    nb_permute_16(global<const uint4> in, global<uint4> out, int64_t units,
                  const __grid_constant__ nb_permutation order) {
  permute_kernels::run<16, 16, uint16_t>(in, out, units, order, {});
}
extern "C" __global__ void __launch_bounds__(NB_PERMUTE_WARPS * 32, NB_PERMUTE_BLOCKS)
    nb_permute_32(global<const uint4> in, global<uint4> out, int64_t units,
                  const __grid_constant__ nb_permutation order) {
  permute_kernels::run<32, 32, uint32_t>(in, out, units, order, {});
}

/* Codes, one to a byte, to 4 bits; one beyond 15 sets *wrong, which was 0. */
extern "C" __global__ void __launch_bounds__(NB_PERMUTE_WARPS * 32, NB_PERMUTE_BLOCKS_4)
    nb_permute_codes(global<const uint4> in, global<uint4> out, int64_t units,
                     const __grid_constant__ nb_permutation order, global<int> wrong) {
  permute_kernels::run<8, 4, uint8_t>(in, out, units, order, wrong);
}

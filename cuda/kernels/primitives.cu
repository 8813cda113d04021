/* primitives.cu - ptx.cuh's primitives one by one: scripts/gpu-check holds a GPU's results to the emulator's, which is blind to
 * assembly text, fences and what nvcc makes of them. Nothing else launches these. */
#include "../ptx.cuh"

/* Primitives of numbers, by their place in this list; gpu-check's list of names is the same one. */
enum { FLOAT_OF_F16, FLOAT_OF_BF16, F16_PAIR, BF16_PAIR };

NB_DEVICE uint32_t number(int which, uint32_t a, uint32_t b, uint32_t c) {
  (void)c;
  switch (which) {
  case FLOAT_OF_F16: return bits_of_float(float_of_f16((uint16_t)a));
  case FLOAT_OF_BF16: return bits_of_float(float_of_bf16((uint16_t)a));
  case F16_PAIR: return f16_pair(float_of_bits(a), float_of_bits(b));
  case BF16_PAIR: return bf16_pair(float_of_bits(a), float_of_bits(b));
  default: return 0;
  }
}

/* out[i]: the primitive of in[i], in[count + i] and in[2 count + i]. */
extern "C" __global__ void nb_primitive_numbers(global<const uint32_t> in, global<uint32_t> out, int count,
                                                int which) {
  for (int i = (int)(blockIdx.x * blockDim.x + threadIdx.x); i < count; i += (int)(gridDim.x * blockDim.x))
    out[i] = number(which, in[i], in[count + i], in[2 * count + i]);
}

/* A warp to a block: 32 rows of 16 bytes come to shared memory by cp_async, two groups of them, and go out as ldmatrix
 * deals them: word r of lane l to out[128 block + 4 l + r]. */
extern "C" __global__ void nb_primitive_tile(global<const uint32_t> in, global<uint32_t> out) {
  const int lane = (int)threadIdx.x, half = lane % 16;
  global<const uint32_t> from = in + blockIdx.x * 128;
  shared<uint32_t> tile = shared_words();
  if (lane < 16) cp_async16(tile + half * 4, from + half * 4);
  cp_async_commit();
  if (lane >= 16) cp_async16(tile + (16 + half) * 4, from + (16 + half) * 4);
  cp_async_commit();
  cp_async_wait<1>();
  cp_async_wait<0>();
  __syncwarp();
  uint32_t r[4];
  ldmatrix_x4(r, cast<const uint4>(tile) + lane);
  for (int i = 0; i < 4; i++) out[blockIdx.x * 128 + 4 * lane + i] = r[i];
}

/* The first threads of the blocks take turns: each adds in[block] to the sum that the one before it left. flag: 0 at
 * first. */
extern "C" __global__ void nb_primitive_turns(global<const uint32_t> in, global<uint32_t> out,
                                              global<int> flag) {
  const int block = (int)blockIdx.x;
  if (threadIdx.x) return;
  while (load_acquire(cast<const int>(flag)) != block) {}
  out[block] = in[block] + (block ? out[block - 1] : 0);
  add_release(flag, 1);
}

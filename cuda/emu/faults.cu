/* faults.cu - small kernels that do one thing wrong each, or nothing: what the emulator's
 * own specs run (spec/cuda_emu_spec.lua). Each is as wrong as its last argument says. */
#include "../ptx.cuh"

/* out[i] = in[i + shift] for every thread of the grid. */
extern "C" __global__ void emu_copy_shifted(global<const uint32_t> in, global<uint32_t> out, int shift) {
  int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
  out[i] = in[i + shift];
}

/* As 64-bit numbers that begin `words` 32-bit words late. */
extern "C" __global__ void emu_misaligned(global<const uint32_t> in, global<uint32_t> out, int words) {
  global<const uint64_t> wide = cast<const uint64_t>(in + words);
  out[threadIdx.x] = (uint32_t)wide[threadIdx.x];
}

/* A block reverses its words: with a barrier, without one, or without one after the read. */
extern "C" __global__ void emu_reverse(global<const uint32_t> in, global<uint32_t> out, int wrong) {
  shared<uint32_t> words = shared_words();
  int i = (int)threadIdx.x, n = (int)blockDim.x;
  for (int round = 0; round < 2; round++) {
    words[i] = in[i];
    if (wrong != 1) __syncthreads();
    out[i] = words[wrong == 3 ? n : n - 1 - i];
    if (wrong != 2) __syncthreads();
  }
}

/* Each lane adds its neighbour's number. wrong 1: with no meeting of the warp. */
extern "C" __global__ void emu_neighbour(global<uint32_t> out, int wrong) {
  shared<uint32_t> words = shared_words();
  int i = (int)threadIdx.x;
  words[i] = (uint32_t)i;
  if (wrong != 1) __syncwarp();
  out[i] = words[i] + words[i ^ 1];
}

/* 16 bytes a thread by way of cp.async. wrong 1: read without a wait; 2: with one group too
 * many under way; 3: with no barrier for what others brought; 4: ended without a wait. */
extern "C" __global__ void emu_copy_async(global<const uint32_t> in, global<uint32_t> out, int wrong) {
  shared<uint32_t> words = shared_words();
  int i = (int)threadIdx.x, n = (int)blockDim.x, from = (i + 33) % n;
  cp_async16(words + 4 * i, in + 4 * i);
  cp_async_commit();
  if (wrong == 4) return;
  if (wrong == 2) cp_async_wait<1>();
  else if (wrong != 1) cp_async_wait<0>();
  if (wrong != 3) __syncthreads();
  out[i] = words[4 * from];
  cp_async_wait<0>();
}

/* wrong 1: half of the block comes to the barrier; 2: half of a warp to __syncwarp;
 * 3: the halves of a warp to different meetings. */
extern "C" __global__ void emu_divergent(global<uint32_t> out, int wrong) {
  shared<uint32_t> words = shared_words();
  int i = (int)threadIdx.x;
  for (int j = 0; j < 4; j++) words[4 * i + j] = (uint32_t)i;
  __syncthreads();
  uint32_t r[4] = {0, 0, 0, 0};
  if (wrong != 1 || i < (int)blockDim.x / 2) __syncthreads();
  if (wrong == 2 && i % 32 < 16) __syncwarp();
  if (wrong == 3 && i % 32 < 16) __syncwarp();
  else if (wrong == 3) ldmatrix_x4(r, cast<const uint4>(words) + i);
  out[i] = r[0];
}

/* Blocks take turns by a flag. wrong 1: nobody passes it on. */
extern "C" __global__ void emu_turns(global<int> flag, global<uint32_t> out, int wrong) {
  if (threadIdx.x == 0)
    while (load_acquire(cast<const int>(flag)) != (int)blockIdx.x) {}
  __syncthreads();
  out[blockIdx.x] = blockIdx.x + 1;
  if (threadIdx.x == 0 && wrong != 1) add_release(flag, 1);
}

/* Lane i reads word i*stride of shared memory, all of which is written first. */
extern "C" __global__ void emu_strided(global<uint32_t> out, int stride) {
  shared<uint32_t> words = shared_words();
  int i = (int)threadIdx.x;
  for (int j = 0; j < stride; j++) words[j * 32 + i] = (uint32_t)i;
  __syncthreads();
  out[i] = words[i * stride];
}

/* A warp copies `rounds` times 32 words, and meets nowhere. */
extern "C" __global__ void emu_copy_rounds(global<const uint32_t> in, global<uint32_t> out, int rounds) {
  for (int i = (int)threadIdx.x; i < 32 * rounds; i += 32) out[i] = in[i];
}

/* requantize_fp8.cu - one FP8 scale for the shards of a fused weight that had their own: what core/layout/fp8.c does on the
 * CPU, bit for bit (SYSTEMS CTM-FP8-11). blockIdx.y is an expert's shard, blockIdx.z an expert. What limits it: memory, once
 * when a layer is loaded. */
#include "../numbers.cuh"
#include "requantize_fp8.h"

namespace requantize {

/* The product is rounded to f16, as the reference's tensors do; NaN becomes the largest number. */
NB_DEVICE uint32_t code_of(uint32_t code, float scale, float up) {
  const float v = mul_rn(rounded(mul_rn(e4m3_to_f32(code), scale), NB_KERNEL_F16), up);
  return e4m3_of(fmaxf(-448.0f, fminf(v, 448.0f)));
}

NB_DEVICE uint32_t word_of(uint32_t word, float scale, float up) {
  uint32_t out = 0;
#pragma unroll
  for (int i = 0; i < 32; i += 8) out |= code_of(word >> i & 0xff, scale, up) << i;
  return out;
}

} // namespace requantize

/* in, out [e,n,k] e4m3; scales f32 [e,shards], of which a last one that was never set (-FLT_MAX) leaves the expert as it is;
 * max f32 [e]: the largest. Shard i has the bytes from at.from[i] to at.from[i+1] of an expert's, in words of 4. */
extern "C" __global__ void nb_fp8_requantize(global<const uint32_t> in, global<uint32_t> out,
                                             global<const float> scales, global<float> max, nb_fp8_shards at,
                                             int shards) {
  const int e = (int)blockIdx.z, shard = (int)blockIdx.y;
  global<const float> own = scales + (int64_t)e * shards;
  float most = own[0];
  for (int i = 1; i < shards; i++) {
    const float s = own[i];
    most = s > most ? s : most;
  }
  const float scale = own[shard], last = own[shards - 1], up = 1 / most;
  const bool stays = shards < 2 || bits_of_float(last) == 0xff7fffffu || scale == most;
  const int64_t base = at.from[shards] / 4 * e;
  for (int64_t i = at.from[shard] / 4 + (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
       i < at.from[shard + 1] / 4; i += (int64_t)gridDim.x * blockDim.x) {
    const uint32_t word = in[base + i];
    out[base + i] = stays ? word : requantize::word_of(word, scale, up);
  }
  if (shard == 0 && blockIdx.x == 0 && threadIdx.x == 0) max[e] = most;
}

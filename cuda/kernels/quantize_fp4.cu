/* quantize_fp4.cu - activations to NVFP4 as the tensor cores take them: what core/layout/act_quant_fp4.c does on the CPU, bit
 * for bit. A thread has a group of 16: 32 or 64 bytes in, 8 bytes of codes and a scale, in its swizzled place, out.
 * What limits it: memory. */
#include "quantize.cuh"

namespace fp4 {

/* Where the scale of a row's group lies, of `wide` groups a row: blocks of 128 rows by 4 groups. */
NB_DEVICE int64_t swizzled(int row, int group, int wide) {
  return ((int64_t)(row / 128) * (wide / 4) + group / 4) * 512 + row % 32 * 16 + row % 128 / 32 * 4 +
         group % 4;
}

NB_DEVICE uint32_t code_of(float v) {
  const uint32_t code = e2m1::magnitude(v) - e2m1::REST;
  return v != 0 ? code | (bits_of_float(v) >> 28 & 8u) : code; /* no -0 but what rounds to it */
}

template <int DTYPE>
NB_DEVICE void quantize(global<const uint8_t> x, global<uint2> codes, global<uint8_t> scales, int m,
                        int groups, int wide, int64_t places, float by_global) {
  for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < places;
       i += (int64_t)gridDim.x * blockDim.x) {
    const int row = (int)(i / wide), group = (int)(i % wide);
    const int64_t to = swizzled(row, group, wide), from = (int64_t)row * groups + group;
    if (row >= m || group >= groups) {
      scales[to] = 0;
      continue;
    }
    eight<DTYPE> v[2];
    v[0].load(x, from * 16);
    v[1].load(x, from * 16 + 8);
    uint32_t most = 0;
#pragma unroll
    for (int j = 0; j < 16; j++) most = larger(most, magnitude_of(v[j / 8][j % 8]));
    const bool finite = most < 0x7f800000u;
    uint32_t scale = e4m3_of(smaller(mul_rn(float_of_bits(most) / 6, by_global), 448.0f));
    if (scale == 0) scale = 0x20;
    if (!finite) scale = 0x7f;
    const float by = e4m3_to_f32(scale) / by_global;
    uint32_t word[2] = {};
#pragma unroll
    for (int j = 0; j < 16; j++)
      word[j / 8] |= (finite && by > 0 ? code_of(v[j / 8][j % 8] / by) : 0u) << j % 8 * 4;
    codes[from] = make_uint2(word[0], word[1]);
    scales[to] = (uint8_t)scale;
  }
}

} // namespace fp4

/* x [m,16 groups], aligned to 16 bytes -> codes, a group to 8 bytes; scales [places]: of m rounded up to 128 rows, of
 * `wide`, which is groups rounded up to 4. */
#define FP4_KERNEL(name, dtype) \
  extern "C" __global__ void __launch_bounds__(NB_QUANTIZE_THREADS) \
      name(global<const uint8_t> x, global<uint2> codes, global<uint8_t> scales, int m, int groups, \
           int wide, int64_t places, float by_global) { \
    fp4::quantize<dtype>(x, codes, scales, m, groups, wide, places, by_global); \
  }
FP4_KERNEL(nb_quantize_fp4_f32, NB_KERNEL_F32)
FP4_KERNEL(nb_quantize_fp4_bf16, NB_KERNEL_BF16)
FP4_KERNEL(nb_quantize_fp4_f16, NB_KERNEL_F16)

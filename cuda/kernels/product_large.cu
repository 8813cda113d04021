/* product_large.cu - what the product of many rows needs beside cuBLASLt and dequantize_marlin.cu. */
#include "../ptx.cuh"

/* Bias in the order of its columns again, out of that of Marlin's one scale to a column (permute.cu): n a multiple of
 * 32, 16 bits each; a thread for each. */
extern "C" __global__ void nb_plain_bias(global<const uint16_t> in, global<uint16_t> out, int n) {
  const int i = (int)(blockIdx.x * blockDim.x + threadIdx.x), p = i % 32;
  if (i < n) out[i - p + 2 * (p / 8) + p % 2 + 8 * (p % 8 / 2)] = in[i];
}

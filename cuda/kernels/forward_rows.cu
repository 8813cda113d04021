/* forward_rows.cu - the forward pass's operations on rows: RMSNorm, rotary embedding, rows gathered, scaled and added up.
 * The processor's bytes (core/compute/norm.c, rope.c, elementwise.c); RMSNorm's sums are in double, but in another order,
 * which shows in one row of ten million.
 *
 * Memory limits them: 16 bytes at a time where rows allow it (plain.cuh). RMSNorm reads its row twice, the second time
 * from the nearest cache. */
#include "plain.cuh"

namespace rows_of {
using plain::EIGHT;

/* The sum over all lanes of a team: 32, or the whole block. */
NB_DEVICE double sum_of(double v, int lanes) {
#pragma unroll
  for (int m = 16; m; m /= 2) v += shuffle_xor_f64(v, m);
  if (lanes == 32) return v;
  shared<double> part = cast<double>(shared_words());
  if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = v;
  __syncthreads();
  double sum = 0;
  for (int i = 0; i < lanes / 32; i++) sum += part[i];
  return sum;
}
} // namespace rows_of

/* y = weight * x / sqrt(mean x^2 + eps) of rows of d; a team of 32 lanes or of the block a row. */
extern "C" __global__ void __launch_bounds__(NB_FORWARD_THREADS)
    nb_forward_norm(global<uint8_t> y, global<const uint8_t> x, global<const uint8_t> weight, int64_t rows,
                    int d, double eps, int y_dtype, int x_dtype, int lanes, int whole) {
  using rows_of::EIGHT;
  const int lane = (int)threadIdx.x % lanes;
  const int64_t row = (int64_t)blockIdx.x * (NB_FORWARD_THREADS / lanes) + (int)threadIdx.x / lanes;
  float v[EIGHT], w[EIGHT];
  double sum = 0;
  for (int i = lane * EIGHT; i < d && row < rows; i += lanes * EIGHT) {
    plain::load(v, x, row * d + i, smaller((int)EIGHT, d - i), x_dtype, whole);
#pragma unroll
    for (int j = 0; j < EIGHT; j++) sum += (double)v[j] * (double)v[j];
  }
  sum = rows_of::sum_of(sum, lanes);
  const float scale = (float)(1.0 / sqrt(sum / (double)d + eps));
  for (int i = lane * EIGHT; i < d && row < rows; i += lanes * EIGHT) {
    const int count = smaller((int)EIGHT, d - i);
    plain::load(v, x, row * d + i, count, x_dtype, whole);
    plain::load(w, weight, i, count, NB_KERNEL_F32, whole);
#pragma unroll
    for (int j = 0; j < EIGHT; j++) v[j] = mul_rn(w[j], mul_rn(v[j], scale));
    plain::store(y, v, row * d + i, count, y_dtype, whole);
  }
}

/* The halves of each of a row's heads turn together, in place; a block a row, which stands at position row % length. */
extern "C" __global__ void __launch_bounds__(NB_FORWARD_THREADS)
    nb_forward_rope(global<uint8_t> x, global<const uint8_t> cosines, global<const uint8_t> sines, int heads,
                    int half, int length, int dtype, int whole) {
  using rows_of::EIGHT;
  const int64_t row = blockIdx.x, angles = (int64_t)((int)blockIdx.x % length) * half;
  const int parts = (half + EIGHT - 1) / EIGHT;
  for (int i = (int)threadIdx.x; i < heads * parts; i += (int)blockDim.x) {
    const int head = i / parts, at = (i - head * parts) * EIGHT, count = smaller((int)EIGHT, half - at);
    const int64_t first = (row * heads + head) * 2 * half + at;
    float a[EIGHT], b[EIGHT], c[EIGHT], s[EIGHT];
    plain::load(a, cast<const uint8_t>(x), first, count, dtype, whole);
    plain::load(b, cast<const uint8_t>(x), first + half, count, dtype, whole);
    plain::load(c, cosines, angles + at, count, NB_KERNEL_F32, whole);
    plain::load(s, sines, angles + at, count, NB_KERNEL_F32, whole);
#pragma unroll
    for (int j = 0; j < EIGHT; j++) {
      const float p = a[j], q = b[j];
      a[j] = mul_rn(p, c[j]) - mul_rn(q, s[j]);
      b[j] = mul_rn(q, c[j]) + mul_rn(p, s[j]);
    }
    plain::store(x, a, first, count, dtype, whole);
    plain::store(x, b, first + half, count, dtype, whole);
  }
}

/* out[i] = table[ids[i]]; NaN where the table of `rows` rows has no such row. A block a row, blockIdx.y further along it. */
extern "C" __global__ void __launch_bounds__(NB_FORWARD_THREADS)
    nb_forward_gather(global<uint8_t> out, global<const uint8_t> table, global<const int> ids, int64_t rows,
                      int64_t d, int out_dtype, int table_dtype, int whole) {
  using rows_of::EIGHT;
  const int64_t row = blockIdx.x, id = ids[row];
  const bool known = id >= 0 && id < rows;
  const int64_t step = (int64_t)gridDim.y * blockDim.x * EIGHT;
  for (int64_t i = ((int64_t)blockIdx.y * blockDim.x + threadIdx.x) * EIGHT; i < d; i += step) {
    const int count = (int)smaller((int64_t)EIGHT, d - i);
    float v[EIGHT];
#pragma unroll
    for (int j = 0; j < EIGHT; j++) v[j] = float_of_bits(0x7fc00000u);
    if (known) plain::load<true>(v, table, id * d + i, count, table_dtype, whole);
    plain::store<true>(out, v, row * d + i, count, out_dtype, whole);
  }
}

/* x[i] *= weights[i], rounded to `rounding` before x's own dtype. */
extern "C" __global__ void __launch_bounds__(NB_FORWARD_THREADS)
    nb_forward_scale(global<uint8_t> x, global<const float> weights, int64_t d, int dtype, int rounding,
                     int whole) {
  using rows_of::EIGHT;
  const int64_t row = blockIdx.x, step = (int64_t)gridDim.y * blockDim.x * EIGHT;
  const float factor = weights[row];
  for (int64_t i = ((int64_t)blockIdx.y * blockDim.x + threadIdx.x) * EIGHT; i < d; i += step) {
    const int count = (int)smaller((int64_t)EIGHT, d - i);
    float v[EIGHT];
    plain::load(v, cast<const uint8_t>(x), row * d + i, count, dtype, whole);
#pragma unroll
    for (int j = 0; j < EIGHT; j++) v[j] = mul_rn(v[j], factor);
    plain::round(v, rounding);
    plain::store(x, v, row * d + i, count, dtype, whole);
  }
}

/* y f32 [rows,d][ids[i]] += weights[i] * x[i], the product rounded. ids don't descend: the first block of a run of equal ones
 * adds all of it, in order, so no two blocks meet. Ids outside are left out. weights: null for 1. */
extern "C" __global__ void __launch_bounds__(NB_FORWARD_THREADS)
    nb_forward_scatter(global<uint8_t> y, global<const uint8_t> x, global<const int> ids,
                       global<const float> weights, int m, int64_t rows, int64_t d, int dtype, int rounding,
                       int whole) {
  using rows_of::EIGHT;
  const int first = (int)blockIdx.x, id = ids[first];
  if (id < 0 || id >= rows) return;
  if (first > 0) {
    const int before = ids[first - 1];
    if (before == id) return;
  }
  const int64_t step = (int64_t)gridDim.y * blockDim.x * EIGHT;
  for (int64_t i = ((int64_t)blockIdx.y * blockDim.x + threadIdx.x) * EIGHT; i < d; i += step) {
    const int count = (int)smaller((int64_t)EIGHT, d - i);
    float sum[EIGHT], v[EIGHT];
    plain::load(sum, cast<const uint8_t>(y), id * d + i, count, NB_KERNEL_F32, whole);
    for (int row = first; row < m; row++) {
      const int here = ids[row];
      if (here != id) break;
      const float factor = weights ? (float)weights[row] : 1.0f;
      plain::load(v, x, row * d + i, count, dtype, whole);
#pragma unroll
      for (int j = 0; j < EIGHT; j++) v[j] = mul_rn(v[j], factor);
      plain::round(v, rounding);
#pragma unroll
      for (int j = 0; j < EIGHT; j++) sum[j] += v[j];
    }
    plain::store(y, sum, id * d + i, count, NB_KERNEL_F32, whole);
  }
}

/* marlin_numeric.cu - numbers as Marlin's kernels for 8-bit activations and 4-bit floats want them, as
 * core/layout/marlin_numeric.c makes them on the CPU: codes for fp8 arithmetic, int8 scales, NVFP4 and MX scales.
 *
 * Memory limits all of them: a thread takes 16 bytes, then those a grid further on; each byte is read once and
 * written once (int8 scales: read twice, because their largest must be known). */
#include "../numbers.cuh"
#include "marlin_numeric.h"

namespace numeric_kernels {
NB_DEVICE int64_t first() { return (int64_t)blockIdx.x * blockDim.x + threadIdx.x; }
NB_DEVICE int64_t step() { return (int64_t)gridDim.x * blockDim.x; }

/* to[i] = f(from[i]) for words, 16 bytes at a time; the last ones one by one. */
template <class F>
NB_DEVICE void each_word(global<const uint32_t> from, global<uint32_t> to, int64_t words, F f) {
  global<const uint4> from4 = cast<const uint4>(from);
  global<uint4> to4 = cast<uint4>(to);
  for (int64_t i = first(); i < words / 4; i += step()) {
    const uint4 v = from4[i];
    to4[i] = make_uint4(f(v.x), f(v.y), f(v.z), f(v.w));
  }
  for (int64_t i = words / 4 * 4 + first(); i < words; i += step()) to[i] = f((uint32_t)from[i]);
}

enum : uint32_t { LOW = 0x0f0f0f0fu, ONES = 0x01010101u };

/* Four nibbles, each in a byte: q - z, or 15 - q below z; and back: q, of c = q - z unless c + z is above 15. */
NB_DEVICE uint32_t fold(uint32_t q, uint32_t z) {
  uint32_t d = (q | 0x80808080u) - z, above = (d >> 7 & ONES) * 0xff;
  return ((d & above) | ((q ^ LOW) & ~above)) & LOW;
}
NB_DEVICE uint32_t unfold(uint32_t c, uint32_t z) {
  uint32_t sum = c + z, over = (sum >> 4 & ONES) * 0xff;
  return ((sum & ~over) | ((c ^ LOW) & over)) & LOW;
}
NB_DEVICE uint32_t fold_word(uint32_t w, uint32_t z, int inverse) {
  if (inverse) return unfold(w & LOW, z & LOW) | unfold(w >> 4 & LOW, z >> 4 & LOW) << 4;
  return fold(w & LOW, z & LOW) | fold(w >> 4 & LOW, z >> 4 & LOW) << 4;
}

/* Columns 0 2 1 3 of four bytes. */
NB_DEVICE uint32_t interleaved(uint32_t w) {
  return (w & 0xff0000ffu) | (w >> 8 & 0xff00u) | (w << 8 & 0xff0000u);
}

/* f16 bits, rounded. */
NB_DEVICE float through_f16(float f) { return float_of_f16((uint16_t)f16_pair(f, 0)); }

/* Bits 14 to 7 of the scale, times factor and 2^7 in f16. A NaN keeps the bits that the processor's conversions keep. */
NB_DEVICE uint32_t nvfp4_code(uint16_t s, int dtype, float factor) {
  float f = float_of_half(s, dtype);
  if (f != f) return 0xfcu | (dtype == NB_KERNEL_F16 ? s >> 7 & 3u : s >> 4 & 3u);
  float h = mul_rn(through_f16(mul_rn(through_f16(f), factor)), 128.0f);
  uint32_t bits = f16_pair(h, 0) & 0xffffu;
  return float_of_f16((uint16_t)bits) < 2.0f ? 0 : bits >> 7 & 0xffu;
}

/* The code of one int8 scale, as the bits of an int16; beyond it *wrong. */
NB_DEVICE uint32_t int8_code(uint16_t s, int dtype, float max, bool &wrong) {
  float ratio = rounded(float_of_half(s, dtype) / max, dtype);
  float code = rintf(rounded(mul_rn(ratio, 4096.0f), dtype));
  bool fits = fabsf(code) <= 32767.0f;
  wrong |= !fits;
  return (uint32_t)(fits ? (int)code : 0) & 0xffffu;
}
} // namespace numeric_kernels

/* Words of 4-bit codes [rows, columns] for fp8 activations; zeros: a row of words for each `per_zero` rows, columns a
 * multiple of 4; or null, 8 everywhere, and any columns. inverse: back to the codes. to may be from. */
extern "C" __global__ void __launch_bounds__(NB_NUMERIC_THREADS, NB_NUMERIC_BLOCKS)
    nb_marlin_fold(global<const uint32_t> from, global<const uint32_t> zeros, global<uint32_t> to,
                   unsigned rows, int64_t columns, unsigned per_zero, int inverse) {
  using namespace numeric_kernels;
  if (!zeros)
    return each_word(from, to, rows * columns,
                     [=](uint32_t w) { return fold_word(w, 0x88888888u, inverse); });
  /* Threads and blocks in x along a row, in y from row to row. */
  global<const uint4> from4 = cast<const uint4>(from), zeros4 = cast<const uint4>(zeros);
  global<uint4> to4 = cast<uint4>(to);
  const int64_t units = columns / 4;
  for (unsigned r = blockIdx.y * blockDim.y + threadIdx.y; r < rows; r += gridDim.y * blockDim.y) {
    const int64_t row = r * units, zero = r / per_zero * units;
    for (int64_t i = first(); i < units; i += step()) {
      const uint4 v = from4[row + i], z = zeros4[zero + i];
      to4[row + i] = make_uint4(fold_word(v.x, z.x, inverse), fold_word(v.y, z.y, inverse),
                                fold_word(v.z, z.z, inverse), fold_word(v.w, z.w, inverse));
    }
  }
}

/* MX scales, one to a byte, four to a word: columns 0 2 1 3 of each four; with a8 in place and 6 more, of which one that
 * is above 254 then sets *wrong, which was 0. */
extern "C" __global__ void __launch_bounds__(NB_NUMERIC_THREADS, NB_NUMERIC_BLOCKS)
    nb_marlin_mx(global<const uint32_t> from, global<uint32_t> to, int64_t words, int a8, global<int> wrong) {
  using namespace numeric_kernels;
  if (!a8) return each_word(from, to, words, [](uint32_t w) { return interleaved(w); });
  bool beyond = false;
  each_word(from, to, words, [&](uint32_t w) {
    uint32_t even = (w & 0x00ff00ffu) + 0x00070007u, odd = (w >> 8 & 0x00ff00ffu) + 0x00070007u;
    beyond |= ((even | odd) & 0x01000100u) != 0;
    return w + 0x06060606u;
  });
  if (beyond) wrong[0] = 1;
}

/* NVFP4 scales of f16 or bf16 to bytes, four at a time: from 8 bytes to 4. */
extern "C" __global__ void __launch_bounds__(NB_NUMERIC_THREADS, NB_NUMERIC_BLOCKS)
    nb_marlin_nvfp4(global<const uint64_t> from, global<uint32_t> to, int64_t words, int dtype,
                    float factor) {
  using namespace numeric_kernels;
  for (int64_t i = first(); i < words; i += step()) {
    const uint64_t four = from[i];
    uint32_t w = 0;
#pragma unroll
    for (int j = 0; j < 4; j++) w |= nvfp4_code((uint16_t)(four >> 16 * j), dtype, factor) << 8 * j;
    to[i] = interleaved(w);
  }
}

/* The largest of `count` numbers of f16 or bf16, and the largest magnitude: words of the range become those, where they
 * are larger. A multiple of 32 threads. */
extern "C" __global__ void __launch_bounds__(NB_NUMERIC_THREADS, NB_NUMERIC_BLOCKS)
    nb_marlin_max(global<const uint16_t> from, int64_t count, global<uint32_t> range) {
  using namespace numeric_kernels;
  global<const uint4> from4 = cast<const uint4>(from);
  uint32_t greatest = 0, widest = 0;
  auto look = [&](uint32_t h) {
    uint32_t size = h & 0x7fffu;
    greatest = larger(greatest, h & 0x8000u ? NB_NUMERIC_ZERO - size : NB_NUMERIC_ZERO + size);
    widest = larger(widest, size);
  };
  for (int64_t i = first(); i < count / 8; i += step()) {
    const uint4 v = from4[i];
    const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int j = 0; j < 4; j++) look(words[j] & 0xffffu), look(words[j] >> 16);
  }
  for (int64_t i = count / 8 * 8 + first(); i < count; i += step()) look((uint16_t)from[i]);
  for (int m = 16; m; m /= 2) {
    greatest = larger(greatest, shuffle_xor(greatest, m));
    widest = larger(widest, shuffle_xor(widest, m));
  }
  if (threadIdx.x % 32 == 0) {
    atomic_max(range, greatest);
    atomic_max(range + 1, widest);
  }
}

/* int8 scales of f16 or bf16, two to a word (the last word may hold one): round(s / max * 4096), each step rounded to
 * the dtype, as int16 bits; one beyond int16 sets *wrong, which was 0. */
extern "C" __global__ void __launch_bounds__(NB_NUMERIC_THREADS, NB_NUMERIC_BLOCKS)
    nb_marlin_int8(global<const uint16_t> from, global<uint16_t> to, int64_t count, int dtype, float max,
                   global<int> wrong) {
  using namespace numeric_kernels;
  bool beyond = false;
  each_word(cast<const uint32_t>(from), cast<uint32_t>(to), count / 2, [&](uint32_t w) {
    uint32_t low = int8_code((uint16_t)w, dtype, max, beyond);
    return low | int8_code((uint16_t)(w >> 16), dtype, max, beyond) << 16;
  });
  if (count % 2 && first() == 0) to[count - 1] = (uint16_t)int8_code(from[count - 1], dtype, max, beyond);
  if (beyond) wrong[0] = 1;
}

namespace numeric_kernels {
/* A thread moves 4 k of 4 rows that lie 32 apart: `E` (8 or 16 bits) side by side in the result. Of a warp two rows
 * side by side and 16 times 4 k, so that 32 bytes at least are read and written together. */
template <class E, class FOUR>
NB_DEVICE void swizzle(global<const E> from, global<uint4> to, int64_t matrices, int rows, int columns) {
  const int row_tiles = (rows + 127) / 128, column_tiles = (columns + 3) / 4,
            across = (column_tiles + 15) / 16;
  const bool whole = columns % 4 == 0;
  const int64_t per_matrix = (int64_t)row_tiles * 16 * across * 32;
  for (int64_t i = first(); i < matrices * per_matrix; i += step()) {
    const int64_t matrix = i / per_matrix;
    int rest = (int)(i % per_matrix);
    const int pair = rest % 2, lane_tile = rest / 2 % 16;
    rest /= 32;
    const int kt = rest % across * 16 + lane_tile, r = rest / across % 16 * 2 + pair, mt = rest / across / 16;
    if (kt >= column_tiles) continue;
    const int64_t to_unit = (((matrix * row_tiles + mt) * column_tiles + kt) * 32 + r) * (int)sizeof(E);
    FOUR four[4] = {0, 0, 0, 0};
#pragma unroll
    for (int q = 0; q < 4; q++) {
      const int row = mt * 128 + q * 32 + r;
      const int64_t at = (matrix * rows + row) * columns + kt * 4;
      if (row >= rows) continue;
      if (whole) four[q] = cast<const FOUR>(from)[at / 4];
      else
        for (int j = 0; j < 4 && kt * 4 + j < columns; j++)
          four[q] |= (FOUR)from[at + j] << (j * 8 * (int)sizeof(E));
    }
    if constexpr (sizeof(E) == 1) to[to_unit] = make_uint4(four[0], four[1], four[2], four[3]);
    else
      for (int h = 0; h < 2; h++)
        to[to_unit + h] = make_uint4((uint32_t)four[2 * h], (uint32_t)(four[2 * h] >> 32),
                                     (uint32_t)four[2 * h + 1], (uint32_t)(four[2 * h + 1] >> 32));
  }
}
} // namespace numeric_kernels

/* Block scales [matrices, rows, columns] of 1 or 2 bytes in the tensor cores' order, filled up to 128 x 4 with 0:
 * tiles of that size, in a tile 32 rows of 4 k of the 4 rows 32 apart. Fewer than 2^31 threads to a matrix. */
extern "C" __global__ void __launch_bounds__(NB_NUMERIC_THREADS, NB_NUMERIC_BLOCKS)
    nb_swizzle(global<const uint8_t> from, global<uint4> to, int64_t matrices, int rows, int columns,
               int bytes) {
  using namespace numeric_kernels;
  if (bytes == 1) swizzle<uint8_t, uint32_t>(from, to, matrices, rows, columns);
  else swizzle<uint16_t, uint64_t>(cast<const uint16_t>(from), to, matrices, rows, columns);
}

/* dequantize.cu - floats out of quantized weights whose codes lie row after row: bytes, compressed-tensors' words,
 * two e2m1 a byte, and plain floats in another dtype; and, an element at a time, out of any others.
 *
 * The fast kernel: 16 bytes of out are a piece. All threads together go down the weight, each by so many whole rows
 * that it stays in its columns: what depends on a column (its group) is found once. A warp writes 512 bytes
 * side by side and reads the 64 to 512 bytes of codes that they need, AHEAD rows before the first is written; an
 * int4 weight's traffic is four fifths writing, so the reads under way are enough without shared memory. What limits it:
 * the memory, by what is read and written once. */
#include "dequantize.cuh"

namespace dequantize {

/* BYTES of codes, loaded at once (32: in two halves). */
template <int BYTES> struct codes {
  uint32_t w[BYTES < 4 ? 1 : BYTES / 4];

  NB_DEVICE void load(global<const uint8_t> from, int64_t i) {
    if constexpr (BYTES == 2) w[0] = cast<const uint16_t>(from)[i];
    else if constexpr (BYTES == 4) w[0] = cast<const uint32_t>(from)[i];
    else if constexpr (BYTES == 8) {
      uint2 v = cast<const uint2>(from)[i];
      w[0] = v.x, w[1] = v.y;
    } else {
#pragma unroll
      for (int h = 0; h < BYTES / 16; h++) {
        uint4 v = cast<const uint4>(from)[i * (BYTES / 16) + h];
        w[4 * h] = v.x, w[4 * h + 1] = v.y, w[4 * h + 2] = v.z, w[4 * h + 3] = v.w;
      }
    }
  }
};

template <int CODES, int BITS, int PIECE, bool EACH> NB_DEVICE void rows(const weight &w) {
  constexpr int AHEAD = EACH ? 1 : 2;
  const int pieces = w.job.k / PIECE, me = (int)(blockIdx.x * blockDim.x + threadIdx.x), piece = me % pieces;
  const int64_t down = (int)(gridDim.x * blockDim.x) / pieces; /* rows that all threads take at once */
  if (me >= down * pieces) return;
  const columns<PIECE, EACH> at(w, piece * PIECE);
  for (int64_t row = me / pieces; row < w.job.n; row += AHEAD * down) {
    codes<BITS * PIECE / 8> c[AHEAD] = {};
    grid<CODES, PIECE, EACH> g[AHEAD] = {};
#pragma unroll
    for (int a = 0; a < AHEAD; a++) {
      if (row + a * down >= w.job.n) break;
      c[a].load(w.values, (row + a * down) * pieces + piece);
      g[a].load(w, at, row + a * down);
    }
#pragma unroll
    for (int a = 0; a < AHEAD; a++) {
      if (row + a * down >= w.job.n) break;
      float x[PIECE];
#pragma unroll
      for (int i = 0; i < PIECE; i++)
        x[i] = g[a].value(w, c[a].w[i * BITS / 32] >> (i * BITS % 32) & (0xffffffffu >> (32 - BITS)), i);
      store<PIECE>(w, (row + a * down) * pieces + piece, x);
    }
  }
}

template <int PIECE> NB_DEVICE void rows(const weight &w) {
  const int bits = w.job.bits;
  switch (w.job.codes) {
  case NB_CODES_INT:
    if (w.g_idx) bits == 4 ? rows<NB_CODES_INT, 4, PIECE, true>(w) : rows<NB_CODES_INT, 8, PIECE, true>(w);
    else bits == 4 ? rows<NB_CODES_INT, 4, PIECE, false>(w) : rows<NB_CODES_INT, 8, PIECE, false>(w);
    break;
  case NB_CODES_E2M1:
    bits == 4 ? rows<NB_CODES_E2M1, 4, PIECE, false>(w) : rows<NB_CODES_E2M1, 8, PIECE, false>(w);
    break;
  case NB_CODES_E4M3: rows<NB_CODES_E4M3, 8, PIECE, false>(w); break;
  default: bits == 16 ? rows<NB_CODES_PLAIN, 16, PIECE, false>(w) : rows<NB_CODES_PLAIN, 32, PIECE, false>(w);
  }
}

/* ---- an element at a time ----------------------------------------------------------- */

/* The bits of a code. Streams of bits run from each byte's lowest on, so a code of up to 8 bits lies in one byte or
 * two, whatever words they are part of. */
NB_DEVICE uint32_t code_at(const weight &w, int64_t row, int64_t column) {
  const int bits = w.job.bits;
  const int64_t width = w.job.width, bit = column * bits;
  if (bits == 32) return cast<const uint32_t>(w.values)[row * w.job.k + column];
  if (bits == 16) return cast<const uint16_t>(w.values)[row * w.job.k + column];
  int shift = (int)(bit % 8);
  int64_t byte, next;
  if (w.job.along == NB_ALONG_AWQ) {
    const int pf = 32 / bits, x = (int)(row % pf), slot = x / 2 + x % 2 * (pf / 2);
    shift = slot * bits % 8;
    byte = next = 4 * (column * width + row / pf) + slot * bits / 8;
  } else if (w.job.along == NB_ALONG_GPTQ) {
    byte = 4 * (bit / 32 * width + row) + bit % 32 / 8;
    next = 4 * ((bit + 8) / 32 * width + row) + (bit + 8) % 32 / 8;
  } else {
    byte = row * width + bit / 8;
    next = byte + 1;
  }
  uint32_t c = (uint32_t)w.values[byte] >> shift;
  if (shift + bits > 8) c |= (uint32_t)w.values[next] << (8 - shift);
  return c & (0xffu >> (8 - bits));
}

template <int CODES> NB_DEVICE float value_at(const weight &w, int64_t row, int column) {
  columns<1, false> at(w, column);
  if (w.g_idx) at.group[0] = w.g_idx[column];
  grid<CODES, 1, false> g;
  g.load(w, at, row);
  return g.value(w, code_at(w, row, column), 0);
}

NB_DEVICE float value_at(const weight &w, int64_t row, int column) {
  switch (w.job.codes) {
  case NB_CODES_INT: return value_at<NB_CODES_INT>(w, row, column);
  case NB_CODES_E2M1: return value_at<NB_CODES_E2M1>(w, row, column);
  case NB_CODES_E4M3: return value_at<NB_CODES_E4M3>(w, row, column);
  default: return value_at<NB_CODES_PLAIN>(w, row, column);
  }
}

} // namespace dequantize

/* out [n,k], 16-byte aligned as values is, of a weight whose codes are of 4, 8, 16 or 32 bits along the rows; k and
 * the groups' columns multiples of 8; with g_idx (entries below groups) int codes only. Any launch of whole warps
 * with at least k / 8 threads (k / 4 for float32). */
extern "C" __global__ void __launch_bounds__(NB_DEQUANTIZE_THREADS)
    nb_dequantize_rows(global<const uint8_t> values, global<const uint8_t> scales,
                       global<const uint8_t> zeros, global<const int32_t> g_idx, global<uint8_t> out,
                       nb_dequantize_job job) {
  const dequantize::weight w = {values, scales, zeros, g_idx, out, job};
  if (job.out == NB_KERNEL_F32) dequantize::rows<4>(w);
  else dequantize::rows<8>(w);
}

/* The same of any weight: whatever its bits, words, groups and sizes. Any launch. */
extern "C" __global__ void __launch_bounds__(NB_DEQUANTIZE_THREADS)
    nb_dequantize_any(global<const uint8_t> values, global<const uint8_t> scales, global<const uint8_t> zeros,
                      global<const int32_t> g_idx, global<uint8_t> out, nb_dequantize_job job) {
  const dequantize::weight w = {values, scales, zeros, g_idx, out, job};
  const int64_t threads = (int64_t)gridDim.x * blockDim.x;
  for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < (int64_t)job.n * job.k; i += threads) {
    float x = dequantize::value_at(w, i / job.k, (int)(i % job.k));
    if (job.out == NB_KERNEL_F32) cast<float>(out)[i] = x;
    else cast<uint16_t>(out)[i] = (uint16_t)(job.out == NB_KERNEL_BF16 ? bf16_pair(x, 0) : f16_pair(x, 0));
  }
}

/* plain.cuh - values of f32, bf16 and f16 by eights, as f32, for kernels that take any of these: 16 bytes at a time where
 * rows are whole eights on multiples of 16 bytes, else one by one. */
#ifndef NB_PLAIN_CUH
#define NB_PLAIN_CUH
#include "../exp.cuh"
#include "../numbers.cuh"
#include "forward.h"

namespace plain {
enum { EIGHT = NB_FORWARD_EIGHT };

/* One value; a NaN as the processor makes it, with EXACT. */
template <bool EXACT> NB_DEVICE float widened(uint16_t h, int dtype) {
  if (EXACT && dtype == NB_KERNEL_F16 && (h & 0x7fffu) > 0x7c00u)
    return float_of_bits((h & 0x8000u) << 16 | 0x7fc00000u | (h & 0x3ffu) << 13);
  return float_of_half(h, dtype);
}
template <bool EXACT> NB_DEVICE uint32_t narrowed(float lo, float hi, int dtype) {
  uint32_t u = dtype == NB_KERNEL_BF16 ? bf16_pair(lo, hi) : f16_pair(lo, hi);
  if (EXACT && (lo != lo || hi != hi)) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const uint32_t b = bits_of_float(i ? hi : lo), sign = b >> 16 & 0x8000u;
      const uint32_t nan = dtype == NB_KERNEL_BF16 ? b >> 16 | 0x40u : sign | 0x7e00u | (b >> 13 & 0x1ffu);
      if ((b & 0x7fffffffu) > 0x7f800000u) u = i ? (u & 0xffffu) | nan << 16 : (u & 0xffff0000u) | nan;
    }
  }
  return u;
}

/* v: `count` values from element `at` on, 0 for the others. whole: `at` is a multiple of 8 and so is what there is. */
template <bool EXACT = false>
NB_DEVICE void load(float (&v)[EIGHT], global<const uint8_t> from, int64_t at, int count, int dtype,
                    bool whole) {
  if (whole && dtype == NB_KERNEL_F32) {
    const uint4 a = cast<const uint4>(from)[at / 4], b = cast<const uint4>(from)[at / 4 + 1];
    v[0] = float_of_bits(a.x), v[1] = float_of_bits(a.y), v[2] = float_of_bits(a.z),
    v[3] = float_of_bits(a.w);
    v[4] = float_of_bits(b.x), v[5] = float_of_bits(b.y), v[6] = float_of_bits(b.z),
    v[7] = float_of_bits(b.w);
  } else if (whole) {
    const uint4 a = cast<const uint4>(from)[at / 8];
    const uint32_t w[4] = {a.x, a.y, a.z, a.w};
#pragma unroll
    for (int i = 0; i < EIGHT; i++) v[i] = widened<EXACT>((uint16_t)(w[i / 2] >> i % 2 * 16), dtype);
  } else {
#pragma unroll
    for (int i = 0; i < EIGHT; i++) {
      v[i] = 0;
      if (i >= count) continue;
      if (dtype == NB_KERNEL_F32) v[i] = cast<const float>(from)[at + i];
      else v[i] = widened<EXACT>(cast<const uint16_t>(from)[at + i], dtype);
    }
  }
}

template <bool EXACT = false>
NB_DEVICE void store(global<uint8_t> to, const float (&v)[EIGHT], int64_t at, int count, int dtype,
                     bool whole) {
  if (whole && dtype == NB_KERNEL_F32) {
    cast<uint4>(to)[at / 4] =
        make_uint4(bits_of_float(v[0]), bits_of_float(v[1]), bits_of_float(v[2]), bits_of_float(v[3]));
    cast<uint4>(to)[at / 4 + 1] =
        make_uint4(bits_of_float(v[4]), bits_of_float(v[5]), bits_of_float(v[6]), bits_of_float(v[7]));
  } else if (whole) {
    cast<uint4>(to)[at / 8] =
        make_uint4(narrowed<EXACT>(v[0], v[1], dtype), narrowed<EXACT>(v[2], v[3], dtype),
                   narrowed<EXACT>(v[4], v[5], dtype), narrowed<EXACT>(v[6], v[7], dtype));
  } else {
#pragma unroll
    for (int i = 0; i < EIGHT; i++) {
      if (i >= count) continue;
      if (dtype == NB_KERNEL_F32) cast<float>(to)[at + i] = v[i];
      else cast<uint16_t>(to)[at + i] = (uint16_t)narrowed<EXACT>(v[i], 0, dtype);
    }
  }
}

/* x rounded to the dtype and back. */
NB_DEVICE void round(float (&v)[EIGHT], int dtype) {
  if (dtype == NB_KERNEL_BF16) round_all<NB_KERNEL_BF16, EIGHT>(v);
  else if (dtype == NB_KERNEL_F16) round_all<NB_KERNEL_F16, EIGHT>(v);
}
} // namespace plain
#endif

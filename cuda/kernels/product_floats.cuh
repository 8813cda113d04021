/* product_floats.cuh - Marlin's words of 8- and 4-bit floats (e4m3, e2m1) to pairs of 16-bit floats for the tensor cores,
 * and the scales that go with them.
 *
 * A code's exponent and mantissa go to the lowest places of the 16-bit float's: the code's value over a power of two, UNIT,
 * subnormal codes too. What is left of it multiplies y; where float32 would end before (bf16's) weights are raised by
 * it first. Products of e2m1 and NVFP4's scales have 6 digits: there the weights are multiplied, exactly, because
 * sums would have to be every 16 rows. */
#ifndef NB_PRODUCT_FLOATS_CUH
#define NB_PRODUCT_FLOATS_CUH
#include "product_codes.cuh"

namespace product {

/* As codes<NUMBER, BITS>: decode(b, q), the four weights of a column, or of both of a word. */
template <class NUMBER> struct e4m3;
template <class NUMBER> struct e2m1;

template <> struct e4m3<f16> : floats<f16, 8> {
  static constexpr float UNIT = 0x1p8f;
  static NB_DEVICE void decode(uint32_t (&b)[2], uint32_t q) {
    b[0] = lop3<AND_OR>(q << 8, SIGNS, q << 7 & 0x3f803f80);
    b[1] = lop3<AND_OR>(q, SIGNS, q >> 1 & 0x3f803f80);
  }
};
template <> struct e4m3<bf16> : floats<bf16, 8> {
  static constexpr float UNIT = 0x1p120f;
  static NB_DEVICE void decode(uint32_t (&b)[2], uint32_t q) {
    b[0] = lop3<AND_OR>(q << 8, SIGNS, q << 4 & 0x07f007f0);
    b[1] = lop3<AND_OR>(q, SIGNS, q >> 4 & 0x07f007f0);
  }
};
/* A code fills a byte of an f16: two slots are made at once. */
template <> struct e2m1<f16> : floats<f16, 4> {
  static constexpr float UNIT = 0x1p14f;
  static NB_DEVICE void decode(uint32_t (&b)[2], uint32_t (&next)[2], uint32_t q) {
    const uint32_t even = lop3<AND_OR>(q << 4, 0x80808080, q << 1 & 0x0e0e0e0e),
                   odd = lop3<AND_OR>(q, 0x80808080, q >> 3 & 0x0e0e0e0e);
    b[0] = pick_bytes(even, 0, 0x2404);
    b[1] = pick_bytes(odd, 0, 0x2404);
    next[0] = even & 0xff00ff00;
    next[1] = odd & 0xff00ff00;
  }
};
template <> struct e2m1<bf16> : floats<bf16, 4> {
  static constexpr float UNIT = 0x1p126f;
  static NB_DEVICE void decode(uint32_t (&b)[2], uint32_t (&next)[2], uint32_t q) {
    b[0] = lop3<AND_OR>(q << 12, SIGNS, q << 6 & 0x01c001c0);
    b[1] = lop3<AND_OR>(q << 8, SIGNS, q << 2 & 0x01c001c0);
    next[0] = lop3<AND_OR>(q << 4, SIGNS, q >> 2 & 0x01c001c0);
    next[1] = lop3<AND_OR>(q, SIGNS, q >> 6 & 0x01c001c0);
  }
};

/* ---- scales, as plain_scales: of sums ------------------------------------------------ */

/* 16-bit floats times the unit of e4m3, as Marlin's kernels have them (SYSTEMS MRL-48). */
template <class NUMBER> struct fp8_scales;
template <> struct fp8_scales<f16> : plain_scales<f16> { static constexpr float HAVE = 0x1p8f; };
template <> struct fp8_scales<bf16> : plain_scales<bf16> {
  static NB_DEVICE uint32_t one() { return 0x7b807b80; }
  static NB_DEVICE float low(uint32_t pair) { return bf16::low(pair) * 0x1p-120f; }
  static NB_DEVICE float high(uint32_t pair) { return bf16::high(pair) * 0x1p-120f; }
};

/* E8M0 bytes, columns 0 2 1 3 of each 4: float32's exponents. */
struct e8m0_scales : scales<1> {
  static NB_DEVICE void four(float *to, uint32_t w) {
    to[0] = float_of_bits(w << 23 & 0x7f800000);
    to[2] = float_of_bits(w << 15 & 0x7f800000);
    to[1] = float_of_bits(w << 7 & 0x7f800000);
    to[3] = float_of_bits(w >> 1 & 0x7f800000);
  }
  static NB_DEVICE void load(float (&low)[8], float (&high)[8], shared<const uint4> row, int quarter) {
    const uint4 v = row[quarter];
    four(low, v.x), four(low + 4, v.y);
    four(high, v.z), four(high + 4, v.w);
  }
};

/* ---- scales of weights -------------------------------------------------------------- */

/* Bytes of nb_marlin_nvfp4_scales, columns 0 2 1 3 of each 4: bits 14 to 7 of an f16 of 2 or more, or 0. As a bf16 their
 * highest bit, there four times, is the exponent's: times HAVE, and infinity and NaN stay what they are. */
template <class NUMBER> struct nvfp4_scales : scales<1> {
  static constexpr bool OF_WEIGHTS = true, WIDE = NUMBER::WIDE;
  static constexpr float HAVE = WIDE ? 0x1p112f : 1;

  static NB_DEVICE uint32_t even(uint32_t w) {
    return WIDE ? pick_signs(w, 0, 0xa280) << 4 & 0x7ff07ff0 : w << 7 & 0x7f807f80;
  }
  static NB_DEVICE uint32_t odd(uint32_t w) {
    return WIDE ? pick_signs(w, 0, 0xb391) << 4 & 0x7ff07ff0 : w >> 1 & 0x7f807f80;
  }
  /* b: a lane's weights, of column lane/4 of each of 8 tiles of 8. */
  static NB_DEVICE void multiply(uint32_t (&b)[8][2], shared<const uint4> row, int column) {
    const uint2 w = cast<const uint2>(row)[column];
    const uint32_t pairs[4] = {even(w.x), odd(w.x), even(w.y), odd(w.y)};
#pragma unroll
    for (int t = 0; t < 8; t++) {
      const uint32_t both = pick_bytes(pairs[t / 2], 0, t % 2 ? 0x3232 : 0x1010);
      b[t][0] = NUMBER::fma(b[t][0], both, 0);
      b[t][1] = NUMBER::fma(b[t][1], both, 0);
    }
  }
};

} // namespace product
#endif

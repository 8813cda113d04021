/* product_a8_codes.cuh - Marlin's words for 8-bit activations to bytes that the tensor cores multiply, exactly.
 *
 * A word of 4 bits has four rows of a column in the low nibbles of its bytes and four, 16 further down, in the high
 * ones; of 8 bits four rows, and the next word has the others: what mma_s8 and mma_e4m3 take for b (core/layout/marlin.c).
 *
 * `minus` is what a column's zero-point is to decode; decode(b, q, minus): the column's eight weights in the words from q
 * on; UNIT: a weight is that many times its byte. */
#ifndef NB_PRODUCT_A8_CODES_CUH
#define NB_PRODUCT_A8_CODES_CUH
#include "../numbers.cuh"
#include "product_codes.cuh"

namespace product_a8 {

using product::AND_OR;
enum : uint32_t { LOW = 0x0f0f0f0f, ONES = 0x01010101, SIGNS = 0x80808080 };

/* What products are summed in: a sum of nothing, and the float that a sum is. Whole numbers below 2^22 begin at the bits
 * of 1.5 * 2^23, whose last bit is worth 1: the float comes by a subtraction, which is faster than a conversion. */
struct whole {
  typedef int32_t sum;
  static constexpr sum NOTHING = 0x4b400000;
  static constexpr bool WIDENED = false;
  static NB_DEVICE float number(sum s) { return float_of_bits((uint32_t)s) - 12582912.0f; }
  template <int N>
  static NB_DEVICE void mma(sum (&s)[N][4], const uint32_t (&a)[4], const uint32_t (&b)[N][2]) {
    mma_s8(s, a, b);
  }
};
struct small_floats {
  typedef float sum;
  static constexpr sum NOTHING = 0;
  static constexpr bool WIDENED = true;
  static NB_DEVICE float number(sum s) { return s; }
  template <int N>
  static NB_DEVICE void mma(sum (&s)[N][4], const uint32_t (&a)[4], const uint32_t (&b)[N][2]) {
    mma_e4m3(s, a, b);
  }
};

/* What words hold (product_codes.cuh), besides for y of NUMBER. */
template <class NUMBER, class SUMS_, int BITS> struct bytes_of : product::floats<NUMBER, BITS> {
  typedef SUMS_ SUMS;
  static constexpr float UNIT = 1;
};

/* code - zero-point; with 128 added none borrows from its neighbour. */
template <class NUMBER> struct int4 : bytes_of<NUMBER, whole, 4> {
  static constexpr uint32_t MIDDLE = 0x08080808;
  static NB_DEVICE uint32_t minus(uint32_t zero) { return zero * ONES; }
  static NB_DEVICE void decode(uint32_t (&b)[2], const uint32_t *q, uint32_t minus) {
    b[0] = (lop3<AND_OR>(q[0], LOW, SIGNS) - minus) ^ SIGNS;
    b[1] = (lop3<AND_OR>(q[0] >> 4, LOW, SIGNS) - minus) ^ SIGNS;
  }
};
template <class NUMBER> struct int8 : bytes_of<NUMBER, whole, 8> {
  static constexpr uint32_t MIDDLE = 0;
  static NB_DEVICE uint32_t minus(uint32_t) { return 0; }
  static NB_DEVICE void decode(uint32_t (&b)[2], const uint32_t *q, uint32_t) {
    b[0] = q[0] ^ SIGNS;
    b[1] = q[1] ^ SIGNS;
  }
};
/* nb_marlin_fp8_preprocess's codes (MRL-42, MRL-43): c is c, or 15 - c - zero where c + zero > 15; n of 0 to 16 as e4m3 is
 * n * 2^-9. minus: the zero-point. */
template <class NUMBER> struct folded4 : bytes_of<NUMBER, small_floats, 4> {
  static constexpr uint32_t MIDDLE = 8;
  static NB_DEVICE uint32_t minus(uint32_t zero) { return zero; }
  static NB_DEVICE uint32_t value(uint32_t c, uint32_t zero) {
    const uint32_t negative = (c + zero * ONES) >> 4 & ONES;
    return c + negative * (zero + 0x80 - 15);
  }
  static NB_DEVICE void decode(uint32_t (&b)[2], const uint32_t *q, uint32_t minus) {
    b[0] = value(q[0] & LOW, minus);
    b[1] = value(q[0] >> 4 & LOW, minus);
  }
};
template <class NUMBER> struct e4m3_8 : bytes_of<NUMBER, small_floats, 8> {
  static constexpr uint32_t MIDDLE = 0;
  static NB_DEVICE uint32_t minus(uint32_t) { return 0; }
  static NB_DEVICE void decode(uint32_t (&b)[2], const uint32_t *q, uint32_t) {
    b[0] = q[0];
    b[1] = q[1];
  }
};
/* A sign, two bits of exponent and one of mantissa to their places in e4m3, where a number is 2^-6 of itself. */
template <class NUMBER> struct e2m1_4 : bytes_of<NUMBER, small_floats, 4> {
  static constexpr uint32_t MIDDLE = 0, MAGNITUDES = 0x1c1c1c1c;
  static NB_DEVICE uint32_t minus(uint32_t) { return 0; }
  static NB_DEVICE void decode(uint32_t (&b)[2], const uint32_t *q, uint32_t) {
    b[0] = lop3<AND_OR>(q[0] << 4, SIGNS, q[0] << 2 & MAGNITUDES);
    b[1] = lop3<AND_OR>(q[0], SIGNS, q[0] >> 2 & MAGNITUDES);
  }
};

/* A lane's scales, of two neighbouring columns in each of the four tiles of 8 columns that make the 32 of that number, out
 * of a row in a stage; lane: its last two bits. Stored as NUMBER or, `whole`, as the int16 of nb_marlin_int8_scales. */
template <class NUMBER> struct scales16 : product::scales<2> {
  static NB_DEVICE void load(float (&low)[4], float (&high)[4], shared<const uint4> row, int number, int lane,
                             bool whole) {
    const uint4 v = row[number * 4 + lane];
    const uint32_t of[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int t = 0; t < 4; t++) {
      low[t] = whole ? (float)(int16_t)of[t] : NUMBER::low(of[t]);
      high[t] = whole ? (float)((int32_t)of[t] >> 16) : NUMBER::high(of[t]);
    }
  }
};
/* E8M0 bytes. */
struct scales8 : product::scales<1> {
  static NB_DEVICE void load(float (&low)[4], float (&high)[4], shared<const uint4> row, int number, int lane,
                             bool) {
    const uint2 v = cast<const uint2>(row)[number * 4 + lane];
#pragma unroll
    for (int t = 0; t < 4; t++) {
      const uint32_t of = (t < 2 ? v.x : v.y) >> t % 2 * 16;
      low[t] = e8m0_to_f32(of & 0xff);
      high[t] = e8m0_to_f32(of >> 8 & 0xff);
    }
  }
};

} // namespace product_a8
#endif

/* product_codes.cuh - Marlin's words to pairs of 16-bit floats, for the tensor cores: code - zero-point, exact.
 *
 * Codes become floats by putting them below the exponent of a number whose last bit is worth 1: 1024 + code in f16
 * (10 bits), 128 + code in bf16 (7 bits). `minus` is minus that number and the zero-point, and one fma takes it off.
 *
 * Slots of a word: a pair of rows 2t, 2t+1 of a column is in the slots at bit 0 and bit 16, the pair of rows 2t+8,
 * 2t+9 one slot higher. 4 bits: the next column (n + 8) is 8 bits further up; 8 bits: in the next word. A word of
 * zero-points has columns for rows: n and n + 8 at bit 0 and bit 16, and so on, slot by slot. */
#ifndef NB_PRODUCT_CODES_CUH
#define NB_PRODUCT_CODES_CUH
#include "../ptx.cuh"

namespace product {

/* a & b | c and a & b ^ c */
enum { AND_OR = 0xea, AND_XOR = 0x6a };
enum : uint32_t {
  F16_ONE = 0x3c003c00,
  F16_SIXTEENTH = 0x2c002c00,
  BF16_ONE = 0x3f803f80,
  SIGNS = 0x80008000
};

/* What 16-bit numbers are: pairs to floats and back, and the product. */
struct f16 {
  static constexpr bool WIDE = false; /* whether exponents are float32's */
  template <int N>
  static NB_DEVICE void mma(float (&s)[N][4], const uint32_t (&a)[4], const uint32_t (&b)[N][2]) {
    mma_f16(s, a, b);
  }
  static NB_DEVICE float low(uint32_t pair) { return float_of_f16((uint16_t)pair); }
  static NB_DEVICE float high(uint32_t pair) { return float_of_f16((uint16_t)(pair >> 16)); }
  static NB_DEVICE uint32_t pair(float low, float high) { return f16_pair(low, high); }
  static NB_DEVICE uint32_t fma(uint32_t a, uint32_t b, uint32_t c) { return fma_f16x2(a, b, c); }
};
struct bf16 {
  static constexpr bool WIDE = true;
  template <int N>
  static NB_DEVICE void mma(float (&s)[N][4], const uint32_t (&a)[4], const uint32_t (&b)[N][2]) {
    mma_bf16(s, a, b);
  }
  static NB_DEVICE float low(uint32_t pair) { return float_of_bits(pair << 16); }
  static NB_DEVICE float high(uint32_t pair) { return float_of_bits(pair & 0xffff0000u); }
  static NB_DEVICE uint32_t pair(float low, float high) { return bf16_pair(low, high); }
  static NB_DEVICE uint32_t fma(uint32_t a, uint32_t b, uint32_t c) { return fma_bf16x2(a, b, c); }
};

/* What words hold: codes less zero-points, or floats (product_floats.cuh) of UNIT times what decode gives. */
template <class NUMBER_, int BITS_> struct integers {
  typedef NUMBER_ NUMBER;
  static constexpr int BITS = BITS_;
  static constexpr bool INTEGERS = true;
  static constexpr float UNIT = 1;
};
template <class NUMBER_, int BITS_> struct floats {
  typedef NUMBER_ NUMBER;
  static constexpr int BITS = BITS_;
  static constexpr bool INTEGERS = false;
};

/* Scales of so many bytes: whether they multiply the weights, not their sums, and HAVE times what they are worth. */
template <int BYTES_> struct scales {
  static constexpr int BYTES = BYTES_;
  static constexpr bool OF_WEIGHTS = false;
  static constexpr float HAVE = 1;
};

/* 16-bit floats. */
template <class NUMBER> struct plain_scales : scales<2> {
  static NB_DEVICE uint32_t one() { return NUMBER::pair(1, 1); }
  static NB_DEVICE float low(uint32_t pair) { return NUMBER::low(pair); }
  static NB_DEVICE float high(uint32_t pair) { return NUMBER::high(pair); }
};
/* Of a lane's columns 2 quarter + {0, 1} of each of 8 tiles of 8, out of 64 columns' row. */
template <class SCALES>
NB_DEVICE void load_pairs(float (&low)[8], float (&high)[8], shared<const uint4> row, int quarter) {
  const uint4 l = row[quarter * 2], h = row[quarter * 2 + 1];
  const uint32_t l4[4] = {l.x, l.y, l.z, l.w}, h4[4] = {h.x, h.y, h.z, h.w};
#pragma unroll
  for (int t = 0; t < 8; t++) {
    low[t] = t % 2 ? SCALES::high(l4[t / 2]) : SCALES::low(l4[t / 2]);
    high[t] = t % 2 ? SCALES::high(h4[t / 2]) : SCALES::low(h4[t / 2]);
  }
}

/* codes<NUMBER, BITS>: SYMMETRIC, `minus` of zero-points in the middle; minus(z), of the two zero-points in slots 0
 * and BITS*.. of z, as a pair; decode(b, q, minus), the four weights of a column whose slots begin at bit 0 of q. */
template <class NUMBER, int BITS> struct codes;

template <> struct codes<f16, 4> : integers<f16, 4> {
  static constexpr uint32_t SYMMETRIC = 0xe408e408; /* -1032 */
  static NB_DEVICE uint32_t minus(uint32_t z) { return lop3<AND_OR>(z, 0x000f000f, 0xe400e400); }
  /* The higher slots give 1024 + 16 code: a sixteenth of it is 64 + code. */
  static NB_DEVICE void decode(uint32_t (&b)[2], uint32_t q, uint32_t minus) {
    b[0] = fma_f16x2(lop3<AND_OR>(q, 0x000f000f, 0x64006400), F16_ONE, minus);
    b[1] = fma_f16x2(lop3<AND_OR>(q, 0x00f000f0, 0x64006400), F16_SIXTEENTH,
                     fma_f16x2(minus, F16_ONE, 0x63806380)); /* + 960 */
  }
};
template <> struct codes<bf16, 4> : integers<bf16, 4> {
  static constexpr uint32_t SYMMETRIC = 0xc308c308; /* -136 */
  static NB_DEVICE uint32_t minus(uint32_t z) { return lop3<AND_OR>(z, 0x000f000f, 0xc300c300); }
  static NB_DEVICE void decode(uint32_t (&b)[2], uint32_t q, uint32_t minus) {
    b[0] = fma_bf16x2(lop3<AND_OR>(q, 0x000f000f, 0x43004300), BF16_ONE, minus);
    b[1] = fma_bf16x2(lop3<AND_OR>(q >> 4, 0x000f000f, 0x43004300), BF16_ONE, minus);
  }
};
template <> struct codes<f16, 8> : integers<f16, 8> {
  static constexpr uint32_t SYMMETRIC = 0xe480e480; /* -1152 */
  static NB_DEVICE uint32_t minus(uint32_t z) { return pick_bytes(z, 0xe4e4e4e4, 0x4240); }
  static NB_DEVICE void decode(uint32_t (&b)[2], uint32_t q, uint32_t minus) {
    b[0] = fma_f16x2(pick_bytes(q, 0x64646464, 0x4240), F16_ONE, minus);
    b[1] = fma_f16x2(pick_bytes(q, 0x64646464, 0x4341), F16_ONE, minus);
  }
};
/* Seven bits have room: 128 + them, less 256 or, where the eighth is set, less 128; then the zero-point, from 128. */
template <> struct codes<bf16, 8> : integers<bf16, 8> {
  static constexpr uint32_t SYMMETRIC = 0;
  static NB_DEVICE uint32_t centred(uint32_t q) {
    return fma_bf16x2(lop3<AND_OR>(q, 0x007f007f, 0x43004300), BF16_ONE,
                      lop3<AND_XOR>(q, 0x00800080, 0xc380c380));
  }
  static NB_DEVICE uint32_t minus(uint32_t z) { return centred(z) ^ SIGNS; }
  static NB_DEVICE void decode(uint32_t (&b)[2], uint32_t q, uint32_t minus) {
    b[0] = fma_bf16x2(centred(q), BF16_ONE, minus);
    b[1] = fma_bf16x2(centred(q >> 8), BF16_ONE, minus);
  }
};

} // namespace product
#endif

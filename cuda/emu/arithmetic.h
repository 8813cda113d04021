/* arithmetic.h - ptx.cuh's arithmetic on the host: bits and 16-bit floats, rounded as the hardware does. */
#ifndef NB_EMU_ARITHMETIC_H
#define NB_EMU_ARITHMETIC_H
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

template <int lut> uint32_t lop3(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t r = 0;
  for (int i = 0; i < 8; i++)
    if (lut >> i & 1) r |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
  return r;
}
inline uint32_t pick_bytes(uint32_t a, uint32_t b, uint32_t which) {
  uint64_t both = (uint64_t)b << 32 | a;
  uint32_t r = 0;
  for (int i = 0; i < 4; i++) r |= (uint32_t)(both >> (which >> 4 * i & 7) * 8 & 0xff) << 8 * i;
  return r;
}

/* ---- numbers ---------------------------------------------------------------------- */

inline float emu_float(uint32_t bits) {
  float f;
  memcpy(&f, &bits, sizeof f);
  return f;
}
inline float emu_of_bf16(uint16_t h) { return emu_float((uint32_t)h << 16); }
inline float emu_of_f16(uint16_t h) {
  uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = h & 0x7fff;
  if (rest >= 0x7c00) return emu_float(sign | 0x7f800000 | rest << 13);
  return emu_float(sign | rest << 13) * 0x1p112f; /* exact, of subnormals too */
}
typedef float emu_number(uint16_t);

/* d to nearest even in a float of `mantissa` bits whose smallest normal is 2^least and whose largest exponent is
 * -least + 1: sign, exponent and mantissa in 16 bits. */
inline uint16_t emu_round(double d, int mantissa, int least) {
  uint16_t sign = std::signbit(d) ? 0x8000 : 0, infinity = (uint16_t)((2 - 2 * least + 1) << mantissa);
  if (d != d) return 0x7fff; /* the hardware's NaN */
  d = std::fabs(d);
  if (d == 0) return sign;
  if (std::isinf(d)) return sign | infinity;
  int exponent = std::max(std::ilogb(d), least);
  double unit = std::ldexp(1.0, exponent - mantissa);
  int64_t units = std::llrint(d / unit); /* up to 2^(mantissa+1): a carry goes into the exponent */
  int64_t bits = ((int64_t)(exponent - least) << mantissa) + units;
  return (uint16_t)(sign | (bits < infinity ? bits : infinity));
}
inline uint16_t emu_to_f16(double d) { return emu_round(d, 10, -14); }
inline uint16_t emu_to_bf16(double d) { return emu_round(d, 7, -126); }

/* a * b + c in double whose last bit is set when it isn't exact, so that one more rounding is the only one. The
 * product of two numbers of 11 bits is exact. */
inline double emu_fma_odd(double a, double b, double c) {
  double p = a * b, s = p + c, up = s - p, error = (p - (s - up)) + (c - up);
  int64_t bits;
  memcpy(&bits, &s, sizeof bits);
  if (error == 0 || !std::isfinite(s) || bits & 1) return s;
  return std::nextafter(s, error > 0 ? INFINITY : -INFINITY);
}

template <emu_number NUMBER, uint16_t ROUND(double)>
uint32_t emu_fma2(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t r = 0;
  for (int s = 0; s < 32; s += 16)
    r |= (uint32_t)ROUND(emu_fma_odd(NUMBER((uint16_t)(a >> s)), NUMBER((uint16_t)(b >> s)),
                                     NUMBER((uint16_t)(c >> s))))
         << s;
  return r;
}
inline uint32_t fma_f16x2(uint32_t a, uint32_t b, uint32_t c) { return emu_fma2<emu_of_f16, emu_to_f16>(a, b, c); }
inline uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) {
  return emu_fma2<emu_of_bf16, emu_to_bf16>(a, b, c);
}
inline uint32_t pair_f16(float low, float high) { return (uint32_t)emu_to_f16(high) << 16 | emu_to_f16(low); }
inline uint32_t pair_bf16(float low, float high) { return (uint32_t)emu_to_bf16(high) << 16 | emu_to_bf16(low); }
template <int half> float half_f16(uint32_t pair) { return emu_of_f16((uint16_t)(pair >> 16 * half)); }
template <int half> float half_bf16(uint32_t pair) { return emu_of_bf16((uint16_t)(pair >> 16 * half)); }

#endif

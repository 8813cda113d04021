/* ptx.h - the primitives of ptx.cuh for the emulator: the same names, the same results. */
#ifndef NB_EMU_PTX_H
#define NB_EMU_PTX_H
#include <cmath>
#include <cstring>

#include "device.h"

#define NB_DEVICE inline

inline shared<uint32_t> shared_words() {
  emu_block *b = emu.current->block;
  return {(uint32_t *)b->shared.base, &b->shared};
}

inline float float_of_bits(uint32_t u) {
  float f;
  memcpy(&f, &u, sizeof f);
  return f;
}
inline uint32_t bits_of_float(float f) {
  uint32_t u;
  memcpy(&u, &f, sizeof u);
  return u;
}
inline float float_of_bf16(uint16_t h) { return float_of_bits((uint32_t)h << 16); }
inline float float_of_f16(uint16_t h) {
  uint32_t a = (uint32_t)(h & 0x7fff) << 13, sign = (uint32_t)(h & 0x8000) << 16;
  if (a > 0x0f800000) return float_of_bits(0x7fffffff);
  if (a == 0x0f800000) return float_of_bits(sign | 0x7f800000);
  return float_of_bits(sign | bits_of_float(float_of_bits(a) * 0x1p112f)); /* exact, subnormal ones too */
}
inline uint32_t bf16_of_float(float f) {
  uint32_t u = bits_of_float(f);
  return f != f ? 0x7fff : (u + 0x7fff + (u >> 16 & 1)) >> 16;
}
inline uint32_t f16_of_float(float f) {
  uint32_t u = bits_of_float(f), a = u & 0x7fffffff, sign = u >> 16 & 0x8000;
  if (f != f) return 0x7fff;
  if (a >= 0x477ff000) return sign | 0x7c00;
  if (a < 0x38800000) /* subnormal: the sum's last bit is worth 2^-24 */
    return sign | (bits_of_float(float_of_bits(a) + 0.5f) - 0x3f000000);
  return sign | ((a + 0xfff + (a >> 13 & 1) - 0x38000000) >> 13);
}
inline uint32_t bf16_pair(float lo, float hi) { return bf16_of_float(lo) | bf16_of_float(hi) << 16; }
inline uint32_t f16_pair(float lo, float hi) { return f16_of_float(lo) | f16_of_float(hi) << 16; }

template <class T, class U> void cp_async16(shared<T> to, global<const U> from) {
  emu_copy_begin((char *)to.p, to.region, (const char *)from.p, from.region);
}
template <class T, class U> void cp_async16_if(bool there, shared<T> to, global<const U> from) {
  emu_copy_begin((char *)to.p, to.region, there ? (const char *)from.p : nullptr, from.region);
}
template <class T, class U> void cp_async16_once(bool there, shared<T> to, global<const U> from, uint64_t) {
  cp_async16_if(there, to, from);
}
inline uint64_t stream_once() { return 0; }
inline void cp_async_commit() { emu_copy_commit(); }
template <int newest> void cp_async_wait() { emu_copy_wait(newest); }

struct emu_matrix_lane {
  uint32_t *r;
  uint4 row;
};
inline void ldmatrix_x4(uint32_t *r, shared<const uint4> row) {
  emu_matrix_lane me = {r, row[0]};
  emu_collective("ldmatrix", &me, [](void **all, int *) {
    auto lane = [&](int l) { return (emu_matrix_lane *)all[l]; };
    for (int l = 0; l < 32; l++)
      for (int m = 0; m < 4; m++) lane(l)->r[m] = (&lane(8 * m + l / 4)->row.x)[l % 4];
  });
}
inline void ldmatrix_x4_turned(uint32_t *r, shared<const uint4> row) {
  emu_matrix_lane me = {r, row[0]};
  emu_collective("ldmatrix, turned", &me, [](void **all, int *) {
    auto lane = [&](int l) { return (emu_matrix_lane *)all[l]; };
    for (int l = 0; l < 32; l++)
      for (int m = 0; m < 4; m++) {
        uint32_t half[2];
        for (int i = 0; i < 2; i++)
          half[i] = (&lane(8 * m + l % 4 * 2 + i)->row.x)[l / 4 / 2] >> l / 4 % 2 * 16 & 0xffff;
        lane(l)->r[m] = half[0] | half[1] << 16;
      }
  });
}

inline float exp2_near(float x) {
  float y = exp2f(x);
  return y < 0x1p-126f ? 0 : y;
}

inline double double_of_bits(uint64_t u) {
  double d;
  memcpy(&d, &u, sizeof d);
  return d;
}
inline uint64_t bits_of_double(double d) {
  uint64_t u;
  memcpy(&u, &d, sizeof u);
  return u;
}

inline float mul_rn(float a, float b) { return a * b; }
inline double mul_rn(double a, double b) { return a * b; }
inline float fma_rn(float a, float b, float c) { return fmaf(a, b, c); }

inline uint32_t max_s16x2(uint32_t a, uint32_t b) {
  int16_t low = (int16_t)a, high = (int16_t)(a >> 16), low_b = (int16_t)b, high_b = (int16_t)(b >> 16);
  return (uint16_t)(low > low_b ? low : low_b) | (uint32_t)(uint16_t)(high > high_b ? high : high_b) << 16;
}
inline uint32_t max_u16x2(uint32_t a, uint32_t b) {
  uint32_t low = a & 0xffff, high = a >> 16, low_b = b & 0xffff, high_b = b >> 16;
  return (low > low_b ? low : low_b) | (high > high_b ? high : high_b) << 16;
}

inline uint32_t shuffle_xor(uint32_t v, int mask) {
  struct lane {
    uint32_t v;
    int mask;
  } me = {v, mask};
  emu_collective("shuffle_xor", &me, [](void **all, int *) {
    uint32_t given[32];
    for (int l = 0; l < 32; l++) given[l] = ((lane *)all[l])->v;
    for (int l = 0; l < 32; l++) ((lane *)all[l])->v = given[l ^ ((lane *)all[l])->mask];
  });
  return me.v;
}
inline uint32_t shuffle_from(uint32_t v, int lane) {
  struct lane_of {
    uint32_t v;
    int from;
  } me = {v, lane};
  emu_collective("shuffle_from", &me, [](void **all, int *) {
    uint32_t given[32];
    for (int l = 0; l < 32; l++) given[l] = ((lane_of *)all[l])->v;
    for (int l = 0; l < 32; l++) ((lane_of *)all[l])->v = given[((lane_of *)all[l])->from & 31];
  });
  return me.v;
}
inline uint32_t match_any(uint32_t v) {
  emu_collective("match_any", &v, [](void **all, int *) {
    uint32_t same[32] = {0};
    for (int l = 0; l < 32; l++)
      for (int m = 0; m < 32; m++)
        if (*(uint32_t *)all[m] == *(uint32_t *)all[l]) same[l] |= 1u << m;
    for (int l = 0; l < 32; l++) *(uint32_t *)all[l] = same[l];
  });
  return v;
}
inline int count_ones(uint32_t v) { return __builtin_popcount(v); }
inline double shuffle_xor_f64(double v, int mask) {
  uint32_t half[2];
  memcpy(half, &v, sizeof v);
  half[0] = shuffle_xor(half[0], mask);
  half[1] = shuffle_xor(half[1], mask);
  memcpy(&v, half, sizeof v);
  return v;
}
template <class T> void atomic_max(global<T> at, typename std::remove_reference<T>::type v) {
  T old = at[0];
  if (v > old) at[0] = v;
}

inline int load_acquire(global<const int> flag) {
  emu_spin(flag.p);
  return flag[0];
}
inline void add_release(global<int> flag, int v) {
  emu.idle = 0;
  flag[0] = flag[0] + v;
}
inline int add_in_turn(global<int> count, int v) {
  emu.idle = 0;
  int old = count[0];
  count[0] = old + v;
  return old;
}
inline float4 load_far(global<const float4> p) { return p[0]; }

/* ---- arithmetic of pairs and the tensor cores ---- */

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
inline uint32_t pick_signs(uint32_t a, uint32_t b, uint32_t which) {
  uint32_t bytes = pick_bytes(a, b, which), signs = (bytes >> 7 & 0x01010101) * 255;
  for (int i = 0; i < 4; i++)
    if (which >> 4 * i & 8) bytes = (bytes & ~(0xffu << 8 * i)) | (signs & 0xffu << 8 * i);
  return bytes;
}

inline uint32_t f16_pair_of_e4m3(uint32_t c) {
  uint32_t r = 0;
  for (int s = 0; s < 2; s++) {
    uint32_t a = c >> 8 * s & 0x7f, sign = c >> 8 * s & 0x80;
    float v = a < 8 ? (float)a * 0x1p-9f : float_of_bits((a + (120u << 3)) << 20);
    r |= (a == 0x7f ? 0x7fffu : f16_of_float(v)) << 16 * s | sign << (8 + 16 * s);
  }
  return r;
}

/* a * b + c, inexact values with their last bit set: one more rounding, to fewer bits, rounds as if once. The
 * product of two numbers of 11 bits is exact in double. */
inline double emu_fma_odd(double a, double b, double c) {
  double p = a * b, s = p + c, up = s - p, error = (p - (s - up)) + (c - up);
  int64_t bits;
  memcpy(&bits, &s, sizeof bits);
  if (error == 0 || !std::isfinite(s) || bits & 1) return s;
  return std::nextafter(s, error > 0 ? INFINITY : -INFINITY);
}
/* The same for double to float: what is left is one rounding to 16 bits. */
inline float emu_float_odd(double d) {
  float f = (float)d;
  uint32_t u = bits_of_float(f);
  if ((double)f == d || d != d || std::isinf(f) || u & 1) return f;
  return std::nextafter(f, d > (double)f ? INFINITY : -INFINITY);
}
typedef float emu_number(uint16_t);
typedef uint32_t emu_rounding(float);
template <emu_number NUMBER, emu_rounding ROUND> uint32_t emu_fma2(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t r = 0;
  for (int s = 0; s < 32; s += 16) {
    double exact =
        emu_fma_odd(NUMBER((uint16_t)(a >> s)), NUMBER((uint16_t)(b >> s)), NUMBER((uint16_t)(c >> s)));
    r |= ROUND(emu_float_odd(exact)) << s;
  }
  return r;
}
inline uint32_t fma_f16x2(uint32_t a, uint32_t b, uint32_t c) {
  return emu_fma2<float_of_f16, f16_of_float>(a, b, c);
}
inline uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) {
  return emu_fma2<float_of_bf16, bf16_of_float>(a, b, c);
}

/* The numbers of a word, PER of them: two 16-bit floats, four bytes with signs, four e4m3. */
template <emu_number NUMBER> struct emu_pairs {
  static constexpr int PER = 2;
  typedef float sum;
  static sum get(uint32_t word, int i) { return NUMBER((uint16_t)(word >> 16 * i)); }
};
struct emu_s8 {
  static constexpr int PER = 4;
  typedef int32_t sum;
  static sum get(uint32_t word, int i) { return (int8_t)(word >> 8 * i); }
};
struct emu_e4m3 {
  static constexpr int PER = 4;
  typedef float sum;
  static sum get(uint32_t word, int i) {
    return float_of_f16((uint16_t)f16_pair_of_e4m3(word >> 8 * i & 0xff));
  }
};

/* One meeting of the warp for all N products. */
template <class NUMBERS, int N>
void emu_mma(typename NUMBERS::sum (&sums)[N][4], const uint32_t (&a)[4], const uint32_t (&b)[N][2]) {
  typedef typename NUMBERS::sum sum;
  static constexpr int PER = NUMBERS::PER, K = 8 * PER;
  struct lane {
    sum (*sums)[4];
    const uint32_t *a, (*b)[2];
  } me = {sums, a, b};
  emu_collective("mma", &me, [](void **all, int *) {
    sum left[16][K], right[K][8 * N], out[16][8 * N];
    for (int l = 0; l < 32; l++) {
      const lane &of = *(lane *)all[l];
      int g = l / 4, t = l % 4;
      for (int i = 0; i < 4; i++)
        for (int j = 0; j < PER; j++)
          left[g + i % 2 * 8][PER * t + i / 2 * 4 * PER + j] = NUMBERS::get(of.a[i], j);
      for (int n = 0; n < N; n++) {
        for (int i = 0; i < 2; i++)
          for (int j = 0; j < PER; j++)
            right[PER * t + 4 * PER * i + j][8 * n + g] = NUMBERS::get(of.b[n][i], j);
        for (int i = 0; i < 4; i++) out[g + i / 2 * 8][8 * n + 2 * t + i % 2] = of.sums[n][i];
      }
    }
    for (int row = 0; row < 16; row++)
      for (int k = 0; k < K; k++)
        for (int n = 0; n < 8 * N; n++) out[row][n] += left[row][k] * right[k][n];
    for (int l = 0; l < 32; l++)
      for (int n = 0; n < N; n++)
        for (int i = 0; i < 4; i++)
          ((lane *)all[l])->sums[n][i] = out[l / 4 + i / 2 * 8][8 * n + l % 4 * 2 + i % 2];
  });
}
template <int N> void mma_f16(float (&sums)[N][4], const uint32_t (&a)[4], const uint32_t (&b)[N][2]) {
  emu_mma<emu_pairs<float_of_f16>>(sums, a, b);
}
template <int N> void mma_bf16(float (&sums)[N][4], const uint32_t (&a)[4], const uint32_t (&b)[N][2]) {
  emu_mma<emu_pairs<float_of_bf16>>(sums, a, b);
}
template <int N> void mma_s8(int32_t (&sums)[N][4], const uint32_t (&a)[4], const uint32_t (&b)[N][2]) {
  emu_mma<emu_s8>(sums, a, b);
}
template <int N> void mma_e4m3(float (&sums)[N][4], const uint32_t (&a)[4], const uint32_t (&b)[N][2]) {
  emu_mma<emu_e4m3>(sums, a, b);
}

#endif

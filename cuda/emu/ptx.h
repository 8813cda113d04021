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
inline void cp_async_commit() { emu_copy_commit(); }
template <int newest> void cp_async_wait() { emu_copy_wait(newest); }

inline void ldmatrix_x4(uint32_t *r, shared<const uint4> row) {
  struct lane {
    uint32_t *r;
    uint4 row;
  } me = {r, row[0]};
  emu_collective("ldmatrix", &me, [](void **all, int *) {
    for (int l = 0; l < 32; l++)
      for (int m = 0; m < 4; m++) ((lane *)all[l])->r[m] = (&((lane *)all[8 * m + l / 4])->row.x)[l % 4];
  });
}

inline float mul_rn(float a, float b) { return a * b; }
inline float fma_rn(float a, float b, float c) { return fmaf(a, b, c); }

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

#endif

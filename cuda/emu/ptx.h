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

inline uint32_t bits_of(float f) {
  uint32_t u;
  memcpy(&u, &f, 4);
  return u;
}
inline float float_of(uint32_t u) {
  float f;
  memcpy(&f, &u, 4);
  return f;
}
inline float mul_rn(float a, float b) { return a * b; }
inline float fma_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float f16_to_f32(uint16_t h) {
  uint32_t u = (uint32_t)(h & 0x7fffu) << 13, sign = (uint32_t)(h & 0x8000u) << 16;
  if (u > 0x0f800000u) u |= 0x00400000u; /* NaN becomes quiet */
  if (u >= 0x0f800000u) return float_of(sign | 0x70000000u | u);
  return float_of(sign | bits_of(float_of(u) * 0x1p112f));
}
inline uint16_t f32_to_f16(float f) {
  uint32_t u = bits_of(f), a = u & 0x7fffffffu, sign = u >> 16 & 0x8000u;
  if (a > 0x7f800000u) return 0x7fff; /* a GPU's NaN */
  if (a >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u);
  if (a < 0x38800000u) return (uint16_t)(sign | (bits_of(float_of(a) + 0.5f) - 0x3f000000u));
  return (uint16_t)(sign | ((a + 0xfffu + (a >> 13 & 1u) - 0x38000000u) >> 13));
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

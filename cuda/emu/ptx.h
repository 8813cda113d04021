/* ptx.h - the primitives of ptx.cuh for the emulator: the same names, the same results. */
#ifndef NB_EMU_PTX_H
#define NB_EMU_PTX_H
#include "arithmetic.h"
#include "device.h"

#define NB_DEVICE inline

inline shared<uint32_t> shared_words() {
  emu_block *b = emu.current->block;
  return {(uint32_t *)b->shared.base, &b->shared};
}

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

inline int load_acquire(global<const int> flag) {
  emu_spin(flag.p);
  return flag[0];
}
inline void add_release(global<int> flag, int v) {
  emu.idle = 0;
  flag[0] = flag[0] + v;
}
inline int add_in_turn(global<int> count, int v) {
  int old = count[0];
  add_release(count, v);
  return old;
}
inline float4 load_far(global<const float4> p) { return p[0]; }

/* One meeting of the warp for all N products. */
template <emu_number NUMBER, int N>
void emu_mma(float (&sums)[N][4], const uint32_t (&a)[4], const uint32_t (&b)[N][2]) {
  struct lane {
    float (*sums)[4];
    const uint32_t *a, (*b)[2];
  } me = {sums, a, b};
  emu_collective("mma", &me, [](void **all, int *) {
    float left[16][16], right[16][8 * N], out[16][8 * N];
    auto split = [](uint32_t pair, float &low, float &high) {
      low = NUMBER((uint16_t)pair);
      high = NUMBER((uint16_t)(pair >> 16));
    };
    for (int l = 0; l < 32; l++) {
      const lane &of = *(lane *)all[l];
      int g = l / 4, t = l % 4;
      for (int i = 0; i < 4; i++) {
        float *at = &left[g + i % 2 * 8][2 * t + i / 2 * 8];
        split(of.a[i], at[0], at[1]);
      }
      for (int n = 0; n < N; n++) {
        for (int i = 0; i < 2; i++)
          split(of.b[n][i], right[2 * t + 8 * i][8 * n + g], right[2 * t + 8 * i + 1][8 * n + g]);
        for (int i = 0; i < 4; i++) out[g + i / 2 * 8][8 * n + 2 * t + i % 2] = of.sums[n][i];
      }
    }
    for (int row = 0; row < 16; row++)
      for (int k = 0; k < 16; k++)
        for (int n = 0; n < 8 * N; n++) out[row][n] += left[row][k] * right[k][n];
    for (int l = 0; l < 32; l++)
      for (int n = 0; n < N; n++)
        for (int i = 0; i < 4; i++)
          ((lane *)all[l])->sums[n][i] = out[l / 4 + i / 2 * 8][8 * n + l % 4 * 2 + i % 2];
  });
}
template <int N> void mma_f16(float (&sums)[N][4], const uint32_t (&a)[4], const uint32_t (&b)[N][2]) {
  emu_mma<emu_of_f16>(sums, a, b);
}
template <int N> void mma_bf16(float (&sums)[N][4], const uint32_t (&a)[4], const uint32_t (&b)[N][2]) {
  emu_mma<emu_of_bf16>(sums, a, b);
}

#endif

/* ptx.h - the primitives of ptx.cuh for the emulator: the same names, the same results. */
#ifndef NB_EMU_PTX_H
#define NB_EMU_PTX_H
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

inline int load_acquire(global<const int> flag) {
  emu_spin(flag.p);
  return flag[0];
}
inline void add_release(global<int> flag, int v) {
  emu.idle = 0;
  flag[0] = flag[0] + v;
}

#endif

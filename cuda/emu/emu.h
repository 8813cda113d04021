/* emu.h - CUDA kernels on the CPU, as seen by who launches them: the stand-in driver,
 * the registry of kernels and the specs. A kernel's sources are compiled by the host's
 * compiler against device.h; each CUDA thread is a fiber (emu.cpp), each access to
 * device memory is checked (memory.cpp).
 *
 * A kernel that does something wrong never ends the process: the launch stops and
 * emu_error() says what, which kernel, block and thread. */
#ifndef NB_EMU_H
#define NB_EMU_H
#include <cstddef>
#include <cstdint>
#include <functional>

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

extern "C" {
/* What a launch did. Bytes and sectors (32 bytes) of global memory; wavefronts of
 * shared memory beyond one to an access of a warp; what its threads met at. */
struct emu_counts {
  int64_t global_read, global_written, global_sectors, bank_conflicts, copies, barriers, collectives,
      switches;
};

/* A kernel by its name. args are addresses of the arguments, as cuLaunchKernel has them; bind
 * takes what they hold, and what it gives runs the launch, any number of times. It returns
 * when all is done or something failed: ask emu_error(). */
struct emu_kernel {
  const char *name;
  std::function<void()> (*bind)(dim3 grid, dim3 block, size_t shared, void **args);
};
const emu_kernel *emu_find(const char *name); /* nullptr: no such kernel */

/* What is wrong with the last launch, in one sentence; nullptr when nothing is. */
const char *emu_error(void);
/* The counts of the last launch. */
const emu_counts *emu_last_counts(void);
/* emu_find, bind, emu_error: for who has no dim3. */
const char *emu_run(const char *name, unsigned grid, unsigned across, unsigned block, size_t shared,
                    void **args);

/* The order in which threads run from now on. 0: each warp, first to last, as far as it
 * gets before the next one; 1: last to first, and so are its lanes and the blocks;
 * others: random, from this seed. NB_EMU_ORDER gives the first. */
void emu_set_order(unsigned order);

/* Device memory, 256-byte aligned, its bytes 0xff; nullptr: no memory. Kernels may
 * touch these bytes alone. */
void *emu_allocate(size_t bytes);
/* Gives it back: 0, or -1 where p isn't the begin of such memory. */
int emu_release(void *p);
/* Memory that the caller keeps: from now on device memory, and no longer so. */
void emu_own(void *p, size_t bytes);
void emu_disown(void *p);
}
#endif

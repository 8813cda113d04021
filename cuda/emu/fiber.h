/* fiber.h - what the emulator's own files share: blocks, threads as fibers, and how
 * they fail, wait and are counted. */
#ifndef NB_EMU_FIBER_H
#define NB_EMU_FIBER_H
#include <vector>

#include "emu.h"
#include "switch.h"

enum emu_space { EMU_GLOBAL, EMU_SHARED };
enum emu_state { EMU_READY, EMU_AT_BARRIER, EMU_IN_COLLECTIVE, EMU_SPINNING, EMU_DONE };

/* Bytes that a pointer may touch. */
struct emu_region {
  char *base;
  size_t bytes;
};

/* One access of one lane, after so many of its cp.async groups; those of a warp are counted together, emu_count_warp. */
struct emu_touch {
  uintptr_t address;
  uint8_t bytes, space, write;
  int committed;
};

struct emu_copy {
  char *to;
  const char *from;
  int group;
};

/* When a byte was touched: two accesses of the same block epoch are ordered only if one
 * warp made both, in different warp epochs, or one thread did. */
struct emu_stamp {
  int block_epoch, warp_epoch, thread;
};

/* A byte of shared memory: what it holds, who wrote it and who read it since. */
struct emu_shade {
  enum { NEVER, HERE, PENDING } holds;
  emu_stamp written, read;
  enum { NONE, LANES, WARPS } others; /* who else read it: lanes of that warp, other warps */
};

struct emu_block;
struct emu_fiber {
  emu_stack stack;
  emu_block *block;
  emu_state state;
  int index, committed; /* index: its number in the block; committed: cp.async groups */
  dim3 thread;
  std::vector<emu_copy> copies;
  std::vector<emu_touch> touches;
};

/* The lanes of a warp that wait for the others, each with its argument. */
struct emu_warp {
  int waiting, epoch;
  const char *what;
  void *argument[32];
};

struct emu_block {
  bool live;
  dim3 index;
  int threads, running, at_barrier, epoch;
  emu_region shared;
  std::vector<char> bytes;
  std::vector<emu_shade> shades;
  std::vector<emu_warp> warps;
  std::vector<emu_fiber> fibers;
};

struct emu_machine {
  const char *kernel;
  dim3 grid, block;
  emu_fiber *current; /* nullptr: outside of kernels */
  emu_counts counts;
  int64_t idle; /* looks at a flag since anything else happened */
};
extern emu_machine emu;

/* Ends the launch with this sentence; where and in which kernel are put before it. */
[[noreturn]] void emu_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Lets others run; returns when the scheduler takes this thread up again. */
void emu_yield(emu_state waiting_for);
/* Counts what a warp's lanes touched since this was last called, the nth access of each lane (from the begin, or from
 * a commit of its cp.async groups on) taken as one instruction. Lanes that go separate ways are counted roughly. */
void emu_count_warp(emu_block &b, int warp);

#endif

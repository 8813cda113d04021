/* emu.cpp - the machine: every CUDA thread a fiber, a few blocks at a time, in the order
 * that emu_set_order asked for. A launch ends when all threads did, when one fails, or
 * when none can go on. */
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <new>

#include "device.h"

emu_machine emu;
EMU_SWITCH_STACKS

namespace {
/* 4 processors with two blocks each; more than a kernel may count on. */
enum { RESIDENT = 8, STACK = 64 << 10, MAX_THREADS = 1024, MAX_SHARED = 232448, MAX_IDLE = 100000 };

/* The memory of blocks and stacks stays for the launches that follow. */
struct launch_state {
  emu_stack scheduler;
  const std::function<void()> *body;
  emu_block blocks[RESIDENT];
  int places; /* blocks in use */
  std::unique_ptr<char[]> stacks;
  size_t stack_count;
  unsigned random;
  bool failed;
};
launch_state launch;
unsigned wanted_order;
bool order_known;
char failure[512];
bool has_failure;

/* Ends the launch: the sentence, and before it the kernel and the thread that runs. */
void stop(const char *format, va_list list) {
  char says[400];
  vsnprintf(says, sizeof says, format, list);
  if (const emu_fiber *me = emu.current) {
    const dim3 &b = me->block->index, &t = me->thread;
    snprintf(failure, sizeof failure, "kernel %s, block (%u, %u, %u), thread (%u, %u, %u): %s", emu.kernel,
             b.x, b.y, b.z, t.x, t.y, t.z, says);
  } else snprintf(failure, sizeof failure, "kernel %s: %s", emu.kernel, says);
  has_failure = launch.failed = true;
}

/* The same, of no thread in particular. */
__attribute__((format(printf, 1, 2))) void refuse(const char *format, ...) {
  va_list list;
  va_start(list, format);
  stop(format, list);
  va_end(list);
}

unsigned order() {
  if (!order_known) {
    const char *s = getenv("NB_EMU_ORDER");
    wanted_order = s ? (unsigned)strtoul(s, nullptr, 10) : 0;
    order_known = true;
  }
  return wanted_order;
}

unsigned random_below(unsigned n) {
  launch.random = launch.random * 1664525u + 1013904223u;
  return (launch.random >> 8) % n;
}

void fiber_entry() {
  try {
    (*launch.body)();
  } catch (const std::exception &e) { /* no memory for the emulator's own lists */
    emu_fail("cannot be emulated: %s", e.what());
  }
  emu_fiber *me = emu.current;
  if (!me->copies.empty())
    emu_fail("ends with %zu asynchronous copies that it did not wait for", me->copies.size());
  emu.idle = 0;
  emu_yield(EMU_DONE);
}

dim3 index_of(uint64_t i, dim3 size) {
  return dim3((unsigned)(i % size.x), (unsigned)(i / size.x % size.y), (unsigned)(i / size.x / size.y));
}

/* The nth block to start, in this place. */
void start(int place, uint64_t nth, uint64_t blocks, size_t shared) {
  emu_block &b = launch.blocks[place];
  b.live = true;
  b.index = index_of(order() == 1 ? blocks - 1 - nth : nth, emu.grid);
  b.running = b.threads;
  b.at_barrier = b.epoch = 0;
  /* 128 bytes of room, so that shared memory begins as aligned as it does on a device. */
  b.bytes.assign(shared + 128, (char)0xff);
  char *base = b.bytes.data();
  b.shared = {base + (128 - (uintptr_t)base % 128) % 128, shared};
  b.shades.assign(shared, emu_shade{emu_shade::NEVER, {-1, -1, -1}, {-1, -1, -1}, emu_shade::NONE});
  b.warps.assign((size_t)b.threads / 32, emu_warp{});
  b.fibers.resize((size_t)b.threads);
  for (int i = 0; i < b.threads; i++) {
    emu_fiber &f = b.fibers[(size_t)i];
    f.block = &b;
    f.state = EMU_READY;
    f.index = i;
    f.committed = 0;
    f.thread = index_of((uint64_t)i, emu.block);
    f.copies.clear();
    f.touches.clear();
    emu_begin(f.stack, launch.stacks.get() + ((size_t)place * (size_t)b.threads + (size_t)i) * STACK, STACK,
              fiber_entry);
  }
}

/* Runs the lanes of a warp until they wait, at most `slices` times round. */
bool run_warp(emu_block &b, int warp, int slices) {
  bool ran = false;
  for (bool more = true; more && slices-- > 0;) {
    more = false;
    for (int l = 0; l < 32; l++) {
      emu_fiber &f = b.fibers[(size_t)(warp * 32 + (order() & 1 ? 31 - l : l))];
      if (f.state != EMU_READY) continue;
      more = ran = true;
      emu.current = &f;
      emu.counts.switches++;
      emu_switch(launch.scheduler, f.stack);
      emu.current = nullptr;
      if (launch.failed) return true;
      if (f.state == EMU_DONE && --b.running == 0) {
        for (int w = 0; w < b.threads / 32; w++) emu_count_warp(b, w);
        b.live = false;
      }
    }
  }
  return ran;
}

/* One round over all warps: whether anything ran. */
bool run_round() {
  int per_block = launch.blocks[0].threads / 32, warps = per_block * launch.places;
  bool ran = false;
  for (emu_block &b : launch.blocks)
    for (emu_fiber &f : b.fibers)
      if (b.live && f.state == EMU_SPINNING) f.state = EMU_READY;
  for (int k = 0; k < warps && !launch.failed; k++) {
    int w = k, slices = 1 << 30;
    if (order() == 1) w = warps - 1 - k;
    if (order() > 1) w = (int)random_below((unsigned)warps), slices = 1 + (int)random_below(7);
    emu_block &b = launch.blocks[w / per_block];
    if (b.live && run_warp(b, w % per_block, slices)) ran = true;
  }
  /* A random round may have met only those that wait. */
  if (order() > 1 && !ran)
    for (emu_block &b : launch.blocks)
      for (emu_fiber &f : b.fibers)
        if (b.live && f.state == EMU_READY) ran = true;
  return ran;
}

/* Why no thread can run, from the first block that waits. */
void fail_stuck() {
  for (emu_block &b : launch.blocks) {
    if (!b.live) continue;
    for (emu_warp &w : b.warps)
      if (w.waiting)
        return refuse("%d lanes wait in %s that the other lanes of their warp never reach", w.waiting,
                      w.what);
    return refuse("%d of %d threads of block (%u, %u, %u) wait at __syncthreads, %d ended without it",
                  b.at_barrier, b.threads, b.index.x, b.index.y, b.index.z, b.threads - b.running);
  }
}

/* All blocks, as many at a time as are resident; each that ends gives its place to the next one. */
void run_blocks(size_t shared) {
  uint64_t blocks = (uint64_t)emu.grid.x * emu.grid.y * emu.grid.z, started = 0;
  size_t threads = (size_t)emu.block.x * emu.block.y * emu.block.z;
  launch.places = blocks < RESIDENT ? (int)blocks : (int)RESIDENT;
  size_t stacks = (size_t)launch.places * threads;
  if (stacks > launch.stack_count) {
    launch.stack_count = 0;
    launch.stacks.reset(new char[stacks * STACK]);
    launch.stack_count = stacks;
  }
  for (emu_block &b : launch.blocks) b.live = false, b.threads = (int)threads;
  for (bool live = true; live && !launch.failed;) {
    live = false;
    for (int i = 0; i < launch.places; i++) {
      if (!launch.blocks[i].live && started < blocks) start(i, started++, blocks, shared);
      live |= launch.blocks[i].live;
    }
    if (live && !run_round()) fail_stuck();
  }
}

bool launch_allowed(size_t shared) {
  uint64_t threads = (uint64_t)emu.block.x * emu.block.y * emu.block.z;
  if (threads == 0 || threads > MAX_THREADS || threads % 32)
    refuse("cannot be launched with %llu threads a block: whole warps of 32, at most %d",
           (unsigned long long)threads, MAX_THREADS);
  else if (emu.grid.x == 0 || emu.grid.y == 0 || emu.grid.z == 0 || emu.grid.y > 65535 || emu.grid.z > 65535)
    refuse("cannot be launched on a grid of (%u, %u, %u) blocks", emu.grid.x, emu.grid.y, emu.grid.z);
  else if (shared > MAX_SHARED)
    refuse("cannot be launched with %zu bytes of shared memory, at most %d", shared, MAX_SHARED);
  return !launch.failed;
}
} // namespace

void emu_fail(const char *format, ...) {
  va_list list;
  va_start(list, format);
  stop(format, list);
  va_end(list);
  emu_yield(EMU_DONE); /* the scheduler never takes up a thread that failed */
  abort();
}

void emu_yield(emu_state waiting_for) {
  emu.current->state = waiting_for;
  emu_switch(emu.current->stack, launch.scheduler);
}

void emu_barrier() {
  emu_fiber *me = emu.current;
  emu_block &b = *me->block;
  emu.idle = 0;
  if (++b.at_barrier < b.threads) return emu_yield(EMU_AT_BARRIER);
  b.at_barrier = 0;
  b.epoch++;
  emu.counts.barriers++;
  for (int w = 0; w < b.threads / 32; w++) emu_count_warp(b, w);
  for (emu_fiber &f : b.fibers)
    if (f.state == EMU_AT_BARRIER) f.state = EMU_READY;
}

void emu_collective(const char *what, void *argument, emu_meeting *meet) {
  emu_fiber *me = emu.current;
  emu_block &b = *me->block;
  int warp = me->index / 32;
  emu_warp &w = b.warps[(size_t)warp];
  emu.idle = 0;
  if (w.waiting && strcmp(w.what, what) != 0)
    emu_fail("comes to %s while other lanes of its warp wait in %s", what, w.what);
  w.what = what;
  w.argument[me->index % 32] = argument;
  if (++w.waiting < 32) return emu_yield(EMU_IN_COLLECTIVE);
  w.waiting = 0;
  emu.counts.collectives++;
  emu_count_warp(b, warp);
  meet(w.argument, &w.epoch);
  for (int l = 0; l < 32; l++) {
    emu_fiber &f = b.fibers[(size_t)(warp * 32 + l)];
    if (f.state == EMU_IN_COLLECTIVE) f.state = EMU_READY;
  }
}

void emu_spin(const void *flag) {
  if (++emu.idle > MAX_IDLE) emu_fail("waits for a flag at %p that no thread sets", flag);
  emu_yield(EMU_SPINNING);
}

void emu_launch(const char *name, dim3 grid, dim3 block, size_t shared, const std::function<void()> &body) {
  static std::mutex one_at_a_time;
  std::lock_guard<std::mutex> lock(one_at_a_time);
  has_failure = launch.failed = false;
  emu = emu_machine{name, grid, block, nullptr, {}, 0};
  launch.body = &body;
  launch.random = order();
  if (!launch_allowed(shared)) return;
  try {
    run_blocks(shared);
  } catch (const std::bad_alloc &) {
    refuse("cannot be emulated: no memory for %u threads a block", block.x * block.y * block.z);
  }
}

const char *emu_error(void) { return has_failure ? failure : nullptr; }
const emu_counts *emu_last_counts(void) { return &emu.counts; }

void emu_set_order(unsigned o) {
  wanted_order = o;
  order_known = true;
}

const char *emu_run(const char *name, unsigned grid, unsigned across, unsigned block, size_t shared,
                    void **args) {
  const emu_kernel *k = emu_find(name);
  if (!k) return "no such kernel";
  k->bind(dim3(grid, across), dim3(block), shared, args)();
  return emu_error();
}

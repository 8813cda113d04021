/* memory.cpp - device memory and the checks of every access to it: bounds, alignment,
 * and for shared memory who touched each byte last: what was never written, what a
 * cp.async has yet to bring, and what two threads touch with no barrier between. */
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>

#include "device.h"

namespace {
std::map<char *, emu_region> allocations; /* by first byte */

const char *const SPACE[] = {"global", "shared"};

/* Bytes between what is asked for and the next allocation, so that addresses just beyond
 * one never belong to another. */
enum { ALIGN = 256, APART = 4096 };

/* Accesses of a lane that are kept before they are counted. */
enum { MANY = 4096 };
} // namespace

void *emu_allocate(size_t bytes) {
  if (bytes > SIZE_MAX - 2 * APART) return nullptr;
  char *p = (char *)aligned_alloc(ALIGN, (bytes + APART + ALIGN - 1) / ALIGN * ALIGN);
  if (!p) return nullptr;
  memset(p, 0xff, bytes);
  emu_own(p, bytes);
  return p;
}

int emu_release(void *p) {
  if (!allocations.erase((char *)p)) return -1;
  free(p);
  return 0;
}

void emu_own(void *p, size_t bytes) { allocations[(char *)p] = {(char *)p, bytes}; }
void emu_disown(void *p) { allocations.erase((char *)p); }

const emu_region *emu_region_of(const void *p) {
  auto next = allocations.upper_bound((char *)p);
  if (next == allocations.begin()) return nullptr;
  const emu_region &r = (--next)->second;
  return (char *)p <= r.base + r.bytes + APART / 2 ? &r : nullptr;
}

namespace {
int warp_epoch(const emu_fiber &f) { return f.block->warps[(size_t)(f.index / 32)].epoch; }

/* Whether a barrier, or one of their warp, lies between what was done then and now. */
bool parted(const emu_stamp &then, const emu_fiber &me) {
  if (then.thread < 0 || then.block_epoch != me.block->epoch) return true;
  return then.thread / 32 == me.index / 32 && then.warp_epoch != warp_epoch(me);
}

emu_stamp stamp_of(const emu_fiber &me) { return {me.block->epoch, warp_epoch(me), me.index}; }

/* The first reader since a barrier, and whether lanes of its warp or other warps joined it. */
void note_reader(emu_shade &s, const emu_fiber &me) {
  bool same_warp = s.read.thread / 32 == me.index / 32;
  if (s.read.thread < 0 || s.read.block_epoch != me.block->epoch ||
      (s.others < emu_shade::WARPS && parted(s.read, me))) {
    s.read = stamp_of(me);
    s.others = emu_shade::NONE;
  } else if (!same_warp) s.others = emu_shade::WARPS;
  else if (s.read.thread != me.index && s.others == emu_shade::NONE) s.others = emu_shade::LANES;
}

bool read_by_others(const emu_shade &s, const emu_fiber &me) {
  if (s.others == emu_shade::WARPS && s.read.block_epoch == me.block->epoch) return true;
  return !parted(s.read, me) && (s.read.thread != me.index || s.others == emu_shade::LANES);
}

/* One byte of shared memory. */
void touch_shade(emu_shade &s, const emu_fiber &me, size_t at, bool write) {
  const char *verb = write ? "writes" : "reads";
  if (s.holds == emu_shade::PENDING)
    emu_fail("%s byte %zu of shared memory, which an asynchronous copy has yet to bring", verb, at);
  if (!write && s.holds == emu_shade::NEVER)
    emu_fail("reads byte %zu of shared memory, which no thread wrote", at);
  if (s.written.thread != me.index && !parted(s.written, me))
    emu_fail("%s byte %zu of shared memory, which thread %d wrote with no barrier between", verb, at,
             s.written.thread);
  if (write && read_by_others(s, me))
    emu_fail(
        "writes byte %zu of shared memory, which thread %d and maybe others read with no barrier between", at,
        s.read.thread);
  if (!write) return note_reader(s, me);
  s.holds = emu_shade::HERE;
  s.written = stamp_of(me);
}
} // namespace

void emu_access(const void *p, size_t bytes, const emu_region *r, emu_space space, bool write) {
  const char *verb = write ? "writes" : "reads";
  emu_fiber *me = emu.current;
  if (!r) emu_fail("%s %zu bytes at %p, which is not device memory", verb, bytes, p);
  int64_t at = (const char *)p - r->base, size = (int64_t)r->bytes, n = (int64_t)bytes;
  if (at < 0)
    emu_fail("%s %zu bytes of %s memory, %lld before the begin of its %zu bytes", verb, bytes, SPACE[space],
             (long long)-at, r->bytes);
  if (at + n > size)
    emu_fail("%s %zu bytes of %s memory, up to %lld past the end of its %zu bytes", verb, bytes, SPACE[space],
             (long long)(at + n - size), r->bytes);
  if ((uintptr_t)p % bytes)
    emu_fail("%s %zu bytes of %s memory at offset %lld, which is not aligned to them", verb, bytes,
             SPACE[space], (long long)at);
  if (me->touches.size() >= MANY) { /* the other lanes get as far, then all of that is counted */
    emu_yield(EMU_READY);
    if (me->touches.size() >= MANY) emu_count_warp(*me->block, me->index / 32);
  }
  me->touches.push_back({(uintptr_t)p, (uint8_t)bytes, (uint8_t)space, write, me->committed});
  if (space == EMU_SHARED)
    for (size_t i = 0; i < bytes; i++)
      touch_shade(me->block->shades[(size_t)at + i], *me, (size_t)at + i, write);
}

void emu_copy_begin(char *to, const emu_region *shared, const char *from, const emu_region *global) {
  emu_fiber *me = emu.current;
  if (from) emu_access(from, 16, global, EMU_GLOBAL, false);
  else me->touches.push_back({0, 0, EMU_GLOBAL, false, me->committed}); /* so that lanes stay side by side */
  emu_access(to, 16, shared, EMU_SHARED, true);
  emu.counts.copies++;
  me->copies.push_back({to, from, me->committed});
  for (size_t i = 0; i < 16; i++)
    me->block->shades[(size_t)(to - shared->base) + i].holds = emu_shade::PENDING;
}

void emu_copy_commit() { emu.current->committed++; }

void emu_copy_wait(int newest) {
  emu_fiber *me = emu.current;
  size_t done = 0;
  for (; done < me->copies.size() && me->copies[done].group < me->committed - newest; done++) {
    const emu_copy &c = me->copies[done];
    if (c.from) memcpy(c.to, c.from, 16);
    else memset(c.to, 0, 16);
    for (size_t i = 0; i < 16; i++) {
      emu_shade &s = me->block->shades[(size_t)(c.to - me->block->shared.base) + i];
      s.holds = emu_shade::HERE;
      s.written = stamp_of(*me);
    }
  }
  me->copies.erase(me->copies.begin(), me->copies.begin() + (ptrdiff_t)done);
}

/* Shared memory has 32 banks of 4 bytes and serves 128 bytes at a time: wavefronts beyond
 * the first, in each phase of as many lanes as ask for 128 bytes. */
static int64_t bank_conflicts(const emu_touch *const *lanes, size_t count) {
  int64_t extra = 0;
  size_t bytes = std::max<size_t>(lanes[0]->bytes, 4), phase = 128 / bytes;
  for (size_t first = 0; first < count; first += phase) {
    uintptr_t words[32], *end = words;
    for (size_t l = first; l < std::min(first + phase, count); l++)
      for (size_t i = 0; i < bytes / 4; i++) *end++ = lanes[l]->address / 4 + i;
    std::sort(words, end);
    end = std::unique(words, end);
    int in_bank[32] = {0}, worst = 1;
    for (uintptr_t *w = words; w < end; w++) worst = std::max(worst, ++in_bank[*w % 32]);
    extra += worst - 1;
  }
  return extra;
}

static int64_t sectors(const emu_touch *const *lanes, size_t count) {
  uintptr_t all[32];
  for (size_t l = 0; l < count; l++) all[l] = lanes[l]->address / 32;
  std::sort(all, all + count);
  return std::unique(all, all + count) - all;
}

void emu_count_warp(emu_block &b, int warp) {
  emu_fiber *lane = &b.fibers[(size_t)warp * 32];
  size_t next[32] = {0};
  for (;;) {
    const emu_touch *first = nullptr;
    for (int l = 0; l < 32; l++)
      if (next[l] < lane[l].touches.size() &&
          (!first || lane[l].touches[next[l]].committed < first->committed))
        first = &lane[l].touches[next[l]];
    if (!first) break;
    const emu_touch *together[32];
    size_t count = 0;
    for (int l = 0; l < 32; l++) {
      if (next[l] >= lane[l].touches.size() || lane[l].touches[next[l]].committed != first->committed)
        continue;
      const emu_touch &t = lane[l].touches[next[l]++];
      if (!t.bytes) continue;
      if (t.space == EMU_GLOBAL) (t.write ? emu.counts.global_written : emu.counts.global_read) += t.bytes;
      const emu_touch &kind = count ? *together[0] : t;
      if (t.space == kind.space && t.bytes == kind.bytes && t.write == kind.write) together[count++] = &t;
    }
    if (!count) continue;
    if (together[0]->space == EMU_GLOBAL) emu.counts.global_sectors += sectors(together, count);
    else emu.counts.bank_conflicts += bank_conflicts(together, count);
  }
  for (int l = 0; l < 32; l++) lane[l].touches.clear();
}

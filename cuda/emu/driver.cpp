// driver.cpp - build/libcuemu.so: stands in for libcuda.so.1, so that every way from Lua to a kernel can be tried
// where there is no GPU. NB_CUDA_DRIVER=build/libcuemu.so makes nibble open it.
//
// Device memory is real memory whose first bytes the process can touch only while this library copies or runs a kernel:
// whoever takes a device's address for the computer's crashes, as with a GPU. What is allocated is filled with
// 0xA5. Kernels come from registry.cpp (emu_find). What may be done later is: queue.cpp.
//
// The environment makes it another machine, or makes it fail:
//   NB_EMU_DEVICES=1  NB_EMU_SM=90  NB_EMU_VERSION=13000  NB_EMU_MEMORY=bytes of one device
//   NB_EMU_REAL=1   says nothing of being an emulator: nibble loads its own kernels, as onto a GPU
//   NB_EMU_FAIL=cuMemAlloc_v2:3:2   the third such call gives code 2; one from 700 to 799 stays for all later ones;
//                                   *:3:2: the third call of any function
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <sys/mman.h>
#include <vector>

#include "emu.h"
#include "standin.h"

std::mutex guard;
thread_local int current = -1;
int lost;

namespace {

enum { BLOCK_SHARED = 227 * 1024 }; // shared memory of one block at most

struct Block {
  size_t bytes, mapped;
  int device;
};

std::map<uintptr_t, Block> blocks; // by address
std::map<std::string, long> calls; // of each function, so far
size_t used[64];
std::map<void *, int> shared_allowed; // of each kernel that asked for more than it has without asking
std::string failure_text;             // what the failed kernel said
int opened;                           // calls of open_memory under way

} // namespace

long setting(const char *name, long otherwise) {
  const char *text = getenv(name);
  return text && *text ? strtol(text, nullptr, 0) : otherwise;
}

int begin(const char *name, bool needs_context) {
  if (lost) return lost;
  const char *plan = getenv("NB_EMU_FAIL");
  long call = ++calls[name], any = ++calls["*"];
  if (plan) {
    char wanted[64];
    long nth, code;
    if (sscanf(plan, "%63[^:]:%ld:%ld", wanted, &nth, &code) == 3 &&
        ((!strcmp(wanted, name) && nth == call) || (!strcmp(wanted, "*") && nth == any))) {
      if (code >= 700 && code < 800) lost = (int)code;
      return (int)code;
    }
  }
  return needs_context && current < 0 ? INVALID_CONTEXT : 0;
}

namespace {

// The block that holds [at, at + bytes) and where it begins, or null.
const std::pair<const uintptr_t, Block> *holding(uintptr_t at, size_t bytes) {
  auto next = blocks.upper_bound(at);
  if (next == blocks.begin()) return nullptr;
  auto &found = *--next;
  size_t offset = at - found.first;
  return offset <= found.second.bytes && bytes <= found.second.bytes - offset ? &found : nullptr;
}

// Only where a block begins, which is where a mistake would: all of it would take longer than most kernels.
enum : size_t { GUARDED = 64 << 10 };
void permit(const std::pair<const uintptr_t, Block> &b, bool touch) {
  mprotect((void *)b.first, std::min<size_t>(b.second.mapped, GUARDED),
           touch ? PROT_READ | PROT_WRITE : PROT_NONE);
}

// Runs fn with the block of [at, at + bytes) open to the process.
template <class F> int touching(uintptr_t at, size_t bytes, F fn) {
  auto *b = holding(at, bytes);
  if (!b) return INVALID_VALUE;
  if (!opened) permit(*b, true);
  fn();
  if (!opened) permit(*b, false);
  return 0;
}

} // namespace

bool on_device(const void *p, size_t bytes) { return holding((uintptr_t)p, bytes) != nullptr; }

int open_memory(const std::function<void()> &fn) {
  if (opened++ == 0)
    for (auto &b : blocks) permit(b, true);
  fn();
  if (--opened == 0)
    for (auto &b : blocks) permit(b, false);
  return 0;
}

namespace {

size_t device_bytes() { return (size_t)setting("NB_EMU_MEMORY", 1L << 30); }
int device_count() { return (int)setting("NB_EMU_DEVICES", 1); }

} // namespace

#pragma GCC visibility push(default)
extern "C" {

// How many calls there were of a function, or of all ("*").
long emu_calls(const char *name) {
  std::lock_guard<std::mutex> held(guard);
  return calls[name];
}

// Tells nibble that kernels are here without being loaded.
int nb_emulated_driver(void) { return !setting("NB_EMU_REAL", 0); }

int cuInit(unsigned) {
  EARLY;
  return device_count() > 0 ? 0 : NO_DEVICE;
}

int cuDriverGetVersion(int *version) {
  *version = (int)setting("NB_EMU_VERSION", 13000);
  return 0;
}

int cuDeviceGetCount(int *count) {
  EARLY;
  *count = device_count();
  return 0;
}

int cuDeviceGet(int *device, int ordinal) {
  EARLY;
  *device = ordinal;
  return ordinal >= 0 && ordinal < device_count() ? 0 : 101;
}

int cuDeviceGetName(char *name, int bytes, int) {
  snprintf(name, (size_t)bytes, "nibble's emulator");
  return 0;
}

int cuDeviceGetAttribute(int *value, int attribute, int) {
  long sm = setting("NB_EMU_SM", 90);
  switch (attribute) {
  case 16: *value = 4; break; // multiprocessors: few, so that blocks have much to do
  case 75: *value = (int)sm / 10; break;
  case 76: *value = (int)sm % 10; break;
  case 97: *value = BLOCK_SHARED; break;
  default: *value = 0;
  }
  return 0;
}

int cuDeviceTotalMem_v2(size_t *bytes, int) {
  *bytes = device_bytes();
  return 0;
}

int cuDevicePrimaryCtxRetain(void **context, int device) {
  EARLY;
  *context = (void *)(uintptr_t)(device + 1);
  return 0;
}

int cuCtxSetCurrent(void *context) {
  EARLY;
  current = (int)(uintptr_t)context - 1;
  return 0;
}

int cuCtxSynchronize(void) {
  BEGIN;
  return settle_device();
}

int cuMemGetInfo_v2(size_t *left, size_t *total) {
  BEGIN;
  *total = device_bytes();
  *left = *total - used[current];
  return 0;
}

int cuMemAlloc_v2(unsigned long long *at, size_t bytes) {
  BEGIN;
  if (bytes == 0) return INVALID_VALUE;
  if (bytes > device_bytes() - used[current]) return OUT_OF_MEMORY;
  size_t mapped = (bytes + 4095) / 4096 * 4096;
  void *p = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) return OUT_OF_MEMORY;
  memset(p, 0xA5, bytes);
  mprotect(p, std::min<size_t>(mapped, GUARDED), PROT_NONE);
  blocks[(uintptr_t)p] = {bytes, mapped, current};
  emu_own(p, bytes);
  used[current] += bytes;
  *at = (uintptr_t)p;
  return 0;
}

// Waits for the device, as the driver's does.
int cuMemFree_v2(unsigned long long at) {
  BEGIN;
  if (int code = settle_device()) return code;
  auto b = blocks.find((uintptr_t)at);
  if (b == blocks.end()) return INVALID_VALUE;
  used[b->second.device] -= b->second.bytes;
  emu_disown((void *)b->first);
  munmap((void *)b->first, b->second.mapped);
  blocks.erase(b);
  return 0;
}

int cuMemcpyHtoDAsync_v2(unsigned long long to, const void *from, size_t bytes, void *stream) {
  BEGIN;
  if (!holding(to, bytes) || on_device(from, 1)) return INVALID_VALUE;
  return enqueue(stream, [=] { return touching(to, bytes, [=] { memcpy((void *)to, from, bytes); }); });
}

int cuMemcpyDtoHAsync_v2(void *to, unsigned long long from, size_t bytes, void *stream) {
  BEGIN;
  if (!holding(from, bytes) || on_device(to, 1)) return INVALID_VALUE;
  return enqueue(stream,
                 [=] { return touching(from, bytes, [=] { memcpy(to, (const void *)from, bytes); }); });
}

int cuMemcpyDtoDAsync_v2(unsigned long long to, unsigned long long from, size_t bytes, void *stream) {
  BEGIN;
  if (!holding(to, bytes) || !holding(from, bytes)) return INVALID_VALUE;
  return enqueue(stream, [=] {
    std::vector<char> between(bytes);
    if (int code = touching(from, bytes, [&] { memcpy(between.data(), (const void *)from, bytes); }))
      return code;
    return touching(to, bytes, [&] { memcpy((void *)to, between.data(), bytes); });
  });
}

int cuMemsetD8Async(unsigned long long at, unsigned char value, size_t bytes, void *stream) {
  BEGIN;
  if (!holding(at, bytes)) return INVALID_VALUE;
  return enqueue(stream, [=] { return touching(at, bytes, [=] { memset((void *)at, value, bytes); }); });
}

int cuModuleLoadData(void **module, const void *) {
  BEGIN;
  *module = &blocks;
  return 0;
}

int cuModuleGetFunction(void **function, void *, const char *name) {
  BEGIN;
  *function = (void *)emu_find(name);
  return *function ? 0 : NOT_FOUND;
}

int cuFuncSetAttribute(void *function, int attribute, int value) {
  BEGIN;
  if (attribute != 8 || value < 0 || value > BLOCK_SHARED) return INVALID_VALUE;
  shared_allowed[function] = value;
  return 0;
}

int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                   unsigned bz, unsigned shared, void *stream, void **arguments, void **) {
  BEGIN;
  if (!gx || !gy || !gz || !bx || !by || !bz || bx * by * bz > 1024 ||
      (int)shared > std::max(48 * 1024, shared_allowed[function]))
    return INVALID_VALUE;
  auto run = ((const emu_kernel *)function)->bind(dim3{gx, gy, gz}, dim3{bx, by, bz}, shared, arguments);
  return enqueue(stream, [run] {
    open_memory(run);
    const char *wrong = emu_error();
    if (wrong) failure_text = wrong;
    return wrong ? (int)LAUNCH_FAILED : 0;
  });
}

int cuGetErrorName(int code, const char **name) {
  switch (code) {
  case INVALID_VALUE: *name = "CUDA_ERROR_INVALID_VALUE"; break;
  case OUT_OF_MEMORY: *name = "CUDA_ERROR_OUT_OF_MEMORY"; break;
  case NO_DEVICE: *name = "CUDA_ERROR_NO_DEVICE"; break;
  case INVALID_CONTEXT: *name = "CUDA_ERROR_INVALID_CONTEXT"; break;
  case NOT_FOUND: *name = "CUDA_ERROR_NOT_FOUND"; break;
  case LAUNCH_FAILED: *name = "CUDA_ERROR_LAUNCH_FAILED"; break;
  case INVALID_HANDLE: *name = "CUDA_ERROR_INVALID_HANDLE"; break;
  case CAPTURE_UNSUPPORTED: *name = "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"; break;
  case CAPTURE_INVALIDATED: *name = "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"; break;
  case CAPTURE_IMPLICIT: *name = "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT"; break;
  case 700: *name = "CUDA_ERROR_ILLEGAL_ADDRESS"; break;
  default: return INVALID_VALUE;
  }
  return 0;
}

int cuGetErrorString(int code, const char **text) {
  *text = code == LAUNCH_FAILED && !failure_text.empty() ? failure_text.c_str() : "said by the emulator";
  return 0;
}
}
#pragma GCC visibility pop

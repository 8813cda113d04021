/* device.h - what a kernel sees of CUDA under a host compiler: its words, built-in
 * variables, barriers, and pointers that look at every access. */
#ifndef NB_EMU_DEVICE_H
#define NB_EMU_DEVICE_H
#include <functional>
#include <type_traits>

#include "fiber.h"

#ifndef __global__ /* scripts/kernel-names keeps it */
#define __global__
#endif
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
struct alignas(16) float4 {
  float x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

#define threadIdx (emu.current->thread)
#define blockIdx (emu.current->block->index)
#define blockDim (emu.block)
#define gridDim (emu.grid)

/* Runs body once for each thread (emu.cpp). */
void emu_launch(const char *name, dim3 grid, dim3 block, size_t shared, const std::function<void()> &body);

/* Lanes of a warp meet: the last to come has fn look at all their arguments. A meeting
 * that also orders memory moves the warp's epoch on. */
typedef void emu_meeting(void **arguments, int *epoch);
void emu_collective(const char *what, void *argument, emu_meeting *meet);
void emu_barrier();
/* Waits a turn before the flag is looked at again. */
void emu_spin(const void *flag);

inline void __syncthreads() { emu_barrier(); }
inline void __syncwarp() {
  emu_collective("__syncwarp", nullptr, [](void **, int *epoch) { ++*epoch; });
}

/* ---- checked pointers (memory.cpp) ---------------------------------------------- */

void emu_access(const void *p, size_t bytes, const emu_region *r, emu_space space, bool write);
/* The allocation that p points into, or a little beyond; nullptr: none. */
const emu_region *emu_region_of(const void *p);

/* cp.async: 16 bytes (zeros where from is nullptr) on their way until emu_copy_wait says all but the newest groups came. */
void emu_copy_begin(char *to, const emu_region *shared, const char *from, const emu_region *global);
void emu_copy_commit();
void emu_copy_wait(int newest);

/* What p[i] is: read when a value is asked for, written when one is given. */
template <class T, emu_space S> struct emu_reference {
  T *p;
  const emu_region *region;
  operator T() const {
    emu_access(p, sizeof(T), region, S, false);
    return *p;
  }
  emu_reference &operator=(T v) {
    emu_access(p, sizeof(T), region, S, true);
    *p = v;
    return *this;
  }
  emu_reference &operator=(const emu_reference &o) { return *this = (T)o; }
};

template <class T, emu_space S> struct emu_pointer {
  T *p;
  const emu_region *region;
  typedef typename std::remove_const<T>::type value;

  emu_pointer operator+(int64_t i) const { return {p + i, region}; }
  explicit operator bool() const { return p; }
  /* Of const T: its value; else something to read or write. */
  template <class U = T>
  typename std::enable_if<std::is_const<U>::value, value>::type operator[](int64_t i) const {
    emu_access(p + i, sizeof(T), region, S, false);
    return p[i];
  }
  template <class U = T>
  typename std::enable_if<!std::is_const<U>::value, emu_reference<T, S>>::type operator[](int64_t i) const {
    return {p + i, region};
  }
};

template <class T> using global = emu_pointer<T, EMU_GLOBAL>;
template <class T> using shared = emu_pointer<T, EMU_SHARED>;

/* The same bytes as another type. */
template <class U, class T, emu_space S> emu_pointer<U, S> cast(emu_pointer<T, S> p) {
  return {(U *)p.p, p.region};
}

#endif

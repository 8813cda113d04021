/* ptx.cuh - what kernels need of the machine beyond C++: all inline assembly is here, and
 * emu/ptx.h has the same for the host. Kernels reach memory through these pointers, which
 * are plain ones under nvcc and checked ones in the emulator; they avoid `auto` for what
 * they read through one. */
#ifndef NB_PTX_CUH
#define NB_PTX_CUH
#ifndef __CUDACC__
#include "emu/ptx.h"
#else
#include <cstdint>

#define NB_DEVICE __device__ __forceinline__

template <class T> using global = T *__restrict__;
template <class T> using shared = T *;

/* The same bytes as another type. */
template <class U, class T> NB_DEVICE U *cast(T *p) { return reinterpret_cast<U *>(p); }

/* The launch's shared memory. */
NB_DEVICE uint32_t *shared_words() {
  extern __shared__ __align__(128) uint32_t nb_shared[];
  return nb_shared;
}
NB_DEVICE uint32_t shared_address(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

/* The same bits as another type; 16-bit floats and back, a pair at once: lo in the low half. Rounds to nearest
 * even, beyond the range to infinity; a NaN comes out as the device's own one. */
NB_DEVICE float float_of_bits(uint32_t u) { return __uint_as_float(u); }
NB_DEVICE uint32_t bits_of_float(float f) { return __float_as_uint(f); }
NB_DEVICE float float_of_bf16(uint16_t h) { return __uint_as_float((uint32_t)h << 16); }
NB_DEVICE float float_of_f16(uint16_t h) {
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
  return f;
}
NB_DEVICE uint32_t bf16_pair(float lo, float hi) {
  uint32_t u;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(u) : "f"(hi), "f"(lo));
  return u;
}
NB_DEVICE uint32_t f16_pair(float lo, float hi) {
  uint32_t u;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(u) : "f"(hi), "f"(lo));
  return u;
}

/* 16 bytes on their way from global to shared memory, both aligned to them. They are there,
 * for this thread, after a wait that leaves fewer groups under way; for others after a barrier. */
template <class T, class U> NB_DEVICE void cp_async16(T *to, const U *from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
}
NB_DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/* Waits until at most the newest groups are still under way. */
template <int newest> NB_DEVICE void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(newest) : "memory");
}

/* Four 8x8 matrices of 16-bit numbers; lane l gives row l%8 of matrix l/8 (16 bytes). */
NB_DEVICE void ldmatrix_x4(uint32_t *r, const uint4 *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

/* Rounded by itself: never contracted with the addition that follows. */
NB_DEVICE float mul_rn(float a, float b) { return __fmul_rn(a, b); }
/* a * b + c, rounded once. */
NB_DEVICE float fma_rn(float a, float b, float c) { return __fmaf_rn(a, b, c); }

/* What the lane whose number differs in the bits of mask gave; all lanes of the warp come. */
NB_DEVICE uint32_t shuffle_xor(uint32_t v, int mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
/* *at becomes the larger of itself and v. */
NB_DEVICE void atomic_max(uint32_t *at, uint32_t v) { atomicMax(at, v); }
NB_DEVICE void atomic_max(uint64_t *at, uint64_t v) {
  atomicMax(reinterpret_cast<unsigned long long *>(at), (unsigned long long)v);
}

/* A flag between blocks: what was written before the release is seen after the acquire. */
NB_DEVICE int load_acquire(const int *flag) {
  int v;
  asm volatile("ld.global.acquire.gpu.b32 %0, [%1];" : "=r"(v) : "l"(flag) : "memory");
  return v;
}
NB_DEVICE void add_release(int *flag, int v) {
  asm volatile("red.release.gpu.global.add.s32 [%0], %1;" ::"l"(flag), "r"(v) : "memory");
}
#endif
#endif

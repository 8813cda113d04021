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
/* The same, or zeros where it isn't `there`: then nothing is read. `once`: what stream_once() gave, for
 * bytes that nobody reads again soon; they leave the cache first. */
template <class T, class U> NB_DEVICE void cp_async16_if(bool there, T *to, const U *from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(there ? 16 : 0)
               : "memory");
}
template <class T, class U> NB_DEVICE void cp_async16_once(bool there, T *to, const U *from, uint64_t once) {
  asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, %3;" ::"r"(shared_address(to)),
               "l"(from), "r"(there ? 16 : 0), "l"(once)
               : "memory");
}
NB_DEVICE uint64_t stream_once() {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
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
/* The same, each matrix transposed: lane l gets of column l/4 the rows 2(l%4) and the next. */
NB_DEVICE void ldmatrix_x4_turned(uint32_t *r, const uint4 *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

/* 2^x within 2 places of 2^-22; below the normal numbers 0. */
NB_DEVICE float exp2_near(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

NB_DEVICE double double_of_bits(uint64_t u) { return __longlong_as_double((long long)u); }
NB_DEVICE uint64_t bits_of_double(double d) { return (uint64_t)__double_as_longlong(d); }

/* Rounded by itself: never contracted with the addition that follows. */
NB_DEVICE float mul_rn(float a, float b) { return __fmul_rn(a, b); }
NB_DEVICE double mul_rn(double a, double b) { return __dmul_rn(a, b); }
/* a * b + c, rounded once. */
NB_DEVICE float fma_rn(float a, float b, float c) { return __fmaf_rn(a, b, c); }

/* The larger of each pair of 16-bit halves, with signs and without: one instruction from sm_90 on. */
NB_DEVICE uint32_t max_s16x2(uint32_t a, uint32_t b) { return __vmaxs2(a, b); }
NB_DEVICE uint32_t max_u16x2(uint32_t a, uint32_t b) { return __vmaxu2(a, b); }

/* What the lane whose number differs in the bits of mask gave; all lanes of the warp come. */
NB_DEVICE uint32_t shuffle_xor(uint32_t v, int mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
/* What that lane gave; all lanes of the warp come. */
NB_DEVICE uint32_t shuffle_from(uint32_t v, int lane) { return __shfl_sync(0xffffffffu, v, lane); }
/* The lanes that gave the same value, a bit for each; all lanes of the warp come. */
NB_DEVICE uint32_t match_any(uint32_t v) { return __match_any_sync(0xffffffffu, v); }
NB_DEVICE int count_ones(uint32_t v) { return __popc(v); }
NB_DEVICE double shuffle_xor_f64(double v, int mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
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
/* Adds to a count between blocks and gives what it was before. Who reads it sees what was written before any
 * addition that came earlier, by that thread or ahead of a barrier with it. */
NB_DEVICE int add_in_turn(int *count, int v) {
  int old;
  asm volatile("atom.add.acq_rel.gpu.global.s32 %0, [%1], %2;" : "=r"(old) : "l"(count), "r"(v) : "memory");
  return old;
}
/* What other blocks wrote: past the cache that blocks on one processor share. */
NB_DEVICE float4 load_far(const float4 *p) { return __ldcg(p); }

/* ---- arithmetic: a pair is two 16-bit floats, the first in the low half ---------- */

/* Any function of three bits, at 32 places: bit 4a + 2b + c of lut. */
template <int lut> NB_DEVICE uint32_t lop3(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t r;
  asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(r) : "r"(a), "r"(b), "r"(c), "n"(lut));
  return r;
}
/* Four of the eight bytes of a (0 to 3) and b (4 to 7): one to a hexadecimal digit of `which`, the lowest first. */
NB_DEVICE uint32_t pick_bytes(uint32_t a, uint32_t b, uint32_t which) { return __byte_perm(a, b, which); }
/* The same, and of a digit from 8 on the highest bit of that byte, eight times. */
NB_DEVICE uint32_t pick_signs(uint32_t a, uint32_t b, uint32_t which) {
  uint32_t r;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(which));
  return r;
}

/* The two E4M3 codes in the low half of c as a pair of f16, which has all of them; a NaN of 0x7f and 0xff. One
 * instruction from sm_89 on; else the bits find their places, 2^8 too small, and what comes out as 480 is NaN. */
NB_DEVICE uint32_t f16_pair_of_e4m3(uint32_t c) {
  uint32_t r;
#if __CUDA_ARCH__ >= 890
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(r) : "h"((uint16_t)c));
#else
  const uint32_t v = __byte_perm(c, 0, 0x1404), m = ((v & 0x7f007f00u) + 0x01000100u) & 0x80008000u;
  asm("fma.rn.f16x2 %0, %1, %2, %3;"
      : "=r"(r)
      : "r"((v & 0x80008000u) | (v & 0x7f007f00u) >> 1), "r"(0x5c005c00u), "r"(0x80008000u));
  r |= m - (m >> 5);
#endif
  return r;
}

/* a * b + c of pairs, rounded once. */
NB_DEVICE uint32_t fma_f16x2(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t r;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
  return r;
}
NB_DEVICE uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t r;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
  return r;
}
/* sums += a b, N times, by the tensor cores: a 16x16 and of b 16x8 in 16-bit floats, sums 16x8 in f32. With g = lane/4
 * and t = lane%4 a lane has  of a: {a[g][2t..], a[g+8][2t..], a[g][2t+8..], a[g+8][2t+8..]}, as ldmatrix_x4 gives
 * them; of b: {b[2t..][g], b[2t+8..][g]}; of sums: [g][2t], [g][2t+1], [g+8][2t], [g+8][2t+1]. */
template <int N>
NB_DEVICE void mma_f16(float (&sums)[N][4], const uint32_t (&a)[4], const uint32_t (&b)[N][2]) {
#pragma unroll
  for (int i = 0; i < N; i++)
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(sums[i][0]), "+f"(sums[i][1]), "+f"(sums[i][2]), "+f"(sums[i][3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[i][0]), "r"(b[i][1]));
}
template <int N>
NB_DEVICE void mma_bf16(float (&sums)[N][4], const uint32_t (&a)[4], const uint32_t (&b)[N][2]) {
#pragma unroll
  for (int i = 0; i < N; i++)
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(sums[i][0]), "+f"(sums[i][1]), "+f"(sums[i][2]), "+f"(sums[i][3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[i][0]), "r"(b[i][1]));
}

/* The same of bytes, a 16x32 and b 32x8: a word has four neighbours along k, from 4t and from 4t + 16 on, where a pair
 * had two from 2t and 2t + 8 on. Of whole numbers with signs: exact, modulo 2^32. */
template <int N>
NB_DEVICE void mma_s8(int32_t (&sums)[N][4], const uint32_t (&a)[4], const uint32_t (&b)[N][2]) {
#pragma unroll
  for (int i = 0; i < N; i++)
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+r"(sums[i][0]), "+r"(sums[i][1]), "+r"(sums[i][2]), "+r"(sums[i][3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[i][0]), "r"(b[i][1]));
}
/* Of e4m3 numbers, with sums in f32. Before sm_89 by way of f16: k's order is the tensor cores' own affair. */
template <int N>
NB_DEVICE void mma_e4m3(float (&sums)[N][4], const uint32_t (&a)[4], const uint32_t (&b)[N][2]) {
#if __CUDA_ARCH__ >= 890
#pragma unroll
  for (int i = 0; i < N; i++)
    asm("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(sums[i][0]), "+f"(sums[i][1]), "+f"(sums[i][2]), "+f"(sums[i][3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[i][0]), "r"(b[i][1]));
#else
#pragma unroll
  for (int half = 0; half < 2; half++) {
    uint32_t wide_a[4], wide_b[N][2];
#pragma unroll
    for (int i = 0; i < 4; i++) wide_a[i] = f16_pair_of_e4m3(a[2 * half + i % 2] >> i / 2 * 16);
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
      for (int i = 0; i < 2; i++) wide_b[n][i] = f16_pair_of_e4m3(b[n][half] >> i * 16);
    mma_f16(sums, wide_a, wide_b);
  }
#endif
}
#endif
#endif

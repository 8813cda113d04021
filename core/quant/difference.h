/* difference.h - the sums over two segments of rows, in the first-level cache, written once
 * over vectors of eight and compiled for each instruction set; the same bits everywhere. */
#ifndef NB_QUANT_DIFFERENCE_H
#define NB_QUANT_DIFFERENCE_H

#include "dtype.h"

/* Columns of a segment: few enough that sums in float32 lose nothing that counts. A step is two vectors,
 * the even columns and the odd ones: so pairs in four bytes, or in one, come apart by a shift and a mask. */
enum { NB_SEGMENT = 2048, NB_SEGMENT_STEP = 16 };

/* Sums of squares of the error b - a and of a, and of products a * error. The others
 * follow: a b = a^2 + a error, b^2 = a^2 + 2 a error + error^2. */
typedef struct nb_segment_sums {
  double error2, a2, dot;
} nb_segment_sums;

/* Adds segments of n <= NB_SEGMENT floats, with room for a whole step behind them; -> the
 * largest difference, or -1 when float32 does not hold the sums (numbers very large or
 * very small, NaN, infinities, a b so small that its square is lost beside a's): then
 * nothing was added. */
typedef float nb_segment_fn(nb_segment_sums *sums, float *a, float *b, int64_t n);
nb_segment_fn nb_segment_portable, nb_segment_avx2;

/* A segment of codes, eight of 4 bits in a word, lowest first, or e4m3; scale and zero of the group that
 * `first` columns of are behind it already, and of those that follow. */
typedef struct nb_segment_codes {
  const void *codes;
  const float *scale;
  const int32_t *zero; /* NULL: the codes are e4m3 */
  int64_t group, first;
  int64_t ahead; /* bytes behind the floats that are wanted soon */
} nb_segment_codes;

/* The same sums of floats (f32, bf16 or f16) and codes without either in memory as floats. Scales of 4-bit codes
 * come from 16 bits, so that code * scale - zero * scale is exact in float32; those of e4m3 are below
 * NB_SEGMENT_SCALE. codes_first: a is the codes. n, group and first are multiples of a step. */
#define NB_SEGMENT_SCALE 0x1p119f
float nb_segment_codes_avx2(nb_segment_sums *sums, const void *floats, int dtype, const nb_segment_codes *q,
                            int64_t n, bool codes_first);

/* ---- what the instruction sets' files share --------------------------------------- */

typedef float nb_v8f __attribute__((vector_size(32)));
typedef int32_t nb_v8i __attribute__((vector_size(32)));

typedef struct nb_step {
  nb_v8f even, odd;
} nb_step;

/* One of a step's two vectors, summed; and both. */
typedef struct nb_lanes {
  nb_v8f error2, a2, dot, most;
} nb_lanes;
typedef struct nb_both_lanes {
  nb_lanes even, odd;
} nb_both_lanes;

static inline __attribute__((always_inline)) nb_step nb_load_step(const float *x) {
  nb_v8f a, b;
  memcpy(&a, x, sizeof a);
  memcpy(&b, x + 8, sizeof b);
  return (nb_step){__builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14),
                   __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15)};
}

static inline nb_v8f nb_greater(nb_v8f x, nb_v8f most) {
#ifdef __AVX2__
  return (nb_v8f)__builtin_ia32_maxps256(x, most);
#else
  nb_v8i m = x > most;
  return (nb_v8f)((m & (nb_v8i)x) | (~m & (nb_v8i)most));
#endif
}

/* x * y + sum, rounded once: an instruction where vectors are eight wide. */
static inline nb_v8f nb_fma(nb_v8f x, nb_v8f y, nb_v8f sum) {
#ifdef __FMA__
  return (nb_v8f)__builtin_ia32_vfmaddps256(x, y, sum);
#else
  for (int i = 0; i < 8; i++) sum[i] = __builtin_fmaf(x[i], y[i], sum[i]);
  return sum;
#endif
}

static inline __attribute__((always_inline)) nb_lanes nb_lanes_add(nb_lanes l, nb_v8f a, nb_v8f b) {
  nb_v8f e = b - a;
  l.error2 = nb_fma(e, e, l.error2);
  l.a2 = nb_fma(a, a, l.a2);
  l.dot = nb_fma(a, e, l.dot);
  l.most = nb_greater((nb_v8f)((nb_v8i)e & ((nb_v8i){0} + 0x7fffffff)), l.most);
  return l;
}

static inline __attribute__((always_inline)) nb_both_lanes nb_step_add(nb_both_lanes l, nb_step a,
                                                                       nb_step b) {
  return (nb_both_lanes){nb_lanes_add(l.even, a.even, b.even), nb_lanes_add(l.odd, a.odd, b.odd)};
}

static inline float nb_sum8(nb_v8f x) {
  x += __builtin_shufflevector(x, x, 4, 5, 6, 7, 0, 1, 2, 3);
  x += __builtin_shufflevector(x, x, 2, 3, 0, 1, 6, 7, 4, 5);
  return x[0] + x[1];
}

static inline float nb_max8(nb_v8f x) {
  x = nb_greater(x, __builtin_shufflevector(x, x, 4, 5, 6, 7, 0, 1, 2, 3));
  x = nb_greater(x, __builtin_shufflevector(x, x, 2, 3, 0, 1, 6, 7, 4, 5));
  return x[0] > x[1] ? x[0] : x[1];
}

/* Into the sums, and what a nb_segment_fn returns. */
static inline __attribute__((always_inline)) float nb_lanes_finish(nb_segment_sums *sums, nb_both_lanes l) {
  float error2 = nb_sum8(l.even.error2 + l.odd.error2), a2 = nb_sum8(l.even.a2 + l.odd.a2);
  float dot = nb_sum8(l.even.dot + l.odd.dot), max = nb_max8(nb_greater(l.even.most, l.odd.most));
  bool holds = error2 + a2 < 0x1p100f && a2 >= 0x1p-80f && (max == 0 || max >= 0x1p-50f) &&
               a2 + 2 * dot + error2 >= 0x1p-8f * a2;
  if (!holds) return -1;
  sums->error2 += (double)error2;
  sums->a2 += (double)a2;
  sums->dot += (double)dot;
  return max;
}

static inline float nb_segment_of_floats(nb_segment_sums *sums, float *a, float *b, int64_t n) {
  nb_both_lanes l = {0};
  for (int64_t i = n; i % NB_SEGMENT_STEP; i++) a[i] = b[i] = 0;
  for (int64_t i = 0; i < n; i += NB_SEGMENT_STEP)
    l = nb_step_add(l, nb_load_step(a + i), nb_load_step(b + i));
  return nb_lanes_finish(sums, l);
}

#endif

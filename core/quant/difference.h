/* difference.h - the sums over two segments of rows, in the first-level cache, written once
 * over vectors of eight and compiled for each instruction set; the same bits everywhere. */
#ifndef NB_QUANT_DIFFERENCE_H
#define NB_QUANT_DIFFERENCE_H

#include "dtype.h"

/* Columns of a segment: few enough that sums in float32 lose nothing that counts. A step is two vectors:
 * columns 0 to 3 and 8 to 11, and the other eight, as two-byte numbers widen within halves of a register. */
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
typedef float nb_v4f __attribute__((vector_size(16)));
typedef int32_t nb_v8i __attribute__((vector_size(32)));

/* One of a step's two vectors, summed. */
typedef struct nb_lanes {
  nb_v8f error2, a2, dot, most;
} nb_lanes;

/* x[0..3] and x[8..11]. */
static inline nb_v8f nb_load_half_step(const float *x) {
  nb_v4f lower, upper;
  memcpy(&lower, x, sizeof lower);
  memcpy(&upper, x + 8, sizeof upper);
  return __builtin_shufflevector(lower, upper, 0, 1, 2, 3, 4, 5, 6, 7);
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
static inline __attribute__((always_inline)) float nb_lanes_finish(nb_segment_sums *sums, nb_lanes low,
                                                                   nb_lanes high) {
  float error2 = nb_sum8(low.error2 + high.error2), a2 = nb_sum8(low.a2 + high.a2);
  float dot = nb_sum8(low.dot + high.dot), max = nb_max8(nb_greater(low.most, high.most));
  bool holds = error2 + a2 < 0x1p100f && a2 >= 0x1p-80f && (max == 0 || max >= 0x1p-50f) &&
               a2 + 2 * dot + error2 >= 0x1p-8f * a2;
  if (!holds) return -1;
  sums->error2 += (double)error2;
  sums->a2 += (double)a2;
  sums->dot += (double)dot;
  return max;
}

static inline float nb_segment_of_floats(nb_segment_sums *sums, float *a, float *b, int64_t n) {
  nb_lanes low = {0}, high = {0};
  for (int64_t i = n; i % NB_SEGMENT_STEP; i++) a[i] = b[i] = 0;
  for (int64_t i = 0; i < n; i += NB_SEGMENT_STEP) {
    low = nb_lanes_add(low, nb_load_half_step(a + i), nb_load_half_step(b + i));
    high = nb_lanes_add(high, nb_load_half_step(a + i + 4), nb_load_half_step(b + i + 4));
  }
  return nb_lanes_finish(sums, low, high);
}

#endif

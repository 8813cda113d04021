/* difference.h - the sums over two segments of rows, in the first-level cache, written once
 * over vectors of eight and compiled for each instruction set; the same bits everywhere. */
#ifndef NB_QUANT_DIFFERENCE_H
#define NB_QUANT_DIFFERENCE_H

#include "dtype.h"

/* Columns of a segment: few enough that sums in float32 lose nothing that counts. */
enum { NB_SEGMENT = 1024, NB_SEGMENT_LANES = 16 };

/* Sums of squares of the error b - a and of a, and of products a * error, by lanes. The
 * others follow: a b = a^2 + a error, b^2 = a^2 + 2 a error + error^2. */
typedef struct nb_segment_sums {
  double error2[NB_SEGMENT_LANES], a2[NB_SEGMENT_LANES], dot[NB_SEGMENT_LANES];
} nb_segment_sums;

/* Adds segments of n <= NB_SEGMENT floats, with room for whole lanes behind them; -> the
 * largest difference, or -1 when float32 does not hold the sums (numbers very large or
 * very small, NaN, infinities, a b so small that its square is lost beside a's): then
 * nothing was added. */
typedef float nb_segment_fn(nb_segment_sums *sums, float *a, float *b, int64_t n);
nb_segment_fn nb_segment_portable, nb_segment_avx2;

/* A segment of 4-bit codes, eight in a word, lowest first; scale and zero of the group that
 * `first` columns of are behind it already, and of those that follow. */
typedef struct nb_nibbles {
  const uint32_t *words;
  const float *scale;
  const int32_t *zero;
  int64_t group, first;
  int64_t ahead; /* bytes behind the floats that are wanted soon */
} nb_nibbles;

/* The same sums of floats (f32, bf16 or f16) and codes without either in memory as floats. Scales
 * come from 16 bits, so that code * scale - zero * scale is exact in float32; codes_first: a is the
 * codes. n, group and first are multiples of NB_SEGMENT_LANES. */
float nb_segment_nibbles_avx2(nb_segment_sums *sums, const void *floats, int dtype, const nb_nibbles *q,
                              int64_t n, bool codes_first);

/* ---- what the instruction sets' files share --------------------------------------- */

typedef float nb_v8f __attribute__((vector_size(32)));
typedef int32_t nb_v8i __attribute__((vector_size(32)));

/* Eight of a segment's sixteen lanes, in registers. */
typedef struct nb_lanes {
  nb_v8f error2, a2, dot, most;
} nb_lanes;

static inline nb_v8f nb_load8(const float *x) {
  nb_v8f v;
  memcpy(&v, x, sizeof v);
  return v;
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

/* Into the sums, and what a nb_segment_fn returns. */
static inline float nb_lanes_finish(nb_segment_sums *sums, nb_lanes low, nb_lanes high) {
  nb_v8f error = low.error2 + high.error2, size = low.a2 + high.a2, product = low.dot + high.dot;
  nb_v8f most = nb_greater(low.most, high.most);
  float max = 0, error2 = 0, a2 = 0, dot = 0;
  for (int i = 0; i < 8; i++) {
    error2 += error[i];
    a2 += size[i];
    dot += product[i];
    max = most[i] > max ? most[i] : max;
  }
  bool holds = error2 + a2 < 0x1p100f && a2 >= 0x1p-80f && (max == 0 || max >= 0x1p-50f) &&
               a2 + 2 * dot + error2 >= 0x1p-8f * a2;
  if (!holds) return -1;
  for (int i = 0; i < 8; i++) {
    sums->error2[i] += (double)low.error2[i];
    sums->a2[i] += (double)low.a2[i];
    sums->dot[i] += (double)low.dot[i];
    sums->error2[8 + i] += (double)high.error2[i];
    sums->a2[8 + i] += (double)high.a2[i];
    sums->dot[8 + i] += (double)high.dot[i];
  }
  return max;
}

static inline float nb_segment_of_floats(nb_segment_sums *sums, float *a, float *b, int64_t n) {
  nb_lanes low = {0}, high = {0};
  for (int64_t i = n; i % NB_SEGMENT_LANES; i++) a[i] = b[i] = 0;
  for (int64_t i = 0; i < n; i += NB_SEGMENT_LANES) {
    low = nb_lanes_add(low, nb_load8(a + i), nb_load8(b + i));
    high = nb_lanes_add(high, nb_load8(a + i + 8), nb_load8(b + i + 8));
  }
  return nb_lanes_finish(sums, low, high);
}

#endif

/* blocks.h - sums over a block of doubles in the first-level cache, in fixed lanes:
 * the same bits on every instruction set. What stats.c and compare.c are made of. */
#ifndef NB_BLOCKS_H
#define NB_BLOCKS_H

#include "base.h"

/* Elements of a block; lanes of a sum. Blocks have room for whole lanes. */
enum { NB_BLOCK = 2048, NB_LANES = 8 };

typedef struct nb_moments {
  int64_t n, zeros, nan, inf;
  double min, max, mean, m2, m3, m4; /* sums of powers of (x - mean) */
} nb_moments;

typedef struct nb_difference {
  double error2, a2, b2, dot, max_abs;
} nb_difference;

typedef struct nb_blocks {
  void (*widen)(double *out, const float *in, int64_t n);
  /* 0 when every value is finite. */
  bool (*has_odd)(const double *x, int64_t n);
  /* n > 0 finite values; fills all but nan and inf. Writes behind x[n], to the next whole lanes. */
  void (*moments)(nb_moments *out, double *x, int64_t n);
  void (*difference)(nb_difference *out, double *x, double *y, int64_t n);
} nb_blocks;

/* The fastest that nb_cpu() allows. */
const nb_blocks *nb_blocks_get(void);
extern const nb_blocks nb_blocks_avx2, nb_blocks_avx512;

#endif

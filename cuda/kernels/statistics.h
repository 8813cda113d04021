/* statistics.h - what calibration's kernels and who launches them agree on: for C and C++. */
#ifndef NB_STATISTICS_H
#define NB_STATISTICS_H
#include <stdint.h>
#include "numbers.h"

/* Threads of a block; of one that adds up columns, and rows that it has on their way. */
enum { NB_STATISTICS_THREADS = 256, NB_STATISTICS_COLUMNS = 32, NB_STATISTICS_AHEAD = 32 };

/* nb_act_options as kernels take them, and the grid (core/quant/act_grid.h); dtypes are kernels'. */
typedef struct nb_statistics_quant {
  int32_t is_float, bits, symmetric, dynamic, scale_dtype, dtype;
  int32_t shift;
  uint32_t normal;
  float magic, min, max;
  float scale, zero, global;
} nb_statistics_quant;

/* Rows of pairs: units to a row, experts to a token, entries of the map, experts here. */
typedef struct nb_statistics_pairs {
  int32_t each, top, entries, experts;
} nb_statistics_pairs;

/* Words of what a tensor's scale is made of, 0 before: kernels/statistics.cu. */
enum { NB_STATISTICS_WORDS = 3 };
/* Bytes of shared memory. */
#define NB_STATISTICS_SHARED (NB_STATISTICS_THREADS / 32 * 12)
#endif

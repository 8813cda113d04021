/* requantize_fp8.h - what who launches requantize_fp8.cu must know: for C and C++. */
#ifndef NB_REQUANTIZE_FP8_H
#define NB_REQUANTIZE_FP8_H
#include <stdint.h>

enum { NB_FP8_MOST_SHARDS = 8 };

/* Where an expert's shards begin, in bytes; after the last its end. */
typedef struct nb_fp8_shards {
  int64_t from[NB_FP8_MOST_SHARDS + 1];
} nb_fp8_shards;

#endif

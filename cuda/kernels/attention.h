/* attention.h - what attention's kernels and who launches them agree on: for C and C++. */
#ifndef NB_ATTENTION_H
#define NB_ATTENTION_H
#include "numbers.h"

/* Queries and threads of a block: four warps with 16 queries each. */
enum { NB_ATTENTION_QUERIES = 64, NB_ATTENTION_THREADS = 128 };

/* Queries of a block of float32: a warp each. */
enum { NB_ATTENTION_F32_QUERIES = 8 };

/* of heads with `d` numbers (a kernel's: a multiple of 32), keys that a block takes at a time. */
#define NB_ATTENTION_KEYS(d) ((d) <= 128 ? 64 : 32)
/* Bytes of shared memory: the queries, and keys and values twice. */
#define NB_ATTENTION_SHARED(d) ((NB_ATTENTION_QUERIES + 4 * NB_ATTENTION_KEYS(d)) * (d)*2)

/* The numbers of one call. */
typedef struct nb_attention_shape {
  int32_t heads, kv_heads, head_dim, length, sequences;
  int32_t sliding; /* keys that a query sees, itself included */
  int32_t whole;   /* heads are whole multiples of 16 bytes, on such places */
  float scale;     /* of scores; of 16 bits times log2(e) */
} nb_attention_shape;
#endif

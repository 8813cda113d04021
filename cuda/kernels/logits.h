/* logits.h - what the logits' kernels and who launches them agree on: for C and C++. */
#ifndef NB_LOGITS_H
#define NB_LOGITS_H
#include <stdint.h>
#include "numbers.h"

/* Threads of a block; entries of the vocabulary and tokens whose logits exist at once; rows of x that a warp of the simple
 * product takes. */
enum { NB_LOGITS_THREADS = 256, NB_LOGITS_COLUMNS = 8192, NB_LOGITS_ROWS = 1024, NB_LOGITS_PRODUCT_ROWS = 4 };

/* Numbers, all double, of what is known of a token's logits. */
enum { NB_LOGITS_STATE = 11 };

/* A block of logits: entries from n0 on, `columns` of them, side by side in rows as far apart. */
typedef struct nb_logits_block {
  int32_t n0, columns, vocab;
  int32_t first, last; /* of the vocabulary */
} nb_logits_block;

/* Bytes of shared memory: what each warp found, of two sides. */
#define NB_LOGITS_SHARED (NB_LOGITS_THREADS / 32 * 16)
#endif

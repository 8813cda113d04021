/* marlin_numeric.h - what who launches the kernels of marlin_numeric.cu must know: for C and C++. */
#ifndef NB_MARLIN_NUMERIC_H
#define NB_MARLIN_NUMERIC_H

/* Threads of a block; blocks of a processor, for which registers are kept free. */
enum { NB_NUMERIC_THREADS = 256, NB_NUMERIC_BLOCKS = 5 };

/* What nb_marlin_max leaves, 0 before: the largest of the numbers as whole numbers of their order, from NB_NUMERIC_ZERO
 * for 0 up and down; the largest magnitude's bits. */
enum { NB_NUMERIC_ZERO = 0x8000 };
typedef struct nb_numeric_range {
  unsigned greatest, widest;
} nb_numeric_range;
#endif

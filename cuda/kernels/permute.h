/* permute.h - what who launches the kernels of permute.cu must know: for C and C++. */
#ifndef NB_PERMUTE_H
#define NB_PERMUTE_H

/* Elements of a block; warps of a thread block; thread blocks of a processor, for which registers are kept free: fewer
 * where 32 elements make 16 bytes. */
enum { NB_PERMUTE_BLOCK = 64, NB_PERMUTE_WARPS = 4, NB_PERMUTE_BLOCKS = 8, NB_PERMUTE_BLOCKS_4 = 4 };

/* The element of its block that place p takes. */
typedef struct nb_permutation {
  unsigned char from[NB_PERMUTE_BLOCK];
} nb_permutation;

/* Bytes of shared memory of a launch: 512 for each warp. */
enum { NB_PERMUTE_SHARED = NB_PERMUTE_WARPS * 512 };
#endif

/* moe_align.h - what who launches the kernels of moe_align.cu must know: for C and C++. */
#ifndef NB_MOE_ALIGN_H
#define NB_MOE_ALIGN_H

/* Warps of the one thread block, each with a count for every expert in shared memory: as many as pairs keep busy and
 * NB_MOE_ALIGN_SHARED bytes hold. At most so many experts. */
enum {
  NB_MOE_ALIGN_EXPERTS = 4096,
  NB_MOE_ALIGN_WARPS = 32,
  NB_MOE_ALIGN_PAIRS = 64, /* of a warp, before another one is worth while */
  NB_MOE_ALIGN_SHARED = 96 * 1024
};

/* (token, expert) pairs and where they go. */
typedef struct nb_moe_pairs {
  int pairs, top;     /* pairs: all of them; those of one token */
  int experts, known; /* the local ones; entries of the map, without one as experts */
  int block,
      places; /* of nb_moe_align: places of a block; of nb_moe_place: of an expert. places: all of them */
  int marked; /* the map marks blocks, pairs are sorted by global expert */
} nb_moe_pairs;

#endif

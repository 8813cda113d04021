/* repack.h - what who launches the repack kernels (repack.cu) must know: for C and C++. */
#ifndef NB_REPACK_H
#define NB_REPACK_H

/* Warps of a block; each works for itself. Tiles that a warp has under way. */
enum { NB_REPACK_WARPS = 4, NB_REPACK_STAGES = 4, NB_REPACK_STAGES_PERM = 2 };

/* 32-bit words of shared memory between two rows of a tile's source: what keeps the
 * lanes of a warp in different banks. */
enum {
  NB_REPACK_PITCH = 72,
  NB_REPACK_PITCH_PERM = 68,
  NB_REPACK_PITCH_AWQ4 = 12,
  NB_REPACK_PITCH_AWQ8 = 20
};

/* Bytes of shared memory of a launch. */
static inline unsigned nb_repack_gptq_shared(int bits, int perm) {
  unsigned words = perm ? 16 * NB_REPACK_PITCH_PERM * NB_REPACK_STAGES_PERM
                        : (unsigned)bits / 2 * NB_REPACK_PITCH * NB_REPACK_STAGES;
  return words * 4 * NB_REPACK_WARPS;
}
static inline unsigned nb_repack_awq_shared(int bits) {
  return (unsigned)(bits == 4 ? NB_REPACK_PITCH_AWQ4 : NB_REPACK_PITCH_AWQ8) * 16 * NB_REPACK_STAGES * 4 *
         NB_REPACK_WARPS;
}
#endif

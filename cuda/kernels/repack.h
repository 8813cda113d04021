/* repack.h - what who launches the repack kernels (repack.cu) must know: for C and C++. */
#ifndef NB_REPACK_H
#define NB_REPACK_H

/* Warps of a block; each works for itself. Blocks of a processor, where shared memory lets them be: what registers
 * are kept free for. Tiles that a warp has under way. ORDERED: with an activation order. */
enum {
  NB_REPACK_WARPS = 4,
  NB_REPACK_BLOCKS = 8,
  NB_REPACK_BLOCKS_ORDERED = 5,
  NB_REPACK_STAGES = 4,
  NB_REPACK_STAGES_ORDERED = 2
};

/* 32-bit words of shared memory between two rows of a tile's source, by the bytes of an activation: what keeps the
 * lanes of a warp in different banks. AWQ's rows have NB_REPACK_SKEW_AWQ more after every eighth. */
enum {
  NB_REPACK_PITCH = 72,
  NB_REPACK_PITCH_A8 = 40,
  NB_REPACK_PITCH_ORDERED = 68,
  NB_REPACK_PITCH_AWQ4 = 12,
  NB_REPACK_PITCH_AWQ8 = 20,
  NB_REPACK_PITCH_AWQ4_A8 = 4,
  NB_REPACK_PITCH_AWQ8_A8 = 12,
  NB_REPACK_SKEW_AWQ = 4
};

/* Bytes of shared memory of a launch. */
static inline int nb_repack_gptq_shared(int bits, int a8) {
  int rows = (a8 ? 32 : 16) * bits / 32, pitch = a8 ? NB_REPACK_PITCH_A8 : NB_REPACK_PITCH;
  return rows * pitch * 4 * NB_REPACK_STAGES * NB_REPACK_WARPS;
}
static inline int nb_repack_ordered_shared(void) {
  return 16 * NB_REPACK_PITCH_ORDERED * 4 * NB_REPACK_STAGES_ORDERED * NB_REPACK_WARPS;
}
static inline int nb_repack_awq_shared(int bits, int a8) {
  int pitch = bits == 4 ? a8 ? NB_REPACK_PITCH_AWQ4_A8 : NB_REPACK_PITCH_AWQ4
              : a8      ? NB_REPACK_PITCH_AWQ8_A8
                        : NB_REPACK_PITCH_AWQ8;
  int rows = a8 ? 32 : 16;
  return (rows * pitch + rows / 8 * NB_REPACK_SKEW_AWQ) * 4 * NB_REPACK_STAGES * NB_REPACK_WARPS;
}
#endif

/* product_fp8.h - what who launches the FP8 product (product_fp8.cu) must know: for C and C++. */
#ifndef NB_PRODUCT_FP8_H
#define NB_PRODUCT_FP8_H
#ifdef __cplusplus
#define NB_FP8_KNOWN static inline constexpr
#else
#define NB_FP8_KNOWN static inline
#endif

/* Columns of y of a block; floats from row to row of a warp's sums in shared memory. */
enum { NB_FP8_COLUMNS = 32, NB_FP8_PITCH = 36 };
/* Columns of k that share a scale, where they do. */
enum { NB_FP8_GROUP = 128 };

/* Where the scale of a row's group of k lies: at (row >> shift) * pitch + group * along. */
typedef struct nb_fp8_scales {
  int shift, pitch, along;
} nb_fp8_scales;

/* Warps of a block, 4 at least, which share k: so many at most, by registers. tokens: rows of x of a block / 8. */
NB_FP8_KNOWN int nb_fp8_most_warps(int tokens, int groups) {
  return tokens == 1 && !groups ? 16 : tokens <= 2 ? 8 : 4;
}
/* Bytes of shared memory of a launch for `rows` rows of x to a block. */
NB_FP8_KNOWN int nb_fp8_shared(int rows, int warps) { return warps * rows * NB_FP8_PITCH * 4; }

#endif

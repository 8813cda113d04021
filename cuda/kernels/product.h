/* product.h - what who launches the product kernels (product.cu) must know: for C and C++. `blocks`: 1, 2 or 4, the
 * blocks of 16 rows of x that one of its blocks takes; gridDim.y: how many times that many rows. */
#ifndef NB_PRODUCT_H
#define NB_PRODUCT_H
#ifdef __cplusplus
#define NB_PRODUCT_KNOWN static inline constexpr
#else
#define NB_PRODUCT_KNOWN static inline
#endif

/* Columns of a tile of y; stages of k under way; rows of k that a warp takes of a stage; threads of a block. */
enum { NB_PRODUCT_COLUMNS = 128, NB_PRODUCT_STAGES = 4, NB_PRODUCT_WARP_K = 64, NB_PRODUCT_THREADS = 128 };

/* Tiles of y, times blocks of rows, that a launch counts at most. */
enum { NB_PRODUCT_MOST_TILES = 1 << 16 };

/* Rows of x that a block of nb_product_rows (product_rows.cu) takes. */
enum { NB_PRODUCT_ROWS_AT_ONCE = 4 };

/* Of a block's four warps two lie side by side along n; the others have the rest of a stage's k or other rows. */
NB_PRODUCT_KNOWN int nb_product_warps_k(int blocks) { return blocks <= 2 ? 2 : 1; }
/* Rows of k of a stage. */
NB_PRODUCT_KNOWN int nb_product_k(int blocks) { return NB_PRODUCT_WARP_K * nb_product_warps_k(blocks); }

/* Bytes of a stage: x, words, then a row of scales and one of zero-points for each group of it. */
NB_PRODUCT_KNOWN int nb_product_x_bytes(int blocks) { return 16 * blocks * nb_product_k(blocks) * 2; }
NB_PRODUCT_KNOWN int nb_product_word_bytes(int blocks, int bits) {
  return nb_product_k(blocks) * NB_PRODUCT_COLUMNS * bits / 8;
}
static inline int nb_product_stage_bytes(int blocks, int bits, int group_rows, int scale_bytes, int zeros) {
  return nb_product_x_bytes(blocks) + nb_product_word_bytes(blocks, bits) +
         group_rows * (NB_PRODUCT_COLUMNS * scale_bytes + (zeros ? NB_PRODUCT_COLUMNS * bits / 8 : 0));
}
/* Of experts, behind the stages: where each row of x lies. */
NB_PRODUCT_KNOWN int nb_product_experts_bytes(int blocks) { return 16 * blocks * 4; }
/* The same of product_rows.cu's kernels: sums, or a word a thread. */
NB_PRODUCT_KNOWN int nb_product_rows_bytes(void) {
  return NB_PRODUCT_THREADS * NB_PRODUCT_ROWS_AT_ONCE * 8 * 4;
}
/* Floats that a block leaves of a tile. */
NB_PRODUCT_KNOWN int nb_product_part(int blocks) { return 16 * blocks * NB_PRODUCT_COLUMNS; }
/* Blocks that fit onto a processor, by registers: 65,536 for 128 threads each. */
NB_PRODUCT_KNOWN int nb_product_resident(int blocks, int bits) { return blocks == 1 && bits == 4 ? 3 : 2; }
#endif

/* layout.h - what the layout files share: checks of word tensors and codes, and
 * planes of bit streams, the one engine under every packing along K or N. */
#ifndef NB_LAYOUT_H
#define NB_LAYOUT_H

#include "base.h"

/* Slot -> column inside a group of pf = 32/bits columns (MRL-12), and back (MRL-13). */
extern const uint8_t nb_awq_order4[8], nb_awq_order8[4];
extern const uint8_t nb_awq_slot4[8], nb_awq_slot8[4];

/* Fails unless t is I32 (or U32) words of this shape (-1: any size). */
int nb_expect_words(const nb_tensor *t, const char *what, int ndim, const int64_t *shape);
/* Fails unless rows [n0, n0+r) are rows of 0..n that begin and end on a multiple
 * of `unit`, except that the last may end at n. */
int nb_expect_rows(const char *what, int64_t n0, int64_t r, int64_t n, int64_t unit);
int nb_expect_bits(const char *what, int bits, int lo, int hi);
/* The sentence for codes (u8, 2-D) of which one does not fit `bits`: names the
 * first. NB_OK when all fit. */
int nb_codes_check(const nb_tensor *codes, int bits, const char *what);

/* `streams` bit streams of `total` codes each, LSB first in 32-bit words.
 *
 *   dense:   code i at bits i*b .. i*b+b-1, across word borders: 32 codes in b words
 *   legacy:  floor(32/b) codes a word, the top bits empty
 *
 *   bit      0     3     6     9              30   | 32
 *   b = 3    |c0   |c1   |c2   | ...          |c10 : c10|c11 ...   dense
 *            |c0   |c1   |c2   | ...  |c9     |--  | c10 ...       legacy
 *
 * Word j of stream s is words[s*word_stream + j*word_step]; code i of the window
 * [first, first+count) that `codes` holds is codes[s*code_stream + (i-first)*code_step].
 * Packing a window leaves the codes beside it alone and zeroes the bits past total. */
typedef struct nb_plane {
  uint32_t *words;
  uint8_t *codes;
  int64_t word_step, word_stream, code_step, code_stream;
  int64_t streams, total, first, count;
  int bits;
  bool legacy;
  bool minus_one; /* words hold code-1 mod 2^bits (GPTQ v1 zero-points) */
} nb_plane;

/* Words of one stream. */
int64_t nb_plane_width(int64_t total, int bits, bool legacy);
/* codes: the tensor that p's codes are, named in the sentence for one out of range. */
int nb_plane_pack(const nb_plane *p, const nb_tensor *codes, const char *what);
int nb_plane_unpack(const nb_plane *p);

/* to [cols,rows] = from [rows,cols], words, each to_ld and from_ld words from row to row; by threads, or by this
 * one alone. */
void nb_transpose_words_alone(uint32_t *to, int64_t to_ld, const uint32_t *from, int64_t from_ld,
                              int64_t rows, int64_t cols);
int nb_transpose_words(uint32_t *to, int64_t to_ld, const uint32_t *from, int64_t from_ld, int64_t rows,
                       int64_t cols);
/* k by n codes in 4-bit words, as `way` (NB_AWQ_TO_CT, ...) says, without threads; of AWQ at most 512 k. */
void nb_repack_alone(uint32_t *to, int64_t to_ld, uint32_t *from, int64_t from_ld, int way, int64_t k,
                     int64_t n);

/* ---- marlin (marlin.c) ------------------------------------------------------ */

enum { NB_MARLIN_TILE_CODES = 1024, NB_MARLIN_STD = 0, NB_MARLIN_AWQ = 1 };

/* Where the codes of a tile go: slot u of its word m holds code at[m*pf + u],
 * counted row-major in the tile [k,n]. */
typedef struct nb_marlin_tile {
  int k, n, bits;
  uint16_t at[NB_MARLIN_TILE_CODES];
} nb_marlin_tile;

void nb_marlin_tile_init(nb_marlin_tile *t, int bits, bool a8);

/* Matrices that are repacked: [.,.] or [E,.,.] words. */
typedef struct nb_marlin_sizes {
  int64_t experts, k, n;
  nb_marlin_tile tile;
} nb_marlin_sizes;

/* The sizes of source words (NB_MARLIN_STD or _AWQ), which a repack can take. */
int nb_marlin_sizes_of(nb_marlin_sizes *s, const nb_tensor *source, int order, int bits, int a8,
                       const char *what);
/* The shape of the words that they become, of as many dimensions. */
void nb_marlin_shape(int64_t shape[3], const nb_marlin_sizes *s, int ndim);
/* perm [K] or [E,K], each row a permutation of 0..K-1, to its elements; NULL and [0] or [E,0] mean none: NULL. */
int nb_marlin_perm_of(const int32_t **rows, const nb_tensor *perm, const nb_marlin_sizes *s, int ndim, int a8,
                      const char *what);

/* Scales lie in blocks of 64 columns (32 and 32 when not grouped), zero-points in
 * words of 64: the column, within the 64, that place p holds (marlin_scales.c). */
void nb_marlin_scale_columns(uint8_t column[64], bool grouped);
void nb_marlin_zero_columns(uint8_t column[64], int bits, bool a8);
/* Whether the scales of a matrix of k rows, g to a group, are permuted in 64s. */
bool nb_marlin_grouped(int64_t k, int64_t g, int a8);
/* The element of each 64 that place p takes, for scales or bias t, which can be permuted so. */
int nb_marlin_permutation(uint8_t from[64], const nb_tensor *t, bool grouped, int inverse, const char *what);
/* Where column v of the 32/bits in a word of zero-points lies, AWQ's (NB_MARLIN_AWQ) or plain. */
void nb_marlin_zero_slots(uint8_t slot[8], int bits, int order);
/* The shape of Marlin's words of zero-points, which are words or, one to a byte, u8. */
int nb_marlin_zeros_shape(int64_t shape[3], const nb_tensor *zeros, bool words, int bits, const char *what);

/* One matrix [k,n] between source words (NB_MARLIN_STD: [k/pf,n], NB_MARLIN_AWQ:
 * [k,n/pf], rows ld apart) and marlin words. perm: NULL, or the source row of each
 * marlin row. */
typedef struct nb_marlin_matrix {
  const nb_marlin_tile *tile;
  uint32_t *source, *marlin;
  const int32_t *perm;
  int64_t k, n, ld;
  int order;
} nb_marlin_matrix;

/* n words of 4-bit codes for fp8 activations; z: their zero-points in the same slots, or
 * NULL for 8 everywhere (marlin_numeric.c). to may be in. */
void nb_marlin_fold_words(uint32_t *to, const uint32_t *in, const uint32_t *z, int64_t n);
/* What nb_marlin_fp8_preprocess asks of its operands; how many rows of words, and of zero-points. */
int nb_marlin_fold_check(const nb_tensor *words, const nb_tensor *zeros, int bits, int64_t *experts,
                         int64_t *k, int64_t *groups, const char *what);

/* What nb_act_quant_int8, nb_act_quant_fp8, nb_fp8_requantize and nb_act_quant_fp4 ask of their arguments: for who does the same elsewhere. */
int nb_act_int8_check(const nb_tensor *q, const nb_tensor *scales, const nb_tensor *x);
int nb_act_fp8_check(const nb_tensor *q, const nb_tensor *scales, const nb_tensor *x, int mode);
int nb_fp8_requantize_check(const nb_tensor *out, const nb_tensor *max, const nb_tensor *weight,
                            const nb_tensor *scales, const int64_t *widths);
int nb_act_fp4_check(const nb_tensor *q, const nb_tensor *scales, const nb_tensor *x, float global);
/* Columns that share a scale with NB_ACT_GROUP; the least scale of a mode with one a token or a group. */
enum { NB_ACT_COLUMNS = 128 };
float nb_act_fp8_least(int mode);

/* What the other functions of marlin_numeric.c ask of their scales, and the factor of NVFP4 scales whose largest is
 * max (0: of f16). */
int nb_expect_float16(const nb_tensor *t, const char *what);
int nb_marlin_int8_max_check(float max, const char *what);
double nb_marlin_nvfp4_factor_of(float max);
int nb_marlin_nvfp4_check(const nb_tensor *scales, const char *what);
int nb_marlin_mx_check(const nb_tensor *scales, const char *what);
/* The shape of block scales in the tensor cores' order. */
int nb_swizzle_shape(int64_t shape[3], const nb_tensor *plain, const char *what);

#endif

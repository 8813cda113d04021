/* simd.h - the vector kernels under core/layout. Callers test nb_cpu() first; each
 * kernel gives the words that the portable loop gives.
 *
 * stream: store past the caches, for results too large to be read again from there;
 * the destination and its rows must lie on 32 bytes (nb_layout_streams). */
#ifndef NB_LAYOUT_SIMD_H
#define NB_LAYOUT_SIMD_H

#include "layout.h"

/* Whether a result of so many bytes, in rows of row_words words from p, should and
 * may be streamed. */
static inline bool nb_layout_streams(const void *p, int64_t row_words, int64_t bytes) {
  enum { LARGE = 16 << 20 };
  return bytes >= LARGE && (uintptr_t)p % 32 == 0 && row_words % 8 == 0;
}

/* Tile row kt of a matrix: every width, order and activation; perm too. */
void nb_marlin_tile_row_avx2(const nb_marlin_matrix *x, int64_t kt, bool stream);

/* The first words of nb_marlin_fold_words, as many as fill vectors: returns how many. */
int64_t nb_marlin_fold_avx2(uint32_t *to, const uint32_t *in, const uint32_t *z, int64_t n);

/* Eight rows of nw AWQ 4-bit words as one row of 8*nw GPTQ words, and four rows of
 * nw 8-bit ones (nw % 8 == 0) as one of 4*nw. */
void nb_awq4_to_gptq_row_avx2(uint32_t *gptq, const uint32_t *awq, int64_t ld, int64_t nw);
void nb_awq8_to_gptq_row_avx2(uint32_t *gptq, const uint32_t *awq, int64_t ld, int64_t nw);
/* One row of 8*nw GPTQ 4-bit words as eight rows of nw AWQ words (nw % 8 == 0). */
void nb_gptq_to_awq4_rows_avx2(uint32_t *awq, int64_t ld, const uint32_t *gptq, int64_t nw);

/* Between AWQ and CT 4-bit words, kw CT words by nw AWQ words. To CT: kw a multiple
 * of 8, at most NB_STRIP, nw a multiple of 16; to AWQ: the other way round. */
enum { NB_STRIP = 64 };
void nb_awq4_to_ct_avx2(uint32_t *ct, int64_t ct_ld, const uint32_t *awq, int64_t awq_ld, int64_t kw,
                        int64_t nw, bool stream);
void nb_ct_to_awq4_avx2(uint32_t *awq, int64_t awq_ld, const uint32_t *ct, int64_t ct_ld, int64_t kw,
                        int64_t nw, bool stream);
/* Whether the AWQ words are already what nb_ct_to_awq4_avx2 would make of ct. */
bool nb_ct_is_awq4_avx2(const uint32_t *awq, int64_t awq_ld, const uint32_t *ct, int64_t ct_ld, int64_t kw,
                        int64_t nw);
/* to [cols,rows] = from [rows,cols], words; rows a multiple of 8 and at most
 * NB_STRIP, cols a multiple of 4. */
void nb_words_transpose_avx2(uint32_t *to, int64_t to_ld, const uint32_t *from, int64_t from_ld, int64_t rows,
                             int64_t cols, bool stream);

/* The same of 16-bit elements; rows a multiple of 16, cols of 8. */
void nb_halves_transpose_avx2(uint16_t *to, int64_t to_ld, const uint16_t *from, int64_t from_ld,
                              int64_t rows, int64_t cols);

/* 4-bit codes of one row, count a multiple of 64; packing returns the codes or-ed. */
void nb_nibbles_unpack_avx2(uint8_t *codes, const uint32_t *words, int64_t count);
unsigned nb_nibbles_pack_avx2(uint32_t *words, const uint8_t *codes, int64_t count);
/* codes[n*ld + r] = the nibbles of 16 rows r of four words, plus `plus` mod 16: nibble u of a word is column order[u]
 * of its eight. */
void nb_nibbles_turn_avx2(uint8_t *codes, int64_t ld, const uint32_t *words, int64_t words_ld,
                          const uint8_t *order, int plus);

#endif

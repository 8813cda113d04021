/* dequantize.h - what who launches the dequantize kernels must know: for C and C++. */
#ifndef NB_DEQUANTIZE_H
#define NB_DEQUANTIZE_H
#include <stdint.h>

#include "numbers.h"

/* Kinds of codes: integers less their zero-point, two of small floats, and plain floats, which have no scale. */
enum { NB_CODES_INT = 0, NB_CODES_E4M3, NB_CODES_E2M1, NB_CODES_PLAIN };

/* Where the codes lie: row after row (bytes, compressed-tensors' words, fp4), in GPTQ's words or in AWQ's. */
enum { NB_ALONG_ROWS = 0, NB_ALONG_GPTQ, NB_ALONG_AWQ };

/* A weight [n,k] and what it becomes. Group g of row r has scale (and zero-point) r / rows * groups + g. */
typedef struct nb_dequantize_job {
  int32_t n, k, rows, columns, groups; /* rows, columns: of a scale's block; groups: blocks side by side */
  int32_t bits, along, width; /* of a stored code; its order; bytes of a row, or words of a row of those */
  int32_t codes, code, scale,
      out;               /* NB_CODES_*; NB_KERNEL_* of a code (plain or 8 bits), a scale, an element */
  int32_t zero;          /* of integers without zero-points */
  float divisor, factor; /* of float codes' scales, of their products; 1: none */
} nb_dequantize_job;

enum { NB_DEQUANTIZE_THREADS = 256 };

/* The kernel for words along n (dequantize_words.cu): a block's tile has so many columns of the weight (k), and
 * words from each of the source's rows. PAD words part what different lanes read at once. */
enum {
  NB_DEQUANTIZE_TILE_K = 128,
  NB_DEQUANTIZE_GPTQ_WORDS = 128,
  NB_DEQUANTIZE_AWQ_WORDS = 32,
  NB_DEQUANTIZE_PAD = 4
};

/* Bytes of its shared memory; piece: elements of out in 16 bytes. */
static inline int nb_dequantize_words_shared(int bits, int awq, int piece) {
  int rows = awq ? NB_DEQUANTIZE_TILE_K : NB_DEQUANTIZE_TILE_K * bits / 32;
  int words = awq ? NB_DEQUANTIZE_AWQ_WORDS : NB_DEQUANTIZE_GPTQ_WORDS;
  int together = awq ? piece : piece * bits > 32 ? piece * bits / 32 : 1;
  return 4 * (rows * words + rows / together * NB_DEQUANTIZE_PAD);
}

/* A matrix [k,n] in Marlin's order, of which `columns` from `first` on are made (dequantize_marlin.cu). */
typedef struct nb_dequantize_marlin_job {
  int32_t k, n, first, columns, groups, bits, codes, scale,
      out;      /* codes: NB_CODES_*; scale, out: NB_KERNEL_* */
  float factor; /* of scales */
} nb_dequantize_marlin_job;

/* Warps of its blocks, each with a tile. */
enum { NB_DEQUANTIZE_MARLIN_WARPS = 8 };
#endif

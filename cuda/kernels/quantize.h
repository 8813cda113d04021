/* quantize.h - what who launches the quantize kernels must know: for C and C++. */
#ifndef NB_QUANTIZE_H
#define NB_QUANTIZE_H
#include <stdint.h>

/* Weights of a vector; bytes of them that a thread keeps in registers between its two looks at a block. */
enum {
  NB_QUANTIZE_VECTOR = 8,
  NB_QUANTIZE_HELD_BYTES = 64,
  NB_QUANTIZE_THREADS = 256,
  NB_QUANTIZE_MOST_THREADS = 512
};

/* A weight [n,k] and its blocks of rows x columns, each with one scale; the last of a row or column may be cut. */
typedef struct nb_quantize_blocks {
  int64_t n, k;
  int32_t rows, columns, per_row, count; /* per_row: blocks side by side; count: all of them */
  int32_t lanes;   /* that share a block: a power of two up to 32; 0: all threads of their CUDA block do */
  int32_t vectors; /* 1: columns are whole vectors and everything is aligned; 0: weight by weight */
} nb_quantize_blocks;

/* Round to nearest: nb_rtn_options, and where things lie. */
typedef struct nb_quantize_rtn {
  int32_t bits, symmetric, range, in_dtype; /* in_dtype: arithmetic in the weight's dtype */
  int32_t scale_dtype, whole;               /* whole: the one range of the tensor is there already */
  int64_t scales;                           /* whole: so many, all the same */
} nb_quantize_rtn;

/* Onto small floats: nb_float_options, and how scales are made. */
typedef struct nb_quantize_float {
  float global;
  int32_t scale_dtype, given, vllm;
  int32_t in_dtype; /* absmax and scale rounded to the weight's dtype */
} nb_quantize_float;

/* Activations: what nb_act_quant_int8 (int8) and nb_act_quant_fp8 make; fixed: of one scale that is there; least: the
 * smallest of fp8. */
typedef struct nb_quantize_act {
  int32_t int8, fixed;
  float global, least;
} nb_quantize_act;

/* Words of shared memory of a launch: two of each warp, twice. */
static inline unsigned nb_quantize_shared(unsigned threads) { return threads / 32 * 2 * 2 * 4; }

#endif

/* marlin.h - a strip of a Marlin weight being turned back into floats: what the
 * driver (marlin.c) and the decoders (one per instruction set) share. */
#ifndef NB_COMPUTE_MARLIN_H
#define NB_COMPUTE_MARLIN_H

#include "layout/layout.h"
#include "sgemm.h"

/* Tile rows k0 .. k0+rows, columns n0 .. n0+cols of a matrix, as floats. rows and cols
 * are whole tiles. */
typedef struct nb_marlin_strip {
  const nb_marlin_tile *tile;
  const uint32_t *words; /* of the whole matrix */
  int64_t n;             /* its columns */
  int64_t k0, n0, rows, cols;
  float *w;                   /* out: [rows, NB_TILE_N] */
  const float *const *scales; /* of each row: its group's scales, columns n0 .. */
  const float *const *zeros;  /* likewise; only for the codes that have any */
  int code;
} nb_marlin_strip;

typedef void nb_marlin_decode_fn(const nb_marlin_strip *s);
nb_marlin_decode_fn nb_marlin_decode, nb_marlin_decode_avx2;

#endif

/* scan.h - one block of elements counted by their bits: what scan.c is made of. */
#ifndef NB_SCAN_H
#define NB_SCAN_H

#include "base.h"

/* Bytes of a block: no lane of a vector of 32 bytes counts beyond its 8 bits. */
enum { NB_SCAN_BLOCK = 4096 };

/* How a dtype's bits tell its values: of an element x, sign and all, with flip in it
 * turned over, mask's bits are the magnitude: 0 is zero, below normal subnormal (or zero),
 * above most no number. Signed integers of `bits`, all of them. */
typedef struct nb_value_kind {
  int64_t bits, flip, mask, normal, most;
} nb_value_kind;

typedef struct nb_bit_counts {
  int64_t zeros, small, odd, negative; /* small: zeros too; negative: with the sign set and not zero */
} nb_bit_counts;

/* n elements, at most NB_SCAN_BLOCK bytes, of any alignment. */
typedef void nb_count_fn(nb_bit_counts *out, const void *data, int64_t n, const nb_value_kind *kind);
nb_count_fn nb_count_portable, nb_count_avx2;

#endif

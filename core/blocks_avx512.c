/* blocks_avx512.c - sums over blocks with AVX-512. */
#define VECTOR_BYTES 64
#include "blocks_body.h"

const nb_blocks nb_blocks_avx512 = {widen, has_odd, moments, difference};

/* blocks_avx2.c - sums over blocks with AVX2. */
#define VECTOR_BYTES 32
#include "blocks_body.h"

const nb_blocks nb_blocks_avx2 = {widen, has_odd, moments, difference};

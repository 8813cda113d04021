/* blocks.c - sums over blocks, portable; and which instruction set's are used. */
#define VECTOR_BYTES 16
#include "blocks_body.h"

static const nb_blocks portable = {widen, has_odd, moments, difference};

const nb_blocks *nb_blocks_get(void) {
  if (nb_cpu() & NB_CPU_AVX512) return &nb_blocks_avx512;
  return nb_cpu() & NB_CPU_AVX2 ? &nb_blocks_avx2 : &portable;
}

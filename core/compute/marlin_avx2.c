/* marlin_avx2.c - Marlin words to floats with AVX2. */
#include "marlin_body.h"

void nb_marlin_decode_avx2(const nb_marlin_strip *s) { decode(s); }

/* dequant_float_avx2.c - the inner loops of dequant_float.h with AVX2. */
#include "dequant_float.h"

const nb_dequant_float_kernels nb_dequant_float_avx2 = NB_DEQUANT_FLOAT_KERNELS;

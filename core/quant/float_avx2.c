/* float_avx2.c - the inner loops of float.h with AVX2. */
#include "float.h"

const nb_float_kernels nb_float_avx2 = NB_FLOAT_KERNELS;

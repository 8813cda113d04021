/* activations_avx2.c - the row kernels of activations with AVX2. */
#include "activations.h"

const nb_act_kernels nb_act_avx2 = {absmax, range, apply};

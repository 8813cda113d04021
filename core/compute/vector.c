/* vector.c - the row operations for any processor. */
#include "vector_body.h"

const nb_vector nb_vector_portable = {softmax, sigmoid,   swiglu,     sum_squares,
                                      lse,     lse_cross, widen_bf16, widen_f16};

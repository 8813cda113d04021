/* moe_act_avx2.c - the experts' activation functions with AVX2. */
#include "moe_act_body.h"

const nb_act_table nb_act_table_avx2 = NB_ACT_TABLE;

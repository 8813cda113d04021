/* moe_act.h - the activation functions of experts, one table per instruction set.
 *
 * Compiled from moe_act_body.h with the same lanes and no contraction, so every
 * instruction set gives the same bits. */
#ifndef NB_MOE_ACT_H
#define NB_MOE_ACT_H

#include "base.h"

typedef struct nb_act_table {
  /* out = activation of n gates (times n ups, where the kind is gated); out may be g. By NB_MOE_* kind. */
  void (*row[NB_MOE_KINDS])(float *out, const float *g, const float *u, int64_t n, const nb_moe_act *act);
  /* x rounded to f16 or bf16 and back. */
  void (*round_f16)(float *x, int64_t n);
  void (*round_bf16)(float *x, int64_t n);
} nb_act_table;

extern const nb_act_table nb_act_table_portable, nb_act_table_avx2;

static inline const nb_act_table *nb_act_table_here(void) {
  return (nb_cpu() & NB_CPU_AVX2) ? &nb_act_table_avx2 : &nb_act_table_portable;
}

/* x rounded as dtype stores it; f32: as it is. */
static inline void nb_round_row(const nb_act_table *t, float *x, int64_t n, int dtype) {
  if (dtype == NB_F16) t->round_f16(x, n);
  else if (dtype == NB_BF16) t->round_bf16(x, n);
}

#endif

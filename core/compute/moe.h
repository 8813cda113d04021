/* moe.h - what a mixture's functions ask of their tensors, whose elements aren't looked at: the same questions
 * for tensors on a device. */
#ifndef NB_MOE_H
#define NB_MOE_H

#include "base.h"

enum { NB_MOE_ROUTE_EXPERTS = 4096 };

int nb_moe_route_check(const nb_tensor *experts, const nb_tensor *weights, const nb_tensor *logits,
                       const nb_tensor *bias, const nb_moe_router *o);
int nb_moe_group_check(const nb_tensor *rows, const nb_tensor *row_weights, const nb_tensor *offsets,
                       const nb_tensor *ids, const nb_tensor *weights, const nb_tensor *map);
/* The sentence for a pair whose expert is not here. */
int nb_moe_group_outside(int32_t id, int64_t place, int64_t experts);
int nb_moe_align_check(const nb_tensor *ids, int64_t block, int64_t experts, const nb_tensor *map);
int nb_moe_activation_check(const nb_tensor *out, const nb_tensor *h, const nb_tensor *up,
                            const nb_moe_act *act);

#endif

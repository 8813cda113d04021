/* moe_route.h - what who launches the kernel of moe_route.cu must know: for C and C++. */
#ifndef NB_MOE_ROUTE_H
#define NB_MOE_ROUTE_H

enum { NB_MOE_ROUTE_WARPS = 4, NB_MOE_ROUTE_SHARED = 48 * 1024 };

/* nb_moe_router, its logits [rows, experts], and what each row gets. */
typedef struct nb_moe_routing {
  int rows, experts, top, dtype, bias_dtype;
  int sigmoid, normalize, groups, top_groups;
  float scale;
} nb_moe_routing;

/* Bytes of shared memory of a warp: of each expert its score and its rank in the choice, of each group its rank. */
static inline int nb_moe_route_shared(int experts, int groups) { return (2 * experts + groups) * 4; }

#endif

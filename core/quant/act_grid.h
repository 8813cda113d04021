/* act_grid.h - what a device asks of activations.c too: the checks and the grid of quantized activations. */
#ifndef NB_ACT_GRID_H
#define NB_ACT_GRID_H

#include "base.h"

/* The grid that values are rounded to. */
typedef struct nb_act_grid {
  bool is_float;
  int shift;       /* bits of an f32 mantissa that the element type lacks */
  uint32_t normal; /* bits of its smallest normal value */
  float magic;     /* adding it rounds there */
  float min, max;
} nb_act_grid;

/* All that nb_act_fake_quant checks of its arguments, and the grid. */
int nb_act_fake_quant_check(nb_act_grid *grid, const nb_tensor *out, const nb_tensor *x,
                            const nb_act_options *o);
/* Likewise of nb_act_quantize's. */
int nb_act_quantize_check(nb_act_grid *grid, const nb_tensor *codes, const nb_tensor *scales,
                          const nb_tensor *x, const nb_act_options *o);

#endif

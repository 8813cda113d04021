/* w4a8.h - how a 4-bit matrix lies in memory for the product with int8 activations.
 *
 * Outputs go in strips of 16. A strip is its codes, its scales and its biases:
 *   codes   group after group, each padded to a multiple of 8 inputs; 8 inputs of 16 outputs are
 *           64 bytes: byte 4*o + j holds inputs j (low nibble) and 4 + j (high) of output o,
 *           as code + 8. So 32 bytes, masked, are 4 inputs of 8 outputs: one multiply-add.
 *   scales  [groups, 16], f32 where one serves a whole row (group -1), else bf16
 *   bias    [16] f32
 * and 64 bytes of room divide it. Outputs past the last are zeros. */
#ifndef NB_W4A8_H
#define NB_W4A8_H

#include "base.h"

enum { NB_W4A8_STRIP = 16, NB_W4A8_STEP = 8, NB_W4A8_BLOCK = 64 };

typedef struct nb_w4a8_form {
  int64_t n, k, group, groups; /* group: k where it was -1 */
  int64_t padded;              /* inputs of a group with their padding */
  int64_t strips, scale_at, bias_at, strip_bytes;
  bool wide_scales; /* f32 */
} nb_w4a8_form;

/* Fails unless k is even and the group divides it. */
int nb_w4a8_form_of(nb_w4a8_form *f, int64_t n, int64_t k, int64_t group);

static inline float nb_w4a8_scale(const nb_w4a8_form *f, const uint8_t *strip, int64_t g, int64_t o) {
  const uint8_t *at = strip + f->scale_at;
  int64_t i = g * NB_W4A8_STRIP + o;
  if (!f->wide_scales) return nb_bf16_to_f32(((const uint16_t *)(const void *)at)[i]);
  return ((const float *)(const void *)at)[i];
}

#endif

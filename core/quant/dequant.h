/* dequant.h - one dequantization, checked, as its inner loops see it. */
#ifndef NB_QUANT_DEQUANT_H
#define NB_QUANT_DEQUANT_H

#include "groups.h"

typedef struct nb_dequant {
  int64_t n, k, group, per_row;
  int dtype, s_dtype, bits;
  bool per_tensor;
  char *out;
  const uint8_t *codes, *zeros;
  const void *scales;
  const int32_t *g_idx;
} nb_dequant;

/* One row; scale and zero hold its per_row groups. */
typedef void nb_dequant_row_fn(void *out, const uint8_t *codes, const nb_dequant *d, const float *scale,
                               const int32_t *zero);
nb_dequant_row_fn nb_dequant_row_avx2, nb_dequant_row_g_idx_avx2;
/* The fastest that nb_cpu() allows; of columns whose groups g_idx names, or that divide evenly. */
nb_dequant_row_fn *nb_dequant_row_of(bool g_idx);

#endif

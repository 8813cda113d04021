/* float.h - round to nearest onto small floats (e4m3, e2m1): the element format as the
 * inner loops see it, and these loops by instruction set (float_body.h, written once). */
#ifndef NB_QUANT_FLOAT_H
#define NB_QUANT_FLOAT_H

#include "dtype.h"

/* nb_f32_to_small's numbers, for values that are finite. */
typedef struct nb_float_format {
  int32_t shift, least, odd, rebias, largest; /* largest: the bits of the greatest value */
  int32_t sign_shift, sign_bit;
  float magic;
  bool drops_negative_zero;
} nb_float_format;

nb_float_format nb_float_format_of(int dtype);

typedef struct nb_float_kernels {
  /* bits[g] = the magnitude bits of the largest of x's g-th `columns` values. */
  void (*absmax)(uint32_t *bits, const float *x, int64_t n, int64_t columns);
  /* codes[i] = x[i] / scale[i / columns], or times it where `multiply`, rounded to dtype
   * (f32: not at all), clamped, rounded to the format; one code a byte. */
  void (*encode)(uint8_t *codes, const float *x, int64_t n, int64_t columns, const float *scale,
                 bool multiply, int dtype, const nb_float_format *f);
} nb_float_kernels;

extern const nb_float_kernels nb_float_portable, nb_float_avx2;

#endif

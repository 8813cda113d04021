/* cast.h - blocks of one dtype to and from float32: what cast.c is made of and
 * its instruction-set paths share. */
#ifndef NB_CAST_H
#define NB_CAST_H

#include "base.h"

/* Elements of a block: a multiple of 8, so that sub-byte blocks begin on a byte. */
enum { NB_CAST_BLOCK = 4096 };

/* n elements of a narrow dtype (not f64, i32, u32, i64, u64, c64) at p to float32 and back. */
void nb_decode_block(float *out, int dtype, const void *p, int64_t n);
void nb_encode_block(void *p, int dtype, const float *in, int64_t n, bool saturate);

/* n 16-bit elements to float32 and back, round to nearest even. The vector paths
 * give the portable ones' bytes, NaN payloads apart. */
typedef void nb_widen_fn(float *out, const uint16_t *in, int64_t n);
typedef void nb_narrow_fn(uint16_t *out, const float *in, int64_t n);
nb_widen_fn nb_widen_bf16_avx2, nb_widen_f16_avx2;
nb_narrow_fn nb_narrow_bf16_avx2, nb_narrow_f16_avx2;

#endif

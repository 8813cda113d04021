/* element.c - one element of a tensor, read and written; blocks of elements for
 * Lua's loops. */
#include "dtype.h"

#include <math.h>

/* Lua keeps values of other types in NaNs: only the plain NaN may reach it. */
static double plain_nan(double d) { return d == d ? d : (double)NAN; }

double nb_tensor_get(const nb_tensor *t, int64_t i) {
  int64_t bits = nb_dtype_bits(t->dtype), bit = i * bits;
  const uint8_t *p = (const uint8_t *)t->data + bit / 8;
  switch (t->dtype) {
  case NB_BF16: return plain_nan((double)nb_bf16_to_f32(((const uint16_t *)t->data)[i]));
  case NB_F16: return plain_nan((double)nb_f16_to_f32(((const uint16_t *)t->data)[i]));
  case NB_C64: return plain_nan((double)((const float *)t->data)[2 * i]); /* the real part */
  default: break;
  }
  const float *v = nb_code_values(t->dtype);
  if (v) { /* below 8 bits a code may lie across two bytes */
    unsigned shift = (unsigned)(bit % 8), code = (unsigned)p[0] >> shift;
    if (shift + (unsigned)bits > 8) code |= (unsigned)p[1] << (8 - shift);
    return plain_nan((double)v[code & ((1u << bits) - 1)]);
  }
  double d;
  nb_load_f64(&d, p, t->dtype, 1);
  return plain_nan(d);
}

void nb_tensor_set(nb_tensor *t, int64_t i, double v) {
  int64_t bits = nb_dtype_bits(t->dtype), bit = i * bits;
  uint8_t *p = t->data;
  if (t->dtype == NB_C64) {
    ((float *)t->data)[2 * i] = (float)v;
  } else if (bits >= 8) {
    nb_cast_block(p + bit / 8, t->dtype, &v, NB_F64, 1);
  } else { /* casts end on bytes: cast four of the value, then move one code's bits */
    double same[4] = {v, v, v, v};
    uint8_t codes[3];
    nb_cast_block(codes, t->dtype, same, NB_F64, 4);
    for (int64_t k = 0; k < bits; k++) {
      uint8_t mask = (uint8_t)(1 << ((bit + k) % 8)), *at = p + (bit + k) / 8;
      *at = (uint8_t)(codes[0] >> k & 1 ? *at | mask : *at & ~mask);
    }
  }
}

void nb_tensor_fill(nb_tensor *t, double v) {
  int64_t numel = nb_tensor_numel(t), bytes = nb_tensor_bytes(t);
  for (int64_t i = 0; i < NB_MIN(numel, (int64_t)4); i++) nb_tensor_set(t, i, v);
  /* Four elements end on a byte in every dtype: double what is there. */
  int64_t have = nb_dtype_bits(t->dtype) * 4 / 8;
  for (; have < bytes; have *= 2) memcpy((char *)t->data + have, t->data, (size_t)NB_MIN(have, bytes - have));
}

int nb_tensor_load_f64(double *out, const nb_tensor *t, int64_t at, int64_t n) {
  NB_TRY(nb_real_only(t, "load"));
  if (at < 0 || n < 0 || n > nb_tensor_numel(t) - at || at * nb_dtype_bits(t->dtype) % 8)
    return nb_fail(NB_EINVAL,
                   "load: elements %lld to %lld lie outside the tensor's %lld, or begin inside a byte",
                   (long long)at, (long long)(at + n), (long long)nb_tensor_numel(t));
  nb_load_f64(out, (const char *)t->data + at * nb_dtype_bits(t->dtype) / 8, t->dtype, n);
  for (int64_t i = 0; i < n; i++) out[i] = plain_nan(out[i]);
  return NB_OK;
}

int nb_tensor_store_f64(nb_tensor *t, int64_t at, const double *in, int64_t n) {
  int64_t bits = nb_dtype_bits(t->dtype);
  NB_TRY(nb_real_only(t, "store"));
  if (at < 0 || n < 0 || n > nb_tensor_numel(t) - at || at * bits % 8)
    return nb_fail(NB_EINVAL,
                   "store: elements %lld to %lld lie outside the tensor's %lld, or begin inside a byte",
                   (long long)at, (long long)(at + n), (long long)nb_tensor_numel(t));
  if (n * bits % 8) return nb_fail(NB_EINVAL, "store: %lld elements don't end on a byte", (long long)n);
  nb_cast_block((char *)t->data + at * bits / 8, t->dtype, in, NB_F64, n);
  return NB_OK;
}

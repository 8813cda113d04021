/* dtype.c - the number formats: names and sizes. */
#include "base.h"

#include <strings.h>

static const struct { const char *name; int bits; } dtypes[NB_NDTYPES] = {
    [NB_BOOL] = {"bool", 8},
    [NB_F4] = {"f4", 4},
    [NB_F6_E2M3] = {"f6_e2m3", 6},
    [NB_F6_E3M2] = {"f6_e3m2", 6},
    [NB_U8] = {"u8", 8},
    [NB_I8] = {"i8", 8},
    [NB_F8_E5M2] = {"f8_e5m2", 8},
    [NB_F8_E4M3] = {"f8_e4m3", 8},
    [NB_F8_E8M0] = {"f8_e8m0", 8},
    [NB_F8_E4M3FNUZ] = {"f8_e4m3fnuz", 8},
    [NB_F8_E5M2FNUZ] = {"f8_e5m2fnuz", 8},
    [NB_I16] = {"i16", 16},
    [NB_U16] = {"u16", 16},
    [NB_F16] = {"f16", 16},
    [NB_BF16] = {"bf16", 16},
    [NB_I32] = {"i32", 32},
    [NB_U32] = {"u32", 32},
    [NB_F32] = {"f32", 32},
    [NB_C64] = {"c64", 64},
    [NB_F64] = {"f64", 64},
    [NB_I64] = {"i64", 64},
    [NB_U64] = {"u64", 64},
    [NB_I4] = {"i4", 4},
    [NB_U4] = {"u4", 4},
};

static bool known(int dtype) { return dtype >= 0 && dtype < NB_NDTYPES; }

int64_t nb_dtype_bits(int dtype) { return known(dtype) ? dtypes[dtype].bits : 0; }

const char *nb_dtype_name(int dtype) { return known(dtype) ? dtypes[dtype].name : NULL; }

int nb_dtype_parse(const char *name) {
  for (int i = 0; name && i < NB_NDTYPES; i++)
    if (strcasecmp(name, dtypes[i].name) == 0) return i;
  return -1;
}

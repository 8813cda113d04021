/* scan_body.h - the function of a nb_count_fn, compiled once per instruction set by the
 * file that includes this and defines SCAN, its name. */
#include "scan.h"

/* One function a width. A comparison gives -1 where it holds, so that subtracting counts. */
#define COUNT(x) \
  { \
    vec v = x, size = v & mask, zero = (vec)(size == none); \
    zeros -= zero; \
    small -= (vec)(size < normal); \
    odd -= (vec)(size > most); \
    negative -= (vec)(v < none) & ~zero; \
  }
#define OF_WIDTH(name, type, unsigned_type) \
  static void name(nb_bit_counts *out, const char *data, int64_t n, const nb_value_kind *kind) { \
    typedef type vec __attribute__((vector_size(32))); \
    enum { LANES = 32 / sizeof(type) }; \
    const vec none = {0}; \
    const vec flip = none + (type)kind->flip, mask = none + (type)kind->mask; \
    const vec normal = none + (type)kind->normal, most = none + (type)kind->most; \
    vec zeros = none, small = none, odd = none, negative = none; \
    const char *end = data + n / LANES * 32; \
    for (; data < end; data += 32) { \
      vec x; \
      memcpy(&x, data, sizeof x); \
      COUNT(x ^ flip) \
    } \
    vec rest = flip; /* lanes behind the last element are zeros */ \
    memcpy(&rest, data, (size_t)(n % LANES) * sizeof(type)); \
    int64_t beyond = n % LANES ? LANES - n % LANES : 0; \
    if (beyond) COUNT(rest ^ flip) \
    unsigned_type lanes[4][LANES]; \
    memcpy(lanes[0], &zeros, sizeof zeros); \
    memcpy(lanes[1], &small, sizeof small); \
    memcpy(lanes[2], &odd, sizeof odd); \
    memcpy(lanes[3], &negative, sizeof negative); \
    int64_t sum[4] = {0}; \
    for (int k = 0; k < 4; k++) \
      for (size_t j = 0; j < LANES; j++) sum[k] += (int64_t)lanes[k][j]; \
    out->zeros = sum[0] - beyond; \
    out->small = sum[1] - (kind->normal > 0 ? beyond : 0); \
    out->odd = sum[2]; \
    out->negative = sum[3]; \
  }

OF_WIDTH(of_8, int8_t, uint8_t)
OF_WIDTH(of_16, int16_t, uint16_t)
OF_WIDTH(of_32, int32_t, uint32_t)
OF_WIDTH(of_64, int64_t, uint64_t)

void SCAN(nb_bit_counts *out, const void *data, int64_t n, const nb_value_kind *kind) {
  switch (kind->bits) {
  case 8: of_8(out, data, n, kind); break;
  case 16: of_16(out, data, n, kind); break;
  case 32: of_32(out, data, n, kind); break;
  default: of_64(out, data, n, kind);
  }
}

/* scan_body.h - the function of a nb_count_fn, compiled once per instruction set by the
 * file that includes this and defines SCAN, its name. */
#include "scan.h"

enum { AHEAD = 2048 }; /* bytes, beyond what the processor asks for by itself at a page's end */

typedef uint64_t sums __attribute__((vector_size(32)));

/* The sum of lanes of so many bits, which hold counts: neighbours are added until four are left. */
static inline int64_t sum_of(sums x, int bits) {
  const uint64_t bytes = 0x00ff00ff00ff00ff, halves = 0x0000ffff0000ffff, words = 0x00000000ffffffff;
  if (bits <= 8) x = (x & bytes) + (x >> 8 & bytes);
  if (bits <= 16) x = (x & halves) + (x >> 16 & halves);
  if (bits <= 32) x = (x & words) + (x >> 32);
  return (int64_t)((x[0] + x[1]) + (x[2] + x[3]));
}

/* One function a width. A comparison gives -1 where it holds, so that subtracting counts. */
#define COUNT(x) \
  { \
    vec v = x, size = v & mask, zero = (vec)(size == none); \
    zeros -= zero; \
    small -= (vec)(size < normal); \
    odd -= (vec)(size > most); \
    negative -= (vec)(v < none) & ~zero; \
  }
#define OF_WIDTH(name, type) \
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
      __builtin_prefetch(data + AHEAD); \
      COUNT(x ^ flip) \
    } \
    vec rest = flip; /* lanes behind the last element are zeros */ \
    memcpy(&rest, data, (size_t)(n % LANES) * sizeof(type)); \
    int64_t beyond = n % LANES ? LANES - n % LANES : 0; \
    if (beyond) COUNT(rest ^ flip) \
    enum { BITS = 8 * sizeof(type) }; \
    out->zeros = sum_of((sums)zeros, BITS) - beyond; \
    out->small = sum_of((sums)small, BITS) - (kind->normal > 0 ? beyond : 0); \
    out->odd = sum_of((sums)odd, BITS); \
    out->negative = sum_of((sums)negative, BITS); \
  }

OF_WIDTH(of_8, int8_t)
OF_WIDTH(of_16, int16_t)
OF_WIDTH(of_32, int32_t)
OF_WIDTH(of_64, int64_t)

void SCAN(nb_bit_counts *out, const void *data, int64_t n, const nb_value_kind *kind) {
  switch (kind->bits) {
  case 8: of_8(out, data, n, kind); break;
  case 16: of_16(out, data, n, kind); break;
  case 32: of_32(out, data, n, kind); break;
  default: of_64(out, data, n, kind);
  }
}

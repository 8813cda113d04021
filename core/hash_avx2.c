/* hash_avx2.c - hashes of pages by AVX2: the library is built for every x86-64. */
#define XXH_INLINE_ALL
#define XXH_VECTOR 2 /* XXH_AVX2 */
#include "base.h"

#include <xxhash.h>

void nb_hash_pages_avx2(nb_digest *out, const void *data, int64_t bytes) {
  const char *p = data;
  for (int64_t at = 0; at < bytes; at += NB_HASH_PAGE) {
    XXH128_canonical_t d;
    XXH128_canonicalFromHash(&d, XXH3_128bits(p + at, (size_t)NB_MIN(NB_HASH_PAGE, bytes - at)));
    memcpy(out++->bytes, d.digest, sizeof d.digest);
  }
}

/* hash.c - content hashes (xxHash's XXH3, 128 bits): names for bytes, not security. */
#include "base.h"

#include <stdio.h>

#define XXH_STATIC_LINKING_ONLY /* the state by value */
#include <xxhash.h>

struct nb_hash {
  XXH3_state_t *state;
};

nb_hash *nb_hash_new(void) {
  nb_hash *h = nb_alloc(1, sizeof *h);
  if (!h) return NULL;
  h->state = XXH3_createState();
  if (!h->state) {
    free(h);
    nb_fail(NB_ENOMEM, "out of memory for a hash state");
    return NULL;
  }
  XXH3_128bits_reset(h->state);
  return h;
}

void nb_hash_update(nb_hash *h, const void *data, int64_t bytes) {
  if (bytes > 0) XXH3_128bits_update(h->state, data, (size_t)bytes);
}

void nb_hash_hex(const nb_hash *h, char *out) {
  XXH128_hash_t d = XXH3_128bits_digest(h->state);
  snprintf(out, 33, "%016llx%016llx", (unsigned long long)d.high64, (unsigned long long)d.low64);
}

void nb_hash_free(nb_hash *h) {
  if (!h) return;
  XXH3_freeState(h->state);
  free(h);
}

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

int nb_tensor_hash(char *out, const nb_tensor *t) {
  int64_t bytes = nb_tensor_bytes(t), block = 4 << 20, blocks = NB_CEIL(bytes, block);
  XXH128_canonical_t *part = nb_alloc(blocks, sizeof *part);
  if (!part) return NB_ENOMEM;
  bool stopped = false;
#pragma omp parallel for schedule(static) num_threads(nb_threads()) reduction(|| : stopped) if (blocks > 1)
  for (int64_t i = 0; i < blocks; i++) {
    stopped = stopped || nb_stop_requested();
    if (stopped) continue;
    nb_tensor view = {.data = (char *)t->data + i * block, .buf = t->buf, .dtype = NB_U8, .ndim = 1};
    view.shape[0] = NB_MIN(block, bytes - i * block);
    XXH128_canonicalFromHash(&part[i], XXH3_128bits(view.data, (size_t)view.shape[0]));
    nb_tensor_drop(&view);
  }
  XXH128_hash_t all = XXH3_128bits(part, (size_t)blocks * sizeof *part);
  free(part);
  snprintf(out, 33, "%016llx%016llx", (unsigned long long)all.high64, (unsigned long long)all.low64);
  return stopped ? nb_fail_stopped() : NB_OK;
}

void nb_hash_free(nb_hash *h) {
  if (!h) return;
  XXH3_freeState(h->state);
  free(h);
}

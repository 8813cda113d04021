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

void nb_hash_pages(nb_digest *out, const void *data, int64_t bytes) {
  if (nb_cpu() & NB_CPU_AVX2) {
    nb_hash_pages_avx2(out, data, bytes);
    return;
  }
  const char *p = data;
  for (int64_t at = 0; at < bytes; at += NB_HASH_PAGE) {
    XXH128_canonical_t d;
    XXH128_canonicalFromHash(&d, XXH3_128bits(p + at, (size_t)NB_MIN(NB_HASH_PAGE, bytes - at)));
    memcpy(out++->bytes, d.digest, sizeof d.digest);
  }
}

void nb_hash_of_pages(char *out, const nb_digest *pages, int64_t count) {
  XXH128_hash_t all = XXH3_128bits(pages, (size_t)count * sizeof *pages);
  snprintf(out, 33, "%016llx%016llx", (unsigned long long)all.high64, (unsigned long long)all.low64);
}

int nb_tensor_hash(char *out, const nb_tensor *t) {
  int64_t bytes = nb_tensor_bytes(t), block = 4 << 20, pages = NB_CEIL(bytes, NB_HASH_PAGE);
  nb_digest *page = nb_alloc(pages, sizeof *page);
  if (!page) return NB_ENOMEM;
  bool stopped = false;
#pragma omp parallel for schedule(static) num_threads(nb_threads()) reduction(|| : stopped) if (bytes > block)
  for (int64_t at = 0; at < bytes; at += block) {
    stopped = stopped || nb_stop_requested();
    if (stopped) continue;
    nb_tensor view = {.data = (char *)t->data + at, .buf = t->buf, .dtype = NB_U8, .ndim = 1};
    view.shape[0] = NB_MIN(block, bytes - at);
    nb_hash_pages(page + at / NB_HASH_PAGE, view.data, view.shape[0]);
    nb_tensor_drop(&view);
  }
  nb_hash_of_pages(out, page, pages);
  free(page);
  return stopped ? nb_fail_stopped() : NB_OK;
}

void nb_hash_free(nb_hash *h) {
  if (!h) return;
  XXH3_freeState(h->state);
  free(h);
}

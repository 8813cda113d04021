/* names.c - a growing set of counted names: one arena, one hash table. */
#include "names.h"

#include <xxhash.h>

int nb_grow(void *array, int64_t *room, int64_t count, int64_t size) {
  if (count <= *room) return NB_OK;
  int64_t want = NB_MAX(NB_MAX(16, 2 * *room), count);
  void *old, *p;
  memcpy(&old, array, sizeof old);
  if (!(p = nb_realloc(old, want * size))) return NB_ENOMEM;
  memcpy(array, &p, sizeof p);
  *room = want;
  return NB_OK;
}

static int64_t slot_of(const nb_names *s, nb_text name) {
  int64_t i = (int64_t)(XXH3_64bits(name.data, (size_t)name.bytes) & (uint64_t)(s->nslots - 1));
  for (; s->slots[i]; i = (i + 1) & (s->nslots - 1)) {
    nb_text have = nb_names_get(s, s->slots[i] - 1);
    if (have.bytes == name.bytes && memcmp(have.data, name.data, (size_t)name.bytes) == 0) break;
  }
  return i;
}

static int rehash(nb_names *s) {
  int64_t n = NB_MAX(64, 2 * s->nslots);
  uint32_t *slots = nb_alloc(n, sizeof *slots);
  if (!slots) return NB_ENOMEM;
  free(s->slots);
  s->slots = slots;
  s->nslots = n;
  for (int64_t id = 0; id < s->count; id++) s->slots[slot_of(s, nb_names_get(s, id))] = (uint32_t)id + 1;
  return NB_OK;
}

int nb_names_add(nb_names *s, int64_t *id, nb_text name) {
  if (2 * (s->count + 1) > s->nslots) NB_TRY(rehash(s));
  int64_t slot = slot_of(s, name);
  if (s->slots[slot]) {
    *id = s->slots[slot] - 1;
    return 0;
  }
  NB_TRY(nb_grow(&s->at, &s->at_room, s->count + 2, sizeof *s->at));
  NB_TRY(nb_grow(&s->text, &s->text_room, s->used + name.bytes + 1, 1));
  memcpy(s->text + s->used, name.data, (size_t)name.bytes);
  s->text[s->used + name.bytes] = 0;
  s->at[s->count] = s->used;
  s->used += name.bytes + 1;
  s->at[s->count + 1] = s->used;
  s->slots[slot] = (uint32_t)s->count + 1;
  *id = s->count++;
  return 1;
}

int64_t nb_names_find(const nb_names *s, nb_text name) {
  return s->nslots ? (int64_t)s->slots[slot_of(s, name)] - 1 : -1;
}

nb_text nb_names_get(const nb_names *s, int64_t id) {
  return (nb_text){s->text + s->at[id], s->at[id + 1] - s->at[id] - 1};
}

void nb_names_free(nb_names *s) {
  free(s->text);
  free(s->at);
  free(s->slots);
  memset(s, 0, sizeof *s);
}

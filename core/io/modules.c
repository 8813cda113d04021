/* modules.c - many names at once: tensors by module, and names that differ in
 * numbers only. */
#include "names.h"

/* ---- by module --------------------------------------------------------------------- */

static bool is_one_of(nb_text text, const nb_text *list, int64_t count) {
  for (int64_t i = 0; i < count; i++)
    if (list[i].bytes == text.bytes && memcmp(list[i].data, text.data, (size_t)text.bytes) == 0) return true;
  return false;
}

/* What precedes the last dot; all of it where there is none or where what follows is in `whole`. */
static nb_text module_of(nb_text name, const nb_text *whole, int64_t count) {
  const char *dot = memrchr(name.data, '.', (size_t)name.bytes);
  if (!dot) return name;
  nb_text suffix = {dot + 1, name.data + name.bytes - (dot + 1)};
  return is_one_of(suffix, whole, count) ? name : (nb_text){name.data, dot - name.data};
}

int nb_module_order(int64_t *order, int64_t *module, int64_t *module_bytes, const nb_text *tensors,
                    int64_t count, const nb_text *whole, int64_t whole_count) {
  nb_text *names = nb_alloc(NB_MAX(count, (int64_t)1), sizeof *names), last = {0};
  if (!names) return NB_ENOMEM;
  for (int64_t i = 0; i < count; i++) names[i] = module_of(tensors[i], whole, whole_count);
  int rc = nb_natural_order(order, names, count);
  int64_t number = -1;
  for (int64_t i = 0; rc == NB_OK && i < count; i++) {
    nb_text m = names[order[i]];
    if (number < 0 || !is_one_of(m, &last, 1)) number++;
    module[i] = number;
    module_bytes[i] = m.bytes;
    last = m;
  }
  free(names);
  return rc;
}

/* ---- alike but for their numbers ------------------------------------------------------ */

enum { DIGITS = 15 }; /* of a number at most: what a double holds exactly */

typedef struct grouping {
  nb_names stems;
  char *stem;
  int64_t stem_room, *numbers, number_room, number_count;
} grouping;

/* The number that a part of a name is, or -1. */
static int64_t number_of(const char *p, int64_t bytes) {
  int64_t v = 0;
  if (bytes < 1 || bytes > DIGITS) return -1;
  for (int64_t i = 0; i < bytes; i++) {
    if (p[i] < '0' || p[i] > '9') return -1;
    v = 10 * v + (p[i] - '0');
  }
  return v;
}

/* The name with a NUL for every number, then its kind; the numbers go to the grouping's. */
static int64_t take_apart(grouping *g, nb_text name, int32_t kind) {
  char *to = g->stem;
  const char *end = name.data + name.bytes;
  for (const char *p = name.data;;) {
    const char *dot = memchr(p, '.', (size_t)(end - p));
    int64_t bytes = (dot ? dot : end) - p, number = number_of(p, bytes);
    if (number >= 0) {
      g->numbers[g->number_count++] = number;
      *to++ = 0;
    } else {
      memcpy(to, p, (size_t)bytes);
      to += bytes;
    }
    if (!dot) break;
    *to++ = '.';
    p = dot + 1;
  }
  memcpy(to, &kind, sizeof kind);
  return to + sizeof kind - g->stem;
}

static int group_name(grouping *g, int64_t *id, nb_text name, int32_t kind) {
  NB_TRY(nb_grow(&g->stem, &g->stem_room, name.bytes + (int64_t)sizeof kind + 1, 1));
  NB_TRY(nb_grow(&g->numbers, &g->number_room, g->number_count + name.bytes / 2 + 1, sizeof *g->numbers));
  int64_t bytes = take_apart(g, name, kind);
  int rc = nb_names_add(&g->stems, id, (nb_text){g->stem, bytes});
  return rc < 0 ? rc : NB_OK;
}

int nb_name_groups(int32_t *group, int64_t *starts, nb_tensor *numbers, const nb_text *names,
                   const int32_t *kinds, int64_t count) {
  grouping g = {0};
  int rc = NB_OK;
  starts[0] = 0;
  for (int64_t i = 0; rc == NB_OK && i < count; i++) {
    int64_t id = 0;
    rc = group_name(&g, &id, names[i], kinds[i]);
    group[i] = (int32_t)id;
    starts[i + 1] = g.number_count;
  }
  if (rc == NB_OK) rc = nb_tensor_new(numbers, NB_I64, 1, (int64_t[6]){g.number_count});
  if (rc == NB_OK && g.number_count) memcpy(numbers->data, g.numbers, (size_t)(8 * g.number_count));
  nb_names_free(&g.stems);
  free(g.stem);
  free(g.numbers);
  return rc;
}

/* The natural order of names: "layers.2" before "layers.10". Bytes compare as bytes, runs of
 * digits as the numbers they are. Names that differ in leading zeroes only follow their bytes. */
#include <stdlib.h>
#include <string.h>

#include "base.h"
#include "nibble.h"

typedef struct item {
  nb_text name;
  int64_t index;
} item;

static int is_digit(char c) { return c >= '0' && c <= '9'; }

/* The run of digits at *at without its leading zeroes; *at moves behind it. */
static nb_text take_number(nb_text s, int64_t *at) {
  int64_t from = *at, to = *at;
  while (to < s.bytes && is_digit(s.data[to])) to++;
  while (from + 1 < to && s.data[from] == '0') from++;
  *at = to;
  return (nb_text){.data = s.data + from, .bytes = to - from};
}

static int compare_numbers(nb_text a, nb_text b) {
  if (a.bytes != b.bytes) return a.bytes < b.bytes ? -1 : 1;
  return memcmp(a.data, b.data, (size_t)a.bytes);
}

static int compare_natural(nb_text a, nb_text b) {
  int64_t i = 0, j = 0;
  while (i < a.bytes && j < b.bytes) {
    if (is_digit(a.data[i]) && is_digit(b.data[j])) {
      int order = compare_numbers(take_number(a, &i), take_number(b, &j));
      if (order) return order;
    } else {
      if (a.data[i] != b.data[j]) return (unsigned char)a.data[i] < (unsigned char)b.data[j] ? -1 : 1;
      i++, j++;
    }
  }
  return (i < a.bytes) - (j < b.bytes);
}

static int compare_items(const void *p, const void *q) {
  const item *a = p, *b = q;
  int order = compare_natural(a->name, b->name);
  if (order) return order;
  order = a->name.bytes < b->name.bytes ? -1 : a->name.bytes > b->name.bytes;
  if (!order) order = memcmp(a->name.data, b->name.data, (size_t)a->name.bytes);
  return order ? order : (a->index > b->index) - (a->index < b->index);
}

int nb_natural_order(int64_t *order, const nb_text *names, int64_t count) {
  item *items = malloc((size_t)(count > 0 ? count : 1) * sizeof *items);
  if (!items) return nb_fail(NB_ENOMEM, "out of memory for the order of %lld names", (long long)count);
  for (int64_t i = 0; i < count; i++) items[i] = (item){.name = names[i], .index = i};
  qsort(items, (size_t)count, sizeof *items, compare_items);
  for (int64_t i = 0; i < count; i++) order[i] = items[i].index;
  free(items);
  return NB_OK;
}

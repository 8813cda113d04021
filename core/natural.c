/* natural.c - the natural order of names: "layers.2" before "layers.10". Bytes compare as bytes, runs
 * of digits as the numbers they are. Names that differ in leading zeroes only follow their bytes.
 *
 * Each name is turned once into a key whose bytes compare so: a run of digits becomes '0' (which stands
 * where digits stand among other bytes), the number of its digits and the digits. Keys that begin the
 * same for all names are compared from there on, eight bytes at once first. */
#include "base.h"

typedef struct item {
  uint64_t first; /* the first 8 bytes of the key that may differ, big-endian */
  const unsigned char *key;
  int64_t bytes, index;
  nb_text name;
} item;

static bool is_digit(char c) { return c >= '0' && c <= '9'; }

/* A number of n digits: 255 for each full 255, then the rest, so that more digits are greater. */
static unsigned char *put_length(unsigned char *to, int64_t n) {
  for (; n >= 255; n -= 255) *to++ = 255;
  *to++ = (unsigned char)n;
  return to;
}

/* The key of a name into `to`, at most 3 bytes a byte of the name; -> behind its last byte. */
static unsigned char *put_key(unsigned char *to, nb_text s) {
  for (int64_t i = 0; i < s.bytes;) {
    if (!is_digit(s.data[i])) {
      *to++ = (unsigned char)s.data[i++];
      continue;
    }
    int64_t from = i;
    while (i < s.bytes && is_digit(s.data[i])) i++;
    while (from + 1 < i && s.data[from] == '0') from++;
    *to++ = '0';
    to = put_length(to, i - from);
    memcpy(to, s.data + from, (size_t)(i - from));
    to += i - from;
  }
  return to;
}

static int sign(int64_t a, int64_t b) { return (a > b) - (a < b); }

static int compare_items(const void *p, const void *q) {
  const item *a = p, *b = q;
  if (a->first != b->first) return a->first < b->first ? -1 : 1;
  int order = memcmp(a->key, b->key, (size_t)NB_MIN(a->bytes, b->bytes));
  if (!order) order = sign(a->bytes, b->bytes);
  if (!order) order = sign(a->name.bytes, b->name.bytes);
  if (!order) order = memcmp(a->name.data, b->name.data, (size_t)a->name.bytes);
  return order ? order : sign(a->index, b->index);
}

/* How many bytes all keys have in common at their beginning. */
static int64_t common_bytes(const item *items, int64_t count) {
  int64_t common = count ? items[0].bytes : 0;
  for (int64_t i = 1; i < count; i++) {
    int64_t n = NB_MIN(common, items[i].bytes);
    for (common = 0; common < n && items[0].key[common] == items[i].key[common];) common++;
  }
  return common;
}

static uint64_t eight_bytes(const item *x, int64_t at) {
  uint64_t v = 0;
  for (int64_t i = at; i < at + 8; i++) v = v << 8 | (i < x->bytes ? x->key[i] : 0);
  return v;
}

int nb_natural_order(int64_t *order, const nb_text *names, int64_t count) {
  int64_t bytes = 0;
  for (int64_t i = 0; i < count; i++) bytes += names[i].bytes;
  item *items = nb_alloc(NB_MAX(count, (int64_t)1), sizeof *items);
  unsigned char *keys = nb_alloc(3 * bytes + 1, 1), *to = keys;
  if (!items || !keys) {
    free(items);
    free(keys);
    return NB_ENOMEM;
  }
  for (int64_t i = 0; i < count; i++) {
    unsigned char *from = to;
    to = put_key(to, names[i]);
    items[i] = (item){.key = from, .bytes = to - from, .index = i, .name = names[i]};
  }
  int64_t common = common_bytes(items, count);
  for (int64_t i = 0; i < count; i++) items[i].first = eight_bytes(&items[i], common);
  bool sorted = true;
  for (int64_t i = 1; sorted && i < count; i++) sorted = compare_items(&items[i - 1], &items[i]) < 0;
  if (!sorted) qsort(items, (size_t)count, sizeof *items, compare_items);
  for (int64_t i = 0; i < count; i++) order[i] = items[i].index;
  free(items);
  free(keys);
  return NB_OK;
}

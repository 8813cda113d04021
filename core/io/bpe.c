/* bpe.c - byte-level BPE: the vocabulary, the merges by rank, one word to ids.
 *
 * A vocabulary spells bytes in an alphabet of printable characters (GPT-2's):
 * '!'..'~', U+00A1..AC and U+00AE..FF stand for themselves, the other 68 bytes
 * in their order for U+0100..0143. */
#include "bpe.h"

#include <xxhash.h>

/* ---- lists ---------------------------------------------------------------- */

static int grow(void **v, int64_t *room, int64_t want, int64_t size) {
  if (want <= *room) return NB_OK;
  int64_t n = NB_MAX(NB_MAX(want, 2 * *room), 64);
  void *p = nb_realloc(*v, n * size);
  if (!p) return NB_ENOMEM;
  *v = p;
  *room = n;
  return NB_OK;
}

int nb_ids_push(nb_ids *l, const int32_t *v, int64_t n) {
  NB_TRY(grow((void **)&l->v, &l->room, l->n + n, 4));
  if (n > 0) memcpy(l->v + l->n, v, (size_t)n * 4);
  l->n += n;
  return NB_OK;
}

int nb_bytes_push(nb_bytes *l, const char *v, int64_t n) {
  NB_TRY(grow((void **)&l->v, &l->room, l->n + n, 1));
  if (n > 0) memcpy(l->v + l->n, v, (size_t)n);
  l->n += n;
  return NB_OK;
}

/* ---- the alphabet --------------------------------------------------------- */

static int byte_of(int32_t c) {
  if ((c >= 33 && c <= 126) || (c >= 0xa1 && c <= 0xff && c != 0xad)) return c;
  if (c < 0x100 || c > 0x143) return -1;
  c -= 0x100;
  return c <= 32 ? c : c <= 66 ? c - 33 + 127 : 0xad;
}

bool nb_alphabet_bytes(nb_span text, char *out, int64_t *n) {
  const char *p = text.p, *end = p + text.n;
  *n = 0;
  while (p < end) {
    int32_t code = -1;
    int used = nb_utf8_next(p, end, &code), byte = used > 0 ? byte_of(code) : -1;
    if (byte < 0) {
      memcpy(out, text.p, (size_t)text.n);
      *n = text.n;
      return false;
    }
    out[(*n)++] = (char)byte;
    p += used;
  }
  return true;
}

/* ---- tables ---------------------------------------------------------------
 * Open addressing over a power of two of slots, at most half of them used. */

typedef struct token {
  int64_t at;
  int32_t n;
  bool known;
} token; /* bytes in the pool */
typedef struct merge {
  int64_t pair;
  int32_t rank, merged;
} merge; /* pair -1: free */
typedef struct cached {
  int64_t word, ids;
  int32_t n, count;
} cached; /* n 0: free */

/* The word cache starts anew when it is full: texts repeat their words soon. */
enum { CACHE_SLOTS = 1 << 15, CACHE_WORD = 48, MAX_IDS = 1 << 21 };

typedef struct symbol {
  int32_t id, prev, next;
} symbol; /* id -1: taken by its left */
typedef struct candidate {
  int32_t rank, pos, left, right, merged;
} candidate;

struct nb_merges {
  bool ignore_merges;
  token *tokens; /* by id */
  int64_t tokens_room;
  nb_bytes pool;
  int32_t byte_ids[256]; /* -1: the vocabulary has no such byte */
  int32_t *texts;        /* slots: id of a token by its bytes, -1 free */
  int64_t text_slots, text_count;
  merge *merges; /* slots by pair of ids */
  int64_t merge_slots, merge_count;
  cached *cache;
  int64_t cache_count;
  nb_bytes cache_words;
  nb_ids cache_ids;
  symbol *symbols;
  candidate *heap;
  int64_t symbols_room, heap_room;
};

nb_merges *nb_merges_new(bool ignore_merges) {
  nb_merges *m = nb_alloc(1, sizeof *m);
  if (!m) return NULL;
  m->ignore_merges = ignore_merges;
  memset(m->byte_ids, 0xff, sizeof m->byte_ids);
  m->cache = nb_alloc(CACHE_SLOTS, sizeof *m->cache);
  if (m->cache) return m;
  free(m);
  return NULL;
}

void nb_merges_free(nb_merges *m) {
  if (!m) return;
  void *owned[] = {m->tokens,        m->pool.v,      m->texts,   m->merges, m->cache,
                   m->cache_words.v, m->cache_ids.v, m->symbols, m->heap};
  for (size_t i = 0; i < sizeof owned / sizeof *owned; i++) free(owned[i]);
  free(m);
}

static uint64_t hash_bytes(const char *p, int64_t n) { return XXH3_64bits(p, (size_t)n); }

static uint64_t hash_pair(int64_t pair) {
  uint64_t h = (uint64_t)pair * 0x9e3779b97f4a7c15u;
  return h ^ h >> 32;
}

/* The slot of these bytes: their token's, or the free one where it belongs. */
static int64_t text_slot(const nb_merges *m, nb_span t) {
  int64_t mask = m->text_slots - 1, i = (int64_t)hash_bytes(t.p, t.n) & mask;
  for (; m->texts[i] >= 0; i = (i + 1) & mask) {
    const token *k = &m->tokens[m->texts[i]];
    if (k->n == t.n && memcmp(m->pool.v + k->at, t.p, (size_t)t.n) == 0) break;
  }
  return i;
}

static int32_t find_text(const nb_merges *m, nb_span t) {
  return m->text_slots ? m->texts[text_slot(m, t)] : -1;
}

static int enter_text(nb_merges *m, int32_t id) {
  if (2 * m->text_count >= m->text_slots) {
    int64_t slots = NB_MAX(2 * m->text_slots, 1024), was = m->text_slots;
    int32_t *old = m->texts, *made = nb_alloc(slots, sizeof *made);
    if (!made) return NB_ENOMEM;
    memset(made, 0xff, (size_t)slots * sizeof *made);
    m->texts = made;
    m->text_slots = slots;
    for (int64_t i = 0; i < was; i++)
      if (old[i] >= 0) made[text_slot(m, nb_merges_bytes(m, old[i]))] = old[i];
    free(old);
  }
  int64_t slot = text_slot(m, nb_merges_bytes(m, id));
  if (m->texts[slot] < 0) m->text_count++;
  m->texts[slot] = id;
  return NB_OK;
}

nb_span nb_merges_bytes(const nb_merges *m, int32_t id) {
  if (id < 0 || id >= m->tokens_room || !m->tokens[id].known) return (nb_span){NULL, 0};
  return (nb_span){m->pool.v + m->tokens[id].at, m->tokens[id].n};
}

int nb_merges_token(nb_merges *m, nb_span text, int32_t id) {
  if (id < 0 || id >= MAX_IDS) return nb_fail(NB_EFORMAT, "token id %d lies outside 0..%d", id, MAX_IDS - 1);
  if (text.n > 1 << 20) return nb_fail(NB_EFORMAT, "token %d is %lld bytes long", id, (long long)text.n);
  int64_t was = m->tokens_room;
  NB_TRY(grow((void **)&m->tokens, &m->tokens_room, id + 1, sizeof *m->tokens));
  memset(m->tokens + was, 0, (size_t)(m->tokens_room - was) * sizeof *m->tokens);
  if (m->tokens[id].known) return nb_fail(NB_EFORMAT, "token id %d is given twice", id);
  NB_TRY(grow((void **)&m->pool.v, &m->pool.room, m->pool.n + NB_MAX(text.n, 1), 1));
  int64_t n = 0, at = m->pool.n;
  bool spelled = nb_alphabet_bytes(text, m->pool.v + at, &n);
  m->pool.n += n;
  m->tokens[id] = (token){.at = at, .n = (int32_t)n, .known = true};
  if (!spelled || n == 0) return NB_OK; /* never met in a text's bytes */
  if (n == 1) m->byte_ids[(unsigned char)m->pool.v[at]] = id;
  return enter_text(m, id);
}

static int64_t merge_slot(const nb_merges *m, int64_t pair) {
  int64_t mask = m->merge_slots - 1, i = (int64_t)hash_pair(pair) & mask;
  while (m->merges[i].pair >= 0 && m->merges[i].pair != pair) i = (i + 1) & mask;
  return i;
}

static int64_t pair_of(int32_t left, int32_t right) { return (int64_t)left << 32 | right; }

int nb_merges_add(nb_merges *m, int32_t left, int32_t right, int32_t merged) {
  if (!nb_merges_bytes(m, left).p || !nb_merges_bytes(m, right).p || !nb_merges_bytes(m, merged).p)
    return nb_fail(NB_EFORMAT, "merge %lld names ids that the vocabulary lacks", (long long)m->merge_count);
  if (2 * m->merge_count >= m->merge_slots) {
    int64_t slots = NB_MAX(2 * m->merge_slots, 1024), was = m->merge_slots;
    merge *old = m->merges, *made = nb_alloc(slots, sizeof *made);
    if (!made) return NB_ENOMEM;
    memset(made, 0xff, (size_t)slots * sizeof *made);
    m->merges = made;
    m->merge_slots = slots;
    for (int64_t i = 0; i < was; i++)
      if (old[i].pair >= 0) made[merge_slot(m, old[i].pair)] = old[i];
    free(old);
  }
  int64_t pair = pair_of(left, right);
  m->merges[merge_slot(m, pair)] = (merge){.pair = pair, .rank = (int32_t)m->merge_count++, .merged = merged};
  return NB_OK;
}

/* ---- merging a word -------------------------------------------------------
 * The pair of lowest rank goes first, of equal ones the leftmost. A heap holds
 * the pairs; one that a merge has changed since is recognized by its ids. */

static bool before(const candidate *a, const candidate *b) {
  return a->rank != b->rank ? a->rank < b->rank : a->pos < b->pos;
}

static void heap_push(candidate *h, int64_t *n, candidate c) {
  int64_t i = (*n)++;
  for (; i > 0 && before(&c, &h[(i - 1) / 2]); i = (i - 1) / 2) h[i] = h[(i - 1) / 2];
  h[i] = c;
}

static candidate heap_pop(candidate *h, int64_t *n) {
  candidate top = h[0], last = h[--*n];
  int64_t i = 0;
  for (;;) {
    int64_t child = 2 * i + 1;
    if (child >= *n) break;
    if (child + 1 < *n && before(&h[child + 1], &h[child])) child++;
    if (!before(&h[child], &last)) break;
    h[i] = h[child];
    i = child;
  }
  h[i] = last;
  return top;
}

static void consider(nb_merges *m, int64_t *n, int32_t pos) {
  int32_t right_pos = pos < 0 ? -1 : m->symbols[pos].next;
  if (right_pos < 0 || m->merge_slots == 0) return;
  int32_t left = m->symbols[pos].id, right = m->symbols[right_pos].id;
  const merge *found = &m->merges[merge_slot(m, pair_of(left, right))];
  if (found->pair < 0) return;
  heap_push(m->heap, n, (candidate){found->rank, pos, left, right, found->merged});
}

/* Each merge pushes at most two new pairs and removes a symbol: 3n is enough. */
static int merge_word(nb_merges *m, nb_span word, nb_ids *out) {
  if (word.n > INT32_MAX / 4)
    return nb_fail(NB_EUNSUPPORTED, "a word of %lld bytes is too long to tokenize", (long long)word.n);
  NB_TRY(grow((void **)&m->symbols, &m->symbols_room, word.n, sizeof *m->symbols));
  NB_TRY(grow((void **)&m->heap, &m->heap_room, 3 * word.n, sizeof *m->heap));
  symbol *s = m->symbols;
  int32_t n = (int32_t)word.n;
  for (int32_t i = 0; i < n; i++) {
    int32_t id = m->byte_ids[(unsigned char)word.p[i]];
    if (id < 0)
      return nb_fail(NB_EUNSUPPORTED, "the vocabulary has no token for byte 0x%02x",
                     (unsigned char)word.p[i]);
    s[i] = (symbol){id, i - 1, i + 1 < n ? i + 1 : -1};
  }
  int64_t waiting = 0;
  for (int32_t i = 0; i < n; i++) consider(m, &waiting, i);
  while (waiting > 0) {
    candidate c = heap_pop(m->heap, &waiting);
    symbol *left = &s[c.pos];
    if (left->id != c.left || left->next < 0 || s[left->next].id != c.right) continue;
    symbol *right = &s[left->next];
    left->id = c.merged;
    left->next = right->next;
    if (right->next >= 0) s[right->next].prev = c.pos;
    right->id = -1;
    consider(m, &waiting, left->prev);
    consider(m, &waiting, c.pos);
  }
  for (int32_t i = n > 0 ? 0 : -1; i >= 0; i = s[i].next) NB_TRY(nb_ids_push(out, &s[i].id, 1));
  return NB_OK;
}

static cached *cache_slot(nb_merges *m, nb_span word) {
  int64_t i = (int64_t)hash_bytes(word.p, word.n) & (CACHE_SLOTS - 1);
  for (; m->cache[i].n > 0; i = (i + 1) & (CACHE_SLOTS - 1)) {
    cached *c = &m->cache[i];
    if (c->n == word.n && memcmp(m->cache_words.v + c->word, word.p, (size_t)word.n) == 0) break;
  }
  return &m->cache[i];
}

static int cache_word(nb_merges *m, nb_span word, const nb_ids *out, int64_t first) {
  if (2 * m->cache_count >= CACHE_SLOTS) {
    memset(m->cache, 0, CACHE_SLOTS * sizeof *m->cache);
    m->cache_count = m->cache_words.n = m->cache_ids.n = 0;
  }
  cached entry = {m->cache_words.n, m->cache_ids.n, (int32_t)word.n, (int32_t)(out->n - first)};
  NB_TRY(nb_bytes_push(&m->cache_words, word.p, word.n));
  NB_TRY(nb_ids_push(&m->cache_ids, out->v + first, out->n - first));
  *cache_slot(m, word) = entry;
  m->cache_count++;
  return NB_OK;
}

int nb_merges_word(nb_merges *m, nb_span word, nb_ids *out) {
  if (word.n == 0) return NB_OK;
  bool cacheable = word.n <= CACHE_WORD;
  if (cacheable) {
    const cached *hit = cache_slot(m, word);
    if (hit->n > 0) return nb_ids_push(out, m->cache_ids.v + hit->ids, hit->count);
  }
  int64_t first = out->n;
  int32_t whole = m->ignore_merges ? find_text(m, word) : -1;
  if (whole >= 0) NB_TRY(nb_ids_push(out, &whole, 1));
  else NB_TRY(merge_word(m, word, out));
  return cacheable ? cache_word(m, word, out, first) : NB_OK;
}

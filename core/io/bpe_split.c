/* bpe_split.c - a tokenizer: a text to pieces to ids, and back. PCRE2 is used
 * only here.
 *
 *   text --added tokens (as written)--> pieces --normal form--> pieces
 *        --added tokens (normalized)--> pieces --steps--> words --merges--> ids
 *
 * A step cuts a piece at the matches of a pattern, or puts a blank in front.
 * Every piece is a text of its own: patterns don't see past its ends. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "bpe.h"
#include "json_scan.h"

#include <pcre2.h>

enum { MAX_STEPS = 16, STOP_EVERY = 4096 };

typedef struct step {
  pcre2_code *code; /* NULL: put a blank in front */
  pcre2_match_data *found;
  int behavior, invert;
} step;

typedef struct added {
  char *text;
  int64_t n;
  int32_t id;
  int flags;
} added;

/* Added tokens by first byte, longest first. */
typedef struct added_set {
  added *v;
  int64_t n, room;
  int32_t first[257];
} added_set;

struct nb_bpe {
  nb_merges *merges;
  added_set raw, normalized;
  added *by_id; /* copies of what the sets hold, for decoding; sorted by id */
  int64_t by_id_n, by_id_room;
  bool sealed;
  int form; /* normal form, 0 = none */
  step steps[MAX_STEPS];
  int nsteps;
  pcre2_match_context *context;
  pcre2_jit_stack *stack;
  nb_ids *out;
  int64_t words;
};

nb_bpe *nb_bpe_new(int ignore_merges) {
  nb_bpe *b = nb_alloc(1, sizeof *b);
  if (!b) return NULL;
  b->merges = nb_merges_new(ignore_merges != 0);
  b->context = pcre2_match_context_create(NULL);
  b->stack = pcre2_jit_stack_create(32 << 10, 16 << 20, NULL);
  if (b->merges && b->context && b->stack) {
    pcre2_jit_stack_assign(b->context, NULL, b->stack);
    return b;
  }
  if (b->merges) nb_fail(NB_ENOMEM, "out of memory: a tokenizer's patterns");
  nb_bpe_free(b);
  return NULL;
}

void nb_bpe_free(nb_bpe *b) {
  if (!b) return;
  for (int i = 0; i < b->nsteps; i++) {
    pcre2_match_data_free(b->steps[i].found);
    pcre2_code_free(b->steps[i].code);
  }
  added_set *sets[] = {&b->raw, &b->normalized};
  for (int s = 0; s < 2; s++) {
    for (int64_t i = 0; i < sets[s]->n; i++) free(sets[s]->v[i].text);
    free(sets[s]->v);
  }
  for (int64_t i = 0; i < b->by_id_n; i++) free(b->by_id[i].text);
  free(b->by_id);
  pcre2_match_context_free(b->context);
  pcre2_jit_stack_free(b->stack);
  nb_merges_free(b->merges);
  free(b);
}

int nb_bpe_token(nb_bpe *b, const char *text, int64_t bytes, int32_t id) {
  return nb_merges_token(b->merges, (nb_span){text, bytes}, id);
}

int nb_bpe_merge(nb_bpe *b, int32_t left, int32_t right, int32_t merged) {
  return nb_merges_add(b->merges, left, right, merged);
}

int nb_bpe_normal_form(nb_bpe *b, int form) {
  if (form < 0 || form > NB_NFKD) return nb_fail(NB_EINVAL, "unknown normal form %d", form);
  b->form = form;
  return NB_OK;
}

/* ---- added tokens --------------------------------------------------------- */

static int push_added(added **v, int64_t *n, int64_t *room, nb_span text, int32_t id, int flags) {
  if (*n == *room) {
    int64_t want = NB_MAX(2 * *room, 16);
    added *p = nb_realloc(*v, want * (int64_t)sizeof *p);
    if (!p) return NB_ENOMEM;
    *v = p;
    *room = want;
  }
  char *copy = nb_alloc(text.n + 1, 1);
  if (!copy) return NB_ENOMEM;
  memcpy(copy, text.p, (size_t)text.n);
  (*v)[(*n)++] = (added){copy, text.n, id, flags};
  return NB_OK;
}

int nb_bpe_added(nb_bpe *b, const char *text, int64_t bytes, int32_t id, int flags) {
  nb_span content = {text, bytes};
  if (bytes == 0) return NB_OK;
  b->sealed = false;
  NB_TRY(push_added(&b->by_id, &b->by_id_n, &b->by_id_room, content, id, flags));
  added_set *set = flags & NB_ADDED_NORMALIZED ? &b->normalized : &b->raw;
  if (!(flags & NB_ADDED_NORMALIZED) || b->form == 0)
    return push_added(&set->v, &set->n, &set->room, content, id, flags);
  nb_bytes normal = {0};
  int rc = nb_normalize(&normal, content, b->form);
  if (rc == NB_OK) rc = push_added(&set->v, &set->n, &set->room, (nb_span){normal.v, normal.n}, id, flags);
  free(normal.v);
  return rc;
}

/* By first byte, then the longest first. */
static int by_text(const void *x, const void *y) {
  const added *a = x, *c = y;
  int fa = (unsigned char)a->text[0], fc = (unsigned char)c->text[0];
  if (fa != fc) return fa - fc;
  return a->n == c->n ? 0 : a->n > c->n ? -1 : 1;
}

static int by_id(const void *x, const void *y) {
  const added *a = x, *c = y;
  return (a->id > c->id) - (a->id < c->id);
}

static void seal_set(added_set *s) {
  if (s->n) qsort(s->v, (size_t)s->n, sizeof *s->v, by_text);
  for (int c = 0, i = 0; c <= 256; c++) {
    while (i < s->n && (unsigned char)s->v[i].text[0] < c) i++;
    s->first[c] = i;
  }
}

static void seal(nb_bpe *b) {
  if (b->sealed) return;
  seal_set(&b->raw);
  seal_set(&b->normalized);
  if (b->by_id_n) qsort(b->by_id, (size_t)b->by_id_n, sizeof *b->by_id, by_id);
  b->sealed = true;
}

/* The longest added token at p, or NULL. */
static const added *added_at(const added_set *s, const char *p, const char *end) {
  int c = (unsigned char)*p;
  for (int32_t i = s->first[c]; i < s->first[c + 1]; i++)
    if (s->v[i].n <= end - p && memcmp(s->v[i].text, p, (size_t)s->v[i].n) == 0) return &s->v[i];
  return NULL;
}

static bool stands_alone(nb_span text, const char *from, const char *to) {
  int32_t code;
  if (from > text.p && (nb_utf8_last(text.p, from, &code), nb_is_word(code))) return false;
  return !(to < text.p + text.n && (nb_utf8_next(to, text.p + text.n, &code), nb_is_word(code)));
}

static const char *strip_left(const char *start, const char *p) {
  int32_t code;
  while (p > start) {
    int n = nb_utf8_last(start, p, &code);
    if (!nb_is_space(code)) break;
    p -= n;
  }
  return p;
}

static const char *strip_right(const char *p, const char *end) {
  int32_t code;
  while (p < end) {
    int n = nb_utf8_next(p, end, &code);
    if (!nb_is_space(code)) break;
    p += n;
  }
  return p;
}

typedef int piece_fn(nb_bpe *b, nb_span piece);

/* Cuts text at the added tokens of a set; what lies between goes to rest. */
static int cut_added(nb_bpe *b, const added_set *set, nb_span text, bool plain, piece_fn *rest) {
  const char *end = text.p + text.n, *done = text.p, *p = text.p;
  while (set->n > 0 && p < end) {
    const added *a = added_at(set, p, end);
    if (!a) {
      p++;
      continue;
    }
    const char *from = p, *to = p + a->n;
    p = to;
    if (plain && a->flags & NB_ADDED_SPECIAL) continue;
    if (a->flags & NB_ADDED_SINGLE_WORD && !stands_alone(text, from, to)) continue;
    if (a->flags & NB_ADDED_LSTRIP) from = strip_left(done, from);
    if (a->flags & NB_ADDED_RSTRIP) p = to = strip_right(to, end);
    if (from > done) NB_TRY(rest(b, (nb_span){done, from - done}));
    NB_TRY(nb_ids_push(b->out, &a->id, 1));
    done = to;
  }
  return done < end ? rest(b, (nb_span){done, end - done}) : NB_OK;
}

/* ---- steps ---------------------------------------------------------------- */

static int add_step(nb_bpe *b, step s) {
  if (b->nsteps == MAX_STEPS) {
    pcre2_match_data_free(s.found);
    pcre2_code_free(s.code);
    return nb_fail(NB_EUNSUPPORTED, "more than %d pre-tokenizer steps", MAX_STEPS);
  }
  b->steps[b->nsteps++] = s;
  return NB_OK;
}

int nb_bpe_prefix_space(nb_bpe *b) { return add_step(b, (step){0}); }

int nb_bpe_split(nb_bpe *b, const char *pattern, int64_t bytes, int behavior, int invert) {
  if (behavior < NB_SPLIT_REMOVED || behavior > NB_SPLIT_CONTIGUOUS)
    return nb_fail(NB_EINVAL, "unknown split behavior %d", behavior);
  pcre2_compile_context *context = pcre2_compile_context_create(NULL);
  if (!context) return nb_fail(NB_ENOMEM, "out of memory: a tokenizer's pattern");
  pcre2_set_newline(context, PCRE2_NEWLINE_LF);
  int code = 0;
  PCRE2_SIZE at = 0;
  pcre2_code *compiled =
      pcre2_compile((PCRE2_SPTR)pattern, (PCRE2_SIZE)bytes,
                    PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &code, &at, context);
  pcre2_compile_context_free(context);
  if (!compiled) {
    char why[160];
    pcre2_get_error_message(code, (PCRE2_UCHAR *)why, sizeof why);
    return nb_fail(NB_EUNSUPPORTED, "the pre-tokenizer's pattern cannot be run: %s at byte %lld of %.*s", why,
                   (long long)at, (int)NB_MIN(bytes, 400), pattern);
  }
  pcre2_jit_compile(compiled, PCRE2_JIT_COMPLETE); /* where there is no JIT, patterns are interpreted */
  pcre2_match_data *found = pcre2_match_data_create_from_pattern(compiled, NULL);
  if (!found) {
    pcre2_code_free(compiled);
    return nb_fail(NB_ENOMEM, "out of memory: a tokenizer's pattern");
  }
  return add_step(b, (step){compiled, found, behavior, invert});
}

static int run_steps(nb_bpe *b, int i, nb_span piece);

/* Parts of a piece on their way to the next step: some behaviors join a part
 * with its neighbour, so one part waits. */
typedef struct parts {
  int next, behavior;
  bool waiting, was_match;
  nb_span part;
} parts;

static int parts_flush(nb_bpe *b, parts *w) {
  bool had = w->waiting;
  w->waiting = false;
  return had ? run_steps(b, w->next, w->part) : NB_OK;
}

static int parts_add(nb_bpe *b, parts *w, nb_span part, bool match) {
  if (part.n == 0) return NB_OK;
  if (w->behavior == NB_SPLIT_REMOVED) return match ? NB_OK : run_steps(b, w->next, part);
  if (w->behavior == NB_SPLIT_ISOLATED) return run_steps(b, w->next, part);
  bool joins = w->waiting && (w->behavior == NB_SPLIT_CONTIGUOUS      ? match == w->was_match
                              : w->behavior == NB_SPLIT_WITH_PREVIOUS ? match && !w->was_match
                                                                      : !match && w->was_match);
  if (joins) {
    w->part.n += part.n;
  } else {
    NB_TRY(parts_flush(b, w));
    w->part = part;
    w->waiting = true;
  }
  w->was_match = match;
  return NB_OK;
}

static int split_piece(nb_bpe *b, int i, nb_span piece) {
  const step *s = &b->steps[i];
  parts w = {.next = i + 1, .behavior = s->behavior};
  int64_t done = 0, at = 0;
  while (at < piece.n) {
    int rc = pcre2_match(s->code, (PCRE2_SPTR)piece.p, (PCRE2_SIZE)piece.n, (PCRE2_SIZE)at,
                         PCRE2_NO_UTF_CHECK, s->found, b->context);
    if (rc == PCRE2_ERROR_NOMATCH) break;
    if (rc < 0) {
      char why[160];
      pcre2_get_error_message(rc, (PCRE2_UCHAR *)why, sizeof why);
      return nb_fail(NB_EUNSUPPORTED, "the pre-tokenizer's pattern gave up on a text: %s", why);
    }
    const PCRE2_SIZE *v = pcre2_get_ovector_pointer(s->found);
    int64_t from = (int64_t)v[0], to = (int64_t)v[1];
    if (to <= from) { /* an empty match cuts nothing */
      int32_t code;
      if (from >= piece.n) break;
      at = from + nb_utf8_next(piece.p + from, piece.p + piece.n, &code);
      continue;
    }
    NB_TRY(parts_add(b, &w, (nb_span){piece.p + done, from - done}, s->invert));
    NB_TRY(parts_add(b, &w, (nb_span){piece.p + from, to - from}, !s->invert));
    done = at = to;
  }
  NB_TRY(parts_add(b, &w, (nb_span){piece.p + done, piece.n - done}, s->invert));
  return parts_flush(b, &w);
}

static int prefix_piece(nb_bpe *b, int i, nb_span piece) {
  if (piece.n > 0 && piece.p[0] == ' ') return run_steps(b, i + 1, piece);
  char *copy = nb_alloc(piece.n + 1, 1);
  if (!copy) return NB_ENOMEM;
  copy[0] = ' ';
  memcpy(copy + 1, piece.p, (size_t)piece.n);
  int rc = run_steps(b, i + 1, (nb_span){copy, piece.n + 1});
  free(copy);
  return rc;
}

static int run_steps(nb_bpe *b, int i, nb_span piece) {
  if (i < b->nsteps) return b->steps[i].code ? split_piece(b, i, piece) : prefix_piece(b, i, piece);
  if (++b->words % STOP_EVERY == 0 && nb_stop_requested()) return nb_fail_stopped();
  return nb_merges_word(b->merges, piece, b->out);
}

/* ---- encoding and decoding ------------------------------------------------ */

static int first_step(nb_bpe *b, nb_span piece) { return run_steps(b, 0, piece); }

static int normal_plain(nb_bpe *b, nb_span piece, bool plain) {
  if (b->form == 0) return cut_added(b, &b->normalized, piece, plain, first_step);
  nb_bytes normal = {0};
  int rc = nb_normalize(&normal, piece, b->form);
  if (rc == NB_OK) rc = cut_added(b, &b->normalized, (nb_span){normal.v, normal.n}, plain, first_step);
  free(normal.v);
  return rc;
}

static int normal_piece(nb_bpe *b, nb_span piece) { return normal_plain(b, piece, false); }
static int normal_piece_plain(nb_bpe *b, nb_span piece) { return normal_plain(b, piece, true); }

int nb_bpe_encode(nb_tensor *ids, nb_bpe *b, const char *text, int64_t bytes, int plain) {
  nb_span all = {text, bytes};
  int64_t wrong = nb_utf8_invalid(text, bytes);
  if (wrong >= 0)
    return nb_fail(NB_EFORMAT,
                   "the text is not UTF-8: byte 0x%02x at offset %lld (0-based) begins no valid character",
                   (unsigned char)text[wrong], (long long)wrong);
  seal(b);
  nb_ids out = {0};
  b->out = &out;
  int rc = cut_added(b, &b->raw, all, plain != 0, plain ? normal_piece_plain : normal_piece);
  b->out = NULL;
  if (rc == NB_OK) rc = nb_tensor_new(ids, NB_I32, 1, NB_SHAPE(out.n));
  if (rc == NB_OK && out.n > 0) memcpy(ids->data, out.v, (size_t)out.n * 4);
  free(out.v);
  return rc;
}

static const added *find_added(const nb_bpe *b, int32_t id) {
  if (b->by_id_n == 0) return NULL;
  added key = {.id = id};
  return bsearch(&key, b->by_id, (size_t)b->by_id_n, sizeof *b->by_id, by_id);
}

static int push_decoded(nb_bpe *b, nb_bytes *out, const added *a, int32_t id) {
  if (!a) {
    nb_span t = nb_merges_bytes(b->merges, id);
    if (!t.p) return nb_fail(NB_EINVAL, "the tokenizer has no token %d", id);
    return nb_bytes_push(out, t.p, t.n);
  }
  char *copy =
      nb_alloc(a->n, 1); /* an added token's text passes through the alphabet too, as the reference does it */
  int64_t n;
  if (!copy) return NB_ENOMEM;
  nb_alphabet_bytes((nb_span){a->text, a->n}, copy, &n);
  int rc = nb_bytes_push(out, copy, n);
  free(copy);
  return rc;
}

/* Ill-formed sequences become U+FFFD, one for each longest beginning of a character. */
static int repair(nb_bytes *out, nb_span raw) {
  const char *p = raw.p, *end = p + raw.n, *good = p;
  while (p < end) {
    int32_t code;
    int n = nb_utf8_next(p, end, &code);
    if (n < 0) {
      NB_TRY(nb_bytes_push(out, good, p - good));
      NB_TRY(nb_bytes_push(out, "\xef\xbf\xbd", 3));
      good = p - n;
    }
    p += n < 0 ? -n : n;
  }
  return nb_bytes_push(out, good, end - good);
}

int nb_bpe_decode(nb_tensor *text, nb_bpe *b, const int32_t *ids, int64_t n, int flags) {
  seal(b);
  nb_bytes raw = {0}, fixed = {0};
  int rc = NB_OK;
  for (int64_t i = 0; rc == NB_OK && i < n; i++) {
    const added *a = find_added(b, ids[i]);
    if (a && a->flags & NB_ADDED_SPECIAL && flags & NB_DECODE_SKIP_SPECIAL) continue;
    rc = push_decoded(b, &raw, a, ids[i]);
  }
  bool as_is = flags & NB_DECODE_RAW;
  if (rc == NB_OK && !as_is) rc = repair(&fixed, (nb_span){raw.v, raw.n});
  const nb_bytes *made = as_is ? &raw : &fixed;
  if (rc == NB_OK) rc = nb_tensor_new(text, NB_U8, 1, NB_SHAPE(made->n));
  if (rc == NB_OK && made->n > 0) memcpy(text->data, made->v, (size_t)made->n);
  free(raw.v);
  free(fixed.v);
  return rc;
}

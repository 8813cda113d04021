/* bpe.h - what the tokenizer's files share: vocabulary and merges (bpe.c),
 * patterns and added tokens (bpe_split.c), Unicode (unicode.c). */
#ifndef NB_BPE_H
#define NB_BPE_H

#include "base.h"

/* Bytes that somebody else keeps. */
typedef struct nb_span {
  const char *p;
  int64_t n;
} nb_span;

/* Growing lists of int32 and of bytes. */
typedef struct nb_ids {
  int32_t *v;
  int64_t n, room;
} nb_ids;
typedef struct nb_bytes {
  char *v;
  int64_t n, room;
} nb_bytes;
int nb_ids_push(nb_ids *l, const int32_t *v, int64_t n);
int nb_bytes_push(nb_bytes *l, const char *v, int64_t n);

/* ---- bpe.c: a word's bytes to ids ---------------------------------------- */

typedef struct nb_merges nb_merges;
nb_merges *nb_merges_new(bool ignore_merges);
void nb_merges_free(nb_merges *m);
int nb_merges_token(nb_merges *m, nb_span text, int32_t id);
int nb_merges_add(nb_merges *m, int32_t left, int32_t right, int32_t merged);
/* Appends the ids of one pre-tokenized word. */
int nb_merges_word(nb_merges *m, nb_span word, nb_ids *out);
/* The bytes that a vocabulary id stands for; p = NULL when there is no such id. */
nb_span nb_merges_bytes(const nb_merges *m, int32_t id);
/* The bytes that a token's text stands for in the byte-level alphabet, into
 * out; a text with other characters stands for itself (returns false). */
bool nb_alphabet_bytes(nb_span text, char *out, int64_t *n);

/* ---- unicode.c ------------------------------------------------------------ */

/* Bytes of the well-formed sequence at p (1-4), or minus the bytes that one
 * replacement character stands for. *code: the code point when well formed. */
int nb_utf8_next(const char *p, const char *end, int32_t *code);
/* The same for the character that ends at p (the text is well formed). */
int nb_utf8_last(const char *start, const char *p, int32_t *code);
bool nb_is_space(int32_t code);
bool nb_is_word(int32_t code);
/* Appends text in a normalization form (NB_NFC ...) to out. */
int nb_normalize(nb_bytes *out, nb_span text, int form);

#endif

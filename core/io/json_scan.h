/* json_scan.h - a strict pull scanner for JSON text.
 *
 * For what cJSON is too slow, too large or too lenient: headers with 100,000
 * entries, exact 64-bit integers, and refusing everything that RFC 8259 refuses
 * (with the place and the reason). A call that fails returns false or -1, sets
 * why and leaves p at the offending byte. */
#ifndef NB_IO_JSON_SCAN_H
#define NB_IO_JSON_SCAN_H

#include "base.h"

enum { NB_SCAN_DEPTH = 512 }; /* nested deeper is refused, so that recursion is bounded */

typedef struct nb_scan {
  char *start, *p, *end;
  const char *why; /* NULL, or what was expected at p */
  bool in_place;   /* strings are unescaped where they lie (the text is changed) */
  bool has_nul;    /* an escaped U+0000 was seen */
} nb_scan;

void nb_scan_init(nb_scan *s, char *text, int64_t bytes, bool in_place);
/* Skips white space; takes c if it comes next. */
bool nb_scan_take(nb_scan *s, char c);
/* The same, failing with why when something else comes. */
bool nb_scan_need(nb_scan *s, char c, const char *why);
/* A string; out is its content: unescaped if in_place, else as it stands. */
bool nb_scan_string(nb_scan *s, nb_text *out);
/* An integer 0..2^63-1, without sign, fraction or exponent. */
bool nb_scan_size(nb_scan *s, int64_t *out);
/* Any number. */
bool nb_scan_number(nb_scan *s, double *out);
/* Any value, checked and skipped. */
bool nb_scan_skip(nb_scan *s, int depth);
/* After '{': 1 and the key (':' taken), 0 at '}', -1 on failure. first must be
 * true before the first call. */
int nb_scan_member(nb_scan *s, nb_text *key, bool *first);
/* After '[': 1 when an element follows, 0 at ']', -1 on failure. */
int nb_scan_element(nb_scan *s, bool *first);
/* Only white space is left. */
bool nb_scan_done(nb_scan *s);
/* 1-based line and column (in characters) of p. */
void nb_scan_where(const nb_scan *s, int64_t *line, int64_t *column);
/* What stands at p, for a sentence: "'x'", "byte 0x07", "the end". */
const char *nb_scan_found(const nb_scan *s, char *out, size_t bytes);

/* A name from a file as a sentence may show it: cut to fit and without control
 * characters (a hostile name must not reach the terminal's escape codes). */
const char *nb_text_show(nb_text t, char *out, size_t bytes);
bool nb_text_is(nb_text t, const char *s);
/* Offset of the first byte that is not valid UTF-8, or -1. */
int64_t nb_utf8_invalid(const char *text, int64_t bytes);

#endif

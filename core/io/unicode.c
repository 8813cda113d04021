/* unicode.c - what a tokenizer needs of Unicode: well-formed UTF-8, white space
 * and word characters, normalization forms; and the columns that text takes on a
 * terminal. utf8proc is used only here. */
#include "bpe.h"

#include <utf8proc.h>

int nb_utf8_next(const char *p, const char *end, int32_t *code) {
  const unsigned char *s = (const unsigned char *)p;
  int64_t left = end - p;
  if (s[0] < 0x80) {
    *code = s[0];
    return 1;
  }
  int n = s[0] >= 0xf0 && s[0] <= 0xf4  ? 4
          : s[0] >= 0xe0 && s[0] < 0xf0 ? 3
          : s[0] >= 0xc2 && s[0] < 0xe0 ? 2
                                        : 0;
  if (n == 0) return -1;
  /* The second byte's range shuts out overlong forms, surrogates and > 10FFFF. */
  unsigned lo = s[0] == 0xe0   ? 0xa0
                : s[0] == 0xf0 ? 0x90
                               : 0x80,
           hi = s[0] == 0xed   ? 0x9f
                : s[0] == 0xf4 ? 0x8f
                               : 0xbf;
  if (left < 2 || s[1] < lo || s[1] > hi) return -1;
  int32_t c = n == 2 ? s[0] & 31 : n == 3 ? s[0] & 15 : s[0] & 7;
  c = c << 6 | (s[1] & 63);
  for (int i = 2; i < n; i++) {
    if (left <= i || (s[i] & 0xc0) != 0x80) return -i;
    c = c << 6 | (s[i] & 63);
  }
  *code = c;
  return n;
}

int nb_utf8_last(const char *start, const char *p, int32_t *code) {
  const char *q = p - 1;
  while (q > start && (*q & 0xc0) == 0x80) q--;
  return nb_utf8_next(q, p, code);
}

bool nb_is_space(int32_t c) {
  return (c >= 9 && c <= 13) || c == 32 || c == 0x85 || c == 0xa0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f ||
         c == 0x3000;
}

bool nb_is_word(int32_t c) {
  if (c == 0x200c || c == 0x200d) return true; /* joiners */
  /* Letters in circles and squares are symbols, but alphabetic ones. */
  if ((c >= 0x24b6 && c <= 0x24e9) || (c >= 0x1f130 && c <= 0x1f149) || (c >= 0x1f150 && c <= 0x1f169) ||
      (c >= 0x1f170 && c <= 0x1f189))
    return true;
  switch (utf8proc_category(c)) {
  case UTF8PROC_CATEGORY_LU:
  case UTF8PROC_CATEGORY_LL:
  case UTF8PROC_CATEGORY_LT:
  case UTF8PROC_CATEGORY_LM:
  case UTF8PROC_CATEGORY_LO:
  case UTF8PROC_CATEGORY_MN:
  case UTF8PROC_CATEGORY_MC:
  case UTF8PROC_CATEGORY_ME:
  case UTF8PROC_CATEGORY_ND:
  case UTF8PROC_CATEGORY_NL:
  case UTF8PROC_CATEGORY_PC: return true;
  default: return false;
  }
}

/* Nothing below U+0300 combines with anything before it, so such text is in
 * NFC; ASCII is in every form. */
static bool is_normal_already(nb_span text, int form) {
  unsigned char first = form == NB_NFC ? 0xcc : 0x80;
  for (int64_t i = 0; i < text.n; i++)
    if ((unsigned char)text.p[i] >= first) return false;
  return true;
}

int nb_normalize(nb_bytes *out, nb_span text, int form) {
  if (is_normal_already(text, form)) return nb_bytes_push(out, text.p, text.n);
  int options = UTF8PROC_STABLE;
  options |= form == NB_NFC || form == NB_NFKC ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE;
  if (form == NB_NFKC || form == NB_NFKD) options |= UTF8PROC_COMPAT;
  utf8proc_uint8_t *made = NULL;
  utf8proc_ssize_t n =
      utf8proc_map((const utf8proc_uint8_t *)text.p, text.n, &made, (utf8proc_option_t)options);
  if (n < 0)
    return nb_fail(NB_ENOMEM, "normalizing %lld bytes of text: %s", (long long)text.n, utf8proc_errmsg(n));
  int rc = nb_bytes_push(out, (const char *)made, n);
  free(made);
  return rc;
}

/* Bytes of a colour's escape sequence at p, ESC [ digits and semicolons m; 0 where none is. */
static int64_t colour_bytes(const char *p, const char *end) {
  if (end - p < 3 || p[0] != 27 || p[1] != '[') return 0;
  const char *q = p + 2;
  while (q < end && ((*q >= '0' && *q <= '9') || *q == ';')) q++;
  return q < end && *q == 'm' ? q + 1 - p : 0;
}

int64_t nb_text_columns(const char *text, int64_t bytes) {
  int64_t columns = 0;
  for (const char *p = text, *end = text + bytes; p < end;) {
    int64_t skip = colour_bytes(p, end);
    if (skip) {
      p += skip;
      continue;
    }
    int32_t code;
    int n = nb_utf8_next(p, end, &code);
    columns += n > 0 ? utf8proc_charwidth(code) : 1;
    p += n > 0 ? n : 1;
  }
  return columns;
}

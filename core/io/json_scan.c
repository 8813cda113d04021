/* json_scan.c - a strict pull scanner for JSON text. */
#include "json_scan.h"

#include <stdio.h>

void nb_scan_init(nb_scan *s, char *text, int64_t bytes, bool in_place) {
  *s = (nb_scan){.start = text, .p = text, .end = text + bytes, .in_place = in_place};
}

static bool fail(nb_scan *s, const char *why) {
  if (!s->why) s->why = why;
  return false;
}

static void skip_space(nb_scan *s) {
  while (s->p < s->end && (*s->p == ' ' || *s->p == '\n' || *s->p == '\t' || *s->p == '\r')) s->p++;
}

bool nb_scan_take(nb_scan *s, char c) {
  skip_space(s);
  if (s->p >= s->end || *s->p != c) return false;
  s->p++;
  return true;
}

bool nb_scan_need(nb_scan *s, char c, const char *why) { return nb_scan_take(s, c) || fail(s, why); }

bool nb_scan_done(nb_scan *s) {
  skip_space(s);
  return s->p == s->end || fail(s, "expected nothing more");
}

/* ---- strings -------------------------------------------------------------- */

static int hex1(int c) {
  if (c >= '0' && c <= '9') return c - '0';
  c |= 32;
  return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static int hex4(const char *p) {
  int v = 0;
  for (int i = 0; i < 4; i++) {
    int d = hex1(p[i]);
    if (d < 0) return -1;
    v = v * 16 + d;
  }
  return v;
}

/* \uXXXX at p (after the u), surrogate pairs joined; -1 leaves why. */
static int32_t escaped_char(nb_scan *s) {
  int hi = s->end - s->p >= 4 ? hex4(s->p) : -1;
  if (hi < 0) return fail(s, "expected four hexadecimal digits after \\u"), -1;
  s->p += 4;
  if (hi < 0xd800 || hi > 0xdfff) return hi;
  int lo = hi < 0xdc00 && s->end - s->p >= 6 && s->p[0] == '\\' && s->p[1] == 'u' ? hex4(s->p + 2) : -1;
  if (lo < 0xdc00 || lo > 0xdfff) return fail(s, "expected a whole surrogate pair"), -1;
  s->p += 6;
  return 0x10000 + ((hi - 0xd800) << 10) + (lo - 0xdc00);
}

static char *put_utf8(char *to, int32_t c) {
  if (c < 0x80) {
    *to++ = (char)c;
  } else if (c < 0x800) {
    *to++ = (char)(0xc0 | c >> 6);
    *to++ = (char)(0x80 | (c & 63));
  } else if (c < 0x10000) {
    *to++ = (char)(0xe0 | c >> 12);
    *to++ = (char)(0x80 | (c >> 6 & 63));
    *to++ = (char)(0x80 | (c & 63));
  } else {
    *to++ = (char)(0xf0 | c >> 18);
    *to++ = (char)(0x80 | (c >> 12 & 63));
    *to++ = (char)(0x80 | (c >> 6 & 63));
    *to++ = (char)(0x80 | (c & 63));
  }
  return to;
}

/* The rest of a string from its first escape on; what is unescaped is never
 * longer than its escape, so it fits where it lies. */
static bool string_with_escapes(nb_scan *s, nb_text *out) {
  char *to = s->p;
  const char *from = out->data;
  while (s->p < s->end && *s->p != '"') {
    unsigned char c = (unsigned char)*s->p;
    if (c < 0x20) return fail(s, "control characters in a string must be escaped");
    if (c != '\\') {
      if (s->in_place) *to++ = (char)c;
      s->p++;
      continue;
    }
    if (++s->p >= s->end) break;
    int32_t code = (unsigned char)*s->p++;
    switch (code) {
    case '"':
    case '\\':
    case '/': break;
    case 'b': code = '\b'; break;
    case 'f': code = '\f'; break;
    case 'n': code = '\n'; break;
    case 'r': code = '\r'; break;
    case 't': code = '\t'; break;
    case 'u':
      if ((code = escaped_char(s)) < 0) return false;
      if (code == 0) s->has_nul = true;
      break;
    default: s->p--; return fail(s, "expected one of \"\\/bfnrtu after a backslash");
    }
    if (s->in_place) to = put_utf8(to, code);
  }
  if (s->p >= s->end) return fail(s, "expected the string's closing quote");
  out->bytes = (s->in_place ? to : s->p) - from;
  s->p++;
  return true;
}

bool nb_scan_string(nb_scan *s, nb_text *out) {
  if (!nb_scan_need(s, '"', "expected a string")) return false;
  out->data = s->p;
  char *p = s->p, *end = s->end;
  while (p < end && *p != '"' && *p != '\\' && (unsigned char)*p >= 0x20) p++;
  s->p = p;
  if (p < end && *p == '"') {
    out->bytes = p - out->data;
    s->p++;
    return true;
  }
  return string_with_escapes(s, out);
}

/* ---- numbers and literals -------------------------------------------------- */

static bool is_digit(const nb_scan *s) { return s->p < s->end && *s->p >= '0' && *s->p <= '9'; }

bool nb_scan_size(nb_scan *s, int64_t *out) {
  static const char why[] = "expected a non-negative integer";
  skip_space(s);
  char *from = s->p;
  if (!is_digit(s)) return fail(s, why);
  int64_t v = 0;
  while (is_digit(s)) {
    if (__builtin_mul_overflow(v, 10, &v) || __builtin_add_overflow(v, *s->p - '0', &v)) {
      s->p = from;
      return fail(s, "expected an integer below 2^63");
    }
    s->p++;
  }
  bool fraction = s->p < s->end && (*s->p == '.' || (*s->p | 32) == 'e');
  if (fraction || (*from == '0' && s->p - from > 1)) {
    s->p = from;
    return fail(s, why);
  }
  *out = v;
  return true;
}

static bool digits(nb_scan *s) {
  if (!is_digit(s)) return fail(s, "expected a digit");
  while (is_digit(s)) s->p++;
  return true;
}

static bool number(nb_scan *s) {
  if (s->p < s->end && *s->p == '-') s->p++;
  if (s->p < s->end && *s->p == '0') {
    s->p++;
    if (is_digit(s)) return fail(s, "a number must not begin with 0");
  } else if (!digits(s)) {
    return false;
  }
  if (s->p < s->end && *s->p == '.') {
    s->p++;
    if (!digits(s)) return false;
  }
  if (s->p < s->end && (*s->p | 32) == 'e') {
    s->p++;
    if (s->p < s->end && (*s->p == '+' || *s->p == '-')) s->p++;
    if (!digits(s)) return false;
  }
  return true;
}

bool nb_scan_number(nb_scan *s, double *out) {
  skip_space(s);
  const char *from = s->p;
  char copy[64];
  if (!number(s)) return false;
  snprintf(copy, sizeof copy, "%.*s", (int)NB_MIN(s->p - from, 63), from);
  *out = strtod(copy, NULL);
  return true;
}

static bool literal(nb_scan *s) {
  static const char *const known[] = {"true", "false", "null"};
  static const char *const refused[] = {"NaN", "Infinity", "-Infinity"};
  size_t left = (size_t)(s->end - s->p);
  for (int i = 0; i < 3; i++) {
    size_t n = strlen(known[i]);
    if (left >= n && memcmp(s->p, known[i], n) == 0) {
      s->p += n;
      return true;
    }
    n = strlen(refused[i]);
    if (left >= n && memcmp(s->p, refused[i], n) == 0)
      return fail(s, "NaN and Infinity are not JSON; expected a finite number or null");
  }
  if (left && *s->p == '-') return number(s);
  return fail(s, "expected a value");
}

/* ---- structure ------------------------------------------------------------- */

int nb_scan_member(nb_scan *s, nb_text *key, bool *first) {
  if (nb_scan_take(s, '}')) {
    return 0;
  }
  if (!*first && !nb_scan_need(s, ',', "expected ',' or '}'")) return -1;
  *first = false;
  if (!nb_scan_string(s, key)) {
    s->why = s->p < s->end && *s->p == '}' ? "expected another member after ','" : s->why;
    return -1;
  }
  return nb_scan_need(s, ':', "expected ':'") ? 1 : -1;
}

int nb_scan_element(nb_scan *s, bool *first) {
  if (nb_scan_take(s, ']')) return 0;
  if (!*first && !nb_scan_need(s, ',', "expected ',' or ']'")) return -1;
  *first = false;
  return 1;
}

bool nb_scan_skip(nb_scan *s, int depth) {
  nb_text text;
  bool first = true;
  int more;
  skip_space(s);
  if (depth > NB_SCAN_DEPTH) return fail(s, "nested more than 512 deep");
  switch (s->p < s->end ? *s->p : 0) {
  case '{':
    s->p++;
    while ((more = nb_scan_member(s, &text, &first)) > 0)
      if (!nb_scan_skip(s, depth + 1)) return false;
    return more == 0;
  case '[':
    s->p++;
    while ((more = nb_scan_element(s, &first)) > 0)
      if (!nb_scan_skip(s, depth + 1)) return false;
    return more == 0;
  case '"': return nb_scan_string(s, &text);
  default: return is_digit(s) ? number(s) : literal(s);
  }
}

/* ---- for sentences ---------------------------------------------------------- */

void nb_scan_where(const nb_scan *s, int64_t *line, int64_t *column) {
  *line = *column = 1;
  for (const char *p = s->start; p < s->p; p++) {
    if (*p == '\n') {
      ++*line;
      *column = 1;
    } else if ((*p & 0xc0) != 0x80) { /* not a continuation byte */
      ++*column;
    }
  }
}

const char *nb_scan_found(const nb_scan *s, char *out, size_t bytes) {
  if (s->p >= s->end) return "the end of the text";
  unsigned char c = (unsigned char)*s->p;
  snprintf(out, bytes, c >= 0x20 && c < 0x7f ? "'%c'" : "byte 0x%02x", c);
  return out;
}

const char *nb_text_show(nb_text t, char *out, size_t bytes) {
  size_t n = NB_MIN((size_t)t.bytes, bytes - 4), i = 0;
  for (; i < n; i++) {
    unsigned char c = (unsigned char)t.data[i];
    out[i] = c < 0x20 || c == 0x7f ? '?' : (char)c;
  }
  if (n < (size_t)t.bytes) {
    while (i > 0 && (out[i - 1] & 0x80)) i--; /* don't cut a character in two */
    memcpy(out + i, "...", 3);
    i += 3;
  }
  out[i] = 0;
  return out;
}

bool nb_text_is(nb_text t, const char *s) {
  return (int64_t)strlen(s) == t.bytes && memcmp(t.data, s, (size_t)t.bytes) == 0;
}

int64_t nb_utf8_invalid(const char *text, int64_t bytes) {
  const unsigned char *p = (const unsigned char *)text, *end = p + bytes;
  while (p < end) {
    uint64_t eight; /* at once while they are ASCII */
    while (end - p >= 8 && (memcpy(&eight, p, 8), (eight & 0x8080808080808080u) == 0)) p += 8;
    if (p == end) break;
    if (*p < 0x80) {
      p++;
      continue;
    }
    int more = *p >= 0xf0 && *p <= 0xf4 ? 3 : *p >= 0xe0 && *p < 0xf0 ? 2 : *p >= 0xc2 && *p < 0xe0 ? 1 : 0;
    if (more == 0 || end - p <= more) return (const char *)p - text;
    for (int i = 1; i <= more; i++)
      if ((p[i] & 0xc0) != 0x80) return (const char *)p - text;
    bool bad = (p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xed && p[1] > 0x9f) ||
               (p[0] == 0xf0 && p[1] < 0x90) ||
               (p[0] == 0xf4 && p[1] > 0x8f); /* overlong, surrogates, above U+10FFFF */
    if (bad) return (const char *)p - text;
    p += more + 1;
  }
  return -1;
}

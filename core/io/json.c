/* json.c - JSON text as a tree that Lua walks. The strict scanner judges the
 * text (and says where it is wrong); cJSON, which is lenient, builds the tree. */
#include "json_scan.h"

#include <cjson/cJSON.h>
#include <pthread.h>

static _Thread_local bool out_of_memory;

static void *hook_alloc(size_t bytes) {
  void *p = nb_realloc(NULL, (int64_t)bytes);
  if (!p) out_of_memory = true;
  return p;
}

static void set_hooks(void) { cJSON_InitHooks(&(cJSON_Hooks){.malloc_fn = hook_alloc, .free_fn = free}); }

/* cJSON's strings end at a NUL: an escaped U+0000 becomes the overlong form
 * C0 80, which no valid text has, so that nothing is lost. Same length: the
 * six bytes \u0000 become C0 80 and are moved together. */
static char *spell_nul(const char *text, int64_t *bytes) {
  char *copy = nb_alloc(*bytes + 1, 1), *to = copy;
  const char *p = text, *end = text + *bytes;
  while (copy && p < end) {
    if (*p != '\\') {
      *to++ = *p++;
    } else if (end - p >= 6 && memcmp(p, "\\u0000", 6) == 0) {
      *to++ = (char)0xc0;
      *to++ = (char)0x80;
      p += 6;
    } else {
      *to++ = *p++;
      *to++ = *p++; /* the escaped character: the text was judged, it is there */
    }
  }
  *bytes = to - copy;
  return copy;
}

static int judge(nb_scan *s, const char *what) {
  if (nb_scan_skip(s, 0) && nb_scan_done(s)) return NB_OK;
  char found[32];
  int64_t line, column;
  nb_scan_where(s, &line, &column);
  return nb_fail(NB_EFORMAT, "%s:%lld:%lld: not JSON: %s, found %s", what, (long long)line, (long long)column,
                 s->why, nb_scan_found(s, found, sizeof found));
}

int nb_json_parse(nb_json **out, const char *text, int64_t bytes, const char *what) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, set_hooks);
  *out = NULL;
  if (bytes >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0) { /* a byte order mark */
    text += 3;
    bytes -= 3;
  }
  nb_scan scan;
  nb_scan_init(&scan, (char *)text, bytes, false);
  NB_TRY(judge(&scan, what));
  char *copy = NULL;
  if (scan.has_nul && !(text = copy = spell_nul(text, &bytes))) return NB_ENOMEM;
  out_of_memory = false;
  cJSON *root = cJSON_ParseWithLengthOpts(text, (size_t)bytes, NULL, 0);
  free(copy);
  *out = (nb_json *)root;
  if (root) return NB_OK;
  if (out_of_memory) return NB_ENOMEM;
  return nb_fail(NB_EFORMAT, "%s: not JSON that cJSON reads (a number with more than 63 characters?)", what);
}

void nb_json_get(nb_json_value *out, const nb_json *node) {
  const cJSON *n = (const cJSON *)node;
  static const struct {
    int cjson, type;
  } types[] = {{cJSON_False, NB_JSON_FALSE},   {cJSON_True, NB_JSON_TRUE},   {cJSON_Number, NB_JSON_NUMBER},
               {cJSON_String, NB_JSON_STRING}, {cJSON_Array, NB_JSON_ARRAY}, {cJSON_Object, NB_JSON_OBJECT}};
  *out = (nb_json_value){.number = n->valuedouble,
                         .string = n->valuestring,
                         .key = n->string,
                         .child = (const nb_json *)n->child,
                         .next = (const nb_json *)n->next};
  for (size_t i = 0; i < sizeof types / sizeof *types; i++)
    if ((n->type & 0xff) == types[i].cjson) out->type = types[i].type;
}

void nb_json_free(nb_json *root) { cJSON_Delete((cJSON *)root); }

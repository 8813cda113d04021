/* safetensors_names.c - what the beginning of a name may become, a level at a time as paths are completed, or
 * which modules have a text inside their names: one pass over the names, nothing kept.
 *
 *   "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.down_proj.weight", "model.layers.0.norm.weight"
 *   after "model.layers.0."   mlp (deep), norm (below)
 *   with "proj" inside        model.layers.0.mlp.up_proj (below), model.layers.0.mlp.down_proj (below)
 */
#include "safetensors.h"

typedef struct level_list {
  nb_names names;
  uint8_t *flags;
  int64_t room, most;
  int64_t last;   /* the level met last: names that follow each other mostly share it */
  nb_text member; /* a name of that level, up to where it ends */
} level_list;

static int add_level(level_list *l, nb_text level, int flags) {
  bool same = l->last >= 0 && l->member.bytes == level.bytes &&
              memcmp(l->member.data, level.data, (size_t)level.bytes) == 0;
  if (!same) {
    if (memchr(level.data, 0, (size_t)level.bytes)) return NB_OK; /* nobody types such a name */
    if (l->names.count >= l->most && nb_names_find(&l->names, level) < 0) return NB_OK;
    int64_t before = l->names.count;
    int rc = nb_names_add(&l->names, &l->last, level);
    if (rc < 0) return rc;
    l->member = level;
    if (l->names.count > before) {
      NB_TRY(nb_grow(&l->flags, &l->room, l->names.count, 1));
      l->flags[l->last] = 0;
    }
  }
  l->flags[l->last] |= (uint8_t)flags;
  return NB_OK;
}

static int64_t dot_in(nb_text name, int64_t from) {
  if (from >= name.bytes) return -1;
  const char *dot = memchr(name.data + from, '.', (size_t)(name.bytes - from));
  return dot ? dot - name.data : -1;
}

/* Whether a name lies so deep below the level met last that it tells nothing new. */
static bool known(const level_list *l, nb_text name) {
  int64_t n = l->member.bytes;
  return l->last >= 0 && (l->flags[l->last] & NB_LEVEL_DEEP) && name.bytes > n && name.data[n] == '.' &&
         memcmp(name.data, l->member.data, (size_t)n) == 0;
}

/* The level of a name that begins with `bytes` bytes of what was typed. */
static int begins(level_list *l, nb_text name, nb_text typed) {
  if (known(l, name)) return NB_OK;
  if (name.bytes < typed.bytes || memcmp(name.data, typed.data, (size_t)typed.bytes) != 0) return NB_OK;
  int64_t dot = dot_in(name, typed.bytes);
  if (dot < 0) return add_level(l, name, NB_LEVEL_TENSOR);
  int flags = NB_LEVEL_BELOW | (dot_in(name, dot + 1) >= 0 ? NB_LEVEL_DEEP : 0);
  return add_level(l, (nb_text){name.data, dot}, flags);
}

/* The module of a name that has the text inside, or the tensor where only its own part has it. */
static int has_inside(level_list *l, nb_text name, nb_text typed) {
  if (!memmem(name.data, (size_t)name.bytes, typed.data, (size_t)typed.bytes)) return NB_OK;
  const char *dot = memrchr(name.data, '.', (size_t)name.bytes);
  nb_text module = {name.data, dot ? dot - name.data : 0};
  if (dot && memmem(module.data, (size_t)module.bytes, typed.data, (size_t)typed.bytes))
    return add_level(l, module, NB_LEVEL_BELOW);
  return add_level(l, name, NB_LEVEL_TENSOR);
}

/* A byte '0' + flags, the name and a NUL for each level. */
static int write_levels(nb_tensor *out, const level_list *l) {
  int64_t bytes = l->names.used + l->names.count;
  NB_TRY(nb_tensor_new(out, NB_U8, 1, &bytes));
  char *to = out->data;
  for (int64_t i = 0; i < l->names.count; i++) {
    nb_text name = nb_names_get(&l->names, i);
    *to++ = (char)('0' + l->flags[i]);
    memcpy(to, name.data, (size_t)name.bytes + 1);
    to += name.bytes + 1;
  }
  return NB_OK;
}

int nb_safetensors_levels(nb_tensor *out, const nb_safetensors *s, const char *text, int64_t bytes,
                          int inside, int64_t most) {
  level_list l = {.last = -1, .most = most};
  nb_text typed = {text, bytes};
  memset(out, 0, sizeof *out);
  int rc = NB_OK;
  for (int64_t i = 0; i < s->names.count && rc == NB_OK; i++) {
    nb_text name = nb_names_get(&s->names, i);
    rc = inside ? has_inside(&l, name, typed) : begins(&l, name, typed);
  }
  if (rc == NB_OK) rc = write_levels(out, &l);
  nb_names_free(&l.names);
  free(l.flags);
  return rc;
}

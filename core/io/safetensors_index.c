/* safetensors_index.c - the reader for many files: model.safetensors.index.json
 * against the headers of the files that it names, both ways.
 *
 *   {"metadata": {"total_size": 123}, "weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors",
 * ...}}
 */
#include "safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

typedef long long ll;

typedef struct entry {
  nb_text tensor;
  int64_t file;
} entry; /* file: a name's number in index.files */

typedef struct index {
  const char *path;
  nb_scan scan;
  nb_names files;
  entry *entries;
  int64_t count, room;
  double total_size;
  bool has_map, has_total;
} index_t;

static int not_json(index_t *x) {
  char found[32];
  int64_t line, column;
  nb_scan_where(&x->scan, &line, &column);
  return nb_fail(NB_EFORMAT, "%s:%lld:%lld: %s, found %s; the index is damaged: get it again", x->path,
                 (ll)line, (ll)column, x->scan.why, nb_scan_found(&x->scan, found, sizeof found));
}

/* A file beside the index or below it: no absolute path, no "..". */
static bool stays_inside(nb_text t) {
  if (t.bytes == 0 || t.data[0] == '/' || memchr(t.data, 0, (size_t)t.bytes) ||
      memchr(t.data, '\\', (size_t)t.bytes))
    return false;
  for (int64_t i = 0; i < t.bytes; i++)
    if ((i == 0 || t.data[i - 1] == '/') && t.bytes - i >= 2 && t.data[i] == '.' && t.data[i + 1] == '.' &&
        (i + 2 == t.bytes || t.data[i + 2] == '/'))
      return false;
  return true;
}

static int read_map(index_t *x) {
  nb_text tensor, file;
  bool first = true;
  int more;
  char shown[ST_SHOW], shown_file[ST_SHOW];
  if (!nb_scan_take(&x->scan, '{'))
    return nb_fail(NB_EFORMAT, "%s: weight_map must be an object from tensor names to file names", x->path);
  while ((more = nb_scan_member(&x->scan, &tensor, &first)) > 0) {
    if (!nb_scan_string(&x->scan, &file))
      return nb_fail(NB_EFORMAT, "%s: weight_map: the file of tensor %s must be a string", x->path,
                     nb_text_show(tensor, shown, sizeof shown));
    if (!stays_inside(file))
      return nb_fail(NB_EFORMAT,
                     "%s: weight_map: tensor %s lies in \"%s\", outside the checkpoint's folder; refused",
                     x->path, nb_text_show(tensor, shown, sizeof shown),
                     nb_text_show(file, shown_file, sizeof shown_file));
    NB_TRY(nb_grow(&x->entries, &x->room, x->count + 1, sizeof *x->entries));
    int rc = nb_names_add(&x->files, &x->entries[x->count].file, file);
    if (rc < 0) return rc;
    x->entries[x->count++].tensor = tensor;
  }
  x->has_map = true;
  return more < 0 ? not_json(x) : NB_OK;
}

static int read_total(index_t *x) {
  nb_text key;
  bool first = true;
  int more;
  if (!nb_scan_take(&x->scan, '{')) return nb_scan_skip(&x->scan, 2) ? NB_OK : not_json(x);
  while ((more = nb_scan_member(&x->scan, &key, &first)) > 0) {
    bool number = x->scan.p < x->scan.end && nb_text_is(key, "total_size") && !nb_scan_take(&x->scan, '"');
    if (number) {
      if (!nb_scan_number(&x->scan, &x->total_size)) return not_json(x);
      x->has_total = true;
    } else {
      if (x->scan.p[-1] == '"' && nb_text_is(key, "total_size"))
        x->scan.p--; /* a string: give its quote back */
      if (!nb_scan_skip(&x->scan, 3)) return not_json(x);
    }
  }
  return more < 0 ? not_json(x) : NB_OK;
}

static int read_index(index_t *x) {
  nb_text key;
  bool first = true;
  int more;
  if (!nb_scan_need(&x->scan, '{', "expected an object, '{'")) return not_json(x);
  while ((more = nb_scan_member(&x->scan, &key, &first)) > 0) {
    bool map = nb_text_is(key, "weight_map");
    if (map && x->has_map) return nb_fail(NB_EFORMAT, "%s has the key weight_map twice", x->path);
    if (map) NB_TRY(read_map(x));
    else if (nb_text_is(key, "metadata")) NB_TRY(read_total(x));
    else if (!nb_scan_skip(&x->scan, 2)) return not_json(x);
  }
  if (more < 0 || !nb_scan_done(&x->scan)) return not_json(x);
  return x->has_map ? NB_OK
                    : nb_fail(NB_EFORMAT,
                              "%s has no weight_map; expected an object from tensor names to files", x->path);
}

/* ---- the files, in the order of their names ----------------------------------- */

static int by_name(const void *a, const void *b, void *files) {
  return strcmp(nb_names_get(files, *(const int64_t *)a).data, nb_names_get(files, *(const int64_t *)b).data);
}

static int missing_file(index_t *x, int64_t file, const char *path) {
  int64_t tensors = 0;
  for (int64_t i = 0; i < x->count; i++) tensors += x->entries[i].file == file;
  return nb_fail(NB_EIO, "%s: weight_map puts %lld tensors into %s, which doesn't exist; get that file too",
                 x->path, (ll)tensors, path);
}

static int add_files(nb_safetensors *s, index_t *x, const int64_t *order) {
  const char *slash = strrchr(x->path, '/');
  int folder = slash ? (int)(slash - x->path) + 1 : 0;
  for (int64_t i = 0; i < x->files.count; i++) {
    nb_text name = nb_names_get(&x->files, order[i]);
    char path[4096];
    struct stat st;
    if (snprintf(path, sizeof path, "%.*s%s", folder, x->path, name.data) >= (int)sizeof path)
      return nb_fail(NB_EFORMAT, "%s: weight_map names a file with more than 4095 bytes in its path",
                     x->path);
    if (stat(path, &st) < 0 && errno == ENOENT) return missing_file(x, order[i], path);
    NB_TRY(nb_safetensors_add(s, path, name.data));
  }
  return NB_OK;
}

/* ---- index against headers ---------------------------------------------------- */

static int check_entry(nb_safetensors *s, index_t *x, const entry *e, const int64_t *rank, char *listed) {
  char shown[ST_SHOW];
  int64_t id = nb_names_find(&s->names, e->tensor);
  const char *file = nb_names_get(&x->files, e->file).data;
  if (id < 0)
    return nb_fail(NB_EFORMAT,
                   "%s: weight_map puts tensor %s into %s, whose header doesn't have it; get both again",
                   x->path, nb_text_show(e->tensor, shown, sizeof shown), file);
  if (s->records[id].file != rank[e->file])
    return nb_fail(NB_EFORMAT, "%s: weight_map puts tensor %s into %s, but it lies in %s; get both again",
                   x->path, nb_text_show(e->tensor, shown, sizeof shown), file,
                   s->files[s->records[id].file].name);
  if (listed[id])
    return nb_fail(NB_EFORMAT, "%s: weight_map has the key %s twice", x->path,
                   nb_text_show(e->tensor, shown, sizeof shown));
  listed[id] = 1;
  return NB_OK;
}

static int check_entries(nb_safetensors *s, index_t *x, const int64_t *rank, char *listed) {
  for (int64_t i = 0; i < x->count; i++) NB_TRY(check_entry(s, x, &x->entries[i], rank, listed));
  int64_t total = 0;
  for (int64_t id = 0; id < s->names.count; id++) {
    char shown[ST_SHOW];
    total += s->records[id].bytes;
    if (!listed[id])
      return nb_fail(NB_EFORMAT,
                     "%s: tensor %s of %s is not in the weight_map; the index is stale: get both again",
                     x->path, nb_text_show(nb_names_get(&s->names, id), shown, sizeof shown),
                     s->files[s->records[id].file].name);
  }
  if (x->has_total && x->total_size != (double)total)
    return st_warn(s, "%s: metadata.total_size is %.0f, but the tensors have %lld bytes", x->path,
                   x->total_size, (ll)total);
  return NB_OK;
}

static int join(nb_safetensors *s, index_t *x, int64_t *order, int64_t *rank) {
  for (int64_t i = 0; i < x->files.count; i++) order[i] = i;
  qsort_r(order, (size_t)x->files.count, sizeof *order, by_name, &x->files);
  for (int64_t i = 0; i < x->files.count; i++) rank[order[i]] = i;
  NB_TRY(add_files(s, x, order));
  char *listed = nb_alloc(s->names.count, 1);
  if (!listed) return NB_ENOMEM;
  int rc = check_entries(s, x, rank, listed);
  free(listed);
  return rc;
}

static int read_text(char **text, int64_t *bytes, const char *path) {
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return nb_fail_errno(NB_EIO, "cannot open %s", path);
  struct stat st;
  int rc;
  if (fstat(fd, &st) < 0) rc = nb_fail_errno(NB_EIO, "cannot stat %s", path);
  else if (!S_ISREG(st.st_mode)) rc = nb_fail(NB_EIO, "%s is not a regular file", path);
  else rc = st_read(text, fd, 0, *bytes = st.st_size, path);
  close(fd);
  return rc;
}

int st_open_index(nb_safetensors *s, const char *path) {
  char *text = NULL;
  int64_t bytes = 0;
  NB_TRY(read_text(&text, &bytes, path));
  index_t x = {.path = path};
  nb_scan_init(&x.scan, text, bytes, true);
  int rc = read_index(&x);
  if (rc == NB_OK) {
    int64_t *order = nb_alloc(2 * x.files.count, sizeof *order);
    rc = order ? join(s, &x, order, order + x.files.count) : NB_ENOMEM;
    free(order);
  }
  nb_names_free(&x.files);
  free(x.entries);
  free(text);
  return rc;
}

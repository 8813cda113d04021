/* safetensors_write.c - the writer: the whole layout is known before the first
 * byte, so that tensors can be put in any order, in blocks of rows, and a run
 * that was killed finds every byte at its place.
 *
 *   begin   NAME.partial: full size reserved, header written
 *   put     pwrite at the tensor's offset, in the background
 *   finish  fsync, rename NAME.partial to NAME, fsync the folder */
#include "files.h"
#include "json_scan.h"
#include "names.h"
#include "safetensors.h"
#include "writer.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

typedef long long ll;

typedef struct w_tensor {
  nb_tensor like;                  /* dtype and shape; no data */
  int64_t file, begin, bytes, put; /* begin: in the data area until layout(), then in the file */
} w_tensor;

typedef struct w_file {
  nb_sink sink;
  char *name, *path, *partial;
  int64_t first, count; /* its tensors */
  int64_t data_bytes, bytes;
  nb_tensor map;
  bool kept, made; /* kept: an earlier run's contents; made: by this one */
} w_file;

struct nb_writer {
  char *dir;
  int64_t shard_bytes, tensor_room, file_count, file_room, metadata_count, metadata_room, bytes;
  nb_names names;
  w_tensor *tensors;
  w_file *files;
  st_pair *metadata;
  nb_queue *queue;
  nb_repackers *repackers;
  int64_t only; /* the one file that is made; -1: all */
  bool begun, finished;
};

/* ---- what is to be written ------------------------------------------------------ */

int nb_writer_new(nb_writer **out, const char *dir, int64_t shard_bytes) {
  *out = NULL;
  if (shard_bytes < 1)
    return nb_fail(NB_EINVAL, "writer: shard_bytes is %lld, expected 1 or more", (ll)shard_bytes);
  nb_writer *w = nb_alloc(1, sizeof *w);
  if (!w) return NB_ENOMEM;
  w->shard_bytes = shard_bytes;
  w->only = -1;
  if (!(w->dir = nb_strdup(dir))) {
    free(w);
    return NB_ENOMEM;
  }
  *out = w;
  return NB_OK;
}

void nb_writer_only(nb_writer *w, int64_t file) { w->only = file; }

static int check_telling(const nb_writer *w, nb_text name) {
  if (w->begun) return nb_fail(NB_EINVAL, "writer: tensors and metadata must be told before it begins");
  char shown[ST_SHOW];
  if (nb_utf8_invalid(name.data, name.bytes) >= 0)
    return nb_fail(NB_EINVAL, "writer: the name %s is not valid UTF-8",
                   nb_text_show(name, shown, sizeof shown));
  return NB_OK;
}

static int copy_text(nb_text *out, const char *data, int64_t bytes) {
  char *p = nb_alloc(bytes + 1, 1);
  if (!p) return NB_ENOMEM;
  memcpy(p, data, (size_t)bytes);
  *out = (nb_text){p, bytes};
  return NB_OK;
}

int nb_writer_metadata(nb_writer *w, const char *key, int64_t key_bytes, const char *value,
                       int64_t value_bytes) {
  NB_TRY(check_telling(w, (nb_text){key, key_bytes}));
  NB_TRY(check_telling(w, (nb_text){value, value_bytes}));
  NB_TRY(nb_grow(&w->metadata, &w->metadata_room, w->metadata_count + 1, sizeof *w->metadata));
  st_pair *pair = &w->metadata[w->metadata_count];
  NB_TRY(copy_text(&pair->key, key, key_bytes));
  if (copy_text(&pair->value, value, value_bytes) < 0) {
    free((char *)pair->key.data);
    return NB_ENOMEM;
  }
  w->metadata_count++;
  return NB_OK;
}

int nb_writer_add(nb_writer *w, const char *name, int64_t name_bytes, int dtype, int ndim,
                  const int64_t *shape) {
  nb_text text = {name, name_bytes};
  char shown[ST_SHOW];
  NB_TRY(check_telling(w, text));
  nb_text_show(text, shown, sizeof shown);
  if (nb_text_is(text, "__metadata__"))
    return nb_fail(NB_EINVAL, "writer: no tensor may be called __metadata__");
  if (dtype > NB_U64)
    return nb_fail(NB_EINVAL, "writer: %s: safetensors has no dtype %s; pack it into u8 or i32", shown,
                   nb_dtype_name(dtype) ? nb_dtype_name(dtype) : "of that number");
  w_tensor t = {0};
  NB_TRY(nb_shape_set(&t.like, dtype, ndim, shape, shown));
  NB_TRY(nb_grow(&w->tensors, &w->tensor_room, w->names.count + 1, sizeof *w->tensors));
  int64_t id;
  int fresh = nb_names_add(&w->names, &id, text);
  if (fresh < 0) return fresh;
  if (!fresh) return nb_fail(NB_EINVAL, "writer: tensor %s was told twice", shown);
  t.bytes = nb_tensor_bytes(&t.like);
  w->bytes += t.bytes;
  w->tensors[id] = t;
  return NB_OK;
}

/* ---- shards and headers ----------------------------------------------------------- */

static int new_file(nb_writer *w, int64_t first) {
  NB_TRY(nb_grow(&w->files, &w->file_room, w->file_count + 1, sizeof *w->files));
  w->files[w->file_count++] = (w_file){.first = first, .sink.fd = -1};
  return NB_OK;
}

static int split(nb_writer *w) {
  NB_TRY(new_file(w, 0));
  for (int64_t i = 0; i < w->names.count; i++) {
    w_tensor *t = &w->tensors[i];
    w_file *f = &w->files[w->file_count - 1];
    if (f->count > 0 && f->data_bytes + t->bytes > w->shard_bytes) {
      NB_TRY(new_file(w, i));
      f = &w->files[w->file_count - 1];
    }
    t->file = w->file_count - 1;
    t->begin = f->data_bytes;
    f->data_bytes += t->bytes;
    f->count++;
  }
  return NB_OK;
}

static int set_names(nb_writer *w) {
  for (int64_t i = 0; i < w->file_count; i++) {
    w_file *f = &w->files[i];
    char path[PATH_MAX], name[64] = "model.safetensors";
    if (w->file_count > 1)
      snprintf(name, sizeof name, "model-%05lld-of-%05lld.safetensors", (ll)i + 1, (ll)w->file_count);
    if (snprintf(path, sizeof path, "%s/%s.partial", w->dir, name) >= (int)sizeof path)
      return nb_fail(NB_EIO, "cannot write into %s: the path is too long", w->dir);
    f->partial = nb_strdup(path);
    path[strlen(path) - strlen(".partial")] = 0;
    f->path = nb_strdup(path);
    f->name = nb_strdup(name);
    if (!f->partial || !f->path || !f->name) return NB_ENOMEM;
    f->sink.path = f->partial;
  }
  return NB_OK;
}

typedef struct text {
  char *data;
  int64_t bytes, room;
  bool failed;
} text_t;

static void add(text_t *t, const char *data, int64_t bytes) {
  t->failed = t->failed || nb_grow(&t->data, &t->room, t->bytes + bytes, 1) < 0;
  if (t->failed) return;
  memcpy(t->data + t->bytes, data, (size_t)bytes);
  t->bytes += bytes;
}

static void addf(text_t *t, const char *fmt, ...) NB_PRINTF(2, 3);
static void addf(text_t *t, const char *fmt, ...) {
  char line[128];
  va_list ap;
  va_start(ap, fmt);
  int n = vsnprintf(line, sizeof line, fmt, ap);
  va_end(ap);
  add(t, line, n);
}

static void add_string(text_t *t, nb_text s) {
  add(t, "\"", 1);
  for (int64_t i = 0; i < s.bytes; i++) {
    unsigned char c = (unsigned char)s.data[i];
    if (c == '"' || c == '\\') addf(t, "\\%c", c);
    else if (c < 0x20) addf(t, "\\u%04x", c);
    else add(t, s.data + i, 1);
  }
  add(t, "\"", 1);
}

static void add_entry(text_t *t, nb_text name, const w_tensor *x) {
  char dtype[32];
  int n = snprintf(dtype, sizeof dtype, "%s", nb_dtype_name(x->like.dtype));
  for (int i = 0; i < n; i++) dtype[i] = (char)toupper(dtype[i]);
  add_string(t, name);
  addf(t, ":{\"dtype\":\"%s\",\"shape\":[", dtype);
  for (int d = 0; d < x->like.ndim; d++) addf(t, d ? ",%lld" : "%lld", (ll)x->like.shape[d]);
  addf(t, "],\"data_offsets\":[%lld,%lld]}", (ll)x->begin, (ll)(x->begin + x->bytes));
}

/* The header of f with its length before it, padded so that the data begin at a multiple of 8. */
static int build_header(const nb_writer *w, const w_file *f, text_t *t) {
  add(t, "\0\0\0\0\0\0\0\0{", 9);
  if (w->metadata_count > 0) {
    addf(t, "\"__metadata__\":{");
    for (int64_t i = 0; i < w->metadata_count; i++) {
      if (i) add(t, ",", 1);
      add_string(t, w->metadata[i].key);
      add(t, ":", 1);
      add_string(t, w->metadata[i].value);
    }
    add(t, "}", 1);
  }
  for (int64_t i = f->first; i < f->first + f->count; i++) {
    if (i > f->first || w->metadata_count > 0) add(t, ",", 1);
    add_entry(t, nb_names_get(&w->names, i), &w->tensors[i]);
  }
  add(t, "}", 1);
  while (!t->failed && t->bytes % 8) add(t, " ", 1);
  if (t->failed) return NB_ENOMEM;
  if (t->bytes - 8 > 100000000)
    return nb_fail(
        NB_EINVAL,
        "writer: the header of %s needs %lld bytes; at most 100000000 are allowed: use smaller shards",
        f->name, (ll)(t->bytes - 8));
  for (int i = 0; i < 8; i++) t->data[i] = (char)((uint64_t)(t->bytes - 8) >> (8 * i));
  return NB_OK;
}

/* ---- making the files --------------------------------------------------------------- */

static bool same_start(int fd, const text_t *header) {
  char *have = nb_alloc(header->bytes, 1);
  bool same = have && pread(fd, have, (size_t)header->bytes, 0) == header->bytes &&
              memcmp(have, header->data, (size_t)header->bytes) == 0;
  free(have);
  return same;
}

/* An earlier run's file with this size and header, at path? Opens it. */
static bool reopen(w_file *f, const char *path, const text_t *header) {
  int fd = open(path, O_RDWR | O_CLOEXEC);
  struct stat st;
  if (fd < 0) return false;
  if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_size == f->bytes && same_start(fd, header)) {
    f->sink.fd = fd;
    f->kept = true;
    return true;
  }
  close(fd);
  return false;
}

/* A run killed inside finish has renamed some files already: they go back. */
static int resume_file(w_file *f, const text_t *header) {
  if (reopen(f, f->partial, header) || !reopen(f, f->path, header)) return NB_OK;
  if (rename(f->path, f->partial) < 0)
    return nb_fail_errno(NB_EIO, "cannot rename %s to %s", f->path, f->partial);
  return NB_OK;
}

static int fail_reserve(const w_file *f) {
  int e = errno;
  struct statvfs fs;
  ll left = fstatvfs(f->sink.fd, &fs) == 0 ? (ll)fs.f_bavail * (ll)fs.f_frsize : -1;
  errno = e;
  return nb_fail_errno(NB_EIO, "cannot reserve %lld bytes for %s (%lld bytes are free there)", (ll)f->bytes,
                       f->partial, left);
}

/* Room on the disk now, so that a full one is found before hours of work. Where
 * the file system cannot reserve, at least compare with what is free. */
static int reserve(w_file *f) {
  struct statvfs fs;
  if (f->bytes == 0 || fallocate(f->sink.fd, 0, 0, f->bytes) == 0) return NB_OK;
  if (errno != EOPNOTSUPP && errno != ENOSYS && errno != EINVAL) return fail_reserve(f);
  if (fstatvfs(f->sink.fd, &fs) == 0 && fs.f_bavail < (uint64_t)f->bytes / fs.f_frsize) {
    errno = ENOSPC;
    return fail_reserve(f);
  }
  return ftruncate(f->sink.fd, f->bytes) < 0 ? fail_reserve(f) : NB_OK;
}

static int make_file(w_file *f, const text_t *header) {
  f->sink.fd = open(f->partial, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (f->sink.fd < 0) return nb_fail_errno(NB_EIO, "cannot create %s", f->partial);
  f->made = true;
  nb_signals held;
  nb_hold_sigxfsz(&held);
  int rc = reserve(f);
  if (rc == NB_OK && nb_pwrite_all(f->sink.fd, header->data, header->bytes, 0) < 0)
    rc = nb_fail_errno(NB_EIO, "cannot write the header of %s", f->partial);
  nb_release_sigxfsz(&held);
  return rc;
}

static int check_absent(const nb_writer *w, const char *name) {
  char path[PATH_MAX];
  snprintf(path, sizeof path, "%s/%s", w->dir, name);
  if (nb_path_kind(path) == NB_PATH_NONE) return NB_OK;
  return nb_fail(NB_EIO, "%s already holds %s; choose another folder, or remove the checkpoint that is there",
                 w->dir, name);
}

static int begin_file(nb_writer *w, w_file *f, bool resume) {
  text_t header = {0};
  int rc = build_header(w, f, &header);
  if (rc == NB_OK) {
    f->bytes = header.bytes + f->data_bytes;
    for (int64_t i = f->first; i < f->first + f->count; i++) w->tensors[i].begin += header.bytes;
    if (resume) rc = resume_file(f, &header);
    if (rc == NB_OK && !f->kept) rc = check_absent(w, f->name); /* not ours: nothing may be lost */
    if (rc == NB_OK && !f->kept) rc = make_file(f, &header);
  }
  free(header.data);
  return rc;
}

static int begin_files(nb_writer *w, bool resume) {
  if (!resume) NB_TRY(check_absent(w, "model.safetensors.index.json"));
  if (w->file_count > 1) NB_TRY(check_absent(w, "model.safetensors"));
  for (int64_t i = 0; i < w->file_count; i++)
    if (w->only < 0 || w->only == i) NB_TRY(begin_file(w, &w->files[i], resume));
  return nb_queue_new(&w->queue);
}

static void close_files(nb_writer *w) {
  for (int64_t i = 0; i < w->file_count; i++) {
    w_file *f = &w->files[i];
    nb_tensor_release(&f->map);
    if (f->sink.fd >= 0) close(f->sink.fd);
    f->sink.fd = -1;
  }
}

int nb_writer_begin(nb_writer *w, int resume) {
  if (w->begun) return nb_fail(NB_EINVAL, "writer: it has begun already");
  w->begun = true;
  NB_TRY(split(w));
  NB_TRY(set_names(w));
  NB_TRY(nb_dir_make(w->dir));
  int rc = begin_files(w, resume);
  if (rc == NB_OK) return NB_OK;
  close_files(w);
  for (int64_t i = 0; i < w->file_count; i++) /* an earlier run's work stays */
    if (w->files[i].made) unlink(w->files[i].partial);
  return rc;
}

/* ---- putting -------------------------------------------------------------------------- */

static int not_open(void) { return nb_fail(NB_EINVAL, "writer: it is not open for writing"); }

static int find(nb_writer *w, w_tensor **out, const char *name, int64_t bytes) {
  char shown[ST_SHOW];
  nb_text text = {name, bytes};
  if (!w->queue) return not_open();
  int64_t id = nb_names_find(&w->names, text);
  if (id < 0 || w->files[w->tensors[id].file].sink.fd < 0)
    return nb_fail(NB_EINVAL, "writer: tensor %s was not announced%s",
                   nb_text_show(text, shown, sizeof shown), id < 0 ? "" : " for the file that is written");
  *out = &w->tensors[id];
  return NB_OK;
}

/* t must be rows row0.. of x: same dtype, same shape but for the first dimension. */
static int check_rows(const w_tensor *x, const nb_tensor *t, int64_t row0, nb_text name) {
  const nb_tensor *like = &x->like;
  char shown[ST_SHOW], a[160], b[160];
  bool fits = t->dtype == like->dtype && t->ndim == like->ndim && t->device == 0;
  for (int d = 1; fits && d < t->ndim; d++) fits = t->shape[d] == like->shape[d];
  nb_text_show(name, shown, sizeof shown);
  if (!fits)
    return nb_fail(NB_EINVAL, "writer: %s: expected rows of %s, found %s", shown,
                   nb_tensor_describe(like, a, sizeof a), nb_tensor_describe(t, b, sizeof b));
  int64_t rows = like->ndim ? like->shape[0] : 1, n = t->ndim ? t->shape[0] : 1;
  if (row0 < 0 || row0 > rows || n > rows - row0)
    return nb_fail(NB_EINVAL, "writer: %s: rows %lld to %lld lie outside its %lld rows", shown, (ll)row0 + 1,
                   (ll)(row0 + n), (ll)rows);
  return NB_OK;
}

int nb_writer_put(nb_writer *w, const char *name, int64_t name_bytes, const nb_tensor *t, int64_t row0) {
  w_tensor *x = NULL;
  NB_TRY(find(w, &x, name, name_bytes));
  NB_TRY(check_rows(x, t, row0, (nb_text){name, name_bytes}));
  int64_t bits = nb_dtype_bits(t->dtype), bytes = nb_tensor_bytes(t);
  for (int d = 1; d < t->ndim; d++) bits *= t->shape[d];
  if (bits * row0 % 8)
    return nb_fail(NB_EINVAL, "writer: %.*s: row %lld doesn't begin on a byte", (int)NB_MIN(name_bytes, 200),
                   name, (ll)row0 + 1);
  if (bytes == 0) return NB_OK;
  NB_TRY(nb_queue_put(w->queue, &w->files[x->file].sink, t->buf, t->data, bytes, x->begin + bits * row0 / 8));
  x->put += bytes;
  return NB_OK;
}

int nb_writer_flush(nb_writer *w) { return w->queue ? nb_queue_flush(w->queue) : not_open(); }
int64_t nb_writer_mark(nb_writer *w) { return w->queue ? nb_queue_mark(w->queue) : 0; }
int nb_writer_wait(nb_writer *w, int64_t mark) {
  return w->queue ? nb_queue_wait(w->queue, mark) : not_open();
}

int nb_writer_tensor(nb_tensor *out, nb_writer *w, const char *name, int64_t name_bytes) {
  w_tensor *x = NULL;
  memset(out, 0, sizeof *out);
  NB_TRY(find(w, &x, name, name_bytes));
  w_file *f = &w->files[x->file];
  if (!f->map.buf) NB_TRY(nb_fd_map(&f->map, f->sink.fd, f->partial));
  return nb_tensor_view(out, &f->map, x->like.dtype, x->like.ndim, x->like.shape, x->begin);
}

int nb_writer_place(nb_place *out, nb_writer *w, const char *name, int64_t name_bytes) {
  w_tensor *x = NULL;
  NB_TRY(find(w, &x, name, name_bytes));
  *out = (nb_place){.queue = w->queue,
                    .sink = &w->files[x->file].sink,
                    .like = &x->like,
                    .put = &x->put,
                    .begin = x->begin,
                    .repackers = &w->repackers};
  return NB_OK;
}

nb_repackers *nb_writer_repackers(const nb_writer *w) { return w->repackers; }

static void end_repackers(nb_writer *w) {
  nb_repackers_free(w->repackers);
  w->repackers = NULL;
}

/* ---- the end ------------------------------------------------------------------------------ */

static int check_complete(const nb_writer *w) {
  char shown[ST_SHOW];
  for (int64_t i = 0; i < w->names.count; i++) {
    const w_tensor *t = &w->tensors[i];
    if (t->put < t->bytes && !w->files[t->file].kept && (w->only < 0 || w->only == t->file))
      return nb_fail(NB_EINVAL,
                     "writer: %lld of the %lld bytes of tensor %s were put; nothing may be missing",
                     (ll)t->put, (ll)t->bytes, nb_text_show(nb_names_get(&w->names, i), shown, sizeof shown));
  }
  return NB_OK;
}

int nb_writer_finish(nb_writer *w) {
  if (!w->queue) return not_open();
  NB_TRY(nb_queue_flush(w->queue)); /* a failed put is why bytes are missing: it speaks first */
  NB_TRY(check_complete(w));
  for (int64_t i = 0; i < w->file_count; i++)
    if (w->files[i].sink.fd >= 0 && fsync(w->files[i].sink.fd) < 0)
      return nb_fail_errno(NB_EIO, "cannot write %s to the disk", w->files[i].partial);
  for (int64_t i = 0; w->only < 0 && i < w->file_count; i++)
    if (rename(w->files[i].partial, w->files[i].path) < 0)
      return nb_fail_errno(NB_EIO, "cannot rename %s to %s", w->files[i].partial, w->files[i].path);
  NB_TRY(nb_fsync_folder(w->files[0].path));
  end_repackers(w); /* of complete tensors the results are taken */
  nb_queue_free(w->queue);
  w->queue = NULL;
  w->finished = true;
  close_files(w);
  return NB_OK;
}

int nb_writer_abort(nb_writer *w) {
  if (w->finished) return nb_fail(NB_EINVAL, "writer: it has finished; its files are complete");
  end_repackers(w);
  nb_queue_free(w->queue);
  w->queue = NULL;
  close_files(w);
  int rc = NB_OK;
  for (int64_t i = 0; i < w->file_count; i++)
    if (w->files[i].partial && nb_file_remove(w->files[i].partial) < 0) rc = NB_EIO;
  return rc;
}

void nb_writer_close(nb_writer *w) {
  if (!w) return;
  end_repackers(w);
  nb_queue_free(w->queue);
  close_files(w);
  for (int64_t i = 0; i < w->file_count; i++) {
    free(w->files[i].name);
    free(w->files[i].path);
    free(w->files[i].partial);
  }
  for (int64_t i = 0; i < w->metadata_count; i++) {
    free((char *)w->metadata[i].key.data);
    free((char *)w->metadata[i].value.data);
  }
  nb_names_free(&w->names);
  free(w->tensors);
  free(w->files);
  free(w->metadata);
  free(w->dir);
  free(w);
}

int64_t nb_writer_files(const nb_writer *w) { return w->file_count; }
int64_t nb_writer_bytes(const nb_writer *w) { return w->bytes; }

const char *nb_writer_file(const nb_writer *w, int64_t i, int *kept) {
  if (i < 0 || i >= w->file_count) return NULL;
  if (kept) *kept = w->files[i].kept;
  return w->files[i].name;
}

int64_t nb_writer_file_of(const nb_writer *w, const char *name, int64_t name_bytes) {
  int64_t id = nb_names_find(&w->names, (nb_text){name, name_bytes});
  return id < 0 ? -1 : w->tensors[id].file;
}

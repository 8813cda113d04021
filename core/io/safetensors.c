/* safetensors.c - the reader: one file's header, checked rule by rule, into
 * records; look-up and mapped views.
 *
 *   byte 0        8                    8+n                         end of file
 *   ├── n (u64) ──┼── JSON, n bytes ───┼── data: no gap, no overlap ─┤
 *
 * Nothing here trusts the file: every number is checked before it is used. The
 * header is read into memory (never parsed from the mapping, whose bytes another
 * process could change meanwhile), and sizes are taken once, from the open file.
 */
#include "safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#define HEADER_MAX 100000000LL
#define DAMAGED "the file is damaged or was written by a faulty program; get it again"

typedef long long ll;

/* What one file's reading needs at hand. */
typedef struct reader {
  nb_safetensors *s;
  const char *path;
  nb_scan scan;
  int64_t data_begin, data_bytes, first; /* first: number of this file's first tensor */
  nb_text name;                          /* the current tensor's */
  char shown[ST_SHOW];                   /* the same, for sentences */
  char last_dtype_name[64];              /* most tensors have the dtype of the one before */
  int64_t last_dtype_bytes;
  int16_t last_dtype;
} reader;

static const char *who(reader *r) { return nb_text_show(r->name, r->shown, sizeof r->shown); }

/* ---- one entry ------------------------------------------------------------- */

static int not_json(reader *r) {
  char found[32];
  return nb_fail(NB_EFORMAT, "%s: byte %lld of the header: %s, found %s; " DAMAGED, r->path,
                 (ll)(r->scan.p - r->scan.start), r->scan.why, nb_scan_found(&r->scan, found, sizeof found));
}

static int read_dtype(reader *r, st_record *t) {
  nb_text text;
  char shown[64], name[64], *c = name;
  if (!nb_scan_string(&r->scan, &text)) return not_json(r);
  if (r->last_dtype_bytes && text.bytes == r->last_dtype_bytes &&
      memcmp(text.data, r->last_dtype_name, (size_t)text.bytes) == 0) {
    t->dtype = r->last_dtype;
    return NB_OK;
  }
  int dtype = -1;
  if (text.bytes < (int64_t)sizeof name) {
    for (int64_t i = 0; i < text.bytes; i++) *c++ = text.data[i];
    *c = 0;
    dtype = nb_dtype_parse(name);
  }
  bool upper = true; /* nb_dtype_parse is lenient about case, the format is not */
  for (int64_t i = 0; i < text.bytes; i++) upper = upper && !(text.data[i] >= 'a' && text.data[i] <= 'z');
  if (dtype < 0 || dtype > NB_U64 || !upper)
    return nb_fail(NB_EFORMAT,
                   "%s: tensor %s has the unknown dtype \"%s\"; expected one of safetensors' (F32, BF16, "
                   "I32, U8, F8_E4M3, ...)",
                   r->path, who(r), nb_text_show(text, shown, sizeof shown));
  t->dtype = r->last_dtype = (int16_t)dtype;
  r->last_dtype_bytes = text.bytes;
  memcpy(r->last_dtype_name, name, (size_t)text.bytes);
  return NB_OK;
}

/* Integers of an array into out[0..max); their number into *count. */
static int read_sizes(reader *r, int64_t *out, int *count, int max, const char *field, const char *expected) {
  bool first = true;
  int more = 0;
  *count = 0;
  if (!nb_scan_take(&r->scan, '[')) goto wrong;
  while ((more = nb_scan_element(&r->scan, &first)) > 0) {
    int64_t v;
    if (!nb_scan_size(&r->scan, &v)) goto wrong;
    if (*count < max) out[*count] = v;
    ++*count;
  }
  if (more == 0) return NB_OK;
wrong:;
  char found[32];
  return nb_fail(NB_EFORMAT, "%s: tensor %s: %s must be %s, found %s at byte %lld of the header; " DAMAGED,
                 r->path, who(r), field, expected, nb_scan_found(&r->scan, found, sizeof found),
                 (ll)(r->scan.p - r->scan.start));
}

static int read_shape(reader *r, st_record *t) {
  int n;
  NB_TRY(read_sizes(r, t->shape, &n, 6, "shape", "an array of non-negative integers below 2^63"));
  if (n > 6)
    return nb_fail(NB_EUNSUPPORTED, "%s: tensor %s has %d dimensions; nibble reads at most 6", r->path,
                   who(r), n);
  t->ndim = (int16_t)n;
  return NB_OK;
}

static int read_offsets(reader *r, int64_t offsets[2]) {
  int n;
  NB_TRY(read_sizes(r, offsets, &n, 2, "data_offsets", "two non-negative integers [begin, end]"));
  if (n != 2)
    return nb_fail(NB_EFORMAT,
                   "%s: tensor %s: data_offsets has %d numbers, expected 2 [begin, end]; " DAMAGED, r->path,
                   who(r), n);
  if (offsets[1] < offsets[0])
    return nb_fail(NB_EFORMAT, "%s: tensor %s: data_offsets end %lld lies before begin %lld; " DAMAGED,
                   r->path, who(r), (ll)offsets[1], (ll)offsets[0]);
  return NB_OK;
}

/* Size by dtype and shape against the room that the offsets give. */
static int check_size(reader *r, const st_record *t) {
  int64_t bits = nb_dtype_bits(t->dtype);
  const char *dtype = nb_dtype_name(t->dtype);
  for (int i = 0; i < t->ndim; i++)
    if (__builtin_mul_overflow(bits, t->shape[i], &bits))
      return nb_fail(NB_EFORMAT, "%s: tensor %s: the size of its shape overflows 64 bits; " DAMAGED, r->path,
                     who(r));
  if (bits % 8)
    return nb_fail(NB_EFORMAT, "%s: tensor %s: %lld bits of %s don't end on a byte; expected a multiple of 8",
                   r->path, who(r), (ll)bits, dtype);
  if (bits / 8 != t->bytes)
    return nb_fail(
        NB_EFORMAT,
        "%s: tensor %s: its dtype (%s) and shape need %lld bytes, its data_offsets give %lld; " DAMAGED,
        r->path, who(r), dtype, (ll)(bits / 8), (ll)t->bytes);
  return NB_OK;
}

/* {"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}; other fields are skipped. */
static int read_entry(reader *r, st_record *t) {
  enum { DTYPE = 1, SHAPE = 2, OFFSETS = 4 };
  static const char *const fields[] = {"dtype", "shape", "data_offsets"};
  nb_text key;
  int64_t offsets[2] = {0, 0};
  int seen = 0, more;
  bool first = true;
  if (!nb_scan_take(&r->scan, '{'))
    return nb_fail(NB_EFORMAT,
                   "%s: tensor %s: expected an object with dtype, shape and data_offsets; " DAMAGED, r->path,
                   who(r));
  while ((more = nb_scan_member(&r->scan, &key, &first)) > 0) {
    int field = 0;
    while (field < 3 && !nb_text_is(key, fields[field])) field++;
    if (field < 3 && (seen & 1 << field))
      return nb_fail(NB_EFORMAT, "%s: tensor %s has the key %s twice; " DAMAGED, r->path, who(r),
                     fields[field]);
    seen |= field < 3 ? 1 << field : 0;
    if (field == 0) NB_TRY(read_dtype(r, t));
    else if (field == 1) NB_TRY(read_shape(r, t));
    else if (field == 2) NB_TRY(read_offsets(r, offsets));
    else if (!nb_scan_skip(&r->scan, 3)) return not_json(r);
  }
  if (more < 0) return not_json(r);
  for (int i = 0; i < 3; i++)
    if (!(seen & 1 << i))
      return nb_fail(NB_EFORMAT, "%s: tensor %s has no %s; " DAMAGED, r->path, who(r), fields[i]);
  t->begin = offsets[0]; /* within the data area; read_header makes it absolute */
  t->bytes = offsets[1] - offsets[0];
  return check_size(r, t);
}

static int copy_text(nb_text *out, nb_text t) {
  char *p = nb_alloc(t.bytes + 1, 1);
  if (!p) return NB_ENOMEM;
  memcpy(p, t.data, (size_t)t.bytes);
  *out = (nb_text){p, t.bytes};
  return NB_OK;
}

static int add_metadata(nb_safetensors *s, nb_text key, nb_text value) {
  NB_TRY(nb_grow(&s->metadata, &s->metadata_room, s->metadata_count + 1, sizeof *s->metadata));
  st_pair *pair = &s->metadata[s->metadata_count];
  NB_TRY(copy_text(&pair->key, key));
  if (copy_text(&pair->value, value) < 0) {
    free((char *)pair->key.data);
    return NB_ENOMEM;
  }
  s->metadata_count++;
  return NB_OK;
}

/* Of a key in several files the first value stays; twice in one is an error. */
static int read_metadata(reader *r) {
  nb_safetensors *s = r->s;
  nb_text key, value;
  nb_names own = {0};
  bool first = true;
  int more, rc = NB_OK;
  char shown[ST_SHOW];
  if (!nb_scan_take(&r->scan, '{'))
    return nb_fail(NB_EFORMAT, "%s: __metadata__ must be an object of strings; " DAMAGED, r->path);
  while (rc == NB_OK && (more = nb_scan_member(&r->scan, &key, &first)) > 0) {
    int64_t id, at = 0;
    rc = nb_names_add(&own, &id, key);
    if (rc < 0) break;
    if (rc == 0) {
      rc = nb_fail(NB_EFORMAT, "%s: __metadata__ has the key %s twice; " DAMAGED, r->path,
                   nb_text_show(key, shown, sizeof shown));
    } else if (!nb_scan_string(&r->scan, &value)) {
      rc = nb_fail(NB_EFORMAT, "%s: __metadata__: the value of %s must be a string; " DAMAGED, r->path,
                   nb_text_show(key, shown, sizeof shown));
    } else {
      rc = NB_OK;
      while (at < s->metadata_count && !(s->metadata[at].key.bytes == key.bytes &&
                                         memcmp(s->metadata[at].key.data, key.data, (size_t)key.bytes) == 0))
        at++;
      if (at == s->metadata_count) rc = add_metadata(s, key, value);
    }
  }
  nb_names_free(&own);
  if (rc < 0) return rc;
  return more < 0 ? not_json(r) : NB_OK;
}

static int add_tensor(reader *r, nb_text name) {
  nb_safetensors *s = r->s;
  int64_t id;
  NB_TRY(nb_grow(&s->records, &s->record_room, s->names.count + 1, sizeof *s->records));
  int fresh = nb_names_add(&s->names, &id, name);
  if (fresh < 0) return fresh;
  if (!fresh && id >= r->first)
    return nb_fail(NB_EFORMAT, "%s: the header has the key %s twice; " DAMAGED, r->path, who(r));
  if (!fresh)
    return nb_fail(NB_EFORMAT, "tensor %s is in both %s and %s; expected in one file only", who(r),
                   s->files[s->records[id].file].path, r->path);
  st_record *t = &s->records[id];
  memset(t, 0, sizeof *t);
  t->file = (int32_t)s->file_count;
  return read_entry(r, t);
}

/* ---- the whole header ------------------------------------------------------- */

static int by_begin(const void *a, const void *b, void *records) {
  const st_record *x = (const st_record *)records + *(const int64_t *)a,
                  *y = (const st_record *)records + *(const int64_t *)b;
  if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
  if (x->bytes != y->bytes) return x->bytes < y->bytes ? -1 : 1; /* empty ones first */
  return 0;
}

static const char *show_record(reader *r, int64_t id) {
  r->name = nb_names_get(&r->s->names, id);
  return who(r);
}

static int check_chain(reader *r, const int64_t *order, int64_t n) {
  const st_record *records = r->s->records;
  int64_t end = 0, last = 0, max = 0, beyond = -1;
  for (int64_t i = 0; i < n; i++) {
    const st_record *t = &records[order[i]];
    if (beyond < 0 && t->begin + t->bytes > r->data_bytes) beyond = order[i];
    max = NB_MAX(max, t->begin + t->bytes);
  }
  if (beyond >= 0)
    return nb_fail(NB_EFORMAT,
                   "%s: tensor %s ends at byte %lld of the data, but the file holds %lld: %lld bytes are "
                   "missing for all its tensors; the file is truncated or its header lies: get it again",
                   r->path, show_record(r, beyond), (ll)(records[beyond].begin + records[beyond].bytes),
                   (ll)r->data_bytes, (ll)(max - r->data_bytes));
  for (int64_t i = 0; i < n; i++) {
    const st_record *t = &records[order[i]];
    if (t->begin == end) {
      end += t->bytes;
      last = order[i];
      continue;
    }
    char before[ST_SHOW] = "the data's begin";
    if (i > 0) nb_text_show(nb_names_get(&r->s->names, last), before, sizeof before);
    return nb_fail(
        NB_EFORMAT,
        "%s: tensor %s begins at byte %lld of the data: %s of %lld bytes %s %s (ends at %lld); " DAMAGED,
        r->path, show_record(r, order[i]), (ll)t->begin, t->begin > end ? "a gap" : "an overlap",
        (ll)(t->begin > end ? t->begin - end : end - t->begin), t->begin > end ? "after" : "with", before,
        (ll)end);
  }
  if (end < r->data_bytes)
    return nb_fail(
        NB_EFORMAT,
        "%s: %lld bytes follow the last tensor's end at byte %lld of the data; expected none; " DAMAGED,
        r->path, (ll)(r->data_bytes - end), (ll)end);
  return NB_OK;
}

/* Data must be one gap-free chain from 0 to the end of the file. */
static int check_layout(reader *r) {
  st_record *records = r->s->records;
  int64_t n = r->s->names.count - r->first;
  int64_t *order = nb_alloc(n, sizeof *order);
  if (!order) return NB_ENOMEM;
  bool sorted = true;
  for (int64_t i = 0; i < n; i++) {
    order[i] = r->first + i;
    if (i && by_begin(&order[i - 1], &order[i], records) > 0) sorted = false;
  }
  if (!sorted) qsort_r(order, (size_t)n, sizeof *order, by_begin, records);
  int rc = check_chain(r, order, n);
  free(order);
  for (int64_t i = r->first; rc == NB_OK && i < r->s->names.count; i++) records[i].begin += r->data_begin;
  return rc;
}

static int read_header(reader *r) {
  nb_text key;
  bool first = true, metadata = false;
  int more;
  int64_t invalid = nb_utf8_invalid(r->scan.start, r->scan.end - r->scan.start);
  if (invalid >= 0)
    return nb_fail(NB_EFORMAT, "%s: byte %lld of the header is not valid UTF-8; " DAMAGED, r->path,
                   (ll)invalid);
  if (!nb_scan_need(&r->scan, '{', "expected an object, '{'")) return not_json(r);
  while ((more = nb_scan_member(&r->scan, &key, &first)) > 0) {
    r->name = key;
    if (!nb_text_is(key, "__metadata__")) {
      NB_TRY(add_tensor(r, key));
      continue;
    }
    if (metadata)
      return nb_fail(NB_EFORMAT, "%s: the header has the key __metadata__ twice; " DAMAGED, r->path);
    metadata = true;
    NB_TRY(read_metadata(r));
  }
  if (more < 0 || !nb_scan_done(&r->scan)) return not_json(r);
  return check_layout(r);
}

/* ---- the file around it ------------------------------------------------------ */

int st_read(char **out, int fd, int64_t from, int64_t bytes, const char *path) {
  char *text = nb_alloc(bytes + 1, 1);
  int64_t done = 0;
  if (!text) return NB_ENOMEM;
  while (done < bytes) {
    ssize_t n = pread(fd, text + done, (size_t)(bytes - done), from + done);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      if (n < 0) nb_fail_errno(NB_EIO, "cannot read %s", path);
      else nb_fail(NB_EIO, "cannot read %s: it became shorter meanwhile", path);
      free(text);
      return NB_EIO;
    }
    done += n;
  }
  *out = text;
  return NB_OK;
}

/* A wrong kind of file, recognized by its first bytes: says what it is. */
static int check_start(const char *path, const unsigned char *head, int64_t bytes) {
  if (bytes >= 8 && memcmp(head, "version ", 8) == 0)
    return nb_fail(NB_EFORMAT, "%s is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`",
                   path);
  if (bytes >= 4 && memcmp(head, "PK\3\4", 4) == 0)
    return nb_fail(NB_EFORMAT, "%s is a zip archive (a PyTorch file?), not safetensors", path);
  if (bytes >= 4 && memcmp(head, "GGUF", 4) == 0)
    return nb_fail(NB_EFORMAT, "%s is a GGUF file, not safetensors", path);
  return NB_OK;
}

static int read_file(reader *r, int fd, int64_t file_bytes) {
  unsigned char head[8];
  ssize_t got = pread(fd, head, sizeof head, 0);
  if (got < 0) return nb_fail_errno(NB_EIO, "cannot read %s", r->path);
  if (file_bytes < 8 || got < 8)
    return nb_fail(NB_EFORMAT,
                   "%s: %lld bytes are no safetensors file; expected at least 8 for the header's length",
                   r->path, (ll)file_bytes);
  NB_TRY(check_start(r->path, head, got));
  uint64_t n = 0;
  for (int i = 7; i >= 0; i--) n = n << 8 | head[i];
  if (n > HEADER_MAX)
    return nb_fail(NB_EFORMAT,
                   "%s: its header claims %llu bytes; at most %lld are allowed: not a safetensors file, or "
                   "damaged",
                   r->path, (unsigned long long)n, HEADER_MAX);
  if ((int64_t)n > file_bytes - 8)
    return nb_fail(NB_EFORMAT,
                   "%s: its header claims %lld bytes, but only %lld follow: %lld bytes are missing; the file "
                   "is truncated: get it again",
                   r->path, (ll)n, (ll)(file_bytes - 8), (ll)n - (ll)(file_bytes - 8));
  char *text;
  NB_TRY(st_read(&text, fd, 8, (int64_t)n, r->path));
  nb_scan_init(&r->scan, text, (int64_t)n, true);
  r->data_begin = 8 + (int64_t)n;
  r->data_bytes = file_bytes - r->data_begin;
  int rc = read_header(r);
  free(text);
  return rc;
}

static int add_open_file(nb_safetensors *s, int fd, const char *path, const char *name) {
  NB_TRY(nb_grow(&s->files, &s->file_room, s->file_count + 1, sizeof *s->files));
  st_file *f = &s->files[s->file_count];
  memset(f, 0, sizeof *f);
  NB_TRY(nb_fd_map(&f->map, fd, path));
  reader r = {.s = s, .path = path, .first = s->names.count};
  f->path = nb_strdup(path);
  f->name = nb_strdup(name);
  int rc = f->path && f->name ? read_file(&r, fd, f->map.shape[0]) : NB_ENOMEM;
  s->file_count++; /* close() frees it, whatever rc is */
  return rc;
}

int nb_safetensors_add(nb_safetensors *s, const char *path, const char *name) {
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return nb_fail_errno(NB_EIO, "cannot open %s", path);
  int rc = add_open_file(s, fd, path, name);
  close(fd);
  return rc;
}

int nb_safetensors_open(nb_safetensors **out, const char *path) {
  *out = NULL;
  nb_safetensors *s = nb_alloc(1, sizeof *s);
  if (!s) return NB_ENOMEM;
  size_t n = strlen(path);
  const char *slash = strrchr(path, '/');
  int rc = n > 5 && strcmp(path + n - 5, ".json") == 0
               ? st_open_index(s, path)
               : nb_safetensors_add(s, path, slash ? slash + 1 : path);
  if (rc < 0) nb_safetensors_close(s);
  else *out = s;
  return rc;
}

void nb_safetensors_close(nb_safetensors *s) {
  if (!s) return;
  for (int64_t i = 0; i < s->file_count; i++) {
    nb_tensor_release(&s->files[i].map);
    free(s->files[i].path);
    free(s->files[i].name);
  }
  for (int64_t i = 0; i < s->metadata_count; i++) {
    free((char *)s->metadata[i].key.data);
    free((char *)s->metadata[i].value.data);
  }
  for (int64_t i = 0; i < s->warning_count; i++) free(s->warnings[i]);
  nb_names_free(&s->names);
  free(s->records);
  free(s->files);
  free(s->metadata);
  free(s->warnings);
  free(s);
}

/* ---- looking ------------------------------------------------------------------ */

int64_t nb_safetensors_count(const nb_safetensors *s) { return s->names.count; }

static int check_index(const nb_safetensors *s, int64_t i) {
  if (i >= 0 && i < s->names.count) return NB_OK;
  return nb_fail(NB_EINVAL, "tensor %lld lies outside the %lld of the checkpoint", (ll)i, (ll)s->names.count);
}

int nb_safetensors_info(nb_tensor_info *out, const nb_safetensors *s, int64_t i) {
  NB_TRY(check_index(s, i));
  const st_record *t = &s->records[i];
  *out = (nb_tensor_info){.name = nb_names_get(&s->names, i),
                          .ndim = t->ndim,
                          .dtype = t->dtype,
                          .file = t->file,
                          .begin = t->begin,
                          .bytes = t->bytes,
                          .params = 1};
  for (int d = 0; d < t->ndim; d++) out->params *= out->shape[d] = t->shape[d];
  return NB_OK;
}

int64_t nb_safetensors_find(const nb_safetensors *s, const char *name, int64_t bytes) {
  return nb_names_find(&s->names, (nb_text){name, bytes});
}

int nb_safetensors_tensor(nb_tensor *out, const nb_safetensors *s, int64_t i) {
  NB_TRY(check_index(s, i));
  const st_record *t = &s->records[i];
  return nb_tensor_view(out, &s->files[t->file].map, t->dtype, t->ndim, t->shape, t->begin);
}

int64_t nb_safetensors_files(const nb_safetensors *s) { return s->file_count; }

nb_text nb_safetensors_file(const nb_safetensors *s, int64_t i, int64_t *bytes) {
  if (i < 0 || i >= s->file_count) return (nb_text){NULL, 0};
  if (bytes) *bytes = s->files[i].map.shape[0];
  return (nb_text){s->files[i].name, (int64_t)strlen(s->files[i].name)};
}

int64_t nb_safetensors_metadata_count(const nb_safetensors *s) { return s->metadata_count; }

nb_text nb_safetensors_metadata(const nb_safetensors *s, int64_t i, nb_text *value) {
  if (i < 0 || i >= s->metadata_count) return (nb_text){NULL, 0};
  if (value) *value = s->metadata[i].value;
  return s->metadata[i].key;
}

int64_t nb_safetensors_warnings(const nb_safetensors *s) { return s->warning_count; }

const char *nb_safetensors_warning(const nb_safetensors *s, int64_t i) {
  return i >= 0 && i < s->warning_count ? s->warnings[i] : NULL;
}

int st_warn(nb_safetensors *s, const char *fmt, ...) {
  char text[1024];
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(text, sizeof text, fmt, ap);
  va_end(ap);
  NB_TRY(nb_grow(&s->warnings, &s->warning_room, s->warning_count + 1, sizeof *s->warnings));
  if (!(s->warnings[s->warning_count] = nb_strdup(text))) return NB_ENOMEM;
  s->warning_count++;
  return NB_OK;
}

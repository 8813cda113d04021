/* journal.c - an append-only list of text lines that survives kill -9: how a run
 * knows what it has done.
 *
 *   <16 hex digits: XXH3-64 of the text, seeded with the previous line's hash> <text>\n
 *
 * The chain makes one damaged, lost or exchanged line invalidate all after it;
 * on opening, the file is cut after the last good line. */
#include "safetensors.h"
#include "write_queue.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

enum { DIGITS = 16, PREFIX = DIGITS + 1 };

struct nb_journal {
  int fd;
  char *path, *text; /* text: the valid lines found on opening */
  nb_text *lines;
  int64_t count, room, bytes; /* bytes: of the file, all valid */
  uint64_t hash;              /* of the last line */
};

static uint64_t hash_line(uint64_t previous, const char *line, int64_t bytes) {
  return XXH3_64bits_withSeed(line, (size_t)bytes, previous);
}

static int parse(nb_journal *j, const char *end) {
  for (char *p = j->text; p < end;) {
    char *newline = memchr(p, '\n', (size_t)(end - p)), prefix[PREFIX + 1];
    if (!newline || newline - p < PREFIX) return NB_OK;
    uint64_t hash = hash_line(j->hash, p + PREFIX, newline - p - PREFIX);
    snprintf(prefix, sizeof prefix, "%016llx ", (unsigned long long)hash);
    if (memcmp(p, prefix, PREFIX) != 0) return NB_OK;
    NB_TRY(nb_grow(&j->lines, &j->room, j->count + 1, sizeof *j->lines));
    j->lines[j->count++] = (nb_text){p + PREFIX, newline - p - PREFIX};
    *newline = 0;
    p = newline + 1;
    j->bytes = p - j->text;
    j->hash = hash;
  }
  return NB_OK;
}

static int load(nb_journal *j) {
  struct stat st;
  if (flock(j->fd, LOCK_EX | LOCK_NB) < 0 && errno == EWOULDBLOCK)
    return nb_fail(NB_EIO, "%s is in use: another nibble works in that folder; wait for it, or end it",
                   j->path);
  if (fstat(j->fd, &st) < 0) return nb_fail_errno(NB_EIO, "cannot stat %s", j->path);
  if (!S_ISREG(st.st_mode)) return nb_fail(NB_EIO, "%s is not a regular file", j->path);
  NB_TRY(st_read(&j->text, j->fd, 0, st.st_size, j->path));
  NB_TRY(parse(j, j->text + st.st_size));
  if (j->bytes < st.st_size && ftruncate(j->fd, j->bytes) < 0)
    return nb_fail_errno(NB_EIO, "cannot cut the damaged tail off %s", j->path);
  return NB_OK;
}

int nb_journal_open(nb_journal **out, const char *path) {
  *out = NULL;
  nb_journal *j = nb_alloc(1, sizeof *j);
  if (!j) return NB_ENOMEM;
  j->fd = -1;
  int rc = (j->path = nb_strdup(path)) ? NB_OK : NB_ENOMEM;
  if (rc == NB_OK && (j->fd = open(path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0666)) < 0)
    rc = nb_fail_errno(NB_EIO, "cannot open the journal %s", path);
  if (rc == NB_OK) rc = load(j);
  if (rc < 0) nb_journal_close(j);
  else *out = j;
  return rc;
}

int nb_journal_append(nb_journal *j, const char *line, int64_t bytes) {
  if (memchr(line, '\n', (size_t)bytes))
    return nb_fail(NB_EINVAL, "a journal's line must not hold a newline");
  char *text = nb_alloc(PREFIX + bytes + 2, 1);
  if (!text) return NB_ENOMEM;
  uint64_t hash = hash_line(j->hash, line, bytes);
  snprintf(text, PREFIX + 1, "%016llx ", (unsigned long long)hash);
  memcpy(text + PREFIX, line, (size_t)bytes);
  text[PREFIX + bytes] = '\n';
  int64_t size = PREFIX + bytes + 1;
  ssize_t n;
  nb_signals held;
  nb_hold_sigxfsz(&held);
  do n = write(j->fd, text, (size_t)size);
  while (n < 0 && errno == EINTR);
  int e = errno;
  nb_release_sigxfsz(&held);
  errno = e;
  free(text);
  if (n == size) {
    j->bytes += size;
    j->hash = hash;
    return NB_OK;
  }
  if (n >= 0) errno = ENOSPC; /* a short write: the next one would have said why */
  int rc = nb_fail_errno(NB_EIO, "cannot append to %s", j->path);
  if (ftruncate(j->fd, j->bytes) < 0) {} /* a torn line that stays is cut on the next opening */
  return rc;
}

int64_t nb_journal_count(const nb_journal *j) { return j->count; }

nb_text nb_journal_line(const nb_journal *j, int64_t i) {
  return i >= 0 && i < j->count ? j->lines[i] : (nb_text){NULL, 0};
}

void nb_journal_close(nb_journal *j) {
  if (!j) return;
  if (j->fd >= 0) close(j->fd);
  free(j->path);
  free(j->text);
  free(j->lines);
  free(j);
}

/* files.c - files and folders: listing, making, writing and copying atomically. */
#include "files.h"
#include "write_queue.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

int nb_path_kind(const char *path) {
  struct stat st;
  if (stat(path, &st) < 0) return NB_PATH_NONE;
  return S_ISREG(st.st_mode) ? NB_PATH_FILE : S_ISDIR(st.st_mode) ? NB_PATH_DIR : NB_PATH_OTHER;
}

/* ---- folders ----------------------------------------------------------------- */

static int list_into(nb_tensor *out, const char *path, struct dirent **entries, int n) {
  int64_t bytes = 0;
  for (int i = 0; i < n; i++) bytes += (int64_t)strlen(entries[i]->d_name) + 2;
  NB_TRY(nb_tensor_new(out, NB_U8, 1, NB_SHAPE(bytes)));
  char *to = out->data;
  for (int i = 0; i < n; i++) {
    char full[PATH_MAX];
    const char *name = entries[i]->d_name;
    if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0) continue;
    snprintf(full, sizeof full, "%s/%s", path, name);
    to = stpcpy(to, name);
    if (nb_path_kind(full) == NB_PATH_DIR) *to++ = '/';
    *to++ = 0;
  }
  out->shape[0] = to - (char *)out->data;
  return NB_OK;
}

static int by_bytes(const struct dirent **a, const struct dirent **b) {
  return strcmp((*a)->d_name, (*b)->d_name);
}

int nb_dir_list(nb_tensor *out, const char *path) {
  struct dirent **entries;
  memset(out, 0, sizeof *out);
  int n = scandir(path, &entries, NULL, by_bytes);
  if (n < 0) return nb_fail_errno(NB_EIO, "cannot list the folder %s", path);
  int rc = list_into(out, path, entries, n);
  for (int i = 0; i < n; i++) free(entries[i]);
  free(entries);
  return rc;
}

static int make_one(const char *path) {
  if (mkdir(path, 0777) == 0) return NB_OK;
  int kind = errno == EEXIST ? nb_path_kind(path) : NB_PATH_NONE;
  if (kind == NB_PATH_DIR) return NB_OK;
  if (kind != NB_PATH_NONE)
    return nb_fail(NB_EIO, "cannot make the folder %s: a file of that name is there", path);
  return nb_fail_errno(NB_EIO, "cannot make the folder %s", path);
}

int nb_dir_make(const char *path) {
  char *copy = nb_strdup(path);
  if (!copy) return NB_ENOMEM;
  int rc = NB_OK;
  for (char *p = copy + 1; rc == NB_OK && *copy && *p; p++) {
    if (*p != '/' || p[-1] == '/') continue;
    *p = 0;
    rc = make_one(copy);
    *p = '/';
  }
  if (rc == NB_OK) rc = make_one(path);
  free(copy);
  return rc;
}

int nb_fsync_folder(const char *path) {
  char folder[PATH_MAX];
  const char *slash = strrchr(path, '/');
  int n = slash ? (int)NB_MAX(slash - path, 1) : 1;
  snprintf(folder, sizeof folder, "%.*s", n, slash ? path : ".");
  int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return nb_fail_errno(NB_EIO, "cannot open the folder %s", folder);
  int rc =
      fsync(fd) < 0 && errno != EINVAL ? nb_fail_errno(NB_EIO, "cannot sync the folder %s", folder) : NB_OK;
  close(fd);
  return rc;
}

/* ---- files ---------------------------------------------------------------------- */

static _Atomic int64_t damage_in; /* writes until one goes wrong; 0: never */

void nb_debug_damage_write(int64_t nth) { damage_in = nth; }

static void damage(int fd, const void *data, int64_t offset) {
  char wrong = (char)(*(const char *)data ^ 1);
  if (pwrite(fd, &wrong, 1, offset) != 1) return;
}

int nb_pwrite_all(int fd, const void *data, int64_t bytes, int64_t offset) {
  for (int64_t done = 0; done < bytes;) {
    ssize_t n = pwrite(fd, (const char *)data + done, (size_t)(bytes - done), offset + done);
    if (n < 0 && errno == EINTR) continue;
    if (n == 0) errno = EIO;
    if (n <= 0) return -1;
    done += n;
  }
  if (damage_in > 0 && --damage_in == 0) damage(fd, data, offset);
  return 0;
}

/* src (or data, when src is -1) into fd. */
static int fill(int fd, int src, const void *data, int64_t bytes, const char *path) {
  if (src < 0) {
    if (nb_pwrite_all(fd, data, bytes, 0) < 0)
      return nb_fail_errno(NB_EIO, "cannot write %s (%lld bytes)", path, (long long)bytes);
    return NB_OK;
  }
  for (;;) { /* in the kernel where it can: shares blocks on file systems that do */
    ssize_t n = copy_file_range(src, NULL, fd, NULL, 1 << 30, 0);
    if (n == 0) return NB_OK;
    if (n < 0) break;
  }
  char block[1 << 16];
  for (;;) { /* goes on at both files' positions */
    ssize_t n = read(src, block, sizeof block);
    if (n == 0) return NB_OK;
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return nb_fail_errno(NB_EIO, "cannot read the source of %s", path);
    off_t at = lseek(fd, 0, SEEK_CUR);
    if (nb_pwrite_all(fd, block, n, at) < 0 || lseek(fd, n, SEEK_CUR) < 0)
      return nb_fail_errno(NB_EIO, "cannot write %s", path);
  }
}

static int write_atomically(const char *path, int src, const void *data, int64_t bytes) {
  char temporary[PATH_MAX];
  if (snprintf(temporary, sizeof temporary, "%s.partial", path) >= (int)sizeof temporary)
    return nb_fail(NB_EIO, "cannot write %s: the path is too long", path);
  int fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (fd < 0) return nb_fail_errno(NB_EIO, "cannot create %s", temporary);
  nb_signals held;
  nb_hold_sigxfsz(&held);
  int rc = fill(fd, src, data, bytes, path);
  nb_release_sigxfsz(&held);
  if (rc == NB_OK && fsync(fd) < 0) rc = nb_fail_errno(NB_EIO, "cannot write %s to the disk", path);
  if (close(fd) < 0 && rc == NB_OK) rc = nb_fail_errno(NB_EIO, "cannot write %s", path);
  if (rc == NB_OK && rename(temporary, path) < 0)
    rc = nb_fail_errno(NB_EIO, "cannot rename %s to %s", temporary, path);
  if (rc < 0) unlink(temporary);
  return rc < 0 ? rc : nb_fsync_folder(path);
}

int nb_file_write(const char *path, const void *data, int64_t bytes) {
  return write_atomically(path, -1, data, bytes);
}

int nb_file_copy(const char *dst, const char *src) {
  int fd = open(src, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe must not hold it */
  if (fd < 0) return nb_fail_errno(NB_EIO, "cannot open %s", src);
  struct stat st;
  int rc = fstat(fd, &st) < 0     ? nb_fail_errno(NB_EIO, "cannot stat %s", src)
           : !S_ISREG(st.st_mode) ? nb_fail(NB_EIO, "%s is not a regular file", src)
                                  : write_atomically(dst, fd, NULL, st.st_size);
  close(fd);
  return rc;
}

int nb_file_stamp(int64_t *bytes, int64_t *changed_ns, const char *path) {
  struct stat st;
  if (stat(path, &st) < 0) return nb_fail_errno(NB_EIO, "cannot stat %s", path);
  *bytes = st.st_size;
  *changed_ns = (int64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec;
  return NB_OK;
}

int nb_file_remove(const char *path) {
  if (unlink(path) < 0 && errno != ENOENT) return nb_fail_errno(NB_EIO, "cannot remove %s", path);
  return NB_OK;
}

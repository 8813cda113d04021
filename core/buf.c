/* buf.c - counted buffers: who owns the bytes of a tensor, and how many live. */
#include "base.h"

#include <errno.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/stat.h>

struct nb_buf {
  void *data;
  int64_t bytes;
  nb_free_fn *free_fn;
  atomic_int refs;
  bool counted;
};

static atomic_llong live_bytes, live_buffers;

int64_t nb_live_bytes(void) { return atomic_load(&live_bytes); }
int64_t nb_live_buffers(void) { return atomic_load(&live_buffers); }

nb_buf *nb_buf_new(void *data, int64_t bytes, nb_free_fn *free_fn, bool counted) {
  nb_buf *b = nb_alloc(1, sizeof *b);
  if (!b) return NULL;
  b->data = data;
  b->bytes = bytes;
  b->free_fn = free_fn;
  b->counted = counted;
  atomic_init(&b->refs, 1);
  atomic_fetch_add(&live_buffers, 1);
  if (counted) atomic_fetch_add(&live_bytes, bytes);
  return b;
}

nb_buf *nb_buf_retain(nb_buf *b) {
  if (b) atomic_fetch_add(&b->refs, 1);
  return b;
}

void nb_buf_release(nb_buf *b) {
  if (!b || atomic_fetch_sub(&b->refs, 1) != 1) return;
  atomic_fetch_sub(&live_buffers, 1);
  if (b->counted) atomic_fetch_sub(&live_bytes, b->bytes);
  if (b->free_fn) b->free_fn(b->data, b->bytes);
  free(b);
}

static void unmap(void *data, int64_t bytes) {
  if (bytes > 0) munmap(data, (size_t)bytes);
}

bool nb_buf_is_mapped(const nb_buf *b) { return b && b->free_fn == unmap; }

int nb_fd_map(nb_tensor *out, int fd, const char *path) {
  memset(out, 0, sizeof *out);
  struct stat st;
  if (fstat(fd, &st) < 0) return nb_fail_errno(NB_EIO, "cannot stat %s", path);
  if (!S_ISREG(st.st_mode)) return nb_fail(NB_EIO, "%s is not a regular file", path);
  void *data = NULL;
  if (st.st_size > 0) {
    data = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);
    if (data == MAP_FAILED)
      return nb_fail_errno(NB_EIO, "cannot map %s (%lld bytes)", path, (long long)st.st_size);
  }
  out->buf = nb_buf_new(data, st.st_size, unmap, false);
  if (!out->buf) {
    unmap(data, st.st_size);
    return NB_ENOMEM;
  }
  out->data = data;
  out->dtype = NB_U8;
  out->ndim = 1;
  out->shape[0] = st.st_size;
  return NB_OK;
}

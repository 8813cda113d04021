/* writer_repack.c - a tensor of words straight from the source's words into the file,
 * and proven, in strips that stay in a core's caches from the first step to the last:
 *
 *   source ──repack──▶ strip ──write──▶ page cache ──read──▶ strip ──▶ hash
 *      └────────────────── the same? ◀── the way back ─────────┘
 *
 * Every thread takes strips; nothing of the tensor's size is ever held. */
#include "writer.h"

#include <errno.h>
#include <omp.h>
#include <stdio.h>
#include <unistd.h>

/* A strip's rows: enough that the source's columns for it are whole runs of cache lines. */
enum { STRIP_BYTES = 1 << 20, MIN_ROWS = 64, MAX_ROWS = 512 };

typedef struct work {
  nb_place place;
  const nb_tensor *words;
  nb_digest *pages;
  int64_t rows, row_bytes, strip_rows;
  int way, threads;
} work;

static int read_back(const nb_sink *sink, char *data, int64_t bytes, int64_t offset) {
  for (int64_t done = 0; done < bytes;) {
    ssize_t n = pread(sink->fd, data + done, (size_t)(bytes - done), offset + done);
    if (n < 0 && errno == EINTR) continue;
    if (n == 0) errno = EIO;
    if (n <= 0)
      return nb_fail_errno(NB_EIO, "cannot read back %s (%lld bytes at %lld)", sink->path, (long long)bytes,
                           (long long)offset);
    done += n;
  }
  return NB_OK;
}

/* Rows row.. of the tensor: 1 when they went back to the source's words, 0 when not. */
static int strip(const work *x, char *memory, int64_t row) {
  const nb_place *p = &x->place;
  nb_tensor rows = *p->like;
  rows.data = memory;
  rows.shape[0] = NB_MIN(x->strip_rows, x->rows - row);
  int64_t bytes = rows.shape[0] * x->row_bytes, at = row * x->row_bytes;
  NB_TRY(nb_repack_rows(&rows, x->words, x->way, row));
  NB_TRY(nb_queue_write(p->queue, p->sink, memory, bytes, p->begin + at));
  NB_TRY(read_back(p->sink, memory, bytes, p->begin + at));
  nb_hash_pages(x->pages + at / NB_HASH_PAGE, memory, bytes);
  return nb_repack_check(&rows, x->words, x->way, row);
}

/* The first failure wins; 1 or 0 otherwise. */
static int strips(const work *x, char *memory) {
  int result = 1;
  char sentence[1024] = "";
#pragma omp parallel for schedule(dynamic) num_threads(x->threads)
  for (int64_t row = 0; row < x->rows; row += x->strip_rows) {
    int before, rc;
#pragma omp atomic read
    before = result;
    if (before < 0) continue;
    rc = nb_stop_requested() ? nb_fail_stopped()
                             : strip(x, memory + omp_get_thread_num() * x->strip_rows * x->row_bytes, row);
    if (rc == 1) continue;
#pragma omp critical(nb_writer_repack)
    if (rc < result) {
      if (rc < 0 && result >= 0) snprintf(sentence, sizeof sentence, "%s", nb_error());
#pragma omp atomic write
      result = rc;
    }
  }
  return result < 0 ? nb_fail(result, "%s", sentence) : result;
}

static int room(nb_tensor *scratch, int64_t bytes) {
  if (scratch->buf && nb_tensor_bytes(scratch) >= bytes) return NB_OK;
  nb_tensor_release(scratch);
  return nb_tensor_new(scratch, NB_U8, 1, NB_SHAPE(bytes));
}

int nb_writer_repack(char *hash, nb_writer *w, const char *name, int64_t name_bytes, const nb_tensor *words,
                     int way) {
  work x = {.words = words, .way = way};
  NB_TRY(nb_writer_place(&x.place, w, name, name_bytes));
  const nb_tensor *like = x.place.like;
  int64_t bytes = nb_tensor_bytes(like);
  if (like->ndim != 2 || bytes == 0 || bytes != nb_tensor_bytes(words)) {
    char a[160], b[160];
    return nb_fail(NB_EINVAL, "writer: %.*s: expected as many words as in %s, found %s",
                   (int)NB_MIN(name_bytes, 200), name, nb_tensor_describe(like, a, sizeof a),
                   nb_tensor_describe(words, b, sizeof b));
  }
  x.rows = like->shape[0];
  x.row_bytes = bytes / x.rows;
  int64_t step = MIN_ROWS; /* strips begin on pages of the hash */
  while (step * x.row_bytes % NB_HASH_PAGE) step *= 2;
  x.strip_rows = NB_MAX(step, NB_MIN(STRIP_BYTES / x.row_bytes, MAX_ROWS) / step * step);
  int64_t pages = NB_CEIL(bytes, NB_HASH_PAGE);
  x.threads = (int)NB_MIN(nb_threads(), NB_CEIL(x.rows, x.strip_rows));
  NB_TRY(room(x.place.scratch, x.threads * x.strip_rows * x.row_bytes));
  x.pages = nb_alloc(pages, sizeof *x.pages);
  if (!x.pages) return NB_ENOMEM;
  int rc = strips(&x, x.place.scratch->data);
  if (rc >= 0) {
    nb_hash_of_pages(hash, x.pages, pages);
    *x.place.put += bytes;
  }
  free(x.pages);
  return rc;
}

/* write_queue.c - a thread that writes blocks of memory into files, so that
 * computing and copying into the page cache overlap. Bounded: a producer that
 * is faster waits. It also asks the system early to begin putting what was
 * written on the disk, so that the fsync at the end is short. A producer whose
 * own threads are busy anyway writes by them (nb_queue_write). */
#include "write_queue.h"
#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <sys/statvfs.h>
#include <time.h>

/* Writes are small: above a megabyte the page cache takes huge pages, which are several times slower to get. */
enum { QUEUE_BYTES = 64 << 20, WRITE_BYTES = 256 << 10, WRITEBACK_BYTES = 32 << 20, SYNC_BYTES = 4 << 20 };

typedef struct block {
  struct block *next;
  nb_sink *sink;
  nb_buf *buf;
  const char *data;
  int64_t bytes, offset;
} block;

struct nb_queue {
  pthread_t thread;
  pthread_mutex_t lock;
  pthread_mutex_t turn;      /* held while a thread writes: in turns, not piece against piece */
  pthread_cond_t more, less; /* something to write; something was written */
  block *head, **tail;
  int64_t queued;    /* bytes, with those being written */
  int64_t put, done; /* blocks */
  bool closing;
  int error; /* the first failure, with its sentence */
  char sentence[1024];
};

/* ---- signals ----------------------------------------------------------------- */

_Static_assert(sizeof(sigset_t) <= sizeof(nb_signals), "a sigset_t fits");

void nb_hold_sigxfsz(nb_signals *s) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGXFSZ);
  pthread_sigmask(SIG_BLOCK, &set, (sigset_t *)s);
}

void nb_release_sigxfsz(const nb_signals *s) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGXFSZ);
  while (sigtimedwait(&set, NULL, &(struct timespec){0}) > 0) {} /* take back what was raised */
  pthread_sigmask(SIG_SETMASK, (const sigset_t *)s, NULL);
}

/* ---- the thread --------------------------------------------------------------- */

static int fail_write(const nb_sink *sink, int64_t bytes, int64_t offset) {
  int e = errno;
  struct statvfs fs;
  long long left = fstatvfs(sink->fd, &fs) == 0 ? (long long)fs.f_bavail * (long long)fs.f_frsize : -1;
  errno = e;
  if (e == ENOSPC && left >= 0)
    return nb_fail_errno(NB_EIO, "cannot write %s (%lld bytes at %lld; %lld bytes are free there)",
                         sink->path, (long long)bytes, (long long)offset, left);
  return nb_fail_errno(NB_EIO, "cannot write %s (%lld bytes at %lld)", sink->path, (long long)bytes,
                       (long long)offset);
}

static void begin_writeback(nb_sink *s, int64_t bytes, int64_t offset) {
  if (s->dirty_bytes == 0) s->dirty_from = s->dirty_to = offset;
  s->dirty_from = NB_MIN(s->dirty_from, offset);
  s->dirty_to = NB_MAX(s->dirty_to, offset + bytes);
  s->dirty_bytes += bytes;
  if (s->dirty_bytes < WRITEBACK_BYTES) return;
  sync_file_range(s->fd, s->dirty_from, s->dirty_to - s->dirty_from, SYNC_FILE_RANGE_WRITE); /* advice only */
  s->dirty_bytes = 0;
}

/* Piece by piece, so that a mapped source (buf, or NULL) never is resident as a whole. */
static int write_pieces(nb_queue *q, nb_sink *sink, nb_buf *buf, const char *data, int64_t bytes,
                        int64_t offset) {
  int rc = NB_OK;
  pthread_mutex_lock(&q->turn);
  for (int64_t done = 0, n; rc == NB_OK && done < bytes; done += n) {
    n = NB_MIN(WRITE_BYTES - (offset + done) % WRITE_BYTES, bytes - done);
    if (nb_pwrite_all(sink->fd, data + done, n, offset + done) < 0) rc = fail_write(sink, bytes, offset);
    if (buf && nb_buf_is_mapped(buf))
      nb_tensor_drop(
          &(nb_tensor){.data = (char *)data + done, .buf = buf, .dtype = NB_U8, .ndim = 1, .shape = {n}});
  }
  pthread_mutex_unlock(&q->turn);
  return rc;
}

static void *run(void *arg) {
  nb_queue *q = arg;
  pthread_mutex_lock(&q->lock);
  for (;;) {
    while (!q->head && !q->closing) pthread_cond_wait(&q->more, &q->lock);
    block *b = q->head;
    if (!b) break;
    q->head = b->next;
    if (!q->head) q->tail = &q->head;
    if (q->error == 0) { /* after a failure blocks are only released */
      pthread_mutex_unlock(&q->lock);
      int rc = write_pieces(q, b->sink, b->buf, b->data, b->bytes, b->offset);
      if (rc == NB_OK) begin_writeback(b->sink, b->bytes, b->offset);
      pthread_mutex_lock(&q->lock);
      if (rc < 0) {
        q->error = rc;
        snprintf(q->sentence, sizeof q->sentence, "%s", nb_error());
      }
    }
    q->queued -= b->bytes;
    q->done++;
    nb_buf_release(b->buf);
    free(b);
    pthread_cond_broadcast(&q->less);
  }
  pthread_mutex_unlock(&q->lock);
  return NULL;
}

/* ---- the producer's side -------------------------------------------------------- */

int nb_queue_new(nb_queue **out) {
  nb_queue *q = nb_alloc(1, sizeof *q);
  *out = NULL;
  if (!q) return NB_ENOMEM;
  q->tail = &q->head;
  pthread_mutex_init(&q->lock, NULL);
  pthread_mutex_init(&q->turn, NULL);
  pthread_cond_init(&q->more, NULL);
  pthread_cond_init(&q->less, NULL);
  sigset_t all, old; /* the thread takes no signals: Ctrl-C belongs to the caller, SIGXFSZ must not kill */
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &old);
  int e = pthread_create(&q->thread, NULL, run, q);
  pthread_sigmask(SIG_SETMASK, &old, NULL);
  if (e != 0) {
    free(q);
    errno = e;
    return nb_fail_errno(NB_EIO, "cannot start the thread that writes");
  }
  *out = q;
  return NB_OK;
}

static int failed(nb_queue *q) { return q->error < 0 ? nb_fail(q->error, "%s", q->sentence) : NB_OK; }

static int enqueue(nb_queue *q, block *b) {
  pthread_mutex_lock(&q->lock);
  while (q->error == 0 && q->queued > 0 && q->queued + b->bytes > QUEUE_BYTES)
    pthread_cond_wait(&q->less, &q->lock);
  int rc = failed(q);
  if (rc == NB_OK) {
    *q->tail = b;
    q->tail = &b->next;
    q->queued += b->bytes;
    q->put++;
    nb_buf_retain(b->buf);
    pthread_cond_signal(&q->more);
  }
  pthread_mutex_unlock(&q->lock);
  return rc;
}

int nb_queue_put(nb_queue *q, nb_sink *sink, nb_buf *buf, const void *data, int64_t bytes, int64_t offset) {
  block *b = nb_alloc(1, sizeof *b);
  if (!b) return NB_ENOMEM;
  *b = (block){.sink = sink, .buf = buf, .data = data, .bytes = bytes, .offset = offset};
  int rc = enqueue(q, b);
  if (rc < 0) free(b);
  return rc < 0 || buf ? rc : nb_queue_flush(q);
}

int nb_queue_write(nb_queue *q, nb_sink *sink, const void *data, int64_t bytes, int64_t offset) {
  nb_signals held;
  nb_hold_sigxfsz(&held);
  int rc = write_pieces(q, sink, NULL, data, bytes, offset);
  nb_release_sigxfsz(&held);
  int64_t from = offset / SYNC_BYTES * SYNC_BYTES, to = (offset + bytes) / SYNC_BYTES * SYNC_BYTES;
  if (rc == NB_OK && to > from) sync_file_range(sink->fd, from, to - from, SYNC_FILE_RANGE_WRITE);
  return rc;
}

int64_t nb_queue_mark(nb_queue *q) {
  pthread_mutex_lock(&q->lock);
  int64_t mark = q->put;
  pthread_mutex_unlock(&q->lock);
  return mark;
}

int nb_queue_wait(nb_queue *q, int64_t mark) {
  pthread_mutex_lock(&q->lock);
  mark = NB_MIN(mark, q->put);
  while (q->done < mark) pthread_cond_wait(&q->less, &q->lock);
  int rc = failed(q);
  pthread_mutex_unlock(&q->lock);
  return rc;
}

int nb_queue_flush(nb_queue *q) { return nb_queue_wait(q, INT64_MAX); }

void nb_queue_free(nb_queue *q) {
  if (!q) return;
  pthread_mutex_lock(&q->lock);
  q->closing = true;
  pthread_cond_signal(&q->more);
  pthread_mutex_unlock(&q->lock);
  pthread_join(q->thread, NULL);
  pthread_mutex_destroy(&q->lock);
  pthread_mutex_destroy(&q->turn);
  pthread_cond_destroy(&q->more);
  pthread_cond_destroy(&q->less);
  free(q);
}

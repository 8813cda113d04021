/* writer_repack.c - a tensor of words straight from the source's words into the file,
 * and proven, in strips that stay in a core's caches from the first step to the last:
 *
 *   source ──repack──▶ strip ──write──▶ page cache ──read──▶ strip ──▶ hash
 *      └────────────────── the same? ◀── the way back ─────────┘
 *
 * Every thread takes strip after strip; nothing of the tensor's size is ever held. All
 * threads but the caller's begin at once, so that it can see to the scales meanwhile;
 * it takes its part of the strips when it comes for the result. */
#include "writer.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <unistd.h>

/* A strip's rows: enough that the source's columns for it are whole runs of cache lines. */
enum { STRIP_BYTES = 1 << 20, MIN_ROWS = 64, MAX_ROWS = 512 };

typedef struct worker {
  nb_repacking *of;
  pthread_t thread;
  int number;
} worker;

struct nb_repacking {
  nb_place place;
  nb_tensor words;
  nb_digest *pages;
  int64_t rows, row_bytes, strip_rows;
  int way, threads, begun; /* begun: how many of the threads */
  _Atomic int64_t next;    /* the next strip's first row */
  _Atomic bool failed;
  pthread_mutex_t lock; /* of what follows */
  int result;           /* 1 so far, 0, or the first failure with its sentence */
  char sentence[1024];
  worker workers[];
};

/* ---- one strip -------------------------------------------------------------------- */

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
static int strip(const nb_repacking *x, char *memory, int64_t row) {
  const nb_place *p = &x->place;
  if (nb_stop_requested()) return nb_fail_stopped();
  nb_tensor rows = *p->like;
  rows.data = memory;
  rows.shape[0] = NB_MIN(x->strip_rows, x->rows - row);
  int64_t bytes = rows.shape[0] * x->row_bytes, at = row * x->row_bytes;
  NB_TRY(nb_repack_rows(&rows, &x->words, x->way, row));
  NB_TRY(nb_queue_write(p->queue, p->sink, memory, bytes, p->begin + at));
  NB_TRY(read_back(p->sink, memory, bytes, p->begin + at));
  nb_hash_pages(x->pages + at / NB_HASH_PAGE, memory, bytes);
  return nb_repack_check(&rows, &x->words, x->way, row);
}

/* ---- the threads ------------------------------------------------------------------- */

/* A thread's share of the source's pages, mapped one after another: all threads meet
 * each page in their first strips, and two that map the same one hinder each other. */
static void touch(const nb_repacking *x, int number) {
  enum { AROUND = 64 << 10 }; /* what Linux maps around a page that is read, where it is at hand */
  int64_t blocks = nb_tensor_bytes(&x->words) / AROUND, others = x->threads - 1;
  if (!nb_buf_is_mapped(x->words.buf) || number == 0) return;
  for (int64_t i = blocks * (number - 1) / others; i < blocks * number / others; i++)
    (void)*((const volatile char *)x->words.data + i * AROUND);
}

static void work(nb_repacking *x, int number) {
  char *memory = (char *)x->place.scratch->data + number * x->strip_rows * x->row_bytes;
  nb_threads_here(1); /* to itself */
  touch(x, number);
  while (!atomic_load(&x->failed)) {
    int64_t row = atomic_fetch_add(&x->next, x->strip_rows);
    if (row >= x->rows) break;
    int rc = strip(x, memory, row);
    if (rc == 1) continue;
    pthread_mutex_lock(&x->lock);
    if (rc < 0 && x->result >= 0) {
      snprintf(x->sentence, sizeof x->sentence, "%s", nb_error());
      atomic_store(&x->failed, true);
    }
    x->result = NB_MIN(x->result, rc);
    pthread_mutex_unlock(&x->lock);
  }
}

static void *run(void *arg) {
  worker *me = arg;
  work(me->of, me->number);
  return NULL;
}

/* All threads but the caller's; one that can't be had is done without. */
static void begin(nb_repacking *x) {
  sigset_t all, old; /* they take no signals: Ctrl-C belongs to the caller */
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &old);
  for (int i = 1; i < x->threads; i++) {
    worker *w = &x->workers[x->begun];
    *w = (worker){.of = x, .number = i};
    if (pthread_create(&w->thread, NULL, run, w) == 0) x->begun++;
  }
  pthread_sigmask(SIG_SETMASK, &old, NULL);
  if (x->begun > 0) nb_threads_here(NB_MAX(1, nb_threads() - x->begun)); /* until the result is taken */
}

static void join(nb_repacking *x) {
  for (; x->begun > 0; x->begun--) pthread_join(x->workers[x->begun - 1].thread, NULL);
}

void nb_repacking_end(nb_repacking *x) {
  if (!x) return;
  atomic_store(&x->failed, true);
  join(x);
  nb_threads_here(0);
  pthread_mutex_destroy(&x->lock);
  nb_tensor_release(&x->words);
  free(x->pages);
  free(x);
}

/* ---- the caller's side --------------------------------------------------------------- */

static int room(nb_tensor *scratch, int64_t bytes) {
  if (scratch->buf && nb_tensor_bytes(scratch) >= bytes) return NB_OK;
  nb_tensor_release(scratch);
  return nb_tensor_new(scratch, NB_U8, 1, NB_SHAPE(bytes));
}

static int check_size(const nb_tensor *like, const nb_tensor *words, const char *name, int64_t name_bytes) {
  int64_t bytes = nb_tensor_bytes(like);
  if (like->ndim == 2 && bytes > 0 && bytes == nb_tensor_bytes(words)) return NB_OK;
  char a[160], b[160];
  return nb_fail(NB_EINVAL, "writer: %.*s: expected as many words as in %s, found %s",
                 (int)NB_MIN(name_bytes, 200), name, nb_tensor_describe(like, a, sizeof a),
                 nb_tensor_describe(words, b, sizeof b));
}

static int fill(nb_repacking *x, const nb_tensor *words, int way) {
  int64_t bytes = nb_tensor_bytes(words), step = MIN_ROWS;
  x->way = way;
  x->result = 1;
  x->rows = x->place.like->shape[0];
  x->row_bytes = bytes / x->rows;
  while (step * x->row_bytes % NB_HASH_PAGE) step *= 2; /* strips begin on pages of the hash */
  x->strip_rows = NB_MAX(step, NB_MIN(STRIP_BYTES / x->row_bytes, MAX_ROWS) / step * step);
  x->threads = (int)NB_MIN(x->threads, NB_CEIL(x->rows, x->strip_rows));
  NB_TRY(nb_tensor_view(&x->words, words, words->dtype, words->ndim, words->shape, 0));
  if (!(x->pages = nb_alloc(NB_CEIL(bytes, NB_HASH_PAGE), sizeof *x->pages))) return NB_ENOMEM;
  return room(x->place.scratch, x->threads * x->strip_rows * x->row_bytes);
}

int nb_writer_repack(nb_writer *w, const char *name, int64_t name_bytes, const nb_tensor *words, int way) {
  nb_place place;
  NB_TRY(nb_writer_place(&place, w, name, name_bytes));
  NB_TRY(check_size(place.like, words, name, name_bytes));
  if (*place.running) return nb_fail(NB_EINVAL, "writer: the result of the last repack was not taken");
  int threads = nb_threads();
  nb_repacking *x = nb_alloc(1, (int64_t)sizeof *x + threads * (int64_t)sizeof *x->workers);
  if (!x) return NB_ENOMEM;
  pthread_mutex_init(&x->lock, NULL);
  x->place = place;
  x->threads = threads;
  int rc = fill(x, words, way);
  if (rc < 0) {
    nb_repacking_end(x);
    return rc;
  }
  *place.running = x;
  begin(x);
  return NB_OK;
}

int nb_writer_repacked(char *hash, nb_writer *w) {
  nb_repacking **running = nb_writer_running(w), *x = *running;
  if (!x) return nb_fail(NB_EINVAL, "writer: no repack has begun");
  work(x, 0);
  join(x);
  int rc = x->result < 0 ? nb_fail(x->result, "%s", x->sentence) : x->result;
  if (rc >= 0) {
    int64_t bytes = nb_tensor_bytes(&x->words);
    nb_hash_of_pages(hash, x->pages, NB_CEIL(bytes, NB_HASH_PAGE));
    *x->place.put += bytes;
  }
  *running = NULL;
  nb_repacking_end(x);
  return rc;
}

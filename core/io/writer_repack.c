/* writer_repack.c - a tensor of words straight from the source's words into the file,
 * and proven, in strips that stay in a core's caches from the first step to the last:
 *
 *   source ──repack──▶ strip ──write──▶ page cache ──read──▶ strip ──▶ hash
 *      └────────────────── the same? ◀── the way back ─────────┘
 *
 * Nothing of the tensor's size is ever held. Helpers, one thread less than jobs may
 * have, take strip after strip while the caller sees to scales and zero-points; it
 * takes its part when it begins the next tensor or comes for a result. */
#include "writer.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

/* A strip's rows: enough that the source's columns for it are whole runs of cache lines. */
enum { STRIP_BYTES = 1 << 20, MIN_ROWS = 64, MAX_ROWS = 512 };

/* One tensor; what is below the line changes under the lock. */
typedef struct repacking {
  struct repacking *next;
  nb_place place;
  nb_tensor words;
  nb_digest *pages;
  int64_t rows, row_bytes, strip_rows;
  int way;
  /* ---- */
  int64_t taken; /* rows */
  int working;   /* strips */
  int result;    /* 1 so far, 0, or the first failure with its sentence */
  char sentence[1024];
} repacking;

typedef struct helper {
  struct nb_repackers *of;
  pthread_t thread;
  nb_tensor memory;
} helper;

struct nb_repackers {
  pthread_mutex_t lock;
  pthread_cond_t more, less; /* strips to take; a strip was done */
  repacking *first, **last;  /* in the order begun, until the result is taken */
  nb_tensor memory;          /* the caller's */
  bool closing;
  int count;
  helper helpers[];
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

static int room(nb_tensor *memory, int64_t bytes) {
  if (memory->buf && nb_tensor_bytes(memory) >= bytes) return NB_OK;
  nb_tensor_release(memory);
  return nb_tensor_new(memory, NB_U8, 1, NB_SHAPE(bytes));
}

/* Rows row.. of the tensor: 1 when they went back to the source's words, 0 when not. */
static int strip(const repacking *x, nb_tensor *memory, int64_t row) {
  const nb_place *p = &x->place;
  if (nb_stop_requested()) return nb_fail_stopped();
  NB_TRY(room(memory, x->strip_rows * x->row_bytes));
  nb_tensor rows = *p->like;
  rows.data = memory->data;
  rows.shape[0] = NB_MIN(x->strip_rows, x->rows - row);
  int64_t bytes = rows.shape[0] * x->row_bytes, at = row * x->row_bytes;
  NB_TRY(nb_repack_rows(&rows, &x->words, x->way, row));
  NB_TRY(nb_queue_write(p->queue, p->sink, rows.data, bytes, p->begin + at));
  NB_TRY(read_back(p->sink, rows.data, bytes, p->begin + at));
  nb_hash_pages(x->pages + at / NB_HASH_PAGE, rows.data, bytes);
  return nb_repack_check(&rows, &x->words, x->way, row);
}

/* Maps the source's pages one after another, before several threads meet the same ones
 * in their first strips and hinder each other. */
static void touch(const repacking *x) {
  enum { AROUND = 64 << 10 }; /* what Linux maps around a page that is read, where it is at hand */
  if (!nb_buf_is_mapped(x->words.buf)) return;
  for (int64_t at = 0; at < nb_tensor_bytes(&x->words); at += AROUND)
    (void)*((const volatile char *)x->words.data + at);
}

/* ---- who takes strips ---------------------------------------------------------------
 * All with the lock held, which is let go while a strip is worked on. */

static bool has_strips(const repacking *x) { return x->taken < x->rows && x->result >= 0; }

static repacking *with_strips(const nb_repackers *r) {
  repacking *x = r->first;
  while (x && !has_strips(x)) x = x->next;
  return x;
}

static void work_on(nb_repackers *r, repacking *x, nb_tensor *memory, bool helps) {
  int64_t row = x->taken;
  x->taken += x->strip_rows;
  x->working++;
  pthread_mutex_unlock(&r->lock);
  if (helps && row == 0) touch(x);
  int rc = strip(x, memory, row);
  pthread_mutex_lock(&r->lock);
  if (rc < 0 && x->result >= 0) snprintf(x->sentence, sizeof x->sentence, "%s", nb_error());
  if (x->result >= 0) x->result = NB_MIN(x->result, rc);
  x->working--;
  pthread_cond_broadcast(&r->less);
}

static void *help(void *arg) {
  helper *me = arg;
  nb_repackers *r = me->of;
  nb_threads_here(1); /* to itself */
  pthread_mutex_lock(&r->lock);
  while (!r->closing) {
    repacking *x = with_strips(r);
    if (x) work_on(r, x, &me->memory, true);
    else pthread_cond_wait(&r->more, &r->lock);
  }
  pthread_mutex_unlock(&r->lock);
  return NULL;
}

/* The caller takes strips as long as there are any. */
static void take_part(nb_repackers *r) {
  for (repacking *x; (x = with_strips(r));) work_on(r, x, &r->memory, false);
}

/* ---- beginning and ending --------------------------------------------------------------- */

/* A helper that can't be had is done without. */
static void begin_helpers(nb_repackers *r, int count) {
  sigset_t all, old; /* they take no signals: Ctrl-C belongs to the caller */
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &old);
  for (int i = 0; i < count; i++) {
    helper *h = &r->helpers[r->count];
    h->of = r;
    if (pthread_create(&h->thread, NULL, help, h) == 0) r->count++;
  }
  pthread_sigmask(SIG_SETMASK, &old, NULL);
}

static int repackers(nb_repackers **out) {
  int count = nb_threads() - 1;
  if (*out) return NB_OK;
  nb_repackers *r = nb_alloc(1, (int64_t)sizeof *r + count * (int64_t)sizeof *r->helpers);
  if (!r) return NB_ENOMEM;
  r->last = &r->first;
  pthread_mutex_init(&r->lock, NULL);
  pthread_cond_init(&r->more, NULL);
  pthread_cond_init(&r->less, NULL);
  begin_helpers(r, count);
  *out = r;
  return NB_OK;
}

static void free_repacking(repacking *x) {
  nb_tensor_release(&x->words);
  free(x->pages);
  free(x);
}

void nb_repackers_free(nb_repackers *r) {
  if (!r) return;
  pthread_mutex_lock(&r->lock);
  r->closing = true;
  pthread_cond_broadcast(&r->more);
  pthread_mutex_unlock(&r->lock);
  for (int i = 0; i < r->count; i++) {
    pthread_join(r->helpers[i].thread, NULL);
    nb_tensor_release(&r->helpers[i].memory);
  }
  while (r->first) {
    repacking *x = r->first;
    r->first = x->next;
    free_repacking(x);
  }
  nb_tensor_release(&r->memory);
  nb_threads_here(0);
  pthread_mutex_destroy(&r->lock);
  pthread_cond_destroy(&r->more);
  pthread_cond_destroy(&r->less);
  free(r);
}

/* ---- the caller's side --------------------------------------------------------------- */

static int check_size(const nb_tensor *like, const nb_tensor *words, const char *name, int64_t name_bytes) {
  int64_t bytes = nb_tensor_bytes(like);
  if (like->ndim == 2 && bytes > 0 && bytes == nb_tensor_bytes(words)) return NB_OK;
  char a[160], b[160];
  return nb_fail(NB_EINVAL, "writer: %.*s: expected as many words as in %s, found %s",
                 (int)NB_MIN(name_bytes, 200), name, nb_tensor_describe(like, a, sizeof a),
                 nb_tensor_describe(words, b, sizeof b));
}

static int new_repacking(repacking **out, const nb_place *place, const nb_tensor *words, int way) {
  int64_t bytes = nb_tensor_bytes(words), step = MIN_ROWS;
  repacking *x = nb_alloc(1, sizeof *x);
  if (!x) return NB_ENOMEM;
  x->place = *place;
  x->way = way;
  x->result = 1;
  x->rows = place->like->shape[0];
  x->row_bytes = bytes / x->rows;
  while (step * x->row_bytes % NB_HASH_PAGE) step *= 2; /* strips begin on pages of the hash */
  x->strip_rows = NB_MAX(step, NB_MIN(STRIP_BYTES / x->row_bytes, MAX_ROWS) / step * step);
  x->pages = nb_alloc(NB_CEIL(bytes, NB_HASH_PAGE), sizeof *x->pages);
  int rc =
      x->pages ? nb_tensor_view(&x->words, words, words->dtype, words->ndim, words->shape, 0) : NB_ENOMEM;
  if (rc < 0) free_repacking(x);
  else *out = x;
  return rc;
}

int nb_writer_repack(nb_writer *w, const char *name, int64_t name_bytes, const nb_tensor *words, int way) {
  nb_place place;
  repacking *x = NULL;
  NB_TRY(nb_writer_place(&place, w, name, name_bytes));
  NB_TRY(check_size(place.like, words, name, name_bytes));
  NB_TRY(repackers(place.repackers));
  NB_TRY(new_repacking(&x, &place, words, way));
  nb_repackers *r = *place.repackers;
  nb_threads_here(1); /* the others have work, until the last result is taken */
  pthread_mutex_lock(&r->lock);
  take_part(r);
  *r->last = x;
  r->last = &x->next;
  if (x->rows <= x->strip_rows) take_part(r); /* not worth waking anyone */
  else pthread_cond_broadcast(&r->more);
  pthread_mutex_unlock(&r->lock);
  return NB_OK;
}

int nb_writer_repacked(char *hash, nb_writer *w) {
  nb_repackers *r = nb_writer_repackers(w);
  if (!r || !r->first) return nb_fail(NB_EINVAL, "writer: there is no repack whose result was not taken");
  pthread_mutex_lock(&r->lock);
  repacking *x = r->first;
  while (has_strips(x)) work_on(r, x, &r->memory, false);
  while (x->working > 0) pthread_cond_wait(&r->less, &r->lock);
  r->first = x->next;
  pthread_mutex_unlock(&r->lock);
  if (!r->first) {
    r->last = &r->first;
    nb_threads_here(0);
  }
  int rc = x->result < 0 ? nb_fail(x->result, "%s", x->sentence) : x->result;
  if (rc >= 0) {
    int64_t bytes = nb_tensor_bytes(&x->words);
    nb_hash_of_pages(hash, x->pages, NB_CEIL(bytes, NB_HASH_PAGE));
    *x->place.put += bytes;
  }
  free_repacking(x);
  return rc;
}

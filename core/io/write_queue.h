/* write_queue.h - a thread that writes blocks of memory into files. */
#ifndef NB_IO_WRITE_QUEUE_H
#define NB_IO_WRITE_QUEUE_H

#include "base.h"

/* A file that blocks go to. [dirty_from, dirty_to): written, and the system not
 * yet asked to put it on the disk; only the queue's thread touches these. */
typedef struct nb_sink {
  int fd;
  const char *path;
  int64_t dirty_from, dirty_to, dirty_bytes;
} nb_sink;

typedef struct nb_queue nb_queue;

int nb_queue_new(nb_queue **out);
/* Retains buf until the bytes are written (buf NULL: they are written before it
 * returns). Fails with the first failure of the thread, from then on always. */
int nb_queue_put(nb_queue *q, nb_sink *sink, nb_buf *buf, const void *data, int64_t bytes, int64_t offset);
/* The same at once, by the calling thread; other threads may do so meanwhile. */
int nb_queue_write(nb_queue *q, nb_sink *sink, const void *data, int64_t bytes, int64_t offset);
/* A mark after everything that was put so far; nb_queue_wait returns when all
 * before a mark is written, nb_queue_flush when everything is. */
int64_t nb_queue_mark(nb_queue *q);
int nb_queue_wait(nb_queue *q, int64_t mark);
int nb_queue_flush(nb_queue *q);
/* Waits, ends the thread. */
void nb_queue_free(nb_queue *q);

/* A file size limit (ulimit -f) raises SIGXFSZ, which ends the process: held
 * back between these two, the call fails with EFBIG instead. */
typedef struct nb_signals {
  char state[128];
} nb_signals;
void nb_hold_sigxfsz(nb_signals *s);
void nb_release_sigxfsz(const nb_signals *s);

#endif

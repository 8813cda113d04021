/* writer.h - the writer's insides, for what fills a tensor otherwise than by nb_writer_put. */
#ifndef NB_IO_WRITER_H
#define NB_IO_WRITER_H

#include "write_queue.h"

typedef struct nb_repacking nb_repacking;

/* Where a tensor goes. */
typedef struct nb_place {
  nb_queue *queue;
  nb_sink *sink;
  const nb_tensor *like; /* dtype and shape */
  int64_t *put;          /* bytes put so far: who writes counts */
  int64_t begin;         /* in the file */
  nb_repacking **running;
  nb_tensor *scratch; /* memory that lasts from tensor to tensor, U8: running's */
} nb_place;
int nb_writer_place(nb_place *out, nb_writer *w, const char *name, int64_t name_bytes);
/* Of the writer: what nb_writer_repack has begun and nb_writer_repacked has not taken, or NULL. */
nb_repacking **nb_writer_running(nb_writer *w);
/* Waits for its threads and frees it; NULL is fine. */
void nb_repacking_end(nb_repacking *x);

#endif

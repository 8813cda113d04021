/* writer.h - the writer's insides, for what fills a tensor otherwise than by nb_writer_put. */
#ifndef NB_IO_WRITER_H
#define NB_IO_WRITER_H

#include "write_queue.h"

typedef struct nb_repackers nb_repackers;

/* Where a tensor goes. */
typedef struct nb_place {
  nb_queue *queue;
  nb_sink *sink;
  const nb_tensor *like; /* dtype and shape */
  int64_t *put;          /* bytes put so far: who writes counts */
  int64_t begin;         /* in the file */
  nb_repackers **repackers;
} nb_place;
int nb_writer_place(nb_place *out, nb_writer *w, const char *name, int64_t name_bytes);
/* The writer's; NULL until the first repack. */
nb_repackers *nb_writer_repackers(const nb_writer *w);
/* Ends their threads; what they worked on is not finished. NULL is fine. */
void nb_repackers_free(nb_repackers *r);

#endif

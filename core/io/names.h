/* names.h - a growing set of counted names: one arena, one hash table. */
#ifndef NB_IO_NAMES_H
#define NB_IO_NAMES_H

#include "base.h"

/* Name i lies at text + at[i], followed by a NUL that its length doesn't count.
 *
 *   text  m o d e l . n o r m \0 l m _ h e a d \0
 *   at    0                      11               19 = used
 *   slots open addressing; holds id + 1, 0 = free; at most half full
 */
typedef struct nb_names {
  char *text;
  int64_t used, text_room;
  int64_t *at; /* count + 1 entries */
  int64_t count, at_room;
  uint32_t *slots;
  int64_t nslots;
} nb_names;

/* Adds a name: 1 when it is new, 0 when it was there (its id is in *id either way). */
int nb_names_add(nb_names *s, int64_t *id, nb_text name);
/* The id of a name, or -1. */
int64_t nb_names_find(const nb_names *s, nb_text name);
nb_text nb_names_get(const nb_names *s, int64_t id);
void nb_names_free(nb_names *s);

/* Room for count elements of size bytes in *array (whose room is *room), doubling. */
int nb_grow(void *array, int64_t *room, int64_t count, int64_t size);

#endif

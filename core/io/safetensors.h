/* safetensors.h - the reader's insides, shared by safetensors.c (one file) and
 * safetensors_index.c (many). */
#ifndef NB_IO_SAFETENSORS_H
#define NB_IO_SAFETENSORS_H

#include "json_scan.h"
#include "names.h"

/* Where a tensor lies; its name has the same number in nb_safetensors.names. */
typedef struct st_record {
  int64_t begin, bytes; /* in its file */
  int64_t shape[6];
  int32_t file;
  int16_t ndim, dtype;
} st_record;

typedef struct st_file {
  nb_tensor map;
  char *path, *name;
} st_file;

typedef struct st_pair {
  nb_text key, value;
} st_pair;

struct nb_safetensors {
  nb_names names;
  st_record *records;
  st_file *files;
  st_pair *metadata;
  char **warnings;
  int64_t record_room, file_count, file_room, metadata_count, metadata_room, warning_count, warning_room;
};

enum { ST_SHOW = 240 }; /* bytes of a name that a sentence shows */

int st_warn(nb_safetensors *s, const char *fmt, ...) NB_PRINTF(2, 3);
int st_open_index(nb_safetensors *s, const char *path);
/* Bytes [from, from + bytes) of an open file, and a NUL, in memory that the caller frees. */
int st_read(char **out, int fd, int64_t from, int64_t bytes, const char *path);

#endif

/* files.h - what the writers of files share. */
#ifndef NB_IO_FILES_H
#define NB_IO_FILES_H

#include "base.h"

/* write(2)s all of it at offset. 0, or -1 with errno set. */
int nb_pwrite_all(int fd, const void *data, int64_t bytes, int64_t offset);
/* fsync of the folder that holds path, so that a rename in it lasts. */
int nb_fsync_folder(const char *path);

#endif

/* forward.h - what the forward pass's kernels and who launches them agree on: for C and C++. */
#ifndef NB_FORWARD_H
#define NB_FORWARD_H
#include "numbers.h"
/* Values that a thread takes at a time; threads of a block. */
enum { NB_FORWARD_EIGHT = 8, NB_FORWARD_THREADS = 256 };
#endif

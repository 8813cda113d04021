/* thread.c - how many threads jobs use, the clock, and this process's peak memory. */
#include "base.h"

#include <omp.h>
#include <sys/resource.h>
#include <time.h>

static int wanted; /* 0: as many as OpenMP offers */
static _Thread_local int here;

int nb_threads(void) { return here > 0 ? here : wanted > 0 ? wanted : omp_get_max_threads(); }

void nb_threads_here(int n) { here = n; }

void nb_threads_set(int n) { wanted = n < 0 ? 0 : NB_MIN(n, 1024); }

double nb_now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

int64_t nb_peak_rss(void) {
  struct rusage u;
  getrusage(RUSAGE_SELF, &u);
  return (int64_t)u.ru_maxrss * 1024;
}

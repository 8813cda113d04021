/* error.c - one sentence per failure, the stop flag, and checked allocation. */
#include "base.h"

#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#define NB_VERSION "0.1.0"

const char *nb_version(void) { return NB_VERSION; }

/* ---- sentences ------------------------------------------------------------ */

static _Thread_local char sentence[2048];

const char *nb_error(void) { return sentence; }

const char *nb_error_name(int code) {
  switch (code) {
  case NB_OK: return "ok";
  case NB_EINVAL: return "einval";
  case NB_EFORMAT: return "eformat";
  case NB_EIO: return "eio";
  case NB_ENOMEM: return "enomem";
  case NB_EINTR: return "eintr";
  case NB_EUNSUPPORTED: return "eunsupported";
  case NB_EINEXACT: return "einexact";
  default: return "eunknown";
  }
}

int nb_fail(int code, const char *fmt, ...) {
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(sentence, sizeof sentence, fmt, ap);
  va_end(ap);
  return code;
}

int nb_fail_errno(int code, const char *fmt, ...) {
  int e = errno;
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(sentence, sizeof sentence, fmt, ap);
  va_end(ap);
  size_t n = strlen(sentence);
  char why[128];
  snprintf(sentence + n, sizeof sentence - n, ": %s", strerror_r(e, why, sizeof why));
  return code;
}

int nb_fail_stopped(void) { return nb_fail(NB_EINTR, "interrupted"); }

/* ---- the stop flag -------------------------------------------------------- */

static volatile sig_atomic_t stop_flag;   /* the signal that set it; -1: nb_stop_request */
static volatile sig_atomic_t stop_second; /* seconds of the last SIGINT, for the second one */
static void (*stop_then)(void);

static void on_signal(int sig) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  if (sig == SIGINT && stop_flag == SIGINT && (long)now.tv_sec - (long)stop_second <= 2) _exit(130);
  stop_flag = sig;
  stop_second = (sig_atomic_t)now.tv_sec;
  if (stop_then) stop_then();
}

static void stop_on(int sig) {
  struct sigaction sa;
  memset(&sa, 0, sizeof sa);
  sa.sa_handler = on_signal;
  sigemptyset(&sa.sa_mask);
  sigaction(sig, &sa, NULL);
}

void nb_stop_install(void (*then)(void)) {
  stop_then = then;
  stop_on(SIGINT);
}

void nb_stop_install_batch(void) {
  stop_on(SIGTERM);
  stop_on(SIGUSR1);
}

void nb_stop_request(void) { stop_flag = -1; }
int nb_stop_requested(void) { return stop_flag != 0; }
int nb_stop_signal(void) { return stop_flag > 0 ? stop_flag : 0; }
void nb_stop_clear(void) { stop_flag = 0; }

/* ---- allocation ----------------------------------------------------------- */

static atomic_llong fail_in; /* 0: off */

void nb_debug_fail_alloc(int64_t nth) { atomic_store(&fail_in, nth); }
int64_t nb_debug_fail_left(void) { return atomic_load(&fail_in); }

static bool alloc_ok(int64_t bytes) {
  if (bytes >= 0) {
    long long left = atomic_load(&fail_in);
    if (left == 0) return true;
    if (atomic_fetch_sub(&fail_in, 1) != 1) return true;
  }
  nb_fail(NB_ENOMEM, "out of memory: %lld bytes were asked for", (long long)bytes);
  return false;
}

void *nb_alloc(int64_t count, int64_t size) {
  int64_t bytes;
  if (count < 0 || size < 0 || __builtin_mul_overflow(count, size, &bytes)) bytes = -1;
  if (!alloc_ok(bytes)) return NULL;
  void *p = calloc(1, (size_t)NB_MAX(bytes, 1));
  if (!p) nb_fail(NB_ENOMEM, "out of memory: %lld bytes were asked for", (long long)bytes);
  return p;
}

void *nb_realloc(void *p, int64_t bytes) {
  if (!alloc_ok(bytes)) return NULL;
  void *q = realloc(p, (size_t)NB_MAX(bytes, 1));
  if (!q) nb_fail(NB_ENOMEM, "out of memory: %lld bytes were asked for", (long long)bytes);
  return q;
}

char *nb_strdup(const char *s) {
  size_t n = strlen(s) + 1;
  char *p = nb_alloc((int64_t)n, 1);
  if (p) memcpy(p, s, n);
  return p;
}

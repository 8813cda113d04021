/* launch.c - kernels: which this build has, loading them onto a device, launching one by its name. */
#include "device.h"

#include <pthread.h>
#include <stdio.h>

/* From build/gen/kernels.S (scripts/fatbin): the image, what it is for ("" without kernels), and why it is empty. */
extern const unsigned char nb_fatbin[] __attribute__((visibility("hidden")));
extern const char nb_fatbin_targets[] __attribute__((visibility("hidden")));
extern const char nb_fatbin_why[] __attribute__((visibility("hidden")));

/* Shared memory that a kernel has without asking, and threads of a block at most. */
enum { SHARED_BYTES = 48 << 10, BLOCK_THREADS = 1024 };

const char *nb_kernels(void) {
  const nb_cuda_driver *cu = nb_cuda_driver_open();
  if (cu && cu->stand_in) return "the emulator's own";
  if (*nb_fatbin_targets) return nb_fatbin_targets;
  nb_fail(NB_EUNSUPPORTED, "this build of nibble has no CUDA kernels: %s", nb_fatbin_why);
  return NULL;
}

/* The device's kernels, loaded by the first launch. */
static int load(nb_cuda_device *d) {
  static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
  if (!nb_kernels()) return NB_EUNSUPPORTED;
  pthread_mutex_lock(&lock);
  int code = d->module ? 0 : d->cu->cuModuleLoadData(&d->module, nb_fatbin);
  if (code) d->module = NULL;
  pthread_mutex_unlock(&lock);
  return code ? nb_cuda_failed(d, code, "loading the kernels (%s; its driver is for CUDA %d.%d)",
                               nb_fatbin_targets, d->cu->version / 1000, d->cu->version % 1000 / 10)
              : NB_OK;
}

static int check(const nb_cuda_device *d, const char *kernel, const nb_launch *at) {
  int64_t threads = 1;
  for (int i = 0; i < 3; i++) {
    if (at->grid[i] < 1 || at->block[i] < 1 || at->block[i] > BLOCK_THREADS || (i > 0 && at->grid[i] > 65535))
      return nb_fail(NB_EINVAL, "kernel %s: a grid of %dx%dx%d blocks of %dx%dx%d threads cannot be", kernel,
                     at->grid[0], at->grid[1], at->grid[2], at->block[0], at->block[1], at->block[2]);
    threads *= at->block[i];
  }
  if (threads > BLOCK_THREADS)
    return nb_fail(NB_EINVAL, "kernel %s: a block has %lld threads, expected at most %d", kernel,
                   (long long)threads, BLOCK_THREADS);
  nb_device_info info;
  NB_TRY(nb_device_get(&info, d->number));
  if (at->shared_bytes >= 0 && at->shared_bytes <= NB_MAX(info.shared_bytes, (int)SHARED_BYTES)) return NB_OK;
  return nb_fail(NB_EUNSUPPORTED, "kernel %s: a block needs %d bytes of shared memory, cuda:%d has %d",
                 kernel, at->shared_bytes, d->ordinal, info.shared_bytes);
}

int nb_device_launch(int number, const char *kernel, const nb_launch *at, void **arguments) {
  nb_cuda_device *d;
  void *function = NULL;
  NB_TRY(nb_cuda_use(&d, number));
  NB_TRY(load(d));
  NB_TRY(check(d, kernel, at));
  int code = d->cu->cuModuleGetFunction(&function, d->module, kernel);
  if (code == CUDA_NOT_FOUND)
    return nb_fail(NB_EUNSUPPORTED, "this build of nibble has no kernel %s", kernel);
  if (!code && at->shared_bytes > SHARED_BYTES)
    code = d->cu->cuFuncSetAttribute(function, CUDA_FUNCTION_SHARED_BYTES, at->shared_bytes);
  if (code) return nb_cuda_failed(d, code, "preparing kernel %s", kernel);
  code = d->cu->cuLaunchKernel(function, (unsigned)at->grid[0], (unsigned)at->grid[1], (unsigned)at->grid[2],
                               (unsigned)at->block[0], (unsigned)at->block[1], (unsigned)at->block[2],
                               (unsigned)at->shared_bytes, NULL, arguments, NULL);
  if (code) return nb_cuda_failed(d, code, "launching kernel %s", kernel);
  snprintf(d->last, sizeof d->last, "%s", kernel);
  return NB_OK;
}

/* launch.c - kernels: which this build has, loading them onto a device, launching one by its name. */
#include "device.h"

#include <pthread.h>
#include <stdio.h>

/* The kernels of one .cu file, from build/gen/kernels (scripts/fatbin); loaded when one of them is asked for. */
typedef struct nb_image {
  const unsigned char *image;
  const char *file, *kernels; /* "repack.cu"; " nb_repack_gptq nb_repack_awq " */
  const char *targets, *why;  /* "sm_80 … and PTX, by nvcc 13.0"; without kernels "", and why */
  int32_t needs, pad_;        /* 13000: a driver for CUDA 13.0 */
} nb_image;

/* The linker's names for begin and end of all of them; without .cu files there are none. */
extern const nb_image __start_nb_images[] __attribute__((weak, visibility("hidden")));
extern const nb_image __stop_nb_images[] __attribute__((weak, visibility("hidden")));

static int image_count(void) { return (int)(__stop_nb_images - __start_nb_images); }

/* Shared memory that a kernel has without asking, and threads of a block at most. */
enum { SHARED_BYTES = 48 << 10, BLOCK_THREADS = 1024 };

static pthread_once_t once = PTHREAD_ONCE_INIT;
static char about[1024]; /* what nb_kernels says; empty: there are none, and why_none */
static const char *why_none = "there are none yet";

/* The file that has a kernel, or NULL. */
static const nb_image *image_of(const char *kernel) {
  char word[80];
  snprintf(word, sizeof word, " %s ", kernel);
  for (const nb_image *i = __start_nb_images; i < __stop_nb_images; i++)
    if (strstr(i->kernels, word)) return i;
  return NULL;
}

static void write_about(void) {
  const nb_image *some = NULL, *without = NULL;
  for (const nb_image *i = __start_nb_images; i < __stop_nb_images; i++)
    if (*i->targets) some = i;
    else without = i;
  if (without) why_none = without->why;
  if (!some) return;
  const nb_cuda_driver *cu = nb_cuda_driver_open();
  int used = snprintf(about, sizeof about, "%s", some->targets);
  if (without)
    used += snprintf(about + used, sizeof about - (size_t)used, ", but not those of %s: %s", without->file,
                     without->why);
  if (cu && cu->version < some->needs)
    snprintf(about + used, sizeof about - (size_t)used,
             "; they need a driver for CUDA %d.0 or later, the one here is for %d.%d", some->needs / 1000,
             cu->version / 1000, cu->version % 1000 / 10);
}

const char *nb_kernels(void) {
  const nb_cuda_driver *cu = nb_cuda_driver_open();
  if (cu && cu->stand_in) return "the emulator's own";
  pthread_once(&once, write_about);
  if (*about) return about;
  nb_fail(NB_EUNSUPPORTED, "this build of nibble has no CUDA kernels: %s", why_none);
  return NULL;
}

/* The module of a file's kernels on a device, loaded when it is first asked for; image: NULL for the stand-in's. */
static int load(void **module, nb_cuda_device *d, const nb_image *image) {
  static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
  int code = 0;
  pthread_mutex_lock(&lock);
  if (!d->modules) d->modules = nb_alloc((int64_t)image_count() + 1, sizeof *d->modules);
  void **at = d->modules ? &d->modules[image ? image - __start_nb_images : image_count()] : NULL;
  if (at && !*at && (code = d->cu->cuModuleLoadData(at, image ? image->image : (const void *)""))) *at = NULL;
  *module = at ? *at : NULL;
  pthread_mutex_unlock(&lock);
  if (!at) return NB_ENOMEM;
  if (!code) return NB_OK;
  int version = d->cu->version;
  if (image && version < image->needs)
    return nb_fail(NB_EUNSUPPORTED,
                   "cuda:%d: the kernels of this build (%s) need a driver for CUDA %d.0 or later, the one "
                   "here is for %d.%d; update it, or build nibble with an older toolkit",
                   d->ordinal, image->targets, image->needs / 1000, version / 1000, version % 1000 / 10);
  return nb_cuda_failed(d, code, "loading the kernels of %s (%s; its driver is for CUDA %d.%d)",
                        image ? image->file : "the emulator", image ? image->targets : "", version / 1000,
                        version % 1000 / 10);
}

/* A kernel by its name, ready to be launched. */
static int find(void **function, nb_cuda_device *d, const char *kernel) {
  void *module;
  const nb_image *image = NULL;
  if (!nb_kernels()) return NB_EUNSUPPORTED;
  if (!d->cu->stand_in) {
    image = image_of(kernel);
    if (image && !*image->targets)
      return nb_fail(NB_EUNSUPPORTED, "this build of nibble lacks kernel %s (%s): %s", kernel, image->file,
                     image->why);
  }
  if (!image && !d->cu->stand_in)
    return nb_fail(NB_EUNSUPPORTED, "this build of nibble has no kernel %s", kernel);
  NB_TRY(load(&module, d, image));
  int code = d->cu->cuModuleGetFunction(function, module, kernel);
  if (code == CUDA_NOT_FOUND)
    return nb_fail(NB_EUNSUPPORTED, "this build of nibble has no kernel %s", kernel);
  return code ? nb_cuda_failed(d, code, "looking for kernel %s", kernel) : NB_OK;
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
  if (!kernel) return nb_fail(NB_EINVAL, "launch: a kernel is found by its name, none was given");
  NB_TRY(nb_cuda_use(&d, number));
  NB_TRY(check(d, kernel, at));
  NB_TRY(find(&function, d, kernel));
  int code = 0;
  if (at->shared_bytes > SHARED_BYTES)
    code = d->cu->cuFuncSetAttribute(function, CUDA_FUNCTION_SHARED_BYTES, at->shared_bytes);
  if (code) return nb_cuda_failed(d, code, "preparing kernel %s", kernel);
  code = d->cu->cuLaunchKernel(function, (unsigned)at->grid[0], (unsigned)at->grid[1], (unsigned)at->grid[2],
                               (unsigned)at->block[0], (unsigned)at->block[1], (unsigned)at->block[2],
                               (unsigned)at->shared_bytes, nb_cuda_stream(d), arguments, NULL);
  if (code) return nb_cuda_failed(d, code, "launching kernel %s", kernel);
  snprintf(d->last, sizeof d->last, "%s", kernel);
  return NB_OK;
}

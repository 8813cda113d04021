/* device.c - CUDA devices: which there are, their contexts, and what happens when one fails. */
#include "device.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static nb_cuda_device devices[NB_CUDA_DEVICES];

/* Codes of which the driver's documentation says "the process must be terminated and relaunched": failures inside
 * kernels and of the hardware. */
static bool ends_context(int code) {
  switch (code) {
  case 214: /* ECC error */
  case 220: /* NVLink error */
  case 700: /* illegal address */
  case 702: /* launch timeout */
  case 709: /* context destroyed */
  case 710: /* assertion */
  case 714: /* hardware stack error */
  case 715: /* illegal instruction */
  case 716: /* misaligned address */
  case 717: /* invalid address space */
  case 718: /* invalid program counter */
  case 719: /* launch failed */
  case 721: /* tensor memory leak */ return true;
  default: return false;
  }
}

int nb_cuda_failed(nb_cuda_device *d, int code, const char *what, ...) {
  char doing[128], reason[256];
  va_list ap;
  va_start(ap, what);
  vsnprintf(doing, sizeof doing, what, ap);
  va_end(ap);
  nb_cuda_reason(d->cu, code, reason, sizeof reason);
  if (code == CUDA_OUT_OF_MEMORY) return nb_fail(NB_ENOMEM, "cuda:%d: %s: %s", d->ordinal, doing, reason);
  if (!ends_context(code)) return nb_fail(NB_EIO, "cuda:%d: %s: %s", d->ordinal, doing, reason);
  pthread_mutex_lock(&lock);
  if (!*d->lost)
    snprintf(d->lost, sizeof d->lost,
             "cuda:%d is lost: %s%s%s: %s; what lay on it is gone until nibble starts anew", d->ordinal,
             *d->last ? "kernel " : "", *d->last ? d->last : doing, *d->last ? " failed" : "", reason);
  pthread_mutex_unlock(&lock);
  return nb_fail(NB_EIO, "%s", d->lost);
}

/* An attribute, 0 where the driver does not know it. */
static int attribute(const nb_cuda_driver *cu, int which, int device) {
  int value = 0;
  return cu->cuDeviceGetAttribute(&value, which, device) ? 0 : value;
}

/* The driver, when it lists device `number`, which is not lost. */
static int driver_of(const nb_cuda_driver **cu, int number) {
  *cu = nb_cuda_driver_open();
  if (!*cu) return NB_EUNSUPPORTED;
  int count = NB_MIN((*cu)->count, (int)NB_CUDA_DEVICES);
  if (number < 1 || number > count)
    return nb_fail(NB_EUNSUPPORTED, "there is no cuda:%d; devices here: %d, from cuda:0 on", number - 1,
                   count);
  pthread_mutex_lock(&lock);
  int rc = *devices[number - 1].lost ? nb_fail(NB_EIO, "%s", devices[number - 1].lost) : NB_OK;
  pthread_mutex_unlock(&lock);
  return rc;
}

static int handle_of(int *handle, const nb_cuda_driver *cu, int number) {
  char reason[256];
  int code = cu->cuDeviceGet(handle, number - 1);
  if (!code) return NB_OK;
  return nb_fail(NB_EIO, "cuda:%d does not answer: %s", number - 1,
                 nb_cuda_reason(cu, code, reason, sizeof reason));
}

int nb_device_count(void) {
  const nb_cuda_driver *cu = nb_cuda_driver_open();
  return cu ? NB_MIN(cu->count, (int)NB_CUDA_DEVICES) : NB_EUNSUPPORTED;
}

int nb_device_get(nb_device_info *out, int number) {
  const nb_cuda_driver *cu;
  int handle;
  size_t bytes = 0;
  memset(out, 0, sizeof *out);
  NB_TRY(driver_of(&cu, number));
  const nb_cuda_device *d = &devices[number - 1];
  pthread_mutex_lock(&lock);
  bool known = d->context != NULL;
  if (known) *out = d->info;
  pthread_mutex_unlock(&lock);
  if (known) return NB_OK;
  NB_TRY(handle_of(&handle, cu, number));
  if (cu->cuDeviceGetName(out->name, sizeof out->name - 1, handle)) strcpy(out->name, "?");
  if (!cu->cuDeviceTotalMem_v2(&bytes, handle)) out->bytes = (int64_t)bytes;
  out->driver = cu->version;
  out->sm = attribute(cu, CUDA_SM_MAJOR, handle) * 10 + attribute(cu, CUDA_SM_MINOR, handle);
  out->multiprocessors = attribute(cu, CUDA_MULTIPROCESSORS, handle);
  out->shared_bytes = attribute(cu, CUDA_SHARED_BYTES_OPTIN, handle);
  out->emulated = cu->stand_in;
  return NB_OK;
}

static int new_enough(nb_device_info *info, int number) {
  NB_TRY(nb_device_get(info, number));
  if (info->sm >= NB_CUDA_LEAST_SM) return NB_OK;
  return nb_fail(NB_EUNSUPPORTED, "cuda:%d (%s) is sm_%d; nibble's kernels need sm_%d or later", number - 1,
                 info->name, info->sm, NB_CUDA_LEAST_SM);
}

int nb_device_usable(int number) {
  nb_device_info info;
  return new_enough(&info, number);
}

/* The context is made by the first use; the driver counts who retains it, so two threads at once do no harm but
 * one more count. */
static int begin(nb_cuda_device *d, const nb_cuda_driver *cu, int number) {
  nb_device_info info;
  int handle;
  void *context = NULL;
  char reason[256];
  NB_TRY(new_enough(&info, number));
  NB_TRY(handle_of(&handle, cu, number));
  int code = cu->cuDevicePrimaryCtxRetain(&context, handle);
  if (code)
    return nb_fail(code == CUDA_OUT_OF_MEMORY ? NB_ENOMEM : NB_EIO, "cuda:%d (%s) cannot be used: %s",
                   number - 1, info.name, nb_cuda_reason(cu, code, reason, sizeof reason));
  pthread_mutex_lock(&lock);
  d->cu = cu;
  d->number = number;
  d->ordinal = number - 1;
  d->info = info;
  d->context = context;
  pthread_mutex_unlock(&lock);
  return NB_OK;
}

int nb_cuda_use(nb_cuda_device **out, int number) {
  const nb_cuda_driver *cu;
  NB_TRY(driver_of(&cu, number));
  nb_cuda_device *d = &devices[number - 1];
  pthread_mutex_lock(&lock);
  bool begun = d->context != NULL;
  pthread_mutex_unlock(&lock);
  if (!begun) NB_TRY(begin(d, cu, number));
  int code = cu->cuCtxSetCurrent(d->context);
  if (code) return nb_cuda_failed(d, code, "taking its context");
  *out = d;
  return NB_OK;
}

int nb_device_memory(int64_t *free_bytes, int64_t *total_bytes, int number) {
  nb_cuda_device *d;
  size_t left = 0, total = 0;
  NB_TRY(nb_cuda_use(&d, number));
  int code = d->cu->cuMemGetInfo_v2(&left, &total);
  if (code) return nb_cuda_failed(d, code, "asking for its memory");
  *free_bytes = (int64_t)left;
  *total_bytes = (int64_t)total;
  return NB_OK;
}

int nb_device_wait(int number) {
  nb_cuda_device *d;
  NB_TRY(nb_cuda_use(&d, number));
  NB_TRY(nb_cuda_no_capture(d, "nothing can wait"));
  int code = d->cu->cuCtxSynchronize();
  if (code) return nb_cuda_failed(d, code, "waiting for it");
  *d->last = 0;
  return NB_OK;
}

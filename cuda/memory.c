/* memory.c - tensors in a device's memory: making them, copying to and from, giving back. */
#include "device.h"

#include <stdatomic.h>
#include <stdio.h>

/* Between two looks at the stop flag: a few ms of copying. */
enum { BLOCK = 64 << 20 };

/* Device memory, held by a buffer and by the graphs that use it. */
typedef struct room {
  nb_cuda_device *device;
  nb_cuda_ptr at;
  int64_t bytes;
  atomic_int holders;
} room;

/* Bytes of tensors, by nb_tensor.device. */
static atomic_llong live[NB_CUDA_DEVICES + 1];

int64_t nb_device_live_bytes(int number) {
  return number < 1 || number > NB_CUDA_DEVICES ? -1 : (int64_t)atomic_load(&live[number]);
}

/* Nobody is left to hear of a failure; on a lost device every free is one. */
void nb_cuda_room_drop(void *data) {
  room *r = data;
  if (atomic_fetch_sub(&r->holders, 1) > 1) return;
  const nb_cuda_driver *cu = r->device->cu;
  if (r->at && !cu->cuCtxSetCurrent(r->device->context)) cu->cuMemFree_v2(r->at);
  free(r);
}

static void free_room(void *data, int64_t bytes) {
  room *r = data;
  atomic_fetch_sub(&live[r->device->number], bytes);
  if (!nb_cuda_keep(r->device, r))
    nb_cuda_room_drop(r); /* else the graph being captured holds it from now on */
}

int nb_cuda_room_new(void **out, nb_cuda_device *d, int64_t bytes) {
  room *r = nb_alloc(1, sizeof *r);
  *out = NULL;
  if (!r) return NB_ENOMEM;
  r->device = d;
  r->bytes = bytes;
  r->holders = 1;
  int code = bytes ? d->cu->cuMemAlloc_v2(&r->at, (size_t)bytes) : 0;
  if (code) {
    free(r);
    if (code != CUDA_OUT_OF_MEMORY) return nb_cuda_failed(d, code, "asking for %lld bytes", (long long)bytes);
    size_t left = 0, total = 0;
    d->cu->cuMemGetInfo_v2(&left, &total);
    return nb_fail(NB_ENOMEM,
                   "cuda:%d is out of memory: %lld bytes were asked for, %lld of its %lld are free",
                   d->ordinal, (long long)bytes, (long long)left, (long long)total);
  }
  atomic_fetch_add(&r->holders, 1);
  if (!nb_cuda_keep(d, r)) atomic_fetch_sub(&r->holders, 1);
  *out = r;
  return NB_OK;
}

nb_cuda_ptr nb_cuda_room_at(const void *data) { return ((const room *)data)->at; }
int64_t nb_cuda_room_bytes(const void *data) { return ((const room *)data)->bytes; }

int nb_cuda_tensor(nb_tensor *out, nb_cuda_device *d, int dtype, int ndim, const int64_t *shape) {
  nb_tensor t;
  void *r;
  NB_TRY(nb_shape_set(&t, dtype, ndim, shape, "new tensor"));
  int64_t bytes = nb_tensor_bytes(&t);
  NB_TRY(nb_cuda_room_new(&r, d, bytes));
  atomic_fetch_add(&live[d->number], bytes);
  t.buf = nb_buf_new(r, bytes, free_room, true);
  if (!t.buf) {
    free_room(r, bytes);
    return NB_ENOMEM;
  }
  t.data = (void *)(uintptr_t)nb_cuda_room_at(r);
  t.device = d->number;
  *out = t;
  return NB_OK;
}

static nb_cuda_ptr address(const nb_tensor *t) { return (nb_cuda_ptr)(uintptr_t)t->data; }

int nb_tensor_new_on(nb_tensor *out, int number, int dtype, int ndim, const int64_t *shape) {
  nb_cuda_device *d;
  memset(out, 0, sizeof *out);
  if (!number) return nb_tensor_new(out, dtype, ndim, shape);
  NB_TRY(nb_cuda_use(&d, number));
  NB_TRY(nb_cuda_tensor(out, d, dtype, ndim, shape));
  int64_t bytes = nb_tensor_bytes(out);
  int code = bytes ? d->cu->cuMemsetD8Async(address(out), 0, (size_t)bytes, nb_cuda_stream(d)) : 0;
  if (!code) return NB_OK;
  nb_tensor_release(out);
  return nb_cuda_failed(d, code, "clearing %lld bytes", (long long)bytes);
}

/* n bytes from `at` on, on the current stream. What is in the computer's memory may be gone after this call, so it
 * waits there, and not for other streams. */
static int copy_block(nb_cuda_device *d, const nb_tensor *to, const nb_tensor *from, int64_t at, size_t n) {
  void *stream = nb_cuda_stream(d);
  if (to->device && from->device)
    return d->cu->cuMemcpyDtoDAsync_v2(address(to) + (uint64_t)at, address(from) + (uint64_t)at, n, stream);
  int code =
      to->device
          ? d->cu->cuMemcpyHtoDAsync_v2(address(to) + (uint64_t)at, (const char *)from->data + at, n, stream)
          : d->cu->cuMemcpyDtoHAsync_v2((char *)to->data + at, address(from) + (uint64_t)at, n, stream);
  if (code) return code;
  code = d->cu->cuStreamSynchronize(stream);
  if (code) d->cu->cuCtxSynchronize(); /* else the copy might go on into memory that is no longer there */
  return code;
}

/* Between the host and device d, or (to and from both on it) inside d. */
static int copy(nb_cuda_device *d, const nb_tensor *to, const nb_tensor *from) {
  int64_t bytes = nb_tensor_bytes(from);
  if (!to->device || !from->device)
    NB_TRY(nb_cuda_no_capture(d, "nothing can be copied to or from the computer's memory"));
  for (int64_t at = 0; at < bytes; at += BLOCK) {
    if (nb_stop_requested()) return nb_fail_stopped();
    int code = copy_block(d, to, from, at, (size_t)NB_MIN((int64_t)BLOCK, bytes - at));
    if (code)
      return nb_cuda_failed(d, code, "copying %lld bytes %s", (long long)bytes,
                            !to->device     ? "from it"
                            : !from->device ? "to it"
                                            : "on it");
  }
  if (!to->device && bytes && !nb_cuda_stream(d))
    *d->last = 0; /* the driver waited for what was launched before, and all was well */
  return NB_OK;
}

int nb_tensor_to(nb_tensor *out, const nb_tensor *t, int number) {
  memset(out, 0, sizeof *out);
  if (t->device && number && t->device != number) { /* from one device to another: by way of the host */
    nb_tensor host;
    NB_TRY(nb_tensor_to(&host, t, 0));
    int rc = nb_tensor_to(out, &host, number);
    nb_tensor_release(&host);
    return rc;
  }
  nb_cuda_device *d = NULL;
  if (t->device || number) NB_TRY(nb_cuda_use(&d, t->device ? t->device : number));
  nb_tensor made;
  NB_TRY(number ? nb_cuda_tensor(&made, d, t->dtype, t->ndim, t->shape)
                : nb_tensor_new(&made, t->dtype, t->ndim, t->shape));
  int rc = d ? copy(d, &made, t) : nb_tensor_copy(&made, t);
  if (rc < 0) {
    nb_tensor_release(&made);
    return rc;
  }
  *out = made;
  return NB_OK;
}

int nb_device_copy(nb_tensor *dst, const nb_tensor *src) {
  char a[160], b[160];
  nb_cuda_device *d;
  if (dst->dtype != src->dtype || nb_tensor_numel(dst) != nb_tensor_numel(src))
    return nb_fail(NB_EINVAL, "copy: expected as many elements of one dtype, found %s from %s",
                   nb_tensor_describe(dst, a, sizeof a), nb_tensor_describe(src, b, sizeof b));
  if (!dst->device && !src->device) return nb_tensor_copy(dst, src);
  if (dst->device && src->device && dst->device != src->device)
    return nb_fail(NB_EINVAL, "copy: from cuda:%d to cuda:%d; t:to makes a copy there", src->device - 1,
                   dst->device - 1);
  NB_TRY(nb_cuda_use(&d, dst->device ? dst->device : src->device));
  return copy(d, dst, src);
}

int nb_device_zero(nb_tensor *t) {
  nb_cuda_device *d;
  int64_t bytes = nb_tensor_bytes(t);
  if (!t->device) return nb_fail(NB_EINVAL, "zero: expected a tensor on a device");
  NB_TRY(nb_cuda_use(&d, t->device));
  int code = bytes ? d->cu->cuMemsetD8Async(address(t), 0, (size_t)bytes, nb_cuda_stream(d)) : 0;
  return code ? nb_cuda_failed(d, code, "clearing %lld bytes", (long long)bytes) : NB_OK;
}

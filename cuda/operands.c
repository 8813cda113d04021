/* operands.c - what functions on a device ask of their tensors, and where their results come from. */
#include "device.h"
#include "kernels/numbers.h"

int nb_cuda_operand(nb_tensor *seen, nb_cuda_device **d, const nb_tensor *t, const char *what) {
  return nb_cuda_operand_at(seen, d, t, 16, what);
}

int nb_cuda_operand_at(nb_tensor *seen, nb_cuda_device **d, const nb_tensor *t, int64_t alignment,
                       const char *what) {
  char text[160];
  nb_tensor_describe(t, text, sizeof text);
  if (!t->device)
    return nb_fail(NB_EINVAL, "%s: %s lies in the computer's memory, expected on a device", what, text);
  if (*d && (*d)->number != t->device)
    return nb_fail(NB_EINVAL, "%s: %s lies on cuda:%d, the other operand on cuda:%d", what, text,
                   t->device - 1, (*d)->ordinal);
  int64_t beyond = (int64_t)((uintptr_t)t->data % (uintptr_t)alignment); /* of a view */
  if (beyond)
    return nb_fail(NB_EINVAL, "%s: %s begins %lld bytes past a multiple of %lld", what, text,
                   (long long)beyond, (long long)alignment);
  if (!*d) NB_TRY(nb_cuda_use(d, t->device));
  *seen = *t;
  seen->device = 0;
  return NB_OK;
}

int nb_cuda_operands(nb_tensor *seen, nb_cuda_device **d, const nb_tensor *const *tensors, int count,
                     const char *what) {
  nb_cuda_device *any = NULL;
  for (int i = 0; i < count; i++) {
    int64_t bytes = tensors[i] ? NB_MAX(nb_dtype_bits(tensors[i]->dtype) / 8, 1) : 0;
    if (bytes) NB_TRY(nb_cuda_operand_at(&seen[i], d ? d : &any, tensors[i], bytes, what));
  }
  return NB_OK;
}

int nb_cuda_expect(const nb_tensor *t, const char *what, int device, int dtype, int ndim,
                   const int64_t *shape) {
  if (t->device != device)
    return nb_fail(NB_EINVAL,
                   t->device ? "%s: expected on cuda:%d, found on cuda:%d"
                             : "%s: expected on cuda:%d, found in the computer's memory",
                   what, device - 1, (int)t->device - 1);
  nb_tensor here = *t;
  here.device = 0; /* its elements are not looked at */
  NB_TRY(nb_expect(&here, what, dtype, ndim, shape));
  int64_t bytes = NB_MAX(nb_dtype_bits(t->dtype) / 8, 1),
          beyond = (int64_t)((uintptr_t)t->data % (uintptr_t)bytes);
  if (beyond && nb_tensor_numel(t)) /* of a view; a kernel that reads there would lose the device */
    return nb_fail(NB_EINVAL, "%s: begins %lld bytes past a multiple of %lld", what, (long long)beyond,
                   (long long)bytes);
  return NB_OK;
}

int nb_cuda_result(nb_tensor *to, const nb_tensor *out, nb_cuda_device *d, int dtype, int ndim,
                   const int64_t *shape, const char *what) {
  nb_tensor seen;
  if (!out->data && !out->buf) return nb_cuda_tensor(to, d, dtype, ndim, shape);
  NB_TRY(nb_cuda_operand(&seen, &d, out, what));
  *to = *out;
  return nb_expect(&seen, what, dtype, ndim, shape);
}

int nb_cuda_finish(nb_tensor *out, nb_tensor *to, int rc) {
  if (rc < 0 && to->buf != out->buf) nb_tensor_release(to);
  else if (rc >= 0) *out = *to;
  return rc;
}

int nb_cuda_kernel_dtype(int dtype) {
  switch (dtype) {
  case NB_F32: return NB_KERNEL_F32;
  case NB_BF16: return NB_KERNEL_BF16;
  case NB_F16: return NB_KERNEL_F16;
  case NB_F8_E4M3: return NB_KERNEL_E4M3;
  case NB_F8_E4M3FNUZ: return NB_KERNEL_E4M3FNUZ;
  case NB_F8_E8M0: return NB_KERNEL_E8M0;
  default: return -1;
  }
}

bool nb_cuda_is_plain(int dtype) { return dtype == NB_F32 || dtype == NB_BF16 || dtype == NB_F16; }

int nb_cuda_expect_plain(const nb_tensor *t, const char *what) {
  char text[160];
  if (nb_cuda_is_plain(t->dtype)) return NB_OK;
  return nb_fail(NB_EINVAL, "%s: expected f32, bf16 or f16, found %s", what,
                 nb_tensor_describe(t, text, sizeof text));
}

int nb_cuda_notes_new(nb_tensor *notes, nb_cuda_device *d, int64_t words, const char *refused) {
  NB_TRY(nb_cuda_no_capture(d, refused));
  return nb_tensor_new_on(notes, d->number, NB_I32, 1, NB_SHAPE(words));
}

int nb_cuda_notes_read(void *out, const nb_tensor *notes) {
  nb_tensor here;
  NB_TRY(nb_tensor_to(&here, notes, 0));
  memcpy(out, here.data, (size_t)nb_tensor_bytes(&here));
  nb_tensor_release(&here);
  return NB_OK;
}

int nb_cuda_resident(int64_t *blocks, const nb_cuda_device *d, int to_processor, int shared_bytes) {
  enum { OWN = 1024 }; /* of a block's shared memory, for the driver */
  nb_device_info info;
  NB_TRY(nb_device_get(&info, d->number));
  int fit = NB_MAX(1, NB_MIN(to_processor, info.shared_bytes / (shared_bytes + OWN)));
  *blocks = (int64_t)NB_MAX(info.multiprocessors, 1) * fit;
  return NB_OK;
}

/* check.c - the tensors that a function on a device is given, checked as nb_expect checks those of the computer's
 * memory, in its words. */
#include "device.h"

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

/* repack.c - Marlin's words on a device, out of GPTQ's or AWQ's there: kernels/repack.cu, launched. */
#include "device.h"
#include "kernels/repack.h"
#include "layout/layout.h"

/* The kernels count tiles in 32 bits and look some rounds of all warps ahead. */
enum { MOST_TILES = 1 << 30 };

/* perm, checked, which takes reading it: NULL, or on the device (to release). */
static int order_of(nb_tensor *order, const nb_tensor *perm, const nb_marlin_sizes *s, int ndim, int a8,
                    int device) {
  const int32_t *rows;
  nb_tensor here;
  memset(order, 0, sizeof *order);
  if (!perm) return NB_OK;
  if (perm->device && perm->device != device)
    return nb_fail(NB_EINVAL, "marlin repack: perm lies on cuda:%d, the words on cuda:%d", perm->device - 1,
                   device - 1);
  if (perm->device) NB_TRY(nb_tensor_to(&here, perm, 0));
  int rc = nb_marlin_perm_of(&rows, perm->device ? &here : perm, s, ndim, a8, "marlin repack");
  if (perm->device) nb_tensor_release(&here);
  if (rc < 0 || !rows) return rc;
  return nb_tensor_to(order, perm, device);
}

static int launch(nb_cuda_device *d, const nb_marlin_sizes *s, nb_tensor *out, const nb_tensor *words,
                  const nb_tensor *order, int awq, int a8) {
  int experts = (int)s->experts, k = (int)s->k, n = (int)s->n, bits = s->tile.bits;
  int shared = awq           ? nb_repack_awq_shared(bits, a8)
               : order->data ? nb_repack_ordered_shared()
                             : nb_repack_gptq_shared(bits, a8);
  int64_t tiles = s->experts * (s->k / s->tile.k) * (s->n / s->tile.n), resident;
  NB_TRY(nb_cuda_resident(&resident, d, order->data ? NB_REPACK_BLOCKS_ORDERED : NB_REPACK_BLOCKS, shared));
  nb_launch at = {{(int32_t)NB_MIN(NB_CEIL(tiles, NB_REPACK_WARPS), resident), 1, 1},
                  {NB_REPACK_WARPS * 32, 1, 1},
                  shared};
  if (order->data)
    return nb_device_launch(
        d->number, "nb_repack_gptq_ordered", &at,
        (void *[]){(void *)&words->data, (void *)&order->data, &out->data, &experts, &k, &n, &bits});
  return nb_device_launch(d->number, awq ? "nb_repack_awq" : "nb_repack_gptq", &at,
                          (void *[]){(void *)&words->data, &out->data, &experts, &k, &n, &bits, &a8});
}

static int repack(nb_tensor *out, const nb_tensor *words, const nb_tensor *perm, int order, int bits, int a8,
                  const char *what) {
  nb_cuda_device *d = NULL;
  nb_marlin_sizes s;
  nb_tensor seen, rows, to;
  int64_t shape[3];
  char text[160];
  NB_TRY(nb_cuda_operand(&seen, &d, words, what));
  NB_TRY(nb_marlin_sizes_of(&s, &seen, order, bits, a8, what));
  if (s.experts > INT32_MAX || s.k > INT32_MAX || s.n > INT32_MAX ||
      nb_tensor_numel(words) > (int64_t)MOST_TILES * 32 * bits)
    return nb_fail(NB_EUNSUPPORTED, "%s: %s is more than a launch can count", what,
                   nb_tensor_describe(words, text, sizeof text));
  NB_TRY(order_of(&rows, perm, &s, words->ndim, a8, words->device));
  nb_marlin_shape(shape, &s, words->ndim);
  int rc = nb_cuda_result(&to, out, d, NB_I32, words->ndim, shape, what);
  if (rc == NB_OK) {
    if (to.data == words->data && to.data) rc = nb_fail(NB_EINVAL, "%s: cannot be done in place", what);
    else if (nb_tensor_numel(words)) rc = launch(d, &s, &to, words, &rows, order == NB_MARLIN_AWQ, a8 != 0);
    rc = nb_cuda_finish(out, &to, rc);
  }
  nb_tensor_release(&rows); /* the driver waits for the kernel before it gives memory away */
  return rc;
}

int nb_device_marlin_repack(nb_tensor *out, const nb_tensor *words, const nb_tensor *perm, int bits, int a8) {
  return repack(out, words, perm, NB_MARLIN_STD, bits, a8, "marlin repack");
}

int nb_device_marlin_awq_repack(nb_tensor *out, const nb_tensor *words, int bits, int a8) {
  return repack(out, words, NULL, NB_MARLIN_AWQ, bits, a8, "marlin awq_repack");
}

/* permute.c - Marlin's order of scales, bias and zero-points on a device: kernels/permute.cu, launched. */
#include "device.h"
#include "kernels/permute.h"
#include "layout/layout.h"

/* How a kernel's elements are permuted: their bits in the source, and for codes that are packed *wrong (else NULL). */
typedef struct job {
  nb_permutation order;
  int bits;
  int *wrong;
} job;

static int launch(nb_cuda_device *d, const job *j, nb_tensor *to, const nb_tensor *from) {
  const char *kernel = j->wrong        ? "nb_permute_codes"
                       : j->bits == 4  ? "nb_permute_4"
                       : j->bits == 8  ? "nb_permute_8"
                       : j->bits == 16 ? "nb_permute_16"
                                       : "nb_permute_32";
  int64_t units = nb_tensor_bytes(from) / 16, resident;
  if (!units) return NB_OK;
  NB_TRY(nb_cuda_resident(&resident, d, j->bits == 4 || j->wrong ? NB_PERMUTE_BLOCKS_4 : NB_PERMUTE_BLOCKS,
                          NB_PERMUTE_SHARED));
  nb_launch at = {{(int32_t)NB_MIN(NB_CEIL(units, 32 * NB_PERMUTE_WARPS), resident), 1, 1},
                  {NB_PERMUTE_WARPS * 32, 1, 1},
                  NB_PERMUTE_SHARED};
  return nb_device_launch(
      d->number, kernel, &at,
      (void *[]){(void *)&from->data, &to->data, &units, (void *)&j->order, (void *)&j->wrong});
}

/* from, permuted, as out, of this shape. */
static int permute(nb_tensor *out, const nb_tensor *from, nb_cuda_device *d, const job *j, int dtype,
                   const int64_t *shape, const char *what) {
  nb_tensor to;
  NB_TRY(nb_cuda_result(&to, out, d, dtype, from->ndim, shape, what));
  int rc = to.data && to.data == from->data ? nb_fail(NB_EINVAL, "%s: cannot be done in place", what)
                                            : launch(d, j, &to, from);
  return nb_cuda_finish(out, &to, rc);
}

static int permute_last(nb_tensor *out, const nb_tensor *in, bool grouped, int inverse, const char *what) {
  nb_cuda_device *d = NULL;
  nb_tensor seen;
  job j = {.bits = (int)nb_dtype_bits(in->dtype)};
  NB_TRY(nb_cuda_operand(&seen, &d, in, what));
  NB_TRY(nb_marlin_permutation(j.order.from, &seen, grouped, inverse, what));
  return permute(out, in, d, &j, in->dtype, in->shape, what);
}

int nb_device_marlin_permute_scales(nb_tensor *out, const nb_tensor *scales, int64_t k, int64_t g, int a8,
                                    int inverse) {
  if (scales->ndim != 2 && scales->ndim != 3) {
    nb_tensor seen = *scales;
    seen.device = 0;
    return nb_expect(&seen, "marlin permute_scales", -1, 2, NB_SHAPE(-1, -1));
  }
  return permute_last(out, scales, nb_marlin_grouped(k, g, a8), inverse, "marlin permute_scales");
}

int nb_device_marlin_permute_bias(nb_tensor *out, const nb_tensor *bias, int inverse) {
  return permute_last(out, bias, false, inverse, "marlin permute_bias");
}

static int from_words(nb_tensor *out, const nb_tensor *words, int order, int bits, int a8, const char *what) {
  nb_cuda_device *d = NULL;
  nb_tensor seen;
  job j = {.bits = bits};
  uint8_t slot[8];
  int64_t shape[3];
  NB_TRY(nb_cuda_operand(&seen, &d, words, what));
  NB_TRY(nb_marlin_zeros_shape(shape, &seen, true, bits, what));
  nb_marlin_zero_columns(j.order.from, bits, a8 != 0);
  nb_marlin_zero_slots(slot, bits, order);
  int pf = 32 / bits;
  for (int p = 0; p < NB_PERMUTE_BLOCK; p++) {
    int column = j.order.from[p];
    j.order.from[p] = (uint8_t)(column / pf * pf + slot[column % pf]);
  }
  return permute(out, words, d, &j, NB_I32, shape, what);
}

int nb_device_marlin_awq_zero_points(nb_tensor *out, const nb_tensor *words, int bits, int a8) {
  return from_words(out, words, NB_MARLIN_AWQ, bits, a8, "marlin awq_zero_points");
}

int nb_device_marlin_packed_zero_points(nb_tensor *out, const nb_tensor *words, int bits, int a8) {
  return from_words(out, words, NB_MARLIN_STD, bits, a8, "marlin packed_zero_points");
}

/* Once the kernel is done: the CPU's sentence for codes beyond 4 bits, where it found one. */
static int codes_fit(const nb_tensor *wrong, const nb_tensor *zeros, const char *what) {
  nb_tensor here;
  int found;
  NB_TRY(nb_cuda_notes_read(&found, wrong));
  if (!found) return NB_OK;
  NB_TRY(nb_tensor_to(&here, zeros, 0));
  int rc = nb_codes_check(&here, 4, what);
  nb_tensor_release(&here);
  return rc;
}

int nb_device_marlin_zero_points(nb_tensor *out, const nb_tensor *zeros, int bits, int a8) {
  const char *what = "marlin zero_points";
  nb_cuda_device *d = NULL;
  nb_tensor seen, to, wrong = {0};
  job j = {.bits = 8};
  int64_t shape[3];
  NB_TRY(nb_cuda_operand(&seen, &d, zeros, what));
  NB_TRY(nb_marlin_zeros_shape(shape, &seen, false, bits, what));
  nb_marlin_zero_columns(j.order.from, bits, a8 != 0);
  if (bits == 8) return permute(out, zeros, d, &j, NB_I32, shape, what);
  NB_TRY(nb_cuda_notes_new(&wrong, d, 1,
                           "no zero-points can be packed: a code that does not fit could not be told"));
  j.wrong = wrong.data;
  int rc = nb_cuda_result(&to, out, d, NB_I32, zeros->ndim, shape, what);
  if (rc == NB_OK) {
    rc = launch(d, &j, &to, zeros);
    if (rc == NB_OK) rc = codes_fit(&wrong, zeros, what);
    rc = nb_cuda_finish(out, &to, rc);
  }
  nb_tensor_release(&wrong);
  return rc;
}

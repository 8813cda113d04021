/* marlin_numeric.c - numbers for Marlin's kernels with 8-bit activations and 4-bit floats, on a device:
 * kernels/marlin_numeric.cu, launched. What a kernel finds wrong is told in the CPU's words: it does it over. */
#include <math.h>

#include "device.h"
#include "kernels/marlin_numeric.h"
#include "layout/layout.h"

/* A launch with a thread for each of `items` (16 bytes or so), as many as the device holds. */
static int launch(nb_cuda_device *d, const char *kernel, int64_t items, void **arguments) {
  int64_t most;
  NB_TRY(nb_cuda_resident(&most, d, NB_NUMERIC_BLOCKS, 0));
  nb_launch at = {{(int32_t)NB_MIN(NB_CEIL(NB_MAX(items, 1), NB_NUMERIC_THREADS), most), 1, 1},
                  {NB_NUMERIC_THREADS, 1, 1},
                  0};
  return nb_device_launch(d->number, kernel, &at, arguments);
}

static int notes_new(nb_tensor *notes, nb_cuda_device *d, int64_t words) {
  return nb_cuda_notes_new(notes, d, words, "no scales can be made: what fails could not be told");
}

/* ---- 4-bit codes for fp8 activations ------------------------------------------- */

static int fold(nb_cuda_device *d, nb_tensor *to, const nb_tensor *words, const nb_tensor *zeros,
                int64_t rows, int64_t k, int64_t groups, int inverse) {
  int64_t columns = nb_tensor_numel(words) / rows, most;
  uint32_t count = (uint32_t)rows, per_zero = (uint32_t)(k / groups);
  const void *z = zeros ? zeros->data : NULL;
  void *arguments[] = {(void *)&words->data, &z, &to->data, &count, &columns, &per_zero, &inverse};
  if (!zeros) return launch(d, "nb_marlin_fold", count * columns / 4, arguments);
  enum { ACROSS = 32, DOWN = NB_NUMERIC_THREADS / ACROSS, MOST_DOWN = 65535 };
  NB_TRY(nb_cuda_resident(&most, d, NB_NUMERIC_BLOCKS, 0));
  int64_t across = NB_MIN(NB_CEIL(columns / 4, ACROSS), most);
  int64_t down = NB_MIN(NB_CEIL(rows, DOWN), NB_CEIL(most, across));
  nb_launch at = {{(int32_t)across, (int32_t)NB_MIN(down, (int64_t)MOST_DOWN), 1}, {ACROSS, DOWN, 1}, 0};
  return nb_device_launch(d->number, "nb_marlin_fold", &at, arguments);
}

int nb_device_marlin_fp8_preprocess(nb_tensor *out, const nb_tensor *words, const nb_tensor *zeros, int bits,
                                    int inverse) {
  const char *what = "marlin fp8_preprocess";
  nb_cuda_device *d = NULL;
  nb_tensor seen, z, to;
  int64_t experts, k, groups;
  NB_TRY(nb_cuda_operand(&seen, &d, words, what));
  if (zeros) NB_TRY(nb_cuda_operand(&z, &d, zeros, what));
  NB_TRY(nb_marlin_fold_check(&seen, zeros ? &z : NULL, bits, &experts, &k, &groups, what));
  NB_TRY(nb_expect_words(&seen, what, seen.ndim, seen.shape));
  int64_t rows = experts * k;
  if (zeros && seen.shape[seen.ndim - 1] % 4)
    return nb_fail(NB_EUNSUPPORTED, "%s: on a device N must be a multiple of 32, found %lld", what,
                   (long long)seen.shape[seen.ndim - 1] * 8);
  if (rows > INT32_MAX)
    return nb_fail(NB_EUNSUPPORTED, "%s: %lld rows are more than a launch can count", what, (long long)rows);
  NB_TRY(nb_cuda_result(&to, out, d, words->dtype, words->ndim, words->shape, what));
  int rc = nb_tensor_numel(words) ? fold(d, &to, words, zeros, rows, k, groups, inverse != 0) : NB_OK;
  return nb_cuda_finish(out, &to, rc);
}

/* ---- scales ---------------------------------------------------------------------- */

/* The CPU's function on copies: for its sentence where a kernel found something wrong. */
typedef int scales_fn(nb_tensor *out, const nb_tensor *scales, int a8);

static int int8_here(nb_tensor *out, const nb_tensor *scales, int a8) {
  float global;
  (void)a8;
  return nb_marlin_int8_scales(out, &global, scales);
}

static int say_why(scales_fn *fn, const nb_tensor *scales, int a8, const char *what) {
  nb_tensor here, out;
  NB_TRY(nb_tensor_to(&here, scales, 0));
  int rc = nb_tensor_new(&out, here.dtype, here.ndim, here.shape);
  if (rc == NB_OK) {
    rc = fn(&out, &here, a8);
    nb_tensor_release(&out);
  }
  nb_tensor_release(&here);
  return rc < 0 ? rc
                : nb_fail(NB_EIO, "%s: the device found a scale too large that the processor takes", what);
}

int nb_device_marlin_mx_scales(nb_tensor *out, const nb_tensor *scales, int a8) {
  const char *what = "marlin mx_scales";
  nb_cuda_device *d = NULL;
  nb_tensor seen, to, notes = {0};
  NB_TRY(nb_cuda_operand(&seen, &d, scales, what));
  NB_TRY(nb_marlin_mx_check(&seen, what));
  if (a8) NB_TRY(notes_new(&notes, d, 1));
  int rc = nb_cuda_result(&to, out, d, scales->dtype, scales->ndim, scales->shape, what), found = 0;
  if (rc == NB_OK) {
    int64_t words = nb_tensor_numel(scales) / 4;
    if (words)
      rc = launch(d, "nb_marlin_mx", words / 4,
                  (void *[]){(void *)&scales->data, &to.data, &words, &a8, &notes.data});
    if (rc == NB_OK && a8) rc = nb_cuda_notes_read(&found, &notes);
    if (rc == NB_OK && found) rc = say_why(nb_marlin_mx_scales, scales, a8, what);
    rc = nb_cuda_finish(out, &to, rc);
  }
  nb_tensor_release(&notes);
  return rc;
}

/* The largest scale, NaN where one is, -inf of none. */
static int max_of(float *max, const nb_tensor *scales, nb_cuda_device *d) {
  nb_tensor notes;
  nb_numeric_range range;
  int64_t count = nb_tensor_numel(scales);
  *max = -INFINITY;
  if (!count) return NB_OK;
  NB_TRY(notes_new(&notes, d, 2));
  int rc = launch(d, "nb_marlin_max", count / 8, (void *[]){(void *)&scales->data, &count, &notes.data});
  if (rc == NB_OK) rc = nb_cuda_notes_read(&range, &notes);
  nb_tensor_release(&notes);
  if (rc < 0) return rc;
  bool f16 = scales->dtype == NB_F16;
  int key = (int)range.greatest - NB_NUMERIC_ZERO;
  uint16_t size = (uint16_t)abs(key);
  float largest = f16 ? nb_f16_to_f32(size) : nb_bf16_to_f32(size);
  *max = range.widest > (f16 ? 0x7c00u : 0x7f80u) ? NAN : key < 0 ? -largest : largest;
  return NB_OK;
}

int nb_device_marlin_int8_scales(nb_tensor *out, float *global, const nb_tensor *scales) {
  const char *what = "marlin int8_scales";
  nb_cuda_device *d = NULL;
  nb_tensor seen, to, notes;
  float max;
  int found, dtype = nb_cuda_kernel_dtype(scales->dtype);
  int64_t count = nb_tensor_numel(scales);
  NB_TRY(nb_cuda_operand(&seen, &d, scales, what));
  NB_TRY(nb_expect_float16(&seen, what));
  NB_TRY(max_of(&max, scales, d));
  NB_TRY(nb_marlin_int8_max_check(max, what));
  NB_TRY(notes_new(&notes, d, 1));
  int rc = nb_cuda_result(&to, out, d, scales->dtype, scales->ndim, scales->shape, what);
  if (rc == NB_OK) {
    rc = launch(d, "nb_marlin_int8", count / 8,
                (void *[]){(void *)&scales->data, &to.data, &count, &dtype, &max, &notes.data});
    if (rc == NB_OK) rc = nb_cuda_notes_read(&found, &notes);
    if (rc == NB_OK && found) rc = say_why(int8_here, scales, 0, what);
    rc = nb_cuda_finish(out, &to, rc);
  }
  nb_tensor_release(&notes);
  if (rc == NB_OK) *global = max / 4096.0f;
  return rc;
}

int nb_device_marlin_nvfp4_factor(double *factor, const nb_tensor *scales) {
  nb_cuda_device *d = NULL;
  nb_tensor seen;
  float max = 0;
  NB_TRY(nb_cuda_operand(&seen, &d, scales, "marlin nvfp4_factor"));
  NB_TRY(nb_expect_float16(&seen, "marlin nvfp4_factor"));
  if (scales->dtype == NB_BF16) NB_TRY(max_of(&max, scales, d));
  *factor = nb_marlin_nvfp4_factor_of(max);
  return NB_OK;
}

int nb_device_marlin_nvfp4_scales(nb_tensor *out, const nb_tensor *scales, double factor) {
  const char *what = "marlin nvfp4_scales";
  nb_cuda_device *d = NULL;
  nb_tensor seen, to;
  float by = (float)factor;
  int dtype = nb_cuda_kernel_dtype(scales->dtype);
  NB_TRY(nb_cuda_operand(&seen, &d, scales, what));
  NB_TRY(nb_marlin_nvfp4_check(&seen, what));
  int64_t words = nb_tensor_numel(scales) / 4;
  NB_TRY(nb_cuda_result(&to, out, d, NB_F8_E4M3, scales->ndim, scales->shape, what));
  int rc = words ? launch(d, "nb_marlin_nvfp4", words / 2,
                          (void *[]){(void *)&scales->data, &to.data, &words, &dtype, &by})
                 : NB_OK;
  return nb_cuda_finish(out, &to, rc);
}

int nb_device_swizzle_blockscale(nb_tensor *out, const nb_tensor *scales) {
  const char *what = "swizzle_blockscale";
  nb_cuda_device *d = NULL;
  nb_tensor seen, to;
  int64_t shape[3];
  NB_TRY(nb_cuda_operand(&seen, &d, scales, what));
  NB_TRY(nb_swizzle_shape(shape, &seen, what));
  int dims = scales->ndim;
  int64_t matrices = dims == 3 ? shape[0] : 1, m = scales->shape[dims - 2], k = scales->shape[dims - 1];
  if (m > INT32_MAX / 4 || k > INT32_MAX / 4 || NB_CEIL(m, 128) * NB_CEIL(k, 64) > INT32_MAX / 512)
    return nb_fail(NB_EUNSUPPORTED, "%s: scales [%lld,%lld] are more than a launch can count", what,
                   (long long)m, (long long)k);
  NB_TRY(nb_cuda_result(&to, out, d, scales->dtype, dims, shape, what));
  int rows = (int)m, columns = (int)k, bytes = (int)(nb_dtype_bits(scales->dtype) / 8), rc = NB_OK;
  if (to.data && to.data == scales->data) rc = nb_fail(NB_EINVAL, "%s: cannot be done in place", what);
  else if (nb_tensor_numel(&to))
    rc = launch(d, "nb_swizzle", nb_tensor_numel(&to) / 16,
                (void *[]){(void *)&scales->data, &to.data, &matrices, &rows, &columns, &bytes});
  return nb_cuda_finish(out, &to, rc);
}

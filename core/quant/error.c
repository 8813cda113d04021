/* error.c - what a quantization cost: the error of codes against the weight they
 * stand for, and a check of codes that someone else made. */
#include "dequant.h"

#include <math.h>

static const char what[] = "quantization error";

typedef struct row_sums {
  double error2, weight2, max_abs;
} row_sums;

/* Four sums a row, so that the additions don't wait for each other; always in
 * this order, whatever the path. */
static row_sums row_error(const float *dequantized, const void *w, int w_dtype, int64_t k) {
  double e2[4] = {0}, w2[4] = {0};
  float max = 0;
  for (int64_t i = 0; i < k; i++) {
    float v = nb_load(w, i, w_dtype), e = v - dequantized[i];
    e2[i % 4] += (double)e * (double)e;
    w2[i % 4] += (double)v * (double)v;
    max = NB_MAX(max, fabsf(e));
  }
  return (row_sums){(e2[0] + e2[1]) + (e2[2] + e2[3]), (w2[0] + w2[1]) + (w2[2] + w2[3]), (double)max};
}

int nb_quant_error_of(nb_quant_sums *sums, const nb_tensor *dequantized, const nb_tensor *w) {
  NB_TRY(nb_expect(dequantized, "quantization error: dequantized", NB_F32, 2, NB_SHAPE(-1, -1)));
  NB_TRY(nb_expect(w, "quantization error: weight", -1, 2, dequantized->shape));
  if (w->dtype != NB_F32 && w->dtype != NB_BF16 && w->dtype != NB_F16)
    return nb_fail(NB_EINVAL, "%s: weight: expected f32, bf16 or f16, found %s", what,
                   nb_dtype_name(w->dtype));
  int64_t n = w->shape[0], k = w->shape[1];
  row_sums *rows = nb_alloc(n, sizeof *rows);
  if (!rows) return NB_ENOMEM;
  int stopped = 0;
#pragma omp parallel for schedule(static) num_threads(nb_threads()) reduction(| : stopped) if (n * k > 65536)
  for (int64_t r = 0; r < n; r++) {
    if (nb_stop_requested()) stopped = 1;
    else
      rows[r] = row_error((const float *)dequantized->data + r * k,
                          (const char *)w->data + r * k * nb_elem_bytes(w->dtype), w->dtype, k);
  }
  if (stopped) {
    free(rows);
    return nb_fail_stopped();
  }
  for (int64_t r = 0; r < n; r++) {
    sums->error2 += rows[r].error2;
    sums->weight2 += rows[r].weight2;
    sums->max_abs = NB_MAX(sums->max_abs, rows[r].max_abs);
    if (rows[r].error2 > sums->worst_error2) {
      sums->worst_error2 = rows[r].error2;
      sums->worst_row = sums->rows + r;
    }
  }
  sums->rows += n;
  sums->numel += n * k;
  free(rows);
  return NB_OK;
}

int nb_quant_error(nb_quant_sums *sums, const nb_tensor *codes, const nb_tensor *scales,
                   const nb_tensor *zeros, const nb_tensor *g_idx, int bits, const nb_tensor *w) {
  nb_tensor dequantized;
  NB_TRY(nb_tensor_new(&dequantized, NB_F32, codes->ndim, codes->shape));
  int rc = nb_dequantize(&dequantized, codes, scales, zeros, g_idx, bits);
  if (rc == NB_OK) rc = nb_quant_error_of(sums, &dequantized, w);
  nb_tensor_release(&dequantized);
  return rc;
}

/* ---- codes that a script made ---------------------------------------------- */

static int check_bytes(const nb_tensor *t, const char *name, int bits) {
  const uint8_t *p = t->data;
  int64_t numel = nb_tensor_numel(t), cols = t->shape[1];
  for (int64_t i = 0; i < numel; i++)
    if (p[i] >> bits)
      return nb_fail(NB_EFORMAT, "%s: %d in row %lld, column %lld (counted from 0); %d bits hold 0 to %d",
                     name, p[i], (long long)(i / cols), (long long)(i % cols), bits, (1 << bits) - 1);
  return NB_OK;
}

int nb_quant_check(const nb_tensor *codes, const nb_tensor *scales, const nb_tensor *zeros, int bits) {
  if (bits < 1 || bits > 8) return nb_fail(NB_EINVAL, "quantized weight: %d bits, expected 1 to 8", bits);
  NB_TRY(nb_expect(codes, "codes", NB_U8, 2, NB_SHAPE(-1, -1)));
  NB_TRY(nb_expect(scales, "scales", -1, 2, NB_SHAPE(codes->shape[0], -1)));
  if (scales->dtype != NB_F32 && scales->dtype != NB_BF16 && scales->dtype != NB_F16)
    return nb_fail(NB_EINVAL, "scales: expected f32, bf16 or f16, found %s", nb_dtype_name(scales->dtype));
  if (zeros) NB_TRY(nb_expect(zeros, "zeros", NB_U8, 2, scales->shape));
  NB_TRY(check_bytes(codes, "codes", bits));
  if (zeros) NB_TRY(check_bytes(zeros, "zeros", bits));
  int64_t numel = nb_tensor_numel(scales), cols = scales->shape[1];
  for (int64_t i = 0; i < numel; i++) {
    float s = nb_load(scales->data, i, scales->dtype);
    if (!(s > 0) || isinf(s))
      return nb_fail(NB_EFORMAT,
                     "scales: %g in row %lld, group %lld (counted from 0); expected finite and above 0",
                     (double)s, (long long)(i / cols), (long long)(i % cols));
  }
  return NB_OK;
}

/* dequant.c - codes back to weights: (code - zero) * scale in float32, one
 * rounding to the output's dtype. (code - zero) is an integer below 2^8, so the
 * float32 product is the exact one, rounded once. */
#include "dequant.h"

#include <stdio.h>

static const char what[] = "dequantize";

/* ---- portable rows -------------------------------------------------------- */

static void row_groups(void *out, const uint8_t *codes, const nb_dequant *d, const float *scale,
                       const int32_t *zero) {
  for (int64_t g = 0; g < d->per_row; g++)
    for (int64_t i = g * d->group; i < (g + 1) * d->group; i++)
      nb_store(out, i, (float)(codes[i] - zero[g]) * scale[g], d->dtype);
}

static void row_g_idx(void *out, const uint8_t *codes, const nb_dequant *d, const float *scale,
                      const int32_t *zero) {
  for (int64_t i = 0; i < d->k; i++) {
    int32_t g = d->g_idx[i];
    nb_store(out, i, (float)(codes[i] - zero[g]) * scale[g], d->dtype);
  }
}

nb_dequant_row_fn *nb_dequant_row_of(bool g_idx) {
  bool avx2 = nb_cpu() & NB_CPU_AVX2;
  if (g_idx) return avx2 ? nb_dequant_row_g_idx_avx2 : row_g_idx;
  return avx2 ? nb_dequant_row_avx2 : row_groups;
}

/* ---- rows over threads ------------------------------------------------------ */

static int dequant_rows(nb_dequant *d, nb_dequant_row_fn *row_fn) {
  int64_t rows = NB_MAX(1, 65536 / d->k), blocks = NB_CEIL(d->n, rows);
  int stopped = 0, no_memory = 0;
#pragma omp parallel num_threads(nb_threads()) if (blocks > 1) reduction(| : stopped, no_memory)
  {
    /* one row's scales and zero-points as the inner loop wants them */
    float *scale = nb_alloc(d->per_row, (int64_t)(sizeof *scale + sizeof(int32_t)));
    int32_t *zero = (int32_t *)(scale + d->per_row);
    no_memory |= !scale;
#pragma omp for schedule(static)
    for (int64_t b = 0; b < blocks; b++) {
      if (nb_stop_requested()) stopped |= 1;
      if (stopped || !scale) continue;
      for (int64_t r = b * rows; r < NB_MIN(d->n, (b + 1) * rows); r++) {
        for (int64_t g = 0; g < d->per_row; g++) {
          int64_t at = d->per_tensor ? 0 : r * d->per_row + g;
          scale[g] = nb_load(d->scales, at, d->s_dtype);
          zero[g] = d->zeros ? d->zeros[at] : 1 << (d->bits - 1);
        }
        row_fn(d->out + r * d->k * nb_elem_bytes(d->dtype), d->codes + r * d->k, d, scale, zero);
      }
    }
    free(scale);
  }
  if (no_memory) return nb_fail(NB_ENOMEM, "%s: out of memory", what);
  return stopped ? nb_fail_stopped() : NB_OK;
}

/* ---- checks --------------------------------------------------------------- */

static int check_float(const nb_tensor *t, const char *name) {
  if (t->dtype == NB_F32 || t->dtype == NB_BF16 || t->dtype == NB_F16) return NB_OK;
  return nb_fail(NB_EINVAL, "%s: %s: expected f32, bf16 or f16, found %s", what, name,
                 nb_dtype_name(t->dtype));
}

int nb_dequantize(nb_tensor *out, const nb_tensor *codes, const nb_tensor *scales, const nb_tensor *zeros,
                  const nb_tensor *g_idx, int bits) {
  if (bits < 1 || bits > 8) return nb_fail(NB_EINVAL, "%s: %d bits, expected 1 to 8", what, bits);
  NB_TRY(nb_expect(codes, "dequantize: codes", NB_U8, 2, NB_SHAPE(-1, -1)));
  int64_t n = codes->shape[0], k = codes->shape[1];
  NB_TRY(nb_expect(out, "dequantize: out", -1, 2, NB_SHAPE(n, k)));
  NB_TRY(check_float(out, "out"));
  NB_TRY(check_float(scales, "scales"));
  bool per_tensor = nb_tensor_numel(scales) == 1;
  if (!per_tensor) NB_TRY(nb_expect(scales, "dequantize: scales", -1, 2, NB_SHAPE(n, -1)));
  int64_t per_row = per_tensor ? 1 : scales->shape[1];
  if (zeros && per_tensor && nb_tensor_numel(zeros) == 1)
    NB_TRY(nb_expect(zeros, "dequantize: zeros", NB_U8, zeros->ndim, zeros->shape));
  else if (zeros) NB_TRY(nb_expect(zeros, "dequantize: zeros", NB_U8, 2, NB_SHAPE(n, per_row)));
  if (n == 0 || k == 0) return NB_OK;
  if (per_row == 0 || (!g_idx && k % per_row))
    return nb_fail(NB_EINVAL, "%s: K = %lld does not divide into the scales' %lld groups", what, (long long)k,
                   (long long)per_row);
  if (g_idx) NB_TRY(nb_expect_groups(g_idx, what, k, per_row));
  nb_dequant d = {.n = n,
                  .k = k,
                  .group = k / per_row,
                  .per_row = per_row,
                  .dtype = out->dtype,
                  .s_dtype = scales->dtype,
                  .bits = bits,
                  .per_tensor = per_tensor,
                  .out = out->data,
                  .codes = codes->data,
                  .scales = scales->data,
                  .zeros = zeros ? zeros->data : NULL,
                  .g_idx = g_idx ? g_idx->data : NULL};
  return dequant_rows(&d, nb_dequant_row_of(g_idx != NULL));
}
